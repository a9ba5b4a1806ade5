from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.trainers import BpeTrainer

from ki_ros.model.fast import FASTDecodeError, FASTEncodeError, FASTTokenizer, FASTTokenizerError
from ki_ros.model.fast.__main__ import main


def cosine_sums(chunk: np.ndarray) -> list[list[float]]:
    """The orthonormal transform by its definition, summed exactly."""
    horizon, dims = chunk.shape
    return [
        [
            math.sqrt((2 if k else 1) / horizon)
            * math.fsum(chunk[t, d] * math.cos(math.pi * (t + 0.5) * k / horizon) for t in range(horizon))
            for d in range(dims)
        ]
        for k in range(horizon)
    ]


def characters(tokenizer: FASTTokenizer, tokens: list[int]) -> list[int]:
    """Coefficients of tokens by the library's own decoder."""
    text = Tokenizer.from_str(tokenizer.definition).decode(tokens, skip_special_tokens=False)
    return [ord(character) + tokenizer.min_token for character in text]


def as_the_original_fits(chunks: np.ndarray, vocab_size: int) -> FASTTokenizer:
    """A tokenizer whose alphabet covers only a part of the bytes, as those that the public processor's `fit` makes."""
    coefficients = [np.around(np.array(cosine_sums(chunk)) * 10).astype(int).ravel() for chunk in chunks]
    lowest, highest = min(map(min, coefficients)), max(map(max, coefficients))
    bpe = ByteLevelBPETokenizer()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        initial_alphabet=[chr(code) for code in range(highest - lowest + 1)],
    )
    texts = ["".join(chr(value - lowest) for value in row) for row in coefficients]
    bpe._tokenizer.train_from_iterator(texts, trainer=trainer)
    return FASTTokenizer(bpe._tokenizer.to_str(), 10, int(lowest))


def test_tokens_and_chunks_equal_the_public_processor_s(test_data: Path, fast_plus: FASTTokenizer) -> None:
    vectors = json.loads((test_data / "fast_vectors.json").read_text())["vectors"]
    assert len(vectors) == 20
    for vector in vectors:
        chunk = np.array(vector["chunk"])
        assert fast_plus.encode(chunk) == vector["tokens"], vector["source"]
        decoded = fast_plus.decode(vector["tokens"], horizon=15, action_dim=8)
        np.testing.assert_allclose(decoded, vector["decoded"], rtol=0, atol=1e-6)
    batch = fast_plus.encode_batch(np.array([vector["chunk"] for vector in vectors]))
    assert batch.tokens == [vector["tokens"] for vector in vectors]
    assert batch.saturated == 0


def test_command_compares_and_exits_by_the_result(test_data: Path, tmp_path: Path) -> None:
    arguments = [str(test_data / "fast_plus"), str(test_data / "fast_vectors.json")]
    report = tmp_path / "report.json"
    assert main([*arguments, "--json", str(report)]) == 0
    assert json.loads(report.read_text())["tokens_equal"] == 20
    values = json.loads((test_data / "fast_vectors.json").read_text())
    values["vectors"][3]["tokens"][2] ^= 1
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(values))
    assert main([arguments[0], str(changed)]) == 1
    changed.write_text('{"vectors": [{"source": "x"}]}')
    assert main([arguments[0], str(changed)]) == 2
    assert main([str(tmp_path), arguments[1]]) == 2


@settings(max_examples=40, deadline=None)
@given(horizon=st.integers(1, 24), dims=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_coefficients_are_rounded_cosine_sums(fast_plus: FASTTokenizer, horizon: int, dims: int, seed: int) -> None:
    chunk = np.random.default_rng(seed).normal(0, 1, (horizon, dims))
    exact = np.array(cosine_sums(chunk)).ravel() * fast_plus.scale
    found = characters(fast_plus, fast_plus.encode(chunk))
    assert len(found) == horizon * dims
    assert np.abs(np.array(found) - exact).max() <= 0.5 + 1e-9


def test_rounds_half_to_even() -> None:
    tokenizer = FASTTokenizer.fit(np.linspace(-3, 3, 7)[:, None, None], scale=1)
    values = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]
    batch = tokenizer.encode_batch(np.array(values)[:, None, None])
    assert [characters(tokenizer, tokens)[0] for tokens in batch.tokens] == [-2, -2, 0, 0, 2, 2]


@settings(max_examples=60, deadline=None)
@given(
    horizon=st.integers(1, 20),
    dims=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0.001, 5),
)
def test_round_trip_loses_the_rounding_only(
    fast_plus: FASTTokenizer, fitted: FASTTokenizer, horizon: int, dims: int, seed: int, spread: float
) -> None:
    """The transform is orthonormal: the error of a column is as long as that of its coefficients, each at most half."""
    chunk = np.random.default_rng(seed).uniform(-spread, spread, (horizon, dims))
    for tokenizer in (fast_plus, fitted):
        batch = tokenizer.encode_batch(chunk[None])
        decoded = tokenizer.decode(batch.tokens[0], horizon=horizon, action_dim=dims)
        assert decoded.shape == chunk.shape
        assert decoded.dtype == np.float64
        if batch.saturated == 0:
            bound = 0.5 / tokenizer.scale * math.sqrt(horizon) + 1e-9
            assert np.linalg.norm(decoded - chunk, axis=0).max() <= bound


def test_a_chunk_has_the_same_tokens_alone_in_a_batch_and_in_any_layout(
    fast_plus: FASTTokenizer, droid_chunks: np.ndarray
) -> None:
    batch = fast_plus.encode_batch(droid_chunks).tokens
    assert [fast_plus.encode(chunk) for chunk in droid_chunks[:50]] == batch[:50]
    assert fast_plus.encode_batch(np.asfortranarray(droid_chunks)).tokens == batch
    decoded = fast_plus.decode_batch(batch, horizon=15, action_dim=8)
    alone = [fast_plus.decode(tokens, horizon=15, action_dim=8) for tokens in batch[:50]]
    np.testing.assert_array_equal(decoded[:50], alone)
    assert np.abs(decoded - droid_chunks).max() < 0.05 * math.sqrt(15)


def test_nothing_is_remembered_between_calls(fast_plus: FASTTokenizer) -> None:
    wide, tall = np.ones((4, 6)), np.ones((6, 4))
    tokens = fast_plus.encode(wide)
    fast_plus.encode(np.zeros((15, 8)))
    fast_plus.decode(fast_plus.encode(tall), horizon=6, action_dim=4)
    assert fast_plus.encode(wide) == tokens
    np.testing.assert_allclose(fast_plus.decode(tokens, horizon=4, action_dim=6), wide, atol=0.05)
    assert fast_plus.decode(tokens, horizon=6, action_dim=4).shape == (6, 4)
    with pytest.raises(AttributeError):
        fast_plus.scale = 3  # type: ignore[misc]


def test_coefficients_below_min_token_saturate_and_are_counted(fast_plus: FASTTokenizer) -> None:
    chunk = np.zeros((4, 3))
    chunk[:, 1] = -20.0  # its lowest coefficient is -20 * sqrt(4) * 10 = -400
    batch = fast_plus.encode_batch(np.stack([chunk, np.zeros((4, 3)), chunk]))
    assert batch.saturated == 2
    decoded = fast_plus.decode(batch.tokens[0], horizon=4, action_dim=3)
    np.testing.assert_allclose(decoded[:, 1], -35.4 / 2)
    np.testing.assert_allclose(decoded[:, [0, 2]], 0)


@settings(max_examples=200, deadline=None)
@given(
    tokens=st.lists(st.integers(-3, 2050), max_size=12),
    horizon=st.integers(1, 4),
    dims=st.integers(1, 4),
)
def test_any_tokens_decode_or_say_where_they_go_wrong(
    fast_plus: FASTTokenizer, tokens: list[int], horizon: int, dims: int
) -> None:
    error = None
    try:
        decoded = fast_plus.decode(tokens, horizon=horizon, action_dim=dims)
    except FASTDecodeError as caught:
        error = caught
    if error is None:
        assert decoded.shape == (horizon, dims)
        return
    assert f"position {error.position}" in str(error)
    if error.expected is None:
        assert not 0 <= tokens[error.position] < 2048
        return
    assert error.expected == horizon * dims
    assert 0 <= error.position <= len(tokens)
    # The tokens before the position are good by the library's decoder: not too many coefficients, and a character that
    # is cut at the end at most.
    before = Tokenizer.from_str(fast_plus.definition).decode(tokens[: error.position]).rstrip("\ufffd")
    assert len(before) <= error.expected
    assert "\ufffd" not in before


def test_malformed_sequences_are_refused_with_position_and_counts(fast_plus: FASTTokenizer) -> None:
    tokens = fast_plus.encode(np.zeros((3, 2)))
    size = {"horizon": 3, "action_dim": 2}
    cases = [
        ([*tokens, 2048], len(tokens), None, None, "2048; ids are 0 to 2047"),
        ([-1], 0, None, None, "-1; ids"),
        ([1.5], 0, None, None, "1.5"),
        ([], 0, 6, 0, "end at position 0 with 0 coefficients; the chunk has 6"),
        ([*tokens, *tokens], len(tokens), 6, 12, "12 coefficients; the chunk has 6"),
        # 128 is the byte C3, which opens a character of two bytes.
        ([*tokens, 128], len(tokens), 6, 6, "undecodable bytes"),
        ([128, *tokens], 0, 6, 0, "undecodable bytes"),
        ([*tokens, *tokens, 128], len(tokens), 6, 12, "12 coefficients; the chunk has 6"),
    ]
    for sequence, position, expected, actual, message in cases:
        with pytest.raises(FASTDecodeError, match=message) as caught:
            fast_plus.decode(sequence, **size)
        assert (caught.value.position, caught.value.expected, caught.value.actual) == (position, expected, actual)
    with pytest.raises(FASTDecodeError, match="row 1: "):
        fast_plus.decode_batch([tokens, tokens[:-1]], **size)
    with pytest.raises(ValueError, match="horizon is 0"):
        fast_plus.decode(tokens, horizon=0, action_dim=2)


def test_values_that_have_no_tokens_are_refused_by_name(fast_plus: FASTTokenizer) -> None:
    chunks = np.zeros((3, 4, 2))
    for bad in (np.nan, np.inf, -np.inf):
        chunks[1, 2, 1] = bad
        with pytest.raises(FASTEncodeError, match=f"chunk 1: the action at step 2, dimension 1 is {bad}"):
            fast_plus.encode_batch(chunks)
    with pytest.raises(FASTEncodeError, match="chunk 70: "):
        fast_plus.encode_batch(chunks, index=[60, 70, 80])
    for value in (56000 / 20, 1e9, 1e300):  # a surrogate, beyond the last code point, beyond int64
        chunks[1], chunks[1, :, 1] = 0, value
        with pytest.raises(FASTEncodeError, match=r"chunk 1: .* frequency 0, dimension 1 is \d+, which .* no token"):
            fast_plus.encode_batch(chunks)
    with pytest.raises(FASTEncodeError, match="frequency 0, dimension 0 overflows"):
        fast_plus.encode(np.full((4, 1), 1.7e308))
    for shape in ((8,), (2, 3, 4)):
        with pytest.raises(FASTEncodeError, match="shape"):
            fast_plus.encode(np.zeros(shape))
    with pytest.raises(FASTEncodeError, match=r"\(2, 0, 4\)"):
        fast_plus.encode_batch(np.zeros((2, 0, 4)))
    for unreadable in (np.zeros((2, 2, 2), complex), [[["a"]]], [[1.0], [1.0, 2.0]]):
        with pytest.raises(FASTEncodeError, match="array of numbers"):
            fast_plus.encode_batch(unreadable)  # type: ignore[arg-type]
    assert fast_plus.encode_batch(np.zeros((0, 4, 2))) == ([], 0)
    assert fast_plus.encode(torch.ones(4, 2)) == fast_plus.encode(np.ones((4, 2)))  # type: ignore[arg-type]


def test_the_universal_vocabulary_expresses_all_characters(fast_plus: FASTTokenizer) -> None:
    """All 256 bytes are tokens, so that what is far outside of the usual range still comes back."""
    values = np.array([-354, -322, -200, 0, 93, 1000, 1694, 9000, 54000]) / 10
    tokens = fast_plus.encode_batch(values[:, None, None]).tokens
    np.testing.assert_allclose(fast_plus.decode_batch(tokens, horizon=1, action_dim=1).ravel(), values)


def test_a_character_that_a_restricted_vocabulary_would_drop_is_refused(droid_chunks: np.ndarray) -> None:
    narrow = droid_chunks[:30]
    restricted = as_the_original_fits(narrow, 300)
    decoded = [restricted.decode(tokens, horizon=15, action_dim=8) for tokens in restricted.encode_batch(narrow).tokens]
    np.testing.assert_allclose(decoded, narrow, atol=0.05 * math.sqrt(15))
    beyond = np.array([[[300.0]]])
    library = Tokenizer.from_str(restricted.definition)
    text = chr(3000 - restricted.min_token)
    assert library.decode(library.encode(text).ids) != text
    with pytest.raises(FASTEncodeError, match="frequency 0, dimension 0 is 3000, which the tokenizer has no token for"):
        restricted.encode_batch(beyond)


def test_tokens_of_a_restricted_vocabulary_decode_as_in_the_library(droid_chunks: np.ndarray) -> None:
    restricted = as_the_original_fits(droid_chunks[:30], 300)
    library = Tokenizer.from_str(restricted.definition)
    compared = 0
    for token in range(restricted.vocab_size):
        text = library.decode([token])
        if not text or "\ufffd" in text:
            continue
        coefficients = restricted.decode([token], horizon=1, action_dim=len(text))[0] * 10
        assert [round(value) - restricted.min_token for value in coefficients] == list(map(ord, text))
        compared += 1
    assert compared > 100


def test_fitting_gives_shorter_sequences_than_bytes_and_is_reproducible(
    fitted: FASTTokenizer, droid_chunks: np.ndarray
) -> None:
    again = FASTTokenizer.fit(list(droid_chunks), vocab_size=512)
    assert again == fitted
    assert again.fingerprint == fitted.fingerprint
    assert fitted.vocab_size == 512
    coefficients = [round(value * 10) for chunk in droid_chunks for row in cosine_sums(chunk) for value in row]
    assert fitted.min_token == min(coefficients)
    batch = fitted.encode_batch(droid_chunks)
    assert batch.saturated == 0
    assert np.mean([len(tokens) for tokens in batch.tokens]) < 120 / 3
    assert FASTTokenizer.fit(droid_chunks, vocab_size=400).fingerprint != fitted.fingerprint


def test_a_fitted_tokenizer_expresses_more_than_it_has_seen(fitted: FASTTokenizer) -> None:
    chunk = np.zeros((15, 8))
    chunk[:, 3] = 40.0
    decoded = fitted.decode(fitted.encode(chunk), horizon=15, action_dim=8)
    np.testing.assert_allclose(decoded, chunk, atol=0.05)


def test_fitted_tokens_reach_over_spaces_letters_and_digits() -> None:
    """The classes of characters that coefficients happen to get mean nothing: a chunk seen often is one token."""
    codes = [0, *b" 0A. b9\n", 0x85, 0xAA, 0xB2, 0x2028]
    chunk = np.array([codes]) / 10
    tokenizer = FASTTokenizer.fit([chunk] * 9, vocab_size=300)
    assert len(tokenizer.encode(chunk)) == 1
    np.testing.assert_allclose(tokenizer.decode(tokenizer.encode(chunk), horizon=1, action_dim=len(codes)), chunk)


def test_fit_takes_chunks_of_different_lengths_and_refuses_what_it_cannot_use(droid_chunks: np.ndarray) -> None:
    mixed = [droid_chunks[0], droid_chunks[1][:7], droid_chunks[2][:3]]
    tokenizer = FASTTokenizer.fit(mixed, vocab_size=256)
    decoded = tokenizer.decode(tokenizer.encode(mixed[1]), horizon=7, action_dim=8)
    np.testing.assert_allclose(decoded, mixed[1], atol=0.05 * math.sqrt(7))
    with pytest.raises(FASTTokenizerError, match="vocab_size is 255"):
        FASTTokenizer.fit(mixed, vocab_size=255)
    with pytest.raises(FASTTokenizerError, match="scale is 0"):
        FASTTokenizer.fit(mixed, scale=0)
    with pytest.raises(FASTEncodeError, match="chunks is empty"):
        FASTTokenizer.fit([])
    with pytest.raises(FASTEncodeError, match=r"chunk 1 has shape \(7, 5\)"):
        FASTTokenizer.fit([mixed[0], mixed[1][:, :5]])
    with pytest.raises(FASTEncodeError, match="chunk 2: the action at step 0, dimension 0 is nan"):
        FASTTokenizer.fit([*mixed[:2], np.full((2, 8), np.nan)])
    with pytest.raises(FASTEncodeError, match="range from"):
        FASTTokenizer.fit(np.array([[[0.0]], [[1e5]]]))


def test_pickled_for_workers_it_is_the_same(fitted: FASTTokenizer, droid_chunks: np.ndarray) -> None:
    copy = pickle.loads(pickle.dumps(fitted))
    assert copy == fitted
    assert copy.encode(droid_chunks[0]) == fitted.encode(droid_chunks[0])
