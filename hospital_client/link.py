"""Calls of the SuperLink's Fleet service (flwr 1.39, gRPC), and what their failures mean to a site.

    Link(Door("north-consortium.example:9092", pem, private_key)).call("PullMessages", request) -> response

| what the SuperLink or the network does                   | what is raised                                    |
| -------------------------------------------------------- | ------------------------------------------------- |
| no answer, connection cut, a fault inside the SuperLink  | Away: try again                                   |
| the node is unknown to it: it was started anew           | Forgotten: register again                         |
| wrong certificate, unknown key, clock off                | NotAdmitted: a person has to mend something       |
| the run has ended                                        | RunOver: drop its message                         |

A call that hung leaves a dead connection behind, which TCP alone notices only after minutes: the channel is opened anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from fedmed.errors import AdmissionError, FederationError

CALL_S = 5.0
MAX_MESSAGE_BYTES = 1 << 30
_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Without these gRPC waits up to two minutes before it tries a SuperLink again that is back since long.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # A pool of its own: heartbeats must not queue behind an adapter.
    ("grpc.use_local_subchannel_pool", 1),
)


class Away(FederationError):
    """The SuperLink does not answer at present; the same call may succeed later."""


class Forgotten(FederationError):
    """The SuperLink does not know this node, or no longer."""


class NotAdmitted(AdmissionError):
    """The SuperLink will not have this node until a person has mended what the message names."""


class NotActivated(NotAdmitted):
    """The SuperLink does not let a node of this key join, for a reason that it does not give."""


class IntervalRefused(FederationError):
    """The SuperLink takes no heartbeats as frequent as these."""


class RunOver(FederationError):
    """The run that a message belongs to has ended: nobody waits for the reply."""


@dataclass(frozen=True, slots=True)
class Door:
    """Where the SuperLink is and how one is admitted.

    Attributes:
        address: HOST:PORT of the Fleet API.
        root_certificates: PEM of the authority that signed the SuperLink's certificate; None for plain text.
        key: signs every call; its public half is the node's identity.
    """

    address: str
    root_certificates: bytes | None
    key: ec.EllipticCurvePrivateKey


class Link:
    """One channel to the SuperLink. For use from one thread."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._version = RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata()
        self._channel, self._stub = self._open()

    def call(self, method: str, request: Any, timeout_s: float = CALL_S) -> Any:
        """The response of the Fleet service's `method`. Raises Away, Forgotten, NotAdmitted, IntervalRefused or RunOver."""
        try:
            return getattr(self._stub, method)(request, timeout=timeout_s, metadata=self._version)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                self.close()
                self._channel, self._stub = self._open()
            raise explain(error, self._door.address) from None

    def close(self) -> None:
        self._channel.close()

    def _open(self) -> tuple[grpc.Channel, FleetStub]:
        door = self._door
        if door.root_certificates is None:
            channel = grpc.insecure_channel(door.address, options=_OPTIONS)
        else:
            credentials = grpc.ssl_channel_credentials(door.root_certificates)
            channel = grpc.secure_channel(door.address, credentials, options=_OPTIONS)
        signed = grpc.intercept_channel(channel, NodeAuthClientInterceptor(door.key, door.key.public_key()))
        return channel, FleetStub(signed)


def explain(error: grpc.RpcError, address: str) -> FederationError:
    """What a failed call means, in words for the site's log."""
    code, details = error.code(), error.details() or ""
    if code == grpc.StatusCode.UNAVAILABLE and "handshake" in details.lower():
        return _tls(details, address)
    if code == grpc.StatusCode.UNAUTHENTICATED and "timestamp" in details:
        return NotAdmitted(
            f"the SuperLink at {address} finds this machine's clock wrong by more than a few seconds",
            "set the clock, best by NTP, here or there",
        )
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return Forgotten(f"the SuperLink at {address} does not know this node: {details}")
    known = FlowerError.from_json(details)
    return _flower_error(known, address) if known else Away(f"the SuperLink at {address} does not answer ({code.name})")


def _tls(details: str, address: str) -> FederationError:
    if "WRONG_VERSION_NUMBER" in details:
        return NotAdmitted(f"{address} speaks no TLS, expected a SuperLink with a certificate", "is the port right?")
    cause = details.rpartition("OPENSSL_internal:")[2].split(":")[0].strip()
    return NotAdmitted(
        f"the certificate of the SuperLink at {address} is not accepted ({cause or 'TLS handshake failed'})",
        "the consortium's own root certificate is needed, and the host as the certificate names it",
    )


def _flower_error(error: FlowerError, address: str) -> FederationError:
    match error.code:
        case ApiErrorCode.FLEET_INVALID_HEARTBEAT_INTERVAL:
            return IntervalRefused(error.message)
        case ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
            return RunOver("the run has ended")
        case ApiErrorCode.FLEET_SUPERNODE_REGISTRATION_DISABLED:
            return NotAdmitted(
                f"the SuperLink at {address} admits only sites whose key it knows, and none was given",
                "give the key that the consortium made for this site with --node-key",
            )
        case ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
            return Forgotten(f"the SuperLink at {address} has seen this node before")
        case ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
            return NotActivated(
                f"the SuperLink at {address} does not let this node join: its key is not registered there, or another "
                "connection with the same key is open or ended a moment ago",
                "ask the consortium whether the key is registered; let only one connector run for a site",
            )
    return Away(f"the SuperLink at {address} reports: {error.message}")
