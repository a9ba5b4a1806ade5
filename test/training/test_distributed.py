"""Two processes against one: the same curve, half of the weights each, and nothing lost when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from ki_ros.model.checkpoint import load_checkpoint
from ki_ros.training.state import checkpoints

STEPS = 6


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("alone")
    tiny.run(tiny.write(directory, steps=STEPS, save_every=3))
    return directory


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("ddp", {}),
        ("fsdp", {}),
        ("fsdp", {"micro_batch_size": 2, "activation_checkpointing": True}),
    ],
)
def test_two_processes_have_the_curve_of_one(alone: Path, tmp_path: Path, strategy: str, changes: dict) -> None:
    tiny.run(tiny.write(tmp_path, steps=STEPS, save_every=3, distributed=strategy, **changes), processes=2)
    for name in ("loss", "flow_loss", "fast_loss", "grad_norm_backbone", "grad_norm_expert"):
        np.testing.assert_allclose(tiny.curve(tmp_path, name), tiny.curve(alone, name), atol=1e-5, err_msg=name)
    ours, expected = (tiny.saved(directory, STEPS) for directory in (tmp_path, alone))
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, atol=2e-4, rtol=0, msg=name)
    evaluations = []
    for directory in (tmp_path, alone):
        (line,) = [
            json.loads(text)
            for text in (directory / "out" / "metrics.jsonl").read_text().splitlines()
            if '"eval"' in text
        ]
        evaluations.append([line[name] for name in ("flow_loss", "fast_loss", "action_error")])
    np.testing.assert_allclose(*evaluations, atol=1e-4)


def test_a_run_goes_on_with_other_processes(alone: Path, tmp_path: Path) -> None:
    """Begun sharded over two, ended by one."""
    file = tiny.write(tmp_path, steps=3, distributed="fsdp")
    tiny.run(file, processes=2)
    tiny.run(file, "--resume", "--set", f"steps={STEPS}", "distributed=auto")
    # The schedule's end was another in the first half.
    assert len(tiny.curve(tmp_path)) == STEPS
    assert tiny.curve(tmp_path)[:1] == pytest.approx(tiny.curve(alone)[:1], abs=1e-5)
    load_checkpoint(checkpoints(tmp_path / "out")[STEPS])


def test_each_process_holds_half(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("parallel_worker.py")
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(worker), tmp_path],
        env=tiny.environment(), capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.json", "1.json"]
    for file in tmp_path.iterdir():
        report = json.loads(file.read_text())
        assert report["names_kept"]
        assert report["sharded"]
        assert report["equal"]
        assert report["groups"] == report["layers"] == 4
        assert report["held"] == pytest.approx(report["whole"] / 2, rel=0.01)


def test_killed_process_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    file = tiny.write(tmp_path, steps=400, save_every=2, distributed="ddp")
    process = subprocess.Popen(
        tiny.command(file, processes=2), env=tiny.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not checkpoints(tmp_path / "out"):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(_children(process.pid)[-1], signal.SIGKILL)
        assert process.wait(timeout=120) != 0
    finally:
        process.kill()
    found = checkpoints(tmp_path / "out")
    newest = found[max(found)]
    load_checkpoint(newest)
    for name in ("weights", "average", "optimizer"):
        assert load_file(newest / "training" / f"{name}.safetensors")


def _children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def test_too_few_samples_for_the_processes_are_refused(tmp_path: Path) -> None:
    done = tiny.run(tiny.write(tmp_path, batch_size=3, distributed="ddp"), processes=2, check=False)
    assert done.returncode != 0
    assert "batch_size is 3" in done.stderr
