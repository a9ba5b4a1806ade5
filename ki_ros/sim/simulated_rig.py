"""The simulated DROID rig: an arm, a gripper, blocks and cameras behind one small interface."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ki_ros import rig
from ki_ros.rig import NUM_JOINTS, RESET_JOINT_POSITIONS, CameraRole, Robot
from ki_ros.sim import scene
from ki_ros.sim.assets import require_mujoco
from ki_ros.sim.cameras import CameraSize
from ki_ros.sim.control import DAMPING, STIFFNESS, JointSetpoint
from ki_ros.sim.trajectory import JointTrajectory
from ki_ros.sim.variation import Variation, Variator

NANOSECONDS_PER_STEP = round(scene.TIMESTEP * 1e9)
STEPS_PER_SECOND = round(1 / scene.TIMESTEP)

_GRIPPER_CTRL_CLOSED = 255.0
_BLOCK_GAP = 0.075


class PhysicsError(RuntimeError):
    """The physics became unstable; its state means nothing any more."""


class SimulatedRig:
    """A Franka arm with a Robotiq 2F-85 on a table with coloured blocks, in MuJoCo.

    Nothing here knows of wall-clock time or threads: time passes in `step`, and one thread at a time may use the rig.
    Until it is commanded the arm holds DROID's reset pose with the gripper open.

    Args:
        seed: where the blocks lie. Equal seeds and equal commands give equal states, bit by bit.
        robot: the arm whose joint names and limits hold: `rig.PANDA` or `rig.FR3` (drawn as a Panda, too).
        sizes: picture size by camera role; 256x192 for a role that is not given.
        shadows: whether pictures have shadows, which a graphics device hardly feels and a CPU very much.
        gl_backend: what draws them, "osmesa", "egl" or "auto".

    Raises:
        SimulationUnavailableError: mujoco or the robot's model is not installed.
    """

    def __init__(
        self,
        seed: int = 0,
        robot: Robot = rig.PANDA,
        sizes: Mapping[CameraRole, CameraSize] | None = None,
        *,
        shadows: bool = False,
        gl_backend: str = "auto",
    ) -> None:
        require_mujoco()
        import mujoco

        self._mujoco = mujoco
        self.robot = robot
        self._shadows = shadows
        self._gl_backend = gl_backend
        self.sizes = {role: (sizes or {}).get(role, CameraSize()) for role in CameraRole}
        self.model = scene.build(robot, STIFFNESS, DAMPING, shadows=shadows)
        self.data = mujoco.MjData(self.model)
        self._arm_qpos = np.array([self.model.joint(name).qposadr[0] for name in scene.ARM_JOINTS])
        self._arm_dof = np.array([self.model.joint(name).dofadr[0] for name in scene.ARM_JOINTS])
        self._arm_ctrl = np.array([self.model.actuator(name).id for name in scene.ARM_ACTUATORS])
        self._gripper_ctrl = self.model.actuator(scene.GRIPPER_ACTUATOR).id
        self._gripper_qpos = self.model.joint(scene.GRIPPER_DRIVER).qposadr[0]
        self._gripper_dof = self.model.joint(scene.GRIPPER_DRIVER).dofadr[0]
        self._steps = 0
        self._random = np.random.default_rng(seed)
        self._renderer = None
        self._variator = Variator(self.model)
        self.reset()

    # Time

    @property
    def time_ns(self) -> int:
        """Simulated time [ns]; a reset does not turn it back."""
        return self._steps * NANOSECONDS_PER_STEP

    @property
    def steps(self) -> int:
        """Physics steps so far, `STEPS_PER_SECOND` to a simulated second."""
        return self._steps

    def step(self, dt: float = scene.TIMESTEP) -> None:
        """Lets `dt` seconds pass. Raises ValueError unless that is a whole number of physics steps, or PhysicsError."""
        count = round(dt / scene.TIMESTEP) if np.isfinite(dt) else 0
        if count < 1 or abs(count * scene.TIMESTEP - dt) > 1e-9:
            raise ValueError(f"dt must be a whole number of physics steps of {scene.TIMESTEP} s, got {dt!r}")
        self.step_count(count)

    def step_count(self, count: int) -> None:
        """Lets `count` physics steps pass. Raises PhysicsError when the physics became unstable."""
        while count > 0:
            if self._setpoint.settled:
                self._write_control()
                self._mujoco.mj_step(self.model, self.data, count)
                self._steps += count
                count = 0
            else:
                self._setpoint.advance((self._steps + 1) * scene.TIMESTEP)
                self._write_control()
                self._mujoco.mj_step(self.model, self.data)
                self._steps += 1
                count -= 1
        self._refuse_instability()

    def _write_control(self) -> None:
        # The actuator damps q's own velocity; shifting its position command by this much damps the difference to the
        # desired velocity instead, so a trajectory is followed without a lag.
        shift = self._setpoint.feedforward * (DAMPING / STIFFNESS)
        self.data.ctrl[self._arm_ctrl] = self._setpoint.position + shift

    def _refuse_instability(self) -> None:
        warnings = self.data.warning
        kinds = self._mujoco.mjtWarning
        for kind in (kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC):
            if warnings[int(kind)].number:
                raise PhysicsError(f"the physics became unstable at {self.time_ns / 1e9:.3f} s of simulated time")

    # State

    @property
    def joint_positions(self) -> np.ndarray:
        """Measured joint positions, (7,) float64 [rad]."""
        return self.data.qpos[self._arm_qpos]

    @property
    def joint_velocities(self) -> np.ndarray:
        """Measured joint velocities, (7,) float64 [rad/s]."""
        return self.data.qvel[self._arm_dof]

    @property
    def joint_torques(self) -> np.ndarray:
        """Torques of the arm's motors, gravity compensation included, (7,) float64 [N m]."""
        return self.data.qfrc_actuator[self._arm_dof]

    @property
    def gripper_angle(self) -> float:
        """Measured knuckle angle [rad]: 0 open, 0.8 closed."""
        return float(self.data.qpos[self._gripper_qpos])

    @property
    def gripper_velocity(self) -> float:
        """Measured knuckle velocity [rad/s]."""
        return float(self.data.qvel[self._gripper_dof])

    @property
    def desired_positions(self) -> np.ndarray:
        """Desired joint positions of the arm's controller, (7,) float64 [rad]."""
        return self._setpoint.position.copy()

    @property
    def pinch_position(self) -> np.ndarray:
        """Where the fingertips meet, (3,) float64 [m], in the base frame."""
        return self.data.site("pinch").xpos.copy()

    def snapshot(self) -> np.ndarray:
        """A copy of everything that a picture depends on; for `SceneRenderer.render`."""
        return self.data.qpos.copy()

    # Blocks

    @property
    def block_names(self) -> tuple[str, ...]:
        """The blocks, by their colours."""
        return tuple(scene.BLOCK_COLOURS)

    def block_pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Position of its centre (3,) [m] and orientation (4,) as a quaternion w, x, y, z, in the base frame.

        Raises KeyError, which lists the blocks there are.
        """
        qpos = self._block_qpos(name)
        return self.data.qpos[qpos : qpos + 3].copy(), self.data.qpos[qpos + 3 : qpos + 7].copy()

    def set_block_pose(self, name: str, position: np.ndarray, quaternion: np.ndarray = (1.0, 0.0, 0.0, 0.0)) -> None:
        """Puts a block there, at rest. position (3,) [m], quaternion (4,) w, x, y, z; KeyError as `block_pose`."""
        qpos = self._block_qpos(name)
        dof = self.model.joint(scene.block_name(name)).dofadr[0]
        self.data.qpos[qpos : qpos + 3] = position
        self.data.qpos[qpos + 3 : qpos + 7] = np.asarray(quaternion) / np.linalg.norm(quaternion)
        self.data.qvel[dof : dof + 6] = 0.0
        self._mujoco.mj_forward(self.model, self.data)

    def place_area(self, place: np.ndarray | None) -> None:
        """Puts the marked square there: (2,) x and y of its centre [m]; None puts it out of sight."""
        x, y, z = (0.0, 0.0, -2.0 * scene.TABLE_HEIGHT) if place is None else (*place, 0.0)
        self.model.geom(scene.AREA).pos[:] = x, y, z
        self._mujoco.mj_forward(self.model, self.data)
        self._update_renderer()

    def vary(self, variation: Variation) -> None:
        """Changes colours, lights and exterior cameras, starting from the scene as it was built."""
        self._variator.apply(variation)
        self._update_renderer()

    def _update_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.take_looks(self.model)

    def _block_qpos(self, name: str) -> int:
        if name not in scene.BLOCK_COLOURS:
            raise KeyError(f"there is no block {name!r}; there are {', '.join(scene.BLOCK_COLOURS)}")
        return self.model.joint(scene.block_name(name)).qposadr[0]

    # Commands

    def command(self, q: np.ndarray | None = None, gripper_angle: float | None = None) -> None:
        """Commands joint positions q (7,) [rad], a knuckle angle [rad], or both; None leaves it as it was.

        Values beyond the limits are approached as far as the limits allow.

        Raises ValueError, which names the command, for a wrong shape or a value that is not finite; nothing is
        commanded then.
        """
        if q is not None:
            q = self._arm_values(q)
        if gripper_angle is not None:
            angle = np.asarray(gripper_angle, dtype=np.float64)
            if angle.shape != ():
                raise ValueError(f"gripper command: it must be one number, got shape {angle.shape}")
            if not np.isfinite(angle):
                raise ValueError(f"gripper command: not finite: {float(angle)!r}")
            closedness = rig.gripper_closedness(float(angle))
            self.data.ctrl[self._gripper_ctrl] = closedness * _GRIPPER_CTRL_CLOSED
        if q is not None:
            self._setpoint.set_target(q)

    def drive(self, velocities: np.ndarray) -> None:
        """Moves the joints at velocities (7,) [rad/s] until the next command, or to the limits if none comes.

        Raises ValueError as `command`.
        """
        self._setpoint.set_velocity(self._arm_values(velocities))

    def _arm_values(self, values: np.ndarray) -> np.ndarray:
        values = np.array(values, dtype=np.float64)
        if values.shape != (NUM_JOINTS,):
            raise ValueError(f"arm command: it must have shape ({NUM_JOINTS},), got {values.shape}")
        if not np.all(np.isfinite(values)):
            names = [n for n, v in zip(self.robot.joint_names, values, strict=True) if not np.isfinite(v)]
            raise ValueError(f"arm command: not finite for {', '.join(names)}")
        return values

    def follow(self, trajectory: JointTrajectory, start_ns: int | None = None) -> None:
        """Follows a joint trajectory whose zero is at simulated time `start_ns`, now by default.

        It replaces what was commanded before. Raises ValueError when all of it lies in the past.
        """
        start = self.time_ns if start_ns is None else start_ns
        self._setpoint.follow(trajectory, start / 1e9, self.time_ns / 1e9)

    # Reset

    def reset(self, seed: int | None = None, q: np.ndarray | None = None) -> None:
        """Puts the arm at DROID's reset pose, opens the gripper and scatters the blocks anew; time goes on.

        seed: where the blocks lie; None takes the next place of the sequence that the last seed began.
        q: (7,) joint positions to put the arm at instead of the reset pose [rad].
        """
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self._mujoco.mj_resetData(self.model, self.data)
        start = np.array(RESET_JOINT_POSITIONS if q is None else q, dtype=np.float64)
        self._setpoint = JointSetpoint(self.robot, start, scene.TIMESTEP)
        self.data.qpos[self._arm_qpos] = self._setpoint.position
        self._write_control()
        placed: list[np.ndarray] = []
        (x_low, x_high), (y_low, y_high) = scene.BLOCK_AREA
        for name in self.block_names:
            spot = self._random.uniform([x_low, y_low], [x_high, y_high])
            while any(np.linalg.norm(spot - other) < _BLOCK_GAP for other in placed):
                spot = self._random.uniform([x_low, y_low], [x_high, y_high])
            placed.append(spot)
            yaw = self._random.uniform(-np.pi / 4, np.pi / 4)
            qpos = self._block_qpos(name)
            self.data.qpos[qpos : qpos + 3] = [*spot, scene.BLOCK_HALF_SIZE]
            self.data.qpos[qpos + 3 : qpos + 7] = [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
        self._mujoco.mj_forward(self.model, self.data)

    # Pictures

    def render(self, role: CameraRole | str) -> np.ndarray:
        """What that camera sees now: (H, W, 3) uint8 RGB.

        The first call makes the graphics context, which belongs to the thread that made it.
        """
        if self._renderer is None:
            self._renderer = self.make_renderer()
        return self._renderer.render(CameraRole(role), self.snapshot())

    def make_renderer(self):
        """A `SceneRenderer` of this rig for the thread that calls, which must also close it."""
        from ki_ros.sim.render import SceneRenderer

        return SceneRenderer(self.model, self.sizes, shadows=self._shadows, backend=self._gl_backend)

    def close(self) -> None:
        """Frees the graphics context, if there is one; from the thread that rendered."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
