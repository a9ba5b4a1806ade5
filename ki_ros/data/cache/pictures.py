"""Pictures as bytes, and back. A damaged one is never returned."""

from __future__ import annotations

import zlib
from typing import Literal

import cv2
import numpy as np

from ki_ros.images import ImageError, decompress

Encoding = Literal["jpeg", "raw"]

ENCODINGS = ("jpeg", "raw")


class PictureError(ValueError):
    """A picture that is not what was stored."""


def encode(pixels: np.ndarray, encoding: Encoding, quality: int) -> bytes:
    """The bytes of a (H, W, 3) uint8 RGB picture.

    Raises:
        ValueError: another shape or dtype.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(f"has shape {pixels.shape} and dtype {pixels.dtype}; give (height, width, 3) uint8")
    if encoding == "raw":
        return pixels.tobytes()
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"of shape {pixels.shape} could not be made a JPEG")
    return data.tobytes()


def checksum(data: bytes | np.ndarray) -> int:
    """CRC-32 of a picture's bytes."""
    return zlib.crc32(data)


def decode(data: np.ndarray, expected: int, encoding: Encoding, shape: tuple[int, int]) -> np.ndarray:
    """The (H, W, 3) uint8 RGB picture in (N,) uint8 bytes whose checksum is `expected`; a raw one is the same memory.

    Raises:
        PictureError: a checksum that differs, or no picture of this shape.
    """
    found = checksum(data)
    if found != expected:
        raise PictureError(f"its {len(data)} bytes have the checksum {found:08x}, not {expected:08x}")
    if encoding == "raw":
        return data.reshape(*shape, 3)
    try:
        pixels = decompress(data.data, "jpeg")
    except ImageError as error:
        raise PictureError(str(error)) from error
    if pixels.shape != (*shape, 3):
        raise PictureError(f"it has shape {pixels.shape}, not {(*shape, 3)}")
    return pixels
