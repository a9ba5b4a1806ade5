"""Which topics a recording of demonstrations holds, for the recorder and for a plain `ros2 bag record` alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ki_ros.observation.rig_streams import TRANSPORTS, RigStreams

JOINT_STATE = "sensor_msgs/msg/JointState"

JOINT_COMMAND = "joint_command"
EPOCH = "epoch"
INSTRUCTION = "instruction"
EPISODE = "episode"

GRAPH_TOPICS = {
    JOINT_COMMAND: JOINT_STATE,
    EPOCH: "ki_ros/msg/Epoch",
    INSTRUCTION: "std_msgs/msg/String",
    "executor_status": "ki_ros/msg/ExecutorStatus",
    "observation_status": "ki_ros/msg/ObservationStatus",
    "action_chunk": "ki_ros/msg/ActionChunk",
    "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
}
"""Topics of the graph by name, relative to its namespace. `observation` is left out: the others give it again."""

LATCHED_TOPICS = (EPOCH, INSTRUCTION)
"""Of these the last message holds until the next, so each episode begins with it."""


class RecordedTopicsError(ValueError):
    """Topics that cannot be recorded together. The message names the topic and the settings."""


@dataclass(frozen=True)
class RecordedTopics:
    """What a recording holds, by topic: the message type, and what the topic is.

    Attributes:
        sensors: cameras, joints and gripper, without which there are no observations.
        commands: `joint_command` and the topics of the controllers.
        graph: the other topics of the graph.
        extra: topics by request, whose types only their publishers know.
    """

    sensors: dict[str, str]
    commands: dict[str, str]
    graph: dict[str, str]
    extra: tuple[str, ...] = ()

    @property
    def typed(self) -> dict[str, str]:
        """Every topic whose type is known."""
        return {**self.sensors, **self.commands, **self.graph}

    @property
    def names(self) -> list[str]:
        """All names, absolute where the graph has no namespace; /episode among them."""
        return sorted({name if name.startswith("/") else f"/{name}" for name in (*self.typed, EPISODE, *self.extra)})


def recorded_topics(
    streams: RigStreams,
    *,
    arm_command_topic: str,
    trajectory_topic: str,
    gripper_command_topic: str,
    extra: Iterable[str] = (),
) -> RecordedTopics:
    """The topics of a recording, of what the observation node samples and what the executor node commands.

    Raises:
        RecordedTopicsError: one topic would have two types.
    """
    sensors = {camera.image_topic: TRANSPORTS[camera.transport] for camera in streams.cameras.values()}
    sensors |= {streams.joint_states_topic: JOINT_STATE, streams.gripper_topic: JOINT_STATE}
    commands = {
        JOINT_COMMAND: JOINT_STATE,
        arm_command_topic: "std_msgs/msg/Float64MultiArray",
        gripper_command_topic: "std_msgs/msg/Float64MultiArray",
    }
    if trajectory_topic in commands:
        raise RecordedTopicsError(
            f"trajectory_topic and another topic of commands are both {trajectory_topic}; give each its own topic"
        )
    commands[trajectory_topic] = "trajectory_msgs/msg/JointTrajectory"
    graph = {name: kind for name, kind in GRAPH_TOPICS.items() if name not in commands}
    for name, kind in sensors.items():
        if (commands | graph).get(name, kind) != kind:
            raise RecordedTopicsError(f"{name} is a topic of sensors and one of commands; give each its own topic")
    known = {*sensors, *commands, *graph}
    return RecordedTopics(sensors, commands, graph, tuple(dict.fromkeys(name for name in extra if name not in known)))
