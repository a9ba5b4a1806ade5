"""Episodes in memory to export, and their cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ki_ros.data.cache import Cache, CacheWriter
from ki_ros.data.cache.part import Storage
from ki_ros.data.droid import Episode as DroidEpisode
from ki_ros.resize import resize_with_pad
from ki_ros.rig import CameraRole

VIEWS = (CameraRole.EXTERIOR_1, CameraRole.WRIST)


@dataclass
class Made:
    """An episode of T steps that the arm spends moving about at random, with noise for pictures."""

    id: str
    steps: int = 12
    seed: int = 0
    instruction: str = "reach the red block"
    outcome: str = "success"
    robot: str = "panda"
    rate: float = 15.0
    action_source: str = "joint_command"
    bag: Path = Path("made")
    ended: bool = True
    damage: tuple[str, ...] = ()
    segment: Any = None
    roles: tuple[CameraRole, ...] = VIEWS
    size: tuple[int, int] = (24, 32)
    broken_at: int = -1

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.stamps_ns = 10**18 + self.seed * 10**12 + np.arange(self.steps, dtype=np.int64) * 66_666_667
        self.states = rng.uniform(-2.0, 2.0, (self.steps, 8))
        self.targets = self.states + rng.normal(0, 0.1, (self.steps, 8))
        self.idle = rng.random(self.steps) < 0.3
        given = np.zeros(self.steps) if self.segment is None else self.segment
        self.segment = np.asarray(given, np.int32)

    def views(self, step: int) -> dict[CameraRole, np.ndarray]:
        if step == self.broken_at:
            raise ValueError(f"the picture of step {step} is damaged")
        return {role: picture(self.seed, step, role, self.size) for role in self.roles}


def picture(seed: int, step: int, role: CameraRole, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    rng = np.random.default_rng([seed, step, list(CameraRole).index(role)])
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8)


class Droid(Made):
    """The beginning of a real DROID episode, as a policy sees it; each target is the next state."""

    def __init__(self, directory: Path, number: int, steps: int) -> None:
        self._episode = DroidEpisode.load(directory, number)
        super().__init__(self._episode.name, steps, seed=number, instruction=self._episode.instruction)
        self.states, self.targets = self._episode.states[:steps], self._episode.states[1 : steps + 1]

    def views(self, step: int) -> dict[CameraRole, np.ndarray]:
        return {role: resize_with_pad(self._episode.image(role, step), 224) for role in VIEWS}


def episodes() -> list[Made]:
    """Three: of three segments; a failure with another instruction; one of an outcome that nobody told."""
    return [
        Made("one", 40, 1, segment=[0] * 20 + [1] * 13 + [2] * 7),
        Made("two", 9, 2, instruction="push the cup", outcome="failure", robot="fr3", action_source="measured"),
        Made("two", 5, 3, outcome="unknown", ended=False),
    ]


def cached(directory: Path, *given: Made) -> Cache:
    """A cache of episodes, each of an origin of its own, in their order; pictures are kept exactly."""
    names = [f"{number:04d}" for number in range(len(given))]
    with CacheWriter(directory, Storage("raw")) as writer:
        for name, episode in zip(names, given, strict=True):
            writer.add(name, "1", [episode])
        writer.commit(dict.fromkeys(names, "1"))
    return Cache(directory)


@dataclass(frozen=True)
class MadeOrigin:
    """An origin of made episodes."""

    given: tuple[Made, ...]
    name: str = "made"
    fingerprint: str = "1"

    def episodes(self) -> list[Made]:
        return list(self.given)
