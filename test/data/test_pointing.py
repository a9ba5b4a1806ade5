"""The pointing task solved from its pictures, instructions and states alone, and what makes it repeatable."""

from __future__ import annotations

import math
import operator
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from ki_ros.data.pointing import Pointing
from ki_ros.data.statistics import compute_norm_stats
from ki_ros.rig import ActionSpace, CameraRole

EXTERIOR, WRIST = CameraRole.EXTERIOR_1, CameraRole.WRIST
HUES = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0)}
RESET = np.array([0, -math.pi / 5, 0, -4 * math.pi / 5, 0, 3 * math.pi / 5, 0])


def pixels_of(colour, picture):
    """Where the picture has that colour, (side, side) bool: vivid pixels, nearer to its hue than to another's."""
    values = picture.astype(float)
    low, high = values.min(axis=2, keepdims=True), values.max(axis=2, keepdims=True)
    hue = (values - low) / np.maximum(high - low, 1)
    distances = np.stack([np.abs(hue - np.array(other)).sum(axis=2) for other in HUES.values()])
    return (distances.argmin(axis=0) == list(HUES).index(colour)) & ((high - low)[..., 0] > 80)


def search(colour, picture, edge):
    """Centre (x, y) in pixels of the window with most pixels of a colour, tried everywhere."""
    here = pixels_of(colour, picture)
    side = len(here)
    counts = {
        (x, y): here[y : y + edge, x : x + edge].sum() for y in range(side - edge + 1) for x in range(side - edge + 1)
    }
    x, y = max(counts, key=counts.__getitem__)
    return np.array([x + edge / 2, y + edge / 2])


def colour_in(instruction):
    (colour,) = [word for word in instruction.split() if word in HUES]
    return colour


def joint_path(start, end, horizon):
    """(H + 1, 7): the quintic with no velocity and no acceleration at its ends, by solving for its coefficients."""
    powers = np.arange(6)
    at = [[0.0**p for p in powers], [1.0**p for p in powers]]
    slope = [[float(p == 1) for p in powers], [float(p) for p in powers]]
    bend = [[2.0 * (p == 2) for p in powers], [float(p * (p - 1)) for p in powers]]
    coefficients = np.linalg.solve(np.array(at + slope + bend), np.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0]))
    way = np.array([[(k / horizon) ** p for p in powers] for k in range(horizon + 1)]) @ coefficients
    return start + np.outer(way, end - start)


def solve(instruction, picture, state, horizon):
    """The joint path (H + 1, 7) and the step at which the gripper closes, from what a policy sees."""
    colour, side = colour_in(instruction), len(picture)
    centre = search(colour, picture, side // 5)
    end = np.empty(7)
    end[:2] = RESET[:2] + 0.3 * (centre - side / 2) / (side / 2)
    end[2:] = state[2:7] + np.array([0.1, -0.1, 0.1, -0.1, 0.1]) - 0.25 * (state[2:7] - RESET[2:])
    return joint_path(state[:7], end, horizon), (list(HUES).index(colour) + 1) * horizon // 5


def assert_solves(actions, path, closing):
    np.testing.assert_allclose(np.cumsum(actions[:, :7], axis=0) * 0.2, path[1:] - path[0], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(actions[:, 7], np.arange(len(actions)) >= closing)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"squares": 4}, {"side": 16, "squares": 4}, {"horizon": 4, "spread": 0.2}, {"horizon": 32, "side": 100}],
    ids=str,
)
def test_what_a_policy_sees_is_enough_to_act(parameters):
    source = Pointing(12, seed=1, **parameters)
    for index in range(len(source)):
        sample = source[index]
        solution = solve(sample.instruction, sample.views[EXTERIOR], sample.state, source.horizon)
        assert_solves(sample.actions, *solution)


def test_the_same_picture_with_another_instruction_asks_for_other_actions():
    source = Pointing(20, seed=2)
    for index in range(len(source)):
        sample, other = source[index], source.counterfactual(index)
        for role in (EXTERIOR, WRIST):
            np.testing.assert_array_equal(sample.views[role], other.views[role])
        np.testing.assert_array_equal(sample.state, other.state)
        assert colour_in(other.instruction) != colour_in(sample.instruction)
        assert other.instruction.replace(colour_in(other.instruction), colour_in(sample.instruction)) == (
            sample.instruction
        )
        assert_solves(other.actions, *solve(other.instruction, sample.views[EXTERIOR], sample.state, 15))
        assert np.abs(other.actions[:, :2] - sample.actions[:, :2]).max() > 0.01
        assert (other.actions[:, 7] != sample.actions[:, 7]).any()
        named, instead = source.named_and_other(index)
        np.testing.assert_array_equal(named, sample.actions)
        np.testing.assert_array_equal(instead, other.actions)


def test_no_input_can_be_left_out():
    """Samples alike in the square's place still move differently; those alike in the state do, too; so do colours."""
    source = Pointing(200, seed=3)
    samples = [source[index] for index in range(len(source))]
    moved = np.array([sample.actions[:, 0].sum() * 0.2 for sample in samples])
    started = np.array([sample.state[0] for sample in samples])
    places = np.array([search(colour_in(s.instruction), s.views[EXTERIOR], 12)[0] for s in samples])
    same_place, same_start = np.abs(places - 32) <= 2, np.abs(started) < 0.01
    assert min(same_place.sum(), same_start.sum()) > 8
    assert np.ptp(moved[same_place]) > 0.1
    assert np.ptp(moved[same_start]) > 0.3
    closing = {colour_in(sample.instruction): int(sample.actions[:, 7].argmax()) for sample in samples}
    assert closing == {"red": 3, "green": 6, "blue": 9, "yellow": 12}
    assert {sample.instruction.split()[0] for sample in samples} == {"point", "move"}


def test_the_wrist_view_is_the_middle_of_the_scene_enlarged():
    """With noise of its own."""
    source = Pointing(60, seed=4)
    seen = 0
    for index in range(len(source)):
        views = source[index].views
        for colour in HUES:
            outside = pixels_of(colour, views[EXTERIOR])
            middle = outside[16:48, 16:48]
            np.testing.assert_array_equal(pixels_of(colour, views[WRIST]), np.kron(middle, np.ones((2, 2), dtype=bool)))
            seen += middle.any()
        assert (views[WRIST][::2, ::2] != views[EXTERIOR][16:48, 16:48]).mean() > 0.9
    assert seen > 30


def test_a_picture_shows_as_many_squares_as_asked_for():
    for squares in (2, 3, 4):
        picture = Pointing(1, squares=squares)[0].views[EXTERIOR]
        assert sorted(int(pixels_of(colour, picture).sum()) for colour in HUES) == [0] * (4 - squares) + [144] * squares


@pytest.mark.parametrize("horizon", [4, 5, 7, 15])
def test_the_actions_are_within_the_range_of_the_action_space(horizon):
    source = Pointing(2000, horizon=horizon, spread=0.2)
    states, actions = source.states_and_actions()
    assert np.abs(actions[:, :7]).max() <= 1.0
    assert set(np.unique(actions[:, 7])) == {0.0, 1.0}
    assert np.abs(states[:, :7] - RESET).max() <= 0.2
    assert states[:, 7].min() >= 0.0
    assert states[:, 7].max() <= 0.2


def test_a_sample_has_the_types_of_the_protocol():
    source = Pointing(3, views=(WRIST,))
    sample = source[2]
    assert source.action_space is ActionSpace.JOINT_VELOCITY
    assert set(sample.views) == {WRIST}
    assert (sample.views[WRIST].shape, sample.views[WRIST].dtype) == ((64, 64, 3), np.uint8)
    assert (sample.state.shape, sample.state.dtype) == ((8,), np.float64)
    assert (sample.actions.shape, sample.actions.dtype) == ((15, 8), np.float64)
    assert sample.action_mask.tolist() == [True] * 15
    assert Pointing(3, views=())[0].views == {}


def test_states_and_actions_are_those_of_the_samples_and_can_be_normalised():
    source = Pointing(40, horizon=6)
    states, actions = source.states_and_actions()
    np.testing.assert_array_equal(states, [source[index].state for index in range(40)])
    np.testing.assert_array_equal(actions, np.concatenate([source[index].actions for index in range(40)]))
    compute_norm_stats(states, actions)


def assert_equal(left, right):
    assert left.instruction == right.instruction
    for role in (EXTERIOR, WRIST):
        np.testing.assert_array_equal(left.views[role], right.views[role])
    np.testing.assert_array_equal(left.state, right.state)
    np.testing.assert_array_equal(left.actions, right.actions)


def test_an_index_is_the_same_sample_in_any_order_and_process():
    source = Pointing(10, seed=5)
    first = source[7]
    for index in (3, 9, 0):
        source[index]
    assert_equal(source[7], first)
    assert_equal(Pointing(20, seed=5)[7], first)
    np.testing.assert_array_equal(Pointing(10, seed=5, views=(WRIST,))[7].views[WRIST], first.views[WRIST])
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert_equal(pool.submit(operator.getitem, source, 7).result(), first)
        assert pool.submit(operator.attrgetter("fingerprint"), Pointing(10, seed=5)).result() == source.fingerprint
    assert pickle.loads(pickle.dumps(source)).fingerprint == source.fingerprint


def test_samples_and_seeds_differ():
    states = [tuple(Pointing(50, seed=seed)[index].state) for seed in (0, 1, 50) for index in range(50)]
    assert len(set(states)) == 150


@pytest.mark.parametrize(
    "change",
    [
        {"length": 11},
        {"seed": 1},
        {"horizon": 16},
        {"side": 60},
        {"squares": 3},
        {"spread": 0.05},
        {"views": (EXTERIOR,)},
        {"views": (WRIST, EXTERIOR)},
    ],
    ids=str,
)
def test_the_fingerprint_changes_with_the_parameters(change):
    assert Pointing(**({"length": 10} | change)).fingerprint != Pointing(10).fingerprint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0}, "length is 0; give at least 1"),
        ({"seed": -1}, "seed is -1; give at least 0"),
        ({"horizon": 3}, "horizon is 3; give at least 4"),
        ({"side": 12}, "side is 12; give at least 16"),
        ({"side": 30}, "side is 30; give a multiple of 4"),
        ({"squares": 1}, "squares is 1; give 2 to 4"),
        ({"squares": 5}, "squares is 5; give 2 to 4"),
        ({"spread": 0.3}, "spread is 0.3 rad; give 0 to 0.2 rad"),
        ({"spread": math.nan}, "spread is nan"),
        ({"views": (CameraRole.EXTERIOR_2,)}, "views is .*EXTERIOR_2.*; give each of exterior_1, wrist"),
        ({"views": (WRIST, WRIST)}, "views is .*at most once"),
    ],
    ids=str,
)
def test_a_parameter_out_of_range_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        Pointing(**({"length": 5} | change))


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_out_of_range_is_named(index):
    with pytest.raises(IndexError, match=rf"index is {index}; samples are 0 to 4"):
        Pointing(5)[index]
