"""An archive and its table, joined: one example a row, streamed. Memory holds the archive's headers and one series.

source = DicomImport(archive_folder, Table(path), Look(), Gate())
manifest = write_manifest(folder, source.examples())
source.rows_read == manifest.examples + source.quarantined.total()
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from fedmed.data.importers.base import Tally
from fedmed.data.importers.rowwise import TWO_SPLITS, OneSplit
from fedmed.data.schema import IMAGE_MARK, Example, ImageRef
from fedmed.errors import DataError
from hospital_client.dicom.archive import Archive, Study, read_archive
from hospital_client.dicom.decoder import Decoder
from hospital_client.dicom.faults import REFUSED, UnusableError
from hospital_client.dicom.gate import Gate
from hospital_client.dicom.pictures import Look, pictures
from hospital_client.dicom.reports import KEYS, Row, Table

MODALITIES = ("CT", "MR", "CR", "DX", "MG", "PT")
MAX_IMAGES = 8

OTHER_PATIENT = "the row names another patient than its study has"
NO_STUDY = "no study of the archive matches the row"
SEVERAL = "several studies match the row: join by study"
MARKED = f"a question with {IMAGE_MARK} in it: the pictures come from the archive"
NO_PICTURE = "no usable picture in the row's study"


@dataclass(frozen=True)
class _Shown:
    """A study's pictures.

    Attributes:
        left_out: reasons, one a series.
        beyond: series that were not needed.
        fault: why the last series, or file, that was left out was.
    """

    uid: str = field(default="", repr=False)
    images: tuple[ImageRef, ...] = field(default=(), repr=False)
    modality: str = ""
    left_out: tuple[str, ...] = ()
    beyond: int = 0
    fault: str = ""


class DicomImport:
    """One import. After `examples` has ended, its counts are complete.

    Attributes:
        archive: what the folder held.
        tally: of the table's rows.
        series_left_out: reason -> series of the matched studies.
        series_beyond: series of the matched studies that were not used, because their study has MAX_IMAGES pictures already.
        studies_unmatched: studies that no row asks for.
    """

    def __init__(
        self,
        folder: Path,
        table: Table,
        look: Look,
        gate: Gate,
        modalities: tuple[str, ...] = MODALITIES,
        max_images: int = MAX_IMAGES,
    ) -> None:
        self._folder, self._table, self._look, self._gate = folder, table, look, gate
        self._modalities, self._max_images = modalities, max_images
        self._drawn: set[str] = set()
        self._matched: set[str] = set()
        self._placing = OneSplit()
        self._shown = _Shown()
        self.archive = Archive()
        self.tally = Tally()
        self.series_left_out: Counter[str] = Counter()
        self.series_beyond = 0

    @property
    def studies_unmatched(self) -> int:
        return len(self.archive.studies) - len(self._matched)

    def examples(self) -> Iterator[Example]:
        """One for each row that can be used, in the order of the table.

        Raises:
            DataError: the folder cannot be read or holds no study, or the table is wrong: see `Table.rows`.
        """
        next(self._table.rows(), None)  # a wrong table is told before hours go into the archive
        self.archive = self._read_archive()
        found = _by_key(self.archive)
        with Decoder() as decoder:
            for row in self._table.rows():
                self.tally.rows_read += 1
                try:
                    yield self._example(row, found, decoder)
                except UnusableError as fault:
                    self.tally.quarantined[fault.reason] += 1

    def _read_archive(self) -> Archive:
        if not self._folder.is_dir():
            raise DataError(f"{self._folder} is not a folder", "give the folder that the DICOM files lie in")
        archive = read_archive(self._folder, self._modalities, self._gate)
        if not archive.studies:
            raise DataError(
                f"{self._folder} holds no study of {', '.join(self._modalities)}: {archive.files} files, "
                + ("; ".join(f"{why}: {count}" for why, count in archive.left_out.items()) or "none left out"),
                "give another folder, or other modalities with --modality",
            )
        return archive

    def _example(self, row: Row, found: dict[str, dict[str, list[str]]], decoder: Decoder) -> Example:
        """Raises UnusableError with the reason why the row is left out."""
        if row.fault:
            raise UnusableError(row.fault)
        uids = found[row.key].get(row.value, [])
        if len(uids) != 1:
            raise UnusableError(SEVERAL if uids else NO_STUDY)
        study = self.archive.studies[uids[0]]
        self._matched.add(uids[0])
        if study.fault:
            raise UnusableError(f"its study has {study.fault}")
        if row.patient and uids[0] not in found["patient"].get(row.patient, []):
            raise UnusableError(OTHER_PATIENT)
        if not self._placing.holds(study.identifier, row.split):
            raise UnusableError(TWO_SPLITS)
        if refused := self._gate.look_text({"question": row.question, "answer": row.answer}, study.known):
            raise UnusableError(f"{REFUSED}: {refused}")
        if IMAGE_MARK in row.question:
            raise UnusableError(MARKED)
        shown = self._pictures(uids[0], study, decoder)
        if not shown.images:
            raise UnusableError(f"{NO_PICTURE}: {shown.fault}" if shown.fault else NO_PICTURE)
        return Example(
            patient=study.identifier,
            images=shown.images,
            question=row.question,
            answer=row.answer,
            answer_type=row.answer_type,
            task=row.task,
            source="dicom",
            split=row.split,
            attributes={"modality": shown.modality},
        )

    def _pictures(self, uid: str, study: Study, decoder: Decoder) -> _Shown:
        """A study's pictures; made once for rows that follow one another."""
        if self._shown.uid != uid:
            self._shown = self._make(uid, study, decoder)
            if uid not in self._drawn:
                self._drawn.add(uid)
                self.series_left_out.update(self._shown.left_out)
                self.series_beyond += self._shown.beyond
        return self._shown

    def _make(self, uid: str, study: Study, decoder: Decoder) -> _Shown:
        """Of the series by their number, until there are enough."""
        images: list[ImageRef] = []
        modalities: set[str] = set()
        left_out: list[str] = []
        beyond = 0
        for _, series in sorted(study.series.items(), key=lambda item: (item[1].number, item[0])):
            if len(images) >= self._max_images:
                beyond += 1
                continue
            try:
                made = islice(pictures(series, self._look, decoder), self._max_images - len(images))
                images += [ImageRef(data=png) for png in made]
                modalities.add(series.modality)
            except UnusableError as fault:
                left_out.append(fault.reason)
        return _Shown(
            uid, tuple(images), "/".join(sorted(modalities)), tuple(left_out), beyond, (left_out or [study.lost])[-1]
        )


def _by_key(archive: Archive) -> dict[str, dict[str, list[str]]]:
    """Which of KEYS -> its value -> studies."""
    found: dict[str, dict[str, list[str]]] = {key: defaultdict(list) for key in KEYS}
    for uid, study in archive.studies.items():
        for key, values in (
            ("study", {uid}),
            ("accession", study.accessions),
            ("patient", {study.patient, study.identifier}),
        ):
            for value in values:
                found[key][value].append(uid)
    return {key: dict(values) for key, values in found.items()}
