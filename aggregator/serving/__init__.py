"""A published model behind an OpenAI-compatible API.

registry -> fetch -> every hash verified -> model loaded and warmed up -> GET /health, GET /v1/models,
POST /v1/chat/completions (streamed or not; images as base64 data URLs)

serve("fedmed@champion", open_registry("", Path("runs")), port=8000)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aggregator.registry import Registry


def serve(reference: str, registry: Registry, host: str = "127.0.0.1", port: int = 8000, device: str = "auto") -> None:
    """Serve `reference` until SIGTERM or Ctrl-C; see `aggregator.serving.server.serve`. Loads torch on the first call."""
    from aggregator.serving.server import serve as serve_until_stopped

    serve_until_stopped(reference, registry, host, port, device)
