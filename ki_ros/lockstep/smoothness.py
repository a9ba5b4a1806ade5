"""How smooth the stream of commands was: what changes abruptly where one chunk follows another, and the jerk."""

from __future__ import annotations

import numpy as np

from ki_ros.execution.executor import Tick
from ki_ros.execution.state import State
from ki_ros.lockstep.loop import COMMAND_MS, Listener


class Smoothness(Listener):
    """Listens to an episode's commands, as they leave the guard."""

    def __init__(self) -> None:
        self._positions: list[np.ndarray] = []
        self._chunks: list[int] = []

    def on_tick(self, time_ns: int, tick: Tick) -> None:  # noqa: ARG002 - the protocol's
        """A command."""
        if tick.positions is not None:
            self._positions.append(tick.positions)
            self._chunks.append(tick.observation_sequence if tick.state is State.EXECUTING else 0)

    @property
    def seam_steps(self) -> np.ndarray:
        """At each seam, where a chunk follows another, the largest change of a joint's commanded velocity from one
        command to the next [rad/s]: of the one that the chunk begins with, and the two after it. (seams,)"""
        velocity = np.diff(np.array(self._positions), axis=0) / (COMMAND_MS / 1e3)
        if len(velocity) < 2:
            return np.zeros(0)
        step = np.abs(np.diff(velocity, axis=0)).max(axis=1)
        chunks = np.array(self._chunks)
        # Command k + 2 ends the interval that step k leads into.
        begins = np.flatnonzero((chunks[1:] != chunks[:-1]) & (chunks[1:] > 0) & (chunks[:-1] > 0)) + 1
        near = (begins[:, None] - 2 + np.arange(3)).clip(0, len(step) - 1)
        return step[near].max(axis=1)

    @property
    def rms_jerk(self) -> float:
        """Root of the mean square of all joints' commanded jerk [rad/s^3], by third differences."""
        if len(self._positions) < 4:
            return 0.0
        jerk = np.diff(np.array(self._positions), n=3, axis=0) / (COMMAND_MS / 1e3) ** 3
        return float(np.sqrt(np.mean(jerk**2)))
