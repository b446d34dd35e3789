"""Several manifests as one: a hospital's captions, conversations and questions in the one folder that a site trains on.

    >>> combine(Path("north-data"), [Path("captions"), Path("questions")]).num_patients      # doctest: +SKIP

| the folders have                         | in the combined manifest                                                   |
| ---------------------------------------- | -------------------------------------------------------------------------- |
| the same patient id                      | one patient: privacy is counted once for the person, over all records      |
| the same patient id, with `apart=True`   | two: for sets from elsewhere whose ids mean nothing to each other          |
| an example whose image does not decode   | left out, as when the folder itself is read                                |
| the same example twice                   | both: `fedmed data check` counts duplicates                                |

When in doubt leave `apart` off: a person under two ids would lose privacy twice and be counted once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fedmed.data.images import read_image
from fedmed.data.manifest import Manifest, load_manifest, write_manifest
from fedmed.data.schema import Example, ImageRef
from fedmed.errors import DataError


def combine(destination: Path, folders: Sequence[Path], *, apart: bool = False) -> Manifest:
    """Writes the examples of all folders, in their order, into a new manifest; one image at a time is in memory.

    Args:
        apart: patients of different folders are different persons, whatever their ids.

    Raises:
        DataError: fewer than two folders, one twice, or as `load_manifest` and `write_manifest`.
    """
    if len(folders) < 2 or len({folder.resolve() for folder in folders}) != len(folders):
        raise DataError(f"{len(folders)} manifest folders to combine, expected two or more that differ")
    return write_manifest(destination, _examples(folders, apart))


def _examples(folders: Sequence[Path], apart: bool) -> Iterator[Example]:
    for number, folder in enumerate(folders, start=1):
        for example in load_manifest(folder).examples:
            images = tuple(ImageRef(data=read_image(ref, folder)) for ref in example.images)
            patient = f"{number}/{example.patient}" if apart else example.patient
            yield replace(example, images=images, patient=patient)
