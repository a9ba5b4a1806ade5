"""Independent pieces of work spread over processes, with a progress bar, given up at Ctrl-C."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

from rich.console import Console

from ki_ros.commands.progress import progress_bar
from ki_ros.commands.signals import interrupted_again, interrupts_held
from ki_ros.variables import end_with_parent

T = TypeVar("T")

_state: Any = None
_failure: Exception | None = None
_over: Any = None


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

    At Ctrl-C, and where a piece fails, the pieces that have begun are finished first and no other one is begun; Ctrl-C
    once more ends them.

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
    context = multiprocessing.get_context("spawn")
    # Without a lock, which a process that is ended could keep.
    over = context.RawValue(ctypes.c_bool, False)
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_initialise, initargs=(make, os.getpid(), over))

    def end() -> None:
        for process in list((pool._processes or {}).values()):
            process.terminate()

    with interrupted_again(end):
        try:
            # The first process decides what Ctrl-C means, from before the others can hear of it.
            with interrupts_held():
                futures = [pool.submit(_work, work, item) for item in items]
            with progress_bar(title, "{task.fields[last]}", console) as bar:
                task = bar.add_task("", total=len(items), last="")
                for future in as_completed(futures):
                    result = future.result()
                    bar.update(task, advance=1, last=describe(result))
                    yield result
        except KeyboardInterrupt:
            said = "stopping: what has begun is finished first; Ctrl-C once more does not wait for that"
            console.print(said, soft_wrap=True)
            raise
        finally:
            over.value = True
            pool.shutdown(wait=True, cancel_futures=True)


def _initialise(make: Callable[[], Any], parent: int, over: Any) -> None:
    # Killed, the parent cannot tell its workers to end.
    end_with_parent(parent)
    # Held back so far by what the parent blocks; nothing in this process may let it through again.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    global _state, _failure, _over
    _over = over
    if over.value:
        return
    try:
        _state = make()
    except Exception as error:
        # Raised here, it would end the process, and all that the others learnt is that one has ended.
        _failure = error


def _work(work: Callable[[Any, Any], T], item: Any) -> T:
    # The pool hands out a few pieces in advance, which it cannot take back.
    if _over.value:
        raise CancelledError
    if _failure is not None:
        raise _failure
    return work(_state, item)
