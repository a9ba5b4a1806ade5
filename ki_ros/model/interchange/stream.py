"""A safetensors file written one tensor at a time, so that no more than a piece of one is in memory.

The format: the header's length as 8 bytes, little-endian; a JSON header that gives each tensor's dtype, shape and
place; the tensors' bytes one after the other without gaps (https://github.com/huggingface/safetensors, Format).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

DTYPE_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Bytes of a value, by the format's names of the dtypes that weights may have."""

_ALIGNMENT = 8


@dataclass(frozen=True)
class StreamedTensor:
    """A tensor to write.

    Attributes:
        name: in the file.
        dtype: one of DTYPE_SIZES.
        shape: of the tensor; its values follow in C order.
        pieces: gives its bytes, in order; None for a tensor of zeros, which takes no room on the disk.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[memoryview]] | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPE_SIZES[self.dtype]


def write_safetensors(
    path: Path, tensors: Iterable[StreamedTensor], *, on_bytes: Callable[[int], None] = lambda _: None
) -> None:
    """Writes a new file and waits until it is on the disk; `on_bytes` hears how many bytes each piece had.

    Raises:
        FileExistsError: the file exists.
        ValueError: pieces that do not add up to their tensor.
    """
    # Wide values first, so that every tensor lies on a multiple of its values' size, where a reader may map it.
    ordered = sorted(tensors, key=lambda tensor: (-DTYPE_SIZES[tensor.dtype], tensor.name))
    header = _header(ordered)
    with path.open("xb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for tensor in ordered:
            if tensor.pieces is None:
                file.seek(tensor.size, os.SEEK_CUR)
                on_bytes(tensor.size)
                continue
            written = 0
            for piece in tensor.pieces():
                file.write(piece)
                written += piece.nbytes
                on_bytes(piece.nbytes)
            if written != tensor.size:
                raise ValueError(f"{tensor.name}: {written} bytes came, but its shape and dtype have {tensor.size}")
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _header(tensors: Sequence[StreamedTensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.size
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % _ALIGNMENT)
