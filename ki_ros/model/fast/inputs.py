"""The transform that gives an observation the FAST tokens of its actions, in training.

Shapes: B batch, H action horizon, D action dimension, F FAST tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ki_ros.model.fast.errors import FASTEncodeError
from ki_ros.model.fast.tokenizer import FASTTokenizer
from ki_ros.model.fast.vocabulary import FASTVocabulary
from ki_ros.model.observation import Observation


@dataclass(frozen=True, kw_only=True)
class TokenizeFASTInputs:
    """Fills `fast_action_tokens` and `fast_action_mask` of an observation.

    Attributes:
        tokenizer: of actions.
        vocabulary: where its tokens lie in the backbone's; as many as the tokenizer has.
        action_dim: how many leading dimensions of an action are tokenised; all when None. The rest is padding, as in
            public checkpoints of 32 dimensions, and must be zero.
        max_tokens: most tokens of a row, its end included; no bound when None.
        pad_to_max: whether every batch has F = max_tokens, for compiled models; F is its longest row otherwise.
    """

    tokenizer: FASTTokenizer
    vocabulary: FASTVocabulary
    action_dim: int | None = None
    max_tokens: int | None = None
    pad_to_max: bool = False

    def __post_init__(self) -> None:
        if self.vocabulary.size != self.tokenizer.vocab_size:
            raise ValueError(
                f"vocabulary.size is {self.vocabulary.size}, but the tokenizer has {self.tokenizer.vocab_size} tokens; "
                "give the tokenizer's vocab_size"
            )
        for name in ("action_dim", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; give a positive integer, or None")
        if self.pad_to_max and self.max_tokens is None:
            raise ValueError("pad_to_max is true, but max_tokens is None; give the length to pad to")

    def __call__(
        self,
        observation: Observation,
        actions: np.ndarray | Tensor | None = None,
        action_mask: np.ndarray | Tensor | None = None,
    ) -> Observation:
        """The observation with the FAST tokens of its actions, or with neither field where there are no actions.

        A row's tokens are backbone ids, then eos, then zeros; its mask is true up to eos. A row with any step past its
        episode's end has an empty mask: the transform over time mixes all steps in every token, so such a chunk has no
        tokens that would not also teach the steps that were never taken. F is at least 1.

        Args:
            observation: of B rows.
            actions: (B, H, D) floating point, normalised. Left out at inference.
            action_mask: (B, H) bool, false at steps past an episode's end; all true when left out.

        Returns:
            A copy with `fast_action_tokens` (B, F) int64 and `fast_action_mask` (B, F) bool, on the device of the
            prompt's tokens; both None without actions.

        Raises:
            FASTEncodeError: actions of a wrong shape or with values that have no tokens, or a row of more than
                max_tokens tokens; the message names the row.
        """
        if actions is None:
            return dataclasses.replace(observation, fast_action_tokens=None, fast_action_mask=None)
        array = self._actions(actions, observation.batch_size)
        whole = _whole_rows(action_mask, array.shape[:2])
        rows = np.flatnonzero(whole)
        sequences = [
            [*self.vocabulary.to_backbone(tokens), self.vocabulary.eos_id]
            for tokens in self.tokenizer.encode_batch(self._without_padding(array, rows), index=rows.tolist()).tokens
        ]
        self._require_fitting(rows, sequences)
        width = self.max_tokens if self.pad_to_max else max([1, *map(len, sequences)])
        ids = np.zeros((len(array), width), dtype=np.int64)
        mask = np.zeros((len(array), width), dtype=bool)
        for row, sequence in zip(rows, sequences, strict=True):
            ids[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = True
        device = observation.tokenized_prompt.device
        return dataclasses.replace(
            observation,
            fast_action_tokens=torch.from_numpy(ids).to(device),
            fast_action_mask=torch.from_numpy(mask).to(device),
        )

    def _actions(self, actions: np.ndarray | Tensor, batch: int) -> np.ndarray:
        array = _to_numpy(actions)
        if array.ndim != 3 or len(array) != batch:
            raise FASTEncodeError(
                f"actions has shape {array.shape}; give ({batch}, horizon, action dimension) for an observation of "
                f"{batch} rows"
            )
        if self.action_dim is not None and array.shape[2] < self.action_dim:
            raise FASTEncodeError(
                f"actions has shape {array.shape}, fewer than action_dim {self.action_dim} dimensions; give them all, "
                "or a smaller action_dim"
            )
        return array

    def _without_padding(self, actions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        actions = actions[rows]
        if self.action_dim is None:
            return actions
        used = np.argwhere(actions[..., self.action_dim :] != 0)
        if len(used):
            row, step, dim = used[0]
            dim += self.action_dim
            raise FASTEncodeError(
                f"actions[{rows[row]}, {step}, {dim}] is {actions[row, step, dim]}, but dimensions from "
                f"{self.action_dim} on are padding; give zeros there, or a larger action_dim",
                chunk=int(rows[row]),
            )
        return actions[..., : self.action_dim]

    def _require_fitting(self, rows: np.ndarray, sequences: list[list[int]]) -> None:
        lengths = [len(sequence) for sequence in sequences]
        if self.max_tokens is None or max(lengths, default=0) <= self.max_tokens:
            return
        place = next(place for place, length in enumerate(lengths) if length > self.max_tokens)
        over = sum(length > self.max_tokens for length in lengths)
        raise FASTEncodeError(
            f"row {rows[place]} has {lengths[place]} FAST tokens with its end, more than max_tokens {self.max_tokens} "
            f"({over} of {len(lengths)} rows are longer); max_tokens={max(lengths)} would do for this batch",
            chunk=int(rows[place]),
        )


def _to_numpy(values: np.ndarray | Tensor) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # NumPy knows no bfloat16.
        return (values.double() if values.is_floating_point() else values).numpy()
    return np.asarray(values)


def _whole_rows(action_mask: np.ndarray | Tensor | None, shape: tuple[int, ...]) -> np.ndarray:
    """(B,) bool: rows all of whose steps are within their episode."""
    if action_mask is None:
        return np.ones(shape[0], dtype=bool)
    mask = _to_numpy(action_mask)
    if mask.shape != shape or mask.dtype != bool:
        raise FASTEncodeError(f"action_mask is {mask.dtype} of shape {mask.shape}; give bool of shape {shape}")
    return mask.all(axis=1)
