"""The training loop: steps, metrics, evaluation, checkpoints, and an orderly end."""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console
from torch.distributed.fsdp import FSDPModule

from ki_ros.files import write_json
from ki_ros.model.checkpoint import FAST_DIRECTORY
from ki_ros.model.config import KIConfig
from ki_ros.model.fast import FASTTokenizer
from ki_ros.model.fast_decoder import FASTDecoder
from ki_ros.model.losses import LossCounts
from ki_ros.model.model import KIModel
from ki_ros.training.assets import Sources, make_encoder, open_sources, prepare_assets
from ki_ros.training.batches import Split, TrainingBatch, evaluation_batches, training_batches
from ki_ros.training.build import build_model, resolve_model
from ki_ros.training.config import TrainConfig, TrainConfigError
from ki_ros.training.curves import draw_curves
from ki_ros.training.distributed import Parallel, World, world
from ki_ros.training.ema import EMA
from ki_ros.training.evaluation import evaluate
from ki_ros.training.metrics import MetricsLog
from ki_ros.training.optimizer import clip_sides, make_optimizer, set_learning_rate, trained_parameters
from ki_ros.training.resume import MODEL_INIT, changed_settings, describe_changes
from ki_ros.training.schedule import learning_rate
from ki_ros.training.state import SETTINGS_FILE, Progress, ResumeError, StateStore, checkpoints, git_revision
from ki_ros.training.status import Phase, StatusFile


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says at which step, and why."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: optimiser steps done.
        interrupted: whether a signal ended it before its last step.
        checkpoint: the newest one.
        evaluation: metrics of the last evaluation of this run, if there was one.
    """

    step: int
    interrupted: bool
    checkpoint: Path
    evaluation: dict[str, float] | None


def train(
    config: TrainConfig, *, resume: bool, console: Console | None = None, status: StatusFile | None = None
) -> Outcome:
    """Runs a training to its end, or until SIGINT or SIGTERM asks it to save and stop.

    Under torchrun all processes call it alike.

    Args:
        config: of the run.
        resume: go on from the newest checkpoint in its output, or begin where there is none.
        console: for messages and progress; the standard one when left out.
        status: kept at where the run is while it trains; how it ended is the caller's to say. None for none.

    Raises:
        ValueError: a configuration, data or checkpoint that cannot be used; before any process waits for another.
        TrainingError: a loss that is not finite.
        OSError: a checkpoint that could not be written.
    """
    model_config = resolve_model(config)
    _require_usable_output(config, resume)
    there = checkpoints(config.output)
    changes = changed_settings(there[max(there)], config, model_config) if there else {}
    sources = open_sources(config, model_config)
    _require_trained_views(config, sources)
    config.split_batch(int(os.environ.get("WORLD_SIZE", "1")))
    with world(config.device) as processes:
        strategy = config.distributed
        if strategy == "auto":
            strategy = "ddp" if processes.size > 1 else "single"
        elif strategy == "ddp" and processes.size == 1:
            strategy = "single"
        elif strategy == "fsdp" and not torch.distributed.is_initialized():
            raise TrainConfigError("distributed is 'fsdp', but there is one process; start it with torchrun")
        if strategy == "fsdp" and not sources.whole:
            raise TrainConfigError(
                "data.missing_views is 'mask', but distributed is 'fsdp', where all processes must use the same "
                "layers; use ddp, or episodes that have all views"
            )
        if strategy == "fsdp" and config.evaluation.decode_fast:
            raise TrainConfigError(
                "evaluation.decode_fast is true, but distributed is 'fsdp': rows of different length would have each "
                "process gather the weights at times of its own; set it to false, or use ddp"
            )
        shown = console if console is not None else Console()
        if not processes.is_main:
            shown = Console(file=open(os.devnull, "w"))  # noqa: SIM115 - as long as the process
        if changes:
            text = f"otherwise than at step {max(there)}: {describe_changes(changes)}"
            shown.print(text, markup=False, highlight=False, soft_wrap=True)
        state = status if status is not None and processes.is_main else StatusFile(None)
        run = _Run(config, model_config, sources, processes, strategy, shown, state)
        return run.run(moved=MODEL_INIT in changes)


class _Run:
    """One run in one process."""

    def __init__(
        self,
        config: TrainConfig,
        model_config: KIConfig,
        sources: Sources,
        processes: World,
        strategy: str,
        console: Console,
        status: StatusFile,
    ) -> None:
        self._config, self._sources, self._world, self._console = config, sources, processes, console
        self._status = status
        assets = config.output / "assets"
        if processes.is_main:
            config.output.mkdir(parents=True, exist_ok=True)
            if not checkpoints(config.output):
                assets = prepare_assets(config, sources, console)
        processes.barrier()
        fast = FASTTokenizer.from_directory(assets / FAST_DIRECTORY)
        self._encoder = make_encoder(config, model_config, assets, sources, training=True)
        self._plain_encoder = make_encoder(config, model_config, assets, sources, training=False)

        model = build_model(config, model_config, processes.device)
        self._parallel = Parallel(model, processes, strategy, unused_parameters=not sources.whole)
        # After sharding: these are the tensors that the optimiser updates. Others appear while a module is gathered.
        self._everything = dict(model.named_parameters())
        self._trained = trained_parameters(model)
        self._optimizer = make_optimizer(self._trained, config.optimizer)
        self._average = EMA(self._trained, config.ema_decay) if config.ema_decay is not None else None
        self._model: KIModel = model
        micro, accumulation = config.split_batch(processes.size)
        self._split = Split(processes.rank, processes.size, micro, accumulation)
        self._autocast = partial(
            torch.autocast,
            processes.device.type,
            torch.bfloat16,
            enabled=config.precision == "bfloat16",
            # A cache of cast weights would hold those of all layers through a pass, which checkpointing is to avoid.
            cache_enabled=not config.activation_checkpointing,
        )
        self._decoder = None
        if config.evaluation.decode_fast:
            self._decoder = FASTDecoder(model, fast, config.fast_max_tokens)
        self._store = StateStore(config.output, assets, processes, keep=config.keep, keep_every=config.keep_every)
        self._data, self._fast, self._git = sources.train.fingerprint, fast.fingerprint, git_revision()
        self._evaluated: dict[str, float] | None = None

    def run(self, *, moved: bool) -> Outcome:
        """To its end. `moved` says that the model comes from another place than at first."""
        config = self._config
        found = self._store.load(
            self._trained, self._average, self._optimizer, data=self._data, fast_tokenizer=self._fast
        )
        if moved and len(self._trained) < len(self._everything):
            source = f"model.init is {config.model.init}"
            self._store.require_deployed(self._everything, self._average, config.lora, source)
        first, earlier = (found.step, found.seconds) if found is not None else (0, 0.0)
        if self._world.is_main:
            write_json(config.output / SETTINGS_FILE, config.to_dict())
        self._announce(first)
        newest = checkpoints(config.output).get(first)
        self._status.update(phase=Phase.TRAINING, step=first, steps=config.steps, checkpoint=newest, message="")
        began = time.monotonic()
        step, saved, interrupted = first, first if found is not None else -1, False
        batches = training_batches(
            self._sources.train,
            self._encoder,
            seed=config.seed,
            first_step=first,
            steps=config.steps,
            split=self._split,
            workers=config.workers,
            pin_memory=self._world.device.type == "cuda",
        )
        with _stop_requests() as stop, _log(config, first, self._world, self._console) as log:
            if self._owes_evaluation(first, log):
                self._evaluate(first, log)
            meter = _Meter(config.batch_size, self._world.device)
            while step < config.steps and not interrupted:
                passes = _next(batches, stop)
                counts = self._counts(passes)
                if passes is None or counts is None:
                    interrupted = True
                    break
                metrics = self._step(step, passes, counts)
                step += 1
                meter.count()
                if log is not None and (step % config.log_every == 0 or step == config.steps):
                    metrics |= meter.read()
                    log.log(step, metrics, "train")
                    self._status.update(step=step, metrics=metrics, seconds_left=log.seconds_left)
                self._status.advance(step)
                # Processes must agree on it: one that stops alone leaves the others waiting.
                interrupted = bool(self._world.sum([float(stop())])[0]) and step < config.steps
                last = step == config.steps or interrupted
                # Before the evaluation: what fails there loses no step, and is made up for at the next start.
                if last or self._is_due(config.save_every, step):
                    self._save(step, earlier + time.monotonic() - began)
                    saved = step
                    meter.restart()
                if not interrupted and self._is_due(config.evaluation.every, step):
                    self._evaluate(step, log)
                    meter.restart()
            if saved != step:
                self._save(step, earlier + time.monotonic() - began)
        if self._world.is_main and step:
            draw_curves(config.output)
        newest = checkpoints(config.output)
        return Outcome(step, interrupted, newest[max(newest)], self._evaluated)

    def _is_due(self, every: int, step: int) -> bool:
        return step == self._config.steps or (every > 0 and step % every == 0)

    def _owes_evaluation(self, first: int, log: MetricsLog | None) -> bool:
        """Whether the run ended between a checkpoint and the evaluation that was due at its step."""
        owes = first > 0 and self._is_due(self._config.evaluation.every, first)
        # The process that has the log knows it for all.
        return owes and bool(self._world.sum([float(log is not None and not log.has(first, "eval"))])[0])

    def _counts(self, passes: list[TrainingBatch] | None) -> LossCounts | None:
        """Numbers of rows of the whole batch that carry each loss; None, in all processes, where one has no batch."""
        own = [0.0, 0.0] if passes is None else [sum(c) for c in zip(*(b.counts()[:2] for b in passes), strict=True)]
        flow, fast, lacking = self._world.sum([*own, float(passes is None)])
        return None if lacking else LossCounts(flow, fast)

    def _step(self, step: int, passes: list[TrainingBatch], counts: LossCounts) -> dict[str, float]:
        """One optimiser step. Losses are those of the whole batch, whoever computed which part of it."""
        config = self._config
        rate = learning_rate(
            step,
            peak=config.optimizer.learning_rate,
            end=_end_rate(config),
            warmup_steps=config.optimizer.warmup_steps,
            total_steps=config.steps,
        )
        set_learning_rate(self._optimizer, rate)
        sums = torch.zeros(4, device=self._world.device, dtype=torch.float64)
        for index, batch in enumerate(passes):
            batch = batch.to(self._world.device)
            with self._autocast():
                loss = self._parallel.loss(
                    batch.observation,
                    batch.actions,
                    action_mask=batch.action_mask,
                    noise=batch.noise,
                    time=batch.time,
                    flow_samples=config.flow_samples,
                    counts=counts,
                    last=index == len(passes) - 1,
                )
            (loss.loss * self._parallel.gradient_scale).backward()
            sums += torch.stack([value.detach().double() for value in loss[:4]])
        norms = clip_sides(self._trained, config.optimizer.clip_norm)
        total, flow, fast, accuracy = self._world.sum(sums.tolist())
        if not all(math.isfinite(value) for value in (total, *norms.values())):
            raise TrainingError(
                f"step {step + 1}: loss {total}, gradient norms {norms}; the last checkpoint is whole. Lower "
                "optimizer.learning_rate, or look for bad samples"
            )
        if not counts.fast:
            # Not one row of the batch has FAST tokens: nothing is known of them, where the sum says 0.
            fast = accuracy = math.nan
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._average is not None:
            self._average.update(self._trained, step)
        return {
            "loss": total,
            "flow_loss": flow,
            "fast_loss": fast,
            "fast_accuracy": accuracy,
            "grad_norm_backbone": norms["backbone"],
            "grad_norm_expert": norms["expert"],
            "learning_rate": rate,
        }

    def _evaluate(self, step: int, log: MetricsLog | None) -> None:
        source = self._sources.held_out
        if source is None:
            return
        config = self._config
        draw = partial(
            evaluation_batches,
            encoder=self._plain_encoder,
            samples=config.evaluation.samples,
            size=self._split.micro_size,
            rank=self._world.rank,
            world_size=self._world.size,
        )
        others = self._sources.others
        self._model.eval()
        try:
            with self._averaged():
                self._evaluated = evaluate(
                    self._parallel,
                    draw(source),
                    self._world,
                    num_steps=config.evaluation.num_steps,
                    autocast=self._autocast,
                    decoder=self._decoder,
                    others=draw(others) if others is not None else None,
                )
        finally:
            self._model.train()
        if log is not None:
            log.log(step, self._evaluated, "eval")
            self._status.update(step=step, evaluation=self._evaluated)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model with the averaged weights, where there are any."""
        self._reshard()
        with self._average.swapped(self._trained) if self._average is not None else nullcontext():
            try:
                yield
            finally:
                self._reshard()

    def _reshard(self) -> None:
        """Drops what is gathered of sharded weights, which would hide that they change."""
        for module in self._parallel.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _save(self, step: int, seconds: float) -> None:
        self._reshard()
        progress = Progress(step, self._data, self._fast, self._git, seconds)
        saved = self._store.save(
            progress,
            self._model.config,
            self._everything,
            self._trained,
            self._average,
            self._optimizer,
            self._config.lora,
            self._config.to_dict(),
        )
        self._status.update(step=step, checkpoint=saved)

    def _announce(self, first: int) -> None:
        config, trained = self._config, sum(p.numel() for p in self._trained.values())
        total = sum(p.numel() for p in self._everything.values())
        self._console.print(
            f"{'resuming at' if first else 'training from'} step {first} of {config.steps}: {trained / 1e6:.1f} of "
            f"{total / 1e6:.1f} M parameters, {len(self._sources.train)} samples, batches of {config.batch_size} "
            f"({self._split.world_size} x {self._split.accumulation} x {self._split.micro_size}), "
            f"{self._parallel.strategy} on {self._world.device}, {config.precision}"
        )


class _Meter:
    """Samples per second since the last reading, and memory."""

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self._batch_size, self._device = batch_size, device
        self.restart()

    def restart(self) -> None:
        self._began, self._steps = time.perf_counter(), 0

    def count(self) -> None:
        self._steps += 1

    def read(self) -> dict[str, float]:
        values = {"memory_gib": _memory(self._device) / 2**30}
        if self._steps:
            values["samples_per_second"] = self._steps * self._batch_size / (time.perf_counter() - self._began)
        self.restart()
        return values


def _memory(device: torch.device) -> float:
    """Peak memory so far [byte]: of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def _end_rate(config: TrainConfig) -> float:
    end = config.optimizer.end_learning_rate
    return config.optimizer.learning_rate / 10 if end is None else end


@contextmanager
def _log(config: TrainConfig, first: int, processes: World, console: Console) -> Iterator[MetricsLog | None]:
    """The log in the process that writes it, and None in the others."""
    if not processes.is_main:
        yield None
        return
    with MetricsLog(
        config.output,
        total_steps=config.steps,
        start_step=first,
        progress=True,
        tensorboard=config.tensorboard,
        console=console,
    ) as log:
        yield log


def _next(batches: Iterator[list[TrainingBatch]], stop: Callable[[], bool]) -> list[TrainingBatch] | None:
    """The passes of a step; None where the processes that load them ended of the signal that asked to stop."""
    try:
        return next(batches)
    except (RuntimeError, OSError, EOFError):
        # SIGTERM to a group, as torchrun sends it, ends them before this process has looked at it.
        if stop():
            return None
        raise


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM has come; a second SIGINT ends the process at once, as usual."""
    requested = False

    def request(number: int, _frame: FrameType | None) -> None:
        nonlocal requested
        requested = True
        # Not so SIGTERM: what stops a machine or a graph may send it twice, and saving must not be cut off.
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    try:
        before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        # Only the main thread can handle signals; elsewhere whoever started the thread must.
        before = {}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _require_usable_output(config: TrainConfig, resume: bool) -> None:
    if checkpoints(config.output) and not resume:
        raise ResumeError(
            f"output {config.output} holds the checkpoints of a run; give --resume to go on, or another output"
        )


def _require_trained_views(config: TrainConfig, sources: Sources) -> None:
    """Vision that never sees a picture must not be called trained."""
    if not sources.views and not {"vision", "projector"} <= set(config.freeze):
        raise TrainConfigError(
            "data.views is empty, so vision is not trained; say so: freeze: [vision, projector], or give views"
        )
