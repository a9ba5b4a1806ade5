"""Independent pieces of work spread over processes, with a progress bar, given up at Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

from rich.console import Console

from ki_ros.commands.progress import progress_bar
from ki_ros.variables import end_with_parent

T = TypeVar("T")

_state: Any = None
_failure: Exception | None = None


def require_workers(workers: int) -> None:
    """Raises ValueError for a number of processes that there cannot be."""
    if workers < 0:
        raise ValueError(f"workers is {workers}; give at least 1, or 0 for as many as there are processors")


def spread(
    make: Callable[[], Any],
    work: Callable[[Any, Any], T],
    items: Sequence[Any],
    *,
    workers: int,
    title: str,
    console: Console,
    describe: Callable[[T], str] = lambda _: "",
) -> Iterator[T]:
    """Results of `work(state, item)`, as they come. Everything given must be picklable.

    Args:
        make: makes a process's state, once.
        work: does one piece.
        items: the pieces.
        workers: processes; 0 for as many as there are processors.
        title: of the bar.
        console: that it is shown on.
        describe: of the last result, beside the bar.

    Raises:
        ValueError: workers below 0.
        Exception: of `make` or `work`.
    """
    require_workers(workers)
    count = min(workers or os.cpu_count() or 1, max(len(items), 1))
    # Spawned and not forked: a graphics context and threads of torch do not survive a fork.
    pool = ProcessPoolExecutor(
        count, mp_context=multiprocessing.get_context("spawn"), initializer=_initialise, initargs=(make, os.getpid())
    )
    try:
        with progress_bar(title, "{task.fields[last]}", console) as bar:
            task = bar.add_task("", total=len(items), last="")
            for future in as_completed([pool.submit(_work, work, item) for item in items]):
                result = future.result()
                bar.update(task, advance=1, last=describe(result))
                yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _initialise(make: Callable[[], Any], parent: int) -> None:
    # Killed, the parent cannot tell its workers to end.
    end_with_parent(parent)
    # The first process decides what Ctrl-C means; the others finish the piece that they are at.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    global _state, _failure
    try:
        _state = make()
    except Exception as error:
        # Raised here, it would end the process, and all that the others learnt is that one has ended.
        _failure = error


def _work(work: Callable[[Any, Any], T], item: Any) -> T:
    if _failure is not None:
        raise _failure
    return work(_state, item)
