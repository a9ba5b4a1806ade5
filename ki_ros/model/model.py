"""The policy network: pi0.5's architecture with knowledge insulation.

Shapes: B batch, T prefix tokens, H action horizon, D action dimension, W width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ki_ros.model.config import KIConfig
from ki_ros.model.flow import integrate, time_embedding
from ki_ros.model.layers import AdaptiveRMSNorm, RMSNorm
from ki_ros.model.observation import Observation, ObservationError
from ki_ros.model.paired import PairedTransformer, PrefixCache, joint_mask, positions, suffix_positions
from ki_ros.rig import POLICY_SLOTS


class Prefix(NamedTuple):
    """Embedded views and prompt: embeddings (B, T, W), mask (B, T) bool of valid positions."""

    embeddings: Tensor
    mask: Tensor


class JointOutput(NamedTuple):
    """Prefix (B, T, W) and suffix (B, H, expert W) after the last norms, velocity (B, H, D) float32."""

    prefix: Tensor
    suffix: Tensor
    velocity: Tensor


class KIModel(nn.Module):
    """A Knowledge-Insulated pi0.5.

    The names of its parameters are openpi's. Two tensors of openpi's files have no counterpart: `paligemma.lm_head` is
    `language_model.embed_tokens` under another name, and `gemma_expert.lm_head` is never used.
    """

    def __init__(self, config: KIConfig) -> None:
        super().__init__()
        self.config = config
        width = config.expert.width
        self.paligemma_with_expert = PairedTransformer(config)
        self.action_in_proj = nn.Linear(config.action_dim, width)
        self.action_out_proj = nn.Linear(width, config.action_dim)
        self.time_mlp_in = nn.Linear(width, width)
        self.time_mlp_out = nn.Linear(width, width)
        self._initialize()

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.action_in_proj.weight.device

    @torch.no_grad()
    def sample_actions(
        self,
        observation: Observation,
        *,
        noise: Tensor | None = None,
        num_steps: int = 10,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Actions by Euler integration of the flow from noise.

        Args:
            observation: on the model's device.
            noise: (B, H, D), the starting point; drawn from `generator` (torch's default one if None) when left out.
            num_steps: evaluations of the expert.
            generator: on any device; the noise is drawn there.

        Returns:
            (B, H, D) float32, normalised actions.

        Raises:
            ObservationError: the observation does not fit the model, or a row has no view.
            ValueError: noise of another shape, num_steps below 1.
        """
        shape = (observation.batch_size, self.config.action_horizon, self.config.action_dim)
        if noise is None:
            noise = torch.randn(shape, generator=generator, device=generator.device if generator else self.device)
        _require_shape("noise", noise, shape)
        cache = self.encode_prefix(observation)
        noise = noise.to(device=self.device, dtype=torch.float32)
        return integrate(lambda x, time: self.velocity_from_cache(cache, x, time), noise, num_steps)

    def velocity(self, observation: Observation, x_t: Tensor, time: Tensor, *, cached: bool = True) -> Tensor:
        """The flow's velocity at x_t (B, H, D) and time (B,), by the cache or by the joint pass: (B, H, D) float32.

        Raises:
            ObservationError, ValueError: as `sample_actions`.
        """
        if cached:
            return self.velocity_from_cache(self.encode_prefix(observation), x_t, time)
        return self.joint(observation, x_t, time).velocity

    def encode_prefix(self, observation: Observation) -> PrefixCache:
        """Keys and values of the views and the prompt, computed once per observation."""
        prefix = self.embed_prefix(observation)
        return self.paligemma_with_expert.encode_prefix(prefix.embeddings, prefix.mask)

    def velocity_from_cache(self, cache: PrefixCache, x_t: Tensor, time: Tensor) -> Tensor:
        """The velocity (B, H, D) float32 at x_t (B, H, D) and time (B,), given an encoded prefix."""
        suffix, condition = self._embed_suffix(x_t, time, len(cache.mask))
        return self._project(self.paligemma_with_expert.run_expert(cache, suffix, condition))

    def joint(self, observation: Observation, x_t: Tensor, time: Tensor) -> JointOutput:
        """Prefix and actions in one pass, as in training: x_t (B, H, D), time (B,)."""
        prefix = self.embed_prefix(observation)
        suffix, condition = self._embed_suffix(x_t, time, len(prefix.mask))
        horizon = suffix.shape[1]
        prefix_out, suffix_out = self.paligemma_with_expert.joint(
            prefix.embeddings,
            suffix,
            condition,
            joint_mask(prefix.mask, horizon),
            torch.cat((positions(prefix.mask), suffix_positions(prefix.mask, horizon)), dim=1),
            insulated=self.config.knowledge_insulation,
        )
        return JointOutput(prefix_out, suffix_out, self._project(suffix_out))

    def embed_prefix(self, observation: Observation) -> Prefix:
        """Tokens of the views, in the order of `POLICY_SLOTS`, then of the prompt.

        What no row can see is left out: a view that is masked in the whole batch, and prompt padding past the longest
        prompt. A view that some rows lack is encoded for the others. Neither changes a result, for masked tokens are
        invisible and take no position. All views are one call of the vision tower.

        Raises:
            ObservationError: the observation does not fit the model, or a row has no view.
        """
        observation.validate(self.config)
        slots = [slot for slot in POLICY_SLOTS if slot in observation.images]
        present = torch.stack([observation.image_masks[slot] for slot in slots]).tolist()
        for row, views in enumerate(zip(*present, strict=True)):
            if not any(views):
                raise ObservationError(
                    f"image_masks: row {row} has none of {', '.join(slots)}; give each row at least one view"
                )
        kept = {slot: rows for slot, rows in zip(slots, present, strict=True) if any(rows)}
        images = [
            observation.images[slot] if all(rows) else observation.images[slot][observation.image_masks[slot]]
            for slot, rows in kept.items()
        ]
        features = self.paligemma_with_expert.backbone.embed_images(torch.cat(images)).split([len(i) for i in images])

        embeddings, masks = [], []
        for (slot, rows), feature in zip(kept.items(), features, strict=True):
            mask = observation.image_masks[slot]
            if not all(rows):
                feature = feature.new_zeros(len(rows), *feature.shape[1:]).index_put((mask,), feature)
            embeddings.append(feature)
            masks.append(mask[:, None].expand(-1, feature.shape[1]))

        columns = observation.tokenized_prompt_mask.any(dim=0).tolist()
        used = max((index + 1 for index, column in enumerate(columns) if column), default=0)
        prompt = self.paligemma_with_expert.backbone.language_model.embed(observation.tokenized_prompt[:, :used])
        embeddings.append(prompt.to(embeddings[0].dtype))
        masks.append(observation.tokenized_prompt_mask[:, :used])
        return Prefix(torch.cat(embeddings, dim=1), torch.cat(masks, dim=1))

    def condition(self, time: Tensor) -> Tensor:
        """The expert's condition (B, expert W) from times (B,)."""
        embedding = time_embedding(time, self.config.expert.width).to(self.time_mlp_in.weight.dtype)
        return F.silu(self.time_mlp_out(F.silu(self.time_mlp_in(embedding))))

    def cast_(self, dtype: torch.dtype) -> KIModel:
        """Casts the parameters to the dtype to compute in, in place; see `parameter_dtype`."""
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(self.parameter_dtype(name, dtype))
        return self

    @staticmethod
    def parameter_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
        """Dtype of a parameter when the model computes in `dtype`.

        Norms and the small layers that actions and time pass through stay float32: they cost nothing, and the sampler
        adds up what they say.
        """
        small = name.startswith(("action_", "time_"))
        norm = "vision_tower" not in name and ("layernorm" in name or ".norm." in name)
        return torch.float32 if small or norm else dtype

    def _embed_suffix(self, x_t: Tensor, time: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        _require_shape("x_t", x_t, (batch, self.config.action_horizon, self.config.action_dim))
        _require_shape("time", time, (batch,))
        suffix = self.action_in_proj(x_t.to(self.action_in_proj.weight.dtype))
        return suffix.to(self.paligemma_with_expert.expert.dtype), self.condition(time)

    def _project(self, suffix: Tensor) -> Tensor:
        return self.action_out_proj(suffix.to(self.action_out_proj.weight.dtype)).float()

    @torch.no_grad()
    def _initialize(self) -> None:
        """Weights to start training from; SigLIP keeps what transformers gave it.

        Linear layers are normal with variance 1 / fan-in, the embedding has variance 1 / width (it is multiplied by
        sqrt(width)), norms have gain one, and adaRMS starts at zero.
        """
        tower = self.paligemma_with_expert.backbone.vision_tower
        ours = set(self.modules()) - set(tower.modules())
        adaptive = {module.dense for module in ours if isinstance(module, AdaptiveRMSNorm)}
        for module in self.modules():
            if module not in ours:
                continue
            if isinstance(module, nn.Linear):
                if module in adaptive:
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
            elif isinstance(module, RMSNorm):
                nn.init.zeros_(module.weight)


def _require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}")
