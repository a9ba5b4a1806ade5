"""Where the arm's links, its flange and the gripper's tool point are at given joint positions.

A Panda and an FR3 have the same geometry, so nothing here asks which of the two it is. All frames are expressed in the
robot's base frame: x forwards, y to its left, z up, origin in the middle of the base's underside. [m, rad]
"""

from __future__ import annotations

import numpy as np

BASE = 0
FLANGE = 8
FRAMES = 9
"""Frames of an arm: the base, the links 1 to 7 by their numbers, the flange (link 8 in Franka's descriptions)."""

_A = (0.0, 0.0, 0.0, 0.0825, -0.0825, 0.0, 0.088)
_D = (0.333, 0.0, 0.316, 0.0, 0.384, 0.0, 0.0)
_ALPHA = (0.0, -1.0, 1.0, 1.0, -1.0, 1.0, 1.0)
"""Denavit-Hartenberg parameters of joints 1 to 7 in Craig's convention: a and d [m], alpha [quarter turns], as Franka
publishes them (Franka Control Interface, "Denavit-Hartenberg parameters"; `kinematics.yaml` of franka_description)."""

_FLANGE_D = 0.107
"""The flange in front of link 7's origin, along its z [m]; from the same table."""

TOOL_OFFSET = 0.1488
"""Distance of the tool point in front of the flange, along its z [m].

The point between the finger pads of a Robotiq 2F-85 on its coupling, where the simulated rig has its fingertips meet.
The fingers end behind it: 5 mm when the gripper is open, 18 mm when it is nearly closed.
"""

_JOINTS = len(_A)


def _fixed() -> np.ndarray:
    """Each frame in the one before, (9, 4, 4), with what the joints turn left out (columns x and y of links 1 to 7)."""
    frames = np.tile(np.eye(4), (FRAMES, 1, 1))
    sine, cosine = np.array(_ALPHA), 1.0 - np.abs(_ALPHA)
    links = frames[1:FLANGE]
    links[:, :3, :2] = 0.0
    links[:, 0, 3] = _A
    links[:, 1, 2], links[:, 1, 3] = -sine, -sine * _D
    links[:, 2, 2], links[:, 2, 3] = cosine, cosine * _D
    frames[FLANGE, 2, 3] = _FLANGE_D
    frames.setflags(write=False)
    return frames


_FIXED = _fixed()
_TILT = np.stack([1.0 - np.abs(_ALPHA), np.array(_ALPHA)], axis=1)
"""Cosine and sine of alpha, (7, 2)."""


def link_frames(q: np.ndarray) -> np.ndarray:
    """Frames of the base, links 1 to 7 and the flange.

    Args:
        q: (..., 7) joint positions [rad].

    Returns:
        (..., 9, 4, 4) float64: the pose of the base (the identity), link 1 to 7 and the flange in the base frame, so
        that a link's number is its index. NaN where q is not finite.

    Raises:
        ValueError: q does not end in seven joints.
    """
    q = np.asarray(q, dtype=np.float64)
    if q.shape[-1:] != (_JOINTS,):
        raise ValueError(f"q has shape {q.shape}; expected (..., {_JOINTS}) joint positions [rad]")
    cosine, sine = np.cos(q), np.sin(q)
    frames = np.empty((*q.shape[:-1], FRAMES, 4, 4))
    frames[...] = _FIXED
    links = frames[..., 1:FLANGE, :, :]
    links[..., 0, 0] = cosine
    links[..., 0, 1] = -sine
    links[..., 1:3, 0] = sine[..., None] * _TILT
    links[..., 1:3, 1] = cosine[..., None] * _TILT
    # Products of all beginnings of a chain of eight in three steps: each doubles how many factors a frame has in it.
    chain = frames[..., 1:, :, :]
    for factors in (1, 2, 4):
        chain[..., factors:, :, :] = chain[..., :-factors, :, :] @ chain[..., factors:, :, :]
    return frames


def flange(q: np.ndarray) -> np.ndarray:
    """Pose of the flange in the base frame, (..., 4, 4) float64, at joint positions q (..., 7) [rad]."""
    return link_frames(q)[..., FLANGE, :, :]


def along_flange(frames: np.ndarray, offset: float) -> np.ndarray:
    """The point `offset` [m] in front of the flange, (..., 3) float64, of frames (..., 9, 4, 4)."""
    pose = frames[..., FLANGE, :3, :]
    return pose[..., 3] + offset * pose[..., 2]


def tool_point(q: np.ndarray, offset: float = TOOL_OFFSET) -> np.ndarray:
    """The tool point in the base frame, (..., 3) float64 [m].

    Args:
        q: (..., 7) joint positions [rad].
        offset: of the tool point in front of the flange, along its z [m].
    """
    return along_flange(link_frames(q), offset)
