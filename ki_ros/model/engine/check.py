"""Whether an engine says what the model says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ki_ros.model.config import KIConfig
from ki_ros.model.engine.engine import Engine, EngineError, ReferenceEngine
from ki_ros.model.model import KIModel
from ki_ros.model.observation import Observation
from ki_ros.rig import POLICY_SLOTS

BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest difference of a normalised action from the reference in the same dtype; actions span 2. Sums taken in
another order differ by some units in the last place, and ten steps make more of them."""


@dataclass(frozen=True)
class Deviation:
    """Of normalised actions: the largest difference, and the root of the mean square."""

    largest: float
    rms: float


@torch.no_grad()
def compare(engine: Engine, reference: Engine, inputs: Iterable[tuple[Observation, Tensor]]) -> Deviation:
    """How far two engines are apart on observations of one row and noise (1, H, D)."""
    largest, square, count = 0.0, 0.0, 0
    for observation, noise in inputs:
        apart = engine.sample(observation, noise).double() - reference.sample(observation, noise).double()
        if not torch.isfinite(apart).all():
            return Deviation(float("inf"), float("inf"))
        largest = max(largest, apart.abs().max().item())
        square, count = square + apart.square().sum().item(), count + apart.numel()
    return Deviation(largest, (square / max(count, 1)) ** 0.5)


def verify(engine: Engine, model: KIModel) -> Deviation:
    """Compares an engine with the model as it is written down, for a short prompt, a long one, and one view.

    Raises:
        EngineError: it is further away than `BOUNDS` allows.
    """
    config = model.config
    sizes = ((config.max_token_len // 4 + 1, 2), (config.max_token_len, 1))
    cases = [random_input(config, length, views, model.device) for length, views in sizes]
    found = compare(engine, ReferenceEngine(model, engine.num_steps), cases)
    bound = BOUNDS[model.paligemma_with_expert.expert.dtype]
    if not found.largest <= bound:
        raise EngineError(
            f"engine {engine.name!r} is {found.largest:.2g} from the reference, more than {bound:g}; use engine "
            "'reference', and report it"
        )
    return found


def random_input(
    config: KIConfig, tokens: int, views: int, device: torch.device | str = "cpu", seed: int = 0
) -> tuple[Observation, Tensor]:
    """An observation of noise with a prompt of that many tokens, and noise to start from."""
    generator = torch.Generator().manual_seed(seed)
    side, slots = config.vision.image_size, POLICY_SLOTS[:views]
    shape = (1, config.action_horizon, config.action_dim)
    images = {
        slot: torch.randint(0, 256, (1, side, side, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)
        for slot in slots
    }
    words = torch.randint(0, config.language.vocab_size, (1, config.max_token_len), generator=generator)
    observation = Observation(
        images=images,
        image_masks={slot: torch.ones(1, dtype=torch.bool) for slot in slots},
        state=torch.zeros(1, config.action_dim),
        tokenized_prompt=words,
        tokenized_prompt_mask=torch.arange(config.max_token_len)[None] < tokens,
    )
    return observation.to(device), torch.randn(shape, generator=generator).to(device)
