"""Checkpoints of a run: complete or not there, deployable as they are, and enough to go on from.

`checkpoints/step_00001000/` is a checkpoint as `Policy.load` takes it: weights (the average, where there is one, with
adapters merged), configuration, statistics, tokenizers. `training/` inside holds what the next step depends on.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ki_ros.files import sync, sync_tree
from ki_ros.model.checkpoint import EMBEDDING, EMBEDDING_ALIAS, WEIGHTS_FILE, write_checkpoint
from ki_ros.model.config import KIConfig
from ki_ros.training.config import LoRAConfig
from ki_ros.training.distributed import World, gather, scatter_like
from ki_ros.training.ema import EMA
from ki_ros.training.lora import merge
from ki_ros.training.optimizer import optimizer_tensors

_NAME = re.compile(r"step_(\d+)")
_WEIGHTS, _AVERAGE, _OPTIMIZER = "weights.safetensors", "average.safetensors", "optimizer.safetensors"
_STATE = "state.json"

SETTINGS_FILE = "train.json"
"""A run's configuration, in its output and in each of its checkpoints."""


class ResumeError(ValueError):
    """A checkpoint that a run cannot go on from; the message names what is wrong."""


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        step: optimiser steps done.
        data: fingerprint of the training data.
        fast_tokenizer: fingerprint.
        git: revision of the code, with `-dirty` where it was changed; None outside a clone.
        seconds: time spent training [s].
    """

    step: int
    data: str
    fast_tokenizer: str
    git: str | None
    seconds: float


def git_revision() -> str | None:
    """The revision of the clone that this package is run from, if it is."""
    where = Path(__file__).resolve().parents[2]
    if not (where / ".git").exists():
        return None
    command = ["git", "-C", str(where), "describe", "--always", "--dirty", "--abbrev=12", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def checkpoints(output: Path) -> dict[int, Path]:
    """The complete checkpoints of a run by step, in order."""
    found = {}
    for path in (output / "checkpoints").glob("step_*"):
        if match := _NAME.fullmatch(path.name):
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def read_progress(checkpoint: Path) -> Progress:
    """Where the run was when it wrote a checkpoint.

    Raises:
        ResumeError: the checkpoint does not say, or not legibly.
    """
    file = checkpoint / "training" / _STATE
    try:
        return Progress(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ResumeError(f"{file} cannot be read ({error}); remove {checkpoint}") from error


class StateStore:
    """Writes and reads a run's checkpoints.

    Args:
        output: directory of the run.
        assets: directory whose content every checkpoint gets.
        world: the processes; with shards all of them take part in saving.
        keep, keep_every: see `TrainConfig`.
    """

    def __init__(self, output: Path, assets: Path, world: World, *, keep: int, keep_every: int) -> None:
        self._directory = output / "checkpoints"
        self._output = output
        self._assets = assets
        self._world = world
        self._keep, self._keep_every = keep, keep_every

    def save(
        self,
        progress: Progress,
        config: KIConfig,
        everything: Mapping[str, Tensor],
        trained: Mapping[str, nn.Parameter],
        average: EMA | None,
        optimizer: torch.optim.Optimizer,
        lora: LoRAConfig | None,
        run: Mapping[str, Any],
    ) -> Path:
        """Writes a checkpoint; all processes must call it. Returns its directory.

        Args:
            progress, config: of the run and of the model.
            everything: all weights by name, sharded or not.
            trained: those of them that are trained.
            average, optimizer, lora: of the run.
            run: its configuration as plain values.

        Raises:
            OSError: nothing was written; earlier checkpoints are as they were.
        """
        final = self._directory / f"step_{progress.step:08d}"
        temporary = self._directory / f".step_{progress.step:08d}"
        averages = average.state_dict() if average is not None else {}
        writer = self._world.is_main
        problem: OSError | None = None
        if writer:
            shutil.rmtree(temporary, ignore_errors=True)
            (temporary / "training").mkdir(parents=True)
        # Gathered one after the other: each is as large as the model, or twice that.
        parts: tuple[tuple[str, dict[str, Tensor]], ...] = (
            (_WEIGHTS, dict(trained)),
            (_AVERAGE, averages),
            (_OPTIMIZER, optimizer_tensors(optimizer, trained)),
        )
        for name, tensors in parts:
            whole = self._gather(tensors)
            # Before the first step the optimiser has no state; that there is none must be in the checkpoint, too.
            written = bool(tensors) or name == _OPTIMIZER
            if writer and written and problem is None:
                problem = _attempt(lambda w=whole, n=name: save_file(w, temporary / "training" / n))
            del whole
        deployed = self._gather({name: averages.get(name, tensor) for name, tensor in everything.items()})
        if writer:
            if problem is None:
                weights = merge(deployed, lora)
                problem = _attempt(lambda: self._finish(temporary, final, progress, config, weights, run))
            if problem is not None:
                shutil.rmtree(temporary, ignore_errors=True)
        # Every process learns of it, so that all of them stop.
        if self._world.sum([float(problem is not None)])[0]:
            raise OSError(
                f"checkpoint {final} could not be written ({problem or 'see the first process'}); earlier ones are "
                "whole: make room, and go on with --resume"
            )
        return final

    def load(
        self,
        trained: Mapping[str, nn.Parameter],
        average: EMA | None,
        optimizer: torch.optim.Optimizer,
        *,
        data: str,
        fast_tokenizer: str,
    ) -> Progress | None:
        """Takes over the newest checkpoint; None where there is none. However many processes wrote it.

        Raises:
            ResumeError: it belongs to other data or another model, or is damaged.
        """
        found = checkpoints(self._output)
        if not found:
            return None
        newest = found[max(found)]
        progress, directory = read_progress(newest), newest / "training"
        for name, ours in (("data", data), ("fast_tokenizer", fast_tokenizer)):
            if getattr(progress, name) != ours:
                raise ResumeError(
                    f"{directory}: {name} has the fingerprint {getattr(progress, name)}, now it is {ours}; go on with "
                    "the same, or begin a new run with this checkpoint as model.init"
                )
        with torch.no_grad():
            for name, whole in _read(directory / _WEIGHTS, set(trained)).items():
                trained[name].copy_(scatter_like(whole, trained[name]))
        if average is not None:
            own = average.state_dict()
            whole = _read(directory / _AVERAGE, set(own))
            average.load_state_dict({name: scatter_like(tensor, own[name]) for name, tensor in whole.items()})
        _load_optimizer(directory / _OPTIMIZER, optimizer, trained, begun=progress.step > 0)
        return progress

    def require_deployed(
        self, everything: Mapping[str, Tensor], average: EMA | None, lora: LoRAConfig | None, source: str
    ) -> None:
        """Compares a model that took over the newest checkpoint with what that deploys; all processes must call it.

        What is not trained is not taken over: it is where the model came from.

        Args:
            everything, average, lora: as of `save`.
            source: of the model, for the error.

        Raises:
            ResumeError: they differ.
        """
        newest = checkpoints(self._output)
        file = newest[max(newest)] / WEIGHTS_FILE
        averages = average.state_dict() if average is not None else {}
        deployed = self._gather({name: averages.get(name, tensor) for name, tensor in everything.items()})
        different = []
        if self._world.is_main:
            with _opened(file) as handle:
                for name, tensor in merge(deployed, lora).items():
                    # Products of adapters may be rounded otherwise by another machine.
                    stored = handle.get_tensor(EMBEDDING_ALIAS if name == EMBEDDING else name)
                    if not torch.allclose(tensor, stored, rtol=1e-5, atol=1e-6):
                        different.append(name)
        if self._world.sum([float(len(different))])[0]:
            raise ResumeError(
                f"{source}: weights that are not trained are not those of {file}, the first is "
                f"{different[0] if different else 'named by the first process'}; give the model that the run was begun "
                "with, or begin a new run in another output"
            )

    def _gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All of them whole, in this process if it writes; one after the other, so a device holds one at a time."""
        whole = {}
        for name, tensor in tensors.items():
            full = gather(tensor.detach())
            if self._world.is_main:
                # A copy even on the CPU: safetensors refuses tensors that share their memory.
                whole[name] = full.to("cpu", copy=True).contiguous()
        return whole

    def _finish(
        self,
        temporary: Path,
        final: Path,
        progress: Progress,
        config: KIConfig,
        weights: Mapping[str, Tensor],
        run: Mapping[str, Any],
    ) -> None:
        write_checkpoint(weights, config, temporary)
        shutil.copytree(self._assets, temporary, dirs_exist_ok=True)
        (temporary / SETTINGS_FILE).write_text(json.dumps({"git": progress.git, **run}, indent=1) + "\n", "utf-8")
        (temporary / "training" / _STATE).write_text(json.dumps(asdict(progress), indent=1) + "\n", "utf-8")
        sync_tree(temporary)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        sync(self._directory)
        self._prune()

    def _prune(self) -> None:
        steps = list(checkpoints(self._output).items())
        for step, path in steps[: -self._keep]:
            if self._keep_every and step and step % self._keep_every == 0:
                shutil.rmtree(path / "training", ignore_errors=True)
            else:
                shutil.rmtree(path)


def _attempt(write: Any) -> OSError | None:
    """The error with which writing ended, if any."""
    try:
        write()
    except OSError as error:
        return error
    except SafetensorError as error:
        # How safetensors reports a full disk.
        return OSError(str(error))
    return None


def _read(file: Path, names: set[str]) -> dict[str, Tensor]:
    """The tensors of a file, which must be those."""
    with _opened(file) as handle:
        there = set(handle.keys())
        if there != names:
            missing, unknown = sorted(names - there), sorted(there - names)
            raise ResumeError(
                f"{file} holds other weights than the run trains: missing {missing[:3]}, unknown {unknown[:3]}; "
                "go on with the model, freeze and lora that it was begun with"
            )
        return {name: handle.get_tensor(name) for name in sorted(there)}


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A file of tensors. Raises ResumeError, here or in the block, if it cannot be read."""
    try:
        with safe_open(file, framework="pt") as handle:
            yield handle
    except (OSError, SafetensorError) as error:
        raise ResumeError(f"{file} cannot be read ({error}); remove {file.parents[1]}") from error


def _load_optimizer(
    file: Path, optimizer: torch.optim.Optimizer, trained: Mapping[str, nn.Parameter], *, begun: bool
) -> None:
    """Takes over the state of each parameter that has one.

    A parameter gets its state with its first gradient: vision has none before the first picture. It is all there or all
    absent, and with `begun` some parameter has one.
    """
    quantities = ("step", "exp_avg", "exp_avg_sq")
    with _opened(file) as handle:
        there = set(handle.keys())
        if unknown := sorted(there - {f"{name}.{quantity}" for name in trained for quantity in quantities}):
            raise ResumeError(
                f"{file} holds the state of other weights than the run trains: unknown {unknown[:3]}; go on with the "
                "model, freeze and lora that it was begun with"
            )
        if begun and not there:
            raise ResumeError(f"{file} holds no state at all; remove {file.parents[1]}")
        for name, parameter in trained.items():
            missing = [key for key in quantities if f"{name}.{key}" not in there]
            if len(missing) == len(quantities):
                continue
            if missing:
                raise ResumeError(
                    f"{file} holds a part of the state of {name}, without {', '.join(missing)}; remove "
                    f"{file.parents[1]}"
                )
            whole = {key: handle.get_tensor(f"{name}.{key}") for key in quantities}
            optimizer.state[parameter] = {
                "step": whole["step"].to(parameter.device),
                **{key: scatter_like(whole[key], parameter) for key in quantities[1:]},
            }
