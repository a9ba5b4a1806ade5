"""Decompression that a damaged size or stream cannot make endless, and that keeps what came before the damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import lz4.frame
import zstandard

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
LIMIT = 1 << 30  # [bytes] of one chunk or message; a damaged header may say anything

_PIECE = 1 << 16


class DecompressionError(ValueError):
    """Bytes that do not decompress. `prefix` is what did until there."""

    def __init__(self, message: str, prefix: bytes = b"") -> None:
        super().__init__(message)
        self.prefix = prefix


def decompress(data: bytes, compression: str, size: int) -> bytes:
    """The `size` bytes that `data` holds.

    Args:
        data: the compressed bytes.
        compression: "", "zstd" or "lz4".
        size: how many bytes must come out.

    Raises:
        DecompressionError: an unknown compression, bytes that do not decompress, or another size than that.
    """
    if size > LIMIT:
        raise DecompressionError(f"{size} bytes are said to be in it, more than {LIMIT}")
    if compression == "":
        raw = data
    elif compression == "zstd":
        raw = _zstd(data, size)
    elif compression == "lz4":
        raw = _lz4(data, size)
    else:
        raise DecompressionError(f"compression {compression!r} is none of zstd, lz4 and none")
    if len(raw) != size:
        raise DecompressionError(f"{len(raw)} bytes instead of {size}", raw[:size])
    return raw


def decompress_message(data: bytes) -> bytes:
    """A message that was compressed by itself with zstd. Raises DecompressionError."""
    return _zstd(data, LIMIT)


def decompress_file(source: Path, target: Path) -> str:
    """Writes what the zstd file `source` holds to `target`; returns what went wrong on the way, or "".

    Raises:
        OSError: the disk.
    """
    with source.open("rb") as compressed, target.open("wb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(compressed, read_across_frames=True)
        try:
            shutil.copyfileobj(reader, file, _PIECE)
        except zstandard.ZstdError as error:
            return str(error)
    return ""


def _zstd(data: bytes, size: int) -> bytes:
    reader = zstandard.ZstdDecompressor().stream_reader(data)
    pieces: list[bytes] = []
    total = 0
    try:
        # One byte more than there should be tells a frame that is too long.
        while total <= size and (piece := reader.read(min(_PIECE, size + 1 - total))):
            pieces.append(piece)
            total += len(piece)
    except (zstandard.ZstdError, MemoryError) as error:
        raise DecompressionError(f"zstd: {error}", b"".join(pieces)) from error
    return b"".join(pieces)


def _lz4(data: bytes, size: int) -> bytes:
    decompressor = lz4.frame.LZ4FrameDecompressor()
    pieces: list[bytes] = []
    total = 0
    try:
        waiting = data
        while total <= size and not decompressor.eof:
            piece = decompressor.decompress(waiting, max_length=min(_PIECE, size + 1 - total))
            if not piece and decompressor.needs_input:
                break
            waiting = b""
            pieces.append(piece)
            total += len(piece)
    except (RuntimeError, MemoryError, ValueError) as error:
        raise DecompressionError(f"lz4: {error}", b"".join(pieces)) from error
    return b"".join(pieces)
