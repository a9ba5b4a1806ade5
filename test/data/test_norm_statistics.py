"""Statistics against those that ship, against order statistics by hand, and dimensions that do not move."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from statistics_by_hand import by_hand

from ki_ros.data.chunks import DroidChunks
from ki_ros.data.statistics import compute_norm_stats
from ki_ros.model.normalize import NormStats
from ki_ros.rig import ActionSpace

KEYS = ("mean", "std", "q01", "q99")


def rows(count=50, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 8))


def test_the_shipped_statistics_come_from_the_sixty_episodes(test_data):
    """They are rounded to six decimals."""
    source = DroidChunks(test_data / "droid_100", range(60), action_space=ActionSpace.JOINT_VELOCITY, views=())
    states, actions = source.states_and_actions()
    assert (len(states), len(actions)) == (18538, 18538 - 60)
    computed = compute_norm_stats(states, actions)["norm_stats"]
    untrained = Path(__file__).parents[2] / "models" / "ki_tiny" / "untrained"
    shipped = json.loads((untrained / "norm_stats.json").read_text())
    for name in ("state", "actions"):
        for key in KEYS:
            np.testing.assert_allclose(computed[name][key], shipped["norm_stats"][name][key], rtol=0, atol=5.1e-7)


def test_positions_of_real_episodes_by_definition(test_data):
    numbers = (3, 21)
    source = DroidChunks(test_data / "droid_100", numbers, action_space=ActionSpace.JOINT_POSITION, views=())
    computed = compute_norm_stats(*source.states_and_actions())["norm_stats"]
    episodes = [
        np.load(test_data / "droid_100" / f"episode_{number:03d}.npz")["state"].astype(float) for number in numbers
    ]
    for name, first in (("state", 0), ("actions", 1)):
        for dim in range(8):
            expected = by_hand([float(row[dim]) for states in episodes for row in states[first:]])
            assert {key: computed[name][key][dim] for key in KEYS} == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("count", [2, 3, 100, 101])
def test_few_rows_by_definition(count):
    values = rows(count)
    computed = compute_norm_stats(values, 2 * values)["norm_stats"]
    for name, scale in (("state", 1), ("actions", 2)):
        for dim in range(8):
            expected = by_hand((scale * values[:, dim]).tolist())
            assert {key: computed[name][key][dim] for key in KEYS} == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_a_policy_reads_what_is_written(tmp_path):
    computed = compute_norm_stats(rows(seed=1), rows(seed=2))
    file = tmp_path / "norm_stats.json"
    file.write_text(json.dumps(computed))
    stats = NormStats.load(file)
    for name in ("state", "actions"):
        for key in ("q01", "q99"):
            np.testing.assert_array_equal(getattr(getattr(stats, name), key), computed["norm_stats"][name][key])


@pytest.mark.parametrize(("name", "dim", "part"), [("state", 7, "the gripper"), ("actions", 3, "joint 4")])
def test_a_dimension_that_does_not_move_is_named(name, dim, part):
    arrays = {"state": rows(), "actions": rows()}
    arrays[name][:, dim] = 0.25
    with pytest.raises(ValueError, match=rf"{name}\[{dim}\], {part}, does not move: .*0.25; .*minimum_range"):
        compute_norm_stats(arrays["state"], arrays["actions"])


def test_a_minimum_range_widens_about_the_middle_and_nothing_else():
    states = rows()
    states[:, 7] = 0.25
    states[:, 2] *= 1e-3
    plain = compute_norm_stats(rows(), rows())["norm_stats"]
    computed = compute_norm_stats(states, rows(), minimum_range=0.1)["norm_stats"]
    assert (computed["state"]["q01"][7], computed["state"]["q99"][7]) == pytest.approx((0.2, 0.3))
    assert computed["state"]["q99"][2] - computed["state"]["q01"][2] == pytest.approx(0.1)
    middle = by_hand(states[:, 2].tolist())
    assert computed["state"]["q99"][2] + computed["state"]["q01"][2] == pytest.approx(middle["q01"] + middle["q99"])
    assert (computed["state"]["mean"][7], computed["state"]["std"][7]) == (0.25, 0.0)
    for dim in (0, 1, 3, 4, 5, 6):
        assert all(computed["state"][key][dim] == plain["state"][key][dim] for key in KEYS)
    assert computed["actions"] == plain["actions"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named(value):
    actions = rows()
    actions[4, 6] = value
    with pytest.raises(ValueError, match=rf"actions\[4, 6\] is {value} \(1 of 400 are not finite\)"):
        compute_norm_stats(rows(), actions)


@pytest.mark.parametrize("shape", [(0, 8), (8,), (5, 7), (5, 15, 8)])
def test_a_wrong_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"state has shape .*; give \(N, 8\)"):
        compute_norm_stats(np.zeros(shape), rows())


@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf])
def test_a_minimum_range_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="minimum_range is"):
        compute_norm_stats(rows(), rows(), minimum_range=value)
