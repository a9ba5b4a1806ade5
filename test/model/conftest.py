"""A model small enough to run many times, whose every weight matters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small import make_model

from ki_ros.model.config import ExpertConfig, KIConfig, LanguageConfig, VisionConfig
from ki_ros.model.model import KIModel
from ki_ros.model.observation import Observation
from ki_ros.rig import POLICY_SLOTS


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_config() -> KIConfig:
    return KIConfig(
        vision=VisionConfig(width=16, depth=1, heads=2, mlp=24, image_size=28, patch_size=14),
        language=LanguageConfig(width=24, mlp=32, depth=2, heads=4, kv_heads=2, head_dim=8, vocab_size=60),
        expert=ExpertConfig(width=20, mlp=28),
        action_dim=8,
        action_horizon=5,
        max_token_len=10,
    )


@pytest.fixture(scope="session")
def small_model(small_config: KIConfig) -> KIModel:
    return make_model(small_config)


@pytest.fixture
def make_observation(small_config: KIConfig) -> Callable[..., Observation]:
    """An observation of two rows; `masks` gives each slot's flag per row, `seed` all content."""

    def make(
        masks: dict[str, list[bool]] | None = None, seed: int = 1, prompt: tuple[int, ...] = (6, 4)
    ) -> Observation:
        generator = torch.Generator().manual_seed(seed)
        side, batch = small_config.vision.image_size, len(prompt)
        masks = masks or {slot: [index < 2] * batch for index, slot in enumerate(POLICY_SLOTS)}
        images = {slot: torch.rand(batch, 3, side, side, generator=generator) * 2 - 1 for slot in POLICY_SLOTS}
        tokens = torch.randint(1, small_config.language.vocab_size, (batch, 10), generator=generator)
        return Observation(
            images={slot: images[slot] for slot in masks},
            image_masks={slot: torch.tensor(flags) for slot, flags in masks.items()},
            state=torch.zeros(batch, 8),
            tokenized_prompt=tokens,
            tokenized_prompt_mask=torch.arange(10) < torch.tensor(prompt)[:, None],
        )

    return make
