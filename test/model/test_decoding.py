"""Greedy FAST decoding with a cache, against decoding from scratch at every token."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ki_ros.model.decoding import decode_fast_actions

EOS = 1


def constant(ids: list[int]):
    """The same choice after every sequence."""
    return lambda _sequence: torch.tensor(ids, dtype=torch.int64)


def from_scratch(model, observation, allowed: list[int] | None, max_tokens: int) -> list[list[int]]:
    """Each next token by the training pass over all tokens so far."""
    modules = model.paligemma_with_expert
    sequences: list[list[int]] = []
    for row in range(2):
        tokens: list[int] = []
        while len(tokens) < max_tokens and EOS not in tokens:
            ids = torch.tensor([[*tokens, 0]] * 2)
            mask = torch.ones_like(ids, dtype=torch.bool)
            prefix = model.embed_prefix(observation)
            rows = torch.full((2, 1), prefix.mask.shape[1] + len(tokens) - 1)
            if not tokens:
                rows = torch.tensor([[int(valid.nonzero().max())] for valid in prefix.mask])
            embedded = modules.backbone.language_model.embed(ids)
            hidden = modules.backbone_rows(prefix.embeddings, prefix.mask, embedded, mask, rows)
            logits = model.vlm_logits(hidden)[row, 0]
            if allowed is not None:
                keep = torch.full_like(logits, float("-inf"))
                keep[[*allowed, EOS]] = logits[[*allowed, EOS]]
                logits = keep
            tokens.append(int(logits.argmax()))
        sequences.append(tokens)
    return sequences


@pytest.mark.parametrize("allowed", [None, list(range(20, 50))])
def test_cache_decodes_as_from_scratch(small_model, make_observation, allowed) -> None:
    observation = make_observation()
    with torch.no_grad():
        expected = from_scratch(small_model, observation, allowed, 6)
    only = None if allowed is None else constant([*allowed, EOS])
    found = decode_fast_actions(small_model, observation, allowed=only, eos_id=EOS, max_tokens=6)
    assert found == expected
    if allowed is not None:
        assert {token for row in found for token in row} <= {*allowed, EOS}


def test_rows_end_on_their_own(small_model, make_observation) -> None:
    """With EOS as the only choice every row says it at once; with one id besides, none runs past the limit."""
    observation = make_observation()
    only_end = constant([EOS])
    assert decode_fast_actions(small_model, observation, allowed=only_end, eos_id=EOS, max_tokens=5) == [[EOS], [EOS]]
    found = decode_fast_actions(small_model, observation, allowed=constant([30, EOS]), eos_id=EOS, max_tokens=4)
    assert all(1 <= len(row) <= 4 and (row[-1] == EOS or len(row) == 4) for row in found)


def test_given_fast_tokens_are_not_read(small_model, make_observation) -> None:
    observation = make_observation()
    told = dataclasses.replace(
        observation,
        fast_action_tokens=torch.full((2, 3), 9),
        fast_action_mask=torch.ones(2, 3, dtype=torch.bool),
    )
    expected = decode_fast_actions(small_model, observation, allowed=None, eos_id=EOS, max_tokens=3)
    assert decode_fast_actions(small_model, told, allowed=None, eos_id=EOS, max_tokens=3) == expected
    with pytest.raises(ValueError, match="max_tokens is 0"):
        decode_fast_actions(small_model, observation, allowed=None, eos_id=EOS, max_tokens=0)
