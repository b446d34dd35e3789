"""The register: who may join is what its lines say in order, and a file that cannot be trusted admits nobody."""

import json
from pathlib import Path

import pytest

from aggregator.joining.register import Register
from fedmed.errors import AdmissionError
from fedmed.node_keys import fingerprint, new_private_key

KEYS = [new_private_key().public_key() for _ in range(4)]


@pytest.fixture
def register(tmp_path: Path) -> Register:
    return Register(tmp_path / "register.jsonl")


def states(register: Register) -> list[tuple[str, str]]:
    return [(entry.site, entry.state) for entry in register.entries()]


def test_admitted_then_revoked(register: Register) -> None:
    assert states(register) == []
    register.admit("north", KEYS[0])
    register.admit("south", KEYS[1])
    assert states(register) == [("north", "valid"), ("south", "valid")]
    assert [entry.fingerprint for entry in register.revoke("north", "left")] == [fingerprint(KEYS[0])]
    assert states(register) == [("north", "revoked"), ("south", "valid")]
    assert [entry.site for entry in register.valid()] == ["south"]
    (revoked, _) = register.entries()
    assert revoked.reason == "left" and revoked.ended


def test_a_revoked_key_never_comes_back_a_new_one_may(register: Register) -> None:
    register.admit("north", KEYS[0])
    register.revoke("north", "")
    for site in ("north", "south"):
        with pytest.raises(AdmissionError, match="is revoked and of site north"):
            register.admit(site, KEYS[0])
    register.admit("north", KEYS[1])
    assert states(register) == [("north", "revoked"), ("north", "valid")]


def test_a_key_belongs_to_one_site(register: Register) -> None:
    register.admit("north", KEYS[0])
    with pytest.raises(AdmissionError, match="is valid and of site north"):
        register.admit("south", KEYS[0])
    assert register.admit("north", KEYS[0]) == register.entries()[0]
    assert len(register.path.read_text().splitlines()) == 1


def test_two_keys_of_a_site_overlap_until_the_new_one_is_seen(register: Register) -> None:
    old = register.admit("north", KEYS[0])
    register.admit("north", KEYS[1])
    assert len(register.valid()) == 2
    register.replace(old)
    register.replace(old)
    assert states(register) == [("north", "replaced"), ("north", "valid")]
    assert len(register.path.read_text().splitlines()) == 3


def test_a_third_key_takes_the_place_of_one_that_was_never_seen(register: Register) -> None:
    for key in KEYS[:3]:
        register.admit("north", key)
    assert states(register) == [("north", "valid"), ("north", "replaced"), ("north", "valid")]


def test_revoking_ends_every_key_of_the_site(register: Register) -> None:
    register.admit("north", KEYS[0])
    register.admit("north", KEYS[1])
    assert len(register.revoke("north", "")) == 2
    with pytest.raises(AdmissionError, match="those with one: none"):
        register.revoke("north", "")


def test_a_line_cut_off_by_a_kill_never_was(register: Register) -> None:
    register.admit("north", KEYS[0])
    whole = register.path.read_bytes()
    register.revoke("north", "")
    revoked = register.path.read_bytes()
    register.path.write_bytes(revoked[:-5])
    assert states(register) == [("north", "valid")]
    register.admit("south", KEYS[1])
    assert register.path.read_bytes().startswith(whole)
    assert states(register) == [("north", "valid"), ("south", "valid")]


@pytest.mark.parametrize("change", ["key", "fingerprint", "decision", "json", "unknown"])
def test_a_register_that_cannot_be_trusted_admits_nobody(register: Register, change: str) -> None:
    register.admit("north", KEYS[0])
    line = json.loads(register.path.read_text())
    if change == "key":
        line["key"] = line["key"].replace("A", "B")
    elif change == "fingerprint":
        line["fingerprint"] = fingerprint(KEYS[1])
    elif change == "decision":
        line["decision"] = "welcome"
    elif change == "unknown":
        line["decision"] = "revoked"
    text = "{" if change == "json" else json.dumps(line)
    register.path.write_text(text + "\n")
    for use in (register.entries, register.valid, lambda: register.admit("south", KEYS[1])):
        with pytest.raises(AdmissionError, match=r"line 1 of .* nobody is admitted"):
            use()
