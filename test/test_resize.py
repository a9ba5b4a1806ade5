from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ki_ros.resize import resize_with_pad


def test_equals_openpi_bit_for_bit(test_data: Path) -> None:
    recorded = np.load(test_data / "pi05_reference" / "resize.npz")
    names = [name.removesuffix("_client_pil") for name in recorded if name.endswith("_client_pil")]
    for name in names:
        images, expected = recorded[f"{name}_input"], recorded[f"{name}_client_pil"]
        height, width = map(int, recorded[f"{name}_target"])
        if images.ndim == 3:
            images, expected = images[None], expected[None]
        for image, want in zip(images, expected, strict=True):
            got = resize_with_pad(image, height if height == width else (height, width))
            assert got.dtype == np.uint8
            np.testing.assert_array_equal(got, want, err_msg=name)
    assert len(names) >= 20


def test_image_is_centred_on_black() -> None:
    out = resize_with_pad(np.full((180, 320, 3), 200, np.uint8), 224)
    assert out.shape == (224, 224, 3)
    assert (out[49:175] == 200).all()
    assert not out[:49].any()
    assert not out[175:].any()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"\(4, 4\)"),
        (np.zeros((4, 4, 4), np.uint8), r"\(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((1, 200, 3), np.uint8), "1x200 pixels leaves nothing"),
    ],
)
def test_bad_image_is_named(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resize_with_pad(image, 28)


def test_bad_size_is_named() -> None:
    with pytest.raises(ValueError, match="size is 0"):
        resize_with_pad(np.zeros((4, 4, 3), np.uint8), 0)
