"""FAST (arXiv 2501.09747): action chunk -> cosine transform over time -> rounded coefficients -> byte-pair encoding.

A coefficient c is the character of code point c - min_token; characters follow each other with all dimensions of the
lowest frequency first. Shapes: N chunks, H action horizon, D action dimension.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ki_ros.model.fast import dct, files
from ki_ros.model.fast.definition import Definition, parse
from ki_ros.model.fast.errors import FASTDecodeError, FASTEncodeError, FASTTokenizerError

_SURROGATES = (0xD800, 0xE000)
"""First code point that is no character, and the first one after these."""

_LAST_CODE = 0x10FFFF
_BYTES = 256


class FASTBatch(NamedTuple):
    """Encoded chunks.

    Attributes:
        tokens: N sequences of FAST ids, of different lengths.
        saturated: how many of the N*H*D coefficients were below min_token and were encoded as min_token.
    """

    tokens: list[list[int]]
    saturated: int


@dataclass(frozen=True, repr=False)
class FASTTokenizer:
    """Translates between action chunks and token ids. Holds no state between calls; equal when its content is equal.

    Tokens equal those of the public FAST+ processor for the same float64 chunk. Other dtypes are taken exactly into
    float64 first, where the public processor transforms float32 in single precision.

    Attributes:
        definition: content of `tokenizer.json`.
        scale: coefficients are multiplied by it before they are rounded; 1/scale is the quantisation step.
        min_token: the smallest scaled coefficient there is a character for.
    """

    definition: str
    scale: float
    min_token: int
    _parsed: Definition = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise FASTTokenizerError(f"scale is {self.scale}; give a positive number")
        if abs(self.min_token) > _LAST_CODE:
            raise FASTTokenizerError(f"min_token is {self.min_token}; give the data's smallest scaled coefficient")
        object.__setattr__(self, "_parsed", parse(self.definition))

    def __repr__(self) -> str:
        return f"FASTTokenizer(vocab_size={self.vocab_size}, scale={self.scale}, min_token={self.min_token})"

    @classmethod
    def from_directory(cls, path: str | Path) -> FASTTokenizer:
        """The tokenizer in a directory: FAST+ as published, or what `save` wrote. Executes no code from there.

        Raises:
            FASTTokenizerError: a file is missing, was changed after it was saved, or is not of that format.
        """
        path = Path(path)
        stored = files.read(path)
        try:
            tokenizer = cls(stored.definition, stored.scale, stored.min_token)
        except FASTTokenizerError as error:
            raise FASTTokenizerError(f"{path}: {error}") from error
        if tokenizer.vocab_size > stored.vocab_size:
            raise FASTTokenizerError(
                f"{path / files.PROCESSOR_FILE}: vocab_size is {stored.vocab_size}, but {files.TOKENIZER_FILE} has "
                f"{tokenizer.vocab_size} tokens; give the two files of one tokenizer"
            )
        return tokenizer

    @classmethod
    def fit(
        cls, chunks: np.ndarray | Sequence[np.ndarray], *, vocab_size: int = 1024, scale: float = 10
    ) -> FASTTokenizer:
        """A tokenizer whose byte pairs are those of the given chunks.

        min_token is the smallest coefficient seen, as in the original. The initial alphabet is all 256 bytes, so it
        covers the whole range seen and every coefficient above it. (The original's is one character per coefficient
        seen: it covers only a part of their bytes, and what it does not cover is dropped silently.) Chunks are not
        split where a coefficient's character happens to be a space, letter or digit, which gives shorter sequences.
        The result depends on the chunks alone.

        Args:
            chunks: normalised actions, (N, H, D), or a sequence of (H_i, D).
            vocab_size: most tokens; there are fewer when no pair is left that occurs twice.
            scale: see the class.

        Raises:
            FASTEncodeError: chunks of a wrong shape, or with a value that is not finite.
            FASTTokenizerError: vocab_size or scale that cannot be.
        """
        if vocab_size < _BYTES:
            raise FASTTokenizerError(f"vocab_size is {vocab_size}; give {_BYTES} or more, as each byte is a token")
        if not (math.isfinite(scale) and scale > 0):
            raise FASTTokenizerError(f"scale is {scale}; give a positive number")
        if len(chunks) == 0:
            raise FASTEncodeError("chunks is empty; give at least one chunk to fit to")
        coefficients = _coefficients_of_all(chunks, scale)
        lowest = int(min(part.min() for part in coefficients))
        highest = int(max(part.max() for part in coefficients))
        if highest - lowest >= _SURROGATES[0]:
            raise FASTEncodeError(
                f"scaled coefficients range from {lowest} to {highest}, more than {_SURROGATES[0]} values; normalise "
                "the actions, or give a smaller scale"
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            special_tokens=[],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        texts = (text for part in coefficients for text in _texts(part.astype(np.int64) - lowest))
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.to_str(), scale, lowest)

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer's files into a directory; the public FAST+ processor can read them too.

        They are complete on disk before one takes the place of an older one.
        """
        files.write(Path(path), files.Stored(self.definition, self.scale, self.min_token, self.vocab_size))

    @property
    def vocab_size(self) -> int:
        """Number of tokens; ids are 0 to one less."""
        return len(self._parsed.token_bytes)

    @property
    def token_bytes(self) -> tuple[bytes, ...]:
        """The bytes of UTF-8 text that each token stands for, by id."""
        return self._parsed.token_bytes

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that are equal for equal content, whatever the layout of the files."""
        content = json.dumps(
            [float(self.scale), self.min_token, json.loads(self.definition)], sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(content.encode("utf-8")).hexdigest()[:16]

    def encode(self, chunk: np.ndarray) -> list[int]:
        """The FAST ids of one normalised chunk (H, D). Raises FASTEncodeError, see `encode_batch`."""
        array = _as_float64(chunk)
        if array.ndim != 2:
            raise FASTEncodeError(f"the chunk has shape {array.shape}; give (horizon, action dimension)")
        return self.encode_batch(array[None]).tokens[0]

    def encode_batch(self, chunks: np.ndarray, *, index: Sequence[int] | None = None) -> FASTBatch:
        """The FAST ids of normalised chunks.

        Args:
            chunks: (N, H, D), numbers of any floating-point or integer dtype.
            index: what errors call the N chunks; their place in `chunks` when left out.

        Raises:
            FASTEncodeError: another shape; a value that is not finite; a coefficient that no token can express: above
                the range of characters, or spelled with a byte that the vocabulary lacks.
        """
        array = _as_chunks(chunks)
        coefficients = _coefficients(array, self.scale, index)
        # Differences beyond 2**53 would be inexact, but those are far outside of what has a character.
        codes = coefficients - self.min_token
        saturated = int(np.count_nonzero(codes < 0))
        np.maximum(codes, 0, out=codes)
        self._require_expressible(codes, coefficients, index)
        encodings = self._parsed.tokenizer.encode_batch_fast(_texts(codes), add_special_tokens=False)
        return FASTBatch([encoding.ids for encoding in encodings], saturated)

    def decode(self, tokens: Sequence[int] | np.ndarray, *, horizon: int, action_dim: int) -> np.ndarray:
        """The normalised chunk (horizon, action_dim) float64 of FAST ids.

        Raises:
            FASTDecodeError: an id that is no token, bytes that are no character, or a number of coefficients other than
                horizon * action_dim.
        """
        expected = _count(horizon, action_dim)
        return self._inverse([self._text(tokens, expected, "")], horizon, action_dim)[0]

    def decode_batch(
        self, tokens: Sequence[Sequence[int] | np.ndarray], *, horizon: int, action_dim: int
    ) -> np.ndarray:
        """The normalised chunks (N, horizon, action_dim) float64 of N sequences of FAST ids.

        Raises:
            FASTDecodeError: as `decode` does, for the first malformed row, which the message names.
        """
        expected = _count(horizon, action_dim)
        texts = [self._text(row, expected, f"row {number}: ") for number, row in enumerate(tokens)]
        return self._inverse(texts, horizon, action_dim)

    def _require_expressible(self, codes: np.ndarray, coefficients: np.ndarray, index: Sequence[int] | None) -> None:
        if not self._parsed.missing_bytes and codes.max(initial=0) < _SURROGATES[0]:
            return
        bad = [code for code in np.unique(codes) if not self._is_expressible(code)]
        if not bad:
            return
        chunk, frequency, dim = np.argwhere(np.isin(codes, bad))[0]
        raise FASTEncodeError(
            f"chunk {_name(chunk, index)}: the scaled coefficient of frequency {frequency}, dimension {dim} is "
            f"{coefficients[chunk, frequency, dim]:.0f}, which the tokenizer has no token for; normalise the actions, "
            "or fit the tokenizer to data with this range",
            chunk=_name(chunk, index),
        )

    def _is_expressible(self, code: float) -> bool:
        if code > _LAST_CODE or _SURROGATES[0] <= code < _SURROGATES[1]:
            return False
        return self._parsed.missing_bytes.isdisjoint(chr(int(code)).encode("utf-8"))

    def _text(self, tokens: Sequence[int] | np.ndarray, expected: int, where: str) -> str:
        """The characters of a sequence, of which there are `expected`."""
        pieces = self._pieces(tokens, where)
        content = b"".join(pieces)
        try:
            text, broken = content.decode("utf-8"), None
        except UnicodeDecodeError as error:
            text, broken = content[: error.start].decode("utf-8"), error.start
        if len(text) > expected:
            position = _holder(pieces, len(text[:expected].encode("utf-8")))
            problem = (
                f"give {len(text)} coefficients; the chunk has {expected}, which the token at position {position} "
                "exceeds"
            )
        elif broken is not None:
            position = _holder(pieces, broken)
            problem = (
                f"give undecodable bytes from position {position} on, after {len(text)} of {expected} coefficients: a "
                "character is cut or mixed up"
            )
        elif len(text) < expected:
            position = len(pieces)
            problem = f"end at position {position} with {len(text)} coefficients; the chunk has {expected}"
        else:
            return text
        raise FASTDecodeError(f"{where}tokens {problem}", position=position, expected=expected, actual=len(text))

    def _pieces(self, tokens: Sequence[int] | np.ndarray, where: str) -> list[bytes]:
        if hasattr(tokens, "tolist"):
            tokens = tokens.tolist()
        pieces: list[bytes] = []
        for position, token in enumerate(tokens):
            try:
                id = operator.index(token)
            except TypeError:
                id = -1
            if not 0 <= id < self.vocab_size:
                raise FASTDecodeError(
                    f"{where}the token at position {position} is {token!r}; ids are 0 to {self.vocab_size - 1}",
                    position=position,
                )
            pieces.append(self._parsed.token_bytes[id])
        return pieces

    def _inverse(self, texts: list[str], horizon: int, action_dim: int) -> np.ndarray:
        codes = np.frombuffer("".join(texts).encode("utf-32-le"), dtype="<u4").astype(np.float64)
        coefficients = (codes + self.min_token) / self.scale
        return dct.inverse(coefficients.reshape(len(texts), horizon, action_dim))


def _as_float64(chunks: object) -> np.ndarray:
    try:
        return np.asarray(chunks).astype(np.float64, casting="same_kind")
    except (TypeError, ValueError, RuntimeError) as error:
        raise FASTEncodeError(f"actions cannot be read as an array of numbers ({error}); give a NumPy array") from None


def _as_chunks(chunks: object) -> np.ndarray:
    array = _as_float64(chunks)
    if array.ndim != 3 or 0 in array.shape[1:]:
        raise FASTEncodeError(f"chunks has shape {array.shape}; give (chunks, horizon, action dimension)")
    return array


def _coefficients(chunks: np.ndarray, scale: float, index: Sequence[int] | None = None) -> np.ndarray:
    """Scaled and rounded coefficients (N, H, D) float64 of (N, H, D) float64."""
    finite = np.isfinite(chunks)
    if not finite.all():
        chunk, step, dim = np.argwhere(~finite)[0]
        raise FASTEncodeError(
            f"chunk {_name(chunk, index)}: the action at step {step}, dimension {dim} is {chunks[chunk, step, dim]}; "
            "give finite numbers",
            chunk=_name(chunk, index),
        )
    with np.errstate(over="ignore"):
        coefficients = np.around(dct.transform(chunks) * scale)
    finite = np.isfinite(coefficients)
    if not finite.all():
        chunk, frequency, dim = np.argwhere(~finite)[0]
        raise FASTEncodeError(
            f"chunk {_name(chunk, index)}: the scaled coefficient of frequency {frequency}, dimension {dim} overflows; "
            "normalise the actions",
            chunk=_name(chunk, index),
        )
    return coefficients


def _coefficients_of_all(chunks: np.ndarray | Sequence[np.ndarray], scale: float) -> list[np.ndarray]:
    """Coefficients of chunks that may differ in length, as arrays (N_i, H_i, D)."""
    if isinstance(chunks, np.ndarray):
        return [_coefficients(_as_chunks(chunks), scale)]
    parts = [_as_float64(chunk) for chunk in chunks]
    for number, part in enumerate(parts):
        if part.ndim != 2 or 0 in part.shape or part.shape[1] != parts[0].shape[-1]:
            raise FASTEncodeError(
                f"chunk {number} has shape {part.shape}; give (horizon, action dimension), with the action dimension "
                f"of chunk 0, whose shape is {parts[0].shape}"
            )
    return [_coefficients(part[None], scale, [number]) for number, part in enumerate(parts)]


def _texts(codes: np.ndarray) -> list[str]:
    """One string of characters per chunk; codes (N, H, D) are code points."""
    count, length = len(codes), math.prod(codes.shape[1:])
    text = codes.astype("<u4").tobytes().decode("utf-32-le")
    return [text[start : start + length] for start in range(0, count * length, length)]


def _name(chunk: int, index: Sequence[int] | None) -> int:
    return int(chunk if index is None else index[chunk])


def _holder(pieces: list[bytes], offset: int) -> int:
    """Position of the token that the byte at an offset belongs to."""
    return next(position for position, end in enumerate(accumulate(map(len, pieces))) if offset < end)


def _count(horizon: int, action_dim: int) -> int:
    for name, value in (("horizon", horizon), ("action_dim", action_dim)):
        if value < 1:
            raise ValueError(f"{name} is {value}; give a positive integer")
    return horizon * action_dim
