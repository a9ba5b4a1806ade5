"""Demonstrations by the scripted operator, each recorded as a bag."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ki_ros.lockstep.loop import Lockstep
from ki_ros.lockstep.recording import EpisodeRecording
from ki_ros.rig import CONTROL_HZ, POLICY_VIEWS, ActionSpace
from ki_ros.sim.expert import Expert
from ki_ros.sim.kinematics import Kinematics
from ki_ros.sim.simulated_rig import SimulatedRig
from ki_ros.sim.tasks import Referee, Task, draw_layout

_AFTER_SUCCESS = 0.6
"""How long a demonstration goes on after its success [s]: holding still must be learnt too."""


@dataclass(frozen=True)
class Collected:
    """A demonstration.

    Attributes:
        id: names it and its bag.
        success: whether it did what was asked.
        seconds: how long it is [s].
    """

    id: str
    success: bool
    seconds: float


def episode_id(task: Task, seed: int) -> str:
    """Name of the demonstration of that task and seed."""
    return f"{task.value}_{seed:06d}"


def discard_unfinished(output: Path, task: Task, seed: int) -> None:
    """Removes what a collector that was ended has left of that demonstration. Nobody may be at it."""
    shutil.rmtree(_unfinished(output, task, seed), ignore_errors=True)


def _unfinished(output: Path, task: Task, seed: int) -> Path:
    return output / f".{episode_id(task, seed)}"


class Collector:
    """Demonstrates and records; makes its rig once. Not for several threads.

    Args:
        output: directory of the bags.
        quality: of JPEG images; None for raw ones.
    """

    def __init__(self, output: Path, quality: int | None = 95) -> None:
        self._output, self._quality = output, quality
        self._rig = SimulatedRig()
        self._kinematics = Kinematics.of(self._rig)

    def collect(self, task: Task, seed: int) -> Collected:
        """The demonstration of that task and seed. Its bag appears when it is complete."""
        rig, id = self._rig, episode_id(task, seed)
        layout = draw_layout(task, seed, self._kinematics, anywhere=True)
        layout.place(rig)
        referee, expert = Referee(layout, rig), Expert(rig, layout, self._kinematics)
        start_ns = rig.time_ns
        phase = float(np.random.default_rng((seed, 77)).uniform(0.0, 0.95 / CONTROL_HZ))

        def finished() -> bool:
            referee.look()
            seconds = (rig.time_ns - start_ns) / 1e9
            return referee.success_seconds is not None and seconds >= referee.success_seconds + _AFTER_SUCCESS

        discard_unfinished(self._output, task, seed)
        temporary = _unfinished(self._output, task, seed)
        recording = EpisodeRecording(
            temporary / id, id=id, instruction=layout.instruction, rig=rig, views=POLICY_VIEWS, quality=self._quality
        )
        with recording:
            Lockstep(rig, phase=phase).run(
                lambda observed: expert.act(observed.command),
                ActionSpace.JOINT_POSITION,
                task.seconds,
                watch=finished,
                listener=recording,
            )
            recording.finish(success=referee.success)
        (temporary / id).rename(self._output / id)
        temporary.rmdir()
        return Collected(id, referee.success, (rig.time_ns - start_ns) / 1e9)

    def close(self) -> None:
        """Frees the graphics context."""
        self._rig.close()
