"""Camera images, raw or compressed, to RGB. Exact: no scaling and no loss beyond the camera's own compression."""

from __future__ import annotations

import cv2
import numpy as np

# Channels of an encoding, and the conversion that makes RGB of them (None: it is RGB already).
_ENCODINGS: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
}

ENCODINGS = tuple(_ENCODINGS)
"""Encodings of raw images that `to_rgb` knows."""

# What ends a complete file, by what begins one. OpenCV would fill the rest of a truncated image with grey.
_FILE_MARKS = {b"\xff\xd8": ("JPEG", b"\xff\xd9"), b"\x89PNG": ("PNG", b"IEND\xae\x42\x60\x82")}


class ImageError(ValueError):
    """An image that cannot be converted; the message names field, value and what it should be."""


class UnknownEncodingError(ImageError):
    """A raw image in an encoding that is none of `ENCODINGS`."""


def to_rgb(
    *,
    encoding: str,
    height: int,
    width: int,
    step: int,
    data: bytes | memoryview | np.ndarray,
    is_bigendian: bool = False,
) -> np.ndarray:
    """A raw image as RGB. The arguments are the fields of sensor_msgs/Image.

    Args:
        encoding: one of `ENCODINGS`.
        height: rows [pixels].
        width: columns [pixels].
        step: length of a row [bytes]; what it has beyond the pixels is padding.
        data: the pixels, height * step bytes.
        is_bigendian: of no meaning to 8-bit channels.

    Returns:
        (height, width, 3) uint8. For an rgb8 image it is a read-only view of `data` where that is read-only.

    Raises:
        UnknownEncodingError: the encoding is none of `ENCODINGS`.
        ImageError: size, step and length of the data do not fit each other.
    """
    del is_bigendian
    if encoding not in _ENCODINGS:
        raise UnknownEncodingError(f"encoding is {encoding!r}; known are {', '.join(ENCODINGS)}")
    channels, conversion = _ENCODINGS[encoding]
    if height < 1 or width < 1:
        raise ImageError(f"height is {height} and width is {width}; both must be positive")
    if step < width * channels:
        raise ImageError(f"step is {step}; a row of {width} pixels in {encoding} takes {width * channels} bytes")
    flat = np.frombuffer(data, dtype=np.uint8)
    if flat.size != height * step:
        raise ImageError(f"data has {flat.size} bytes; {height} rows of step {step} take {height * step}")
    pixels = flat.reshape(height, step)[:, : width * channels].reshape(height, width, channels)
    return pixels if conversion is None else cv2.cvtColor(pixels, conversion)


def decompress(data: bytes | memoryview, format: str = "") -> np.ndarray:
    """A JPEG or PNG image as RGB. The arguments are the fields of sensor_msgs/CompressedImage.

    Args:
        data: the file's bytes.
        format: as the driver or image_transport writes it, for example "jpeg" or "rgb8; jpeg compressed bgr8".

    Returns:
        (height, width, 3) uint8.

    Raises:
        ImageError: no JPEG or PNG image, one that is cut off, or one that is no colour or grey image of 8 bits.
    """
    data = bytes(data)
    name = require_complete(data, format)
    # Unchanged: the pixels as they are stored. A raw image is not turned as a JPEG's orientation says either.
    try:
        pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # a header that asks for more pixels than OpenCV takes
        pixels = None
    if pixels is None:
        raise ImageError(f"{name} image of {len(data)} bytes and format {format!r} is damaged")
    if pixels.dtype != np.uint8:
        raise ImageError(f"{name} image of format {format!r} has {pixels.dtype} pixels; a camera view needs 8 bits")
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    if pixels.shape[2] == 4:
        return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB)
    # image_transport says which order the channels had when the image was compressed as if they were BGR.
    order = format.rpartition("compressed")[2].strip()
    return pixels if order.startswith("rgb") else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def require_complete(data: bytes | memoryview, format: str = "") -> str:
    """What kind of file a compressed image is, "JPEG" or "PNG", told by its first and last bytes without decoding it.

    Raises:
        ImageError: it is neither, or its end is missing.
    """
    start = bytes(data[:4])
    name, end = next((marks for mark, marks in _FILE_MARKS.items() if start.startswith(mark)), ("", b""))
    if not name:
        raise ImageError(
            f"data of format {format!r} ({len(data)} bytes, beginning with {start.hex() or 'nothing'}) is no JPEG "
            "or PNG image; use the raw or the compressed transport"
        )
    # Cameras pad their JPEGs with zeros.
    if not bytes(data).rstrip(b"\0").endswith(end):
        raise ImageError(f"{name} image of {len(data)} bytes is cut off: it has no end mark")
    return name
