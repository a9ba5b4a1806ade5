from __future__ import annotations

import io
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from ki_ros.model.prompt import PromptError, build_prompt, discretize_state
from ki_ros.model.tokenizer import PromptTokenizer, TokenizerError
from ki_ros.policy import model_directory

TINY = model_directory("ki_tiny") / "tokenizer.model"


def test_prompts_equal_openpi_s(test_data: Path) -> None:
    cases = json.loads((test_data / "pi05_reference" / "prompts.json").read_text())["cases"]
    compared = 0
    for case in cases:
        if case["state"] is None:  # the format of pi0
            continue
        state = np.array([float(value) for value in case["state"]], dtype=case["state_dtype"])
        if not np.isfinite(state).all():
            with pytest.raises(PromptError, match=r"state\[0\] is nan"):
                build_prompt(case["text"], state)
            continue
        assert build_prompt(case["text"], state) == case["pi05"]["encode_calls"][0]["string"], case["note"]
        compared += 1
    assert compared >= 30


@given(st.floats(-3, 3))
def test_bins_are_those_of_the_definition(value: float) -> None:
    expected = min(max(math.floor((Fraction(value) + 1) * 128), -1), 255)
    assert discretize_state(np.array([value])).tolist() == [expected]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_state_must_be_finite(bad: float) -> None:
    with pytest.raises(PromptError, match=r"state\[2\]"):
        build_prompt("x", np.array([0.0, 0.0, bad]))


def test_state_must_be_a_vector() -> None:
    with pytest.raises(PromptError, match=r"\(1, 8\)"):
        build_prompt("x", np.zeros((1, 8)))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581\x00")))
def test_tiny_tokenizer_encodes_any_text(text: str) -> None:
    """U+2581 is sentencepiece's own sign for a space."""
    tokenizer = PromptTokenizer(TINY, 2000)
    ids, mask = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert mask.sum() >= 1


def test_ids_are_sentencepiece_s_with_bos_and_padding_on_the_right() -> None:
    prompt = build_prompt("Put the marker in the pot.", np.linspace(-1.2, 1.2, 8))
    ids, mask = PromptTokenizer(TINY, 200).encode(prompt)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(TINY))
    expected = [processor.bos_id(), *processor.encode(prompt)]
    assert ids.dtype == np.int64
    assert ids.tolist() == expected + [0] * (200 - len(expected))
    assert mask.tolist() == [True] * len(expected) + [False] * (200 - len(expected))
    assert len(expected) < 60


def test_too_long_a_prompt_is_refused_with_lengths() -> None:
    tokenizer = PromptTokenizer(TINY, 200)
    with pytest.raises(TokenizerError, match=r"301 tokens \(300 characters\).* 200 "):
        tokenizer.encode("9" * 300)
    with pytest.raises(TokenizerError, match="shorter instruction"):
        PromptTokenizer(TINY, 3).encode("999")
    assert PromptTokenizer(TINY, 4).encode("999")[1].all()


def test_missing_tokenizer_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"gone\.model.*gs://big_vision/paligemma_tokenizer\.model.*paligemma-3b"):
        PromptTokenizer(tmp_path / "gone.model", 200)


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.model"
    for content in (b"", b"not a tokenizer", TINY.read_bytes()[:1000]):
        file.write_bytes(content)
        with pytest.raises(TokenizerError, match=r"tokenizer\.model"):
            PromptTokenizer(file, 200)


def test_tokenizer_without_bos_is_refused(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"] * 9), model_writer=model, vocab_size=7, bos_id=-1, minloglevel=2
    )
    (tmp_path / "t.model").write_bytes(model.getvalue())
    with pytest.raises(TokenizerError, match="BOS"):
        PromptTokenizer(tmp_path / "t.model", 200)
