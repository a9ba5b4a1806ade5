"""The model that checkpoints are made of: of a preset's sizes, and unlike the preset in all else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from checkpoints import PRESET

from ki_ros.model.config import KIConfig
from ki_ros.rig import ActionSpace


@pytest.fixture(scope="session")
def config() -> KIConfig:
    return replace(
        KIConfig.from_preset(PRESET),
        action_dim=32,
        action_horizon=7,
        max_token_len=150,
        action_space=ActionSpace.JOINT_POSITION,
        knowledge_insulation=False,
        knowledge_insulation_lambda=0.25,
    )
