"""Random changes of a view in training: where the camera stands, and what the light is. S is a view's side."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in a pixel's grey (ITU-R BT.601)."""


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths; the defaults are those that public pi0 policies were trained with.

    Attributes:
        enabled: whether anything is changed at all.
        crop: side of the part that is cut out and enlarged, as a share of the view's, in (0, 1]; 1 for no cropping.
        rotate_degrees: largest rotation, either way [degrees].
        brightness, contrast, saturation: each scales by a factor drawn from 1 - value to 1 + value, in [0, 1).
    """

    enabled: bool = True
    crop: float = 0.95
    rotate_degrees: float = 5.0
    brightness: float = 0.3
    contrast: float = 0.4
    saturation: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.crop <= 1.0:
            raise ValueError(f"crop is {self.crop}; give a share of the view's side above 0 and up to 1")
        if not 0.0 <= self.rotate_degrees <= 180.0:
            raise ValueError(f"rotate_degrees is {self.rotate_degrees}; give an angle from 0 to 180")
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name} is {value}; give a number from 0, and less than 1")


def augment_view(image: np.ndarray, rng: np.random.Generator, config: AugmentConfig, *, geometric: bool) -> np.ndarray:
    """A view as another camera, in another light, would have seen it.

    Colour changes by one affine map: pixels are scaled by the brightness, pulled from or to the mean grey by the
    contrast, and from or to their own grey by the saturation; rounded and clipped once. Then one bilinear warp cuts a
    square out at a random place, turns it and enlarges it.

    The black bars that resizing with padding leaves (outermost rows and columns that are all zero) are no part of the
    picture: they do not count in the mean grey, and stay black whatever the light, because they are black when the
    policy is deployed too. The warp moves them with the picture, and what it brings in from outside is black as well.

    Six numbers are drawn whatever the strengths are, so changing one of them leaves the others' effect as it was.

    Args:
        image: (S, S, 3) uint8, RGB.
        rng: the only source of randomness.
        config: strengths.
        geometric: whether to warp too. Not for a wrist camera: it is fixed to the hand, and where things are in its
            view is how the policy aims.

    Returns:
        (S, S, 3) uint8; the image itself when augmentation is off.

    Raises:
        ValueError: an image of another shape or dtype.
    """
    if image.ndim != 3 or image.shape[0] != image.shape[1] or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image has shape {image.shape} and dtype {image.dtype}; expected (S, S, 3) uint8")
    if not config.enabled:
        return image
    x, y, turn, brightness, contrast, saturation = rng.uniform(-1.0, 1.0, size=6)
    image = _colour(
        image,
        1.0 + brightness * config.brightness,
        1.0 + contrast * config.contrast,
        1.0 + saturation * config.saturation,
    )
    if not geometric:
        return image
    return _warp(image, config.crop, x, y, math.radians(turn * config.rotate_degrees))


def _colour(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """The picture within its black bars by the affine map of the three factors; the bars as they are."""
    rows, columns = _picture(image)
    picture = image[rows, columns]
    if picture.size == 0:
        return image
    mean = float(np.asarray(cv2.mean(picture)[:3]) @ LUMA)
    matrix = np.empty((3, 4))
    matrix[:, :3] = brightness * contrast * (saturation * np.eye(3) + (1.0 - saturation) * LUMA)
    matrix[:, 3] = brightness * (1.0 - contrast) * mean
    result = np.zeros_like(image)
    result[rows, columns] = cv2.convertScaleAbs(cv2.max(cv2.transform(np.float32(picture), matrix), 0.0))
    return result


def _picture(image: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns from the first to the last that are not all zero."""
    # Maxima over bytes are vectorised, `any` is not: a hundredth of its time.
    rows = image.reshape(len(image), -1).max(axis=1)
    return _span(rows), _span(image.max(axis=0).max(axis=1))


def _span(used: np.ndarray) -> slice:
    indices = np.flatnonzero(used)
    return slice(indices[0], indices[-1] + 1) if indices.size else slice(0, 0)


def _warp(image: np.ndarray, crop: float, x: float, y: float, angle: float) -> np.ndarray:
    """The square of side `crop * S` whose centre is moved by x and y, -1 to 1 of the room there is, turned [rad].

    The matrix maps a pixel of the result to the one of the image that it shows; pixel centres are whole numbers.
    """
    side = image.shape[0]
    centre, room = (side - 1) / 2.0, (1.0 - crop) * side / 2.0
    cos, sin = crop * math.cos(angle), crop * math.sin(angle)
    matrix = np.array(
        [
            [cos, -sin, centre + x * room - (cos - sin) * centre],
            [sin, cos, centre + y * room - (sin + cos) * centre],
        ]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
