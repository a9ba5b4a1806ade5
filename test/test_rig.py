"""Facts of the rig that more than one part relies on. The limits themselves are checked in test/execution."""

from __future__ import annotations

import numpy as np
import pytest

from ki_ros import rig


def test_gripper_conversions_are_inverse():
    for closedness in np.linspace(0, 1, 11):
        assert rig.gripper_closedness(rig.gripper_angle(closedness)) == pytest.approx(closedness)
    assert rig.gripper_closedness(-0.01) == 0.0
    assert rig.gripper_closedness(0.9) == 1.0


@pytest.mark.parametrize("name", ["panda", "fr3"])
def test_robots(name):
    robot = rig.robot(name)
    assert robot.state_names == (*(f"{name}_joint{i}" for i in range(1, 8)), "robotiq_85_left_knuckle_joint")
    for limits in (robot.position_lower, robot.position_upper, robot.velocity, robot.acceleration, robot.jerk):
        assert limits.shape == (7,)
        assert limits.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            limits[0] = 0
    assert np.all(robot.position_lower < robot.position_upper)


def test_the_reset_pose_is_inside_of_every_robots_limits():
    for robot in rig.ROBOTS.values():
        q = np.array(rig.RESET_JOINT_POSITIONS)
        assert np.all((q > robot.position_lower + 0.05) & (q < robot.position_upper - 0.05))


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="panda, fr3"):
        rig.robot("ur5")
    with pytest.raises(ValueError, match="joint_velocity, joint_position"):
        rig.ActionSpace.parse("torque")
