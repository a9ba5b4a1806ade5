"""`ki-ros evaluate`, as a person types it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ki_ros.model.checkpoint import save_checkpoint
from ki_ros.model.config import KIConfig
from ki_ros.model.model import KIModel

pytest.importorskip("mujoco", reason="needs mujoco: run scripts/setup")


def test_a_directory_that_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path) -> None:
    for step in (2, 10):
        save_checkpoint(KIModel(KIConfig.from_preset("ki_tiny")), tmp_path / "checkpoints" / f"step_{step:08d}")
    done = subprocess.run(
        [sys.executable, "-m", "ki_ros.cli", "evaluate", "--checkpoint", str(tmp_path), "--workers", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        check=False,
    )
    assert done.returncode == 1, done.stderr
    newest = tmp_path / "checkpoints" / "step_00000010"
    assert done.stderr == (f"ki-ros: {tmp_path} is the directory of a training, not of a checkpoint; give {newest}\n")
