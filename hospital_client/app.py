"""The relay: the hospital's own Flower ClientApp, which hands frames to the site daemon and reads none of them.

    SuperLink --frame--> SuperNode --> relay --unix socket--> site daemon --> relay --> SuperNode --frame--> SuperLink

The app bundle that the consortium ships only names this installed module, so no code from the network runs here. The
relay imports neither torch nor transformers (a process is started for each message) and never opens the site's data.
Its SuperNode is started with the daemon's socket:

    flower-supernode --node-config 'site-socket="/run/fedmed/north.sock"' ...

| what happens                          | what the aggregator gets                                         |
| ------------------------------------- | ---------------------------------------------------------------- |
| the daemon answers                    | the daemon's frame, unread                                       |
| the daemon is down or too slow        | Refusal, code federation, retry: the same task may be sent again |
| the frame is too large for the daemon | Refusal, code wire, no retry                                     |
| no `site-socket` in the node's config | Refusal, code federation, no retry                               |
| a message that holds no frame         | Refusal, code wire, no retry                                     |
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedmed.errors import FederationError, FedMedError
from fedmed.messages import HEAD_BYTES, encode
from fedmed.wire import channel
from fedmed.wire.record import pack, take, unpack
from hospital_client.release import relay_refusal

SOCKET_KEY = "site-socket"
app = ClientApp()


@app.train()
def relay(message: Message, context: Context) -> Message:
    """Flower's entry point: one message in, the site daemon's answer out. Raises nothing that a site can mend."""
    return Message(pack(answer(message.content, context.node_config, message.metadata.ttl)), reply_to=message)


def answer(content: RecordDict, node_config: Mapping[str, object], timeout_s: float) -> bytes:
    """The reply frame to the frame in `content`: the daemon's own, or a Refusal that says why there is none.

    Once the frame is sent nothing here holds it, nor does `content`: the daemon may train on it for hours.
    """
    head = b""
    try:
        head = unpack(content)[:HEAD_BYTES]
        return channel.handle(socket_path(node_config), take(content), timeout_s)
    except FedMedError as error:
        retry = isinstance(error, FederationError) and SOCKET_KEY in node_config
        return encode(relay_refusal(head, error, retry, str(node_config.get(SOCKET_KEY) or "")))


def socket_path(node_config: Mapping[str, object]) -> str:
    """The daemon's socket from the SuperNode's node config. Raises FederationError when it is not there."""
    path = node_config.get(SOCKET_KEY)
    if not isinstance(path, str) or not path:
        raise FederationError(
            f"node config {SOCKET_KEY}={path!r}: expected the path of the site daemon's socket",
            f"start the SuperNode with --node-config '{SOCKET_KEY}=\"/run/fedmed/NAME.sock\"'",
        )
    return path
