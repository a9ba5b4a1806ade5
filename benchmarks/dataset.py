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
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from arguments import output_file
from mcap.reader import make_reader
from rich.console import Console
from rich.table import Table

from ki_ros.data.bag import BagWriter, encode
from ki_ros.data.bag_chunks import BagChunks
from ki_ros.data.cache import Cache, CacheWriter
from ki_ros.data.cache.bags import bag_origins
from ki_ros.data.cache.build import build_cache
from ki_ros.data.cache.part import Storage
from ki_ros.images import decompress
from ki_ros.observation import cdr
from ki_ros.resize import resize_with_pad
from ki_ros.rig import GRIPPER_JOINT, PANDA, ActionSpace, CameraRole, gripper_closedness
from ki_ros.sample import Sample

CAMERAS = {
    CameraRole.EXTERIOR_1: "/camera/exterior_1/image_raw/compressed",
    CameraRole.WRIST: "/camera/wrist/image_raw/compressed",
}
JOINTS, GRIPPER, COMMANDS = "/joint_states", "/gripper/joint_states", "/joint_command"
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
    ended: bool = True
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


def record(work: Path, count: int, seconds: float) -> Path:
    """Recordings of a rig with two compressing cameras."""
    rng = np.random.default_rng(1)
    stock = [cv2.imencode(".jpg", scene(rng, 360, 640), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes() for _ in range(32)]
    for number in range(count):
        with BagWriter(work / f"run_{number:03d}") as bag:
            for topic in CAMERAS.values():
                bag.add_topic(topic, "sensor_msgs/msg/CompressedImage")
            for topic in (JOINTS, GRIPPER, COMMANDS):
                bag.add_topic(topic, "sensor_msgs/msg/JointState")
            bag.add_topic("/instruction", "std_msgs/msg/String")
            bag.write("/instruction", SECOND, encode.string("reach the red block"))
            joints = np.zeros(7)
            for tick in range(round(seconds * 100)):
                now = SECOND + tick * SECOND // 100
                joints = joints + rng.normal(0, 0.005, 7)
                for n, topic in enumerate(CAMERAS.values()):
                    if tick % 10 in (n, 3 + n, 6 + n):  # 30 Hz
                        picture = stock[int(rng.integers(len(stock)))]
                        bag.write(topic, now, encode.compressed_image(now, "", "rgb8; jpeg compressed bgr8", picture))
                bag.write(JOINTS, now, encode.joint_state(now, PANDA.joint_names, joints))
                bag.write(GRIPPER, now, encode.joint_state(now, (GRIPPER_JOINT,), (rng.uniform(0, 0.8),)))
                command = (*(joints + 0.01), rng.uniform(0, 0.8))
                bag.write(COMMANDS, now, encode.joint_state(now, PANDA.state_names, command))
    return work


class BagSamples:
    """Samples from the bags themselves, at the steps of a cache of them."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._readers = [
            make_reader(open(next(episode.bag.glob("*.mcap")), "rb"))  # noqa: SIM115 - as long as the process
            for episode in cache.episodes
        ]
        for reader in self._readers:
            reader.get_summary()  # the file's index, which the reader keeps

    def __len__(self) -> int:
        return len(self._cache)

    def __getitem__(self, step: int) -> Sample:
        reader = self._readers[self._cache.episode_of(step)]
        now = int(self._cache.stamps[step])
        # As far back as a sample may be old.
        newest: dict[str, bytes] = {}
        for _, channel, message in reader.iter_messages(
            topics=[*CAMERAS.values(), JOINTS, GRIPPER], starting_at=now - SECOND * 15 // 100, ending_at=now
        ):
            newest[channel.topic] = message.data
        views = {}
        for role, topic in CAMERAS.items():
            picture = cdr.read_compressed_image(newest[topic])
            views[role] = resize_with_pad(decompress(picture.data, picture.format), SIZE)
        state = np.array([*cdr.read_joint_state(newest[JOINTS]).positions, 0.0])
        state[7] = gripper_closedness(cdr.read_joint_state(newest[GRIPPER]).positions[0])
        times, sent = [], []
        for _, _, message in reader.iter_messages(
            topics=[COMMANDS], starting_at=now, ending_at=now + round(HORIZON * SECOND / RATE)
        ):
            times.append(message.log_time)
            sent.append(cdr.read_joint_state(message.data).positions)
        ends = now + np.round(np.arange(1, HORIZON + 1) * SECOND / RATE)
        actions = np.array(sent)[np.searchsorted(times, ends, side="right") - 1]
        actions[:, 7] = [gripper_closedness(angle) for angle in actions[:, 7]]
        return Sample(views, state, "", actions, np.ones(HORIZON, bool))


def require_equal(bags: BagSamples, cached: BagChunks, rng: np.random.Generator) -> None:
    """Ends the program where two sources do not give the same samples, but for the lossy pictures of a JPEG cache."""
    for index in rng.integers(0, len(cached), 20).tolist():
        there, here = bags[index], cached[index]
        same = all(np.array_equal(there.views[role], here.views[role]) for role in VIEWS)
        inside = here.action_mask
        if not (
            same
            and np.allclose(there.state, here.state, atol=1e-12)
            and np.allclose(there.actions[inside], here.actions[inside], atol=1e-12)
        ):
            raise SystemExit(f"sample {index} of the bags is not that of the cache: the sides do not do the same work")


# What runs in the other interpreter: samples a second for each line that comes in.
LEROBOT = """
import random, sys, time
from lerobot.datasets.lerobot_dataset import LeRobotDataset

root, horizon, rate, samples, seed = sys.argv[1], *map(float, sys.argv[2:])
ahead = [row / rate for row in range(int(horizon))]
dataset = LeRobotDataset("local/benchmark", root=root, delta_timestamps={"action": ahead})
sample = dataset[0]
draw = random.Random(seed)
views = [name for name in sample if name.startswith("observation.images.")]
print(len(dataset), len(views), tuple(sample["action"].shape)[0], flush=True)
for _ in sys.stdin:
    indices = [draw.randrange(len(dataset)) for _ in range(int(samples))]
    began = time.perf_counter()
    for index in indices:
        dataset[index]
    print(len(indices) / (time.perf_counter() - began), flush=True)
"""


class LeRobotLoader:
    """LeRobot's own loader on an export of a cache, in another interpreter."""

    def __init__(self, python: Path, cache: Cache, work: Path, samples: int) -> None:
        export = work / "lerobot"
        command = [sys.executable, "-m", "ki_ros.cli", "export", "lerobot", str(cache.directory), str(export)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        script = work / "load.py"
        script.write_text(LEROBOT, encoding="utf-8")
        self._process = subprocess.Popen(
            [str(python), str(script), str(export), str(HORIZON), str(RATE), str(samples), "0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        frames, views, rows = map(int, self._said().split())
        if (frames, views, rows) != (len(cache), len(VIEWS), HORIZON):
            raise SystemExit(f"LeRobot sees {frames} steps, {views} views and {rows} actions; they are not the cache's")

    def __call__(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._said())

    def close(self) -> None:
        """Ends the other interpreter."""
        self._process.communicate()

    def _said(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the interpreter of --lerobot-python ended; what it said is above")
        return line


def compare(work: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Samples a second of each source on the same recordings, and what it took to get there."""
    figures: dict[str, Any] = {"bags": options.bags, "seconds_each": options.seconds}
    with console.status(f"recording {options.bags} bags"):
        bags = record(work / "bags", options.bags, options.seconds)
    sources: dict[str, BagChunks] = {}
    for encoding in ("jpeg", "raw"):
        began = time.perf_counter()
        with console.status(f"reading them into a cache, {encoding}"):
            build_cache(bag_origins(bags), work / encoding, Storage(encoding), workers=os.cpu_count() or 1)
        figures[f"{encoding}_build_seconds"] = time.perf_counter() - began
        figures[f"{encoding}_bytes"] = sum(file.stat().st_size for file in (work / encoding).rglob("*.pictures"))
        sources[encoding] = chunks(work / encoding)
    figures["bag_bytes"] = sum(file.stat().st_size for file in bags.rglob("*.mcap"))
    figures["steps"] = len(sources["raw"])
    plain = BagSamples(sources["raw"].cache)
    require_equal(plain, sources["raw"], np.random.default_rng(2))
    rng = np.random.default_rng(3)
    slow = max(options.samples // 10, 20)
    sides: dict[str, Callable[[], float]] = {
        "cache, raw": lambda: rate(sources["raw"].__getitem__, len(sources["raw"]), rng, options.samples),
        "cache, jpeg": lambda: rate(sources["jpeg"].__getitem__, len(sources["jpeg"]), rng, options.samples),
        "bag": lambda: rate(plain.__getitem__, len(plain), rng, slow),
    }
    loader = None
    if options.lerobot_python:
        with console.status("exporting them for LeRobot"):
            loader = LeRobotLoader(options.lerobot_python, sources["jpeg"].cache, work, slow)
        sides["LeRobot"] = loader
    rates = alternate(sides, options.rounds)
    if loader is not None:
        loader.close()
    figures["samples_per_second"] = rates
    figures["ratio_of_jpeg_cache_to"] = {name: rates["cache, jpeg"] / value for name, value in rates.items()}
    return figures


def show_comparison(figures: dict[str, Any], console: Console) -> None:
    """Prints the table of `compare`."""
    table = Table(title=f"Random samples of {figures['bags']} recordings, {figures['steps']:,} steps")
    for column in ("source", "samples/s", "cache, jpeg / it"):
        table.add_column(column, justify="left" if column == "source" else "right")
    for name, value in figures["samples_per_second"].items():
        table.add_row(name, f"{value:.0f}", f"{figures['ratio_of_jpeg_cache_to'][name]:.2f}")
    console.print(table)
    console.print(
        f"bags {figures['bag_bytes'] / 1e6:.0f} MB; cache as jpeg {figures['jpeg_bytes'] / 1e6:.0f} MB in "
        f"{figures['jpeg_build_seconds']:.1f} s, raw {figures['raw_bytes'] / 1e6:.0f} MB in "
        f"{figures['raw_build_seconds']:.1f} s",
        highlight=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bags", type=int, default=6, help="recordings to make and compare on")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each side")
    parser.add_argument("--samples", type=int, default=600, help="samples of a round, from a cache")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], help="numbers of episodes")
    parser.add_argument("--lerobot-python", type=Path, help="interpreter that has the lerobot package")
    parser.add_argument("--work", type=Path, help="directory for recordings and caches; a temporary one when left out")
    parser.add_argument("--json", type=output_file, help="write the figures to this file")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    console = Console()
    with tempfile.TemporaryDirectory(dir=options.work) as temporary:
        work = Path(temporary)
        report: dict[str, Any] = {"sources": compare(work, options, console)}
        report["scaling"] = scaling(work, options.sizes, options.rounds, options.samples, console)
    show_comparison(report["sources"], console)
    show_scaling(report["scaling"], console)
    console.print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {options.rounds} rounds")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
