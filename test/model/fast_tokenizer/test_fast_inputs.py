from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ki_ros.model.fast import (
    LOC_AND_SEG,
    OPENPI_SKIP,
    FASTDecodeError,
    FASTEncodeError,
    FASTTokenizer,
    FASTVocabulary,
    TokenizeFASTInputs,
)
from ki_ros.model.observation import Observation

PALIGEMMA = 257152


def observation_of(batch: int) -> Observation:
    return Observation(
        images={},
        image_masks={},
        state=torch.zeros(batch, 8),
        tokenized_prompt=torch.ones(batch, 4, dtype=torch.int64),
        tokenized_prompt_mask=torch.ones(batch, 4, dtype=torch.bool),
    )


def transform_of(tokenizer: FASTTokenizer, **options: object) -> TokenizeFASTInputs:
    vocabulary = FASTVocabulary(PALIGEMMA, LOC_AND_SEG, tokenizer.vocab_size)
    return TokenizeFASTInputs(tokenizer=tokenizer, vocabulary=vocabulary, **options)  # type: ignore[arg-type]


@given(
    skip=st.integers(0, 1200),
    size=st.integers(1, 2048),
    tokens=st.lists(st.integers(0, 2047), max_size=8),
)
def test_the_mapping_is_openpi_s_and_comes_back(skip: int, size: int, tokens: list[int]) -> None:
    vocabulary = FASTVocabulary(PALIGEMMA, skip, size)
    tokens = [token % size for token in tokens]
    ids = vocabulary.to_backbone(tokens)
    assert ids == [PALIGEMMA - 1 - skip - token for token in tokens]
    assert vocabulary.from_backbone(ids) == tokens
    assert vocabulary.from_backbone(np.array(ids, dtype=np.int32)) == tokens
    assert vocabulary.from_backbone(torch.tensor(ids, dtype=torch.int64)) == tokens


def test_loc_and_seg_stay_clear_where_that_is_asked_for() -> None:
    clear, openpi = FASTVocabulary(PALIGEMMA, LOC_AND_SEG, 2048), FASTVocabulary(PALIGEMMA, OPENPI_SKIP, 2048)
    assert (clear.highest_id, clear.lowest_id) == (255999, 253952)
    assert not clear.overlaps_loc
    assert (openpi.highest_id, openpi.lowest_id) == (257023, 254976)
    assert openpi.overlaps_loc
    assert FASTVocabulary(PALIGEMMA, LOC_AND_SEG - 1, 1).overlaps_loc
    assert not FASTVocabulary(3200, 128, 2048).overlaps_loc


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((100, 10, 87), "reaches down to id 3.* at least 101, not 100"),
        ((100, 10, 2048), "reaches down to id -1958"),
        ((100, 100, 1), "reaches down to id -1"),
        ((100, -1, 5), "skip is -1"),
        ((100, 0, 0), "size is 0"),
        ((100, 0, 5, 100), "eos_id is 100"),
        ((100, 0, 5, -1), "eos_id is -1"),
        ((100, 0, 5, 97), "eos_id is 97, one of the FAST ids 95 to 99"),
    ],
)
def test_mappings_that_collide_are_refused(values: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FASTVocabulary(*values)
    assert FASTVocabulary(101, 10, 87).lowest_id == 4


def test_ids_outside_are_refused_with_their_position() -> None:
    vocabulary = FASTVocabulary(100, 10, 20)
    for bad in (1, 69, 90, -5, 80.0):
        with pytest.raises(FASTDecodeError, match=r"position 2 is .* 70 to 89") as caught:
            vocabulary.from_backbone([70, 89, bad])
        assert caught.value.position == 2
    for bad in (-1, 20, "x"):
        with pytest.raises(ValueError, match=r"position 1 is .* 0 to 19"):
            vocabulary.to_backbone([19, bad])


def test_rows_are_tokens_then_eos_then_zeros(fast_plus: FASTTokenizer, droid_chunks: np.ndarray) -> None:
    given_observation, chunks = observation_of(6), droid_chunks[:6]
    filled = transform_of(fast_plus)(given_observation, chunks)
    assert given_observation.fast_action_tokens is None
    assert filled.tokenized_prompt is given_observation.tokenized_prompt
    tokens, mask = filled.fast_action_tokens, filled.fast_action_mask
    assert tokens is not None
    assert mask is not None
    assert (tokens.dtype, mask.dtype) == (torch.int64, torch.bool)
    expected = [[*(PALIGEMMA - 1 - 1152 - t for t in fast_plus.encode(chunk)), 1] for chunk in chunks]
    width = max(map(len, expected))
    assert tokens.tolist() == [row + [0] * (width - len(row)) for row in expected]
    assert mask.tolist() == [[True] * len(row) + [False] * (width - len(row)) for row in expected]


def test_tensors_of_any_precision_and_a_batch_of_one(fast_plus: FASTTokenizer, droid_chunks: np.ndarray) -> None:
    chunk = np.round(droid_chunks[:1] * 8) / 8  # exact in bfloat16
    transform = transform_of(fast_plus)
    expected = transform(observation_of(1), chunk).fast_action_tokens
    assert expected is not None
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        actions = torch.tensor(chunk, dtype=dtype, requires_grad=True)
        found = transform(observation_of(1), actions).fast_action_tokens
        assert found is not None
        assert torch.equal(found, expected)


def test_inference_has_no_tokens(fast_plus: FASTTokenizer, droid_chunks: np.ndarray) -> None:
    transform = transform_of(fast_plus)
    filled = transform(observation_of(2), droid_chunks[:2])
    for observation in (observation_of(2), filled):
        emptied = transform(observation)
        assert emptied.fast_action_tokens is None
        assert emptied.fast_action_mask is None


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_row_past_its_episode_s_end_has_an_empty_mask(
    fast_plus: FASTTokenizer, droid_chunks: np.ndarray, as_tensor: bool
) -> None:
    chunks, valid = droid_chunks[:4].copy(), np.ones((4, 15), dtype=bool)
    valid[1, -1] = valid[2] = False
    chunks[~valid] = np.nan
    filled = transform_of(fast_plus)(observation_of(4), chunks, torch.tensor(valid) if as_tensor else valid)
    assert filled.fast_action_mask is not None
    assert filled.fast_action_tokens is not None
    assert filled.fast_action_mask.any(dim=1).tolist() == [True, False, False, True]
    assert not filled.fast_action_tokens[1:3].any()
    expected = transform_of(fast_plus)(observation_of(2), droid_chunks[[0, 3]]).fast_action_tokens
    assert expected is not None
    assert torch.equal(filled.fast_action_tokens[[0, 3]], expected)
    nothing = transform_of(fast_plus)(observation_of(4), chunks, np.zeros((4, 15), dtype=bool))
    assert nothing.fast_action_mask is not None
    assert nothing.fast_action_mask.tolist() == [[False]] * 4


def test_padded_dimensions_are_left_out_and_must_be_zero(fast_plus: FASTTokenizer, droid_chunks: np.ndarray) -> None:
    padded = np.zeros((3, 15, 32))
    padded[..., :8] = droid_chunks[:3]
    transform = transform_of(fast_plus, action_dim=8)
    found = transform(observation_of(3), padded).fast_action_tokens
    expected = transform_of(fast_plus)(observation_of(3), droid_chunks[:3]).fast_action_tokens
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)
    padded[2, 4, 9] = 0.25
    with pytest.raises(FASTEncodeError, match=r"actions\[2, 4, 9\] is 0\.25, .* from 8 on are padding"):
        transform(observation_of(3), padded)


def test_too_long_rows_are_refused_with_the_length_that_would_do(
    fast_plus: FASTTokenizer, droid_chunks: np.ndarray
) -> None:
    lengths = [len(tokens) + 1 for tokens in fast_plus.encode_batch(droid_chunks[:20]).tokens]
    longest = max(lengths)
    assert lengths[0] < longest
    row = next(row for row, length in enumerate(lengths) if length == longest)
    with pytest.raises(FASTEncodeError, match=rf"row {row} has {longest} .* max_tokens={longest} would do"):
        transform_of(fast_plus, max_tokens=longest - 1)(observation_of(20), droid_chunks[:20])
    with pytest.raises(FASTEncodeError, match=rf"row 0 has {lengths[0]} .* max_tokens={longest} would do"):
        transform_of(fast_plus, max_tokens=1)(observation_of(20), droid_chunks[:20])
    fixed = transform_of(fast_plus, max_tokens=longest + 9, pad_to_max=True)(observation_of(20), droid_chunks[:20])
    assert fixed.fast_action_mask is not None
    assert fixed.fast_action_mask.shape == (20, longest + 9)
    assert fixed.fast_action_mask.sum(dim=1).tolist() == lengths
    # A row that is left out needs no room.
    valid = np.ones((20, 15), dtype=bool)
    valid[[index for index, length in enumerate(lengths) if length == longest], 0] = False
    transform_of(fast_plus, max_tokens=longest - 1)(observation_of(20), droid_chunks[:20], valid)


def test_bad_input_is_named(fast_plus: FASTTokenizer, droid_chunks: np.ndarray) -> None:
    transform, chunks = transform_of(fast_plus), droid_chunks[:3].copy()
    with pytest.raises(FASTEncodeError, match=r"\(3, 15, 8\); give \(2, horizon"):
        transform(observation_of(2), chunks)
    with pytest.raises(FASTEncodeError, match=r"\(15, 8\)"):
        transform(observation_of(1), chunks[0])
    with pytest.raises(FASTEncodeError, match="fewer than action_dim 9"):
        transform_of(fast_plus, action_dim=9)(observation_of(3), chunks)
    with pytest.raises(FASTEncodeError, match=r"action_mask is float64 of shape \(3, 15\)"):
        transform(observation_of(3), chunks, np.ones((3, 15)))
    with pytest.raises(FASTEncodeError, match=r"action_mask is bool of shape \(3, 14\)"):
        transform(observation_of(3), chunks, np.ones((3, 14), dtype=bool))
    chunks[2, 5, 7] = np.nan
    valid = np.ones((3, 15), dtype=bool)
    valid[0, 14] = False
    with pytest.raises(FASTEncodeError, match="chunk 2: the action at step 5, dimension 7 is nan"):
        transform(observation_of(3), chunks, valid)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"action_dim": 0}, "action_dim is 0"),
        ({"pad_to_max": True}, "max_tokens is None"),
        ({"vocabulary": FASTVocabulary(PALIGEMMA, 0, 1024)}, "vocabulary.size is 1024, but the tokenizer has 2048"),
    ],
)
def test_bad_options_are_refused(fast_plus: FASTTokenizer, options: dict[str, object], message: str) -> None:
    values = {"tokenizer": fast_plus, "vocabulary": FASTVocabulary(PALIGEMMA, 0, 2048)} | options
    with pytest.raises(ValueError, match=message):
        TokenizeFASTInputs(**values)  # type: ignore[arg-type]
