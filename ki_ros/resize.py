"""Resizing of a view to the policy's input, aspect ratio kept."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resize_with_pad(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """An image scaled to fit into a frame and centred on black.

    Scaling is PIL's bilinear filter, which averages over the covered area when it shrinks. This is what public pi0.5
    policies were trained and are served with; another filter shifts pixels by up to half of their range.

    Args:
        image: (H, W, 3) uint8.
        size: side of a square frame, or its (height, width) [pixels].

    Returns:
        (height, width, 3) uint8; the image itself when it has that size already.

    Raises:
        ValueError: an image of another shape or dtype, or one so thin that nothing of it is left.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"image has shape {image.shape} and dtype {image.dtype}; expected (H, W, 3) uint8")
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"size is {size!r}; give positive pixels")
    image_height, image_width = image.shape[:2]
    if (image_height, image_width) == (height, width):
        return image
    ratio = max(image_width / width, image_height / height)
    new_height, new_width = int(image_height / ratio), int(image_width / ratio)
    if new_height < 1 or new_width < 1:
        raise ValueError(
            f"image of {image_height}x{image_width} pixels leaves nothing when it is fitted into {height}x{width}; "
            "give a view that is less thin"
        )
    # Both passes round to 8 bits, so their order shows; Pillow's own choice of it changed between versions.
    narrowed = Image.fromarray(image).resize((new_width, image_height), resample=Image.Resampling.BILINEAR)
    resized = narrowed.resize((new_width, new_height), resample=Image.Resampling.BILINEAR)
    frame = np.zeros((height, width, 3), dtype=np.uint8)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    frame[top : top + new_height, left : left + new_width] = resized
    return frame
