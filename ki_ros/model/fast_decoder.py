"""Actions as the backbone says them: its FAST tokens, decoded to a chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from ki_ros.model.config import KIConfig
from ki_ros.model.decoding import decode_fast_actions
from ki_ros.model.fast import FASTDecodeError, FASTTokenizer, FASTVocabulary
from ki_ros.model.model import KIModel
from ki_ros.model.observation import Observation
from ki_ros.rig import STATE_DIM


def fast_vocabulary(model: KIConfig, tokenizer: FASTTokenizer) -> FASTVocabulary:
    """Where a tokenizer's ids lie in a model's vocabulary."""
    return FASTVocabulary(
        backbone_vocab_size=model.language.vocab_size, skip=model.fast_skip_tokens, size=tokenizer.vocab_size
    )


class FASTDecoder:
    """Actions as the backbone says them.

    Args:
        model: whole in this process.
        tokenizer: of its FAST tokens.
        max_tokens: most tokens of a chunk, its end included.
    """

    def __init__(self, model: KIModel, tokenizer: FASTTokenizer, max_tokens: int) -> None:
        self._model, self._tokenizer, self._max_tokens = model, tokenizer, max_tokens
        self._vocabulary = fast_vocabulary(model.config, tokenizer)

    def __call__(self, observation: Observation) -> list[Tensor | None]:
        """Normalised actions (H, 8) of each of the B rows; None where its tokens are malformed.

        Raises ObservationError, as `decode_fast_actions`.
        """
        vocabulary = self._vocabulary
        rows = decode_fast_actions(
            self._model,
            observation,
            allowed=range(vocabulary.lowest_id, vocabulary.highest_id + 1),
            eos_id=vocabulary.eos_id,
            max_tokens=self._max_tokens,
        )
        return [self._actions(ids) for ids in rows]

    def _actions(self, ids: list[int]) -> Tensor | None:
        if ids[-1] != self._vocabulary.eos_id:
            return None
        try:
            tokens = self._vocabulary.from_backbone(ids[:-1])
            horizon = self._model.config.action_horizon
            chunk = self._tokenizer.decode(tokens, horizon=horizon, action_dim=STATE_DIM)
        except FASTDecodeError:
            return None
        return torch.from_numpy(chunk).float()
