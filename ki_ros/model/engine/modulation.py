"""What times do to the expert's norms, computed once: the step times of an integration are always the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ki_ros.model.layers import full_precision
from ki_ros.model.model import KIModel


@dataclass(frozen=True)
class Modulation:
    """Of the expert's norms in their order: two of each layer, then the last one. n norms, W width.

    Attributes:
        gains: 1 + scale, (n, R, W) float32; R is 1, or the number of actions where each has a time of its own.
        shifts: (n, R, W) float32.
        gates: of the residuals, (n, R, W) in the expert's dtype.
    """

    gains: Tensor
    shifts: Tensor
    gates: Tensor

    def where(self, rows: Tensor, other: Modulation) -> Modulation:
        """This one for the actions `rows` (R,) bool, and another for the rest."""
        choice = rows[None, :, None]
        return Modulation(
            torch.where(choice, self.gains, other.gains),
            torch.where(choice, self.shifts, other.shifts),
            torch.where(choice, self.gates, other.gates),
        )


@torch.no_grad()
def modulation(model: KIModel, time: float) -> Modulation:
    """At one time, the same for all actions."""
    expert = model.paligemma_with_expert.expert
    norms = [norm for layer in expert.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    condition = model.condition(torch.tensor([time], dtype=torch.float32, device=model.device))
    with full_precision(condition):
        every = [norm.dense(condition.to(norm.dense.weight.dtype)).float() for norm in (*norms, expert.norm)]
    scales, shifts, gates = torch.stack(every).chunk(3, dim=-1)
    return Modulation((1 + scales).contiguous(), shifts.contiguous(), gates.to(expert.dtype).contiguous())
