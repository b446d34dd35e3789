"""Faults of messages on their way to a hospital: too large, damaged, of another version, for another model."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

import grpc

from fedmed.messages import PROTOCOL, Refusal, TrainResult, decode, encode
from fedmed.wire import site_pb2, site_pb2_grpc
from fedmed.wire.channel import CHUNK_BYTES, MAX_FRAME_BYTES
from tests.faults.case import Facts, case
from tests.faults.hospital import Hospital, make_hospital, peak_memory, task
from tests.faults.lab import Lab
from tests.faults.tcp_proxy import Proxy

ROOM = 400 << 20  # what a daemon may need beside the largest frame


@case(
    14,
    "a frame of more than 1 GiB is sent to a daemon",
    "{code}: {says}; the daemon's peak memory stays below the limit and {room} MiB: {bounded}; it still answers: {alive}",
    code="RESOURCE_EXHAUSTED",
    says=f"a frame of {MAX_FRAME_BYTES + CHUNK_BYTES} bytes is larger than the limit of {MAX_FRAME_BYTES} bytes",
    room=ROOM >> 20,
    bounded=True,
    alive=True,
)
def oversize(lab: Lab) -> Facts:
    site = make_hospital(lab).start()
    code, says = stream(site, MAX_FRAME_BYTES + 8 * CHUNK_BYTES)
    assert site.daemon is not None
    bounded = peak_memory(site.daemon.process.pid) < MAX_FRAME_BYTES + ROOM
    alive = isinstance(site.ask(task()), TrainResult)
    return {"code": code, "says": says, "room": ROOM >> 20, "bounded": bounded, "alive": alive}


def stream(site: Hospital, total: int) -> tuple[str, str]:
    """Sends zeros past the product's own client, which would refuse; the daemon's status and words."""
    piece = site_pb2.Chunk(data=bytes(CHUNK_BYTES))

    def pieces() -> Iterator[site_pb2.Chunk]:
        for _ in range(total // CHUNK_BYTES):
            yield piece

    with grpc.insecure_channel(f"unix:{site.socket}") as channel:
        try:
            list(site_pb2_grpc.SiteStub(channel).Handle(pieces(), timeout=100))
        except grpc.RpcError as error:
            return error.code().name, error.details() or ""
    return "OK", ""


@case(
    15,
    "a bit of the adapter is flipped on its way, then the stream is cut in the middle, then it arrives whole",
    "refused ({flipped}): {says}; {cut}; {whole}; {trained} training, {reserved} reserved",
    part="socket",
    quick=True,
    flipped="wire",
    says="damaged, both hashes named: True",
    cut="FederationError",
    whole="TrainResult",
    trained=1,
    reserved=1,
)
def damaged(lab: Lab) -> Facts:
    site = make_hospital(lab).start()
    payload = bytes(range(256)) * 1000
    between = lab.enter(Proxy(f"unix:{site.socket}", f"unix:{lab.root}/between.sock"))
    answers = []
    for fault in (between.flip, between.truncate, None):
        if fault is not None:
            fault(len(payload) // 2)
        site.answers.clear()
        site.ask_aside(task(), payload, lab.root / "between.sock").join(60)
        answers.append(site.answers[0])
        assert between.done
    flipped, cut, whole = answers
    assert isinstance(flipped, Refusal), flipped
    named = "is damaged" in flipped.message and "SHA-256" in flipped.message and "expected" in flipped.message
    return {
        "flipped": flipped.code,
        "says": f"damaged, both hashes named: {named}",
        "cut": type(cut).__name__,
        "whole": type(whole).__name__,
        "trained": site.trainings().count("begun"),
        "reserved": site.ledger()[0],
    }


@case(
    27,
    "a task for another revision of the base model",
    "refused ({code}); both hashes named: {named}; {reserved} reserved; the site loaded nothing: {state}",
    part="site",
    quick=True,
    code="policy",
    named=True,
    reserved=0,
    state="ready",
)
def other_base(lab: Lab) -> Facts:
    from fedmed.wire import channel

    site = make_hospital(lab).start()
    answer = site.ask(task(base_model="someone/else", base_sha256="ef" * 32))
    assert isinstance(answer, Refusal)
    named = "'efefefefefef'" in answer.message and "abababababab" in answer.message
    state = channel.status(site.socket).state
    return {"code": answer.code, "named": named, "reserved": site.ledger()[0], "state": state}


@case(
    32,
    "the aggregator speaks another protocol version",
    "refused ({code}): {says}; {reserved} reserved",
    part="site",
    quick=True,
    code="wire",
    says=f"the peer speaks wire protocol {PROTOCOL + 1}, this side speaks {PROTOCOL}",
    reserved=0,
)
def version_skew(lab: Lab) -> Facts:
    site = make_hospital(lab).start()
    answer = decode(site.send(of_version(encode(task(), b"adapter"), PROTOCOL + 1)))[0]
    assert isinstance(answer, Refusal)
    return {"code": answer.code, "says": answer.message, "reserved": site.ledger()[0]}


def of_version(frame: bytes, protocol: int) -> bytes:
    """The same frame as a release with another protocol would send it."""
    (length,) = struct.unpack(">I", frame[4:8])
    body = {**json.loads(frame[8 : 8 + length]), "protocol": protocol}
    header = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return frame[:4] + struct.pack(">I", len(header)) + header + frame[8 + length :]
