"""Real-time chunking: a chunk that agrees with what the arm is committed to (Black et al. 2025, arXiv 2506.07339).

Time here is the model's, 1 for noise and 0 for the action; the paper's is one minus it, and its velocity has the other
sign. B batch, H action horizon, D action dimension, A values of an action that are guided.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_WEIGHT = 5.0
"""The paper's largest weight of the guidance; more of it is unstable at few steps."""

Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Guidance:
    """What a chunk is drawn to.

    Attributes:
        target: (B, H, A) float32, normalised actions, the rows of the chunk before that are still to come, from the
            time of the new observation on. Rows of weight zero may hold any finite value.
        weights: (H,) float32 in [0, 1], see `soft_mask`.
        max_weight: bound of the weight of the guidance beside the velocity.
    """

    target: Tensor
    weights: Tensor
    max_weight: float = MAX_WEIGHT

    def to(self, device: torch.device) -> Guidance:
        """The same on another device."""
        return Guidance(self.target.to(device), self.weights.to(device), self.max_weight)

    def __post_init__(self) -> None:
        if self.target.dim() != 3 or self.weights.shape != self.target.shape[1:2]:
            raise ValueError(
                f"target has shape {tuple(self.target.shape)}, weights {tuple(self.weights.shape)}; give "
                "(batch, horizon, values) and (horizon,)"
            )
        if not torch.isfinite(self.target).all():
            raise ValueError("target has a value that is not finite; give finite actions")
        if not ((self.weights >= 0) & (self.weights <= 1)).all():
            raise ValueError(f"weights is {self.weights.tolist()}; give values from 0 to 1")
        if not (math.isfinite(self.max_weight) and self.max_weight >= 0):
            raise ValueError(f"max_weight is {self.max_weight}; give a finite number, 0 or more")


def soft_mask(horizon: int, committed: int, overlap: int) -> Tensor:
    """How much each row is to agree with the chunk before (equation 5 of the paper): (H,) float32.

    Args:
        horizon: H.
        committed: rows that will have been executed when the new chunk arrives; they weigh 1.
        overlap: rows that the chunk before has left, the committed ones included. From `committed` on the weight falls
            faster than exponentially; from `overlap` on it is zero.

    Raises:
        ValueError: unless 0 <= committed <= overlap <= horizon.
    """
    if not 0 <= committed <= overlap <= horizon:
        raise ValueError(
            f"committed is {committed}, overlap {overlap}, horizon {horizon}; give 0 <= committed <= overlap <= horizon"
        )
    row = torch.arange(horizon, dtype=torch.float64)
    fall = (overlap - row) / (overlap - committed + 1)
    weights = fall * torch.expm1(fall) / math.expm1(1.0)
    weights = torch.where(row < committed, 1.0, torch.where(row < overlap, weights, 0.0))
    return weights.float()


def guided(velocity: Velocity, guidance: Guidance) -> Velocity:
    """The velocity that leads to the target where the weights say so (equation 2 of the paper).

    Of the action that the velocity points at, `x - time * velocity(x, time)`, the weighted distance to the target is
    pulled back to x by a true vector-Jacobian product, which costs one backward pass through `velocity` at each call.

    Args:
        velocity: of x (B, H, D) and time (B,), differentiable in x; D is at least A.
        guidance: on the same device.

    Returns:
        A function of the same arguments. Where all weights are zero it gives the same bits.
    """
    return pulled(velocity, guidance.target, guidance.weights[:, None], guidance.max_weight)


def pulled(velocity: Velocity, target: Tensor, weights: Tensor, max_weight: Tensor | float) -> Velocity:
    """`guided`, of target (B, H, A), weights (H, A) or (H, 1) and max_weight that nobody checks."""
    values = target.shape[-1]

    def guided_velocity(x: Tensor, time: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = velocity(x, time)
            pointed_at = x - time[:, None, None] * v
            apart = weights * (target - pointed_at[..., :values].detach())
            (pull,) = torch.autograd.grad(pointed_at[..., :values], x, apart)
        return v.detach() - guidance_weight(time, max_weight)[:, None, None] * pull

    return guided_velocity


def guidance_weight(time: Tensor, largest: Tensor | float) -> Tensor:
    """Of the guidance beside the velocity at a time (B,): `(t^2 + (1 - t)^2) / (t (1 - t))`, bounded; infinite at both
    ends without."""
    spread = time * (1.0 - time)
    return torch.where(spread > 0, (time**2 + (1.0 - time) ** 2) / spread.clamp_min(1e-12), largest).clamp_max(largest)
