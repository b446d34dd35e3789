"""A site as a node of a Flower federation: join, heartbeat, take a message, send the reply, leave. No app is ever fetched.

    node = Node("127.0.0.1:9092")
    node.join()
    while (delivery := node.next_message()) is not None:
        with delivery:
            delivery.reply(delivery.fetch())

Errors: hospital_client/link.py. Flower's protocol for a message: its metadata and the tree of its objects' hashes come
first, then each object is fetched by its hash; a reply goes the same way back.

| what happens                                   | what becomes of the message                                     |
| ---------------------------------------------- | --------------------------------------------------------------- |
| the connection is cut while objects travel     | each missing one is tried again until the message has expired   |
| objects of more than MAX_FRAME_BYTES, one that | WireError; no more of them is held                              |
| is used twice counted twice                    |                                                                 |
| content that is no record of Flower's          | an empty record, which is refused as holding no frame           |
| the run ends, the SuperLink is started anew    | RunOver, Forgotten: nobody waits for the reply                  |
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from flwr.app import Message, RecordDict
from flwr.app.message.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2 as api
from flwr.proto import heartbeat_pb2, message_pb2, node_pb2
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)

from fedmed.backoff import Backoff, Waits
from fedmed.errors import FederationError, WireError
from fedmed.node_keys import PrivateKey, new_private_key, public_pem
from fedmed.wire.channel import MAX_FRAME_BYTES
from fedmed.wire.objects import Unreadable, inflate
from hospital_client.link import Away, Door, Forgotten, IntervalRefused, Link, NotActivated, NotAdmitted

# What a node asks for, best first: it is missed after twice as long. Flower's own SuperLink takes no less than 10 s.
INTERVALS_S = (3.0, 10.0)
OBJECT_S = 120.0
LEAVE_S = 2.0
T = TypeVar("T")


class Node:
    """This site at the SuperLink. For use from one thread; each Delivery has a connection of its own.

    Args:
        address, root_certificates: as in Door.
        key: the site's, which the consortium has registered. Without one the node draws its own and registers itself, which only a
            SuperLink without node authentication allows.
    """

    def __init__(self, address: str, root_certificates: bytes | None = None, key: PrivateKey | None = None) -> None:
        self._has_own_key = key is not None
        self._door = Door(address, root_certificates, key or new_private_key())
        self._link = Link(self._door)
        self._known = self._has_own_key
        self._node: node_pb2.Node | None = None
        self._interval_s = INTERVALS_S[0]
        self._due = 0.0

    @property
    def joined(self) -> bool:
        return self._node is not None

    @property
    def node_id(self) -> int:
        return 0 if self._node is None else int(self._node.node_id)

    def join(self) -> None:
        """Tells the SuperLink that this site is there. Raises as `Link.call`."""
        public = public_pem(self._door.key.public_key())
        if not self._known:
            self._link.call("RegisterNode", api.RegisterNodeFleetRequest(public_key=public))
            self._known = True
        for interval_s in INTERVALS_S:
            request = api.ActivateNodeRequest(public_key=public, heartbeat_interval=interval_s)
            try:
                response = self._link.call("ActivateNode", request)
            except IntervalRefused:
                continue
            except NotActivated as error:
                raise error if self._has_own_key else Forgotten(error.message) from None
            self._node, self._interval_s = node_pb2.Node(node_id=response.node_id), interval_s
            self._due = time.monotonic() + interval_s / 2
            return
        raise NotAdmitted(f"the SuperLink takes no heartbeat every {INTERVALS_S[-1]:g} s", "expected Flower 1.39 there")

    def keep_alive(self) -> None:
        """Sends a heartbeat when one is due. Raises as `Link.call`."""
        if time.monotonic() < self._due:
            return
        request = heartbeat_pb2.SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=self._interval_s)
        if not self._link.call("SendNodeHeartbeat", request).success:
            raise Forgotten("the SuperLink does not know this node")
        self._due = time.monotonic() + self._interval_s / 2 * random.uniform(0.8, 1.0)  # noqa: S311

    def next_message(self) -> Delivery | None:
        """The next message for this site, its content not fetched yet. Raises as `Link.call`."""
        response = self._link.call("PullMessages", api.PullMessagesRequest(node=self._node))
        if not response.messages_list or self._node is None:
            return None
        message = message_from_proto(response.messages_list[0])
        return Delivery(self._door, self._node, message, response.message_object_trees[0].object_id)

    def leave(self, *, for_good: bool) -> None:
        """Tells the SuperLink, if it listens, that this site is gone. `join` brings it back."""
        if self._node is None:
            return
        try:
            self._link.call("DeactivateNode", api.DeactivateNodeRequest(node_id=self.node_id), LEAVE_S)
            if for_good and not self._has_own_key:
                self._link.call("UnregisterNode", api.UnregisterNodeFleetRequest(node_id=self.node_id), LEAVE_S)
        except FederationError:
            pass  # it sees by itself, when heartbeats fail to come
        self._node = None

    def forget(self) -> None:
        """After Forgotten: the next `join` begins from nothing."""
        self._node, self._known = None, self._has_own_key
        if not self._has_own_key:
            self._link.close()
            self._door = replace(self._door, key=new_private_key())
            self._link = Link(self._door)

    def close(self) -> None:
        self._link.close()


class Delivery:
    """One message on its way to the site, and the reply's way back, over a connection that is closed at the end."""

    def __init__(self, door: Door, node: node_pb2.Node, message: Message, name: str) -> None:
        self._node, self._message, self._name = node, message, name
        self._link = Link(door)
        self._end = time.monotonic() + message.metadata.ttl

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.close()

    @property
    def left_s(self) -> float:
        """Seconds until nobody waits for the reply any more."""
        return max(0.0, self._end - time.monotonic())

    def fetch(self) -> RecordDict:
        """The message's content; empty when it is none.

        Raises:
            WireError: it is larger than a frame may be.
            Away: the SuperLink did not answer until the message's time to live was over.
            Forgotten, RunOver, NotAdmitted: as `Link.call`.
        """
        try:
            found = inflate(self._name, lambda name: self._patiently(partial(self._pull, name)), MAX_FRAME_BYTES)
        except Unreadable:
            found = None
        run, name = self._message.metadata.run_id, self._message.metadata.message_id
        request = message_pb2.ConfirmMessageReceivedRequest(node=self._node, run_id=run, message_object_id=name)
        self._patiently(partial(self._link.call, "ConfirmMessageReceived", request))
        return found.content if isinstance(found, Message) else RecordDict()

    def reply(self, content: RecordDict) -> None:
        """Sends the reply, without how long the site took: that depends on who was drawn. Raises as `fetch`."""
        reply = Message(content, reply_to=self._message)
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects, tree = get_all_nested_objects(reply), get_object_tree(reply)
        request = api.PushMessagesRequest(
            node=self._node,
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=[tree],
            clientapp_runtime_list=[0.0],  # a field of Flower's protocol, for its statistics
        )
        response = self._patiently(partial(self._link.call, "PushMessages", request))
        for name in response.objects_to_push:
            body = objects[name].deflate()
            self._patiently(partial(self._push, name, body, response.session_id))

    def _pull(self, name: str) -> bytes:
        request = message_pb2.PullObjectRequest(node=self._node, run_id=self._message.metadata.run_id, object_id=name)
        response = self._link.call("PullObject", request, OBJECT_S)
        if not response.object_found:
            raise WireError("an object of the message is not there")
        if not response.object_available:
            raise Away("an object of the message is still on its way to the SuperLink")
        return bytes(response.object_content)

    def _push(self, name: str, body: bytes, session: str) -> None:
        request = message_pb2.PushObjectRequest(
            node=self._node,
            run_id=self._message.metadata.run_id,
            object_id=name,
            object_content=body,
            session_id=session,
        )
        if not self._link.call("PushObject", request, OBJECT_S).stored:
            raise WireError("the SuperLink no longer takes this reply")

    def _patiently(self, call: Callable[[], T]) -> T:
        """`call`, again and again while the SuperLink does not answer, until nobody waits for the reply any more."""
        waits = Waits(Backoff(0.02, 5.0))
        while True:
            try:
                return call()
            except Away:
                wait_s = waits.next_s()
                if wait_s > self.left_s:
                    raise
                time.sleep(wait_s)
