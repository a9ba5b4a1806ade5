"""Every benchmark runs once, on its smallest sizes, and writes its figures: that it runs, not what it measures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 500.0
"""How long a benchmark may take that takes 2 to 15 s on a machine with nothing else to do [s]."""

SMALL = {
    "inference": ["--preset", "ki_tiny", "--rounds", "1", "--steps", "2", "--prompt-tokens", "4", "--threads", "1"],
    "dataset": ["--bags", "1", "--seconds", "2", "--rounds", "1", "--samples", "5", "--sizes", "1"],
    "latency": ["--episodes", "1", "--delays", "0.1", "--schedules", "rtc", "--workers", "1"],
}
TRAINING = ["--preset", "ki_tiny", "--vocab-size", "2048", "--rounds", "1", "--batch", "1", "--threads", "1"]
THROUGHPUT = ["--throughput", "--batch", "1", "--max-batch", "1", "--steps", "1", "--threads", "1"]
SMALL_GRAPHS = {
    "executor": ["--rounds", "0", "--seconds", "1", "--rates", "100", "--guard-calls", "50"],
    "ros_overhead": ["--rounds", "1", "--seconds", "1"],
    "end_to_end": ["--seconds", "1"],
}
PARTS = {
    "arguments": "all of them",
    "openpi_like": "inference",
    "processes": "executor, ros_overhead",
    "training_baselines": "training",
}
"""Modules that are no programs, and whose tests are those of the programs that use them."""

LEFT_OUT = {
    "insulation": "drives the checkpoints of a sweep that was trained before: minutes",
    "kernel_profile": "draws the kernels of a call on a GPU",
    "lerobot_pi05": "needs LeRobot and the 3.3 B parameters of its model: minutes, and tens of gigabytes",
}
"""Why the others are not run."""


def run(name: str, arguments: list[str], directory: Path) -> dict:
    """Runs a benchmark; returns its figures."""
    file = directory / "figures.json"
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{name}.py", *arguments, "--json", file],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return json.loads(file.read_text())


def test_every_benchmark_is_run_or_has_a_reason_not_to_be():
    there = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert there == {*SMALL, *SMALL_GRAPHS, *PARTS, *LEFT_OUT, "training", "fast"}


@pytest.mark.parametrize("name", SMALL)
def test_benchmark(name, tmp_path):
    if name == "latency":
        pytest.importorskip("mujoco", reason="needs mujoco: run scripts/setup")
    output = ["--output", str(tmp_path)] if name == "latency" else []
    assert run(name, [*SMALL[name], *output], tmp_path)


def test_all_sides_of_a_training_step_have_our_losses(tmp_path):
    """The benchmark itself ends where a side has other losses or another gradient."""
    (table,) = run("training", TRAINING, tmp_path)["tables"]
    assert len(table["sides"]) == 7
    assert max(max(found.values()) for found in table["differences"].values()) < 1e-4


def test_throughput(tmp_path):
    assert run("training", THROUGHPUT, tmp_path)["throughput"]["best"]["batch"] == 1


def test_fast(test_data, tmp_path):
    assert run("fast", [str(test_data / "fast_plus"), str(test_data / "droid_100"), "--rounds", "1"], tmp_path)


@pytest.mark.graph
@pytest.mark.parametrize("name", SMALL_GRAPHS)
def test_benchmark_of_a_graph(name, tmp_path, full):
    pytest.importorskip("rclpy", reason="needs rclpy: run scripts/setup")
    pytest.importorskip("ki_ros.msg", reason="the interfaces are not built; run scripts/setup")
    # Nodes that command beside a policy take 20 s; the guard alone does not.
    more = ["--rounds", "1"] if name == "executor" and full else []
    assert run(name, [*SMALL_GRAPHS[name], *more], tmp_path)
