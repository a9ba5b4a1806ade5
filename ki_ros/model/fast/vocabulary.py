"""Where FAST ids lie in the backbone's vocabulary.

PaliGemma's 257152 ids are 256000 text pieces, 1024 `<loc>` tokens (image positions) and 128 `<seg>` tokens. FAST takes
ids from the top down, below those that are kept clear.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass

from ki_ros.model.fast.errors import FASTDecodeError

OPENPI_SKIP = 128
"""openpi keeps `<seg>` clear and lies on `<loc>`; checkpoints that it trained on FAST tokens need this value."""

LOC_AND_SEG = 1152
"""Keeps `<loc>` and `<seg>` clear, for co-training with image-text data that uses them. FAST lies on the rarest text
pieces instead."""

_LOC = range(256000, 257024)
_LAST_SPECIAL = 3


@dataclass(frozen=True)
class FASTVocabulary:
    """The mapping `id = backbone_vocab_size - 1 - skip - t` of FAST token t.

    Attributes:
        backbone_vocab_size: number of ids of the backbone.
        skip: number of ids that are kept clear at the top.
        size: number of FAST tokens.
        eos_id: the backbone's id that ends an action sequence; Gemma's end-of-sequence token is 1.

    Raises:
        ValueError: at construction, where a FAST token would get an id that is special (0 to 3: padding, end,
            beginning, unknown) or that does not exist, or the id of eos.
    """

    backbone_vocab_size: int
    skip: int
    size: int
    eos_id: int = 1

    def __post_init__(self) -> None:
        if self.skip < 0:
            raise ValueError(f"skip is {self.skip}; give a number of ids to keep clear, 0 or more")
        if self.size < 1:
            raise ValueError(f"size is {self.size}; give the number of FAST tokens, 1 or more")
        if not 0 <= self.eos_id < self.backbone_vocab_size:
            raise ValueError(
                f"eos_id is {self.eos_id}; give an id of the backbone, 0 to {self.backbone_vocab_size - 1}"
            )
        if self.lowest_id <= _LAST_SPECIAL:
            raise ValueError(
                f"size {self.size} with skip {self.skip} reaches down to id {self.lowest_id}, but ids below "
                f"{_LAST_SPECIAL + 1} are special; give a backbone_vocab_size of at least "
                f"{self.size + self.skip + _LAST_SPECIAL + 1}, not {self.backbone_vocab_size}"
            )
        if self.lowest_id <= self.eos_id <= self.highest_id:
            raise ValueError(
                f"eos_id is {self.eos_id}, one of the FAST ids {self.lowest_id} to {self.highest_id}; give another skip"
            )

    @property
    def lowest_id(self) -> int:
        """The backbone's id of the last FAST token."""
        return self.backbone_vocab_size - self.skip - self.size

    @property
    def highest_id(self) -> int:
        """The backbone's id of FAST token 0."""
        return self.backbone_vocab_size - 1 - self.skip

    @property
    def overlaps_loc(self) -> bool:
        """Whether a FAST token has the id of one of PaliGemma's `<loc>` tokens."""
        return self.lowest_id < _LOC.stop and self.highest_id >= _LOC.start

    def to_backbone(self, tokens: Iterable[int]) -> list[int]:
        """Backbone ids of FAST tokens (any iterable of integers: list, NumPy array or tensor of one dimension).

        Raises:
            ValueError: a value that is no FAST token; the message gives its position.
        """
        mapped = []
        for position, token in enumerate(_integers(tokens)):
            if token is None or not 0 <= token < self.size:
                raise ValueError(f"the token at position {position} is {token}; FAST tokens are 0 to {self.size - 1}")
            mapped.append(self.highest_id - token)
        return mapped

    def from_backbone(self, ids: Iterable[int]) -> list[int]:
        """FAST tokens of backbone ids (as in `to_backbone`), without the end: eos is no FAST token.

        Raises:
            FASTDecodeError: an id that is no FAST token's, with its position.
        """
        mapped = []
        for position, id in enumerate(_integers(ids)):
            if id is None or not self.lowest_id <= id <= self.highest_id:
                raise FASTDecodeError(
                    f"the id at position {position} is {id}; FAST tokens have the ids {self.lowest_id} to "
                    f"{self.highest_id}",
                    position=position,
                )
            mapped.append(self.highest_id - id)
        return mapped


def _integers(values: Iterable[int]) -> Iterable[int | None]:
    """The values as integers; None for one that is no integer."""
    for value in values.tolist() if hasattr(values, "tolist") else values:
        try:
            yield operator.index(value)
        except TypeError:
            yield None
