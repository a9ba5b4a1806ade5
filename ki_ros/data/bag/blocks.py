"""Messages of several files in order of time, a few of them in memory at once.

Files keep the order of arrival, more or less: messages of several topics may overtake each other. Where that order says
that the clock was set back, what came after follows what came before, whatever the log times say: sorted by them, two
times that have nothing to do with each other would be one.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

DISORDER_NS = 100_000_000
"""So far behind others a message may be recorded [ns]. What is further behind was recorded by another clock."""

# So many messages behind one of their own topic make a clock that was set back; one or two may have a wrong time.
_BEHIND = 3


class Entry(NamedTuple):
    """A message as a file holds it: its log time [ns], its topic, its bytes, and its place in the file's block."""

    time: int
    topic: str
    raw: bytes
    place: int


class Order(NamedTuple):
    """All messages of a block as they were recorded: places, increasing, log times [ns], and topics ("" if unknown)."""

    places: Sequence[int]
    times: Sequence[int]
    topics: Sequence[str]


class Block(NamedTuple):
    """A part of a file that is read in one go. No message in it is older than `start` or newer than `end` [ns].

    `load` gives the messages of the topics that are asked for (None: of all), in the order in which they were recorded.
    `order` gives that order without reading them where the file has an index.
    """

    start: int
    end: int
    load: Callable[[Collection[str] | None], list[Entry]]
    order: Callable[[], Order]


class SetBack(NamedTuple):
    """Where the clock was set back: at which place of which block, from which time on, and how far [ns]."""

    block: int
    place: int
    from_ns: int
    by_ns: int


@dataclass
class _Stretch:
    """Messages of one setting of the clock: the newest log time, and the newest of each topic [ns]."""

    newest: int = 0
    topics: dict[str, int] = field(default_factory=dict)

    def add(self, time: int, topic: str) -> None:
        self.newest = max(self.newest, time)
        self.topics[topic] = max(self.topics.get(topic, 0), time)


def set_backs(blocks: Sequence[Block]) -> list[SetBack]:
    """Where the clock was set back, in blocks that are in the order of recording.

    It was set back where a message, and all that follow it at first, are further behind the newest before them than
    disorder explains, and several are as far behind one of their own topic. So a file that was written topic after
    topic has none, nor one with a single wrong time.
    """
    newest = 0
    for block in blocks:
        if block.start < newest - DISORDER_NS or (
            block.end - block.start > DISORDER_NS and goes_back(block.order().times)
        ):
            return _search(blocks)
        newest = max(newest, block.end)
    return []


def goes_back(times: Sequence[int] | np.ndarray) -> bool:
    """Whether one of these log times is further behind one before it than disorder explains."""
    values = np.asarray(times, dtype=np.uint64)
    newest = np.maximum.accumulate(values)
    return bool((newest - values > DISORDER_NS).any())


def split(blocks: Sequence[Block], at: Sequence[SetBack]) -> list[list[tuple[int, Block]]]:
    """Blocks with their numbers, between each two places where the clock was set back."""
    stretches: list[list[tuple[int, Block]]] = []
    bounds = [(0, -1), *((cut.block, cut.place) for cut in at), (len(blocks), -1)]
    for (first, begin), (last, end) in itertools.pairwise(bounds):
        stretch = []
        for number in range(first, min(last + (end >= 0), len(blocks))):
            block = blocks[number]
            low = begin if number == first else -1
            high = end if number == last else -1
            stretch.append((number, block if low < 0 and high < 0 else _part(block, low, high)))
        stretches.append(stretch)
    return stretches


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


def _search(blocks: Sequence[Block]) -> list[SetBack]:
    found: list[SetBack] = []
    stretch, behind = _Stretch(), 0
    run: tuple[SetBack, _Stretch] | None = None  # where the messages behind the others begin, and those since then
    for number, block in enumerate(blocks):
        for place, time, topic in zip(*block.order(), strict=True):
            if time >= stretch.newest - DISORDER_NS:
                stretch.add(time, topic)
                run = None
                continue
            if run is None:
                run, behind = (SetBack(number, place, stretch.newest, stretch.newest - time), _Stretch()), 0
            run[1].add(time, topic)
            behind += time < stretch.topics.get(topic, 0) - DISORDER_NS
            if behind == _BEHIND:
                found.append(run[0])
                stretch, run = run[1], None
    return found


def _part(block: Block, begin: int, end: int) -> Block:
    """The messages of a block from one place up to another; -1 for its beginning or its end."""

    def inside(place: int) -> bool:
        return place >= begin and (end < 0 or place < end)

    times = [time for place, time, _ in zip(*block.order(), strict=True) if inside(place)]

    def load(topics: Collection[str] | None) -> list[Entry]:
        return [entry for entry in block.load(topics) if inside(entry.place)]

    return Block(min(times, default=block.start), max(times, default=block.end), load, block.order)
