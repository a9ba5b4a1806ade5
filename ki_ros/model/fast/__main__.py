"""Compares the FAST tokenizer with recorded tokens and chunks of the public FAST+ processor.

    python -m ki_ros.model.fast FAST_DIR VECTORS_JSON [--json FILE]

FAST_DIR holds FAST+'s `processor_config.json` and `tokenizer.json`. VECTORS_JSON holds `vectors`, each with `source`,
`start`, `chunk`, `tokens` and `decoded`. Exits 1 when a token differs or a decoded value is further than 1e-6 from the
record, 2 when a file cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ki_ros.model.fast import FASTDecodeError, FASTEncodeError, FASTTokenizer, FASTTokenizerError

TOLERANCE = 1e-6
"""Largest absolute difference of a decoded value; the record has as many decimals."""


class VectorsError(ValueError):
    """A file of vectors that cannot be read; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Comparison:
    """One vector: whether its tokens are equal, and the largest absolute difference of its decoded chunk."""

    name: str
    tokens: int
    tokens_equal: bool
    difference: float

    @property
    def passed(self) -> bool:
        """Whether it is within the limits."""
        return self.tokens_equal and self.difference <= TOLERANCE


def compare(directory: Path, vectors: Path) -> list[Comparison]:
    """Encodes each recorded chunk and decodes the recorded tokens.

    Raises:
        FASTTokenizerError, VectorsError: a file cannot be read.
    """
    tokenizer = FASTTokenizer.from_directory(directory)
    try:
        entries = json.loads(vectors.read_text(encoding="utf-8"))["vectors"]
        records = [
            (
                f"{entry['source']} {entry['start']}",
                np.array(entry["chunk"]),
                entry["tokens"],
                np.array(entry["decoded"]),
            )
            for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VectorsError(f"{vectors}: cannot be read as vectors ({error!r})") from error
    if not records:
        raise VectorsError(f"{vectors}: has no vectors")
    return [_compare(tokenizer, *record) for record in records]


def _compare(
    tokenizer: FASTTokenizer, name: str, chunk: np.ndarray, tokens: list[int], decoded: np.ndarray
) -> Comparison:
    """A chunk or tokens that are refused differ as much as can be: these are known to be good."""
    try:
        equal = tokenizer.encode(chunk) == tokens
    except FASTEncodeError:
        equal = False
    try:
        found = tokenizer.decode(tokens, horizon=len(chunk), action_dim=chunk.shape[-1])
        difference = float(np.abs(found - decoded).max())
    except (FASTDecodeError, ValueError):
        difference = float("inf")
    return Comparison(name, len(tokens), equal, difference)


def main(arguments: list[str] | None = None) -> int:
    """Prints the comparison; the exit status is in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m ki_ros.model.fast", description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path, help="processor_config.json and tokenizer.json of FAST+")
    parser.add_argument("vectors", type=Path, help="recorded chunks, tokens and decoded chunks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the comparison there")
    options = parser.parse_args(arguments)
    try:
        comparisons = compare(options.directory, options.vectors)
    except (FASTTokenizerError, VectorsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    equal = sum(comparison.tokens_equal for comparison in comparisons)
    largest = max(comparison.difference for comparison in comparisons)
    passed = all(comparison.passed for comparison in comparisons)

    table = Table(title=f"FAST tokens and decoded chunks against {options.vectors}")
    table.add_column("vector")
    table.add_column("tokens", justify="right")
    table.add_column("equal")
    table.add_column("difference", justify="right")
    table.add_column(f"limit {TOLERANCE:g}")
    for comparison in comparisons:
        table.add_row(
            comparison.name,
            str(comparison.tokens),
            "yes" if comparison.tokens_equal else "[red]no[/red]",
            f"{comparison.difference:.2e}",
            "ok" if comparison.difference <= TOLERANCE else "[red]over[/red]",
        )
    console = Console()
    console.print(table)
    console.print(f"tokens equal on {equal} of {len(comparisons)} vectors; largest difference {largest:.2e}")
    if options.json:
        report = {
            "passed": passed,
            "tolerance": TOLERANCE,
            "tokens_equal": equal,
            "largest_difference": largest,
            "vectors": [asdict(comparison) for comparison in comparisons],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
