"""What is wrong with a recording, and what of it is lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class BagError(ValueError):
    """A recording that cannot be read at all; the message names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong with a recording.

    Attributes:
        file: the file that is damaged or missing.
        kind: one of
            "metadata" (metadata.yaml is missing, unreadable, or says other than the files),
            "split" (a file is missing, unlisted or unreadable),
            "unfinished" (the file's end is missing: a kill, a full disk, a truncation),
            "structure" (bytes that are no record or table),
            "checksum" (a chunk's bytes are not those that were written),
            "schema" (a type, a channel or a definition that contradicts another),
            "message" (a message that is not what it should be),
            "count" (fewer or more messages than were recorded),
            "clock" (the clock of the log times was set back).
        detail: what was found, and where.
        lost: what is not read because of it, or "nothing".
    """

    file: Path
    kind: str
    detail: str
    lost: str

    def __str__(self) -> str:
        return f"{self.file.name}: {self.kind}: {self.detail}; lost: {self.lost}"


class DamageLog:
    """The damage found so far, each once, in the order in which it was found."""

    def __init__(self) -> None:
        self.entries: list[Damage] = []
        self._seen: set[Damage] = set()

    def note(self, file: Path, kind: str, detail: str, lost: str = "nothing") -> None:
        entry = Damage(file, kind, detail, lost)
        if entry not in self._seen:
            self._seen.add(entry)
            self.entries.append(entry)


def messages_lost(count: int) -> str:
    """ "1 message", "7 messages", or "nothing"."""
    return f"{count} message{'s' if count != 1 else ''}" if count else "nothing"
