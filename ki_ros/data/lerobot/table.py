"""Rows of one Parquet file, by their numbers, without reading the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ki_ros.data.lerobot.errors import LeRobotError


def open_parquet(path: Path) -> pq.ParquetFile:
    """The file. Raises LeRobotError where it is missing or damaged."""
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise LeRobotError(f"{path} does not exist; copy the dataset whole") from None
    except (OSError, pa.ArrowException) as error:
        raise LeRobotError(f"{path} cannot be read ({error}); copy it again") from error


def read_rows(path: Path, columns: Sequence[str], first: int, count: int) -> pa.Table:
    """Rows `first` to `first + count` - 1. Raises LeRobotError for a file that has not all of them, or is damaged."""
    parts = list(iterate_rows(path, columns, first, count))
    return pa.concat_tables(parts)


def iterate_rows(path: Path, columns: Sequence[str], first: int, count: int) -> Iterator[pa.Table]:
    """As `read_rows`, a row group at a time."""
    with open_parquet(path) as file:
        if first + count > file.metadata.num_rows:
            raise LeRobotError(f"{path} has {file.metadata.num_rows} rows; {first + count} are needed; copy it again")
        missing = [name for name in columns if name not in file.schema_arrow.names]
        if missing:
            raise LeRobotError(f"{path} has no column {missing[0]!r}, which info.json lists; copy the dataset again")
        begin = 0
        for group in range(file.metadata.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            low, high = max(first, begin), min(first + count, end)
            if low < high:
                try:
                    table = file.read_row_group(group, columns=list(columns))
                except (OSError, pa.ArrowException) as error:
                    raise LeRobotError(f"{path} cannot be read ({error}); copy it again") from error
                # A name with dots in it brings along all that begin with it.
                yield table.select(list(columns)).slice(low - begin, high - low)
            begin = end


def vectors(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """(N, D) float64: columns of numbers or of lists of them, one after the other."""
    return np.concatenate([_vectors(table[name].combine_chunks()) for name in names], axis=1)


def scalars(table: pa.Table, name: str) -> np.ndarray:
    """(N,) of a column of single values."""
    return np.asarray(table[name].to_numpy(zero_copy_only=False))


def _vectors(column: pa.Array) -> np.ndarray:
    values = column
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type) or pa.types.is_fixed_size_list(column.type):
        values = column.flatten()
    return values.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(column), -1)
