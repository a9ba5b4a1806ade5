"""Images of every encoding, with and without padding, and images that are none."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ki_ros.images import ENCODINGS, ImageError, UnknownEncodingError, decompress, to_rgb

ORDER = {"rgb8": (0, 1, 2), "bgr8": (2, 1, 0), "rgba8": (0, 1, 2), "bgra8": (2, 1, 0), "mono8": (0, 0, 0)}
CHANNELS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}


@given(
    st.sampled_from(ENCODINGS),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 9),
    st.integers(0, 2**32 - 1),
    st.sampled_from([bytes, memoryview, bytearray]),
)
def test_every_encoding_with_padding(encoding, height, width, padding, seed, kind):
    channels = CHANNELS[encoding]
    step = width * channels + padding
    rows = np.random.default_rng(seed).integers(0, 256, (height, step), dtype=np.uint8)
    rgb = to_rgb(encoding=encoding, height=height, width=width, step=step, data=kind(rows.tobytes()))
    pixels = rows[:, : width * channels].reshape(height, width, channels)
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, pixels[..., list(ORDER[encoding])])


@pytest.mark.parametrize("encoding", ["yuv422", "16UC1", "32FC1", "bayer_rggb8", "", "RGB8"])
def test_an_unknown_encoding_is_named(encoding):
    with pytest.raises(UnknownEncodingError, match=f"'{encoding}'.*bgra8"):
        to_rgb(encoding=encoding, height=2, width=2, step=8, data=bytes(16))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"step": 5}, "step is 5"),
        ({"data": bytes(11)}, "data has 11 bytes"),
        ({"data": bytes(13)}, "data has 13 bytes"),
        ({"height": 0}, "height is 0"),
        ({"width": 0}, "width is 0"),
        ({"data": b""}, "data has 0 bytes"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change, named):
    fields = {"encoding": "rgb8", "height": 2, "width": 2, "step": 6, "data": bytes(12)} | change
    with pytest.raises(ImageError, match=named):
        to_rgb(**fields)


def picture(height: int = 24, width: int = 40) -> np.ndarray:
    """Smooth, with a different ramp in each channel, so that JPEG keeps it and an exchange of channels shows."""
    ramp = np.linspace(0, 255, width)
    channels = [np.tile(ramp, (height, 1)), np.full((height, width), 40.0), np.tile(255 - ramp, (height, 1))]
    return np.stack(channels, axis=-1).astype(np.uint8)


def encoded(suffix: str, bgr: np.ndarray) -> bytes:
    done, data = cv2.imencode(suffix, bgr)
    assert done
    return data.tobytes()


@pytest.mark.parametrize("format", ["png", "rgb8; png compressed bgr8", "", "bgr8; png compressed "])
def test_png_is_exact(format):
    image = picture()
    data = encoded(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    np.testing.assert_array_equal(decompress(data, format), image)


@pytest.mark.parametrize("format", ["jpeg", "rgb8; jpeg compressed bgr8", "bgr8; jpeg compressed bgr8"])
def test_jpeg_is_what_opencv_makes_of_it(format):
    image = picture()
    data = encoded(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    rgb = decompress(memoryview(data), format)
    assert np.abs(rgb.astype(int) - image).max() < 12
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(rgb, bgr[..., ::-1])


def test_channels_compressed_in_rgb_order_are_not_exchanged():
    image = picture()
    np.testing.assert_array_equal(decompress(encoded(".png", image), "rgb8; png compressed rgb8"), image)


def test_grey_and_transparent_images():
    grey = picture()[..., 0]
    np.testing.assert_array_equal(decompress(encoded(".png", grey)), np.repeat(grey[..., None], 3, axis=2))
    image = picture()
    bgra = cv2.cvtColor(image, cv2.COLOR_RGB2BGRA)
    np.testing.assert_array_equal(decompress(encoded(".png", bgra)), image)


def test_a_padded_jpeg_is_complete():
    data = encoded(".jpg", picture())
    np.testing.assert_array_equal(decompress(data + bytes(500)), decompress(data))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kept", [0.3, 0.9, -1])
def test_a_truncated_image_is_refused(suffix, kept):
    data = encoded(suffix, np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    cut = data[: int(len(data) * kept)] if kept > 0 else data[:-1]
    with pytest.raises(ImageError, match="cut off"):
        decompress(cut, "jpeg")


@given(st.binary(max_size=200), st.text(max_size=20))
def test_garbage_is_an_image_error(data, format):
    with pytest.raises(ImageError):
        decompress(data, format)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8\xff\xe0 no picture \xff\xd9",
        b"\x89PNG\r\n\x1a\n no picture IEND\xae\x42\x60\x82",
        # A size of 2^31 - 1 squared.
        encoded(".png", picture()).replace(bytes([0, 0, 0, 40, 0, 0, 0, 24]), b"\x7f\xff\xff\xff" * 2),
    ],
)
def test_garbage_that_begins_and_ends_well_is_an_image_error(data):
    with pytest.raises(ImageError, match="damaged"):
        decompress(data, "jpeg")


def test_an_image_of_16_bits_is_refused():
    data = encoded(".png", np.zeros((4, 4), np.uint16))
    with pytest.raises(ImageError, match="uint16"):
        decompress(data, "16UC1; compressedDepth png")
