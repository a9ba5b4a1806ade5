"""Work that is spread over processes: what is said where it fails, and that it ends with the process that spread it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console

from ki_ros.commands.workers import spread

SCRIPT = """
import os, sys, time
from pathlib import Path
from rich.console import Console
from ki_ros.commands.workers import spread

def make():
    return None

def work(_state, directory):
    Path(directory, str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    for _ in spread(make, work, [sys.argv[1]] * 2, workers=2, title="waiting", console=Console(stderr=True)):
        pass
"""

# Its processes wait while they import it, and again at each piece of work.
INTERRUPTED = """
import os, sys, time
from pathlib import Path

directory = Path(sys.argv[1])

def make():
    return None

def arrive(place):
    Path(directory, f"{place}_{os.getpid()}").touch()
    while not Path(directory, place).exists():
        time.sleep(0.05)

def work(_state, _item):
    arrive("working")

if __name__ == "__main__":
    from rich.console import Console
    from ki_ros.commands.workers import spread

    try:
        for _ in spread(make, work, range(4), workers=2, title="waiting", console=Console(stderr=True)):
            pass
    except KeyboardInterrupt:
        sys.exit(130)
else:
    arrive("importing")
"""
PATIENCE = 60.0


def wait(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def running(pid: int) -> bool:
    """A process that has ended and is not waited for by anybody counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_of_a_process_that_is_killed_end(tmp_path: Path) -> None:
    script, started = tmp_path / "script.py", tmp_path / "started"
    script.write_text(SCRIPT)
    started.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(started)], stderr=subprocess.DEVNULL)
    try:
        wait(lambda: len(os.listdir(started)) == 2)
        workers = [int(name) for name in os.listdir(started)]
        assert all(running(pid) for pid in workers)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        wait(lambda: not any(running(pid) for pid in workers))
    finally:
        parent.kill()


@pytest.fixture
def interrupted(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """The script, as a group of processes of its own, as a terminal has it; what it says is in `said`."""
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)
    with open(tmp_path / "said", "wb") as said:
        process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], stderr=said, start_new_session=True)
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def arrived(directory: Path, place: str) -> int:
    return len(list(directory.glob(f"{place}_*")))


def test_an_interrupt_while_processes_start_begins_no_work_and_shows_no_traceback(interrupted, tmp_path: Path) -> None:
    wait(lambda: arrived(tmp_path, "importing") == 2)
    os.killpg(interrupted.pid, signal.SIGINT)
    wait(lambda: "stopping" in (tmp_path / "said").read_text())
    (tmp_path / "importing").touch()
    assert interrupted.wait(PATIENCE) == 130
    assert arrived(tmp_path, "working") == 0
    assert "Traceback" not in (tmp_path / "said").read_text()


def test_an_interrupt_lets_what_has_begun_finish_and_begins_nothing_more(interrupted, tmp_path: Path) -> None:
    (tmp_path / "importing").touch()
    wait(lambda: arrived(tmp_path, "working") == 2)
    os.killpg(interrupted.pid, signal.SIGINT)
    wait(lambda: "stopping" in (tmp_path / "said").read_text())
    assert interrupted.poll() is None
    (tmp_path / "working").touch()
    assert interrupted.wait(PATIENCE) == 130
    assert arrived(tmp_path, "working") == 2


def test_a_second_interrupt_ends_the_work(interrupted, tmp_path: Path) -> None:
    (tmp_path / "importing").touch()
    wait(lambda: arrived(tmp_path, "working") == 2)
    os.killpg(interrupted.pid, signal.SIGINT)
    wait(lambda: "stopping" in (tmp_path / "said").read_text())
    os.killpg(interrupted.pid, signal.SIGINT)
    assert interrupted.wait(PATIENCE) == 130
    assert not any(running(int(path.name.split("_")[1])) for path in tmp_path.glob("working_*"))
    assert "Traceback" not in (tmp_path / "said").read_text()


def refuse() -> None:
    raise ValueError("colour is 'mauve'; use red")


def nothing(_state: None, item: int) -> int:
    return item


def test_what_is_wrong_with_a_process_is_said(capfd) -> None:
    with pytest.raises(ValueError, match=r"^colour is 'mauve'; use red$"):
        list(spread(refuse, nothing, range(5), workers=2, title="", console=Console(quiet=True)))
    assert "Traceback" not in capfd.readouterr().err


def test_a_number_of_processes_that_there_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="workers is -1; give at least 1"):
        list(spread(int, nothing, range(5), workers=-1, title="", console=Console(quiet=True)))
