"""The training mode of a node: services that start and stop the trainer beside it, and what is said of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from std_srvs.srv import Trigger

from ki_ros import msg, srv
from ki_ros.nodes import topics
from ki_ros.nodes.diagnostics import ERROR, OK, Report
from ki_ros.nodes.parameters import parameter
from ki_ros.share import find_share
from ki_ros.training.status import Phase, RunStatus

if TYPE_CHECKING:
    from ki_ros.training.process import TrainingProcess

PERIOD = 0.5
"""Time between two looks at the run [s]."""

CLOSE_SECONDS = 3.0
"""How long the node's end waits for the trainer's [s]; less than what starts nodes waits for theirs."""

_State = msg.TrainingStatus
_STATES = {Phase.DONE: _State.DONE, Phase.FAILED: _State.FAILED, Phase.STOPPED: _State.STOPPED}


@dataclass
class TrainingParameters:
    """Parameters of the training mode: what a request leaves open."""

    bags: str = parameter("", "Directory of bags; where it is set, the node fine-tunes on them from its start")
    config: str = parameter("", "Training configuration; empty: config/train/finetune.yaml that ships")
    output: str = parameter("", "Directory of the run; empty: what the configuration says")
    checkpoint: str = parameter("", "Checkpoint to start from; empty: what the configuration says")
    overrides: list[str] = parameter([""], "Fields to set on top of the configuration, such as steps=500")
    resume: bool = parameter(False, "With bags: go on from the newest checkpoint in the output, if there is one")
    niceness: int = parameter(10, "How much the trainer gives way to other processes on the CPU", low=0, high=19)


class Training:
    """One run at a time, as a process beside the node. For the thread that spins the node.

    Args:
        node: that has the services and the topic.
        parameters: of it.
    """

    def __init__(self, node: Node, parameters: TrainingParameters) -> None:
        self._node, self._parameters = node, parameters
        self._process: TrainingProcess | None = None
        self._status: RunStatus | None = None
        self._publisher = node.create_publisher(_State, topics.TRAINING_STATUS, topics.LATCHED_QOS)
        self._services = [
            node.create_service(srv.StartTraining, topics.START_TRAINING, self._on_start),
            node.create_service(Trigger, topics.STOP_TRAINING, self._on_stop),
        ]
        # Simulated time may stand still; the run does not.
        self._timer = node.create_timer(PERIOD, self._look, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._publish()

    def start(self, request: srv.StartTraining.Request) -> Path:
        """Starts a run and returns its output.

        Raises:
            ValueError: a request that cannot be run, or one while a run goes on.
            OSError: the output cannot be written.
            ImportError: what trains is not installed.
        """
        # Imported here: a node that only acts needs none of what trains.
        from ki_ros.training.process import TrainingProcess, TrainingRequest

        p = self._parameters
        self._look()
        if self._running:
            assert self._process is not None
            raise ValueError(
                f"the run in {self._process.output} goes on; wait for its end, or call {topics.STOP_TRAINING} first"
            )
        if not request.bags.strip():
            raise ValueError("bags is empty; give the directory of the recordings")
        config = request.config.strip() or p.config
        output = request.output.strip() or p.output
        self._process = TrainingProcess(
            TrainingRequest(
                bags=Path(request.bags.strip()),
                config=Path(config) if config else find_share("config", "train") / "finetune.yaml",
                output=Path(output) if output else None,
                checkpoint=request.checkpoint.strip() or p.checkpoint or None,
                overrides=tuple(text for text in (*p.overrides, *request.overrides) if text.strip()),
                resume=request.resume,
            ),
            p.niceness,
        )
        self._status = None
        self._node.get_logger().info(f"training on {request.bags}, process {self._process.pid}: {self._process.output}")
        self._look()
        return self._process.output

    def start_from_parameters(self) -> None:
        """Starts the run that the parameters name, if they name one. Raises as `start`."""
        if self._parameters.bags:
            self.start(srv.StartTraining.Request(bags=self._parameters.bags, resume=self._parameters.resume))

    @property
    def checkpoint(self) -> Path | None:
        """The newest one of the last run."""
        self._look()
        return self._status.checkpoint if self._status is not None else None

    def close(self) -> None:
        """Has a run save and end."""
        if self._process is not None:
            self._process.close(CLOSE_SECONDS)

    @property
    def _running(self) -> bool:
        return self._process is not None and (self._status is None or not self._status.phase.over)

    # -- services

    def _on_start(
        self, request: srv.StartTraining.Request, response: srv.StartTraining.Response
    ) -> srv.StartTraining.Response:
        try:
            output = self.start(request)
        except ImportError as error:
            response.message = f"{error}; install what trains: pip install 'ki_ros[data,train]'"
        except (ValueError, OSError) as error:
            response.message = str(error)
        else:
            response.success, response.output = True, str(output)
            response.message = f"started; {topics.TRAINING_STATUS} says how it goes on"
        return response

    def _on_stop(self, _request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._look()
        if not self._running:
            response.message = "no training goes on"
            return response
        assert self._process is not None
        self._process.stop()
        response.success = True
        response.message = (
            f"asked to save and end; {topics.TRAINING_STATUS} says when it has. Called again, it is ended at once"
        )
        return response

    # -- what is said of the run

    def _look(self) -> None:
        """Says what has changed since the last look."""
        if self._process is None or (self._status is not None and self._status.phase.over):
            return
        status = self._process.look()
        if status == self._status:
            return
        self._status = status
        self._publish()
        if status.phase is Phase.FAILED:
            self._node.get_logger().error(f"training failed: {status.message}")
        elif status.phase.over:
            self._node.get_logger().info(f"training is {status.phase.value} at step {status.step}: {status.checkpoint}")

    def _publish(self) -> None:
        message = _State(state=_State.IDLE, message=f"nothing is trained; call {topics.START_TRAINING}")
        status = self._status
        metrics, evaluation = (status.metrics, status.evaluation) if status is not None else ({}, {})
        for name in ("loss", "flow_loss", "fast_loss", "fast_accuracy", "samples_per_second"):
            setattr(message, name, metrics.get(name, math.nan))
        message.held_out_flow_loss = evaluation.get("flow_loss", math.nan)
        message.held_out_fast_loss = evaluation.get("fast_loss", math.nan)
        message.held_out_action_error = evaluation.get("action_error", math.nan)
        message.seconds_left = math.nan
        if status is not None:
            assert self._process is not None
            message.state = _STATES.get(status.phase, _State.RUNNING)
            message.phase = "" if status.phase.over else status.phase.value
            message.step, message.steps = status.step, status.steps
            if status.seconds_left is not None:
                message.seconds_left = status.seconds_left
            message.output = str(self._process.output)
            message.checkpoint = str(status.checkpoint) if status.checkpoint is not None else ""
            message.message = _sentence(status)
        message.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)

    def report(self) -> Report:
        """The same for the node's diagnostics."""
        status = self._status
        if self._process is None or status is None:
            return Report(OK, "nothing is trained")
        values = {"phase": status.phase.value, "step": status.step, "steps": status.steps, **status.metrics}
        values |= {f"held_out_{name}": value for name, value in status.evaluation.items()}
        if status.seconds_left is not None:
            values["seconds_left"] = status.seconds_left
        values["output"] = self._process.output
        values["process"] = self._process.pid
        values["checkpoint"] = status.checkpoint or "none yet"
        return Report(ERROR if status.phase is Phase.FAILED else OK, _sentence(status), values)


def _sentence(status: RunStatus) -> str:
    steps = f"step {status.step} of {status.steps}"
    if status.phase is Phase.TRAINING:
        left = "" if status.seconds_left is None else f", {status.seconds_left:.0f} s left"
        return f"{steps}{left}"
    if status.phase is Phase.DONE:
        return f"done at {steps}; call {topics.LOAD_CHECKPOINT} to act by {status.checkpoint}"
    if status.phase is Phase.STOPPED:
        return f"stopped at {steps}; {status.message or 'it can be resumed'}"
    if status.phase is Phase.FAILED:
        return f"failed at {steps}: {status.message}"
    return f"{status.phase.value}: {status.message}".rstrip(": ")
