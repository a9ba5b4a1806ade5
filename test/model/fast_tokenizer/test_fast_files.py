from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from ki_ros.model.fast import FASTTokenizer, FASTTokenizerError


def test_saved_tokenizers_come_back_with_equal_tokens(
    tmp_path: Path, fast_plus: FASTTokenizer, fitted: FASTTokenizer, droid_chunks: np.ndarray
) -> None:
    for name, tokenizer in (("plus", fast_plus), ("fitted", fitted)):
        tokenizer.save(tmp_path / "deep" / name)
        loaded = FASTTokenizer.from_directory(tmp_path / "deep" / name)
        assert loaded == tokenizer
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.encode_batch(droid_chunks) == tokenizer.encode_batch(droid_chunks)
    assert fast_plus.fingerprint != fitted.fingerprint
    assert (fast_plus.vocab_size, fast_plus.scale, fast_plus.min_token) == (2048, 10, -354)


def test_fingerprint_does_not_depend_on_layout(fast_plus: FASTTokenizer) -> None:
    indented = json.dumps(json.loads(fast_plus.definition), indent=3)
    assert FASTTokenizer(indented, 10.0, -354).fingerprint == fast_plus.fingerprint
    assert FASTTokenizer(indented, 10.5, -354).fingerprint != fast_plus.fingerprint
    assert FASTTokenizer(indented, 10, -353).fingerprint != fast_plus.fingerprint


def test_transformers_reads_what_is_saved(
    tmp_path: Path, fitted: FASTTokenizer, droid_chunks: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The public processor gets its byte-pair encoder this way, and passes the numbers of its file to itself."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    fitted.save(tmp_path)
    inner = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    numbers = json.loads((tmp_path / "processor_config.json").read_text())
    assert (numbers["scale"], numbers["min_token"], numbers["vocab_size"]) == (10, fitted.min_token, 512)
    for tokens in fitted.encode_batch(droid_chunks[:20]).tokens:
        text = inner.decode(tokens)
        assert len(text) == 15 * 8
        assert inner(text)["input_ids"] == tokens


def test_changed_files_are_refused_by_name(tmp_path: Path, fitted: FASTTokenizer) -> None:
    for name in ("processor_config.json", "tokenizer.json"):
        fitted.save(tmp_path)
        file = tmp_path / name
        file.write_text(file.read_text().replace("1", "2", 1))
        with pytest.raises(FASTTokenizerError, match=rf"{name}: its sha256 is .* was changed"):
            FASTTokenizer.from_directory(tmp_path)
        file.unlink()
        with pytest.raises(FASTTokenizerError, match=rf"{name}: cannot be read"):
            FASTTokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_a_save_that_is_cut_short_never_leaves_a_mixture_that_loads(
    tmp_path: Path, fast_plus: FASTTokenizer, fitted: FASTTokenizer, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    fast_plus.save(tmp_path)
    replace, calls = os.replace, []

    def cut_short(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == failing:
            raise OSError("no space left")
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", cut_short)
        with pytest.raises(OSError, match="no space"):
            fitted.save(tmp_path)
    try:
        assert FASTTokenizer.from_directory(tmp_path) in (fast_plus, fitted)
    except FASTTokenizerError as error:
        assert "sha256" in str(error)  # noqa: PT017
    assert not list(tmp_path.glob(".saving*"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scale", None, "scale is None"),
        ("scale", 0, "scale is 0"),
        ("scale", float("nan"), "scale is nan"),
        ("scale", True, "scale is True"),
        ("min_token", -3.5, r"min_token is -3\.5"),
        ("min_token", -(10**30), "min_token is -1000"),
        ("vocab_size", 2047, "vocab_size is 2047, but tokenizer.json has 2048 tokens"),
    ],
)
def test_bad_numbers_are_named(
    tmp_path: Path, fast_plus: FASTTokenizer, field: str, value: object, message: str
) -> None:
    fast_plus.save(tmp_path)
    (tmp_path / "checksums.json").unlink()
    file = tmp_path / "processor_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {field: value}))
    with pytest.raises(FASTTokenizerError, match=message):
        FASTTokenizer.from_directory(tmp_path)
    del values[field]
    file.write_text(json.dumps(values))
    with pytest.raises(FASTTokenizerError, match=rf"processor_config\.json: {field} is missing"):
        FASTTokenizer.from_directory(tmp_path)
    file.write_text("[]")
    with pytest.raises(FASTTokenizerError, match="JSON object"):
        FASTTokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("truncation", {"max_length": 4}, "truncation is"),
        ("normalizer", {"type": "NFC"}, "normalizer is"),
        ("added_tokens", [{"id": 3}], "added_tokens is"),
        ("pre_tokenizer", None, "pre_tokenizer is None"),
        ("pre_tokenizer.add_prefix_space", True, "add_prefix_space is not false"),
        ("decoder", {"type": "Fuse"}, "decoder is"),
        ("model.type", "Unigram", "type BPE"),
        ("model.dropout", 0.1, r"model\.dropout is 0\.1"),
        ("model.unk_token", "!", r"model\.unk_token is '!'"),
        ("model.merges", ["x y z"], "library refuses it"),
        ("model.vocab.!", 5000, "none with id 0"),
    ],
)
def test_definitions_that_lose_or_change_something_are_refused(
    fast_plus: FASTTokenizer, path: str, value: object, message: str
) -> None:
    values = json.loads(fast_plus.definition)
    *parents, last = path.split(".")
    part = values
    for parent in parents:
        part = part[parent]
    part[last] = value
    with pytest.raises(FASTTokenizerError, match=message):
        FASTTokenizer(json.dumps(values), 10, -354)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"model": 3}'])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(FASTTokenizerError, match=r"tokenizer\.json"):
        FASTTokenizer(text, 10, 0)
