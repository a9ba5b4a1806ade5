"""Which FAST tokens may follow which, for a sequence that decodes to a chunk: a whole number of UTF-8 characters, one
for each coefficient."""

from __future__ import annotations

import codecs
from functools import cache
from typing import NamedTuple

import numpy as np

from ki_ros.model.fast.errors import FASTTokenizerError
from ki_ros.model.fast.tokenizer import FASTTokenizer

_NO_TEXT = -1


class Position(NamedTuple):
    """Where a sequence is.

    Attributes:
        missing: characters that are not whole yet; at 0 the sequence is a chunk, and nothing may follow but its end.
        begun: first bytes of a character whose last ones are to come.
    """

    missing: int
    begun: bytes = b""


class _Moves(NamedTuple):
    """What each token does behind the same `begun`.

    Attributes:
        characters: (vocabulary,) int64, how many it makes whole; _NO_TEXT where its bytes cannot follow.
        begun: of each token, what it leaves of a character.
    """

    characters: np.ndarray
    begun: tuple[bytes, ...]


class FASTGrammar:
    """The token sequences that decode to a chunk of a given size.

    Args:
        tokenizer: of the tokens.
        coefficients: of a chunk: horizon times action dimension.

    Attributes:
        start: the position before the first token.

    Raises:
        FASTTokenizerError: no token is one whole character, so that not every sequence could be finished.
    """

    def __init__(self, tokenizer: FASTTokenizer, coefficients: int) -> None:
        self._bytes = tokenizer.token_bytes
        self._moves = cache(self._find_moves)
        self._finishes = cache(self._can_finish)
        self._allowed = cache(self._find_allowed)
        self.start = Position(coefficients)
        if (1, b"") not in zip(*self._moves(b""), strict=True):
            raise FASTTokenizerError(f"none of the {len(self._bytes)} tokens is one whole character")

    def after(self, position: Position, token: int) -> Position:
        """The position behind a token that is allowed at a position."""
        moves = self._moves(position.begun)
        return Position(position.missing - int(moves.characters[token]), moves.begun[token])

    def allowed(self, position: Position) -> np.ndarray:
        """Tokens that may follow, int64, ascending: behind each of them the sequence can still become a chunk."""
        return self._allowed(position)

    def _find_allowed(self, position: Position) -> np.ndarray:
        moves = self._moves(position.begun)
        finishes = np.array([self._finishes(begun) for begun in moves.begun])
        needed = moves.characters + np.array([begun != b"" for begun in moves.begun])
        return np.flatnonzero((moves.characters != _NO_TEXT) & finishes & (needed <= position.missing))

    def _can_finish(self, begun: bytes) -> bool:
        """Whether tokens of one byte can finish a character. Byte pairs are made of such, so they suffice."""
        if not begun:
            return True
        steps = (_read(begun + piece) for piece in self._bytes if len(piece) == 1)
        return any(characters == 1 or (characters == 0 and self._finishes(rest)) for characters, rest in steps)

    def _find_moves(self, begun: bytes) -> _Moves:
        characters, rest = zip(*(_read(begun + piece) for piece in self._bytes), strict=True)
        return _Moves(np.array(characters), rest)


def _read(content: bytes) -> tuple[int, bytes]:
    """Whole characters of the bytes, and what is left of one; (_NO_TEXT, b"") for what no character begins with."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        characters = len(decoder.decode(content))
    except UnicodeDecodeError:
        return _NO_TEXT, b""
    return characters, decoder.getstate()[0]
