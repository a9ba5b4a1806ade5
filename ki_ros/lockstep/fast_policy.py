"""A policy whose backbone acts: its FAST tokens instead of its expert, to measure what each of them has learnt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ki_ros.model.checkpoint import FAST_DIRECTORY, checkpoint_directory
from ki_ros.model.fast import FASTTokenizer
from ki_ros.model.fast_decoder import FASTDecoder
from ki_ros.policy import Policy, PolicyError
from ki_ros.rig import ActionSpace, CameraRole

_MAX_TOKENS = 256


class FASTPolicy:
    """Acts by its likeliest FAST tokens. They are slow: one pass of the backbone for each.

    Args:
        policy: whose backbone it is.
        checkpoint: that the policy was loaded from; its FAST tokenizer is read.

    Raises:
        PolicyError: there is no FAST tokenizer beside the weights.
        FASTTokenizerError: it cannot be read.
    """

    def __init__(self, policy: Policy, checkpoint: Path) -> None:
        directory = checkpoint_directory(checkpoint) / FAST_DIRECTORY
        if not directory.is_dir():
            raise PolicyError(f"{directory} is not there; give a checkpoint that was trained with FAST tokens")
        self._policy = policy
        self._decoder = FASTDecoder(policy.model, FASTTokenizer.from_directory(directory), _MAX_TOKENS)

    @property
    def action_space(self) -> ActionSpace:
        """What the first seven values of an action mean."""
        return self._policy.action_space

    def reseed(self, seed: int) -> None:
        """Nothing: the likeliest tokens need no noise."""

    def infer(self, views: Mapping[CameraRole, np.ndarray], state: np.ndarray, instruction: str) -> np.ndarray | None:
        """As `Policy.infer`; None where they have no end."""
        observation = self._policy.observe(views, state, instruction).to(self._policy.model.device)
        actions = self._decoder(observation)[0]
        return None if actions is None else self._policy.in_rig_units(actions.numpy())
