"""The workspace against positions from MuJoCo and boxes that are searched point by point."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ki_ros.execution.workspace import WorkspaceBox
from ki_ros.kinematics import TOOL_OFFSET, flange, tool_point
from ki_ros.rig import PANDA, RESET_JOINT_POSITIONS
from ki_ros.sim import SimulatedRig, SimulationUnavailableError
from ki_ros.sim.kinematics import Kinematics

RESET = np.array(RESET_JOINT_POSITIONS)
WIDE = ((-2.0, -2.0, -2.0), (2.0, 2.0, 2.0))
INF = math.inf


def some_positions(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(PANDA.position_lower, PANDA.position_upper, (count, 7))


@pytest.fixture(scope="module")
def simulated():
    try:
        rig = SimulatedRig(seed=0)
    except SimulationUnavailableError as error:
        pytest.skip(str(error))
    yield rig
    rig.close()


def test_fingertips_over_the_edge_of_a_table_are_as_far_outside_as_they_were_put(simulated):
    kinematics = Kinematics.of(simulated)
    box = WorkspaceBox((0.3, -0.3, 0.02), (0.6, 0.3, 0.6))
    for place, expected in (
        ((0.45, 0.0, 0.1), 0.0),
        ((0.3, -0.3, 0.02), 0.0),
        ((0.65, 0.0, 0.1), 0.05),
        ((0.45, 0.34, 0.1), 0.04),
        ((0.63, 0.34, 0.1), 0.05),
        ((0.45, 0.0, -0.01), 0.03),
    ):
        assert box.outside(kinematics.solve(np.array(place))) == pytest.approx(expected, abs=1.5e-3)


def test_the_flange_is_kept_in_the_box_too():
    hand = flange(RESET)[:3, 3]
    below_flange = WorkspaceBox((0, -1, 0), (1, 1, hand[2] - 0.03))
    assert below_flange.outside(RESET) == pytest.approx(0.03)
    around_flange = WorkspaceBox(hand - 0.1, hand + 0.2)
    assert around_flange.outside(RESET) == pytest.approx(TOOL_OFFSET - 0.1)


def test_the_distance_is_that_to_the_nearest_point_of_the_box():
    lower, upper = np.array([0.1, -0.2, 0.0]), np.array([0.4, 0.3, 0.35])
    steps = [np.linspace(low, high, 41) for low, high in zip(lower, upper, strict=True)]
    inside = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
    spacing = np.linalg.norm((upper - lower) / 40) / 2
    q = some_positions(60)
    outside = WorkspaceBox(lower, upper).outside(q)
    for positions, distance in zip(q, outside, strict=True):
        farthest = 0.0
        for point in (tool_point(positions), flange(positions)[:3, 3]):
            if not (np.all(point >= lower) and np.all(point <= upper)):
                farthest = max(farthest, np.linalg.norm(inside - point, axis=1).min())
        assert distance <= farthest + 1e-12
        assert distance >= farthest - spacing


@pytest.mark.parametrize("nothing", [math.nan, INF])
def test_a_side_without_a_limit_limits_nothing(nothing):
    q = some_positions(500)
    free = WorkspaceBox([-nothing] * 3, [nothing] * 3)
    np.testing.assert_array_equal(free.outside(q), 0.0)
    floor = WorkspaceBox((-nothing, -nothing, 0.1), (nothing,) * 3)
    heights = np.minimum(tool_point(q)[:, 2], flange(q)[:, 2, 3])
    np.testing.assert_allclose(floor.outside(q), np.clip(0.1 - heights, 0, None), atol=1e-12)
    assert not np.isnan(floor.lower).any()


def test_a_longer_tool_sticks_out_further():
    box = WorkspaceBox((-1, -1, tool_point(RESET)[2]), (1, 1, 1))
    assert box.outside(RESET) == pytest.approx(0.0, abs=1e-12)
    longer = WorkspaceBox(box.lower, box.upper, tool_offset=TOOL_OFFSET + 0.018)
    assert longer.outside(RESET) == pytest.approx(0.018)


def test_the_table_keeps_every_mesh_above_it(simulated):
    """No vertex of elbow, forearm, wrist or palm is further below the table than is said, and none is nearer to it by
    more than a capsule, or the camera, reaches beyond them."""
    model, data = simulated.model, simulated.data
    parts = [*(f"link{i}" for i in range(3, 8)), "base_mount"]
    for q in some_positions(100, seed=1):
        simulated.reset(q=q)
        lowest = INF
        for geom in range(model.ngeom):
            if model.body(model.geom_bodyid[geom]).name in parts:
                mesh = model.geom_dataid[geom]
                first = model.mesh_vertadr[mesh]
                vertices = model.mesh_vert[first : first + model.mesh_vertnum[mesh]]
                heights = vertices @ data.geom_xmat[geom].reshape(3, 3)[2] + data.geom_xpos[geom][2]
                lowest = min(lowest, heights.min())
        below = WorkspaceBox(*WIDE, table=0.3).outside(simulated.joint_positions)
        assert below >= 0.3 - lowest - 1e-6
        assert below <= max(0.3 - lowest + 0.1, 0.0)


def test_a_low_elbow_is_seen_by_the_table_and_not_by_the_box():
    elbow_down = np.array([0.0, 1.7, 0.0, -0.3, 0.0, 3.0, 0.0])
    assert WorkspaceBox(*WIDE).outside(elbow_down) == 0.0
    assert WorkspaceBox(*WIDE, table=math.nan).outside(elbow_down) == 0.0
    assert WorkspaceBox(*WIDE, table=0.25).outside(elbow_down) > 0.05
    assert WorkspaceBox(*WIDE, table=0.0).outside(RESET) == 0.0


def test_fingers_may_touch_the_table(simulated):
    q = Kinematics.of(simulated).solve(np.array([0.5, 0.1, 0.005]))
    assert WorkspaceBox((0, -1, 0), (1, 1, 1), table=0.0).outside(q) == 0.0


@pytest.mark.parametrize("table", [-INF, 0.2])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2)])
def test_batches_are_their_parts(shape, table):
    box = WorkspaceBox((0.2, -0.3, 0.0), (0.7, 0.3, 0.5), table=table)
    q = some_positions(math.prod(shape), seed=2).reshape(*shape, 7)
    outside = box.outside(q)
    assert outside.shape == shape
    assert np.asarray(outside).dtype == np.float64
    for index in np.ndindex(shape):
        assert outside[index] == pytest.approx(float(box.outside(q[index])), abs=1e-12)


@pytest.mark.parametrize("table", [-INF, 0.2])
def test_what_is_not_finite_is_nowhere(table):
    q = np.tile(RESET, (2, 1))
    q[1, 3] = np.nan
    outside = WorkspaceBox([-INF] * 3, [INF] * 3, table=table).outside(q)
    assert np.isfinite(outside[0])
    assert np.isnan(outside[1])


def test_corners_are_kept_as_they_were_given():
    lower = np.array([0.0, 0.0, 0.0])
    box = WorkspaceBox(lower, (1, 1, 1))
    lower[:] = 5.0
    np.testing.assert_array_equal(box.lower, 0.0)
    with pytest.raises(ValueError, match="read-only"):
        box.lower[0] = 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lower": (0, 0)}, r"lower has shape \(2,\); expected \(3,\)"),
        ({"upper": 1.0}, r"upper has shape \(\); expected \(3,\)"),
        ({"lower": (0, 1, 0)}, r"lower y is 1\.0 m and upper y is 1\.0 m; lower must be less"),
        ({"lower": (0, 0, 2)}, r"lower z is 2\.0 m and upper z is 1\.0 m"),
        ({"lower": (INF, 0, 0), "upper": (INF, 1, 1)}, r"lower x is inf"),
        ({"upper": (1, 1, -INF)}, r"upper z is -inf"),
        ({"tool_offset": -0.01}, r"tool_offset is -0\.01 m; expected 0 to 0\.5"),
        ({"tool_offset": 1.5}, r"tool_offset is 1\.5 m"),
        ({"tool_offset": math.nan}, r"tool_offset is nan m"),
        ({"table": INF}, r"table is inf m"),
    ],
)
def test_a_box_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WorkspaceBox(**{"lower": (0, 0, 0), "upper": (1, 1, 1)} | arguments)


def test_other_shapes_of_q_are_refused():
    with pytest.raises(ValueError, match="q has shape"):
        WorkspaceBox(*WIDE).outside(np.zeros(6))
