"""The files below config/controllers: a laboratory copies them as they are, so nothing in them may be wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from ki_ros import bringup, rig
from ki_ros.share import find_share

rclpy = pytest.importorskip("rclpy")
pytest.importorskip("ki_ros.msg", reason="the interfaces are not built; run scripts/setup")

from rclpy.context import Context  # noqa: E402
from rclpy.node import Node  # noqa: E402

from ki_ros.nodes.controllers import ARMS, GRIPPERS  # noqa: E402
from ki_ros.nodes.executor import Parameters  # noqa: E402
from ki_ros.nodes.parameters import declare  # noqa: E402

ROOT = find_share("config") / "controllers"
FILES = sorted(ROOT.rglob("*.yaml"))
ARM_FILES = [path for path in FILES if path.parent != ROOT]
GRIPPER_FILES = [path for path in FILES if path.parent == ROOT]

TYPES = {
    "forward_command_controller/ForwardCommandController",
    "joint_state_broadcaster/JointStateBroadcaster",
    "joint_trajectory_controller/JointTrajectoryController",
    "velocity_controllers/JointGroupVelocityController",
    "crisp_controllers/CartesianController",
    "parallel_gripper_action_controller/GripperActionController",
    "position_controllers/GripperActionController",
    "robotiq_controllers/RobotiqActivationController",
}
"""As the packages of the controllers export them."""

TOPIC_PARAMETERS = {"arm_command_topic", "trajectory_topic", "velocity_command_topic", "gripper_command_topic"}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def section(path: Path, node: str) -> dict:
    return yaml.safe_load(path.read_text())[node]["ros__parameters"]


def controllers(path: Path) -> dict[str, str]:
    """Types of the controllers that the file gives to the controller manager, by name."""
    manager = section(path, "controller_manager")
    return {key: value["type"] for key, value in manager.items() if isinstance(value, dict)}


def own(path: Path) -> tuple[str, dict]:
    """Name and parameters of the one controller that the file is about."""
    ((controller, content),) = (
        item for item in yaml.safe_load(path.read_text()).items() if item[0] not in ("controller_manager", "executor")
    )
    return controller, content["ros__parameters"]


@pytest.fixture
def executor_parameters():
    """What the executor node makes of a file, as rcl itself reads it."""
    contexts = []

    def read(path: Path) -> Parameters:
        context = Context()
        rclpy.init(args=["--ros-args", "--params-file", str(path)], context=context)
        contexts.append(context)
        node = Node("executor", context=context)
        try:
            return declare(node, Parameters)
        finally:
            node.destroy_node()

    yield read
    for context in contexts:
        context.shutdown()


def test_there_is_one_for_every_controller_and_robot(executor_parameters):
    found = {(path.parent.name, executor_parameters(path).controller) for path in ARM_FILES}
    assert found == {(robot, controller) for robot in rig.ROBOTS for controller in ARMS}
    assert {executor_parameters(path).gripper_controller for path in GRIPPER_FILES} == set(GRIPPERS) - {"none"}


def test_the_documentation_names_every_choice_and_every_controller():
    text = (Path(__file__).resolve().parents[1] / "docs" / "controllers.md").read_text()
    helpers = {"joint_state_broadcaster/JointStateBroadcaster", "robotiq_controllers/RobotiqActivationController"}
    actions = {kind for kind in TYPES if kind.endswith("GripperActionController")}
    assert [word for word in (*ARMS, *GRIPPERS, *(TYPES - helpers - actions)) if f"`{word}`" not in text] == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_executor_takes_its_section(path, executor_parameters):
    given, taken = section(path, "executor"), executor_parameters(path)
    assert {key: getattr(taken, key) for key in given} == given
    taken.options()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_its_section_goes_into_a_parameter_file(path, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump({"executor": {"ros__parameters": section(path, "executor")}}))
    bringup.check_params_file(file)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_controllers_are_those_that_the_manager_loads(path):
    loaded = controllers(path)
    assert set(loaded.values()) <= TYPES
    assert own(path)[0] in loaded


@pytest.mark.parametrize("path", ARM_FILES, ids=name)
def test_every_joint_is_the_robot_s(path):
    robot = rig.robot(path.parent.name)
    assert section(path, "executor")["robot"] == robot.name
    parameters = own(path)[1]
    assert tuple(parameters["joints"]) == robot.joint_names
    for by_joint in (parameters.get("gains", {}), parameters.get("nullspace", {}).get("weights", {})):
        assert set(by_joint) in (set(), set(robot.joint_names))
    assert set(re.findall(r"\w+_joint\d", path.read_text())) == set(robot.joint_names)


@pytest.mark.parametrize("path", GRIPPER_FILES, ids=name)
def test_the_gripper_s_joint_is_the_knuckle(path):
    parameters = own(path)[1]
    assert parameters.get("joint", parameters.get("joints")) in (rig.GRIPPER_JOINT, [rig.GRIPPER_JOINT])


@pytest.mark.parametrize("path", FILES, ids=name)
def test_the_executor_sends_where_the_controller_listens(path):
    controller, _ = own(path)
    executor = section(path, "executor")
    chosen = executor.get("controller", executor.get("gripper_controller"))
    if chosen == "joint_impedance":
        # Not below the controller's own name.
        assert executor["target_joint_topic"] == "/target_joint"
        return
    topics = [value for key, value in executor.items() if key in TOPIC_PARAMETERS]
    listens = {"joint_trajectory": "joint_trajectory", "forward_command": "commands", "forward_velocity": "commands"}
    if chosen in listens:
        assert topics == [f"/{controller}/{listens[chosen]}"]
    else:
        assert executor["gripper_action"] == f"/{controller}/gripper_cmd"


@pytest.mark.parametrize("path", sorted((ROOT / "fr3").glob("*.yaml")), ids=name)
def test_the_robots_differ_by_the_names_of_their_joints_alone(path):
    fr3 = path.read_text().replace("fr3", "panda")
    # The same setting on the distribution of each driver.
    fr3 = yaml.safe_load(fr3.replace("interpolate_from_desired_state", "open_loop_control"))
    assert yaml.safe_load((ROOT / "panda" / path.name).read_text()) == fr3


@pytest.mark.parametrize("path", sorted(ROOT.rglob("joint_trajectory.yaml")), ids=name)
def test_trajectories_go_on_from_the_last_command(path):
    parameters = own(path)[1]
    names = ("interpolate_from_desired_state", "open_loop_control")
    assert [parameters[key] for key in names if key in parameters] == [True]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("joint_impedance.yaml")), ids=name)
def test_the_joint_impedance_is_one(path):
    parameters = own(path)[1]
    assert not any(parameters["task"].values()), "a Cartesian spring would pull against the joints' targets"
    assert parameters["nullspace"]["projector_type"] == "none"
    assert parameters["nullspace"]["damping"] > 0


@pytest.mark.parametrize("rig_file", ["droid_zed.yaml", "droid_realsense.yaml"])
def test_the_file_of_a_rig_is_one_for_a_franka(rig_file):
    path = ROOT.parent / rig_file
    of_the_controller = section(ROOT / "fr3" / "joint_trajectory.yaml", "executor")
    assert section(path, "executor") == {key: of_the_controller[key] for key in of_the_controller if key != "robot"}
    assert section(path, "observation")["joint_states_topic"] == of_the_controller["joint_states_topic"]
