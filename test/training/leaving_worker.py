"""Two processes, the second of which is done later than the first, or fails; each writes a file on how it was."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from ki_ros.training.distributed import world


def main() -> None:
    torch.set_num_threads(1)
    directory, fails = Path(sys.argv[1]), len(sys.argv) > 2
    leaving, left = directory / "leaving", directory / "left"
    said = ""
    rank = None
    try:
        with world("cpu") as processes:
            rank = processes.rank
            assert processes.sum([1.0]) == [2.0]
            if rank == 0:
                leaving.touch()
            else:
                while not leaving.exists():
                    time.sleep(0.001)
                if fails:
                    raise KeyError
                # Long enough for one to leave who would.
                deadline = time.monotonic() + 1.0
                while not left.exists() and time.monotonic() < deadline:
                    time.sleep(0.001)
                said = "it has left" if left.exists() else "it is there"
        if rank == 0:
            left.touch()
    except (RuntimeError, KeyError) as error:
        said = type(error).__name__
    (directory / str(rank)).write_text(said)


if __name__ == "__main__":
    main()
