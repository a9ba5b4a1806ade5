"""The trainer as a process of its own, for a program that goes on with something else, such as serving an arm.

A crash, the memory and the interpreter lock of a training stay out of the program that started it. What the process
says of itself is read from its status file, and from its exit status.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ki_ros.share import locate
from ki_ros.training.config import TrainConfigError, load
from ki_ros.training.state import checkpoints
from ki_ros.training.status import Phase, RunStatus, StatusError, read_status
from ki_ros.variables import DIE_WITH_PARENT

STATUS_FILE = "status.json"
LOG_FILE = "train.log"

_EXIT = {Phase.DONE: 0, Phase.STOPPED: 130, Phase.FAILED: 1}
"""Exit status of `ki-ros train` by how it ended."""


@dataclass(frozen=True)
class TrainingRequest:
    """What to train.

    Attributes:
        bags: directory of the demonstrations.
        config: of the run, as YAML.
        output: directory of the run; None for that of `config`.
        checkpoint: to start from; None for that of `config`.
        overrides: fields to set on top, such as "steps=500".
        resume: go on from the newest checkpoint in the output.
    """

    bags: Path
    config: Path
    output: Path | None = None
    checkpoint: str | None = None
    overrides: tuple[str, ...] = ()
    resume: bool = False


class TrainingProcess:
    """One run of `ki-ros train`. It ends when this process does, after saving. For one thread.

    Args:
        request: what to train.
        niceness: 0 to 19; how much the run gives way to other processes on the CPU.

    Attributes:
        output: directory of the run, absolute; its log is `train.log` there.

    Raises:
        ValueError: a request that cannot be run; nothing was started.
        OSError: the output cannot be written.
    """

    def __init__(self, request: TrainingRequest, niceness: int = 0) -> None:
        bags = request.bags.absolute()
        if not bags.is_dir():
            raise TrainConfigError(f"bags is {bags}, which is no directory; give the directory of the recordings")
        overrides = list(request.overrides)
        if request.checkpoint is not None:
            overrides.insert(0, f"model.init={_located(request.checkpoint)}")
        if request.output is not None:
            overrides.append(f"output={request.output.absolute()}")
        self.output = load(request.config, overrides, bags=bags).output.absolute()
        if checkpoints(self.output) and not request.resume:
            raise TrainConfigError(
                f"output {self.output} holds the checkpoints of a run; set resume to go on with it, or give another"
            )
        self.output.mkdir(parents=True, exist_ok=True)
        self._status_file = self.output / STATUS_FILE
        self._status_file.unlink(missing_ok=True)
        self._stops = 0
        self._popen = self._start(_command(request, bags, overrides, self._status_file), niceness)

    def _start(self, command: Sequence[str], niceness: int) -> subprocess.Popen[bytes]:
        # By its number a process knows whether its parent ended before it began to watch.
        environment = os.environ | {DIE_WITH_PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        with open(self.output / LOG_FILE, "ab") as log:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C in a terminal reaches the program that started it, which decides.
                start_new_session=True,
            )
        with contextlib.suppress(ProcessLookupError):
            # Threads and processes that it will start inherit it.
            os.setpriority(os.PRIO_PROCESS, popen.pid, niceness)
        return popen

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._popen.pid

    def look(self) -> RunStatus:
        """Where the run is. Its phase is one of the last three once the process is gone, and not before."""
        # In this order: what a process that is gone has written is complete.
        exit_status = self._popen.poll()
        try:
            status = read_status(self._status_file)
        except FileNotFoundError:
            status = RunStatus(message="starting")
        except (StatusError, OSError) as error:
            status = RunStatus(message=str(error))
        if exit_status is None:
            return replace(status, phase=Phase.TRAINING) if status.phase.over else status
        if status.phase.over and exit_status == _EXIT[status.phase]:
            return status
        if self._stops and exit_status in (-signal.SIGTERM, -signal.SIGKILL, 130):
            how = "was killed on request" if exit_status == -signal.SIGKILL else "was stopped before it could save"
            return replace(status, phase=Phase.STOPPED, message=f"the trainer {how}; {self._remedy(status)}")
        return replace(
            status, phase=Phase.FAILED, message=f"the trainer {_ending(exit_status)}; {self._remedy(status)}"
        )

    def _remedy(self, status: RunStatus) -> str:
        kept = f"{status.checkpoint} is whole: start again with resume" if status.checkpoint else "nothing was saved"
        return f"{kept}. Its log is {self.output / LOG_FILE}"

    def stop(self) -> None:
        """Asks the run to save and end; the second time, ends it at once."""
        self._stops += 1
        if self._stops == 1:
            self._popen.terminate()
        else:
            self._popen.kill()

    def close(self, seconds: float) -> None:
        """Asks the run to save and end, and waits for so long [s]; one that takes longer goes on until it has saved."""
        if self._popen.poll() is None:
            self._popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(seconds)


def _command(request: TrainingRequest, bags: Path, overrides: Sequence[str], status: Path) -> list[str]:
    command = [sys.executable, "-m", "ki_ros.cli", "train", str(request.config), "--bags", str(bags)]
    command += ["--status", str(status)]
    if overrides:
        command += ["--set", *overrides]
    return [*command, "--resume"] if request.resume else command


def _located(checkpoint: str) -> Path:
    try:
        path = locate(checkpoint).absolute()
    except FileNotFoundError as error:
        raise TrainConfigError(f"checkpoint {checkpoint}: {error}") from error
    if not path.exists():
        raise TrainConfigError(f"checkpoint {path} is not there; give the path of one, or none to start without")
    return path


def _ending(exit_status: int) -> str:
    if exit_status >= 0:
        return f"ended with status {exit_status}"
    memory = " (is the machine's memory full?)" if exit_status == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-exit_status).name}{memory}"
