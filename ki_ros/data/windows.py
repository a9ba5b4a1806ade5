"""Which times of a recording are episodes, and what was asked for in them.

A message `/episode` with the event START begins an episode and one with STOP ends it. A recording without such messages
is one episode. A change of the instruction within an episode splits it.

These messages are latched: a recording that begins later has those of earlier episodes too, and they do not count.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ki_ros.data.recording import Event
from ki_ros.observation.buffer import NANOSECONDS
from ki_ros.observation.cdr import EpisodeFields, EpochFields

START, STOP = 0, 1
"""The constants of ki_ros/Episode for `event`."""

# A latched message reaches a recorder that has just begun within the time that discovery takes.
_DISCOVERY_NS = 2 * NANOSECONDS


class Outcome(str, enum.Enum):
    """How an episode ended, as the operator said."""

    SUCCESS = "success"
    FAILURE = "failure"
    UNKNOWN = "unknown"

    def __str__(self) -> str:
        return self.value


_OUTCOMES = {1: Outcome.SUCCESS, 2: Outcome.FAILURE}


@dataclass(frozen=True)
class Window:
    """The time of an episode.

    Attributes:
        id: of the episode; empty where nothing names it.
        instruction: in force, stripped; empty where none was given.
        outcome: of the episode; unknown of a part that ended with a change of the instruction.
        robot: as the recorder called it; empty where it did not.
        begin_ns: its first reference time [ns].
        end_ns: its last [ns]; None: to the end of the recording.
        complete: whether its end was recorded. A recording without episodes is complete as it is.
        ended: whether somebody ended it then, as a success or a failure: not a new instruction, a full disk, or the end
            of the recording.
        note: of the operator.
    """

    id: str
    instruction: str
    outcome: Outcome
    robot: str
    begin_ns: int
    end_ns: int | None
    complete: bool = True
    ended: bool = False
    note: str = ""


class Stretch(NamedTuple):
    """A recording, or its part between two times at which the clock was set back.

    Attributes:
        events: in order of arrival.
        first_ns: the first reference time [ns].
        begin_ns: when the first message arrived [ns].
    """

    events: Sequence[Event]
    first_ns: int
    begin_ns: int


def episode_windows(stretches: Sequence[Stretch]) -> list[list[Window]]:
    """The episodes of a recording.

    Args:
        stretches: in the order of recording. An episode that goes on in the next is two, the second with its outcome.

    Returns:
        Of each stretch, windows in order, not overlapping. A time without an instruction before one that has one is no
        episode.
    """
    whole: list[Stretch] = []
    for stretch in stretches:
        before = _in_force(whole[-1].events, stretch.begin_ns) if whole else []
        whole.append(stretch._replace(events=[*before, *stretch.events]))
    marks = [_of_this_recording(stretch) for stretch in whole]
    return [
        [
            part
            for window in (_recorded(own) if any(marks) else [Window("", "", Outcome.UNKNOWN, "", first, None)])
            for part in _by_instruction(window, events, first)
        ]
        for (events, first, _), own in zip(whole, marks, strict=True)
    ]


def _in_force(events: Sequence[Event], at_ns: int) -> list[Event]:
    """What goes on when the clock is set back to a time [ns]: the instruction, and an episode that has not ended."""
    marks = [event for event in events if isinstance(event.message, EpisodeFields)]
    epochs = [e for e in events if isinstance(e.message, EpochFields) and e.message.instruction.strip()]
    texts = [event for event in events if isinstance(event.message, str) and event.message.strip()]
    held = [epochs[-1].message._replace(stamp_ns=0)] if epochs else []
    held += [texts[-1].message] if texts else []
    if marks and marks[-1].message.event == START:
        begun = marks[-1].message
        if epochs and _set_at(epochs[-1]) > marks[-1].arrival_ns:
            begun = begun._replace(instruction=epochs[-1].message.instruction)
        held.append(begun._replace(stamp_ns=0))
    return [Event(at_ns, message) for message in held]


def _of_this_recording(stretch: Stretch) -> list[Event]:
    """The beginnings and ends of episodes without those of episodes that were over when there was something to observe.

    Topics are found one after the other, so the first observation may be seconds behind the first message. What began
    in the recording is one of its episodes even if nothing was observed of it.
    """
    marks = [event for event in stretch.events if isinstance(event.message, EpisodeFields)]
    begun = {e.message.id for e in marks if e.message.event == START and _set_at(e) >= stretch.begin_ns}
    over = {e.message.id for e in marks if e.message.event == STOP and _set_at(e) < stretch.first_ns}
    return [event for event in marks if event.message.id not in over - begun]


def _recorded(marks: Sequence[Event]) -> list[Window]:
    """The episodes that START and STOP mark."""
    windows: list[Window] = []
    begun: Event | None = None
    end_of_last = 0
    for event in marks:
        message = event.message
        if message.event == START:
            if begun is not None:
                windows.append(_window(begun, begun.arrival_ns, event.arrival_ns - 1))
            begun = event
        elif message.event == STOP:
            # Without a START the recording began in the middle.
            begin = end_of_last if begun is None else begun.arrival_ns
            window = _window(begun or event, begin, event.arrival_ns)
            outcome = _OUTCOMES.get(message.outcome, Outcome.UNKNOWN)
            note = message.note or window.note
            ended = outcome is not Outcome.UNKNOWN
            windows.append(replace(window, outcome=outcome, note=note, complete=True, ended=ended))
            begun, end_of_last = None, event.arrival_ns + 1
    if begun is not None:
        windows.append(_window(begun, begun.arrival_ns, None))
    return windows


def _window(mark: Event, begin_ns: int, end_ns: int | None) -> Window:
    message = mark.message
    return Window(
        id=message.id,
        instruction=message.instruction.strip(),
        outcome=Outcome.UNKNOWN,
        robot=message.robot,
        begin_ns=begin_ns,
        end_ns=end_ns,
        complete=False,
        note=message.note,
    )


def _by_instruction(window: Window, events: Sequence[Event], first_ns: int) -> list[Window]:
    """The window, split where its instruction changes."""
    begin = max(window.begin_ns, first_ns)
    changes: list[tuple[int, str]] = [(window.begin_ns, window.instruction)] if window.instruction else []
    for time, instruction in _instructions(window, events, begin):
        if window.end_ns is not None and time > window.end_ns:
            break
        if not changes or instruction != changes[-1][1]:
            changes.append((time, instruction))
    if not changes:
        return [window]
    parts = []
    for (time, instruction), following in zip(changes, [*changes[1:], None], strict=True):
        part = replace(window, instruction=instruction, begin_ns=max(time, window.begin_ns))
        if following is not None:
            part = replace(part, end_ns=following[0] - 1, outcome=Outcome.UNKNOWN, complete=True, ended=False)
        if part.end_ns is None or part.end_ns >= part.begin_ns:
            parts.append(part)
    return parts


def _instructions(window: Window, events: Sequence[Event], begin: int) -> list[tuple[int, str]]:
    """Instructions by the time from which they hold; of those given before the window, the last, from its beginning."""
    epochs = [event for event in events if isinstance(event.message, EpochFields)]
    texts = [event for event in events if isinstance(event.message, str)]
    if window.instruction:
        # What the operator was asked for counts, until another is set; what was latched from before is older.
        texts = []
        epochs = [event for event in epochs if _set_at(event) > begin]
    before: str | None = None
    during: list[tuple[int, str]] = []
    for event in epochs or texts:
        message = event.message
        instruction = (message.instruction if isinstance(message, EpochFields) else message).strip()
        time = _set_at(event)
        latched = isinstance(message, str) and not during and time <= begin + _DISCOVERY_NS
        if not instruction:
            continue
        if time <= begin or (before is None and latched):
            before = instruction
        else:
            during.append((time, instruction))
    return ([] if before is None else [(window.begin_ns, before)]) + during


def _set_at(event: Event) -> int:
    """When an episode began or ended or an instruction was set: on arrival, unless it was latched and is older."""
    message = event.message
    if not isinstance(message, str) and 0 < message.stamp_ns < event.arrival_ns:
        return message.stamp_ns
    return event.arrival_ns
