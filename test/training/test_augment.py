"""Augmentation of real DROID views, against what is computed here pixel by pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ki_ros.resize import resize_with_pad
from ki_ros.training.augment import AugmentConfig, augment_view

STILL = AugmentConfig(crop=1.0, rotate_degrees=0.0, brightness=0.0, contrast=0.0, saturation=0.0)


@pytest.fixture(scope="module")
def view(test_data: Path) -> np.ndarray:
    """A DROID frame of 320x180 as the policy gets it: 126 rows of picture between black bars of 49."""
    path = test_data / "droid_100" / "images" / "episode_000" / "exterior_image_1_left__image_00000080.webp"
    if not path.is_file():
        pytest.skip(f"no frame at {path}")
    return resize_with_pad(np.asarray(Image.open(path).convert("RGB")), 224)


class Draws:
    """Stands in for a generator whose numbers are known."""

    def __init__(self, *values: float) -> None:
        self._values = np.array(values)

    def uniform(self, low: float, high: float, size: int) -> np.ndarray:
        assert (low, high, size) == (-1.0, 1.0, 6)
        return self._values


def test_same_generator_same_view(view) -> None:
    first, again, other = (
        augment_view(view, np.random.default_rng(seed), AugmentConfig(), geometric=True) for seed in (3, 3, 4)
    )
    assert first.shape == view.shape
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_strength_no_change(view) -> None:
    before = view.copy()
    assert np.array_equal(augment_view(view, np.random.default_rng(0), STILL, geometric=True), view)
    assert augment_view(view, np.random.default_rng(0), AugmentConfig(enabled=False), geometric=True) is view
    augment_view(view, np.random.default_rng(0), AugmentConfig(), geometric=True)
    assert np.array_equal(view, before)


def test_strengths_are_independent(view) -> None:
    """Colour is the same whether the view is warped or not, so pixels that no warp moves keep their colour."""
    colour = augment_view(view, np.random.default_rng(5), AugmentConfig(), geometric=False)
    config = AugmentConfig(crop=1.0, rotate_degrees=0.0)
    assert np.array_equal(augment_view(view, np.random.default_rng(5), config, geometric=True), colour)


def test_colour_is_the_product_of_its_steps(view) -> None:
    config = AugmentConfig()
    got = augment_view(view, Draws(0, 0, 0, -0.5, 0.5, -0.8), config, geometric=False)
    weights = np.array([0.299, 0.587, 0.114])
    picture = view[49:175].astype(np.float64) * 0.85
    mean = (picture @ weights).mean()
    picture = mean + 1.2 * (picture - mean)
    grey = (picture @ weights)[..., None]
    picture = grey + 0.6 * (picture - grey)
    assert np.abs(got[49:175].astype(float) - picture.clip(0, 255)).max() <= 0.51


@pytest.mark.parametrize("seed", range(8))
def test_bars_stay_black_in_any_light(view, seed) -> None:
    for enough in (view, view.transpose(1, 0, 2)):
        got = augment_view(enough, np.random.default_rng(seed), AugmentConfig(), geometric=False)
        upright = got if enough is view else got.transpose(1, 0, 2)
        assert not upright[:49].any()
        assert not upright[175:].any()
        assert upright[49:175].any()


def test_a_black_view_stays_black() -> None:
    black = np.zeros((32, 32, 3), np.uint8)
    assert not augment_view(black, np.random.default_rng(0), AugmentConfig(), geometric=True).any()


@pytest.mark.parametrize("draws", [(0.0, 0.0, 1.0), (1.0, -1.0, 0.0), (-0.4, 0.7, -0.6)])
def test_warp_shows_the_pixel_that_geometry_says(draws) -> None:
    """On an image that is linear in its coordinates a bilinear warp is exact, so each pixel tells where it is from."""
    side, crop, degrees = 65, 0.8, 5.0
    row, column = np.mgrid[:side, :side].astype(float)
    image = np.stack((3 * column + 20, 3 * row + 20, 0 * row + 90), axis=-1).astype(np.uint8)
    config = AugmentConfig(crop=crop, rotate_degrees=degrees, brightness=0, contrast=0, saturation=0)
    got = augment_view(image, Draws(*draws, 0, 0, 0), config, geometric=True).astype(float)
    x, y, turn = draws
    angle = np.deg2rad(turn * degrees)
    right, down = (column - 32) * crop, (row - 32) * crop
    source_column = 32 + x * 0.1 * side + np.cos(angle) * right - np.sin(angle) * down
    source_row = 32 + y * 0.1 * side + np.sin(angle) * right + np.cos(angle) * down
    inside = (source_column >= 0) & (source_column <= 64) & (source_row >= 0) & (source_row <= 64)
    assert inside.mean() > 0.9
    # OpenCV may round positions to 1/32 of a pixel, which is 0.05 here, and then rounds values.
    assert np.abs(got[..., 0] - (3 * source_column + 20))[inside].max() < 0.7
    assert np.abs(got[..., 1] - (3 * source_row + 20))[inside].max() < 0.7
    far = (source_column < -1) | (source_column > 65) | (source_row < -1) | (source_row > 65)
    assert not got[far].any()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crop", 0.0),
        ("crop", 1.1),
        ("rotate_degrees", -1.0),
        ("brightness", 1.0),
        ("contrast", -0.1),
        ("saturation", float("nan")),
    ],
)
def test_what_no_strength_is_is_refused_by_name(name, value) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {value}"):
        AugmentConfig(**{name: value})


@pytest.mark.parametrize("image", [np.zeros((4, 5, 3), np.uint8), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_no_view_is_is_refused(image) -> None:
    with pytest.raises(ValueError, match=r"expected \(S, S, 3\) uint8"):
        augment_view(image, np.random.default_rng(0), AugmentConfig(), geometric=False)
