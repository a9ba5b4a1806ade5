"""One description of the running graph, for the launch file and for `ki-ros up` alike: nodes, parameters, environment.

Imports neither launch nor rclpy.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from ki_ros import rig
from ki_ros.share import find_share
from ki_ros.variables import DIE_WITH_PARENT

if TYPE_CHECKING:
    from ki_ros.observation.rig_streams import RigStreams

T = TypeVar("T")

_EXECUTOR_TOPICS = {
    "arm_command_topic": "/forward_position_controller/commands",
    "trajectory_topic": "/joint_trajectory_controller/joint_trajectory",
    "gripper_command_topic": "/gripper_position_controller/commands",
}
"""The executor's topics of commands, with its own defaults."""

_COMMAND_TOPICS = {
    "forward_command": "arm_command_topic",
    "joint_trajectory": "trajectory_topic",
    "joint_impedance": "target_joint_topic",
    "forward_velocity": "velocity_command_topic",
}
"""Parameter with the topic of the arm's commands, by the value of the executor's parameter `controller`."""

_DISCOVERY = {"ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY", "ROS_STATIC_PEERS", "ROS_DISCOVERY_SERVER"}
"""Environment variables by which a person decides which machines see each other."""

NODE_NAMES = ("simulator", "observation", "policy", "executor", "recorder")

RECORDINGS = "recordings"
"""Directory of the episodes where nobody names another."""


class BringupError(ValueError):
    """Settings or a parameter file that cannot be started. The message names the key, the value and the fix."""


@dataclass(frozen=True)
class Settings:
    """What a person may choose at start. Each empty value leaves what the parameter file says.

    The names and the descriptions are the arguments of the launch file and of `ki-ros up`.
    """

    sim: bool = field(default=False, metadata={"help": "Start the simulated rig too"})
    nodes: str = field(
        default="",
        metadata={"help": "Nodes to start here, such as observation,executor; empty: all. The others run elsewhere"},
    )
    robot: str = field(default="", metadata={"help": f"Arm: {' or '.join(rig.ROBOTS)}"})
    preset: str = field(default="", metadata={"help": "Model preset"})
    checkpoint: str = field(default="", metadata={"help": "Checkpoint: a safetensors file or a directory"})
    norm_stats: str = field(default="", metadata={"help": "norm_stats.json, if not beside the checkpoint"})
    tokenizer: str = field(default="", metadata={"help": "sentencepiece model, if not beside the checkpoint"})
    device: str = field(default="", metadata={"help": "torch device of the policy"})
    instruction: str = field(default="", metadata={"help": "Instruction in force from the start"})
    params_file: str = field(
        default="",
        metadata={"help": "Parameter file; empty: config/droid_sim.yaml with sim, else config/droid_zed.yaml"},
    )
    record: str = field(
        default="",
        metadata={"help": f"Run the recorder of episodes: true ({RECORDINGS}/), or the directory they go to"},
    )
    auto_episodes: bool = field(
        default=False, metadata={"help": "Recorder: each instruction is an episode, without services"}
    )
    exterior_1_topic: str = field(default="", metadata={"help": "Image topic of the first exterior camera"})
    exterior_2_topic: str = field(default="", metadata={"help": "Image topic of the second exterior camera"})
    wrist_topic: str = field(default="", metadata={"help": "Image topic of the wrist camera"})
    joint_states_topic: str = field(default="", metadata={"help": "Topic of the arm's joint states"})
    gripper_topic: str = field(default="", metadata={"help": "Topic of the gripper's joint state"})
    controller: str = field(default="", metadata={"help": " or ".join(_COMMAND_TOPICS)})
    controller_topic: str = field(default="", metadata={"help": "Topic of the arm controller's commands"})
    gripper_controller_topic: str = field(default="", metadata={"help": "Topic of the gripper controller's commands"})


@dataclass(frozen=True)
class FinetuneSettings:
    """What a person may choose for a fine-tuning run of its own: the arguments of finetune.launch.py."""

    bags: str = field(default="", metadata={"help": "Directory of bags to train on"})
    config: str = field(default="", metadata={"help": "Training configuration; empty: config/train/finetune.yaml"})
    output: str = field(default="", metadata={"help": "Directory of the run; empty: what the configuration says"})
    checkpoint: str = field(default="", metadata={"help": "Checkpoint to start from; empty: what config says"})
    overrides: str = field(
        default="", metadata={"help": "Fields to set on top, such as 'steps=500 optimizer.learning_rate=1e-5'"}
    )
    resume: bool = field(default=False, metadata={"help": "Go on from the newest checkpoint in the output"})
    niceness: str = field(default="", metadata={"help": "0 to 19: how much it gives way to others on the CPU"})


@dataclass(frozen=True)
class NodeDescription:
    """One process of the graph.

    Attributes:
        name: node name.
        parameters: parameter sources, later ones win: paths of parameter files, or mappings.
        executable: the node's, and its module's name under `ki_ros.nodes`; empty where it is the name.
        namespace: of the node.
    """

    name: str
    parameters: tuple[Path | dict[str, Any], ...]
    executable: str = ""
    namespace: str = "/"

    @property
    def module(self) -> str:
        """Module whose `main` runs the node."""
        return f"ki_ros.nodes.{self.executable or self.name}"


def describe(settings: Settings) -> list[NodeDescription]:
    """The nodes to start.

    Raises:
        BringupError: an unknown robot, a parameter file that is missing or malformed, or one that names other nodes; a
            node to start that is no part of the graph.
    """
    if settings.robot not in ("", *rig.ROBOTS):
        raise BringupError(f"robot {settings.robot!r} is not known; use one of {', '.join(rig.ROBOTS)}")
    params_file = _params_file(settings)
    check_params_file(params_file)
    return [NodeDescription(name, (params_file, _overrides(name, settings))) for name in _nodes(settings)]


def describe_finetune(settings: FinetuneSettings) -> NodeDescription:
    """The node that fine-tunes: a policy node without a policy, in a namespace of its own.

    It has no part in the graph that serves an arm, which may run beside it: neither sees the other's observations,
    chunks and services.

    Raises:
        BringupError: no bags.
    """
    if not settings.bags.strip():
        raise BringupError("bags is empty; give the directory of the recordings: bags:=DIR")
    values = dataclasses.asdict(settings)
    try:
        values["overrides"] = shlex.split(settings.overrides)
    except ValueError as error:
        raise BringupError(f"overrides is {settings.overrides!r} ({error}); close the quotation") from error
    if settings.niceness and not settings.niceness.isdigit():
        raise BringupError(f"niceness is {settings.niceness!r}; give 0 to 19")
    values["niceness"] = int(settings.niceness) if settings.niceness else ""
    parameters = {f"training.{name}": value for name, value in values.items() if value not in ("", [])}
    return NodeDescription("trainer", (parameters,), executable="policy", namespace="/finetune")


def _nodes(settings: Settings) -> list[str]:
    """Names of the nodes to start on this machine, in the graph's order."""
    chosen = settings.nodes.replace(",", " ").split()
    for name in chosen:
        if name not in NODE_NAMES:
            hint = _nearest_node(name) or f"give some of {', '.join(NODE_NAMES)}"
            raise BringupError(f"nodes is {settings.nodes!r}: no node is called {name!r}; {hint}")
    optional = {"simulator": (settings.sim, "sim:=true"), "recorder": (records(settings), "record:=true")}
    for name, (wanted, argument) in optional.items():
        if name in chosen and not wanted:
            raise BringupError(f"nodes is {settings.nodes!r}, but the graph has no {name}; give {argument} too")
    absent = {name for name, (wanted, _) in optional.items() if not wanted}
    return [name for name in NODE_NAMES if name not in absent and (not chosen or name in chosen)]


def _nearest_node(name: str) -> str:
    """Asks for the node whose name is like that; empty where none is."""
    near = difflib.get_close_matches(name, NODE_NAMES, n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def records(settings: Settings) -> bool:
    """Whether the recorder is part of the graph."""
    return settings.record.strip().lower() not in ("", "false")


def check_params_file(path: Path) -> None:
    """Refuses what rclpy would ignore without a word: a file without parameters, a node that is not in the graph.

    Keys below a node are checked by the node itself.

    Raises:
        BringupError: see above; the message names the file, the key and the nearest right one.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BringupError(f"params_file {str(path)!r} cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise BringupError(f"params_file {str(path)!r} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise BringupError(f"params_file {str(path)!r} holds no mapping of node names to ros__parameters")
    for key, value in content.items():
        name = str(key).lstrip("/")
        if name not in (*NODE_NAMES, "**"):
            hint = _nearest_node(name) or f"the nodes are {', '.join(NODE_NAMES)}"
            raise BringupError(f"params_file {str(path)!r}: no node is called {key!r}; {hint}")
        if not isinstance(value, dict) or set(value) != {"ros__parameters"}:
            raise BringupError(f"params_file {str(path)!r}: {key!r} must hold one mapping, ros__parameters")
        if not isinstance(value["ros__parameters"], dict):
            raise BringupError(f"params_file {str(path)!r}: {key!r} has no parameters; give it some, or remove it")


def environment(*, sim: bool, nodes: str = "") -> dict[str, str]:
    """Variables that the graph's processes need beside the present environment.

    The Fast DDS profile, unless one is chosen already: that for several machines where only some `nodes` run here; that
    no node outlives what started it, as an executor left behind would go on moving the arm; and that a simulation is
    seen on this machine only, unless discovery is configured, as its commands have the names of a real arm's.
    """
    variables = {DIE_WITH_PARENT: "1"}
    if not {"FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"} & os.environ.keys():
        profile = "fastdds_network.xml" if nodes.strip() else "fastdds.xml"
        variables["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(find_share("config") / profile)
    if sim and not _DISCOVERY & os.environ.keys():
        variables["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    return variables


def plain_record_command(settings: Settings) -> list[str]:
    """The `ros2 bag record` command that records what the recorder does, but as one bag and without its services.

    Raises:
        BringupError: topics that cannot be recorded together.
    """
    # Imports cv2, which `ki-ros --help` does not need.
    from ki_ros.data.recorder.topics import RecordedTopicsError, recorded_topics

    check_params_file(_params_file(settings))
    executor = _EXECUTOR_TOPICS | chosen_parameters(settings, "executor")
    extra = chosen_parameters(settings, "recorder").get("extra_topics", [])
    streams = _streams(settings)
    try:
        recorded = recorded_topics(
            streams, **{key: executor[key] for key in _EXECUTOR_TOPICS}, extra=filter(None, extra)
        )
    except RecordedTopicsError as error:
        raise BringupError(str(error)) from error
    named = records(settings) and settings.record.strip().lower() != "true"
    return [
        *("ros2", "bag", "record", "--storage", "mcap", "--storage-preset-profile", "zstd_fast"),
        *(("--output", settings.record) if named else ()),
        *(("--use-sim-time",) if settings.sim else ()),
        "--topics",
        *recorded.names,
    ]


def chosen_parameters(settings: Settings, node: str) -> dict[str, Any]:
    """What a node is given, by dotted name: the parameter file, then the settings. Not the node's own defaults."""
    return {**_file_parameters(settings, node), **_overrides(node, settings)}


def _streams(settings: Settings) -> RigStreams:
    """What the observation node samples. Raises BringupError."""
    # Imports cv2, which `ki-ros --help` does not need.
    from ki_ros.observation.rig_streams import RigStreams, RigStreamsError

    try:
        return RigStreams.from_parameters(chosen_parameters(settings, "observation"), str(_params_file(settings)))
    except RigStreamsError as error:
        raise BringupError(str(error)) from error


def _file_parameters(settings: Settings, node: str) -> dict[str, Any]:
    """What the parameter file says of a node, by dotted name."""
    content = yaml.safe_load(_params_file(settings).read_text(encoding="utf-8"))
    values: dict[str, Any] = {}
    for key in ("/**", "**", f"/{node}", node):
        values |= _dotted(content.get(key, {}).get("ros__parameters", {}))
    return values


def _dotted(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _params_file(settings: Settings) -> Path:
    if settings.params_file:
        return Path(settings.params_file)
    return find_share("config") / ("droid_sim.yaml" if settings.sim else "droid_zed.yaml")


def _overrides(node: str, settings: Settings) -> dict[str, Any]:
    """The settings that concern a node, by parameter name; empty ones are left out."""
    # The simulator makes the time that the others use.
    time = {"use_sim_time": node != "simulator"} if settings.sim else {}
    if node == "recorder":
        return time | _recorder_overrides(settings)
    s = settings
    cameras = {role.value: getattr(s, f"{role.value}_topic") for role in rig.CameraRole}
    camera_topics = {f"{role}.topic": topic for role, topic in cameras.items()}
    controller = s.controller or _file_parameters(s, "executor").get("controller")
    # The executor refuses a controller that it does not know.
    command_topic = _COMMAND_TOPICS.get(controller, "arm_command_topic")
    by_node = {
        "simulator": {
            "robot": s.robot,
            **camera_topics,
            "joint_states_topic": s.joint_states_topic,
            "gripper_states_topic": s.gripper_topic,
            command_topic: s.controller_topic,
            "gripper_command_topic": s.gripper_controller_topic,
        },
        "observation": {
            "robot": s.robot,
            **camera_topics,
            "joint_states_topic": s.joint_states_topic,
            "gripper_topic": s.gripper_topic,
        },
        "policy": {
            "preset": s.preset,
            "checkpoint": s.checkpoint,
            "norm_stats": s.norm_stats,
            "tokenizer": s.tokenizer,
            "device": s.device,
            "autostart": True,
        },
        "executor": {
            "robot": s.robot,
            "instruction": s.instruction,
            "joint_states_topic": s.joint_states_topic,
            "controller": s.controller,
            command_topic: s.controller_topic,
            "gripper_command_topic": s.gripper_controller_topic,
        },
    }
    values = time | (_simulated_rig(s) if node == "simulator" else {})
    values |= {key: value for key, value in by_node[node].items() if value != ""}
    if node == "policy" and s.preset and not s.checkpoint:
        # A preset that is asked for is not what a checkpoint of the parameter file holds.
        values["checkpoint"] = ""
    return values


def _simulated_rig(settings: Settings) -> dict[str, Any]:
    """What the simulator is told: to be where the other nodes expect the rig, unless the file itself tells it."""
    streams = _streams(settings)
    executor = chosen_parameters(settings, "executor")
    values = {f"{role.value}.topic": camera.topic for role, camera in streams.cameras.items()}
    values |= {
        "robot": streams.robot,
        "joint_states_topic": streams.joint_states_topic,
        "gripper_states_topic": streams.gripper_topic,
    }
    commands = ("gripper_command_topic", *_COMMAND_TOPICS.values())
    values |= {key: executor[key] for key in commands if key in executor}
    transports = {role.value: camera.transport for role, camera in streams.cameras.items()}
    if len(set(transports.values())) > 1:
        given = ", ".join(f"{role}.transport {transport}" for role, transport in transports.items())
        raise BringupError(f"the simulated rig sends one kind of images, not {given}; give all cameras the same")
    if "compressed" in transports.values():
        values["encoding"] = "jpeg"
    file = _file_parameters(settings, "simulator")
    return {key: value for key, value in values.items() if key not in file}


def _recorder_overrides(settings: Settings) -> dict[str, Any]:
    """What the recorder is told: the topics that the observation and the executor node use, and where to record."""
    observation, executor = chosen_parameters(settings, "observation"), chosen_parameters(settings, "executor")
    sensors = [f"{role.value}.{key}" for role in rig.CameraRole for key in ("topic", "transport")]
    sensors += ["robot", "joint_states_topic", "gripper_topic"]
    values = {key: observation[key] for key in sensors if key in observation}
    values |= {key: executor[key] for key in _EXECUTOR_TOPICS if key in executor}
    if settings.auto_episodes:
        values["auto_episodes"] = True
    if records(settings) and settings.record.strip().lower() != "true":
        values["output"] = settings.record
    return values


def arguments(settings: type = Settings) -> list[tuple[str, str, str]]:
    """Name, default and description of every setting, as launch arguments are declared."""
    return [
        (f.name, str(f.default).lower() if isinstance(f.default, bool) else f.default, f.metadata["help"])
        for f in dataclasses.fields(settings)
    ]


def parse(values: dict[str, str], settings: type[T] = Settings) -> T:
    """Settings from launch arguments, which are strings.

    Raises:
        BringupError: a name that looks like a misspelt one, or a switch is neither true nor false.
    """
    fields = dataclasses.fields(settings)
    known = [f.name for f in fields]
    for name in values:
        if name not in known and (near := difflib.get_close_matches(name, known, n=1, cutoff=0.8)):
            raise BringupError(f"no argument is called {name!r}; did you mean {near[0]!r}?")
    given: dict[str, Any] = {name: values[name] for name in known if name in values}
    for name in (f.name for f in fields if isinstance(f.default, bool)):
        value = given.get(name, "false").strip().lower()
        if value not in ("true", "false"):
            raise BringupError(f"{name} is {values[name]!r}; use true or false")
        given[name] = value == "true"
    return settings(**given)
