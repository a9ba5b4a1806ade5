"""The training step and what it is measured against. Each side is a sequence of passes, forward and backward.

A baseline differs from our step in the one thing that it is named after, and is otherwise as good: it computes logits,
and the last backbone layer's output, only where they are read, unless that is what it is there to show. All sides
compute the same losses and the same gradient, which `relative_differences` measures.

Shapes: B batch, S draws of noise, H action horizon, D action dimension, T prompt tokens, F FAST tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ki_ros.model import KIConfig, KIModel, Observation
from ki_ros.model.flow import draw_times, flow_target, interpolate
from ki_ros.model.layers import AdaptiveRMSNorm
from ki_ros.model.losses import divide, prediction_rows, token_loss, velocity_loss
from ki_ros.model.model import Prefix
from ki_ros.rig import POLICY_SLOTS, STATE_DIM

DRAWS = 5
VIEWS = 2


class Batch(NamedTuple):
    """Synthetic training data: actions (B, H, D), noise (B, 5, H, D) and time (B, 5), of which a side takes S draws."""

    observation: Observation
    actions: Tensor
    noise: Tensor
    time: Tensor

    @property
    def action_mask(self) -> Tensor:
        """All true, (B, H)."""
        return torch.ones(self.actions.shape[:2], dtype=torch.bool, device=self.actions.device)


class Losses(NamedTuple):
    """What a pass contributes to both losses, scalars; their sums over the passes of a side are those of a step."""

    flow: Tensor
    fast: Tensor


Pass = Callable[[KIModel, Batch], Losses]


class Side(NamedTuple):
    """A way to compute both losses.

    Attributes:
        title: of its row in the table.
        reference: name of the side of ours that it is compared with.
        passes: each is a forward pass, and a backward pass through what it returns.
    """

    title: str
    reference: str
    passes: tuple[Pass, ...]

    def backward(self, model: KIModel, batch: Batch, autocast: Callable[[], AbstractContextManager]) -> Losses:
        """Adds the gradient of `flow + lambda * fast` to the parameters' and returns both losses, without gradient."""
        flow = fast = torch.zeros((), device=batch.actions.device)
        for forward in self.passes:
            with autocast():
                losses = forward(model, batch)
            (losses.flow + model.config.knowledge_insulation_lambda * losses.fast).backward()
            flow, fast = flow + losses.flow.detach(), fast + losses.fast.detach()
        return Losses(flow, fast)


def make_model(config: KIConfig, device: str, *, checkpointing: bool, seed: int = 0) -> KIModel:
    """A model of float32 weights. adaRMS is not zero: closed gates would hide what the expert reads from the losses."""
    torch.manual_seed(seed)
    with torch.device(device):
        model = KIModel(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, AdaptiveRMSNorm):
                module.dense.weight.normal_(std=0.02)
                module.dense.bias.normal_(std=0.3)
    if checkpointing:
        model.enable_activation_checkpointing()
    return model


def make_batch(config: KIConfig, size: int, *, prompt: int, fast: int, device: str, seed: int = 0) -> Batch:
    """B samples with two views, prompts of 3/4 to all of `prompt` tokens, and 3/4 to all of `fast` FAST tokens."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(longest: int, width: int) -> tuple[Tensor, Tensor]:
        lengths = torch.randint(max(3 * longest // 4, 1), longest + 1, (size,), generator=generator)
        lengths[0] = longest
        mask = torch.arange(width) < lengths[:, None]
        return torch.randint(config.language.vocab_size, (size, width), generator=generator), mask

    side = config.vision.image_size
    slots = POLICY_SLOTS[:VIEWS]
    prompt_tokens, prompt_mask = tokens(prompt, config.max_token_len)
    fast_tokens, fast_mask = tokens(fast, fast)
    observation = Observation(
        images={slot: torch.rand(size, 3, side, side, generator=generator) * 2 - 1 for slot in slots},
        image_masks={slot: torch.ones(size, dtype=torch.bool) for slot in slots},
        state=torch.zeros(size, STATE_DIM),
        tokenized_prompt=prompt_tokens,
        tokenized_prompt_mask=prompt_mask,
        fast_action_tokens=fast_tokens,
        fast_action_mask=fast_mask,
    )
    shape = (config.action_horizon, config.action_dim)
    actions = torch.rand(size, *shape, generator=generator) * 2 - 1
    noise = torch.randn(size, DRAWS, *shape, generator=generator)
    time = draw_times((size, DRAWS), generator=generator)
    return Batch(observation.to(device), actions.to(device), noise.to(device), time.to(device))


def relative_differences(model: KIModel, batch: Batch, side: Side, expected: Losses) -> dict[str, float]:
    """How far a side is from our step, in float32: relative differences of both losses and of the gradient.

    The parameters' gradients are those of our step when this is called, `expected` its losses; they are cleared.
    The difference of a gradient is the norm of the difference over the norm, for backbone and expert apart.
    """
    parts = {"backbone gradient": model.backbone_parameters(), "expert gradient": model.expert_parameters()}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    losses = side.backward(model, batch, lambda: torch.autocast(batch.actions.device.type, enabled=False))
    differences = {
        "flow loss": float((losses.flow - expected.flow).abs() / expected.flow.abs()),
        "FAST loss": float((losses.fast - expected.fast).abs() / expected.fast.abs()),
    }
    for title, parameters in parts.items():
        error = norm = 0.0
        for name, parameter in parameters.items():
            ours = torch.zeros_like(parameter) if gradients[name] is None else gradients[name]
            theirs = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            error += float(torch.linalg.vector_norm(theirs - ours, dtype=torch.float64)) ** 2
            norm += float(torch.linalg.vector_norm(ours, dtype=torch.float64)) ** 2
        differences[title] = (error / norm) ** 0.5
    model.zero_grad(set_to_none=True)
    return differences


def _our_step(model: KIModel, batch: Batch, draws: int) -> Losses:
    losses = model.compute_loss(
        batch.observation,
        batch.actions,
        action_mask=batch.action_mask,
        noise=batch.noise[:, :draws],
        time=batch.time[:, :draws],
        flow_samples=draws,
    )
    return Losses(losses.flow_loss, losses.fast_loss)


def _one_draw_of_five(model: KIModel, batch: Batch, draw: int) -> Losses:
    """Our step with one of five draws, a fifth of its losses."""
    one = batch._replace(noise=batch.noise[:, draw : draw + 1], time=batch.time[:, draw : draw + 1])
    flow, fast = _our_step(model, one, 1)
    return Losses(flow / DRAWS, fast / DRAWS)


def _first_draw_of_five(model: KIModel, batch: Batch) -> Losses:
    """Our step with the first of five draws, a fifth of its flow loss and all of its FAST loss."""
    flow, fast = _our_step(model, batch, 1)
    return Losses(flow / DRAWS, fast)


def _logits_everywhere(model: KIModel, batch: Batch) -> Losses:
    """Our step with one draw, but for the last layer, run at all tokens, and logits at all tokens.

    The cross-entropy is still that of the FAST rows alone: taken over all logits with most of them masked it would cost
    further copies of them.
    """
    observation = batch.observation
    tokens, mask = observation.fast_action_tokens, observation.fast_action_mask
    prefix = model.embed_prefix(observation)
    suffix, condition = _suffix(model, batch, 0)
    hidden, suffix = model.paligemma_with_expert.joint(
        prefix.embeddings,
        prefix.mask,
        _embed(model, tokens, prefix),
        mask,
        suffix,
        condition,
        draws=1,
        rows=None,
        insulated=model.config.knowledge_insulation,
    )
    logits = model.vlm_logits(hidden)
    rows = prediction_rows(prefix.mask, tokens.shape[1])
    sample = torch.arange(len(rows), device=rows.device)[:, None].expand_as(rows)
    fast = token_loss(logits[sample[mask], rows[mask]], tokens, mask).cross_entropy
    return Losses(_flow_loss(model, batch, 0, _velocity(model, suffix)), divide(fast, len(tokens)))


def _flow_pass(model: KIModel, batch: Batch) -> Losses:
    """The flow loss alone: prefix and actions, no FAST tokens, no backbone output."""
    prefix = model.embed_prefix(batch.observation)
    suffix, condition = _suffix(model, batch, 0)
    _, suffix = model.paligemma_with_expert.joint(
        prefix.embeddings,
        prefix.mask,
        prefix.embeddings[:, :0],
        prefix.mask[:, :0],
        suffix,
        condition,
        draws=1,
        rows=torch.empty(len(prefix.mask), 0, dtype=torch.int64, device=prefix.mask.device),
        insulated=model.config.knowledge_insulation,
    )
    flow = _flow_loss(model, batch, 0, _velocity(model, suffix))
    return Losses(flow, torch.zeros_like(flow))


def _flow_pass_without_backbone_gradient(model: KIModel, batch: Batch, draw: int, share: float) -> Losses:
    """`share` times the flow loss of a draw, with a backbone that keeps no activations: insulation needs none."""
    with torch.no_grad():
        cache = model.encode_prefix(batch.observation)
    time = batch.time[:, draw]
    x_t = interpolate(batch.actions, batch.noise[:, draw], time)
    flow = _flow_loss(model, batch, draw, model.velocity_from_cache(cache, x_t, time)) * share
    return Losses(flow, torch.zeros_like(flow))


def _fast_pass(model: KIModel, batch: Batch) -> Losses:
    """The FAST loss alone: prefix and FAST tokens, no expert."""
    observation = batch.observation
    tokens, mask = observation.fast_action_tokens, observation.fast_action_mask
    prefix = model.embed_prefix(observation)
    hidden = model.paligemma_with_expert.backbone_rows(
        prefix.embeddings,
        prefix.mask,
        _embed(model, tokens, prefix),
        mask,
        prediction_rows(prefix.mask, tokens.shape[1]),
    )
    fast = divide(token_loss(model.vlm_logits(hidden[mask]), tokens, mask).cross_entropy, len(tokens))
    return Losses(torch.zeros_like(fast), fast)


def _embed(model: KIModel, tokens: Tensor, prefix: Prefix) -> Tensor:
    """FAST tokens (B, F, W) in the dtype of the prefix, which autocast decides."""
    return model.paligemma_with_expert.backbone.language_model.embed(tokens).to(prefix.embeddings.dtype)


def _suffix(model: KIModel, batch: Batch, draw: int) -> tuple[Tensor, Tensor]:
    """Action tokens (B, H, W) and condition (B, 1, W) of one draw."""
    time = batch.time[:, draw]
    x_t = interpolate(batch.actions, batch.noise[:, draw], time)
    suffix = model.action_in_proj(x_t).to(model.paligemma_with_expert.expert.dtype)
    return suffix, model.condition(time)[:, None]


def _velocity(model: KIModel, suffix: Tensor) -> Tensor:
    return model.action_out_proj(suffix.to(model.action_out_proj.weight.dtype)).float()


def _flow_loss(model: KIModel, batch: Batch, draw: int, velocity: Tensor) -> Tensor:
    target = flow_target(batch.actions, batch.noise[:, draw])
    dims = model.config.learnt_dims
    return divide(velocity_loss(velocity[:, None], target[:, None], batch.action_mask, dims), len(velocity))


_rest_of_five = tuple(
    partial(_flow_pass_without_backbone_gradient, draw=draw, share=1 / DRAWS) for draw in range(1, DRAWS)
)

SIDES = {
    "one": Side("ours, 1 draw", "one", (partial(_our_step, draws=1),)),
    "logits": Side("(a) logits at every token", "one", (_logits_everywhere,)),
    "two passes": Side("(b) two passes", "one", (_flow_pass, _fast_pass)),
    "two passes, detached": Side(
        "(b') two passes, detached",
        "one",
        (partial(_flow_pass_without_backbone_gradient, draw=0, share=1.0), _fast_pass),
    ),
    "five": Side("ours, 5 draws", "five", (partial(_our_step, draws=DRAWS),)),
    "five passes": Side(
        "(c) five passes", "five", tuple(partial(_one_draw_of_five, draw=draw) for draw in range(DRAWS))
    ),
    "five passes, detached": Side(
        "(c') five passes, four detached",
        "five",
        (_first_draw_of_five, *_rest_of_five),
    ),
}
"""By name; a side of ours is its own reference. Each comes after its reference."""
