#!/usr/bin/env python3
"""What a training step costs, against the plainer ways to compute the same two losses.

    benchmarks/training.py [--preset ki_tiny] [--device cpu] [--batch N] [--rounds 7] [--json FILE]
    benchmarks/training.py --throughput --preset pi05_droid_ki --device cuda [--json FILE]

A step is forward, backward and a fused AdamW step, with float32 weights. Ours is measured against

- (a) logits of the whole vocabulary at every backbone token, where ours has them at the FAST rows;
- (b) two passes, one for each loss; (b') is harder to beat: its flow pass runs the backbone without gradient, as
  insulation allows;
- (c) five passes for five draws of noise, where ours has one; (c') is harder to beat: only one of the five computes
  the FAST loss and runs the backbone with gradient.

All sides have the same weights and the same synthetic data, and in float32 must first give our losses and our gradient.
The learning rate is zero: AdamW does all of its work, and the weights stay the same for every side. Sides alternate in
rounds in this process. Shown are the median step of each, and the median and the middle half of the rounds' ratios: on
a machine that others use too, single rounds may be many times slower. --threads 1 suffers least from that.

Memory is the peak above the weights. On CUDA it is what PyTorch's allocator had handed out. On a CPU each side runs in
a child process of its own, and it is the largest resident set during three steps above that after the model was built.

On a CPU, (a) is also shown with the vocabulary of PaliGemma, unless --vocab-size sets one.

--throughput measures samples per second of a whole step, with gradient clipping and EMA, for batches that double until
memory is used up. Loading of data is not part of it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arguments import output_file
from rich.console import Console
from rich.table import Table
from torch.optim.swa_utils import get_ema_multi_avg_fn
from training_baselines import DRAWS, SIDES, VIEWS, Batch, Losses, make_batch, make_model, relative_differences

from ki_ros.model import KIConfig, KIModel
from ki_ros.model.config import PRESETS

PALIGEMMA_VOCABULARY = 257152
LARGE_VOCABULARY_BATCH, LARGE_VOCABULARY_ROUNDS = 4, 5
TOLERANCE = 1e-4
MEMORY_STEPS = 3
EMA_DECAY = 0.999
CLIP_NORM = 1.0
GOAL_SAMPLES_PER_SECOND = 25.0
PROMPT_AND_FAST = {"ki_tiny": (60, 30), "pi05_droid_ki": (120, 40)}
"""Longest prompt and FAST sequence [tokens], by preset."""
BATCHES = {"ki_tiny": 8, "pi05_droid_ki": 2}
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Case:
    """What is measured, and in what.

    Attributes:
        preset, vocab_size: of the model; vocab_size None is the preset's own.
        device, threads: of PyTorch; threads are of the CPU.
        batch: samples of a step.
        dtype: float32, or bfloat16 for autocast.
        checkpointing: activation checkpointing of the paired layers.
    """

    preset: str
    vocab_size: int | None
    device: str
    threads: int
    batch: int
    dtype: str
    checkpointing: bool

    @property
    def config(self) -> KIConfig:
        """The model's configuration."""
        config = KIConfig.from_preset(self.preset)
        if self.vocab_size is None:
            return config
        return dataclasses.replace(config, language=dataclasses.replace(config.language, vocab_size=self.vocab_size))

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass."""
        device = torch.device(self.device).type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.dtype == "bfloat16")

    def model(self) -> KIModel:
        """The model on its device; the same weights each time on the same device."""
        torch.set_num_threads(self.threads)
        return make_model(self.config, self.device, checkpointing=self.checkpointing)

    def data(self) -> Batch:
        """The batch on the device."""
        prompt, fast = PROMPT_AND_FAST[self.preset]
        return make_batch(self.config, self.batch, prompt=prompt, fast=fast, device=self.device)

    def synchronize(self) -> None:
        """Waits until the device has done what it was given."""
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)


def adamw(model: KIModel) -> torch.optim.AdamW:
    """Fused, with a learning rate of zero: all of the work, and no change of the weights."""
    return torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)


def step(name: str, model: KIModel, batch: Batch, optimizer: torch.optim.Optimizer, case: Case) -> Losses:
    """One training step of a side."""
    optimizer.zero_grad(set_to_none=True)
    losses = SIDES[name].backward(model, batch, case.autocast)
    optimizer.step()
    return losses


# Memory


def status_bytes(field: str) -> int:
    """A size in /proc/self/status, such as VmRSS."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}; resident memory can be measured on Linux only")


def reset_peak_resident() -> bool:
    """Lets VmHWM begin again at VmRSS; whether this process may."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def resident_memory(name: str, case: Case) -> tuple[int, bool]:
    """Peak resident bytes of a side's steps above the weights, and whether VmHWM was reset. Wants a fresh process."""
    model, batch = case.model(), case.data()
    # One row through all of the code, so that libraries and their buffers are resident before and not counted.
    one = dataclasses.replace(case, batch=1)
    SIDES[name].backward(model, one.data(), case.autocast)
    model.zero_grad(set_to_none=True)
    optimizer = adamw(model)
    level, reset = status_bytes("VmRSS"), reset_peak_resident()
    for _ in range(MEMORY_STEPS):
        step(name, model, batch, optimizer, case)
    return status_bytes("VmHWM") - level, reset


def resident_memories(names: Iterable[str], case: Case) -> tuple[dict[str, int], str]:
    """Peak of each side in a child of its own, one after the other, and how it was measured."""
    # Blocks of 128 KiB and more are mapped one by one and leave the resident set as soon as they are freed, so that it
    # is what is in use. The allocator reads this when a process begins.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(128 * 1024)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ki_ros.model"])
    peaks, reset = {}, True
    for name in names:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            peaks[name], was_reset = pool.submit(resident_memory, name, case).result()
        reset = reset and was_reset
    measured = "VmHWM above VmRSS after the model was built, a process for each side"
    if not reset:
        measured += "; /proc/self/clear_refs is not writable here, so a peak while the model was built counts too"
    return peaks, measured


def required_bytes(config: KIConfig, *, ema: bool) -> int:
    """Of weights, gradients and the state of AdamW, and of EMA: float32 all."""
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in KIModel(config).parameters())
    return 4 * parameters * (5 if ema else 4)


def available_bytes(device: str) -> int:
    """Free memory of the device, or of this machine."""
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/meminfo has no MemAvailable; resident memory can be measured on Linux only")


# Ours against the baselines


def check(names: Iterable[str], model: KIModel, batch: Batch, console: Console) -> dict[str, dict[str, float]]:
    """Relative differences of each baseline from ours, in float32. Ends the run on one that computes something else."""
    differences: dict[str, dict[str, float]] = {}
    table = Table(title=f"relative differences from ours in float32, limit {TOLERANCE:g}")
    for name in names:
        side = SIDES[name]
        if side.reference == name:
            continue
        reference = SIDES[side.reference].backward(
            model, batch, lambda: torch.autocast(batch.actions.device.type, enabled=False)
        )
        found = differences[name] = relative_differences(model, batch, side, reference)
        if not table.columns:
            table.add_column("")
            for title in found:
                table.add_column(title, justify="right")
        table.add_row(side.title, *(f"{value:.1e}" for value in found.values()))
        if not all(value <= TOLERANCE for value in found.values()):
            console.print(table)
            raise SystemExit(f"{side.title} computes something else than ours, so it is no baseline")
    console.print(table)
    return differences


def measure(
    names: Iterable[str], model: KIModel, batch: Batch, case: Case, rounds: int, steps: int, console: Console
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds per step of each side in each round, and on CUDA the peak of what was allocated above the weights."""
    names = list(names)
    cuda = case.device != "cpu"
    level = torch.cuda.memory_allocated(case.device) if cuda else 0
    optimizer = adamw(model)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    peaks = dict.fromkeys(names, 0)
    for i in range(-1, rounds):
        # Who goes first alternates too, so that a drift of the machine hits all alike. The round before the first warms
        # up: code, buffers, the state of AdamW.
        for name in names if i % 2 == 0 else reversed(names):
            if cuda:
                torch.cuda.reset_peak_memory_stats(case.device)
            case.synchronize()
            began = time.perf_counter()
            for _ in range(steps):
                step(name, model, batch, optimizer, case)
            case.synchronize()
            if i < 0:
                continue
            seconds[name].append((time.perf_counter() - began) / steps)
            if cuda:
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated(case.device) - level)
        if i >= 0:
            console.print(
                f"round {i + 1} of {rounds}: " + ", ".join(f"{name} {seconds[name][-1]:.3g} s" for name in names),
                style="dim",
            )
    return seconds, peaks


def compare(names: list[str], case: Case, rounds: int, steps: int, console: Console) -> dict[str, Any]:
    """Checks and measures the sides, shows a table, and returns its figures."""
    peaks: dict[str, int] = {}
    measured = "largest memory that PyTorch's allocator had handed out, above that after the model was built"
    if case.device == "cpu":
        peaks, measured = resident_memories(names, case)
    model, batch = case.model(), case.data()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    differences = check(names, model, batch, console)
    seconds, allocated = measure(names, model, batch, case, rounds, steps, console)
    peaks = peaks or allocated

    prompt, fast = PROMPT_AND_FAST[case.preset]
    title = (
        f"{case.preset}, {parameters / 1e6:.1f} M parameters, vocabulary {case.config.language.vocab_size}; batch "
        f"{case.batch}, {VIEWS} views of {case.config.vision.tokens} tokens, prompts to {prompt}, FAST to {fast}; "
        f"{case.dtype} on {case.device}" + (", activation checkpointing" if case.checkpointing else "")
    )
    table = Table(title=f"{title}; medians of {rounds} alternating rounds of {steps}")
    table.add_column("training step")
    for column in ("step [ms]", "/ ours", "middle half", "memory [MiB]", "/ ours"):
        table.add_column(column, justify="right")
    sides: dict[str, dict[str, Any]] = {}
    for name in names:
        reference = SIDES[name].reference
        ratios = [theirs / ours for theirs, ours in zip(seconds[name], seconds[reference], strict=True)]
        figures = sides[name] = {
            "title": SIDES[name].title,
            "reference": reference,
            "seconds": seconds[name],
            "median_seconds": statistics.median(seconds[name]),
            "peak_bytes": peaks[name],
        }
        low, figures["time_ratio"], high = np.percentile(ratios, (25, 50, 75)).tolist()
        figures["time_ratio_middle_half"] = [low, high]
        figures["memory_ratio"] = peaks[name] / sides[reference]["peak_bytes"]
        ours = name == reference
        table.add_row(
            SIDES[name].title,
            f"{1e3 * figures['median_seconds']:.1f}",
            "" if ours else f"{figures['time_ratio']:.2f}",
            "" if ours else f"{low:.2f} to {high:.2f}",
            f"{peaks[name] / MIB:.0f}",
            "" if ours else f"{figures['memory_ratio']:.2f}",
            end_section=name == "two passes, detached",
        )
    console.print(table)
    if "five" in sides:
        cost = statistics.median(np.divide(seconds["five"], seconds["one"]).tolist())
        console.print(f"Ours: a step with {DRAWS} draws takes {cost:.2f} times as long as one with 1 draw")
    console.print(
        f"Memory: {measured}; {12 * parameters / MIB:.0f} MiB of it on every side are gradients and the state of AdamW"
    )
    return {
        "case": dataclasses.asdict(case) | {"vocab_size": case.config.language.vocab_size},
        "parameters": parameters,
        "memory": measured,
        "differences": differences,
        "sides": sides,
    }


# Throughput


def sizes(first: int, largest: int) -> Iterable[int]:
    """first, twice that, and so on; never above the largest."""
    while first <= largest:
        yield first
        first *= 2


class Trainer:
    """All that a step of training has on the device: weights, gradients, AdamW, EMA."""

    def __init__(self, case: Case, draws: int) -> None:
        self.case = case
        self.name = "one" if draws == 1 else "five"
        self.model = case.model()
        self.parameters = list(self.model.parameters())
        self.optimizer = adamw(self.model)
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self._update_average = get_ema_multi_avg_fn(EMA_DECAY)

    def step(self, batch: Batch) -> Losses:
        """A step with gradient clipping and EMA."""
        self.optimizer.zero_grad(set_to_none=True)
        losses = SIDES[self.name].backward(self.model, batch, self.case.autocast)
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP_NORM)
        self.optimizer.step()
        self._update_average(self.average, self.parameters, None)
        return losses

    def run(self, size: int, steps: int) -> dict[str, float] | None:
        """Figures of steps with a batch of that size; None where memory does not hold it."""
        try:
            return self._run(dataclasses.replace(self.case, batch=size), steps)
        except torch.OutOfMemoryError:
            # The step may have ended anywhere, but a learning rate of zero has left the weights as they were. What it
            # had allocated is freed below, when this exception and its frames are gone.
            pass
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return None

    def _run(self, case: Case, steps: int) -> dict[str, float]:
        cuda = case.device != "cpu"
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(case.device)
        else:
            reset_peak_resident()
        batch = case.data()
        # The first two steps make the state of AdamW and fill the allocator's cache.
        for _ in range(2):
            losses = self.step(batch)
        seconds = []
        for _ in range(steps):
            case.synchronize()
            began = time.perf_counter()
            losses = self.step(batch)
            case.synchronize()
            seconds.append(time.perf_counter() - began)
        if not all(bool(loss.isfinite()) for loss in losses):
            raise SystemExit(f"the losses are {[float(loss) for loss in losses]} at batch {case.batch}, not finite")
        peak = torch.cuda.max_memory_allocated(case.device) if cuda else status_bytes("VmHWM")
        return {
            "batch": case.batch,
            "step_seconds": statistics.median(seconds),
            "samples_per_second": case.batch / statistics.median(seconds),
            "peak_bytes": peak,
        }


def throughput(case: Case, largest: int, steps: int, draws: int, console: Console) -> dict[str, Any]:
    """Samples per second by batch, doubled until memory is used up and then half-way back; shows a table."""
    trainer = Trainer(case, draws)
    results: list[dict[str, float]] = []
    out_of_memory: list[int] = []

    def attempt(size: int) -> None:
        console.print(f"batch {size}", style="dim")
        figures = trainer.run(size, steps)
        if figures is None:
            out_of_memory.append(size)
        else:
            results.append(figures)

    for size in sizes(case.batch, largest):
        attempt(size)
        if out_of_memory:
            break
    if out_of_memory and results and out_of_memory[0] - results[-1]["batch"] > 1:
        attempt(int(results[-1]["batch"] + out_of_memory[0]) // 2)
    if not results:
        raise SystemExit(
            f"--batch {case.batch}: out of memory; give a smaller one"
            if case.batch > 1
            else f"{case.preset} does not fit {case.device} with a batch of 1"
        )

    name = torch.cuda.get_device_name(case.device) if case.device != "cpu" else f"CPU, {case.threads} threads"
    table = Table(
        title=f"{case.preset} on one {name}; float32 weights, {case.dtype}, AdamW, clipping, EMA, "
        f"{draws} draw{'s' if draws > 1 else ''}" + (", activation checkpointing" if case.checkpointing else "")
    )
    for column in ("batch", "step [s]", "samples/s", "peak memory [GiB]"):
        table.add_column(column, justify="right")
    for figures in results:
        table.add_row(
            f"{figures['batch']}",
            f"{figures['step_seconds']:.3f}",
            f"{figures['samples_per_second']:.2f}",
            f"{figures['peak_bytes'] / GIB:.2f}",
        )
    for size in sorted(out_of_memory):
        table.add_row(f"{size}", "", "out of memory", "")
    console.print(table)
    best = max(results, key=lambda figures: figures["samples_per_second"])
    console.print(
        f"best: {best['samples_per_second']:.2f} samples/s at batch {best['batch']}; median of {steps} steps, "
        f"synthetic data on the device. Goal for pi05_droid_ki on one H200: {GOAL_SAMPLES_PER_SECOND:g} samples/s"
    )
    memory = "largest memory that PyTorch's allocator had handed out" if case.device != "cpu" else "VmHWM"
    return {
        "case": dataclasses.asdict(case) | {"vocab_size": case.config.language.vocab_size},
        "device_name": name,
        "draws": draws,
        "memory": memory,
        "batches": results,
        "out_of_memory": sorted(out_of_memory),
        "best": best,
        "goal_samples_per_second": GOAL_SAMPLES_PER_SECOND,
    }


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return value


def device_name(text: str) -> str:
    """cpu, cuda, or cuda:N that is there."""
    try:
        device = torch.device(text)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"{text!r} is no device; give cpu, cuda, or cuda:N")
    if device.type == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(
            f"{text}: PyTorch {torch.__version__} sees no CUDA device here; give cpu, or run this with a CUDA "
            "build of PyTorch on a machine that has an NVIDIA GPU"
        )
    if (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text}: there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return f"cuda:{device.index or 0}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="ki_tiny")
    parser.add_argument("--device", type=device_name, default="cpu", help="cpu, cuda, or cuda:N")
    parser.add_argument("--batch", type=positive, help="samples of a step; with --throughput the smallest batch")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of autocast; default float32 on a CPU, else bfloat16"
    )
    parser.add_argument("--vocab-size", type=positive, help="instead of the preset's")
    parser.add_argument("--rounds", type=positive, default=7, help="rounds of each side")
    parser.add_argument("--steps", type=positive, help="steps of a side in a round (1), or of a batch (10)")
    parser.add_argument("--threads", type=positive, default=2, help="CPU threads of PyTorch")
    parser.add_argument("--activation-checkpointing", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--throughput", action="store_true", help="samples/s by batch instead")
    parser.add_argument("--max-batch", type=positive, help="largest batch of --throughput (8 on a CPU, 1024)")
    parser.add_argument(
        "--flow-samples", type=int, choices=(1, DRAWS), default=1, help="draws of noise of --throughput"
    )
    parser.add_argument("--json", type=output_file, help="write the figures to this file")
    options = parser.parse_args()

    cpu = options.device == "cpu"
    checkpointing = options.activation_checkpointing
    case = Case(
        preset=options.preset,
        vocab_size=options.vocab_size,
        device=options.device,
        threads=options.threads,
        batch=options.batch or (2 if options.throughput else BATCHES[options.preset]),
        dtype=options.dtype or ("float32" if cpu else "bfloat16"),
        checkpointing=options.throughput if checkpointing is None else checkpointing,
    )
    required, available = required_bytes(case.config, ema=options.throughput), available_bytes(case.device)
    if required > available:
        parser.error(
            f"--preset {case.preset}: weights, gradients and optimiser need {required / GIB:.1f} GiB and {case.device} "
            f"has {available / GIB:.1f} GiB free; give --preset ki_tiny or a larger device"
        )
    console = Console()
    report: dict[str, Any] = {"torch": torch.__version__, "cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
    if options.throughput:
        largest = options.max_batch or (8 if cpu else 1024)
        if largest < case.batch:
            parser.error(f"--max-batch {largest} is below the smallest batch, {case.batch}; give a larger one")
        report["throughput"] = throughput(case, largest, options.steps or 10, options.flow_samples, console)
    else:
        runs = [(list(SIDES), case, options.rounds)]
        if cpu and options.vocab_size is None and case.config.language.vocab_size < PALIGEMMA_VOCABULARY:
            batch = options.batch or LARGE_VOCABULARY_BATCH
            large = dataclasses.replace(case, vocab_size=PALIGEMMA_VOCABULARY, batch=batch)
            runs.append((["one", "logits"], large, min(options.rounds, LARGE_VOCABULARY_ROUNDS)))
        try:
            report["tables"] = [compare(names, of, rounds, options.steps or 1, console) for names, of, rounds in runs]
        except torch.OutOfMemoryError:
            raise SystemExit(f"--batch {case.batch}: out of memory on {case.device}; give a smaller one") from None
        console.print(
            f"{os.cpu_count()} cores, --threads {case.threads}, load {report['load_before']:.1f} before; "
            f"PyTorch {torch.__version__}"
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
