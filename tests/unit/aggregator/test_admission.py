"""Admission: the SuperLink's nodes follow the register, and a node may only say the name that its key was admitted for."""

import json
from pathlib import Path

import pytest
from flwr.proto.node_pb2 import NodeInfo

from aggregator.joining import admission, admitted, provision
from fedmed.errors import AdmissionError, FederationError
from fedmed.node_keys import new_private_key, public_line, public_pem


class FakeNodes:
    """A SuperLink's list of nodes in memory, as Flower keeps it: a node that was taken out stays listed, and its key is dead."""

    def __init__(self) -> None:
        self.nodes: dict[int, NodeInfo] = {}

    def listed(self) -> list[NodeInfo]:
        return list(self.nodes.values())

    def register(self, public_key: bytes, site: str) -> None:
        assert all(node.public_key != public_key for node in self.nodes.values()), "Public key already in use"
        node = 2**63 + len(self.nodes)
        self.nodes[node] = NodeInfo(node_id=node, public_key=public_key, name=site, status="registered")

    def unregister(self, node: int) -> None:
        self.nodes[node].status = "unregistered"

    def activate(self, public_key: bytes) -> None:
        (node,) = [node for node in self.nodes.values() if node.public_key == public_key]
        node.status, node.last_activated_at = "online", "2026-01-01T00:00:00+00:00"


@pytest.fixture
def consortium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> provision.Consortium:
    made = provision.init(tmp_path / "c", ["aggregator.example.org"])
    monkeypatch.setenv(admitted.FOLDER_KEY, str(made.root))
    return made


def add(consortium: provision.Consortium, site: str) -> bytes:
    key = new_private_key().public_key()
    path = consortium.root / "new.pub"
    path.write_text(public_line(key, site))
    provision.add_site(consortium, site, path)
    return public_pem(key)


def test_nodes_follow_the_register(consortium: provision.Consortium) -> None:
    nodes = FakeNodes()
    north = add(consortium, "north")
    assert admission.apply(consortium, nodes).admitted == ("north",)
    assert admission.apply(consortium, nodes) == admission.Changes((), ())
    south = add(consortium, "south")
    assert admission.apply(consortium, nodes).admitted == ("south",)
    sites = admitted.admitted_sites()
    assert sites == {node.node_id: node.name for node in nodes.listed()}
    provision.revoke(consortium, "north", "")
    assert admission.apply(consortium, nodes).ended == ("north",)
    assert [node.public_key for node in nodes.listed() if node.status == "unregistered"] == [north]
    assert list((admitted.admitted_sites() or {}).values()) == ["south"]
    assert south != north


def test_a_restarted_superlink_gets_them_all_again(consortium: provision.Consortium) -> None:
    add(consortium, "north")
    admission.apply(consortium, FakeNodes())
    again = FakeNodes()
    again.nodes[7] = NodeInfo(node_id=7, public_key=b"a stranger's", status="registered")
    changes = admission.apply(consortium, again)
    assert (changes.admitted, changes.ended) == (("north",), ("a stranger",))
    assert list((admitted.admitted_sites() or {}).values()) == ["north"]


def test_the_old_key_works_until_the_new_one_was_seen(consortium: provision.Consortium) -> None:
    nodes = FakeNodes()
    old = add(consortium, "north")
    admission.apply(consortium, nodes)
    nodes.activate(old)
    new = add(consortium, "north")
    assert admission.apply(consortium, nodes).renewing == ("north",)
    assert list((admitted.admitted_sites() or {}).values()) == ["north", "north"]
    nodes.activate(new)
    assert admission.apply(consortium, nodes).renewing == ()
    assert [entry.state for entry in consortium.register.entries()] == ["replaced", "valid"]
    assert {node.public_key for node in nodes.listed() if node.status == "online"} == {new}
    assert list((admitted.admitted_sites() or {}).values()) == ["north"]


def test_a_node_may_only_say_its_own_name(consortium: provision.Consortium) -> None:
    nodes = FakeNodes()
    add(consortium, "north")
    add(consortium, "south")
    admission.apply(consortium, nodes)
    by_name = {node.name: node.node_id for node in nodes.listed()}
    admitted.require_own_name(by_name["north"], "north")
    with pytest.raises(FederationError, match="calls itself 'south' with the key of site north"):
        admitted.require_own_name(by_name["north"], "south")
    with pytest.raises(FederationError, match="with no admitted key"):
        admitted.require_own_name(1, "north")
    (consortium.root / admitted.NODES).write_text("[]")
    with pytest.raises(FederationError, match="cannot be read"):
        admitted.require_own_name(by_name["north"], "north")


def test_on_loopback_without_keys_names_are_taken_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(admitted.FOLDER_KEY, raising=False)
    monkeypatch.delenv(admitted.EXPOSED_KEY, raising=False)
    assert admitted.admitted_sites() is None
    admitted.require_own_name(1, "anybody")
    assert admitted.standing_warnings() == []
    assert admitted.why_absent("north") == ""


def test_before_the_first_list_nobody_is_admitted(consortium: provision.Consortium) -> None:
    assert admitted.admitted_sites() == {}
    with pytest.raises(FederationError, match="no admitted key"):
        admitted.require_own_name(1, "north")


def test_who_is_not_there_is_said_why(consortium: provision.Consortium) -> None:
    add(consortium, "north")
    add(consortium, "south")
    provision.revoke(consortium, "south", "left")
    assert admitted.why_absent("north") == ""
    assert admitted.why_absent("south").startswith("revoked on 20")
    assert admitted.why_absent("east") == "no key was admitted for it"


def test_what_is_said_every_round(consortium: provision.Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    assert admitted.standing_warnings() == []
    monkeypatch.setenv(admitted.EXPOSED_KEY, "10.0.0.1:9092")
    (line,) = admitted.standing_warnings()
    assert line.startswith("INSECURE") and "10.0.0.1:9092" in line
    consortium.certificate.unlink()
    assert len(admitted.standing_warnings()) == 2


def test_a_register_that_cannot_be_trusted_changes_nothing(consortium: provision.Consortium) -> None:
    nodes = FakeNodes()
    add(consortium, "north")
    admission.apply(consortium, nodes)
    before = json.loads((consortium.root / admitted.NODES).read_text())
    consortium.register.path.write_text("{}\n")
    with pytest.raises(AdmissionError, match="nobody is admitted"):
        admission.apply(consortium, nodes)
    assert json.loads((consortium.root / admitted.NODES).read_text()) == before
    assert [node.status for node in nodes.listed()] == ["registered"]
