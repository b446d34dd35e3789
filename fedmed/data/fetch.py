"""Public data sets over the network, by name: downloaded whole, verified, then given their name.

    >>> fetch("pneumoniamnist", Path("data"))
    PosixPath('data/pneumoniamnist.npz')

| case                                   | what happens                                                               |
| -------------------------------------- | -------------------------------------------------------------------------- |
| the file is there and has the content  | its path, without the network                                              |
| the file is there with other content   | DataError; it is left alone                                                |
| no network, no answer, cut connection  | DataError within seconds; nothing is left behind                           |
| downloaded bytes with another hash     | deleted, DataError with both hashes                                        |
| a set without a download of its own    | DataError that lists the steps by hand                                     |

Two hashes are known of a set: the MD5 that its authors publish for the file, and the SHA-256 over its arrays, which
also knows a copy that was saved again. Either is enough.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

import numpy as np

from fedmed.data.importers.npz import array_names, load_array
from fedmed.errors import DataError

CHUNK_BYTES = 1 << 16
Progress = Callable[[int, int], None]  # bytes so far, bytes in all (0: not told)


@dataclass(frozen=True)
class PublicSet:
    """Where a public data set comes from.

    Attributes:
        filename: under the destination; the same as the importer's.
        license: as its authors state it.
        url: of the file; empty when it must be got by hand.
        md5: of the file, as its authors publish it.
        content_sha256: of its arrays, by the function of that name.
        by_hand: what to do where there is no url.
    """

    filename: str
    license: str
    url: str = ""
    md5: str = ""
    content_sha256: str = ""
    by_hand: str = ""


# Of the files of 28 x 28 pixels, as the authors' info.py (MedMNIST 3) gives them.
_MEDMNIST_MD5 = {
    "pathmnist": "a8b06965200029087d5bd730944a56c1",
    "chestmnist": "02c8a6516a18b556561a56cbdd36c4a8",
    "dermamnist": "0744692d530f8e62ec473284d019b0c7",
    "octmnist": "c68d92d5b585d8d81f7112f81e2d0842",
    "pneumoniamnist": "28209eda62fecd6e6a2d98b1501bb15f",
    "retinamnist": "bd4c0672f1bba3e3a89f0e4e876791e4",
    "breastmnist": "750601b1f35ba3300ea97c75c52ff8f6",
    "bloodmnist": "7053d0359d879ad8a5505303e11de1dc",
    "tissuemnist": "ebe78ee8b05294063de985d821c1c34b",
    "organamnist": "68e3f8846a6bd62f0c9bf841c0d9eacc",
    "organcmnist": "b9ceb9546e10131b32923c5bbeaea2b1",
    "organsmnist": "9ab87b696fb54e2a387ebe992d6ed5f1",
}
_MEDMNIST_CONTENT = {"pneumoniamnist": "1f12422b26d8682bb084114480338753accd57b3a3217bc8d921077c3163ca90"}


def _medmnist(name: str, md5: str) -> PublicSet:
    return PublicSet(
        filename=f"{name}.npz",
        license="CC BY-NC 4.0" if name == "dermamnist" else "CC BY 4.0",
        url=f"https://zenodo.org/records/10519652/files/{name}.npz?download=1",
        md5=md5,
        content_sha256=_MEDMNIST_CONTENT.get(name, ""),
    )


def _by_hand(folder: str, terms: str, files: str, where: str) -> PublicSet:
    steps = f"take {files} from {where}, put them into {folder}/, and set FEDMED_DATA_DIR to the folder around it"
    return PublicSet(folder, terms, by_hand=steps)


_PMC = _by_hand(
    "pmc_vqa",
    "CC BY-SA 4.0",
    "train.csv, test.csv and images/ (or train_2.csv, test_2.csv and figures/)",
    "where github.com/xiaoman-zhang/PMC-VQA links to",
)
_PUBMEDQA = _by_hand(
    "pubmedqa", "MIT", "data/ori_pqal.json and data/test_ground_truth.json", "github.com/pubmedqa/pubmedqa"
)
_SLAKE = _by_hand("slake", "CC BY-SA 4.0", "train.json, validation.json, test.json and imgs/", "med-vqa.com/slake")
_MEDQA = _by_hand("medqa", "MIT", "data_clean/questions/US of the archive", "where github.com/jind11/MedQA links to")
_LLAVA_MED = "the links of github.com/microsoft/LLaVA-Med, whose download_images.py gets the images"
_R2GEN = "where github.com/cuhksz-nlp/R2Gen links to"

PUBLIC_SETS: Mapping[str, PublicSet] = MappingProxyType(
    {
        **{name: _medmnist(name, md5) for name, md5 in _MEDMNIST_MD5.items()},
        **dict.fromkeys(("slake_en", "slake_zh"), _SLAKE),
        **dict.fromkeys(("pmc_vqa", "pmc_vqa_blank", "pmc_vqa_2", "pmc_vqa_2_blank", "pmc_vqa_captions"), _PMC),
        **dict.fromkeys(("pubmedqa", "pubmedqa_long"), _PUBMEDQA),
        **dict.fromkeys(("medqa", "medqa_4"), _MEDQA),
        "llava_med_align": _by_hand(
            "llava_med_align", "CC BY-NC 4.0", "llava_med_alignment_500k.json and images/", _LLAVA_MED
        ),
        "llava_med_instruct": _by_hand(
            "llava_med_instruct", "CC BY-NC 4.0", "llava_med_instruct_60k.json and images/", _LLAVA_MED
        ),
        "iu_xray": _by_hand("iu_xray", "of Open-i", "annotation.json and images/", _R2GEN),
        "mimic_cxr": _by_hand(
            "mimic_cxr", "of PhysioNet, for persons it knows", "annotation.json and images/ (or files/)", _R2GEN
        ),
        "path_vqa": _by_hand(
            "path_vqa", "MIT", "the parquet files of flaviagiammarino/path-vqa", "where that data set is kept"
        ),
        "vqa_rad": PublicSet(
            filename="vqa_rad",
            license="CC0 1.0",
            by_hand="take trainset.json, testset.json and the images from the data_RAD archive that "
            "github.com/aioz-ai/MICCAI19-MedVQA links to (the images are also at osf.io/89kps), put them into "
            "vqa_rad/ and vqa_rad/images/, and set FEDMED_DATA_DIR to the folder around it",
        ),
    }
)


def fetch(
    name: str,
    destination: Path,
    progress: Progress = lambda done, total: None,
    *,
    sets: Mapping[str, PublicSet] = PUBLIC_SETS,
    timeout_s: float = 10.0,
) -> Path:
    """The path of a public data set inside `destination`, downloaded unless it is there.

    Args:
        progress: called after every chunk.
        timeout_s: of connecting and of every wait for more bytes, not of the whole download.

    Raises:
        DataError: as the module's table says.
    """
    if name not in sets:
        raise DataError(f"unknown public data set {name!r}, expected one of {', '.join(sorted(sets))}")
    entry = sets[name]
    path = destination / entry.filename
    if not entry.url:
        if path.exists():
            return path
        raise DataError(f"{name} has no download of its own (license {entry.license})", f"by hand: {entry.by_hand}")
    if path.exists():
        if not _is_genuine(path, entry):
            raise DataError(f"{path} is not {name} as published", "move it away and fetch again")
        return path
    try:
        return _download(name, entry, path, progress, timeout_s)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}", "choose a folder with room and access") from None


def content_sha256(path: Path) -> str:
    """SHA-256 over an npz file's arrays (name, type, shape, values), whatever its compression.

    Raises:
        DataError: not an npz file of plain arrays.
    """
    digest = hashlib.sha256()
    for key in array_names(path):
        array = load_array(path, key)
        digest.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _download(name: str, entry: PublicSet, path: Path, progress: Progress, timeout_s: float) -> Path:
    """Into a file of this process's own beside the target, renamed once its hash is right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        md5 = hashlib.md5(usedforsecurity=False)
        with part.open("wb") as file:
            for chunk in _chunks(name, entry.url, progress, timeout_s):
                file.write(chunk)
                md5.update(chunk)
        if md5.hexdigest() != entry.md5 and not _has_content(part, entry):
            raise DataError(
                f"the download of {name} has MD5 {md5.hexdigest()}, expected {entry.md5}; it was deleted",
                "try again; if it happens twice, the file was changed at its source or on the way",
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _chunks(name: str, url: str, progress: Progress, timeout_s: float) -> Iterator[bytes]:
    """The body at `url`, whole or an error."""
    done = 0
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:  # noqa: S310  from the table, never from a user
            total = int(response.headers.get("Content-Length") or 0)
            while chunk := response.read(CHUNK_BYTES):
                done += len(chunk)
                progress(done, total)
                yield chunk
    except (OSError, HTTPException, ValueError) as error:
        raise _no_network(name, url, str(getattr(error, "reason", error))) from None
    if done < total:
        raise _no_network(name, url, f"the connection was cut after {done} of {total} bytes")


def _no_network(name: str, url: str, reason: str) -> DataError:
    host = urlsplit(url).netloc
    return DataError(
        f"{name} could not be downloaded from {host}: {reason}",
        f"without a network: copy the file of {url} by other means and set FEDMED_DATA_DIR to its folder",
    )


def _is_genuine(path: Path, entry: PublicSet) -> bool:
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return md5 == entry.md5 or _has_content(path, entry)


def _has_content(path: Path, entry: PublicSet) -> bool:
    try:
        return bool(entry.content_sha256) and content_sha256(path) == entry.content_sha256
    except DataError:
        return False
