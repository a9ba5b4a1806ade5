import numpy as np
import pytest

from ki_ros.rig import PANDA, RESET_JOINT_POSITIONS
from ki_ros.sim.kinematics import Kinematics, UnreachableError

RESET = np.array(RESET_JOINT_POSITIONS)


@pytest.fixture(scope="module")
def kinematics(_shared_rig):
    return Kinematics(_shared_rig.model, PANDA.position_lower, PANDA.position_upper)


def test_the_fingertips_are_where_the_physics_has_them(simulated, kinematics):
    simulated.command(RESET + 0.2)
    simulated.step(1.0)
    position, _ = kinematics.pinch(simulated.joint_positions)
    np.testing.assert_allclose(position, simulated.pinch_position, atol=1e-6)


@pytest.mark.parametrize("place", [(0.36, -0.2, 0.05), (0.5, 0.0, 0.3), (0.62, 0.22, 0.02)])
@pytest.mark.parametrize("yaw", [-0.7, 0.0, 0.7])
def test_the_arm_goes_where_the_answer_says(simulated, kinematics, place, yaw):
    q = kinematics.solve(np.array(place), yaw)
    assert np.all(q > PANDA.position_lower)
    assert np.all(q < PANDA.position_upper)
    simulated.reset(q=q)
    np.testing.assert_allclose(simulated.pinch_position, place, atol=1.5e-3)
    rotation = simulated.data.site("pinch").xmat.reshape(3, 3)
    np.testing.assert_allclose(rotation[:, 2], [0, 0, -1], atol=0.02)
    np.testing.assert_allclose(rotation[:2, 0], [np.cos(yaw), np.sin(yaw)], atol=0.02)


def test_the_answer_does_not_depend_on_the_way_there(kinematics):
    place = np.array([0.55, 0.15, 0.1])
    far = kinematics.solve(np.array([0.38, -0.22, 0.3]))
    np.testing.assert_allclose(kinematics.solve(place), kinematics.solve(place, start=far), atol=1e-3)


def test_a_place_out_of_reach_is_refused_with_what_is_missing(kinematics):
    with pytest.raises(UnreachableError, match=r"out of reach by \d+ mm"):
        kinematics.solve(np.array([1.3, 0.0, 0.1]))
