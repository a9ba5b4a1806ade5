#!/usr/bin/env python3
"""How long an action chunk takes: our engines, what openpi's PyTorch policy does, and the floor of this machine.

    benchmarks/inference.py [--preset ki_300m | --checkpoint DIR] [--device cpu] [--dtype float32] [--views 2]
                            [--prompt-tokens 64] [--steps 10] [--engines reference fused ...] [--lerobot] [--compiled]
                            [--rounds 15] [--threads N] [--inputs 0] [--real DROID] [--soak 0] [--guided]
                            [--picture FILE] [--profile FILE] [--json FILE]

All sides have the same weights and inputs, batch 1, and take turns in this process. A preset has untrained weights.

- openpi_like: three views, one after another, the masked one too; 200 padded tokens; a dense mask; modulation anew at
  each step (`openpi_like.py`).
- lerobot (--lerobot): LeRobot's own pi05 with these weights, where its package is installed (`lerobot_pi05.py`).
- with --compiled these two also as their projects compile them, which takes minutes.
- reference: the model as it is written down, which leaves out what is masked; the engines of `ki_ros.model.engine`.
  Engines are given an observation on the CPU, as a policy gives it to them, and upload it; the others are given one
  that is on the device already.
- parts: vision, prefill (without vision) and the integration of the expert, each timed alone; host: what a policy does
  around the engine, from pictures as bytes to actions in the rig's units.
- floor: the arithmetic of vision and prefill at the rate of this machine's best matrix product, and of each step the
  larger of that and its weights, keys and values at the rate of its memory. Both rates are measured first.
- guided (--guided): the best engine's call with the guidance of real-time chunking, a backward pass in each step.
- error: of each engine's actions against the reference in float32, on random inputs (--inputs) and on as many steps of
  real DROID episodes (--real);
- profile (--profile, on a GPU): a picture of when each kernel of the best engine's call ran.
- soak: so many calls of the best engine with changing prompts, and cameras that drop out and come back: memory before
  and after, and captured graphs.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lerobot_pi05
import numpy as np
import torch
from arguments import output_file
from kernel_profile import draw as draw_profile
from kernel_profile import record
from openpi_like import OpenpiLike
from rich.console import Console
from rich.table import Table

from ki_ros.data.droid import Episode
from ki_ros.model.config import PRESETS, KIConfig
from ki_ros.model.engine import ENGINES, FusedEngine, ReferenceEngine, compare, make_engine, random_input
from ki_ros.model.engine.product import can_block, product
from ki_ros.model.model import KIModel
from ki_ros.model.normalize import NormStats
from ki_ros.model.rtc import Guidance, soft_mask
from ki_ros.model.tokenizer import PromptTokenizer
from ki_ros.policy import DTYPES, Policy
from ki_ros.rig import CameraRole
from ki_ros.share import find_share

console = Console()
BYTES = {torch.float32: 4, torch.bfloat16: 2}


def main() -> None:
    options = _options()
    torch.set_grad_enabled(False)
    if options.threads:
        torch.set_num_threads(options.threads)
    policy = make_policy(options)
    model, device = policy.model, policy.model.device
    here = random_input(model.config, options.prompt_tokens, options.views)
    there = random_input(model.config, options.prompt_tokens, options.views, device)
    engines = {name: make_engine(name, model, options.steps) for name in options.engines}
    others = others_of(model, options)
    calls = {name: _call(side, *there) for name, side in others.items()}
    calls |= {name: _call(engine, *here) for name, engine in engines.items()}
    for name, call in calls.items():
        began = time.perf_counter()
        if name in engines:
            engines[name].prepare()
        call()
        _wait(device)
        console.print(f"{name}: ready after {time.perf_counter() - began:.1f} s", style="dim")
    taken = take_turns(calls, options.rounds, device)
    best = min(engines, key=lambda name: statistics.median(taken[name]))
    parts = take_turns(part_calls(engines[best], policy, options), options.rounds, device)
    median = {name: statistics.median(times) for name, times in (taken | parts).items()}
    floor = floor_of(model.config, options, device)
    figures = {
        "sides": {name: _figures(times) for name, times in taken.items()},
        "best": best,
        "parts_ms": {name: 1e3 * median[name] for name in parts},
        "floor": floor,
        "ratio_to_openpi_like": median["openpi_like"] / median[best],
        "ratio_to_floor": 1e3 * median[best] / floor["total_ms"],
        "errors": errors_of(policy, options),
        "guided": guided(engines[best], *here, options.rounds) if options.guided else {},
        "soak": soak(engines[best], policy, options.soak),
        "device": _name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "parameters_millions": sum(p.numel() for p in model.parameters()) / 1e6,
    }
    if device.type == "cuda":
        figures["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    figures = given | figures
    show(figures, options)
    if options.picture:
        draw(figures, options.picture)
    if options.profile:
        draw_profile(record(calls[best]), f"{options.preset}, {options.dtype}, {figures['device']}", options.profile)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


# The sides


def others_of(model: KIModel, options: argparse.Namespace) -> dict[str, Any]:
    """What the engines are compared with."""
    sides: dict[str, Any] = {"openpi_like": OpenpiLike(model, options.steps)}
    if options.compiled:
        sides["openpi_compiled"] = torch.compile(OpenpiLike(model, options.steps).sample, mode="max-autotune")
    reason = lerobot_pi05.available() if options.lerobot else None
    if reason:
        console.print(f"without LeRobot: {reason}", style="yellow", markup=False)
    elif options.lerobot:
        for compiled in (False, True)[: 1 + options.compiled]:
            dtype = DTYPES[options.dtype]
            side = lerobot_pi05.LerobotPi05(model.config, options.steps, model.device, dtype, compiled)
            side.load(model)
            sides["lerobot_compiled" if compiled else "lerobot"] = side
    return sides


def make_policy(options: argparse.Namespace) -> Policy:
    """A policy of the checkpoint; or of the preset, with untrained weights and the small policy's files."""
    if options.checkpoint:
        return Policy.load(
            checkpoint=options.checkpoint,
            device=options.device,
            dtype=options.dtype,
            num_steps=options.steps,
            seed=0,
            engine="reference",
        )
    torch.manual_seed(0)
    config = KIConfig.from_preset(options.preset)
    console.print(f"making {options.preset}", style="dim")
    dtype = torch.get_default_dtype()
    # Made in the type that it computes in: the full model does not fit into the memory twice.
    torch.set_default_dtype(DTYPES[options.dtype])
    with torch.device(options.device):
        model = KIModel(config).eval()
    torch.set_default_dtype(dtype)
    for name, parameter in model.named_parameters():
        # What begins as zero would leave the expert out.
        if name.endswith("dense.weight"):
            torch.nn.init.normal_(parameter, std=0.02)
    model = model.cast_(DTYPES[options.dtype]).requires_grad_(False)
    files = find_share("models", "ki_tiny")
    tokenizer = PromptTokenizer(files / "tokenizer.model", config.max_token_len)
    stats = NormStats.load(files / "norm_stats.json")
    return Policy(model, stats, tokenizer, num_steps=options.steps, seed=0, engine="reference")


def _call(side: Any, observation: Any, noise: torch.Tensor) -> Callable[[], Any]:
    sample = getattr(side, "sample", side)
    return lambda: sample(observation, noise)


def part_calls(engine: Any, policy: Policy, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """The parts of the best engine's call, each alone; of the fused engine where that is not made of parts."""
    model = policy.model
    if not isinstance(engine, FusedEngine):
        engine = FusedEngine(model, options.steps)
    observation, noise = random_input(model.config, options.prompt_tokens, options.views, model.device)
    images = torch.cat(list(observation.images.values()))
    tokens = observation.tokenized_prompt[observation.tokenized_prompt_mask]
    parts = engine.parts(images, tokens, noise[0])
    side = model.config.vision.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    views = dict.fromkeys(policy.required_views, pixels)
    state = (policy.norm_stats.state.q01 + policy.norm_stats.state.q99) / 2
    actions = torch.zeros(policy.horizon, 8, device=model.device)

    def host() -> None:
        policy.observe(views, state, "put the marker in the pot")
        policy.in_rig_units(actions.cpu().numpy())

    return parts | {"host": host}


def take_turns(calls: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call, one of each in every round."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            _wait(device)
            began = time.perf_counter()
            call()
            _wait(device)
            taken[name].append(time.perf_counter() - began)
    return taken


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _figures(times: list[float]) -> dict[str, float]:
    p50, p99 = np.percentile(times, (50, 99)) * 1e3
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


# The floor


def floor_of(config: KIConfig, options: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """What no implementation of the same arithmetic in this dtype can be faster than, on this machine [ms]."""
    dtype = DTYPES[options.dtype]
    rate, bandwidth = product_rate(dtype, device), memory_rate(device)
    v, g, e, size = config.vision, config.language, config.expert, BYTES[dtype]
    patches = v.tokens * options.views
    vision_weights = v.depth * (4 * v.width**2 + 2 * v.width * v.mlp) + 3 * v.patch_size**2 * v.width
    vision_flops = 2 * patches * (vision_weights + v.width * g.width)
    vision_flops += 4 * v.depth * options.views * v.tokens**2 * v.width
    rows = patches + options.prompt_tokens
    heads, kv = g.heads * g.head_dim, g.kv_heads * g.head_dim
    layer = g.width * (heads + 2 * kv) + heads * g.width + 3 * g.width * g.mlp
    weights = (g.depth - 1) * layer + g.width * 2 * kv
    prefill_flops = 2 * rows * weights + 4 * (g.depth - 1) * rows**2 * heads
    expert = g.depth * (e.width * (heads + 2 * kv) + heads * e.width + 3 * e.width * e.mlp)
    step_bytes = size * (expert + 2 * g.depth * rows * kv)
    step_flops = 2 * config.action_horizon * expert + 4 * g.depth * config.action_horizon * rows * heads
    vision = max(vision_flops / rate, size * vision_weights / bandwidth)
    prefill = max(prefill_flops / rate, size * weights / bandwidth)
    steps = options.steps * max(step_flops / rate, step_bytes / bandwidth)
    return {
        "rate_gflops": rate / 1e9,
        "bandwidth_gbs": bandwidth / 1e9,
        "vision_ms": 1e3 * vision,
        "prefill_ms": 1e3 * prefill,
        "steps_ms": 1e3 * steps,
        "total_ms": 1e3 * (vision + prefill + steps),
    }


def product_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Best of some large matrix products, with plain and with blocked weights [flop/s]."""
    size = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    kinds = {False, can_block([b])}
    products = {kind: product(b, size, blocked=kind) for kind in kinds}
    with torch.no_grad():
        times = take_turns({str(kind): lambda each=each: each(a) for kind, each in products.items()}, 12, device)
    return 2 * size**3 / min(min(taken) for taken in times.values())


def memory_rate(device: torch.device) -> float:
    """Best of some large copies, bytes read and written [byte/s]."""
    source = torch.empty((2**31 if device.type == "cuda" else 2**28) // 4, device=device)
    target = torch.empty_like(source)
    source.fill_(1.0)
    times = take_turns({"copy": lambda: target.copy_(source)}, 12, device)["copy"]
    return 2 * source.numel() * 4 / min(times)


# Errors


def errors_of(policy: Policy, options: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Of each engine against the reference in float32, by kind of input."""
    if not options.inputs:
        return {}
    config = policy.config
    exact = policy.model if options.dtype == "float32" else copy.deepcopy(policy.model).cast_(torch.float32)
    reference = ReferenceEngine(exact, options.steps)
    inputs = {
        "random": [random_input(config, 1 + n % config.max_token_len, 1 + n % 2, seed=n) for n in range(options.inputs)]
    }
    if options.real:
        inputs["real"] = list(itertools.islice(_real(policy, options.real, options.inputs), options.inputs))
    engines = {name: make_engine(name, policy.model, options.steps) for name in options.engines}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind, given in inputs.items():
        expected = [reference.sample(*each) for each in given]
        for name, engine in engines.items():
            deviation = compare(engine, Said(expected), given)
            found.setdefault(name, {})[kind] = {
                "largest": deviation.largest,
                "rms": deviation.rms,
                "inputs": len(given),
            }
    return found


class Said:
    """What an engine has said, once more."""

    def __init__(self, chunks: list[torch.Tensor]) -> None:
        self._chunks = iter(chunks)

    def sample(self, *_: Any) -> torch.Tensor:
        """The next one."""
        return next(self._chunks)


def _real(policy: Policy, directory: Path, count: int) -> Any:
    """Steps of the episodes that have pictures."""
    for number in range(2):
        episode = Episode.load(directory, number)
        for step in np.linspace(0, len(episode) - 1, -(-count // 2)).astype(int):
            views = {role: episode.image(role, step) for role in (CameraRole.EXTERIOR_1, CameraRole.WRIST)}
            observation = policy.observe(views, episode.states[step], episode.instruction)
            yield observation, random_input(policy.config, 1, 1, seed=int(step))[1]


# Many calls


def guided(engine: Any, observation: Any, noise: torch.Tensor, rounds: int) -> dict[str, float]:
    """A call that agrees with three rows before it."""
    rows = noise.shape[1]
    guidance = Guidance(torch.zeros(1, rows, min(8, noise.shape[2])), soft_mask(rows, 3, rows // 2))
    call = {"guided": lambda: engine.sample(observation, noise, guidance=guidance)}
    call["guided"]()
    return _figures(take_turns(call, rounds, engine.model.device)["guided"])


def soak(engine: Any, policy: Policy, calls: int) -> dict[str, float]:
    """Memory and graphs after a tenth of the calls, and after all."""
    if not calls:
        return {}
    device, config = policy.model.device, policy.config
    seen: dict[str, float] = {}
    for n in range(calls):
        if n == calls // 10:
            seen |= {"memory_mib_before": _memory(device), "graphs_before": getattr(engine, "captures", 0)}
        tokens, views = 1 + n * 37 % config.max_token_len, 1 if n % 9 == 0 else 2
        engine.sample(*random_input(config, tokens, views, seed=n))
    return seen | {"memory_mib_after": _memory(device), "graphs_after": getattr(engine, "captures", 0), "calls": calls}


def _memory(device: torch.device) -> float:
    """What this process has of the device's memory [MiB]; on a CPU, resident."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


# What is shown


def show(figures: dict[str, Any], options: argparse.Namespace) -> None:
    slowest = figures["sides"]["openpi_like"]["p50_ms"]
    table = Table(
        title=f"{options.checkpoint or options.preset}, {figures['parameters_millions']:.0f} M parameters, "
        f"{options.dtype}, {options.views} views, {options.prompt_tokens} prompt tokens, {options.steps} steps"
    )
    for column in ("", "p50 [ms]", "p99 [ms]", "openpi-like / this", "this / floor"):
        table.add_column(column, justify="left" if not column else "right")
    for name, times in figures["sides"].items():
        ratios = f"{slowest / times['p50_ms']:.2f}", f"{times['p50_ms'] / figures['floor']['total_ms']:.2f}"
        table.add_row(name, f"{times['p50_ms']:.1f}", f"{times['p99_ms']:.1f}", *ratios)
    console.print(table)
    parts, floor = figures["parts_ms"], figures["floor"]
    shown = {
        "vision": (parts["vision"], floor["vision_ms"]),
        "prefill": (parts["vision and prefill"] - parts["vision"], floor["prefill_ms"]),
        f"{options.steps} steps": (parts["steps"], floor["steps_ms"]),
        "host": (parts["host"], None),
    }
    table = Table(title=f"parts of {figures['best']}, medians")
    for column in ("", "measured [ms]", "floor [ms]"):
        table.add_column(column, justify="left" if not column else "right")
    for name, (measured, least) in shown.items():
        table.add_row(name, f"{measured:.2f}", "" if least is None else f"{least:.2f}")
    console.print(table)
    if figures["errors"]:
        table = Table(title="normalised actions against the reference in float32")
        for column in ("engine", "inputs", "largest", "root mean square"):
            table.add_column(column)
        for name, kinds in figures["errors"].items():
            for kind, error in kinds.items():
                row = f"{error['inputs']} {kind}", f"{error['largest']:.1e}", f"{error['rms']:.1e}"
                table.add_row(name, *row)
        console.print(table)
    if figures["guided"]:
        console.print(f"{figures['best']} with guidance: {figures['guided']['p50_ms']:.1f} ms")
    if found := figures["soak"]:
        console.print(
            f"{found['calls']} calls: {found['memory_mib_before']:.0f} MiB and {found['graphs_before']} graphs after a "
            f"tenth of them, {found['memory_mib_after']:.0f} MiB and {found['graphs_after']} graphs after all"
        )
    console.print(
        f"{figures['device']}, {figures['threads']} threads, {floor['rate_gflops']:.0f} Gflop/s, "
        f"{floor['bandwidth_gbs']:.0f} GB/s; {options.rounds} rounds; "
        f"{figures['best']} takes 1/{figures['ratio_to_openpi_like']:.2f} of the openpi-like path's time"
    )


def draw(figures: dict[str, Any], file: Path) -> None:
    """Bars of the sides, and of the best one's parts beside their floor."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    names = list(figures["sides"])
    left.barh(names, [figures["sides"][name]["p50_ms"] for name in names], color="#4c78a8")
    left.axvline(figures["floor"]["total_ms"], color="black", linestyle=":", label="floor")
    left.invert_yaxis()
    left.set_xlabel("a chunk, median [ms]")
    left.legend(frameon=False)
    parts, floor = figures["parts_ms"], figures["floor"]
    measured = [parts["vision"], parts["vision and prefill"] - parts["vision"], parts["steps"]]
    least = [floor["vision_ms"], floor["prefill_ms"], floor["steps_ms"]]
    where = np.arange(3)
    right.bar(where - 0.2, measured, 0.4, label=figures["best"], color="#4c78a8")
    right.bar(where + 0.2, least, 0.4, label="floor", color="#bbbbbb")
    right.set_xticks(where, ["vision", "prefill", f"{figures['steps']} steps"])
    right.set_ylabel("[ms]")
    right.legend(frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{figures['checkpoint'] or figures['preset']}, {figures['dtype']}, {figures['device']}")
    figure.savefig(file, dpi=110)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} CPU cores"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="ki_300m")
    parser.add_argument("--checkpoint", type=Path, default=None, help="instead of a preset")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--views", type=int, choices=(1, 2), default=2)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=None, help="all that the device can run")
    parser.add_argument("--lerobot", action="store_true", help="LeRobot's pi05 too")
    parser.add_argument("--compiled", action="store_true", help="openpi's and LeRobot's code compiled too: minutes")
    parser.add_argument("--guided", action="store_true", help="also a call with guidance")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="of torch on the CPU; 0: its own choice")
    parser.add_argument("--inputs", type=int, default=0, help="inputs of each kind on which errors are measured")
    parser.add_argument("--real", type=Path, default=None, help="directory of DROID episodes with pictures")
    parser.add_argument("--soak", type=int, default=0, help="calls with changing prompts and views")
    parser.add_argument("--picture", type=output_file, default=None, help="draw the figures to this file")
    parser.add_argument(
        "--profile", type=output_file, default=None, help="draw a call's kernels to this file; on a GPU"
    )
    parser.add_argument("--json", type=output_file, default=None, help="write the figures to this file")
    options = parser.parse_args()
    if options.profile and not options.device.startswith("cuda"):
        parser.error(f"--profile needs a CUDA device, and --device is {options.device}")
    if options.engines is None:
        options.engines = ["reference", "fused"] + ["graph"] * options.device.startswith("cuda")
    return options


if __name__ == "__main__":
    main()
