"""Messages of several files in order of time, a few of them in memory at once."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple


class Entry(NamedTuple):
    """A message as a file holds it: its log time [ns], its topic and its bytes."""

    time: int
    topic: str
    raw: bytes


class Block(NamedTuple):
    """A part of a file that is read in one go. No message in it is older than `start` [ns].

    `load` gives the messages of the topics that are asked for (None: of all), in the order in which they were recorded.
    """

    start: int
    load: Callable[[Collection[str] | None], list[Entry]]


def merged(blocks: Iterable[Block], topics: Collection[str] | None) -> Iterator[Entry]:
    """Every message of `topics` in order of time, and those of the same time in the order of blocks and recording."""
    order = itertools.count()
    waiting: list[tuple[int, int, Entry]] = []
    for block in sorted(blocks, key=lambda block: block.start):
        while waiting and waiting[0][0] < block.start:
            yield heapq.heappop(waiting)[2]
        for entry in block.load(topics):
            heapq.heappush(waiting, (entry.time, next(order), entry))
    while waiting:
        yield heapq.heappop(waiting)[2]
