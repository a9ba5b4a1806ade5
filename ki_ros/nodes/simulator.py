"""Node `simulator`: the DROID rig in MuJoCo behind the topics of the real drivers and controllers.

Publishes images, joint states, the gripper's state and /clock; takes joint positions, trajectories, targets and
velocities, and gripper commands; `~/reset` puts arm and blocks back. Simulated time passes in real time where the
machine allows it, else slower, and every picture of every camera is published.
"""

from __future__ import annotations

import array
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import cv2
import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock as ClockMessage
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory as JointTrajectoryMessage

from ki_ros import rig, sim
from ki_ros.nodes.arrays import doubles
from ki_ros.nodes.diagnostics import ERROR, OK, WARN, Diagnostics, Report
from ki_ros.nodes.parameters import declare, parameter
from ki_ros.nodes.run import run
from ki_ros.nodes.stamps import NANOSECONDS, from_message, to_message
from ki_ros.nodes.topics import COMMAND_QOS, SENSOR_QOS
from ki_ros.rig import CameraRole
from ki_ros.sim import pacing
from ki_ros.sim.kinematics import Kinematics
from ki_ros.sim.runner import Runner, RunnerOptions
from ki_ros.sim.tasks import Layout, Task, draw_layout

_STATE_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=10, reliability=ReliabilityPolicy.RELIABLE)
_RESET_SECONDS = 2.0

_LOOKS = 5
"""Seconds after the start in which the node looks for a rig beside it; discovery takes less."""


@dataclass
class Exterior1Parameters:
    """The camera over the robot's left shoulder."""

    topic: str = parameter("/camera/exterior_1/image_raw", "Topic of its images")
    frame_id: str = parameter("exterior_1_optical_frame", "Frame in the images' headers")
    offset: float = parameter(0.0, "Time by which it exposes later than the period's beginning [s]", low=0.0, high=1.0)
    width: int = parameter(sim.CameraSize.width, "Width of its images [pixels]", low=16, high=1920)
    height: int = parameter(sim.CameraSize.height, "Height of its images [pixels]", low=16, high=1080)


@dataclass
class Exterior2Parameters(Exterior1Parameters):
    """The camera over the robot's right shoulder."""

    topic: str = parameter("/camera/exterior_2/image_raw", "Topic of its images")
    frame_id: str = parameter("exterior_2_optical_frame", "Frame in the images' headers")


@dataclass
class WristParameters(Exterior1Parameters):
    """The camera on the gripper."""

    topic: str = parameter("/camera/wrist/image_raw", "Topic of its images")
    frame_id: str = parameter("wrist_optical_frame", "Frame in the images' headers")


@dataclass
class Parameters:
    """Parameters of the node."""

    exterior_1: Exterior1Parameters
    exterior_2: Exterior2Parameters
    wrist: WristParameters
    robot: str = parameter("panda", "Whose joint names and limits hold", choices=tuple(rig.ROBOTS))
    seed: int = parameter(0, "Where the blocks lie at the start", low=0)
    scene: str = parameter(
        "",
        "Scene of a simulated task, drawn by the seed: three blocks, the marked area, looks that vary; empty: five "
        "blocks, scattered",
        choices=("", *(task.value for task in Task)),
    )
    camera_rate: float = parameter(15.0, "Images of each camera a second", low=0.1, high=120.0)
    state_rate: float = parameter(200.0, "Joint states a second", low=1.0, high=1000.0)
    clock_rate: float = parameter(200.0, "Messages on /clock a second", low=10.0, high=1000.0)
    max_real_time_factor: float = parameter(1.0, "Simulated time passes at most this fast", low=0.05, high=10.0)
    encoding: str = parameter(
        "rgb8",
        "rgb8: sensor_msgs/Image; jpeg: sensor_msgs/CompressedImage on the topic with /compressed behind it",
        choices=("rgb8", "jpeg"),
    )
    jpeg_quality: int = parameter(90, "Quality of JPEG images", low=1, high=100)
    shadows: bool = parameter(False, "Draw shadows; without a graphics device a picture takes seven times as long")
    gl_backend: str = parameter(
        "auto",
        "What draws: auto takes MUJOCO_GL, else a graphics device, else the CPU",
        choices=("auto", "osmesa", "egl"),
    )
    joint_states_topic: str = parameter("/joint_states", "Topic of the arm's state")
    gripper_states_topic: str = parameter("/gripper/joint_states", "Topic of the gripper's state")
    arm_command_topic: str = parameter(
        "/forward_position_controller/commands", "Topic of joint position commands (seven) [rad]"
    )
    trajectory_topic: str = parameter(
        "/joint_trajectory_controller/joint_trajectory", "Topic of joint trajectories for the arm"
    )
    target_joint_topic: str = parameter("/target_joint", "Topic of joint targets, of which the positions count [rad]")
    velocity_command_topic: str = parameter(
        "/forward_velocity_controller/commands", "Topic of joint velocities (seven) [rad/s]; the last stays in force"
    )
    gripper_command_topic: str = parameter(
        "/gripper_position_controller/commands", "Topic of gripper commands: the knuckle's angle [rad]"
    )


class SimulatorNode(Node):
    """Publishes what the rig does from the rig's threads; commands come in through the executor's thread."""

    def __init__(self) -> None:
        super().__init__("simulator")
        self._p = p = declare(self, Parameters)
        self._robot = rig.robot(p.robot)
        self._refused = 0
        self._last_refusal = ""
        self._failure: Exception | None = None
        self._runner: Runner | None = None
        self._looks = 0
        self._create_publishers()
        simulated = sim.SimulatedRig(
            p.seed,
            self._robot,
            {role: sim.CameraSize(camera.width, camera.height) for role, camera in self._cameras.items()},
            shadows=p.shadows,
            gl_backend=p.gl_backend,
        )
        self._layout = self._place_scene(simulated) if p.scene else None
        options = RunnerOptions(
            clock_rate=p.clock_rate,
            state_rate=p.state_rate,
            camera_rate=p.camera_rate,
            camera_offsets={role: camera.offset for role, camera in self._cameras.items()},
            pacing=pacing.PacingOptions(max_factor=p.max_real_time_factor),
        )
        # A failure in the rig's threads ends the node in the executor's thread, where the process can end properly.
        self._failed = self.create_guard_condition(self._raise_failure)
        self._runner = Runner(simulated, self, options)
        self._runner.start()
        try:
            self._create_inputs()
            self._create_reports()
        except BaseException:
            # A signal may end the context meanwhile; no thread may be left behind then.
            self._runner.stop()
            raise
        self.get_logger().info(
            f"simulating a {self._robot.name}: cameras {self._sizes()} at {p.camera_rate:g} Hz, "
            f"joint states at {p.state_rate:g} Hz, seed {p.seed}"
        )

    def _place_scene(self, simulated: sim.SimulatedRig) -> Layout:
        """Makes the task's scene, before anybody looks at it."""
        layout = draw_layout(Task(self._p.scene), self._p.seed, Kinematics.of(simulated))
        layout.place(simulated)
        self.get_logger().info(f"the scene is that of {layout.instruction!r}")
        return layout

    def destroy_node(self) -> None:
        if self._runner is not None:
            self._runner.stop()
        super().destroy_node()

    @property
    def _cameras(self) -> dict[CameraRole, Exterior1Parameters]:
        return {role: getattr(self._p, role.value) for role in CameraRole}

    def _sizes(self) -> str:
        return ", ".join(f"{role.value} {c.width}x{c.height}" for role, c in self._cameras.items())

    def _create_publishers(self) -> None:
        p = self._p
        if p.encoding == "jpeg":
            self._image_publishers = {
                role: self.create_publisher(CompressedImage, f"{camera.topic}/compressed", SENSOR_QOS)
                for role, camera in self._cameras.items()
            }
        else:
            self._image_publishers = {
                role: self.create_publisher(Image, camera.topic, SENSOR_QOS) for role, camera in self._cameras.items()
            }
        self._clock_publisher = self.create_publisher(ClockMessage, "/clock", _STATE_QOS)
        self._joint_publisher = self.create_publisher(JointState, p.joint_states_topic, _STATE_QOS)
        self._gripper_publisher = self.create_publisher(JointState, p.gripper_states_topic, _STATE_QOS)

    def _create_inputs(self) -> None:
        p = self._p
        self._inputs = [
            self.create_subscription(Float64MultiArray, p.arm_command_topic, self._on_arm_command, COMMAND_QOS),
            self.create_subscription(Float64MultiArray, p.gripper_command_topic, self._on_gripper_command, COMMAND_QOS),
            self.create_subscription(JointTrajectoryMessage, p.trajectory_topic, self._on_trajectory, COMMAND_QOS),
            self.create_subscription(JointState, p.target_joint_topic, self._on_target_joint, COMMAND_QOS),
            self.create_subscription(Float64MultiArray, p.velocity_command_topic, self._on_velocities, COMMAND_QOS),
        ]
        self._reset_service = self.create_service(Trigger, "~/reset", self._on_reset)

    def _create_reports(self) -> None:
        self._pace_report = pacing.PaceReport()
        self._pace_timer = self.create_timer(1.0, self._say_pace, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._diagnostics = Diagnostics(
            self, {"pace": self._report_pace, "cameras": self._report_cameras, "commands": self._report_commands}
        )

    # What the rig does: called in its threads

    def on_clock(self, time_ns: int) -> None:
        self._clock_publisher.publish(ClockMessage(clock=to_message(time_ns)))

    def on_state(self, simulated: sim.SimulatedRig) -> None:
        message = JointState()
        message.header.stamp = to_message(simulated.time_ns)
        message.name = list(self._robot.joint_names)
        message.position = doubles(simulated.joint_positions)
        message.velocity = doubles(simulated.joint_velocities)
        message.effort = doubles(simulated.joint_torques)
        self._joint_publisher.publish(message)
        gripper = JointState()
        gripper.header.stamp = message.header.stamp
        gripper.name = [rig.GRIPPER_JOINT]
        gripper.position = array.array("d", [simulated.gripper_angle])
        gripper.velocity = array.array("d", [simulated.gripper_velocity])
        self._gripper_publisher.publish(gripper)

    def on_image(self, role: CameraRole, time_ns: int, pixels: np.ndarray) -> None:
        if self._p.encoding == "jpeg":
            message = CompressedImage(format="rgb8; jpeg compressed bgr8")
            quality = [cv2.IMWRITE_JPEG_QUALITY, self._p.jpeg_quality]
            _, encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), quality)
            message.data = array.array("B", encoded.tobytes())
        else:
            height, width, _ = pixels.shape
            message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
            message.data = array.array("B", pixels.tobytes())
        message.header.stamp = to_message(time_ns)
        message.header.frame_id = self._cameras[role].frame_id
        self._image_publishers[role].publish(message)

    def on_failure(self, error: Exception) -> None:
        # Once the context is shut down nothing can be published, and the node is about to end anyway.
        if self.context.ok():
            self._failure = error
            self._failed.trigger()

    def _refuse_company(self) -> None:
        """Ends the node if somebody else publishes joint states: commands for the simulation would move that arm."""
        topic = self.resolve_topic_name(self._p.joint_states_topic)
        me = (self.get_name(), self.get_namespace())
        for publisher in self.get_publishers_info_by_topic(topic):
            other = (publisher.node_name, publisher.node_namespace)
            if other != me:
                self._failure = RuntimeError(
                    f"node {other[0]!r} publishes {topic} too: a simulation beside a rig would move that rig's arm; "
                    "stop it, or simulate on another ROS_DOMAIN_ID"
                )
                self._failed.trigger()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            self.get_logger().fatal(f"the simulation ended: {self._failure}")
            raise self._failure

    # Commands: called in the executor's thread

    def _on_arm_command(self, message: Float64MultiArray) -> None:
        positions = np.array(message.data, dtype=np.float64)
        self._submit(lambda simulated: simulated.command(positions))

    def _on_target_joint(self, message: JointState) -> None:
        # By their order, as CRISP takes them.
        positions = np.array(message.position, dtype=np.float64)
        self._submit(lambda simulated: simulated.command(positions))

    def _on_velocities(self, message: Float64MultiArray) -> None:
        velocities = np.array(message.data, dtype=np.float64)
        self._submit(lambda simulated: simulated.drive(velocities))

    def _on_gripper_command(self, message: Float64MultiArray) -> None:
        if len(message.data) != 1:
            self._refuse(f"gripper command: it must have one value, got {len(message.data)}")
            return
        angle = message.data[0]
        self._submit(lambda simulated: simulated.command(gripper_angle=angle))

    def _on_trajectory(self, message: JointTrajectoryMessage) -> None:
        if not message.points:
            # As joint_trajectory_controller has it: no points end the trajectory in progress, and the arm holds.
            self._submit(lambda simulated: simulated.command(simulated.desired_positions))
            return
        moving = [bool(point.velocities) for point in message.points]
        try:
            if any(moving) and not all(moving):
                raise ValueError("joint trajectory: either all of its points have velocities or none")
            trajectory = sim.JointTrajectory.from_named(
                message.joint_names,
                self._robot.joint_names,
                [point.time_from_start.sec + point.time_from_start.nanosec / NANOSECONDS for point in message.points],
                [point.positions for point in message.points],
                [point.velocities for point in message.points] if all(moving) else None,
            )
        except ValueError as error:
            self._refuse(str(error))
            return
        stamp = from_message(message.header.stamp)
        self._submit(lambda simulated: simulated.follow(trajectory, stamp or None))

    def _submit(self, action: Callable[[sim.SimulatedRig], None]) -> None:
        self._runner.submit(action).add_done_callback(self._on_done)

    def _on_done(self, future: Future) -> None:
        if not future.cancelled() and future.exception() is not None:
            self._refuse(str(future.exception()))

    def _refuse(self, reason: str) -> None:
        self._refused += 1
        self._last_refusal = reason
        self.get_logger().warning(f"refused: {reason}", throttle_duration_sec=1.0)

    def _on_reset(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        layout = self._layout
        put_back = layout.arrange if layout else lambda simulated: simulated.reset()
        try:
            self._runner.submit(put_back).result(_RESET_SECONDS)
        except Exception as error:
            response.message = f"not reset: {type(error).__name__} {error}".rstrip()
            return response
        response.success = True
        response.message = (
            "arm and blocks are as at the start" if layout else "the arm is at its reset pose, the blocks lie elsewhere"
        )
        return response

    # Reports

    def _say_pace(self) -> None:
        self._looks += 1
        if self._looks <= _LOOKS:
            self._refuse_company()
        status = self._runner.status()
        sentence = self._pace_report.update(status.measured, status.limited_by)
        if sentence is not None:
            self.get_logger().info(f"simulated time: {sentence}")

    def _report_pace(self) -> Report:
        status = self._runner.status()
        values = {"real_time_factor": "unknown" if status.measured is None else status.measured}
        values["target_factor"] = status.factor
        values["limited_by"] = status.limited_by or "nothing"
        values["simulated_seconds"] = status.time_ns / NANOSECONDS
        return Report(OK, pacing.describe(status.measured, status.limited_by), values)

    def _report_cameras(self) -> Report:
        status = self._runner.status()
        values: dict[str, float | int] = {"camera_rate": self._p.camera_rate, "pending": status.pending}
        for role in CameraRole:
            values[f"{role.value}_render_ms"] = status.render_ms[role.value]
            values[f"{role.value}_images"] = status.images[role.value]
        values["joint_states"] = status.states
        if self._failure is not None:
            return Report(ERROR, str(self._failure), values)
        return Report(OK, f"{sum(status.images.values())} images", values)

    def _report_commands(self) -> Report:
        if self._refused:
            return Report(WARN, f"refused: {self._last_refusal}", {"refused": self._refused})
        return Report(OK, "none refused", {"refused": 0})


def main() -> None:
    """Entry point of the executable `simulator`."""
    run(SimulatorNode)


if __name__ == "__main__":
    main()
