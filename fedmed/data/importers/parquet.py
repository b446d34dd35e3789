"""Rows of parquet files, a few at a time; what is wrong is named by file, row and column.

    >>> for number, row in parquet_rows(Path("train-00000-of-00003.parquet"), ("question", "answer")):
    ...     question = text(row, "question", f"row {number}")

pyarrow takes 150 MB of disk, which a hospital that reads no parquet need not have: it is not among FedMed's own dependencies
(MLflow brings it to the aggregator) and is asked for here, when a parquet file is to be read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedmed.errors import DataError

_ROWS_AT_ONCE = 16
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered from 1, the rows with these columns. One row group is open at a time, and of it a few rows are in memory.

    Raises:
        DataError: no pyarrow, no such file, not parquet, damaged, or a column missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(
            f"{path.name} is a parquet file, and pyarrow is not installed", "pip install 'fedmed[parquet]'"
        ) from None
    number = 0
    try:
        with path.open("rb") as raw, pyarrow.parquet.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False) as file:
            _require_columns(path, file.schema_arrow.names, columns)
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(_ROWS_AT_ONCE, [group], list(columns), use_threads=False):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError):
        raise DataError(
            f"{path.name} is not a readable parquet file after row {number}", "get it again: it may be cut off"
        ) from None


def shards(folder: Path, prefixes: Sequence[str]) -> list[Path]:
    """The files PREFIX-00000-of-00003*.parquet of a folder, in order.

    Raises:
        DataError: there is none, or one of those that their names count is missing.
    """
    found = sorted(
        path for prefix in prefixes for path in folder.glob(f"{prefix}-*.parquet") if _SHARD.search(path.name)
    )
    if not found:
        raise DataError(f"{folder} holds no {prefixes[0]}-00000-of-....parquet", "see docs/data.md for the layout")
    numbers = [tuple(map(int, _SHARD.findall(path.name)[0])) for path in found]
    count = numbers[0][1]
    if numbers != [(number, count) for number in range(count)]:
        raise DataError(
            f"{folder} holds {len(found)} of the files {prefixes[0]}-....parquet, expected {count}, numbered from 0",
            "get those that are missing, and take away those of another copy",
        )
    return found


def _require_columns(path: Path, there: Sequence[str], wanted: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in there]:
        raise DataError(f"{path.name} lacks the columns {', '.join(missing)}, it has {', '.join(there) or 'none'}")
