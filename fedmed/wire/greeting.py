"""The greeting: what a site may ask a SuperLink before it joins. One small call beside Flower's Fleet API, same port.

    {"public_key": PEM} -> {"time": s since 1970, "admitted": bool, "version": FedMed's}

    >>> greet("aggregator.example.org:9092", root_pem, public_pem(key)).skew_s         # doctest: +SKIP
    0.004

Neither TLS 1.3 nor gRPC carries the time of day, and Flower refuses a site whose clock is more than 5 s ahead or 305 s
behind without saying so. The answer tells nothing else: whether a public key is admitted, to whoever has that public key.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

import fedmed
from fedmed.errors import FederationError

SERVICE = "fedmed.Greeting"
_METHOD = f"/{SERVICE}/Greet"
MAX_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Greeting:
    """`skew_s`: the SuperLink's clock less ours, in seconds, known to within `error_s`."""

    admitted: bool
    version: str
    skew_s: float
    error_s: float


def greet(address: str, root_certificates: bytes | None, public_key: bytes, timeout_s: float = 10.0) -> Greeting:
    """Asks the SuperLink at `address`; `root_certificates` None is a plain connection.

    Raises:
        FederationError: nobody answers, or not a SuperLink of FedMed's (`fedmed superlink`).
    """
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
    if root_certificates is None:
        opened = grpc.insecure_channel(address, options=options)
    else:
        opened = grpc.secure_channel(address, grpc.ssl_channel_credentials(root_certificates), options=options)
    with opened as channel:
        call: Any = channel.unary_unary(_METHOD)
        request = json.dumps({"public_key": public_key.decode()}).encode()
        try:
            grpc.channel_ready_future(channel).result(
                timeout=timeout_s
            )  # a handshake takes time that no clock differs by
            before = time.time()
            reply = call(request, timeout=timeout_s)
            after = time.time()
        except grpc.FutureTimeoutError:
            raise FederationError(
                f"the SuperLink at {address} does not answer within {timeout_s:g} s",
                "is it started, and its port open?",
            ) from None
        except grpc.RpcError as error:
            raise _explain(error, address) from None
    return _parse(reply, (before + after) / 2, (after - before) / 2, address)


def handlers(is_admitted: Callable[[bytes], bool]) -> grpc.GenericRpcHandler:
    """The SuperLink's side: `is_admitted` says whether a public key, as PEM, is one that may join."""

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        key = _public_key(request)
        if key is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a greeting")
        reply = {"time": time.time(), "admitted": is_admitted(key or b""), "version": fedmed.__version__}
        return json.dumps(reply).encode()

    handler: grpc.GenericRpcHandler = grpc.method_handlers_generic_handler(
        SERVICE, {"Greet": grpc.unary_unary_rpc_method_handler(answer)}
    )
    return handler


def _public_key(request: bytes) -> bytes | None:
    try:
        return str(_load(request)["public_key"]).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _load(data: bytes) -> Any:
    """Raises ValueError or RecursionError for what is no JSON of a greeting's size."""
    if len(data) > MAX_BYTES:
        raise ValueError(len(data))
    return json.loads(data)


def _parse(reply: bytes, middle: float, error_s: float, address: str) -> Greeting:
    try:
        value = _load(reply)
        version = str(value["version"])[:40]
        return Greeting(value["admitted"] is True, version, float(value["time"]) - middle, error_s)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise FederationError(f"the SuperLink at {address} answers with something that is no greeting") from None


def _explain(error: grpc.RpcError, address: str) -> FederationError:
    code = error.code()
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return FederationError(
            f"the SuperLink at {address} was not started by FedMed",
            "the consortium starts it with `fedmed superlink DIR`",
        )
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return FederationError(
            f"the SuperLink at {address} does not answer in time", "is it started, and its port open?"
        )
    return FederationError(f"the SuperLink at {address} broke off: {code.name}", "is it started, and its port open?")
