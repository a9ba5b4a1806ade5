"""Tasks in the simulated rig, told apart only by the instruction: the same scenes, other words.

Each episode is a function of the task and a seed: which blocks lie where, which one is named and in which words, where
the arm starts, and how colours, lights and cameras differ. Positions in the base frame [m].
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ki_ros.rig import NUM_JOINTS, RESET_JOINT_POSITIONS
from ki_ros.sim import scene
from ki_ros.sim.kinematics import Kinematics
from ki_ros.sim.simulated_rig import SimulatedRig
from ki_ros.sim.variation import Variation

BLOCKS = 3
"""Blocks on the table, each of another colour, one of them named."""

GAP = 0.12
"""Least distance between two blocks' centres, and between a block and the marked area [m]."""

HOVER = 0.09
"""Height of the fingertips over the table when a block is reached: 4 cm above its top [m]."""

REACHED = 0.05
"""A block is reached when the fingertips are this close to the point `HOVER` above its place [m]."""

HELD_SECONDS = 0.5
"""For this long a task's condition must hold without a break."""

LIFTED = 0.06
"""A block is picked when its centre is this much higher than where it lay [m]."""

NEAR = 0.075
"""The arm has gone to a block when the fingertips are this close to it, seen from above, and below `LOW` [m]."""

LOW = 0.16

_AREA_DISTANCE = (0.12, 0.20)
_REGION = ((0.40, 0.62), (-0.22, 0.22))
_START_SPREAD = 0.06
_SETTLE_SECONDS = 0.1
_HOVER_STARTS = ((0.36, 0.60), (-0.20, 0.20), (0.12, 0.36))
_ASIDE, _ABOVE = 0.03, (-0.01, 0.06)


class Task(str, enum.Enum):
    """What is to be done with the named block."""

    REACH = "reach"
    PUSH = "push"
    PICK = "pick"

    @property
    def phrasings(self) -> tuple[str, ...]:
        """Instructions, with {colour} for the block's."""
        return _PHRASINGS[self]

    @property
    def seconds(self) -> float:
        """Time limit [s]."""
        return {Task.REACH: 6.0, Task.PUSH: 14.0, Task.PICK: 12.0}[self]


_PHRASINGS = {
    Task.REACH: ("reach the {colour} block", "move to the {colour} block", "go to the {colour} block"),
    Task.PUSH: ("push the {colour} block to the marked area", "slide the {colour} block onto the marked area"),
    Task.PICK: ("pick up the {colour} block", "lift the {colour} block"),
}


@dataclass(frozen=True)
class Layout:
    """How an episode begins.

    Attributes:
        task, seed: what it is a function of.
        blocks: (3,) x, y [m] and yaw [rad] of the blocks on the table, by colour.
        target: colour of the named block.
        instruction: what the policy is told.
        area: (2,) centre of the marked area; it lies on the table in every task.
        start: (7,) joint positions of the arm [rad].
        variation: of looks.
    """

    task: Task
    seed: int
    blocks: Mapping[str, np.ndarray]
    target: str
    instruction: str
    area: np.ndarray
    start: np.ndarray
    variation: Variation

    def place(self, rig: SimulatedRig) -> None:
        """Puts the rig into this state, looks and all; a moment passes, in which the blocks come to rest."""
        self.arrange(rig)
        rig.place_area(self.area)
        rig.vary(self.variation)
        # A stamp of zero, which means none, is never made either.
        rig.step(_SETTLE_SECONDS)

    def arrange(self, rig: SimulatedRig) -> None:
        """Puts arm and blocks where they are at the beginning; no time passes, and looks stay as they are."""
        rig.reset(q=self.start)
        for index, colour in enumerate(rig.block_names):
            if colour in self.blocks:
                x, y, yaw = self.blocks[colour]
                rig.set_block_pose(
                    colour, np.array([x, y, scene.BLOCK_HALF_SIZE]), (np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
                )
            else:
                # On the floor behind the arm, where no camera looks.
                rig.set_block_pose(colour, np.array([-1.4, 0.1 * index, scene.BLOCK_HALF_SIZE - scene.TABLE_HEIGHT]))


def draw_layout(task: Task, seed: int, kinematics: Kinematics, *, anywhere: bool = False) -> Layout:
    """The episode of that task and seed.

    Args:
        task: what is to be done.
        seed: 0 or more.
        kinematics: of the rig.
        anywhere: whether the arm may start elsewhere, as demonstrations do to show how to go on from there: a third of
            them near DROID's reset pose, a third anywhere above the table, and a third at a block that is not named, as
            after another instruction. Otherwise it starts near the reset pose.
    """
    random = np.random.default_rng((seed, list(Task).index(task)))
    colours = [list(scene.BLOCK_COLOURS)[k] for k in random.permutation(len(scene.BLOCK_COLOURS))[:BLOCKS]]
    target = colours[0]
    while True:
        spots = [random.uniform(*zip(*_REGION, strict=True)) for _ in colours]
        angle, distance = random.uniform(-np.pi, np.pi), random.uniform(*_AREA_DISTANCE)
        area = spots[0] + distance * np.array([np.cos(angle), np.sin(angle)])
        places = [*spots, area]
        gaps = [np.linalg.norm(a - b) for i, a in enumerate(places) for b in places[:i]]
        if min(gaps) >= GAP and _inside(area) and _free_way(spots[0], area, spots[1:]):
            break
    blocks = {
        colour: np.array([*spot, random.uniform(-np.pi / 4, np.pi / 4)])
        for colour, spot in zip(colours, spots, strict=True)
    }
    instruction = str(random.choice(task.phrasings)).format(colour=target)
    start = np.array(RESET_JOINT_POSITIONS) + random.uniform(-_START_SPREAD, _START_SPREAD, NUM_JOINTS)
    above = random.uniform(*zip(*_HOVER_STARTS, strict=True))
    if anywhere and (kind := random.random()) < 2 / 3:
        if kind < 1 / 3:
            other = blocks[str(random.choice(colours[1:]))]
            above = np.array([*other[:2], HOVER]) + random.uniform(*zip(*((-_ASIDE, _ASIDE),) * 2, _ABOVE, strict=True))
        start = kinematics.solve(above)
    return Layout(task, seed, blocks, target, instruction, area, start, Variation.draw(random))


def _inside(place: np.ndarray) -> bool:
    return all(low <= value <= high for value, (low, high) in zip(place, _REGION, strict=True))


def _free_way(block: np.ndarray, area: np.ndarray, others: list[np.ndarray]) -> bool:
    """Whether the fingers find room behind the block, and block and fingers on the way to the area."""
    direction = (area - block) / np.linalg.norm(area - block)
    behind = block - 0.12 * direction
    if not (0.33 <= behind[0] <= 0.66 and -0.28 <= behind[1] <= 0.28):
        return False
    for other in others:
        along = np.clip((other - behind) @ direction, 0.0, np.linalg.norm(area - behind))
        if np.linalg.norm(other - (behind + along * direction)) < GAP * 0.75:
            return False
    return True


class Held:
    """Whether a condition has held for `HELD_SECONDS` without a break. `look` is called in the order of time."""

    def __init__(self) -> None:
        self._since_ns: int | None = None

    def look(self, time_ns: int, holds: bool) -> bool:
        """Whether it has by that time [ns], at which it does or does not hold."""
        if not holds:
            self._since_ns = None
            return False
        if self._since_ns is None:
            self._since_ns = time_ns
        return time_ns - self._since_ns >= HELD_SECONDS * 1e9


class Referee:
    """Watches an episode and says how it went. `look` is called at every observation, in order.

    Attributes:
        success: whether the task's condition has held for `HELD_SECONDS`.
        success_seconds: when it had, from the episode's beginning; None before.
        went_to: colour of the first block that the arm went to; None before.
        closest: least distance of the fingertips from the point above the named block [m].
    """

    def __init__(self, layout: Layout, rig: SimulatedRig) -> None:
        self._layout, self._rig = layout, rig
        self._start_ns = rig.time_ns
        self._held = Held()
        self.success = False
        self.success_seconds: float | None = None
        self.went_to: str | None = None
        self.closest = np.inf

    @property
    def followed(self) -> bool:
        """Whether the first block that the arm went to is the one that was named."""
        return self.went_to == self._layout.target

    def look(self) -> None:
        """Takes the rig's present state into account."""
        rig, layout = self._rig, self._layout
        pinch = rig.pinch_position
        places = {colour: rig.block_pose(colour)[0] for colour in layout.blocks}
        if self.went_to is None and pinch[2] < LOW:
            distances = {colour: np.linalg.norm(pinch[:2] - place[:2]) for colour, place in places.items()}
            nearest = min(distances, key=distances.__getitem__)
            if distances[nearest] < NEAR:
                self.went_to = nearest
        block = places[layout.target]
        distance = float(np.linalg.norm(pinch - [block[0], block[1], HOVER]))
        self.closest = min(self.closest, distance)
        if layout.task is Task.REACH:
            holds = distance <= REACHED
        elif layout.task is Task.PUSH:
            holds = bool(np.all(np.abs(block[:2] - layout.area) <= scene.AREA_HALF_SIZE)) and block[2] < 0.04
        else:
            holds = block[2] > scene.BLOCK_HALF_SIZE + LIFTED and float(np.linalg.norm(pinch - block)) < 0.05
        if self._held.look(rig.time_ns, holds) and not self.success:
            self.success = True
            self.success_seconds = (rig.time_ns - self._start_ns) / 1e9
