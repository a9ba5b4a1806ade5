#!/usr/bin/env python3
"""Random training samples a second: from the cache, from the bags each time, and from LeRobot's loader.

    benchmarks/dataset.py [--bags 6] [--seconds 20] [--rounds 5] [--sizes 10 100 1000] [--lerobot-python PYTHON]
                          [--work DIR] [--json FILE]

A sample is what training takes: two 224x224 views, the state, and the next 15 actions, at a step drawn at random.

Sources, all of the same recordings (two cameras, 640x360 JPEG at 30 Hz; joints and commands at 100 Hz; MCAP with zstd
chunks), in alternating rounds in this process:
- cache, jpeg and raw: `BagChunks`;
- bag: what a loader without a cache must do for each sample: look the time up in the bag's index with the `mcap`
  library, decompress the chunks around it, take the newest message of each sensor and the commands that follow, decode
  and resize. Files stay open and their indices in memory, which is the best that it can do. Its pictures are checked to
  be those of the raw cache.
- LeRobot: `LeRobotDataset` on the export of the cache, in the interpreter given by --lerobot-python, with its own
  decoder and `delta_timestamps` for the actions. Runs between the others in a process of its own; its start is not
  counted.

Then the cache alone, from 10 to 1,000 episodes: samples a second and the time to open it. All files are in the page
cache by then, as far as the memory goes: this is the cost of finding and decoding, not of a disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from ki_ros.data.bag_chunks import BagChunks
from ki_ros.data.cache import Cache, CacheWriter
from ki_ros.data.cache.part import Storage
from ki_ros.rig import ActionSpace, CameraRole

VIEWS = (CameraRole.EXTERIOR_1, CameraRole.WRIST)
HORIZON, RATE = 15, 15.0
SIZE = 224
STEPS = 30
"""Steps of an episode of the caches of growing size."""
RAW_STEPS = 6
"""The same where pictures are raw: 300 kB a step."""
SECOND = 1_000_000_000


def scene(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A picture that compresses as a camera's does: soft shades, a few hard edges, and sensor noise."""
    coarse = rng.integers(40, 216, (6, 8, 3), dtype=np.uint8)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(6):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        corner = (x + int(rng.integers(10, width // 4)), y + int(rng.integers(10, height // 4)))
        cv2.rectangle(pixels, (x, y), corner, tuple(map(int, rng.integers(0, 256, 3))), -1)
    return np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)


@dataclass
class Scenes:
    """An episode with pictures of a given stock."""

    id: str
    stock: list[np.ndarray]
    steps: int
    bag: Path = Path("made up")
    instruction: str = "reach the red block"
    outcome: str = "success"
    robot: str = "panda"
    rate: float = RATE
    action_source: str = "joint_command"
    damage: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rng = np.random.default_rng(sum(self.id.encode()))
        self.stamps_ns = (np.arange(self.steps) * SECOND / RATE).astype(np.int64)
        self.states = np.cumsum(rng.normal(0, 0.01, (self.steps, 8)), axis=0)
        self.targets = self.states + 0.01
        self.segment = np.zeros(self.steps, np.int32)
        self.idle = np.zeros(self.steps, bool)
        self._first = int(rng.integers(len(self.stock)))

    def views(self, step: int) -> dict[CameraRole, np.ndarray]:
        return {role: self.stock[(self._first + 7 * step + n) % len(self.stock)] for n, role in enumerate(VIEWS)}


def grow(directory: Path, count: int, stock: list[np.ndarray], storage: Storage, steps: int) -> Path:
    """A cache of so many made-up episodes."""
    with CacheWriter(directory, storage) as writer:
        for number in range(count):
            writer.add(str(number), "1", [Scenes(f"episode {number}", stock, steps)])
        writer.commit(dict.fromkeys(map(str, range(count)), "1"))
    return directory


def chunks(directory: Path) -> BagChunks:
    """Samples of a cache."""
    return BagChunks(
        Cache(directory),
        horizon=HORIZON,
        action_space=ActionSpace.JOINT_POSITION,
        views=VIEWS,
        outcomes=("success", "unknown"),
        drop_idle=False,
    )


def rate(get: Callable[[int], Any], count: int, rng: np.random.Generator, samples: int) -> float:
    """Samples a second at indices drawn at random."""
    indices = rng.integers(0, count, samples).tolist()
    began = time.perf_counter()
    for index in indices:
        get(index)
    return samples / (time.perf_counter() - began)


def alternate(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each side's rates, measured in turns."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            rates[name].append(measure())
    return {name: statistics.median(values) for name, values in rates.items()}


def scaling(work: Path, sizes: list[int], rounds: int, samples: int, console: Console) -> dict[str, Any]:
    """Samples a second and seconds to open by encoding and number of episodes."""
    rng = np.random.default_rng(0)
    stock = [scene(rng, SIZE, SIZE) for _ in range(64)]
    figures: dict[str, Any] = {}
    for storage, steps in ((Storage("jpeg"), STEPS), (Storage("raw"), RAW_STEPS)):
        sources, opening, bytes_each = {}, {}, {}
        for size in sizes:
            place = work / f"{storage.encoding}_{size}"
            with console.status(f"writing {size} episodes, {storage.encoding}"):
                grow(place, size, stock, storage, steps)
            began = time.perf_counter()
            source = chunks(place)
            opening[size] = time.perf_counter() - began
            sources[size] = source
            stored = sum(file.stat().st_size for file in place.rglob("*.pictures"))
            bytes_each[size] = stored / (2 * len(source))
            for index in range(len(source)):  # into the page cache
                source[index]
        rates = alternate(
            {
                str(size): lambda source=source: rate(source.__getitem__, len(source), rng, samples)
                for size, source in sources.items()
            },
            rounds,
        )
        figures[storage.encoding] = {
            str(size): {
                "samples_per_second": rates[str(size)],
                "microseconds": 1e6 / rates[str(size)],
                "cost_ratio": rates[str(sizes[0])] / rates[str(size)],
                "open_seconds": opening[size],
                "steps": len(sources[size]),
                "bytes_per_picture": bytes_each[size],
            }
            for size in sizes
        }
    return figures


def show_scaling(figures: dict[str, Any], console: Console) -> None:
    """Prints the table of `scaling`."""
    table = Table(title="Cache by number of episodes")
    for column in (
        "pictures",
        "episodes",
        "steps",
        "samples/s",
        "us a sample",
        "cost, first = 1",
        "open [s]",
        "kB a picture",
    ):
        table.add_column(column, justify="left" if column == "pictures" else "right")
    for encoding, sizes in figures.items():
        for size, row in sizes.items():
            table.add_row(
                encoding,
                size,
                f"{row['steps']:,}",
                f"{row['samples_per_second']:.0f}",
                f"{row['microseconds']:.0f}",
                f"{row['cost_ratio']:.2f}",
                f"{row['open_seconds']:.3f}",
                f"{row['bytes_per_picture'] / 1e3:.1f}",
            )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bags", type=int, default=6, help="recordings to make and compare on")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each side")
    parser.add_argument("--samples", type=int, default=600, help="samples of a round, from a cache")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], help="numbers of episodes")
    parser.add_argument("--lerobot-python", type=Path, help="interpreter that has the lerobot package")
    parser.add_argument("--work", type=Path, help="directory for recordings and caches; a temporary one when left out")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    console = Console()
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        work = Path(temporary)
        report: dict[str, Any] = {"scaling": scaling(work, options.sizes, options.rounds, options.samples, console)}
    show_scaling(report["scaling"], console)
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {options.rounds} rounds")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
