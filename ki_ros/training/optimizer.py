"""AdamW over the two sides of the model, and the norms of their gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ki_ros.model.model import KIModel, is_backbone
from ki_ros.training.config import OptimizerConfig
from ki_ros.training.distributed import gather

SIDES = ("backbone", "expert")


def trained_parameters(model: KIModel) -> dict[str, nn.Parameter]:
    """By name, in the model's order, what is not frozen."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def side_of(name: str) -> str:
    """Which of `SIDES` a parameter of that name belongs to."""
    return "backbone" if is_backbone(name) else "expert"


def make_optimizer(parameters: Mapping[str, nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with one group per side and per decay; each group has its `scale` of the learning rate."""
    groups = []
    for side in SIDES:
        scale = config.backbone_scale if side == "backbone" else config.expert_scale
        for decays in (True, False):
            # Vectors are biases and norms.
            chosen = [p for name, p in parameters.items() if side_of(name) == side and (p.dim() > 1) == decays]
            if chosen:
                decay = config.weight_decay if decays else 0.0
                groups.append({"params": chosen, "scale": scale, "weight_decay": decay})
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """The learning rate of each group, times its scale."""
    for group in optimizer.param_groups:
        group["lr"] = value * group["scale"]


def clip_sides(parameters: Mapping[str, nn.Parameter], largest: float) -> dict[str, float]:
    """Clips the gradients of each side to a norm; returns the norms that they had, by side."""
    norms = {}
    for side in SIDES:
        gradients = [p.grad for name, p in parameters.items() if side_of(name) == side and p.grad is not None]
        norm = _total_norm(gradients)
        norms[side] = norm.item()
        torch.nn.utils.clip_grads_with_norm_(
            [p for name, p in parameters.items() if side_of(name) == side], largest, norm
        )
    return norms


def _total_norm(gradients: list[Tensor]) -> Tensor:
    if not gradients:
        return torch.zeros(())
    norm = torch.nn.utils.get_total_norm(gradients)
    return gather(norm) if isinstance(norm, DTensor) else norm


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: `<parameter>.<quantity>`. Empty before the first step."""
    return {
        f"{name}.{quantity}": value
        for name, parameter in parameters.items()
        for quantity, value in optimizer.state.get(parameter, {}).items()
    }
