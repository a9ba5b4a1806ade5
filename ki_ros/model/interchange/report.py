"""What a conversion did, and what it had to leave or to assume."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(kw_only=True)
class Report:
    """One conversion, for people to read.

    Attributes:
        source, output: the directories.
        layout: of the one that is not this package's: "openpi" or "lerobot".
        tensors: written.
        size: of the weights [bytes].
        assumed: what the source does not say, and what was taken for it.
        not_carried: what the source holds and the output does not, and why where that is not plain.
        missing: what a policy needs and neither the source nor the arguments gave.
        notes: what else there is to know.
    """

    source: Path
    output: Path
    layout: str
    tensors: int = 0
    size: int = 0
    assumed: list[str] = field(default_factory=list)
    not_carried: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
