"""A site as a node, against a Fleet service in this process that can fail: what is cut is sent again, foreign bytes do no harm."""

import json
from collections import Counter
from concurrent import futures

import grpc
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto import fleet_pb2, fleet_pb2_grpc, heartbeat_pb2, message_pb2
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from fedmed.errors import WireError
from fedmed.node_keys import new_private_key
from fedmed.wire.record import pack, unpack
from hospital_client import fleet
from hospital_client.fleet import Node
from hospital_client.link import Away, Forgotten, NotActivated, RunOver

FRAME = bytes(range(256)) * 40_000  # 10 MB: three objects


def incoming(content: RecordDict, ttl: float = 60.0) -> Message:
    metadata = Metadata(
        run_id=5,
        message_id="",
        src_node_id=1,
        dst_node_id=7,
        reply_to_message_id="",
        group_id="",
        created_at=1e9,
        ttl=ttl,
        message_type="train",
    )
    message = make_message(metadata, content)
    message.metadata.__dict__["_message_id"] = message.object_id
    return message


class Hub(fleet_pb2_grpc.FleetServicer):
    """One message for node 7, and a place for its reply. `faults`: method -> how often to fail, and how."""

    def __init__(self) -> None:
        self.faults: dict[str, tuple[int, grpc.StatusCode, str]] = {}
        self.calls: Counter[str] = Counter()
        self.least_interval = 1.0
        self.interval = 0.0
        self.known = True
        self.message: message_pb2.Message | None = None
        self.tree = message_pb2.ObjectTree()
        self.objects: dict[str, bytes] = {}
        self.reply: message_pb2.Message | None = None
        self.runtimes: list[float] = []

    def put(self, message: Message) -> None:
        self.objects = {name: item.deflate() for name, item in get_all_nested_objects(message).items()}
        self.tree = get_object_tree(message)
        empty = make_message(message.metadata, RecordDict())
        self.message = message_to_proto(empty)

    def enter(self, method: str, context: grpc.ServicerContext) -> None:
        self.calls[method] += 1
        left, code, text = self.faults.get(method, (0, None, ""))
        if left:
            self.faults[method] = (left - 1, code, text)
            context.abort(code, text)

    def RegisterNode(self, request, context):
        self.enter("RegisterNode", context)
        return fleet_pb2.RegisterNodeFleetResponse(node_id=7)

    def ActivateNode(self, request, context):
        self.enter("ActivateNode", context)
        if request.heartbeat_interval < self.least_interval:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, json.dumps({"code": 2003, "public_message": "interval"}))
        self.interval = request.heartbeat_interval
        return fleet_pb2.ActivateNodeResponse(node_id=7)

    def DeactivateNode(self, request, context):
        self.enter("DeactivateNode", context)
        return fleet_pb2.DeactivateNodeResponse()

    def UnregisterNode(self, request, context):
        self.enter("UnregisterNode", context)
        return fleet_pb2.UnregisterNodeFleetResponse()

    def SendNodeHeartbeat(self, request, context):
        self.enter("SendNodeHeartbeat", context)
        return heartbeat_pb2.SendNodeHeartbeatResponse(success=self.known)

    def PullMessages(self, request, context):
        self.enter("PullMessages", context)
        message, self.message = self.message, None
        if message is None:
            return fleet_pb2.PullMessagesResponse()
        return fleet_pb2.PullMessagesResponse(messages_list=[message], message_object_trees=[self.tree])

    def PullObject(self, request, context):
        self.enter("PullObject", context)
        content = self.objects[request.object_id]
        return message_pb2.PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request, context):
        self.enter("ConfirmMessageReceived", context)
        return message_pb2.ConfirmMessageReceivedResponse()

    def PushMessages(self, request, context):
        self.enter("PushMessages", context)
        self.reply, self.runtimes = request.messages_list[0], list(request.clientapp_runtime_list)
        names: list[str] = []
        trees = [request.message_object_trees[0]]
        while trees:
            tree = trees.pop()
            names.append(tree.object_id)
            trees += tree.children
        self.objects = {}
        return fleet_pb2.PushMessagesResponse(objects_to_push=names, session_id="s")

    def PushObject(self, request, context):
        self.enter("PushObject", context)
        self.objects[request.object_id] = request.object_content
        return message_pb2.PushObjectResponse(stored=True)


@pytest.fixture
def hub():
    hub = Hub()
    options = [("grpc.max_receive_message_length", 1 << 30), ("grpc.max_send_message_length", 1 << 30)]
    server = grpc.server(futures.ThreadPoolExecutor(4), options=options)
    fleet_pb2_grpc.add_FleetServicer_to_server(hub, server)
    hub.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield hub
    server.stop(0).wait()


@pytest.fixture
def node(hub):
    node = Node(hub.address)
    node.join()
    yield node
    node.close()


def test_a_frame_comes_and_its_answer_goes_unchanged_and_untimed(hub, node):
    hub.put(incoming(pack(FRAME)))
    with node.next_message() as delivery:
        assert unpack(delivery.fetch()) == FRAME
        assert 0 < delivery.left_s <= 60.0
        delivery.reply(pack(FRAME[::-1]))
    assert node.next_message() is None
    assert hub.reply.metadata.src_node_id == 7
    assert message_from_proto(hub.reply).metadata.reply_to_message_id
    assert sum(len(body) for body in hub.objects.values()) > len(FRAME)
    assert hub.calls["ConfirmMessageReceived"] == 1
    assert hub.runtimes == [0.0]  # how long a site trains depends on who was drawn


@pytest.mark.parametrize("method", ["PullObject", "ConfirmMessageReceived", "PushMessages", "PushObject"])
def test_a_cut_connection_costs_no_message(hub, node, method):
    hub.put(incoming(pack(FRAME)))
    hub.faults[method] = (2, grpc.StatusCode.UNAVAILABLE, "cut")
    with node.next_message() as delivery:
        assert unpack(delivery.fetch()) == FRAME
        delivery.reply(pack(b"answer"))
    assert hub.calls[method] >= 3
    assert b"answer" in b"".join(hub.objects.values())


def test_a_message_that_expires_while_the_superlink_is_away_is_given_up(hub, node):
    hub.put(incoming(pack(b"x"), ttl=0.3))
    hub.faults["PullObject"] = (1000, grpc.StatusCode.UNAVAILABLE, "cut")
    with node.next_message() as delivery, pytest.raises(Away):
        delivery.fetch()


def test_a_run_that_has_ended_is_not_answered(hub, node):
    hub.put(incoming(pack(b"x")))
    over = json.dumps({"code": 2007, "public_message": "over"})
    hub.faults["PushMessages"] = (1, grpc.StatusCode.PERMISSION_DENIED, over)
    with node.next_message() as delivery, pytest.raises(RunOver):
        delivery.reply(pack(b"y"))


def test_too_large_a_message_is_not_held(hub, node, monkeypatch):
    monkeypatch.setattr(fleet, "MAX_FRAME_BYTES", 1_000_000)
    hub.put(incoming(pack(FRAME)))
    with node.next_message() as delivery, pytest.raises(WireError, match="more than 1000000 bytes"):
        delivery.fetch()
    assert hub.calls["PullObject"] < len(hub.objects)


def test_what_flower_cannot_read_is_an_empty_record(hub, node):
    hub.put(incoming(RecordDict({"config": ConfigRecord({"lr": 0.1})})))
    hub.objects = dict.fromkeys(hub.objects, b"no object of Flower's")
    with node.next_message() as delivery:
        assert len(delivery.fetch()) == 0


def test_a_superlink_of_flowers_own_is_sent_fewer_heartbeats(hub):
    hub.least_interval = 10.0
    node = Node(hub.address)
    node.join()
    node.close()
    assert hub.interval == 10.0


def test_heartbeats_are_sent_when_due_and_tell_that_the_node_is_forgotten(hub, node, monkeypatch):
    assert hub.interval == 3.0
    node.keep_alive()
    assert hub.calls["SendNodeHeartbeat"] == 0
    hub.known = False
    now = fleet.time.monotonic()
    monkeypatch.setattr(fleet.time, "monotonic", lambda: now + 2.0)
    with pytest.raises(Forgotten):
        node.keep_alive()


def test_it_leaves_and_comes_back_as_the_same_node(hub, node):
    node.leave(for_good=False)
    assert not node.joined
    node.join()
    assert (hub.calls["RegisterNode"], hub.calls["ActivateNode"], hub.calls["UnregisterNode"]) == (1, 2, 0)
    node.leave(for_good=True)
    assert (hub.calls["DeactivateNode"], hub.calls["UnregisterNode"]) == (2, 1)
    node.leave(for_good=True)
    assert hub.calls["DeactivateNode"] == 2


def test_after_being_forgotten_it_registers_with_another_key(hub, node):
    before = node._door.key
    node.forget()
    node.join()
    assert node._door.key is not before
    assert hub.calls["RegisterNode"] == 2


def test_a_site_with_its_own_key_never_registers_itself(hub):
    key = new_private_key()
    node = Node(hub.address, None, key)
    refused = json.dumps({"code": 2004, "public_message": "no"})
    hub.faults["ActivateNode"] = (1, grpc.StatusCode.FAILED_PRECONDITION, refused)
    with pytest.raises(NotActivated, match="key is not registered"):
        node.join()
    node.join()
    node.forget()
    node.join()
    node.leave(for_good=True)
    node.close()
    assert (hub.calls["RegisterNode"], hub.calls["UnregisterNode"], hub.calls["DeactivateNode"]) == (0, 0, 1)
