"""Episodes in memory, as a bag's would be, and their cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ki_ros.data.cache import Cache, CacheWriter
from ki_ros.data.cache.part import Storage
from ki_ros.rig import CameraRole

VIEWS = (CameraRole.EXTERIOR_1, CameraRole.WRIST)


@dataclass
class Made:
    """An episode; its pictures depend on its seed and on the step."""

    id: str
    stamps_ns: np.ndarray
    states: np.ndarray
    targets: np.ndarray
    segment: np.ndarray
    idle: np.ndarray
    seed: int = 0
    bag: Path = Path("made")
    instruction: str = "reach the red block"
    outcome: str = "success"
    robot: str = "panda"
    rate: float = 15.0
    action_source: str = "joint_command"
    ended: bool = True
    damage: tuple[str, ...] = ()
    roles: tuple[CameraRole, ...] = VIEWS
    size: tuple[int, int] = (24, 32)
    asked: list[int] = field(default_factory=list)

    def views(self, step: int) -> dict[CameraRole, np.ndarray]:
        self.asked.append(step)
        return {role: picture(self.seed, step, role, self.size) for role in self.roles}


def picture(seed: int, step: int, role: CameraRole, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """A smooth picture, so that JPEG stays close to it."""
    rng = np.random.default_rng([seed, step, list(CameraRole).index(role)])
    low, high = rng.integers(0, 256, (2, 3))
    ramp = np.linspace(0, 1, size[1])[None, :, None]
    return np.broadcast_to(low + (high - low) * ramp, (*size, 3)).astype(np.uint8)


def made(id: str, steps: int = 12, seed: int = 0, **changes: Any) -> Made:
    """An episode of one segment in which the arm never rests, but for `changes`."""
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "stamps_ns": 10**18 + np.arange(steps, dtype=np.int64) * 66_666_667,
        "states": rng.uniform(0.05, 0.95, (steps, 8)),
        "targets": rng.uniform(0.05, 0.95, (steps, 8)),
        "segment": np.zeros(steps, np.int32),
        "idle": np.zeros(steps, bool),
    }
    return Made(id, seed=seed, **(values | changes))


def cached(directory: Path, *episodes: Made, storage: Storage | None = None) -> Cache:
    """A cache of episodes, each of an origin of its own, in their order."""
    names = [f"{number:04d}" for number in range(len(episodes))]
    with CacheWriter(directory, storage if storage is not None else Storage("raw")) as writer:
        for name, episode in zip(names, episodes, strict=True):
            writer.add(name, "1", [episode])
        writer.commit(dict.fromkeys(names, "1"))
    return Cache(directory)


@dataclass(frozen=True)
class MadeOrigin:
    """An origin of one made episode, or of none that can be read; can be sent to other processes.

    With a `gate`, a named pipe, it says there that it is read, and is never through.
    """

    name: str
    fingerprint: str = "1"
    steps: int = 6
    fault: str = ""
    gate: str = ""

    def episodes(self) -> Iterator[Made]:
        if self.gate:
            with open(self.gate, "w") as gate:
                gate.write("reading\n")
                gate.flush()
                threading.Event().wait()
        if self.fault:
            raise ValueError(self.fault)
        seed = sum(self.name.encode()) + 1000 * int(self.fingerprint)
        return iter([made(f"id-{self.name}", self.steps, seed, bag=Path(self.name))])
