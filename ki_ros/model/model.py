"""The policy network: pi0.5's architecture with knowledge insulation.

Shapes: B batch, T prefix tokens, F FAST tokens, S draws of noise, H action horizon, D action dimension, W width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ki_ros.model.config import KIConfig
from ki_ros.model.flow import draw_times, flow_target, integrate, interpolate, time_embedding
from ki_ros.model.initialization import initialize
from ki_ros.model.layers import full_precision
from ki_ros.model.losses import (
    KILoss,
    LossCounts,
    TokenLoss,
    VisionLanguageBatch,
    divide,
    prediction_rows,
    token_loss_by_head,
    velocity_loss,
)
from ki_ros.model.observation import Observation, ObservationError
from ki_ros.model.paired import PairedTransformer, PrefixCache
from ki_ros.model.prefix import Prefix, embed_tokens
from ki_ros.model.rtc import Guidance, Velocity, guided
from ki_ros.rig import STATE_DIM


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
        initialize(self, untouched=self.paligemma_with_expert.backbone.vision_tower)

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
        committed: Tensor | None = None,
        guidance: Guidance | None = None,
        views_required: bool = True,
    ) -> Tensor:
        """Actions by Euler integration of the flow from noise.

        Args:
            observation: on the model's device.
            noise: (B, H, D), the starting point; drawn from `generator` (torch's default one if None) when left out.
            num_steps: evaluations of the expert.
            generator: on any device; the noise is drawn there.
            committed: (B, C, A) normalised, what the arm will do meanwhile: the first C actions are these, and the
                others go on from them, as a model with `committed_rows` is trained to. A is 8, or D if that is less.
            guidance: what the actions are drawn to instead, by a model that is not; None for nothing.
            views_required: whether a row without any view is refused. An arm must not be moved blindly; a model that
                is trained on states alone can be evaluated.

        Returns:
            (B, H, D) float32, normalised actions.

        Raises:
            ObservationError: the observation does not fit the model, or a row has no view.
            ValueError: noise, committed or guidance of another shape, both of the latter, more rows than the model was
                trained with, num_steps below 1.
        """
        if noise is None:
            shape = (observation.batch_size, self.config.action_horizon, self.config.action_dim)
            noise = torch.randn(shape, generator=generator, device=generator.device if generator else self.device)
        self.validate_sampling(observation, noise, committed, guidance)
        cache = self.encode_prefix(observation, views_required=views_required)
        noise = noise.to(device=self.device, dtype=torch.float32)

        def velocity(x: Tensor, time: Tensor) -> Tensor:
            return self.velocity_from_cache(cache, x, time)

        if committed is not None:
            return self._go_on(velocity, noise, committed, num_steps)
        if guidance is not None:
            velocity = guided(velocity, guidance)
        return integrate(velocity, noise, num_steps)

    def validate_sampling(
        self, observation: Observation, noise: Tensor, committed: Tensor | None, guidance: Guidance | None
    ) -> None:
        """Raises what `sample_actions` raises for its arguments, but for a row without a view."""
        observation.validate(self.config)
        shape = (observation.batch_size, self.config.action_horizon, self.config.action_dim)
        _require_shape("noise", noise, shape)
        values = min(STATE_DIM, shape[2])
        if committed is not None:
            if guidance is not None:
                raise ValueError("committed and guidance are both given; give one of them")
            rows = committed.shape[1] if committed.dim() > 1 else 0
            _require_shape("committed", committed, (shape[0], rows, values))
            if rows > self.config.committed_rows:
                raise ValueError(
                    f"committed has {rows} rows; the model was trained to go on from up to "
                    f"{self.config.committed_rows} (committed_rows), so give no more, or guidance in their place"
                )
        if guidance is not None:
            _require_shape("guidance.target", guidance.target, (*shape[:2], values))

    def _go_on(self, velocity: Velocity, noise: Tensor, committed: Tensor, num_steps: int) -> Tensor:
        """Integrates with the first rows held at what is committed, at time 0: an action as it is."""
        rows, values = committed.shape[1:]
        given = torch.zeros_like(noise[:, :rows])
        given[..., :values] = committed.to(given)
        free = torch.arange(noise.shape[1], device=noise.device) >= rows

        def going_on(x: Tensor, time: Tensor) -> Tensor:
            return velocity(torch.cat((given, x[:, rows:]), dim=1), time[:, None] * free)

        return torch.cat((given, integrate(going_on, noise, num_steps)[:, rows:]), dim=1)

    def velocity(self, observation: Observation, x_t: Tensor, time: Tensor, *, cached: bool = True) -> Tensor:
        """The flow's velocity at x_t (B, H, D) and time (B,), by the cache or by the joint pass: (B, H, D) float32.

        Raises:
            ObservationError, ValueError: as `sample_actions`.
        """
        if cached:
            return self.velocity_from_cache(self.encode_prefix(observation), x_t, time)
        return self.joint(observation, x_t, time).velocity

    def encode_prefix(self, observation: Observation, *, views_required: bool = True) -> PrefixCache:
        """Keys and values of the views and the prompt, computed once per observation."""
        prefix = self.embed_prefix(observation, views_required=views_required)
        return self.paligemma_with_expert.encode_prefix(prefix.embeddings, prefix.mask)

    def velocity_from_cache(self, cache: PrefixCache, x_t: Tensor, time: Tensor) -> Tensor:
        """The velocity (B, H, D) float32 at x_t (B, H, D) and time (B,) or (B, H), given an encoded prefix."""
        suffix, condition = self._embed_suffix(x_t, time, len(cache.mask))
        return self._project(self.paligemma_with_expert.run_expert(cache, suffix, condition))

    def joint(self, observation: Observation, x_t: Tensor, time: Tensor) -> JointOutput:
        """Prefix and actions in one pass, without FAST tokens: x_t (B, H, D), time (B,)."""
        prefix = self.embed_prefix(observation)
        suffix, condition = self._embed_suffix(x_t, time, len(prefix.mask))
        prefix_out, suffix_out = self.paligemma_with_expert.joint(
            prefix.embeddings,
            prefix.mask,
            prefix.embeddings[:, :0],
            prefix.mask[:, :0],
            suffix,
            condition,
            draws=1,
            rows=None,
            insulated=self.config.knowledge_insulation,
        )
        return JointOutput(prefix_out, suffix_out, self._project(suffix_out))

    def forward(self, *args: Any, **kwargs: Any) -> KILoss:
        """`compute_loss`, under the name that PyTorch's wrappers call."""
        return self.compute_loss(*args, **kwargs)

    def compute_loss(
        self,
        observation: Observation,
        actions: Tensor,
        *,
        action_mask: Tensor | None = None,
        noise: Tensor | None = None,
        time: Tensor | None = None,
        flow_samples: int = 1,
        vision_language: VisionLanguageBatch | None = None,
        counts: LossCounts | None = None,
    ) -> KILoss:
        """Both losses of knowledge insulation from one forward pass (arXiv 2505.23705).

        The backbone is run once over prefix and FAST tokens; the expert learns from `flow_samples` draws of noise and
        time beside it, which cost little, because all of them read the same keys and values.

        Args:
            observation: with FAST tokens, as `TokenizeFASTInputs` fills them in. Views may be missing altogether:
                training on states alone is a choice that its data make.
            actions: (B, H, D) normalised. Values past the rig's eight are padding.
            action_mask: (B, H) bool, true at steps of the episode; None where all are. Steps past its end carry no
                flow loss, and a row with such a step has no FAST tokens.
            noise: (B, H, D), or (B, S, H, D) for S draws; drawn when left out.
            time: (B,) or (B, S) in (0, 1], likewise; or (B, S, H), a time for each action. At time 0 an action is given
                as it is and not learnt: the expert learns to go on from it (arXiv 2512.05964).
            flow_samples: S; noise or time that are given must have as many.
            vision_language: further data for the backbone alone.
            counts: samples of the whole batch, where this is a part of it; from this batch when left out.

        Returns:
            `KILoss`. Accuracy carries no gradient.

        Raises:
            ObservationError: the observation does not fit the model, has no FAST tokens, or a row has no input.
            ValueError: actions, mask, noise or time of another shape.
        """
        batch = observation.batch_size
        shape = (batch, self.config.action_horizon, self.config.action_dim)
        _require_shape("actions", actions, shape)
        if action_mask is None:
            action_mask = torch.ones(shape[:2], dtype=torch.bool, device=actions.device)
        _require_shape("action_mask", action_mask, shape[:2])
        fast_tokens, fast_mask = observation.fast_action_tokens, observation.fast_action_mask
        if fast_tokens is None or fast_mask is None:
            raise ObservationError("fast_action_tokens is None; let TokenizeFASTInputs fill it in from the actions")
        noise, time = self._draws(noise, time, flow_samples, actions)

        prefix, fast_embeddings = self._embed(observation, fast_tokens, views_required=False)
        # Padding may hold anything; what is not a number would pass through attention even where it is masked.
        clean = torch.where(action_mask[:, :, None], actions, 0.0).float()[:, None]
        suffix, condition = self._embed_draws(interpolate(clean, noise, time), time)
        rows = prediction_rows(prefix.mask, fast_tokens.shape[1])
        backbone_out, suffix_out = self.paligemma_with_expert.joint(
            prefix.embeddings,
            prefix.mask,
            fast_embeddings,
            fast_mask,
            suffix,
            condition,
            draws=flow_samples,
            rows=rows,
            insulated=self.config.knowledge_insulation,
        )
        velocity = self._project(suffix_out).unflatten(1, (flow_samples, -1))
        learnt = action_mask if time.dim() == 2 else action_mask[:, None] & (time > 0)
        flow = velocity_loss(velocity, flow_target(clean, noise), learnt, self.config.learnt_dims)
        fast = self._token_loss(backbone_out, fast_tokens, fast_mask)
        if counts is None:
            language = 0 if vision_language is None else int(vision_language.answer_mask.any(1).sum())
            counts = LossCounts(int(action_mask.any(1).sum()), int(fast_mask.any(1).sum()), language)
        flow_loss = divide(flow, counts.flow)
        fast_loss = divide(fast.cross_entropy, counts.fast)
        token_total, language_loss = fast_loss, None
        if vision_language is not None:
            language_loss = divide(self._answer_loss(vision_language).cross_entropy, counts.vision_language)
            token_total = fast_loss + language_loss
        return KILoss(
            flow_loss + self.config.knowledge_insulation_lambda * token_total,
            flow_loss,
            fast_loss,
            divide(fast.accuracy, counts.fast),
            language_loss,
        )

    def vlm_logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocabulary) float32 of normed backbone outputs (..., W), by the tied embedding.

        A vocabulary is large: give only the tokens that predict something.
        """
        return self.paligemma_with_expert.backbone.language_model.logits(hidden)

    def enable_activation_checkpointing(self) -> None:
        """Recomputes each paired layer and, in training mode, each of SigLIP's in the backward pass: less memory."""
        for pair in self.paligemma_with_expert.pairs:
            pair.activation_checkpointing = True
        self.paligemma_with_expert.backbone.vision_tower.enable_checkpointing()

    def backbone_parameters(self) -> dict[str, nn.Parameter]:
        """By name, the parameters of vision, projection and language: what the FAST loss trains."""
        return {name: p for name, p in self.named_parameters() if is_backbone(name)}

    def expert_parameters(self) -> dict[str, nn.Parameter]:
        """By name, all others: the expert, and the layers of actions and time. What the flow loss trains."""
        return {name: p for name, p in self.named_parameters() if not is_backbone(name)}

    def embed_prefix(self, observation: Observation, *, views_required: bool = True) -> Prefix:
        """Tokens of the views and of the prompt, see `ki_ros.model.prefix.embed_tokens`."""
        none = observation.tokenized_prompt[:, :0]
        return self._embed(observation, none, views_required=views_required)[0]

    def _embed(self, observation: Observation, following: Tensor, *, views_required: bool) -> tuple[Prefix, Tensor]:
        return embed_tokens(
            self.paligemma_with_expert.backbone, self.config, observation, following, views_required=views_required
        )

    def condition(self, time: Tensor) -> Tensor:
        """The expert's condition (B, expert W) from times (B,)."""
        embedding = time_embedding(time, self.config.expert.width).to(self.time_mlp_in.weight.dtype)
        with full_precision(time):
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

    def _draws(
        self, noise: Tensor | None, time: Tensor | None, flow_samples: int, actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Noise (B, S, H, D) and times (B, S) or (B, S, H), float32, given or drawn."""
        if isinstance(flow_samples, bool) or not isinstance(flow_samples, int) or flow_samples < 1:
            raise ValueError(f"flow_samples is {flow_samples!r}; give a positive integer")
        shape = (len(actions), flow_samples, *actions.shape[1:])
        if noise is None:
            noise = torch.randn(shape, device=actions.device)
        elif noise.dim() == 3:
            noise = noise[:, None]
        if time is None:
            time = draw_times(shape[:2], device=actions.device)
        elif time.dim() == 1:
            time = time[:, None]
        _require_shape("noise", noise, shape)
        _require_shape("time", time, shape[: 3 if time.dim() == 3 else 2])
        return noise.float(), time.float()

    def _embed_draws(self, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """x_t (B, S, H, D) and times -> action tokens (B, S * H, W) and conditions.

        These are (B, S, W) for times (B, S), and (B, S * H, W) for times (B, S, H).
        """
        with full_precision(x_t):
            suffix = self.action_in_proj(x_t.flatten(1, 2).to(self.action_in_proj.weight.dtype))
        condition = self.condition(time.flatten()).unflatten(0, (len(time), -1))
        return suffix.to(self.paligemma_with_expert.expert.dtype), condition

    def _embed_suffix(self, x_t: Tensor, time: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        _require_shape("x_t", x_t, (batch, self.config.action_horizon, self.config.action_dim))
        _require_shape("time", time, (batch, self.config.action_horizon)[: time.dim()])
        return self._embed_draws(x_t[:, None], time[:, None])

    def _token_loss(self, hidden: Tensor, tokens: Tensor, mask: Tensor) -> TokenLoss:
        """Of the backbone's outputs (B, F, W) at the rows that predict the tokens (B, F)."""
        return token_loss_by_head(self.vlm_logits, hidden[mask], tokens, mask)

    def _answer_loss(self, data: VisionLanguageBatch) -> TokenLoss:
        data.validate()
        question = Observation(
            images=data.images,
            image_masks=data.image_masks,
            state=torch.zeros(len(data.question), STATE_DIM, device=data.question.device),
            tokenized_prompt=data.question,
            tokenized_prompt_mask=data.question_mask,
        )
        prefix, answer = self._embed(question, data.answer, views_required=False)
        hidden = self.paligemma_with_expert.backbone_rows(
            prefix.embeddings,
            prefix.mask,
            answer,
            data.answer_mask,
            prediction_rows(prefix.mask, data.answer.shape[1]),
        )
        return self._token_loss(hidden, data.answer, data.answer_mask)

    def _project(self, suffix: Tensor) -> Tensor:
        with full_precision(suffix):
            return self.action_out_proj(suffix.to(self.action_out_proj.weight.dtype)).float()


def is_backbone(name: str) -> bool:
    """Whether a parameter of that name belongs to the backbone, and not to the expert."""
    return name.startswith("paligemma_with_expert.paligemma.")


def _require_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}")
