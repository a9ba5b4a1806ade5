"""Whether a recorded definition of a message type is the one by which this package decodes it."""

from __future__ import annotations

import functools

from rosbags.typesys import get_types_from_msg

from ki_ros.data.bag.definitions import DefinitionError, message_definition
from ki_ros.data.bag.topic import Topic

# Fields of these are read by position. Other types are handed on as bytes, whatever they are.
_DECODED = {
    "rosgraph_msgs/msg/Clock",
    "sensor_msgs/msg/CompressedImage",
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/JointState",
    "std_msgs/msg/Float64MultiArray",
    "std_msgs/msg/String",
    "trajectory_msgs/msg/JointTrajectory",
}


def contradiction(topic: Topic) -> str:
    """What is wrong with the topic's recorded definition, or "" if nothing is, or if there is none to compare."""
    if not topic.definition or not (topic.type_name in _DECODED or topic.type_name.startswith("ki_ros/msg/")):
        return ""
    try:
        ours = _fields(message_definition(topic.type_name).text, topic.type_name)
    except DefinitionError:
        return ""
    try:
        recorded = _fields(topic.definition, topic.type_name)
    except Exception as error:  # the parser of a damaged text raises what it likes
        return f"the recorded definition of {topic.type_name} is unreadable: {error}"[:200]
    for name, fields in recorded.items():
        if name in ours and fields != ours[name]:
            return f"the recorded definition of {name} is not the one by which it is decoded"
    return ""


@functools.lru_cache(maxsize=64)
def _fields(text: str, type_name: str) -> dict[str, list]:
    """The fields of a type and of those in it."""
    return {name: list(fields) for name, (_, fields) in get_types_from_msg(text, type_name).items()}
