"""`tokenizer.json` read strictly: byte-pair encoding over UTF-8 bytes, without anything that loses or changes text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from ki_ros.model.fast.errors import FASTTokenizerError

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "truncation": (None,),
    "padding": (None,),
    "normalizer": (None,),
    "added_tokens": (None, []),
}
_NEUTRAL_MODEL: dict[str, tuple[Any, ...]] = {
    "dropout": (None,),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
}


@dataclass(frozen=True)
class Definition:
    """What `tokenizer.json` says.

    Attributes:
        tokenizer: of the `tokenizers` library. It can be changed by who has it, so it stays inside of this package.
        token_bytes: the bytes of each token, by id.
        missing_bytes: bytes that no token spells alone. The library drops them silently from what it encodes.
    """

    tokenizer: Tokenizer
    token_bytes: tuple[bytes, ...]
    missing_bytes: frozenset[int]


def parse(text: str) -> Definition:
    """Reads the content of a `tokenizer.json`.

    Raises:
        FASTTokenizerError: not of that format, or with a part that makes encoding lossy or random.
    """
    try:
        values = json.loads(text)
    except ValueError as error:
        raise FASTTokenizerError(f"tokenizer.json cannot be read as JSON ({error}); give a FAST tokenizer's") from error
    model = values.get("model") if isinstance(values, dict) else None
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise FASTTokenizerError("tokenizer.json has no model of type BPE; give a FAST tokenizer's")
    _require_neutral(values, _NEUTRAL, "")
    _require_neutral(model, _NEUTRAL_MODEL, "model.")
    for name in ("pre_tokenizer", "decoder"):
        part = values.get(name)
        if not isinstance(part, dict) or part.get("type") != "ByteLevel":
            raise FASTTokenizerError(f"tokenizer.json: {name} is {part!r}; FAST tokens are of type ByteLevel")
    if values["pre_tokenizer"].get("add_prefix_space") is not False:
        raise FASTTokenizerError(
            "tokenizer.json: pre_tokenizer.add_prefix_space is not false; it adds a coefficient that is not there"
        )
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library has no narrower type
        raise FASTTokenizerError(f"tokenizer.json: the tokenizers library refuses it ({error})") from error
    names = {id: name for name, id in tokenizer.get_vocab().items()}
    missing = next((id for id in range(len(names)) if id not in names), None)
    if missing is not None or not names:
        raise FASTTokenizerError(
            f"tokenizer.json: model.vocab has {len(names)} tokens, but none with id {missing or 0}"
        )
    spelled = {ord(name) for name in names.values() if len(name) == 1}
    return Definition(
        tokenizer=tokenizer,
        token_bytes=tuple(_token_bytes(names[id]) for id in range(len(names))),
        missing_bytes=frozenset(byte for letter, byte in _BYTE_OF_LETTER.items() if ord(letter) not in spelled),
    )


def _require_neutral(values: dict[str, Any], neutral: dict[str, tuple[Any, ...]], prefix: str) -> None:
    for name, allowed in neutral.items():
        if values.get(name) not in allowed:
            raise FASTTokenizerError(
                f"tokenizer.json: {prefix}{name} is {values[name]!r}; FAST tokens need {json.dumps(allowed[-1])} there"
            )


def _byte_of_letter() -> dict[str, int]:
    """Byte-level encodings write a byte as a letter: printable Latin-1 as itself, the others from U+0100, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_LETTER = _byte_of_letter()


def _token_bytes(name: str) -> bytes:
    """A token with a letter that stands for no byte is text as it is, as in the library's decoder."""
    if all(letter in _BYTE_OF_LETTER for letter in name):
        return bytes(_BYTE_OF_LETTER[letter] for letter in name)
    return name.encode("utf-8")
