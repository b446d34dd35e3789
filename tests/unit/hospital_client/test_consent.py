"""Consent: what a person types, what is recorded, and that no patient id is anywhere."""

import dataclasses
import errno
import json
import os
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedmed.data.manifest import load_manifest, pseudonym, read_pseudonyms, write_manifest
from fedmed.data.phantom import phantom_examples
from fedmed.errors import DataError, LedgerError
from hospital_client.cli import app
from hospital_client.consent import Withdrawals, read_members
from hospital_client.fakes import BASE_SHA256
from hospital_client.settings import SiteFolder
from hospital_client.setup import create_site


@pytest.fixture(autouse=True)
def without_the_disks_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    write_manifest(tmp_path / "data", phantom_examples(6, 0, domain="hospital", split="train"))
    given = {"name": "north", "cohort": "north", "data": "../data"}
    return create_site(tmp_path / "north", given, {"base_models": f"[{BASE_SHA256}]"})


def ids(site: SiteFolder) -> list[str]:
    manifest = load_manifest(site.data)
    return [manifest.examples[own[0]].patient for own in manifest.patients]


def run(*arguments: object, text: str = "") -> Result:
    return CliRunner().invoke(app, ["consent", *map(str, arguments)], input=text)


def test_withdraw_restore_and_list_say_counts(site: SiteFolder, tmp_path: Path) -> None:
    first, second, *_ = ids(site)
    source = tmp_path / "ids.txt"
    source.write_text(f"{first}\r\n\n  nobody \n", encoding="utf-8-sig")
    said = run("withdraw", site.root, "--from", source).output
    assert "2 patients withdrawn; 1 of those listed not in the present manifest" in said
    said = run("withdraw", site.root, "--from", "-", text=f"{first}\n{second}\n").output
    assert "1 patient withdrawn; 1 was withdrawn already" in said
    assert "withdrawn in all: 3" in said
    assert "1 patient restored" in run("restore", site.root, "--from", "-", text=first).output
    assert "0 patients restored; 1 was not withdrawn" in run("restore", site.root, "--from", "-", text=first).output
    listed = json.loads(run("list", site.root, "--json").output)
    assert listed["withdrawn"] == 2
    assert [(item["kind"], item["patients"]) for item in listed["changes"]] == [
        ("withdraw", 2),
        ("withdraw", 1),
        ("restore", 1),
    ]
    assert run("list", site.root).output.splitlines()[-1] == "withdrawn now: 2"


def test_no_id_is_on_disk_or_in_what_is_said(site: SiteFolder, tmp_path: Path) -> None:
    known = ids(site)
    results = [
        run(kind, site.root, "--from", "-", text="\n".join(known)) for kind in ("withdraw", "restore", "withdraw")
    ]
    results.append(run("list", site.root))
    said = "".join(result.output for result in results)
    files = [path for path in [*site.root.iterdir(), *site.witness.iterdir()] if path.is_file()]
    assert {"consent.jsonl", "audit.jsonl"} <= {path.name for path in files}
    texts = [said, *(path.read_bytes().decode("latin-1") for path in files)]
    assert not [name for name in known for text in texts if name in text]
    audit = [json.loads(line) for line in site.audit.read_text().splitlines()]
    assert {line["decision"] for line in audit} == {"consent"}
    assert audit[0]["message"] == "consent withdraw: 6 patients, 6 withdrawn in all"
    assert repr(site.consent).count(str(site.key)) == 0


def test_it_holds_for_a_later_manifest_and_for_records_of_the_patient_added_later(
    site: SiteFolder, tmp_path: Path
) -> None:
    examples = phantom_examples(9, 0, domain="hospital", split="train")
    later = write_manifest(tmp_path / "later", examples)
    names = [later.examples[own[0]].patient for own in later.patients]
    (newcomer,) = [index for index, name in enumerate(names) if name not in ids(site)][:1]
    assert "1 of those listed not in" in run("withdraw", site.root, "--from", "-", text=names[newcomer]).output
    assert Withdrawals(site.consent, later.pseudonyms(site.key))() == {newcomer}
    assert Withdrawals(site.consent, load_manifest(site.data).pseudonyms(site.key))() == frozenset()


def test_pseudonyms_tell_nothing_without_the_key_and_are_the_same_for_a_name_written_otherwise(
    site: SiteFolder,
) -> None:
    assert pseudonym("é", site.key) == pseudonym(" e\u0301 ", site.key) != pseudonym("e", site.key)
    assert pseudonym("é", site.key) != pseudonym("é", b"another key")
    manifest = load_manifest(site.data)
    assert frozenset(manifest.pseudonyms(site.key)) == read_pseudonyms(site.data, site.key)
    assert len(set(manifest.pseudonyms(site.key))) == manifest.num_patients


def test_a_patient_under_two_ids_that_look_the_same_is_refused(tmp_path: Path) -> None:
    first, second, *rest = phantom_examples(6, 0, domain="hospital", split="train")
    assert first.patient != second.patient
    twin = dataclasses.replace(second, patient=f"{first.patient} ")
    manifest = write_manifest(tmp_path / "data", [first, twin, *rest])
    with pytest.raises(DataError, match=r"1 patients of manifest\.jsonl have another's id") as caught:
        manifest.pseudonyms(b"k")
    assert first.patient not in str(caught.value)


def test_a_full_audit_stops_it_and_nothing_is_recorded(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("hospital_client.consent.Audit.write", full)
        error = run("withdraw", site.root, "--from", "-", text=ids(site)[0]).exception
    assert isinstance(error, LedgerError)
    assert error.message == "audit.jsonl cannot be written: No space left on device"
    assert json.loads(run("list", site.root, "--json").output) == {"withdrawn": 0, "changes": []}


@pytest.mark.parametrize("text", [b"", b"\n \n", b"caf\xe9\n"])
def test_a_list_that_is_no_list_is_refused(text: bytes) -> None:
    with pytest.raises(DataError, match="list of patients") as caught:
        read_members(text, b"k")
    assert "caf" not in str(caught.value)


def test_a_missing_list_and_a_broken_manifest(site: SiteFolder) -> None:
    assert isinstance(run("withdraw", site.root, "--from", site.root / "none").exception, DataError)
    first = ids(site)[0]
    (site.data / "manifest.jsonl").write_text("{broken")
    result = run("withdraw", site.root, "--from", "-", text=first)  # recorded all the same
    assert result.exit_code == 0
    assert "1 patient withdrawn; the manifest cannot be read" in result.output


def test_it_is_looked_up_anew_only_when_it_changed(site: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = load_manifest(site.data)
    withdrawals = Withdrawals(site.consent, manifest.pseudonyms(site.key))
    assert withdrawals() == frozenset()
    with monkeypatch.context() as patch:
        patch.setattr("hospital_client.consent.read_consent", lambda files: pytest.fail("read again"))
        assert withdrawals() == frozenset()
    run("withdraw", site.root, "--from", "-", text=ids(site)[2])
    assert withdrawals() == {2}


def test_a_lost_witness_or_a_restored_backup_fails_closed(site: SiteFolder) -> None:
    withdrawals = Withdrawals(site.consent, load_manifest(site.data).pseudonyms(site.key))
    backup = site.consent.path.read_bytes()
    run("withdraw", site.root, "--from", "-", text=ids(site)[2])
    site.consent.path.write_bytes(backup)
    with pytest.raises(LedgerError, match=r"consent\.jsonl was put back from a backup"):
        withdrawals()
    site.consent.witness.unlink()
    with pytest.raises(LedgerError, match="cannot be looked at"):
        withdrawals()
    assert isinstance(run("list", site.root).exception, LedgerError)


def test_two_writers_one_waits(site: SiteFolder) -> None:
    assert stat.S_IMODE(site.consent.path.stat().st_mode) == 0o600
    from hospital_client.journal import Journal

    journal = Journal(site.consent)
    error = run("withdraw", site.root, "--from", "-", text=ids(site)[0]).exception
    journal.close()
    assert isinstance(error, LedgerError)
    assert error.message == "consent.jsonl is locked: another process writes it"
