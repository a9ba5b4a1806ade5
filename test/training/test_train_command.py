"""`ki-ros train`, as a person types it."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import tiny

from ki_ros.commands.train import train as command
from ki_ros.training.metrics import METRICS_FILE, read_metrics
from ki_ros.training.status import Phase, read_status

PATIENCE = 120.0


def test_a_second_one_with_the_same_output_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    file, status = tiny.write(tmp_path, steps=1_000_000), tmp_path / "out" / "status.json"
    metrics = tmp_path / "out" / METRICS_FILE
    status.parent.mkdir()
    with subprocess.Popen(
        tiny.command(file, "--status", str(status)), env=tiny.environment(), stdout=subprocess.DEVNULL
    ) as first:
        try:
            deadline = time.monotonic() + PATIENCE
            while not (metrics.exists() and metrics.stat().st_size):
                assert first.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            second = tiny.run(file, "--status", str(status), check=False)
            assert second.returncode == 1
            said = f"output {tmp_path / 'out'} is in use by another training; wait for it, or give another output"
            assert second.stderr == f"ki-ros: {said}\n"
            assert read_status(status).phase is Phase.TRAINING
        finally:
            first.kill()
    again = {"bags": None, "set": ("steps=3",), "output": None, "resume": True, "dry_run": False, "json": None}
    assert command(config=file, **again) == 0
    assert [line["step"] for line in read_metrics(metrics) if line["kind"] == "train"] == [1, 2, 3]


def test_an_output_is_said_as_it_is_named(tmp_path: Path) -> None:
    output = tmp_path / "run[a][/b]"
    done = tiny.run(tiny.write(tmp_path, steps=3), "--output", str(output))
    assert done.stdout.splitlines()[-1].startswith(f"done at step 3: {output}/checkpoints/")
