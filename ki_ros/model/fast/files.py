"""The files of a FAST tokenizer: those of the public FAST+, and checksums beside them.

`processor_config.json` has scale and min_token, `tokenizer.json` the byte-pair encoding, `tokenizer_config.json` tells
transformers how to load the latter. `checksums.json` is this package's own and may be absent.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ki_ros.model.fast.errors import FASTTokenizerError

PROCESSOR_FILE = "processor_config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CHECKSUMS_FILE = "checksums.json"

_TOKENIZER_CONFIG = {
    "clean_up_tokenization_spaces": False,
    "processor_class": "UniversalActionProcessor",
    "tokenizer_class": "PreTrainedTokenizerFast",
}


@dataclass(frozen=True)
class Stored:
    """Content of the files: `tokenizer.json` as text, and what matters of `processor_config.json`."""

    definition: str
    scale: float
    min_token: int
    vocab_size: int


def read(directory: Path) -> Stored:
    """Reads the files of a directory.

    Raises:
        FASTTokenizerError: a file is missing, is not what its checksum says, or has a field that cannot be meant.
    """
    contents = {name: _read_bytes(directory / name) for name in (PROCESSOR_FILE, TOKENIZER_FILE)}
    if (directory / CHECKSUMS_FILE).exists():
        _check(directory, contents)
    path = directory / PROCESSOR_FILE
    values = _parse(path, contents[PROCESSOR_FILE])
    scale = _number(path, values, "scale", (int, float), "a positive number")
    if not (math.isfinite(scale) and scale > 0):
        raise FASTTokenizerError(f"{path}: scale is {scale}; give a positive number")
    min_token = _number(path, values, "min_token", (int,), "an integer")
    vocab_size = _number(path, values, "vocab_size", (int,), "a positive integer")
    try:
        definition = contents[TOKENIZER_FILE].decode("utf-8")
    except UnicodeDecodeError as error:
        raise FASTTokenizerError(f"{directory / TOKENIZER_FILE}: not UTF-8 text ({error})") from error
    return Stored(definition, scale, min_token, vocab_size)


def write(directory: Path, stored: Stored) -> None:
    """Writes the files into a directory, which is made when it does not exist.

    All are complete on disk before one takes the place of an older one, and the checksums come first: after an
    interruption in between, reading refuses the mixture of old and new by name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    processor = {
        "action_dim": None,
        "min_token": stored.min_token,
        "processor_class": "UniversalActionProcessor",
        "scale": stored.scale,
        "time_horizon": None,
        "vocab_size": stored.vocab_size,
    }
    contents = {
        PROCESSOR_FILE: _json_bytes(processor),
        TOKENIZER_FILE: stored.definition.encode("utf-8"),
        TOKENIZER_CONFIG_FILE: _json_bytes(_TOKENIZER_CONFIG),
    }
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    contents = {CHECKSUMS_FILE: _json_bytes(checksums), **contents}
    with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as temporary:
        for name, content in contents.items():
            with Path(temporary, name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name in contents:
            os.replace(Path(temporary, name), directory / name)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FASTTokenizerError(f"{path}: cannot be read ({error}); give a FAST tokenizer's directory") from error


def _check(directory: Path, contents: dict[str, bytes]) -> None:
    path = directory / CHECKSUMS_FILE
    checksums = _parse(path, _read_bytes(path))
    for name, content in contents.items():
        found, expected = hashlib.sha256(content).hexdigest(), checksums.get(name)
        if found != expected:
            raise FASTTokenizerError(
                f"{directory / name}: its sha256 is {found}, but {CHECKSUMS_FILE} says {expected}; the file was "
                "changed after it was saved, so restore it or save the tokenizer again"
            )


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    try:
        values = json.loads(content)
    except ValueError as error:
        raise FASTTokenizerError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(values, dict):
        raise FASTTokenizerError(f"{path}: holds {type(values).__name__}; give a JSON object")
    return values


def _number(path: Path, values: dict[str, Any], name: str, kinds: tuple[type, ...], wanted: str) -> Any:
    if name not in values:
        raise FASTTokenizerError(f"{path}: {name} is missing; give {wanted}")
    value = values[name]
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise FASTTokenizerError(f"{path}: {name} is {value!r}; give {wanted}")
    return value


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode("utf-8")
