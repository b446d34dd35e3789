"""The DICOM importer under fuzz; see `tests.fuzz.targets`."""

from __future__ import annotations

from pathlib import Path
from random import Random

from fedmed.data.images import is_readable
from hospital_client.dicom import faults
from hospital_client.dicom.gate import Gate
from hospital_client.dicom.importer import DicomImport
from hospital_client.dicom.pictures import Look
from hospital_client.dicom.reports import Table
from tests.fuzz.mutate import mutate_bytes
from tests.fuzz.target import Target
from tests.helpers_dicom import ct_series, enhanced, write_table


def dicom_target(folder: Path) -> Target:
    """Compressed pixels are decoded in a process of their own, which may die: tests/unit/hospital_client/dicom."""
    table = Table(write_table(folder / "table.csv", "study,question,answer", "1.2.3,Is it?,no"))
    whole = [path.read_bytes() for path in (*ct_series(folder / "whole", [24, 524]), enhanced(folder / "enhanced"))]
    archive = folder / "archive"
    archive.mkdir()

    def parse(data: bytes) -> None:
        (archive / "file").write_bytes(data)
        source = DicomImport(archive, table, Look(), Gate())
        try:
            kept = list(source.examples())
        finally:
            assert faults.UNFORESEEN not in source.archive.left_out
        assert source.tally.rows_read == len(kept) + source.tally.left_out
        assert all(is_readable(ref.data) for example in kept for ref in example.images)

    def make(rng: Random) -> bytes:
        data = rng.choice(whole)
        start = 144 + int.from_bytes(
            data[140:144], "little"
        )  # behind the file's own header: compressed pixels start a process
        return data[:start] + mutate_bytes(rng, data[start:], whole)

    return Target("dicom", make, parse)
