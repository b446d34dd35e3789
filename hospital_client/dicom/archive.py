"""What an archive holds: files to patients, studies and series, from headers alone.

    archive = read_archive(folder, options, gate)
    archive.studies["1.2.3"].series["1.2.3.4"].slices      paths and places; no pixels, no texts

Folders are walked in sorted order; a link to a file is followed, one to a folder is not; a folder that may not be read is
counted. Names of files mean nothing.

| a file                                       | what happens                                                          |
| -------------------------------------------- | --------------------------------------------------------------------- |
| no DICOM, a DICOMDIR, cut off in its header  | counted under its reason                                              |
| a copy (the same SOP instance UID)           | counted; the first in sorted order is kept, the patient must be the same |
| of a modality that was not asked for         | counted by modality                                                   |
| that the gate refuses, or a localizer        | counted; the rest of its series is used                               |
| with a header that describes no image        | spoils its series, which is left out                                  |

A patient is PatientID with its issuer, `ISSUER/ID`; without one, `ID`. Files that name no issuer belong to the one
issuer that the archive knows for that ID, or, where there are several, are left out: one person under two identifiers
would lose privacy twice. `UNKNOWN`, `ANONYMOUS` and the like are no PatientID.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from math import inf
from pathlib import Path

from pydicom.dataset import Dataset

from fedmed.data.importers.rowwise import patient_id
from hospital_client.dicom import faults
from hospital_client.dicom.faults import UnusableError
from hospital_client.dicom.frames import frame_count, planes
from hospital_client.dicom.gate import Gate, known_words
from hospital_client.dicom.headers import number, quiet, read_header, text
from hospital_client.dicom.slices import Slice

# PS3.3 C.7.3.1.1.1: those that an archive of a radiology department holds. Another text in Modality is not repeated.
# fmt: off
KNOWN_MODALITIES = frozenset([
    "AR", "AU", "BI", "BMD", "CR", "CT", "CTPROTOCOL", "DG", "DOC", "DX", "ECG", "EEG", "EPS", "ES", "FID", "GM",
    "HC", "HD", "IO", "IVOCT", "IVUS", "KER", "KO", "LEN", "LS", "MG", "MR", "NM", "OAM", "OCT", "OP", "OPM",
    "OPT", "OPV", "OSS", "OT", "PLAN", "PR", "PT", "PX", "REG", "RF", "RG", "RTDOSE", "RTIMAGE", "RTPLAN",
    "RTRECORD", "RTSTRUCT", "RWV", "SC", "SEG", "SM", "SMR", "SR", "TG", "US", "VA", "XA", "XC",
])
# fmt: on
# Every file is a picture of its own; the files of a series of the others are slices of one body.
VOLUMES = ("CT", "MR", "PT", "NM")


@dataclass(slots=True)
class Series:
    """Files that were made together.

    Attributes:
        number: SeriesNumber; infinity where there is none.
        slices: frames, in the order in which the files were read.
        fault: why it is left out, if it is.
    """

    modality: str
    number: float
    slices: list[Slice] = field(default_factory=list, repr=False)
    fault: str = ""


@dataclass(slots=True)
class Study:
    """Attributes:
    patient, issuer: PatientID and its issuer, of the first file.
    accessions: every AccessionNumber of its files.
    identifier: of the patient, inside the site.
    lost: why the last file that was left out was.
    known: words of the names and numbers of its people; see `hospital_client.dicom.phi`.
    fault: why it is left out, if it is.
    """

    patient: str = field(repr=False)
    issuer: str = field(repr=False)
    accessions: set[str] = field(default_factory=set, repr=False)
    known: frozenset[str] = field(default_factory=frozenset, repr=False)
    series: dict[str, Series] = field(default_factory=dict, repr=False)
    identifier: str = field(default="", repr=False)
    lost: str = ""
    fault: str = ""


@dataclass
class Archive:
    """Attributes:
    studies: by StudyInstanceUID.
    files: regular files seen.
    left_out: reason -> files.
    """

    studies: dict[str, Study] = field(default_factory=dict, repr=False)
    files: int = 0
    left_out: Counter[str] = field(default_factory=Counter)


def read_archive(folder: Path, modalities: tuple[str, ...], gate: Gate) -> Archive:
    """Every header below `folder`, once. Never raises for a file."""
    archive = Archive()
    seen: set[bytes] = set()
    for path in _files(folder, archive.left_out):
        archive.files += 1
        try:
            with quiet():
                _add(archive, path, read_header(path), seen, modalities, gate)
        except UnusableError as fault:
            archive.left_out[fault.reason] += 1
        except Exception:  # noqa: BLE001  hours into an archive, one file must not end the import; the fuzzer looks for these
            archive.left_out[faults.UNFORESEEN] += 1
    _name_patients(archive)
    return archive


def _files(folder: Path, left_out: Counter[str]) -> Iterator[Path]:
    for root, folders, names in os.walk(folder, onerror=lambda _: left_out.update([faults.CLOSED])):
        folders.sort()
        yield from (path for name in sorted(names) if (path := Path(root, name)).is_file())


def _add(
    archive: Archive, path: Path, header: Dataset, seen: set[bytes], modalities: tuple[str, ...], gate: Gate
) -> None:
    modality = text(header, "Modality")
    if modality not in modalities:
        raise UnusableError(
            f"{faults.OTHER_MODALITY}: {modality if modality in KNOWN_MODALITIES else 'not a known one'}"
        )
    study_uid, series_uid, uid = (text(header, f"{level}InstanceUID") for level in ("Study", "Series", "SOP"))
    if not (study_uid and series_uid and uid):
        raise UnusableError(faults.NO_UID)
    digest = blake2b(uid.encode(errors="replace"), digest_size=16).digest()
    if digest in seen and study_uid not in archive.studies:
        raise UnusableError(faults.DUPLICATE)  # no study of its own: keys would join two, of which one has no picture
    study = _study(archive, study_uid, header)
    if digest in seen:
        raise UnusableError(faults.DUPLICATE)
    seen.add(digest)
    try:
        _add_to(study, series_uid, path, header, gate)
    except UnusableError as fault:
        study.lost = fault.reason
        raise


def _add_to(study: Study, uid: str, path: Path, header: Dataset, gate: Gate) -> None:
    if refused := gate.look(header):
        raise UnusableError(f"{faults.REFUSED}: {refused}")
    if "LOCALIZER" in text(header, "ImageType").upper():
        raise UnusableError(faults.LOCALIZER)
    first = Series(text(header, "Modality"), _or_last(number(header, "SeriesNumber")))
    series = study.series.setdefault(uid, first)
    try:
        _add_slices(series, path, header)
    except UnusableError as fault:
        series.fault = series.fault or fault.reason
        raise


def _study(archive: Archive, uid: str, header: Dataset) -> Study:
    patient, issuer = (_identifier(header, keyword) for keyword in ("PatientID", "IssuerOfPatientID"))
    study = archive.studies.setdefault(uid, Study(patient, issuer))
    study.accessions.add(text(header, "AccessionNumber"))
    study.known |= known_words(header)
    if patient != study.patient or (issuer and study.issuer and issuer != study.issuer):
        study.fault = faults.TWO_PATIENTS
    study.issuer = study.issuer or issuer
    if not patient_id(study.patient):
        study.fault = faults.NO_PATIENT
    return study


def _identifier(header: Dataset, keyword: str) -> str:
    return unicodedata.normalize("NFC", text(header, keyword))


def _add_slices(series: Series, path: Path, header: Dataset) -> None:
    count = frame_count(header)
    shape = (int(number(header, "Rows") or 0), int(number(header, "Columns") or 0))
    acquired, made = (_or_last(number(header, keyword)) for keyword in ("AcquisitionNumber", "InstanceNumber"))
    space = text(header, "FrameOfReferenceUID")
    series.slices += [
        Slice(str(path), index, (acquired, made, index), shape, space, plane)
        for index, plane in enumerate(planes(header, count))
    ]


def _or_last(value: float | None) -> float:
    return inf if value is None else value


def _name_patients(archive: Archive) -> None:
    """Gives each study's patient its identifier inside the site."""
    issuers: dict[str, set[str]] = defaultdict(set)
    for study in archive.studies.values():
        issuers[study.patient] |= {study.issuer} - {""}
    for study in archive.studies.values():
        known = issuers[study.patient]
        if not study.issuer and len(known) > 1:
            study.fault = study.fault or faults.UNCLEAR_ISSUER
        issuer = study.issuer or next(iter(known), "")
        study.identifier = f"{issuer}/{study.patient}" if issuer else study.patient
