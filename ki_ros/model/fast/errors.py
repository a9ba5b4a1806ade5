"""What can be wrong with a tokenizer, with actions and with tokens."""

from __future__ import annotations


class FASTTokenizerError(ValueError):
    """A tokenizer that cannot be loaded or fitted; the message names the file or argument, the value and the fix."""


class FASTEncodeError(ValueError):
    """Actions that have no exact tokens; the message names the chunk, the place in it, the value and the fix.

    Attributes:
        chunk: which of several chunks, as the message calls it; None where the error is of all of them.
    """

    def __init__(self, message: str, *, chunk: int | None = None) -> None:
        super().__init__(message)
        self.chunk = chunk


class FASTDecodeError(ValueError):
    """Tokens that are no action chunk.

    Attributes:
        position: index in the token sequence where it goes wrong; its length, where it ends too early.
        expected: number of coefficients that the chunk has; None where the count is not what is wrong.
        actual: number of coefficients that the tokens give, up to the first undecodable byte.
    """

    def __init__(
        self, message: str, *, position: int = 0, expected: int | None = None, actual: int | None = None
    ) -> None:
        super().__init__(message)
        self.position = position
        self.expected = expected
        self.actual = actual
