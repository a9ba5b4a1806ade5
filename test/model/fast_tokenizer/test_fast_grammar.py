"""Which FAST token may follow which, against the tokenizer's own decoding."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_ros.model.fast import FASTDecodeError, FASTGrammar, FASTTokenizer, FASTTokenizerError


def tokenizer_of(names: list[str]) -> FASTTokenizer:
    """One whose tokens are written as byte-level pairs: Ġ is a space's byte, Ã© the two bytes of é."""
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {name: i for i, name in enumerate(names)}, "merges": []},
    }
    return FASTTokenizer(json.dumps(definition), 10.0, 0)


def decodes(tokenizer: FASTTokenizer, tokens: list[int], coefficients: int) -> bool:
    try:
        tokenizer.decode(tokens, horizon=coefficients, action_dim=1)
    except FASTDecodeError:
        return False
    return True


def walk(grammar: FASTGrammar, tokens: list[int]) -> bool:
    """Whether each token is allowed where it stands, and the sequence is a chunk at its end."""
    position = grammar.start
    for token in tokens:
        if token not in grammar.allowed(position):
            return False
        position = grammar.after(position, token)
    return position.missing == 0


@pytest.mark.parametrize("coefficients", [1, 2, 3])
def test_just_the_sequences_that_decode_are_allowed(coefficients: int) -> None:
    """Every sequence of up to six tokens: letters, a pair, and parts of characters of two and three bytes."""
    # A | AB | first and last byte of é | first two bytes of U+2102 | its last byte.
    tokenizer = tokenizer_of(["A", "AB", "B", "Ã", "©", "â", "Ħ", "âĦ", "Ĥ"])
    grammar = FASTGrammar(tokenizer, coefficients)
    good = 0
    for length in range(1, 7 if coefficients < 3 else 6):
        for tokens in product(range(tokenizer.vocab_size), repeat=length):
            expected = decodes(tokenizer, list(tokens), coefficients)
            assert walk(grammar, list(tokens)) == expected, tokens
            good += expected
    assert good > 3


def test_what_cannot_be_finished_is_not_begun() -> None:
    """Without the last byte of é, its first one leads nowhere; the first byte of U+2102 does."""
    grammar = FASTGrammar(tokenizer_of(["A", "Ã", "â", "Ħ", "Ĥ", "AÃ"]), 2)
    # Ħ is the byte 84 and Ĥ 82: each continues a character of two bytes as well.
    assert grammar.allowed(grammar.start).tolist() == [0, 1, 2, 5]
    grammar = FASTGrammar(tokenizer_of(["A", "Ã", "AÃ"]), 2)
    assert grammar.allowed(grammar.start).tolist() == [0]
    assert len(grammar.allowed(grammar.after(grammar.after(grammar.start, 0), 0))) == 0
    with pytest.raises(FASTTokenizerError, match="none of the 2 tokens is one whole character"):
        FASTGrammar(tokenizer_of(["Ã", "©"]), 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(1, 1), (15, 8), (10, 7)]))
def test_any_walk_decodes_and_any_chunk_is_a_walk(fast_plus: FASTTokenizer, seed: int, size: tuple[int, int]) -> None:
    horizon, dims = size
    grammar = FASTGrammar(fast_plus, horizon * dims)
    generator = np.random.default_rng(seed)
    position, tokens = grammar.start, []
    while position.missing:
        tokens.append(int(generator.choice(grammar.allowed(position))))
        position = grammar.after(position, tokens[-1])
    assert decodes(fast_plus, tokens, horizon * dims)
    chunk = generator.normal(0, 0.5, size).cumsum(0)
    assert walk(grammar, fast_plus.encode(chunk))
