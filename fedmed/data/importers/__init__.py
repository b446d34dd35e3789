"""Public and hospital formats in, examples out: one file per format, one table of them all.

    >>> imported = importer("vqa_rad").read(Path("data/vqa_rad"), split="train", split_rule="image")
    >>> imported.rows_read == len(imported.examples) + sum(imported.quarantined.values())
    True

| the source has                                          | what an importer does                          |
| ------------------------------------------------------- | ---------------------------------------------- |
| no such file, another format, a missing key, wrong type | DataError naming file, row and key             |
| a row that cannot be used (image missing, empty answer) | quarantines it, counted under the reason       |
| a split or a split rule that it does not offer          | DataError naming what it offers                |

Importers never unpickle and take nothing from the network. To add one: an `Importer` in a file of its own, and its
entry in the tuple below. What they share: rows (JSON, JSON Lines, CSV) and their fields in `rows`, of parquet in `parquet`,
arrays in `npz`, image files in `folder_images`, lettered choices in `lettered`, quarantine and official splits in `sifting`, the
loop over rows with hashed splits and checked texts in `rowwise`.
"""

from __future__ import annotations

from fedmed.data.importers.base import SPLIT_RULES, Imported, Importer, Tally
from fedmed.data.importers.cases import Cases
from fedmed.data.importers.llava_med import LLAVA_MED
from fedmed.data.importers.medmnist import SETS
from fedmed.data.importers.medqa import MEDQA, MEDQA_4
from fedmed.data.importers.mmedagent import MMedAgent
from fedmed.data.importers.path_vqa import PathVqa
from fedmed.data.importers.pmc_vqa import PMC_VQA
from fedmed.data.importers.pubmedqa import PubMedQa
from fedmed.data.importers.reports import REPORTS
from fedmed.data.importers.slake import Slake
from fedmed.data.importers.tables import OWN_TABLES
from fedmed.data.importers.vqa_rad import VqaRad
from fedmed.errors import DataError

__all__ = ["IMPORTERS", "SPLIT_RULES", "Imported", "Importer", "Tally", "importer", "register"]

IMPORTERS: dict[str, Importer] = {}


def register(entry: Importer) -> None:
    """Add an importer to the table. Raises DataError when its name is taken."""
    if entry.name in IMPORTERS:
        raise DataError(f"an importer named {entry.name!r} is registered already, expected a new name")
    IMPORTERS[entry.name] = entry


def importer(name: str) -> Importer:
    """The importer of that name. Raises DataError listing the known ones."""
    if name not in IMPORTERS:
        raise DataError(f"unknown data source {name!r}, expected one of {', '.join(sorted(IMPORTERS))}")
    return IMPORTERS[name]


for _entry in (
    *SETS,
    VqaRad(),
    *(Slake("en"), Slake("zh"), PathVqa(), *PMC_VQA),
    *(PubMedQa("pubmedqa"), PubMedQa("pubmedqa_long"), MEDQA, MEDQA_4),
    *(*LLAVA_MED, MMedAgent(), *REPORTS, *OWN_TABLES, Cases()),
):
    register(_entry)
