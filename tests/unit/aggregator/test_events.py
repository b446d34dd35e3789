"""Events are whole lines, also while they are being written and after their writer died."""

import pytest

from aggregator.watching.events import EventLog, EventReader, printable, read_events


def test_events_come_back_in_order(tmp_path):
    log = EventLog(tmp_path / "run" / "events.jsonl")
    log.emit("joined", site="north", num_patients=600)
    log.emit("finished")
    events = read_events(log.path)
    assert [event["kind"] for event in events] == ["joined", "finished"]
    assert events[0]["site"] == "north"
    assert events[0]["time"] <= events[1]["time"]


def test_no_file_means_no_events(tmp_path):
    assert read_events(tmp_path / "events.jsonl") == []


def test_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match="event kind 'joind'"):
        EventLog(tmp_path / "events.jsonl").emit("joind")


def test_a_number_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        EventLog(tmp_path / "events.jsonl").emit("zero_shot", accuracy=float("nan"))


def test_reader_waits_for_the_rest_of_a_line(tmp_path):
    path = tmp_path / "events.jsonl"
    EventLog(path).emit("finished")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:10])
    reader = EventReader(path)
    assert len(list(reader.new())) == 1
    assert list(reader.new()) == []
    path.write_bytes(whole + whole)
    assert len(list(reader.new())) == 1


def test_a_line_whose_writer_died_is_skipped(tmp_path):
    path = tmp_path / "events.jsonl"
    EventLog(path).emit("waiting", sites=[], expected=["north"], quorum=1)
    path.write_bytes(path.read_bytes() + b'{"time": 1, "ki')
    EventLog(path).emit("finished")
    assert [event["kind"] for event in read_events(path)] == ["waiting", "finished"]


def test_what_a_site_says_reaches_a_terminal_without_control_characters():
    said = printable("no room\x1b[2J\ud800\n" + "é" * 1000)
    assert said.startswith("no room?[2J??é") and len(said) == 500
    said.encode()
