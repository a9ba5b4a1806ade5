"""Products with weights that are laid out, once, as this device multiplies fastest."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

_SHARE = 0.5
"""Of the memory that is available, how much of it copies of the weights may take."""

_SMALL = 2**18
"""Values of a weight below which the plain product is the faster one."""


@dataclass(frozen=True)
class Product:
    """`x @ weight.T + bias`.

    On a CPU the weight is there twice: as it is, and in a blocked layout of oneDNN's. A library that is given the plain
    one lays it out anew at each call, which takes longer than the product with the few rows of an action chunk.

    Attributes:
        weight: (out, in).
        bias: (out,), or None.
        blocked: the weight in oneDNN's layout, or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    blocked: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        # The blocked product has no derivative.
        if self.blocked is None or torch.is_grad_enabled():
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.blocked, self.bias, "none", [], "")


def product(weight: Tensor, rows: int, bias: Tensor | None = None, *, blocked: bool) -> Product:
    """A product that will mostly be taken with so many rows; `blocked` as `can_block` says."""
    if not blocked or weight.numel() < _SMALL:
        return Product(weight, bias)
    return Product(weight, bias, torch.ops.mkldnn._reorder_linear_weight(weight, rows))


def can_block(parameters: list[Tensor]) -> bool:
    """Whether there is a blocked layout for these parameters of a model, and memory for a copy of them."""
    first = parameters[0]
    if first.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if first.dtype not in (torch.float32, torch.bfloat16) or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    needed, available = sum(p.numel() * p.element_size() for p in parameters), _available_bytes()
    if needed > _SHARE * available:
        logger.warning(
            "weights are not laid out for this processor: that takes %.1f GiB more, and %.1f are available; "
            "inference will be slower",
            needed / 2**30,
            available / 2**30,
        )
        return False
    return True


def _available_bytes() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        # Not Linux: nobody says.
        return float("inf")
