"""Actions as the backbone says them: its likeliest FAST tokens that make a chunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ki_ros.model.config import KIConfig
from ki_ros.model.decoding import decode_fast_actions
from ki_ros.model.fast import FASTGrammar, FASTTokenizer, FASTVocabulary
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

    Each token is the likeliest of those after which the sequence can still become a chunk, and the end comes where it
    is one: left alone, a sequence of many tokens easily ends a coefficient early or late, and then says nothing.

    Args:
        model: whole in this process.
        tokenizer: of its FAST tokens.
        max_tokens: most tokens of a chunk, its end included.

    Raises:
        FASTTokenizerError: a tokenizer that cannot finish every sequence.
    """

    def __init__(self, model: KIModel, tokenizer: FASTTokenizer, max_tokens: int) -> None:
        self._model, self._tokenizer, self._max_tokens = model, tokenizer, max_tokens
        self._vocabulary = fast_vocabulary(model.config, tokenizer)
        self._grammar = FASTGrammar(tokenizer, model.config.action_horizon * STATE_DIM)

    def __call__(self, observation: Observation) -> list[Tensor | None]:
        """Normalised actions (H, 8) of each of the B rows; None where the chunk is not whole after max_tokens.

        Raises ObservationError, as `decode_fast_actions`.
        """
        eos_id = self._vocabulary.eos_id
        rows = decode_fast_actions(
            self._model, observation, allowed=self._allowed, eos_id=eos_id, max_tokens=self._max_tokens
        )
        return [self._actions(ids[:-1]) if ids[-1] == eos_id else None for ids in rows]

    def _allowed(self, ids: Sequence[int]) -> Tensor:
        position = self._grammar.start
        for token in self._vocabulary.from_backbone(ids):
            position = self._grammar.after(position, token)
        if not position.missing:
            return torch.tensor([self._vocabulary.eos_id])
        return torch.from_numpy(self._vocabulary.highest_id - self._grammar.allowed(position))

    def _actions(self, ids: list[int]) -> Tensor:
        tokens = self._vocabulary.from_backbone(ids)
        horizon = self._model.config.action_horizon
        return torch.from_numpy(self._tokenizer.decode(tokens, horizon=horizon, action_dim=STATE_DIM)).float()
