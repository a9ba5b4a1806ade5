"""What the model is given, as tensors.

Shapes: B batch, S image side, T prompt tokens, F FAST tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from ki_ros.model.config import KIConfig
from ki_ros.rig import POLICY_SLOTS


class ObservationError(ValueError):
    """An observation that the model cannot take; the message names the field, what it is and what it must be."""


@dataclass(frozen=True)
class Observation:
    """A batch of observations.

    Attributes:
        images: view by slot name (`ki_ros.rig.POLICY_SLOTS`), (B, 3, S, S): uint8 RGB, or floating point in [-1, 1];
            one dtype for all. Bytes are a quarter of what has to be moved to a device.
        image_masks: by the same names, (B,) bool, true where the row has that view. A slot that is left out of both is
            a view that no row has.
        state: (B, state dimension) floating point, normalised. pi0.5 reads the state from the prompt; this is for
            records.
        tokenized_prompt: (B, T) int64.
        tokenized_prompt_mask: (B, T) bool, true at real tokens.
        fast_action_tokens: (B, F) int64, in training only.
        fast_action_mask: (B, F) bool, in training only.
    """

    images: dict[str, Tensor]
    image_masks: dict[str, Tensor]
    state: Tensor
    tokenized_prompt: Tensor
    tokenized_prompt_mask: Tensor
    fast_action_tokens: Tensor | None = None
    fast_action_mask: Tensor | None = None

    @property
    def batch_size(self) -> int:
        """B."""
        return self.tokenized_prompt.shape[0]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Observation:
        """The same observation on another device; floating-point tensors also get the dtype."""

        def move(value: object) -> object:
            if isinstance(value, dict):
                return {name: move(tensor) for name, tensor in value.items()}
            if not isinstance(value, Tensor):
                return value
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        return Observation(**{item.name: move(getattr(self, item.name)) for item in dataclasses.fields(self)})

    def validate(self, config: KIConfig) -> None:
        """Checks names, shapes and dtypes against the model's configuration; reads no values.

        Raises:
            ObservationError: on the first field that does not fit.
        """
        expect_tensor("tokenized_prompt", self.tokenized_prompt, (None, None), torch.int64)
        batch, length = self.tokenized_prompt.shape
        if batch == 0:
            raise ObservationError("tokenized_prompt has no rows; give at least one observation")
        if length > config.max_token_len:
            raise ObservationError(
                f"tokenized_prompt has {length} tokens a row; max_token_len is {config.max_token_len}"
            )
        expect_tensor("tokenized_prompt_mask", self.tokenized_prompt_mask, (batch, length), torch.bool)
        expect_tensor("state", self.state, (batch, None), None)
        if set(self.images) != set(self.image_masks):
            raise ObservationError(
                f"images has the slots {sorted(self.images)}, image_masks has {sorted(self.image_masks)}; "
                "give each view its mask"
            )
        unknown = sorted(set(self.images) - set(POLICY_SLOTS))
        if unknown:
            raise ObservationError(f"images has the slot {unknown[0]!r}; use {', '.join(POLICY_SLOTS)}")
        side = config.vision.image_size
        for name, image in self.images.items():
            # Bytes have any value.
            dtype = torch.uint8 if isinstance(image, Tensor) and image.dtype == torch.uint8 else None
            expect_tensor(f"images[{name!r}]", image, (batch, 3, side, side), dtype)
            expect_tensor(f"image_masks[{name!r}]", self.image_masks[name], (batch,), torch.bool)
        dtypes = {str(image.dtype) for image in self.images.values()}
        if len(dtypes) > 1:
            raise ObservationError(f"images has the dtypes {', '.join(sorted(dtypes))}; give all views the same")
        if (self.fast_action_tokens is None) != (self.fast_action_mask is None):
            raise ObservationError("fast_action_tokens and fast_action_mask go together; give both or neither")
        if self.fast_action_tokens is not None:
            expect_tensor("fast_action_tokens", self.fast_action_tokens, (batch, None), torch.int64)
            expect_tensor(
                "fast_action_mask", self.fast_action_mask, (batch, self.fast_action_tokens.shape[1]), torch.bool
            )


def pixel_values(images: Tensor) -> Tensor:
    """Bytes as floating point in [-1, 1], float32; floating point as it is. Any shape."""
    if images.dtype != torch.uint8:
        return images
    return images.float().div_(255.0).mul_(2.0).sub_(1.0)


def expect_tensor(name: str, value: object, shape: tuple[int | None, ...], dtype: torch.dtype | None) -> None:
    """Refuses by name what is not such a tensor. A shape entry None is any size; dtype None is any floating point.

    Raises:
        ObservationError: not a tensor, another shape, another dtype.
    """
    if not isinstance(value, Tensor):
        raise ObservationError(f"{name} is {type(value).__name__}; give a torch tensor")
    sizes = tuple(value.shape)
    if len(sizes) != len(shape) or any(want not in (None, have) for have, want in zip(sizes, shape, strict=True)):
        expected = tuple("any" if want is None else want for want in shape)
        raise ObservationError(f"{name} has shape {sizes}; expected {expected}")
    if dtype is None and not value.is_floating_point():
        raise ObservationError(f"{name} has dtype {value.dtype}; expected floating point")
    if dtype is not None and value.dtype != dtype:
        raise ObservationError(f"{name} has dtype {value.dtype}; expected {dtype}")
