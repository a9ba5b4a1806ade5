"""A training run of seconds: a model of a few thousand weights on made-up pictures."""

from __future__ import annotations

import copy
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from tiny_model import TINY_MODEL
from torch import Tensor

from ki_ros.training.metrics import read_metrics


def settings(output: Path, **changes: Any) -> dict[str, Any]:
    """The configuration as plain values."""
    return {
        "output": str(output),
        "model": copy.deepcopy(TINY_MODEL),
        "data": {"kind": "pointing", "train": 40, "held_out": 6, "side": 32},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 2},
        "evaluation": {"every": 0, "samples": 6, "num_steps": 2},
        "fast_vocab_size": 300,
        "steps": 8,
        "batch_size": 8,
        "flow_samples": 2,
        "precision": "float32",
        "device": "cpu",
        "ema_decay": 0.9,
        "save_every": 0,
        "log_every": 1,
        "workers": 0,
        "tensorboard": False,
    } | changes


def write(directory: Path, **changes: Any) -> Path:
    """A configuration file whose run has its output beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "run.yaml"
    file.write_text(json.dumps(settings(directory / "out", **changes)))
    return file


def environment(**more: str) -> dict[str, str]:
    """Of child processes."""
    return os.environ | {"OMP_NUM_THREADS": "1"} | more


def command(file: Path, *options: str) -> list[str]:
    """`ki-ros train`."""
    return [sys.executable, "-m", "ki_ros.cli", "train", str(file), *options]


def run(file: Path, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs it to its end, in a process of its own."""
    done = subprocess.run(
        command(file, *options), capture_output=True, text=True, env=environment(), timeout=280, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def start_ranks(command: list[str], processes: int = 2) -> list[subprocess.Popen[str]]:
    """Starts a command in several processes that form a group, told of one another as torchrun would.

    Without torchrun: on one machine it adds a process that takes as long to start as each of the others.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            command,
            env=environment(**group, RANK=str(rank), LOCAL_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # As torchrun does: a signal to one's group reaches none of the others.
            start_new_session=True,
        )
        for rank in range(processes)
    ]


def end_ranks(ranks: list[subprocess.Popen[str]]) -> list[str]:
    """Waits for them; what each said."""
    try:
        return [rank.communicate(timeout=280)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def run_ranks(command: list[str], processes: int = 2) -> None:
    """Runs a command as `start_ranks` does, to its end."""
    ranks = start_ranks(command, processes)
    said = end_ranks(ranks)
    assert not any(rank.returncode for rank in ranks), "\n".join(said)


def curve(directory: Path, name: str = "loss") -> list[float]:
    """A metric of every step."""
    lines = read_metrics(directory / "out" / "metrics.jsonl")
    return [line[name] for line in lines if line["kind"] == "train"]


def saved(directory: Path, step: int) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, by file and name."""
    checkpoint = directory / "out" / "checkpoints" / f"step_{step:08d}"
    files = ("model.safetensors", *(f"training/{name}.safetensors" for name in ("weights", "average", "optimizer")))
    return {f"{file}:{name}": tensor for file in files for name, tensor in load_file(checkpoint / file).items()}
