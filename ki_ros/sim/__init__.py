"""The DROID rig in MuJoCo: physics, cameras, and the pacing of simulated time. Knows no ROS."""

from ki_ros.sim.assets import SimulationUnavailableError
from ki_ros.sim.cameras import CameraSize
from ki_ros.sim.simulated_rig import PhysicsError, SimulatedRig
from ki_ros.sim.trajectory import JointTrajectory

__all__ = ["CameraSize", "JointTrajectory", "PhysicsError", "SimulatedRig", "SimulationUnavailableError"]
