"""Joint states matched by joint name, whatever their order and whatever else is in the message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ki_ros.observation.cdr import byte_order, encoded_string, read_joint_state
from ki_ros.observation.sampler import Reason
from ki_ros.rig import GRIPPER_CLOSED_ANGLE, GRIPPER_JOINT, gripper_closedness

MAX_BEYOND = 0.2
"""How far beyond its range the gripper's knuckle may be measured [rad]: of drivers some go on a little, or start below
zero. Clipped, an angle in degrees would always mean closed."""


class JointError(ValueError):
    """A joint state that cannot be used; the message names joint and value.

    Attributes:
        reason: what is wrong with it.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Route(NamedTuple):
    """What a message means to one stream: usable when `reason` is None, else why it is not and a sentence about it."""

    stream: str
    reason: Reason | None
    detail: str = ""


class JointRouter:
    """Says to which streams the messages of one JointState topic belong.

    Telling costs some microseconds: the names are searched for in the serialised message, which is not decoded.

    Args:
        streams: the joints that each stream needs, by the stream's name.
    """

    def __init__(self, streams: Mapping[str, Sequence[str]]) -> None:
        self._needs = {
            order: [
                (stream, [(joint, encoded_string(joint, order)) for joint in joints])
                for stream, joints in streams.items()
            ]
            for order in "<>"
        }

    def route(self, raw: bytes) -> list[Route]:
        """What a serialised message means to the streams; streams that it does not concern are left out.

        A message with all joints of a stream belongs to it. One with some of them is rejected as JOINT_MISSING. One
        that has no joint of any stream comes from another robot or device: every stream rejects it as FOREIGN_JOINTS.

        Raises:
            CdrError: the bytes are no serialised message.
        """
        routes = []
        for stream, joints in self._needs[byte_order(raw)]:
            missing = [name for name, encoded in joints if encoded not in raw]
            if not missing:
                routes.append(Route(stream, None))
            elif len(missing) < len(joints):
                routes.append(Route(stream, Reason.JOINT_MISSING, f"the message lacks {_listed(missing)}"))
        if routes:
            return routes
        carried = _listed(read_joint_state(raw).names)
        return [
            Route(
                stream,
                Reason.FOREIGN_JOINTS,
                f"the message carries {carried} instead of {_listed([j for j, _ in joints])}",
            )
            for stream, joints in self._needs[byte_order(raw)]
        ]


def joint_positions(raw: bytes, joints: Sequence[str]) -> np.ndarray:
    """Positions [rad] of these joints in a serialised JointState, in the order asked for.

    Returns:
        (len(joints),) float64, every value finite.

    Raises:
        CdrError: the bytes are no JointState.
        JointError: a joint is missing, is there twice, has no position, or one that is not finite.
    """
    state = read_joint_state(raw)
    index = {name: i for i, name in enumerate(state.names)}
    missing = [joint for joint in joints if joint not in index]
    if missing:
        raise JointError(
            Reason.JOINT_MISSING, f"the message lacks {_listed(missing)}; it carries {_listed(state.names)}"
        )
    twice = [joint for joint in joints if state.names.count(joint) > 1]
    if twice:
        raise JointError(Reason.UNDECODABLE, f"the message has {_listed(twice)} more than once")
    if len(state.positions) != len(state.names):
        raise JointError(
            Reason.UNDECODABLE, f"the message has {len(state.names)} names, but {len(state.positions)} positions"
        )
    positions = state.positions[[index[joint] for joint in joints]]
    if not np.isfinite(positions).all():
        wrong = [f"{joint} = {value}" for joint, value in zip(joints, positions, strict=True) if not np.isfinite(value)]
        raise JointError(Reason.NON_FINITE, f"not finite: {_listed(wrong)}")
    return positions


def gripper_state(raw: bytes) -> float:
    """Closedness [0 open .. 1 closed] of the gripper in a serialised JointState.

    Raises:
        CdrError, JointError: as `joint_positions`; and for an angle that no knuckle has, as in another unit.
    """
    angle = float(joint_positions(raw, (GRIPPER_JOINT,))[0])
    if not -MAX_BEYOND <= angle <= GRIPPER_CLOSED_ANGLE + MAX_BEYOND:
        raise JointError(
            Reason.OUT_OF_RANGE,
            f"{GRIPPER_JOINT} is at {angle:g}; it goes from 0 (open) to {GRIPPER_CLOSED_ANGLE:g} rad (closed): "
            "is the driver's unit another?",
        )
    return gripper_closedness(angle)


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown or "no joints"
