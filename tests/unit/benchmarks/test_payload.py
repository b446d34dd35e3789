"""The arithmetic of the payload benchmark."""

from benchmarks.payload import summary


def test_a_peak_is_what_the_payload_adds_in_payloads() -> None:
    got = summary({"daemon": 400, "connector": 100}, {"daemon": 700, "connector": 250}, 100, [2.04, 1.0])
    assert got["processes"]["daemon"] == {"peak_payloads": 3.0, "peak_bytes": 700}
    assert got["processes"]["connector"]["peak_payloads"] == 1.5
    assert (got["payload_bytes"], got["rounds_s"]) == (100, [2.0, 1.0])
