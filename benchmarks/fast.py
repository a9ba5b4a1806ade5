#!/usr/bin/env python3
"""FAST tokens of real DROID actions: how many, how exact, and how fast against the original's per-chunk loop.

    benchmarks/fast.py FAST_DIR DROID_DIR [--rounds 7] [--json FILE]

FAST_DIR holds the public FAST+ tokenizer, DROID_DIR `episode_000.npz` to `episode_059.npz` with `state` (T, 8). Chunks
are 15x8: velocities `(q[t+1] - q[t]) / 0.2` and the gripper at t+1, normalised by the 1 % and 99 % quantiles of
episodes 0-39, one chunk at each step that has 15 actions left. FAST+ and a tokenizer fitted to episodes 0-39 (1024
tokens) are measured on episodes 40-59, which neither has seen.

- round trip: encode, decode, absolute difference in normalised units; `without saturation` leaves out chunks of which
  a coefficient was below min_token;
- throughput: all held-out chunks in one batch, against a loop over chunks that does what the public processor does (a
  transform by SciPy, one string, one call of the byte-pair encoder a chunk) with the same FAST+ file. The loop's
  results are checked to be equal, both run in alternating rounds in this process, and medians are shown. Needs SciPy.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from arguments import output_file
from rich.console import Console
from rich.table import Table

from ki_ros.model.fast import FASTTokenizer
from ki_ros.model.normalize import Quantiles

HORIZON, ACTION_DIM = 15, 8
STEP_RADIANS = 0.2
FITTED, MEASURED = range(40), range(40, 60)
VOCAB_SIZE = 1024


def actions(directory: Path, number: int) -> np.ndarray:
    """(T - 1, 8) float64 actions of an episode."""
    with np.load(directory / f"episode_{number:03d}.npz", allow_pickle=False) as arrays:
        state = arrays["state"].astype(np.float64)
    return np.concatenate([np.diff(state[:, :7], axis=0) / STEP_RADIANS, state[1:, 7:]], axis=1)


def chunks(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Normalised chunks (N, H, D) of the episodes to fit to and of those to measure on."""
    episodes = [actions(directory, number) for number in (*FITTED, *MEASURED)]
    seen = np.concatenate(episodes[: len(FITTED)])
    quantiles = Quantiles(np.quantile(seen, 0.01, axis=0), np.quantile(seen, 0.99, axis=0))

    def windows(parts: list[np.ndarray]) -> np.ndarray:
        views = [
            np.lib.stride_tricks.sliding_window_view(quantiles.normalize(part), HORIZON, axis=0)
            for part in parts
            if len(part) >= HORIZON
        ]
        return np.ascontiguousarray(np.concatenate(views).transpose(0, 2, 1))

    return windows(episodes[: len(FITTED)]), windows(episodes[len(FITTED) :])


def study(tokenizer: FASTTokenizer, held_out: np.ndarray) -> dict[str, float]:
    """Length and exactness of the held-out chunks' tokens."""
    batch = tokenizer.encode_batch(held_out)
    lengths = np.array([len(tokens) for tokens in batch.tokens])
    decoded = tokenizer.decode_batch(batch.tokens, horizon=HORIZON, action_dim=ACTION_DIM)
    error = np.abs(decoded - held_out)
    clean = np.array([tokenizer.encode_batch(chunk[None]).saturated == 0 for chunk in held_out])
    return {
        "vocab_size": tokenizer.vocab_size,
        "min_token": tokenizer.min_token,
        "chunks": len(held_out),
        "tokens_mean": float(lengths.mean()),
        "tokens_p50": float(np.median(lengths)),
        "tokens_p99": float(np.percentile(lengths, 99)),
        "tokens_max": int(lengths.max()),
        "saturated": batch.saturated,
        "saturated_chunks": int((~clean).sum()),
        "error_mean": float(error.mean()),
        "error_max": float(error.max()),
        "error_max_without_saturation": float(error[clean].max()),
    }


def loop_encode(tokenizer: Any, held_out: np.ndarray, scale: float, min_token: int) -> list[list[int]]:
    """What the public processor does for each chunk."""
    from scipy.fft import dct

    encoded = []
    for chunk in held_out:
        codes = np.maximum(np.around(dct(chunk, axis=0, norm="ortho") * scale).flatten() - min_token, 0).astype(int)
        encoded.append(tokenizer.encode("".join(map(chr, codes))).ids)
    return encoded


def loop_decode(tokenizer: Any, tokens: list[list[int]], scale: float, min_token: int) -> np.ndarray:
    """What the public processor does for each sequence."""
    from scipy.fft import idct

    decoded = []
    for sequence in tokens:
        codes = np.array(list(map(ord, tokenizer.decode(sequence))))
        decoded.append(idct((codes + min_token).reshape(HORIZON, ACTION_DIM) / scale, axis=0, norm="ortho"))
    return np.stack(decoded)


def throughput(fast_plus: FASTTokenizer, held_out: np.ndarray, rounds: int) -> dict[str, dict[str, float]]:
    """Chunks per second of both sides, medians of alternating rounds, and their ratio."""
    from tokenizers import Tokenizer

    library = Tokenizer.from_str(fast_plus.definition)
    numbers = (fast_plus.scale, fast_plus.min_token)
    tokens = fast_plus.encode_batch(held_out).tokens
    if loop_encode(library, held_out, *numbers) != tokens:
        raise SystemExit("the loop's tokens differ: the two sides do not do the same work")
    size = {"horizon": HORIZON, "action_dim": ACTION_DIM}
    if np.abs(loop_decode(library, tokens, *numbers) - fast_plus.decode_batch(tokens, **size)).max() > 1e-12:
        raise SystemExit("the loop's decoded chunks differ: the two sides do not do the same work")
    sides: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "encode": (lambda: loop_encode(library, held_out, *numbers), lambda: fast_plus.encode_batch(held_out)),
        "decode": (
            lambda: loop_decode(library, tokens, *numbers),
            lambda: fast_plus.decode_batch(tokens, **size),
        ),
    }
    figures = {}
    for name, (loop, ours) in sides.items():
        seconds: dict[str, list[float]] = {"loop": [], "batch": []}
        for _ in range(rounds):
            for side, call in (("loop", loop), ("batch", ours)):
                began = time.perf_counter()
                call()
                seconds[side].append(time.perf_counter() - began)
        rates = {side: len(held_out) / statistics.median(values) for side, values in seconds.items()}
        figures[name] = rates | {"ratio": rates["batch"] / rates["loop"]}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fast_dir", type=Path, help="processor_config.json and tokenizer.json of FAST+")
    parser.add_argument("droid_dir", type=Path, help="episode_000.npz to episode_059.npz")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each side")
    parser.add_argument("--json", type=output_file, help="write the figures to this file")
    options = parser.parse_args()

    fit_to, held_out = chunks(options.droid_dir)
    fast_plus = FASTTokenizer.from_directory(options.fast_dir)
    began = time.perf_counter()
    fitted = FASTTokenizer.fit(fit_to, vocab_size=VOCAB_SIZE)
    fit_seconds = time.perf_counter() - began
    studies = {"FAST+": study(fast_plus, held_out), "fitted": study(fitted, held_out)}
    rates = throughput(fast_plus, held_out, options.rounds)

    console = Console()
    table = Table(title=f"{len(held_out)} held-out DROID chunks, {HORIZON}x{ACTION_DIM}, normalised by quantiles")
    table.add_column("")
    for name in studies:
        table.add_column(name, justify="right")
    for key in studies["FAST+"]:
        table.add_row(key.replace("_", " "), *(f"{figures[key]:.4g}" for figures in studies.values()))
    console.print(table)
    table = Table(title="Chunks per second, FAST+")
    for column in ("", "per-chunk loop", "batch", "batch / loop"):
        table.add_column(column, justify="right" if column else "left")
    for name, figures in rates.items():
        table.add_row(name, f"{figures['loop']:.0f}", f"{figures['batch']:.0f}", f"{figures['ratio']:.2f}")
    console.print(table)
    console.print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {options.rounds} alternating rounds; "
        f"fitted to {len(fit_to)} chunks in {fit_seconds:.1f} s"
    )
    if options.json:
        report = {"study": studies, "throughput": rates, "fit_chunks": len(fit_to), "fit_seconds": fit_seconds}
        report |= {"rounds": options.rounds, "cores": os.cpu_count()}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
