import numpy as np
import pytest

from ki_ros.rig import POLICY_VIEWS
from ki_ros.sim import scene
from ki_ros.sim.grounding import Photographer

pytestmark = pytest.mark.usefixtures("graphics")


@pytest.fixture(scope="module")
def pictures():
    photographer = Photographer()
    taken = [photographer.take(seed) for seed in (3, 4, 3)]
    photographer.close()
    return taken


def hue_of(colour):
    """Red, green and blue of a block, without its brightness."""
    rgb = np.array(scene.BLOCK_COLOURS[colour][:3])
    return rgb / np.linalg.norm(rgb)


def test_what_is_marked_as_a_block_has_its_colour_and_nothing_else_has(pictures):
    seen = 0
    for view in (view for scene_views in pictures for view in scene_views):
        pixels = view.pixels / np.maximum(np.linalg.norm(view.pixels.astype(float), axis=2, keepdims=True), 1.0)
        for colour, mask in view.blocks.items():
            if mask.sum() < 100:
                continue
            seen += 1
            likeness = pixels @ hue_of(colour)
            assert np.median(likeness[mask]) > 0.97, colour
            others = [other for name, other in view.blocks.items() if name != colour]
            assert not any((mask & other).any() for other in others)
            nowhere = ~np.any([mask, *others], axis=0)
            assert np.median(likeness[mask]) > np.quantile(likeness[nowhere], 0.99), colour
    assert seen >= 9


def test_a_scene_is_a_function_of_its_seed(pictures):
    first, _, again = pictures
    assert len(first) == len(POLICY_VIEWS)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert one.blocks.keys() == other.blocks.keys()
        for colour in one.blocks:
            np.testing.assert_array_equal(one.blocks[colour], other.blocks[colour])
