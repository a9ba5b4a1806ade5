"""How near the fingertips came to the blocks of a scene while the policy was told to reach one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ki_ros.rig import Robot
from ki_ros.sim.kinematics import Kinematics
from ki_ros.sim.simulated_rig import SimulatedRig
from ki_ros.sim.tasks import HOVER, REACHED, Held, Layout, Task, draw_layout


@dataclass(frozen=True)
class Spoken:
    """An instruction in force from `time` on [s], and the colour of the block that it names; None for none."""

    time: float
    text: str
    colour: str | None


@dataclass(frozen=True)
class Reaching:
    """Fingertips and blocks.

    Attributes:
        times: (J,) stamps of the joint states [s].
        distances: by colour, (J,) distance of the fingertips from the point `HOVER` above the block [m].
        spoken: the instructions, in order.
    """

    times: np.ndarray
    distances: Mapping[str, np.ndarray]
    spoken: Sequence[Spoken]

    def outcomes(self) -> list[dict[str, Any]]:
        """Of each instruction: its text, whether the block was reached (as the task has it: within `REACHED` for
        as long as `Held` asks), how long that took [s], and the least distance [m]."""
        ends = [later.time for later in self.spoken[1:]] + [np.inf]
        return [self._outcome(spoken, end) for spoken, end in zip(self.spoken, ends, strict=True)]

    def _outcome(self, spoken: Spoken, end: float) -> dict[str, Any]:
        inside = (self.times >= spoken.time) & (self.times < end)
        outcome = {"instruction": spoken.text, "reached": False, "seconds": None, "closest": None}
        if spoken.colour is None or not inside.any():
            return outcome
        times, distances = self.times[inside], self.distances[spoken.colour][inside]
        outcome["closest"] = float(distances.min())
        held = Held()
        for time, near in zip(times, distances <= REACHED, strict=True):
            if held.look(round(time * 1e9), near):
                return outcome | {"reached": True, "seconds": float(time - spoken.time)}
        return outcome


class Scene:
    """The scene that the simulator makes of the same task, seed and robot.

    Raises SimulationUnavailableError where the simulator cannot be had.
    """

    def __init__(self, task: Task, seed: int, robot: Robot) -> None:
        self._kinematics = Kinematics.of(SimulatedRig(robot=robot))
        self.layout: Layout = draw_layout(task, seed, self._kinematics)

    def instructions(self) -> list[tuple[str, str]]:
        """What to ask for in turn, and the colour that is named: of each block, where the task leaves them in place."""
        layout = self.layout
        if layout.task is not Task.REACH:
            return [(layout.instruction, layout.target)]
        return [(layout.task.phrasings[0].format(colour=colour), colour) for colour in layout.blocks]

    def reaching(self, times: np.ndarray, joints: np.ndarray, spoken: Sequence[Spoken]) -> Reaching:
        """Distances at joint positions (J, 7) [rad], from where the blocks lie at the start."""
        tips = np.array([self._kinematics.pinch(q)[0] for q in joints]).reshape(-1, 3)
        distances = {
            colour: np.linalg.norm(tips - [place[0], place[1], HOVER], axis=1)
            for colour, place in self.layout.blocks.items()
        }
        return Reaching(times, distances, spoken)
