"""Which topics of a recording are the rig's cameras, arm and gripper, told by their types, names and joint names.

Camera topics are those that one of the package's parameter files names, else those whose name holds a camera's role. Of
several topics with the arm's joints it is that of the parameter file whose cameras are there.
What cannot be told for sure is refused: a parameter file says it.
"""

from __future__ import annotations

from collections.abc import Collection

from ki_ros import rig
from ki_ros.data.actions import CommandTopics
from ki_ros.data.bag import Bag
from ki_ros.data.recording import RecordingError
from ki_ros.observation.cdr import CdrError, read_joint_state
from ki_ros.observation.rig_streams import TRANSPORTS, CameraStream, RigStreams
from ki_ros.rig import CameraRole
from ki_ros.share import find_share

# Messages of a topic that are looked at for their joints: a topic may carry those of several devices in turn.
_LOOKED_AT = 50

_CHOOSE = "give the parameter file that the observation node ran with (--params-file)"


def find_streams(bag: Bag, commands: CommandTopics | None = None) -> RigStreams:
    """The streams of a recording, with the observation node's default limits and rate.

    Args:
        bag: an open bag.
        commands: topics that carry joint states but are commands.

    Raises:
        RecordingError: no camera, arm or gripper is in it, or several that could be the same.
    """
    commands = commands or CommandTopics()
    known = _known_streams()
    joints = _joints(bag, excluded={commands.joint_command})
    robots = {name: _with(joints, robot.joint_names) for name, robot in rig.ROBOTS.items()}
    robots = {name: topics for name, topics in robots.items() if topics}
    if len(robots) != 1:
        what = f"joints of {' and '.join(robots)}" if robots else "no topic with the seven joints of a known arm"
        raise RecordingError(
            f"{bag.path} has {what} ({', '.join(rig.ROBOTS)}); joint states: {_named(joints)}. {_CHOOSE}"
        )
    ((robot, arm_topics),) = robots.items()
    gripper_topics = _with(joints, (rig.GRIPPER_JOINT,))
    fitting = [streams for streams in known if _has_cameras(bag, streams)]
    return RigStreams(
        cameras=_cameras(bag, known),
        robot=robot,
        joint_states_topic=_one(
            bag, "arm", arm_topics, *({each.joint_states_topic for each in files} for files in (known, fitting))
        ),
        gripper_topic=_one(
            bag, "gripper", gripper_topics, *({each.gripper_topic for each in files} for files in (known, fitting))
        ),
    )


def _known_streams() -> list[RigStreams]:
    files = sorted(find_share("config").glob("droid_*.yaml"))
    return [RigStreams(), *(RigStreams.from_parameter_file(file) for file in files)]


def _has_cameras(bag: Bag, streams: RigStreams) -> bool:
    """Whether the bag has all cameras of a parameter file."""
    cameras = (camera.topic for camera in streams.cameras.values())
    return all(camera in bag.topics or f"{camera}/compressed" in bag.topics for camera in cameras)


def _joints(bag: Bag, excluded: Collection[str]) -> dict[str, set[str]]:
    """The names of the joints on each topic of joint states."""
    found: dict[str, set[str]] = {}
    for name, topic in bag.topics.items():
        if topic.type_name != "sensor_msgs/msg/JointState" or name in excluded or topic.serialization_format != "cdr":
            continue
        found[name] = set()
        for count, message in enumerate(bag.messages({name}), 1):
            try:
                found[name] |= set(read_joint_state(message.raw).names)
            except CdrError:
                continue
            if count >= _LOOKED_AT:
                break
    return found


def _with(joints: dict[str, set[str]], needed: Collection[str]) -> list[str]:
    return sorted(topic for topic, names in joints.items() if names.issuperset(needed))


def _one(bag: Bag, what: str, topics: list[str], *named: Collection[str]) -> str:
    """The topic among several that can only be meant: the only one, or the only one that is among the first `named`."""
    for candidates in (topics, *([topic for topic in topics if topic in names] for names in named)):
        if len(candidates) == 1:
            return candidates[0]
    there = f"several topics with the joints of the {what}: {', '.join(topics)}" if topics else f"no {what}'s joints"
    hint = f" ({rig.GRIPPER_JOINT})" if what == "gripper" and not topics else ""
    raise RecordingError(f"{bag.path} has {there}{hint}. {_CHOOSE}")


def _cameras(bag: Bag, known: list[RigStreams]) -> dict[CameraRole, CameraStream]:
    images = {
        name: transport
        for name, topic in sorted(bag.topics.items())
        for transport, type_name in TRANSPORTS.items()
        if topic.type_name == type_name
    }
    found: dict[CameraRole, CameraStream] = {}
    for role in CameraRole:
        names = {streams.cameras[role].topic for streams in known if role in streams.cameras}
        camera = _camera(bag, role, [name for name in images if name.removesuffix("/compressed") in names], images)
        camera = camera or _camera(bag, role, [name for name in images if _names_role(name, role)], images)
        if camera is not None:
            found[role] = camera
    if not found:
        raise RecordingError(
            f"{bag.path} has no camera that is known by its topic; images: {', '.join(images) or 'none'}. {_CHOOSE}"
        )
    return found


def _camera(bag: Bag, role: CameraRole, topics: list[str], images: dict[str, str]) -> CameraStream | None:
    cameras = sorted({topic.removesuffix("/compressed") for topic in topics})
    if not cameras:
        return None
    if len(cameras) > 1:
        raise RecordingError(
            f"{bag.path} has several cameras that could be {role.value}: {', '.join(cameras)}. {_CHOOSE}"
        )
    # Where both were recorded, the raw images have what compression lost.
    transport = "raw" if images.get(cameras[0]) == "raw" else "compressed"
    return CameraStream(cameras[0], transport)


def _names_role(topic: str, role: CameraRole) -> bool:
    return role.value in topic and "depth" not in topic


def _named(joints: dict[str, set[str]]) -> str:
    return "; ".join(f"{topic} with {', '.join(sorted(names)[:9])}" for topic, names in joints.items()) or "none"
