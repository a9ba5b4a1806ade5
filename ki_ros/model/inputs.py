"""From camera views, joint state and an instruction to what the model is given: one way, for training and acting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ki_ros.model.config import KIConfig
from ki_ros.model.normalize import NormStats
from ki_ros.model.observation import Observation
from ki_ros.model.prompt import PromptError, build_prompt, clean_instruction
from ki_ros.model.tokenizer import PromptTokenizer, TokenizerError
from ki_ros.resize import resize_with_pad
from ki_ros.rig import POLICY_SLOTS, STATE_DIM, CameraRole


class InputError(ValueError):
    """An input that the model must not be given; the message names it."""


@dataclass(frozen=True)
class EncodedInputs:
    """One row of an observation.

    Attributes:
        images: by slot, (S, S, 3) uint8 RGB; slots that are absent are not there.
        state: (8,) float64, normalised.
        tokens, token_mask: (max_token_len,) int64 and bool.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    tokens: np.ndarray
    token_mask: np.ndarray


class PolicyInputs:
    """Resizing, normalisation and prompt of a DROID policy.

    Args:
        config: of the model.
        norm_stats: of states and actions in the rig's units.
        tokenizer: of the model's prompts.
        base_view: the exterior camera that the model sees.

    Raises:
        InputError: parts that do not belong together.
    """

    def __init__(
        self,
        config: KIConfig,
        norm_stats: NormStats,
        tokenizer: PromptTokenizer,
        *,
        base_view: CameraRole = CameraRole.EXTERIOR_1,
    ) -> None:
        if tokenizer.vocab_size > config.language.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} pieces, the model only {config.language.vocab_size} "
                "embeddings; give the tokenizer that the model was trained with"
            )
        if base_view not in (CameraRole.EXTERIOR_1, CameraRole.EXTERIOR_2):
            raise InputError(f"base_view is {base_view!r}; give an exterior camera")
        self.norm_stats = norm_stats
        self.tokenizer = tokenizer
        # The third slot is a second arm's wrist: no DROID rig has it, so it never enters the observation.
        self._slots = dict(zip(POLICY_SLOTS, (CameraRole(base_view), CameraRole.WRIST), strict=False))
        self._side = config.vision.image_size

    @property
    def required_views(self) -> tuple[CameraRole, ...]:
        """The cameras that a whole observation has."""
        return tuple(self._slots.values())

    def encode(
        self,
        views: Mapping[CameraRole, np.ndarray],
        state: np.ndarray,
        instruction: str,
        *,
        require: Sequence[CameraRole] | None = None,
        augment: Callable[[CameraRole, np.ndarray], np.ndarray] | None = None,
    ) -> EncodedInputs:
        """One row.

        Args:
            views: by camera role, (height, width, 3) uint8 RGB of any size; cameras that the model has no slot for are
                ignored.
            state: (8,), joint positions [rad] and gripper closedness.
            instruction: what to do.
            require: cameras that must be there; all of `required_views` when left out.
            augment: from a camera and its resized (S, S, 3) view to another of that shape.

        Raises:
            InputError: a view that is missing or no RGB image, a state that is not finite, an instruction that is empty
                or too long.
        """
        state = np.asarray(state, dtype=np.float64)
        if state.shape != (STATE_DIM,):
            raise InputError(f"state has shape {state.shape}; expected ({STATE_DIM},), the joints and the gripper")
        bad = np.flatnonzero(~np.isfinite(state))
        if len(bad):
            raise InputError(f"state[{bad[0]}] is {state[bad[0]]}; give a finite state")
        if not clean_instruction(instruction).strip():
            raise InputError(f"instruction is {instruction!r}; give a text that says what to do")
        normalized = self.norm_stats.state.normalize(state)
        try:
            tokens, mask = self.tokenizer.encode(build_prompt(instruction, normalized))
        except (PromptError, TokenizerError) as error:
            raise InputError(f"instruction {instruction[:60]!r}: {error}") from error
        images = {}
        for slot, role in self._slots.items():
            if role in views:
                image = self._resize(role, views[role])
                images[slot] = image if augment is None else augment(role, image)
            elif role in (self.required_views if require is None else require):
                have = ", ".join(CameraRole(view).value for view in views) or "none"
                raise InputError(f"view {role.value!r} is missing (given: {have}); the policy needs it")
        return EncodedInputs(images, normalized, tokens, mask)

    def _resize(self, role: CameraRole, view: np.ndarray) -> np.ndarray:
        try:
            return resize_with_pad(view, self._side)
        except ValueError as error:
            raise InputError(f"view {role.value!r}: {error}") from error


def collate_inputs(rows: Sequence[EncodedInputs], config: KIConfig) -> Observation:
    """The observation (B rows) of a model with that configuration.

    Slots that no row has are left out; where only some rows have a view, the mask says which.
    """
    side = config.vision.image_size
    slots = [slot for slot in POLICY_SLOTS if any(slot in row.images for row in rows)]
    absent = np.zeros((side, side, 3), dtype=np.uint8)
    return Observation(
        images={slot: _channels_first(np.stack([row.images.get(slot, absent) for row in rows])) for slot in slots},
        image_masks={slot: torch.tensor([slot in row.images for row in rows]) for slot in slots},
        state=torch.from_numpy(np.stack([row.state for row in rows])).float(),
        tokenized_prompt=torch.from_numpy(np.stack([row.tokens for row in rows])),
        tokenized_prompt_mask=torch.from_numpy(np.stack([row.token_mask for row in rows])),
    )


def _channels_first(images: np.ndarray) -> Tensor:
    """(B, S, S, 3) uint8 as (B, 3, S, S), in the same memory."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)
