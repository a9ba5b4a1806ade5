"""The engine that computes nothing twice and nothing that is not read.

Shapes: V views, P tokens of a view, T prefix tokens, L actions of a chunk, D action dimension, W width, K key/value
heads, H head dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ki_ros.model.engine import layers
from ki_ros.model.engine.modulation import Modulation, modulation
from ki_ros.model.engine.ops import rms_normalize, rotary_table
from ki_ros.model.engine.packed import backbone_layers, expert_layers, vision_layers
from ki_ros.model.engine.product import can_block
from ki_ros.model.flow import integrate, sample_times
from ki_ros.model.model import KIModel
from ki_ros.model.observation import Observation, ObservationError, pixel_values
from ki_ros.model.rtc import Guidance, Velocity, guided
from ki_ros.rig import POLICY_SLOTS


@dataclass(frozen=True)
class Prefix:
    """What the expert reads of an observation.

    Attributes:
        keys, values: per layer (T + L, K, H): the prefix's, then room for those of the actions.
        rotary: of the positions of the actions, see `rotary_table`.
        mask: (T + L,) bool; None where all may be seen.
    """

    keys: Tensor
    values: Tensor
    rotary: tuple[Tensor, Tensor]
    mask: Tensor | None


class FusedEngine:
    """Samples the model's actions for one observation at a time.

    Against the model as it is written down: projections of the same input are one product; times and what they do to
    the norms are computed once for all calls; keys and values of the prefix are written where the expert reads them and
    never copied; nothing is masked, for tokens that may not be seen are not there; there is no batch dimension; on a
    CPU, weights lie as it multiplies fastest, which is a copy of them.

    Args:
        model: in evaluation mode; its parameters become views of packed ones, of the same values. They must not change
            as long as the engine is used.
        num_steps: of the integration.
        bucket: prompts are padded to a multiple of so many tokens, which are masked; 1 for no padding.
        blocked: whether weights may be copied into the CPU's own layout, where there is one and memory for it.
    """

    name = "fused"

    def __init__(self, model: KIModel, num_steps: int, *, bucket: int = 1, blocked: bool = True) -> None:
        self.model, self.num_steps, self.bucket = model, num_steps, bucket
        self._config = model.config
        self._backbone = model.paligemma_with_expert.backbone
        blocked = blocked and can_block([*model.parameters()])
        self._vision = vision_layers(model, blocked)
        self._language = backbone_layers(model, blocked)
        self._expert = expert_layers(model, blocked)
        self._dtype = model.paligemma_with_expert.expert.dtype
        self._modulations = [modulation(model, time) for time in sample_times(num_steps)]
        self._given = modulation(model, 0.0)
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    # The interface

    def prepare(self) -> None:
        """Nothing needs to be done once that is not done already."""

    @torch.no_grad()
    def sample(
        self,
        observation: Observation,
        noise: Tensor,
        *,
        committed: Tensor | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """See `Engine`. Errors are those of `KIModel.sample_actions`, and ObservationError for more than one row."""
        self.model.validate_sampling(observation, noise, committed, guidance)
        views, tokens = self._inputs(observation)
        images = torch.cat(views).to(self.model.device)
        prefix = self.encode(images, *self._padded(tokens.to(self.model.device)))
        x = noise[0].to(device=images.device, dtype=torch.float32)
        if guidance is not None:
            return self._guided(prefix, x, guidance.to(x.device))[None]
        if committed is None:
            return self.integrate(prefix, x)[None]
        return self.integrate(prefix, x, *self._given_rows(committed, x.device))[None]

    # Its parts

    def encode(self, images: Tensor, tokens: Tensor, count: Tensor | None = None) -> Prefix:
        """Encodes views (V, 3, S, S), see `Observation`, and a prompt (n,) int64; its first `count` tokens count."""
        x = torch.cat((self.encode_views(images), self._embed(tokens)))
        length = len(x)
        position, mask = self._positions(length, len(tokens), count)
        cos, sin = rotary_table(position, self._config.language.head_dim)
        rotary, seen = (cos[:length], sin[:length]), None if mask is None else mask[:length]
        keys, values = self._memory(len(position))
        last = len(self._language) - 1
        for layer, weights in enumerate(self._language):
            k, v = keys[layer, :length], values[layer, :length]
            if layer < last:
                x = self._backbone_layer(x, weights, rotary, seen, k, v)
            else:
                layers.last_backbone_layer(x, weights, rotary, k, v)
        return Prefix(keys, values, (cos[length:], sin[length:]), mask)

    def integrate(self, prefix: Prefix, x: Tensor, given: Tensor | None = None, free: Tensor | None = None) -> Tensor:
        """Actions (L, D) from noise x; the rows that are not `free` (L,) bool are those of `given` (L, D)."""
        if given is None:
            return integrate(self._velocities(prefix), x[None], self.num_steps)[0]
        steps = iter(self._modulations)

        def going_on(batch: Tensor, _: Tensor) -> Tensor:
            rows = torch.where(free[:, None], batch[0], given)
            return self.velocity(prefix, rows, next(steps).where(free, self._given))[None]

        return torch.where(free[:, None], integrate(going_on, x[None], self.num_steps)[0], given)

    def velocity(self, prefix: Prefix, x: Tensor, modulations: Modulation) -> Tensor:
        """The flow's velocity at x, (L, D) float32 each."""
        m, model = modulations, self.model
        hidden = F.linear(x, model.action_in_proj.weight, model.action_in_proj.bias).to(self._dtype)
        differentiable = torch.is_grad_enabled()
        expert_layer = layers.expert_layer if differentiable else self._expert_layer
        for layer, weights in enumerate(self._expert):
            keys, values = prefix.keys[layer], prefix.values[layer]
            if differentiable:
                # What is written into must not be needed by the backward pass.
                keys, values = keys.clone(), values.clone()
            attention, mlp = ((m.gains[n], m.shifts[n], m.gates[n]) for n in (2 * layer, 2 * layer + 1))
            hidden = expert_layer(hidden, weights, prefix.rotary, prefix.mask, keys, values, attention, mlp)
        normed = torch.addcmul(m.shifts[-1], rms_normalize(hidden), m.gains[-1]).to(self._dtype)
        out = model.action_out_proj
        return F.linear(normed.to(out.weight.dtype), out.weight, out.bias).float()

    def parts(self, images: Tensor, tokens: Tensor, noise: Tensor) -> dict[str, Callable[[], object]]:
        """To be timed, each alone: vision; vision and prefill; all steps. Arguments as `encode` and `integrate`."""
        prefix = self.encode(images, tokens)
        return {
            "vision": lambda: self.encode_views(images),
            "vision and prefill": lambda: self.encode(images, tokens),
            "steps": lambda: self.integrate(prefix, noise),
        }

    # What they are made of; an engine that compiles replaces these

    _vision_layer = staticmethod(layers.vision_layer)
    _backbone_layer = staticmethod(layers.backbone_layer)
    _expert_layer = staticmethod(layers.expert_layer)

    def _inputs(self, observation: Observation) -> tuple[list[Tensor], Tensor]:
        """The views that are there, (1, 3, S, S) each, and the tokens that count (n,)."""
        if observation.batch_size != 1:
            raise ObservationError(
                f"tokenized_prompt has {observation.batch_size} rows; this engine acts on one observation at a time"
            )
        slots = [slot for slot in POLICY_SLOTS if slot in observation.images and observation.image_masks[slot].item()]
        if not slots:
            raise ObservationError(f"image_masks: row 0 has none of {', '.join(POLICY_SLOTS)}; give it a view")
        images = [observation.images[slot] for slot in slots]
        return images, observation.tokenized_prompt[observation.tokenized_prompt_mask]

    def _padded(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """The prompt in its bucket, and how many tokens of it count; None where all do."""
        missing = -len(tokens) % self.bucket
        if not missing:
            return tokens, None
        return F.pad(tokens, (0, missing)), torch.tensor(len(tokens), device=tokens.device)

    def encode_views(self, images: Tensor) -> Tensor:
        """Views (V, 3, S, S), see `Observation`, as tokens of the backbone (V * P, W)."""
        tower = self._backbone.vision_tower.vision_model
        patch = tower.embeddings.patch_embedding
        x = F.conv2d(pixel_values(images).to(patch.weight.dtype), patch.weight, patch.bias, stride=patch.stride)
        x = x.flatten(2).transpose(1, 2) + tower.embeddings.position_embedding.weight
        for weights in self._vision:
            x = self._vision_layer(x, weights, self._config.vision.heads)
        norm = tower.post_layernorm
        x = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return self._backbone.multi_modal_projector(x).flatten(0, 1)

    def _embed(self, tokens: Tensor) -> Tensor:
        return self._backbone.language_model.embed(tokens)

    def _positions(self, length: int, tokens: int, count: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Positions (T + L,) of a prefix of `length` tokens and a chunk, and which may be seen; None where all may.

        Of the prefix's last `tokens`, which are the prompt's, the first `count` count.
        """
        index = torch.arange(length + self._config.action_horizon, device=self.model.device)
        if count is None:
            return index, None
        valid = length - tokens + count
        # Actions take the positions after the last token that counts.
        return torch.where(index < length, index, index - length + valid), (index < valid) | (index >= length)

    def _memory(self, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all layers (depth, length, K, H), for one call."""
        config = self._config.language
        if length not in self._buffers:
            # Only one length is kept: an instruction does not change from call to call.
            shape = (config.depth, length, config.kv_heads, config.head_dim)
            fresh = tuple(torch.empty(shape, dtype=self._dtype, device=self.model.device) for _ in range(2))
            self._buffers = {length: fresh}
        return self._buffers[length]

    def _velocities(self, prefix: Prefix) -> Velocity:
        """The velocity for one integration: its calls are at the step times, in their order."""
        steps = iter(self._modulations)
        return lambda batch, _: self.velocity(prefix, batch[0], next(steps))[None]

    def _given_rows(self, committed: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Of committed actions (1, C, A): as rows of a chunk (L, D), and which rows are free, (L,) bool."""
        rows, values = committed.shape[1:]
        given = torch.zeros(self._config.action_horizon, self._config.action_dim, device=device)
        given[:rows, :values] = committed[0].to(given)
        return given, torch.arange(len(given), device=device) >= rows

    def _guided(self, prefix: Prefix, x: Tensor, guidance: Guidance) -> Tensor:
        return integrate(guided(self._velocities(prefix), guidance), x[None], self.num_steps)[0]
