import math

import numpy as np
import pytest

from ki_ros.rig import FR3, GRIPPER_CLOSED_ANGLE, PANDA, RESET_JOINT_POSITIONS
from ki_ros.sim import JointTrajectory, SimulatedRig
from ki_ros.sim.scene import BLOCK_AREA, BLOCK_HALF_SIZE

RESET = np.array(RESET_JOINT_POSITIONS)
BENT = RESET + np.array([0.4, 0.2, -0.3, 0.3, 0.4, -0.3, 0.5])


def test_it_holds_the_reset_pose_until_it_is_commanded(simulated):
    simulated.step(3.0)
    np.testing.assert_allclose(simulated.joint_positions, RESET, atol=1e-4)
    np.testing.assert_allclose(simulated.joint_velocities, 0.0, atol=1e-4)
    assert simulated.gripper_angle < 0.01


def test_it_reaches_a_commanded_position(simulated):
    simulated.command(BENT)
    simulated.step(1.5)
    np.testing.assert_allclose(simulated.joint_positions, BENT, atol=2e-3)


def test_it_follows_a_trajectory_closely(simulated):
    trajectory = JointTrajectory([1.0, 2.0], np.stack([BENT, RESET]), np.stack([np.full(7, 0.1), np.zeros(7)]))
    simulated.follow(trajectory)
    errors = []
    for _ in range(220):
        simulated.step(0.01)
        errors.append(np.abs(simulated.joint_positions - simulated.desired_positions).max())
    assert max(errors) < 0.02
    np.testing.assert_allclose(simulated.joint_positions, RESET, atol=5e-3)


def test_a_stream_of_positions_is_followed_with_a_small_lag(simulated):
    errors = []
    for step in range(200):
        wave = 0.2 * math.sin(2 * math.pi * 0.5 * step / 100)
        simulated.command(RESET + wave)
        simulated.step(0.01)
        errors.append(np.abs(simulated.joint_positions - RESET - wave).max())
    assert max(errors) < 0.08


def test_a_velocity_stays_in_force_until_the_next_one(simulated):
    speed = np.array([0.2, -0.1, 0.2, 0.1, -0.2, 0.1, 0.3])
    simulated.drive(speed)
    simulated.step(1.0)
    np.testing.assert_allclose(simulated.joint_positions, RESET + speed, atol=0.01)
    simulated.drive(np.zeros(7))
    simulated.step(1.0)
    np.testing.assert_allclose(simulated.joint_positions, RESET + speed, atol=0.01)
    np.testing.assert_allclose(simulated.joint_velocities, 0.0, atol=1e-3)
    for wrong in (np.zeros(6), np.full(7, np.inf)):
        with pytest.raises(ValueError, match="arm command"):
            simulated.drive(wrong)


def test_speed_stays_below_the_arm_s(simulated):
    simulated.command(BENT + np.array([1.0, 0, 0, 0, -1.0, 0, 1.0]))
    fastest = np.zeros(7)
    for _ in range(300):
        simulated.step(0.005)
        fastest = np.maximum(fastest, np.abs(simulated.joint_velocities))
    assert np.all(fastest < 1.1 * PANDA.velocity)
    assert fastest.max() > 1.0


@pytest.mark.usefixtures("physics")
@pytest.mark.parametrize("robot", [PANDA, FR3], ids=lambda robot: robot.name)
def test_extreme_commands_never_take_a_joint_out_of_its_limits(robot):
    simulated = SimulatedRig(seed=3, robot=robot)
    assert simulated.robot is robot
    # All joints one way, the other way, and back: into every stop, the table and the arm itself.
    for value in (100.0, -100.0, 1e9):
        simulated.command(np.full(7, value), value)
        for _ in range(500):
            simulated.step(0.005)
            assert np.all(simulated.joint_positions > robot.position_lower)
            assert np.all(simulated.joint_positions < robot.position_upper)


def test_the_gripper_closes_opens_and_is_read_back(simulated):
    simulated.command(gripper_angle=GRIPPER_CLOSED_ANGLE)
    simulated.step(1.5)
    assert simulated.gripper_angle == pytest.approx(GRIPPER_CLOSED_ANGLE, abs=0.03)
    simulated.command(gripper_angle=0.4)
    simulated.step(1.5)
    assert simulated.gripper_angle == pytest.approx(0.4, abs=0.03)
    simulated.command(gripper_angle=-3.0)
    simulated.step(1.5)
    assert simulated.gripper_angle == pytest.approx(0.0, abs=0.03)
    np.testing.assert_allclose(simulated.joint_positions, RESET, atol=1e-3)


def test_a_closing_gripper_stops_at_a_block_and_holds_it(simulated):
    simulated.command(gripper_angle=GRIPPER_CLOSED_ANGLE)
    height = simulated.pinch_position[2]
    # A hand holds the block between the fingers until they have it.
    for _ in range(40):
        simulated.set_block_pose("red", [*simulated.pinch_position[:2], height])
        simulated.step(0.01)
    simulated.step(1.0)
    assert 0.1 < simulated.gripper_angle < 0.6
    assert simulated.block_pose("red")[0][2] == pytest.approx(height, abs=0.03)


def test_equal_seeds_give_equal_states_bit_by_bit(simulated):
    def run(seed):
        simulated.reset(seed)
        start = simulated.snapshot()
        simulated.command(BENT, 0.5)
        simulated.step(0.5)
        return start, simulated.snapshot()

    first, again, other = run(5), run(5), run(6)
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_a_new_rig_of_a_seed_equals_one_that_is_reset_to_it(simulated):
    simulated.command(BENT)
    simulated.step(0.3)
    simulated.reset(seed=7)
    assert np.array_equal(SimulatedRig(seed=7).snapshot(), simulated.snapshot())


def test_resets_without_a_seed_go_through_its_sequence(simulated):
    places = []
    for _ in range(2):
        simulated.reset(seed=4)
        simulated.reset()
        places.append(simulated.snapshot())
    simulated.reset()
    assert np.array_equal(*places)
    assert not np.array_equal(places[0], simulated.snapshot())


@pytest.mark.parametrize("seed", range(5))
def test_blocks_lie_still_and_apart_where_they_should(simulated, seed):
    simulated.reset(seed)
    before = {name: simulated.block_pose(name)[0] for name in simulated.block_names}
    simulated.step(1.0)
    for name, place in before.items():
        position, _ = simulated.block_pose(name)
        np.testing.assert_allclose(position, place, atol=2e-3)
        assert position[2] == pytest.approx(BLOCK_HALF_SIZE, abs=2e-3)
        for value, (low, high) in zip(position[:2], BLOCK_AREA, strict=True):
            assert low - 0.01 <= value <= high + 0.01


def test_time_goes_on_over_a_reset(simulated):
    begin = simulated.time_ns
    simulated.step(0.25)
    simulated.reset()
    simulated.step(0.001)
    assert simulated.time_ns == begin + 251_000_000


@pytest.mark.parametrize("dt", [0.0, -0.001, 0.0005, 0.0015, float("nan")])
def test_a_fraction_of_a_step_is_refused(simulated, dt):
    with pytest.raises(ValueError, match="dt must be a whole number of physics steps"):
        simulated.step(dt)


@pytest.mark.parametrize(
    ("q", "angle", "message"),
    [
        (np.zeros(6), None, r"arm command: it must have shape \(7,\), got \(6,\)"),
        (np.zeros((1, 7)), None, "arm command: it must have shape"),
        ([0, 0, float("nan"), 0, 0, 0, float("inf")], None, "arm command: not finite for panda_joint3, panda_joint7"),
        (None, float("nan"), "gripper command: not finite"),
        (None, [0.1, 0.2], "gripper command: it must be one number"),
        (BENT, float("inf"), "gripper command: not finite"),
    ],
)
def test_a_bad_command_is_refused_by_name_and_changes_nothing(simulated, q, angle, message):
    with pytest.raises(ValueError, match=message):
        simulated.command(q, angle)
    simulated.step(0.2)
    np.testing.assert_allclose(simulated.joint_positions, RESET, atol=1e-4)
    assert simulated.gripper_angle < 0.01


def test_an_unknown_block_is_refused_with_the_names_there_are(simulated):
    with pytest.raises(KeyError, match="no block 'pink'; there are red, green"):
        simulated.block_pose("pink")
