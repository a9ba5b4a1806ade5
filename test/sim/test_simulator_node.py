"""The simulator node as a process of its own, over Fast DDS."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ki_ros.rig import GRIPPER_JOINT, PANDA, RESET_JOINT_POSITIONS, CameraRole
from ki_ros.sim.cameras import CameraSize
from ki_ros.sim.kinematics import Kinematics
from ki_ros.sim.simulated_rig import SimulatedRig
from ki_ros.sim.tasks import Task, draw_layout

rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed: run scripts/setup")

from builtin_interfaces.msg import Duration  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.qos import qos_profile_sensor_data  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image, JointState  # noqa: E402
from std_msgs.msg import Float64MultiArray  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint  # noqa: E402

pytestmark = [pytest.mark.graph, pytest.mark.usefixtures("graphics")]
ROOT = Path(__file__).resolve().parents[2]
RESET = np.array(RESET_JOINT_POSITIONS)
DEADLINE = 30.0
SMALL = [
    argument for role in CameraRole for argument in ("-p", f"{role.value}.width:=96", "-p", f"{role.value}.height:=54")
]


def nanoseconds(stamp):
    return stamp.sec * 1_000_000_000 + stamp.nanosec


class Simulator:
    """A node's process and a client of its topics."""

    def __init__(self, domain, *arguments):
        environment = os.environ | {"ROS_DOMAIN_ID": str(domain)}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ki_ros.nodes.simulator", "--ros-args", *arguments],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.context = rclpy.Context()
        self.context.init(domain_id=domain)
        self.node = rclpy.create_node("client", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.images = {role: [] for role in CameraRole}
        self.jpegs, self.joints, self.grippers, self.clock, self.diagnostics = [], [], [], [], {}
        for role in CameraRole:
            topic = f"/camera/{role.value}/image_raw"
            self.listen(Image, topic, self.images[role].append, qos_profile_sensor_data)
            self.listen(CompressedImage, f"{topic}/compressed", self.jpegs.append, qos_profile_sensor_data)
        self.listen(JointState, "/joint_states", self.joints.append, 10)
        self.listen(JointState, "/gripper/joint_states", self.grippers.append, 10)
        self.listen(Clock, "/clock", self.clock.append, 10)
        self.listen(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.arm = self.node.create_publisher(Float64MultiArray, "/forward_position_controller/commands", 10)
        self.gripper = self.node.create_publisher(Float64MultiArray, "/gripper_position_controller/commands", 10)
        self.trajectory = self.node.create_publisher(
            JointTrajectory, "/joint_trajectory_controller/joint_trajectory", 10
        )
        self.target_joint = self.node.create_publisher(JointState, "/target_joint", 10)
        self.velocities = self.node.create_publisher(Float64MultiArray, "/forward_velocity_controller/commands", 10)
        self.reset = self.node.create_client(Trigger, "/simulator/reset")

    def listen(self, kind, topic, callback, qos):
        self.node.create_subscription(kind, topic, callback, qos)

    def _on_diagnostics(self, message):
        for status in message.status:
            if status.name.startswith("simulator: "):
                self.diagnostics[status.name] = status

    def wait(self, condition, what):
        end = time.monotonic() + DEADLINE
        while not condition():
            self.executor.spin_once(timeout_sec=0.05)
            assert self.process.poll() is None, f"the node ended: {self.process.stdout.read()}"
            assert time.monotonic() < end, f"waited in vain for: {what}"

    def positions(self):
        return np.array(self.joints[-1].position)

    def wait_ready(self):
        publishers = (self.arm, self.gripper, self.trajectory, self.target_joint, self.velocities)
        self.wait(lambda: all(p.get_subscription_count() for p in publishers), "the command topics")
        self.wait(lambda: self.joints and self.grippers, "joint states")
        self.wait(self.reset.service_is_ready, "the reset service")

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.shutdown()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def domain():
    before = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE")
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    yield random.SystemRandom().randint(1, 100)
    if before is None:
        del os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"]
    else:
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = before


@pytest.fixture(scope="module")
def simulator(domain):
    simulator = Simulator(domain, *SMALL)
    simulator.wait_ready()
    yield simulator
    simulator.close()


@pytest.fixture
def at_reset(simulator):
    future = simulator.reset.call_async(Trigger.Request())
    simulator.wait(future.done, "the answer to a reset")
    assert future.result().success, future.result().message
    simulator.wait(lambda: np.abs(simulator.positions() - RESET).max() < 1e-3, "the reset pose")
    return simulator


def test_every_camera_s_images_arrive_in_order(at_reset):
    for images in at_reset.images.values():
        images.clear()
    at_reset.wait(lambda: all(len(images) >= 10 for images in at_reset.images.values()), "images of every camera")
    for role, images in at_reset.images.items():
        assert (images[0].width, images[0].height) == (96, 54)
        assert images[0].encoding == "rgb8"
        assert images[0].step == 3 * 96
        assert len(images[0].data) == 54 * 3 * 96
        assert images[0].header.frame_id == f"{role.value}_optical_frame"
        assert np.frombuffer(images[0].data, np.uint8).std() > 15
        stamps = [nanoseconds(image.header.stamp) for image in images]
        assert np.diff(stamps).min() >= 65_000_000
    # The cameras expose at the same instants.
    stamps = [{nanoseconds(image.header.stamp) for image in images} for images in at_reset.images.values()]
    assert len(set.intersection(*stamps)) >= 8


def test_joint_states_name_the_joints_and_are_stamped_with_simulated_time(at_reset):
    message, gripper = at_reset.joints[-1], at_reset.grippers[-1]
    assert tuple(message.name) == PANDA.joint_names
    assert len(message.position) == len(message.velocity) == len(message.effort) == 7
    assert list(gripper.name) == [GRIPPER_JOINT]
    assert gripper.position[0] == pytest.approx(0.0, abs=0.02)
    newest = nanoseconds(message.header.stamp)
    at_reset.wait(lambda: at_reset.clock and nanoseconds(at_reset.clock[-1].clock) >= newest, "the clock")
    ticks = [nanoseconds(message.clock) for message in at_reset.clock]
    assert np.diff(ticks).min() > 0


def test_position_commands_move_arm_and_gripper(at_reset):
    target = RESET + 0.15
    at_reset.arm.publish(Float64MultiArray(data=target.tolist()))
    at_reset.gripper.publish(Float64MultiArray(data=[0.5]))
    at_reset.wait(lambda: np.abs(at_reset.positions() - target).max() < 0.01, "the commanded position")
    at_reset.wait(lambda: abs(at_reset.grippers[-1].position[0] - 0.5) < 0.03, "the commanded gripper angle")


def test_a_trajectory_moves_the_arm_whatever_the_order_of_its_joints(at_reset):
    target = RESET + np.linspace(-0.1, 0.2, 7)
    point = JointTrajectoryPoint(
        positions=target[::-1].tolist(), velocities=[0.0] * 7, time_from_start=Duration(nanosec=300_000_000)
    )
    at_reset.trajectory.publish(JointTrajectory(joint_names=PANDA.joint_names[::-1], points=[point]))
    at_reset.wait(lambda: np.abs(at_reset.positions() - target).max() < 0.01, "the trajectory's end")


def test_a_joint_target_moves_the_arm(at_reset):
    target = RESET - 0.1
    at_reset.target_joint.publish(JointState(position=target.tolist(), velocity=[0.0] * 7))
    at_reset.wait(lambda: np.abs(at_reset.positions() - target).max() < 0.01, "the joint target")


def test_a_velocity_moves_the_arm_until_the_next_one(at_reset):
    at_reset.velocities.publish(Float64MultiArray(data=[0.2] * 7))
    at_reset.wait(lambda: np.all(at_reset.positions() - RESET > 0.1), "motion")
    at_reset.velocities.publish(Float64MultiArray(data=[0.0] * 7))
    at_reset.wait(lambda: np.abs(at_reset.joints[-1].velocity).max() < 1e-3, "rest")


@pytest.mark.parametrize(
    ("publish", "reason"),
    [
        (lambda s: s.arm.publish(Float64MultiArray(data=[0.0] * 6)), "arm command: it must have shape (7,), got (6,)"),
        (
            lambda s: s.arm.publish(Float64MultiArray(data=[0.0, float("nan")] + [0.0] * 5)),
            "arm command: not finite for panda_joint2",
        ),
        (lambda s: s.gripper.publish(Float64MultiArray(data=[])), "gripper command: it must have one value, got 0"),
        (
            lambda s: s.trajectory.publish(JointTrajectory(joint_names=["a"], points=[JointTrajectoryPoint()])),
            "joint_names must be panda_joint1",
        ),
    ],
)
def test_a_bad_command_is_named_in_the_diagnostics_and_the_arm_stays(at_reset, publish, reason):
    publish(at_reset)
    commands = "simulator: commands"
    at_reset.wait(
        lambda: commands in at_reset.diagnostics and reason in at_reset.diagnostics[commands].message,
        f"a diagnostic with {reason!r}",
    )
    np.testing.assert_allclose(at_reset.positions(), RESET, atol=1e-3)


def test_diagnostics_say_how_fast_time_passes(at_reset):
    pace = "simulator: pace"

    def factor():
        values = {v.key: v.value for v in at_reset.diagnostics[pace].values} if pace in at_reset.diagnostics else {}
        return values.get("real_time_factor", "unknown")

    at_reset.wait(lambda: factor() != "unknown", "the real-time factor")
    assert 0 < float(factor()) < 1.1


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=lambda stop: stop.name)
def test_it_starts_and_stops_in_good_time_and_sends_jpeg_when_told(domain, stop):
    # A node that is still being torn down elsewhere must not answer in this one's place.
    simulator = Simulator(domain + 1, *SMALL, "-p", "encoding:=jpeg", "-p", "robot:=fr3")
    try:
        simulator.wait(lambda: simulator.jpegs and simulator.joints, "JPEG images and joint states")
        assert bytes(simulator.jpegs[0].data[:2]) == b"\xff\xd8"
        assert "jpeg" in simulator.jpegs[0].format
        assert simulator.joints[0].name[0] == "fr3_joint1"
        begin = time.monotonic()
        simulator.process.send_signal(stop)
        output, _ = simulator.process.communicate(timeout=10)
        assert time.monotonic() - begin < 5.0
        assert simulator.process.returncode == 0, output
        assert "Traceback" not in output
    finally:
        simulator.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "robot:=ur5"], "'ur5' is not one of panda, fr3"),
        (["-p", "camera_rat:=30.0"], "did you mean 'camera_rate'?"),
        (["-p", "wrist.width:=1"], "parameter 'wrist.width': 1 is refused"),
    ],
)
def test_a_bad_parameter_ends_it_with_a_clear_error(domain, arguments, message):
    environment = os.environ | {"ROS_DOMAIN_ID": str(domain), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", "ki_ros.nodes.simulator", "--ros-args", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert result.returncode != 0
    assert message in result.stderr + result.stdout
    assert "Traceback" not in result.stderr


def test_it_does_not_run_beside_a_rig():
    domain = random.SystemRandom().randrange(1, 102)
    context = rclpy.Context()
    context.init(domain_id=domain)
    driver = rclpy.create_node("franka_driver", context=context)
    driver.create_publisher(JointState, "/joint_states", 10)
    try:
        process = subprocess.run(
            [sys.executable, "-m", "ki_ros.nodes.simulator", "--ros-args", *SMALL],
            env=os.environ | {"ROS_DOMAIN_ID": str(domain)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
    finally:
        driver.destroy_node()
        context.shutdown()
    assert process.returncode != 0
    assert "'franka_driver' publishes /joint_states too" in process.stdout + process.stderr


def test_a_task_s_scene_is_what_it_says_and_what_a_reset_brings_back(domain):
    layout_rig = SimulatedRig(sizes={role: CameraSize(96, 54) for role in CameraRole})
    layout = draw_layout(Task.PUSH, 5, Kinematics(layout_rig.model, PANDA.position_lower, PANDA.position_upper))
    layout.place(layout_rig)
    expected = {role: layout_rig.render(role) for role in CameraRole}
    layout_rig.close()
    simulator = Simulator(domain + 1, *SMALL, "-p", "scene:=push", "-p", "seed:=5")
    try:
        simulator.wait_ready()
        simulator.wait(lambda: all(simulator.images.values()), "pictures")
        np.testing.assert_allclose(simulator.positions(), layout.start, atol=1e-3)
        for role, images in simulator.images.items():
            picture = np.frombuffer(images[0].data, np.uint8).reshape(54, 96, 3)
            # The first one to arrive may be a moment later than the beginning: nothing moves but what still settles.
            assert np.mean(np.abs(picture.astype(int) - expected[role]) > 8) < 0.005
        simulator.arm.publish(Float64MultiArray(data=[*(layout.start + 0.1)]))
        simulator.wait(lambda: np.abs(simulator.positions() - layout.start).max() > 0.05, "the arm to move")
        future = simulator.reset.call_async(Trigger.Request())
        simulator.wait(future.done, "the answer to a reset")
        assert future.result().success, future.result().message
        simulator.wait(lambda: np.abs(simulator.positions() - layout.start).max() < 1e-3, "the scene's start pose")
    finally:
        simulator.close()
