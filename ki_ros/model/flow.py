"""Flow matching: time 1 is noise, time 0 is the action (arXiv 2410.24164). B batch, n steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

MIN_PERIOD = 4e-3
MAX_PERIOD = 4.0
TIME_BETA = 1.5
"""First parameter of the Beta distribution of training times; the second is 1. More of them are near noise."""


def time_embedding(time: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of times (B,) -> (B, width) float32: sines, then cosines.

    Periods are geometric from 4e-3 to 4, both included. Angles reach 2*pi*250, where float32 leaves an error of 5e-5,
    so they and their sines are float64.
    """
    fraction = torch.linspace(0.0, 1.0, width // 2, dtype=torch.float64, device=time.device)
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction
    angle = time.to(torch.float32).to(torch.float64)[:, None] * (2 * math.pi / period)
    return torch.cat((angle.sin(), angle.cos()), dim=-1).to(torch.float32)


Uniform = TypeVar("Uniform", Tensor, np.ndarray)


def training_times(uniform: Uniform) -> Uniform:
    """Times to train at, `Beta(1.5, 1) * 0.999 + 0.001`, of uniform numbers in [0, 1), float32.

    The distribution function of Beta(a, 1) is x^a, so a uniform number to the power of 1 / a has it.
    """
    return uniform ** (1.0 / TIME_BETA) * 0.999 + 0.001


def draw_times(
    shape: tuple[int, ...], *, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Times to train at, float32, see `training_times`."""
    return training_times(torch.rand(shape, generator=generator, device=device))


def sample_times(num_steps: int) -> list[float]:
    """The times of an Euler integration from 1 towards 0, as float32 values: (n,).

    A running sum in float32, as the public implementation has it; 1 - i/n differs by enough to move actions by 5e-5.

    Raises:
        ValueError: num_steps is not a positive integer.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps is {num_steps!r}; give a positive integer")
    step = torch.tensor(-1.0 / num_steps, dtype=torch.float32)
    time = torch.tensor(1.0, dtype=torch.float32)
    times = []
    for _ in range(num_steps):
        times.append(time.item())
        time = time + step
    return times


def integrate(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, num_steps: int) -> Tensor:
    """Euler integration of `velocity(x, time)` from noise (B, H, D) at time 1 to an action at time 0.

    The state x stays in the dtype of the noise; time is (B,) float32.

    Raises:
        ValueError: num_steps is not a positive integer.
    """
    times = sample_times(num_steps)
    step = torch.tensor(-1.0 / num_steps, dtype=torch.float32).item()
    x = noise
    for time in times:
        v = velocity(x, torch.full((x.shape[0],), time, dtype=torch.float32, device=x.device))
        x = x + step * v.to(x.dtype)
    return x


def interpolate(actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """`t * noise + (1 - t) * actions`: actions and noise (..., H, D), time (...) or, for each action, (..., H)."""
    time = time[..., None] if time.dim() == noise.dim() - 1 else time[..., None, None]
    return time * noise + (1 - time) * actions


def flow_target(actions: Tensor, noise: Tensor) -> Tensor:
    """The velocity that the model learns, `noise - actions`."""
    return noise - actions
