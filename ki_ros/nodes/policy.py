"""The policy node: newest observation in, action chunk out, one inference thread.

A managed (lifecycle) node: configure loads the model, activate starts inference, deactivate stops it, cleanup frees the
model. With `autostart` it configures and activates itself, and ends with an error if it cannot.

Its training mode fine-tunes on recordings in a process beside it, in any state of the node (`ki_ros.nodes.training`). A
run changes nothing of what acts: that does `load_checkpoint`, when somebody asks for it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.serialization import deserialize_message

from ki_ros import msg, srv
from ki_ros.chunk import ActionChunk
from ki_ros.nodes import diagnostics, stamps, topics
from ki_ros.nodes.agreement import Agreement, within
from ki_ros.nodes.executor_watch import ExecutorWatch
from ki_ros.nodes.lifecycle import refuse_absent_transitions
from ki_ros.nodes.parameters import declare, parameter
from ki_ros.nodes.run import run
from ki_ros.nodes.training import Training, TrainingParameters
from ki_ros.rig import CONTROL_HZ, ActionSpace, CameraRole

if TYPE_CHECKING:
    from ki_ros.policy import Policy


@dataclass
class Parameters:
    """Parameters of the policy node."""

    training: TrainingParameters
    preset: str = parameter("", "Model preset; names the architecture when no checkpoint does. See ki_ros.model.config")
    checkpoint: str = parameter("", "Checkpoint: a safetensors file or a directory; empty for untrained weights")
    norm_stats: str = parameter("", "norm_stats.json; empty: the one beside the checkpoint, or the preset's own")
    tokenizer: str = parameter("", "sentencepiece model of the prompt; empty: the checkpoint's or the preset's own")
    action_space: str = parameter(
        "",
        "Meaning of the actions, for checkpoints that do not say",
        choices=["", *(space.value for space in ActionSpace)],
    )
    allow_untrained: bool = parameter(False, "Accept a preset without a checkpoint; its actions are random")
    base_camera: str = parameter(
        "exterior_1", "Exterior camera that the policy sees", choices=["exterior_1", "exterior_2"]
    )
    device: str = parameter("cpu", "torch device: cpu, cuda, cuda:1, ...")
    dtype: str = parameter("float32", "Compute type", choices=["float32", "bfloat16"])
    threads: int = parameter(0, "CPU threads of torch; 0: torch decides", low=0, high=256)
    engine: str = parameter(
        "auto",
        "How inferences are computed; auto: fused on a CPU, graph on a GPU. docs/performance.md",
        choices=["auto", "reference", "fused", "compiled", "graph"],
    )
    num_steps: int = parameter(10, "Euler steps of flow matching", low=1, high=100)
    seed: int = parameter(-1, "Seed of the sampling noise; -1: another one each start", low=-1, high=2**31 - 1)
    autostart: bool = parameter(False, "Configure and activate at start, without a lifecycle manager")


class PolicyNode(LifecycleNode):
    """See the module's docstring.

    Threads: callbacks of the executor only store the newest observation and the epoch; the inference thread decodes,
    infers and publishes. Both meet in `_mailbox`, which is also held to publish a chunk and to replace the policy: once
    another policy is in its place, no chunk of the one before leaves the node.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("policy", **kwargs)
        refuse_absent_transitions(self)
        self.parameters = declare(self, Parameters)
        self._mailbox = threading.Condition()
        self._newest: bytes | None = None
        self._epoch = 0
        self._running = False
        self._thread: threading.Thread | None = None
        self._policy: Policy | None = None
        self._loaded_in_place = ""
        self._counts: Counter[str] = Counter()
        self._last_error = ""
        self._reported: Counter[str] = Counter()
        self._description = ""
        self._inference_ms: deque[float] = deque(maxlen=300)
        self._engine_ms: deque[float] = deque(maxlen=300)
        self._node_ms: deque[float] = deque(maxlen=300)
        self._publisher = self.create_publisher(msg.ActionChunk, topics.ACTION_CHUNK, topics.NEWEST_QOS)
        self.create_subscription(msg.Epoch, topics.EPOCH, self._on_epoch, topics.LATCHED_QOS)
        self.create_subscription(msg.Observation, topics.OBSERVATION, self._on_observation, topics.NEWEST_QOS, raw=True)
        self._executor_watch = ExecutorWatch(self)
        self._agreement = Agreement()
        self.create_service(srv.LoadCheckpoint, topics.LOAD_CHECKPOINT, self._on_load_checkpoint)
        self._training = Training(self, self.parameters.training)
        self._diagnostics = diagnostics.Diagnostics(self, {"policy": self._report, "training": self._training.report})
        self._training.start_from_parameters()
        if self.parameters.autostart:
            self._autostart()

    def _autostart(self) -> None:
        for transition in (self.trigger_configure, self.trigger_activate):
            if transition() is not TransitionCallbackReturn.SUCCESS:
                raise RuntimeError(self._last_error or "the node could not be started")

    # -- lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Loads the model: of the parameters, or of the checkpoint that was loaded in place last."""
        started = time.monotonic()
        try:
            policy = self._load(self._loaded_in_place)
        except (ValueError, OSError, RuntimeError) as error:
            self._last_error = f"{type(error).__name__}: {error}"
            self.get_logger().error(f"the policy cannot be loaded: {self._last_error}")
            return TransitionCallbackReturn.FAILURE
        self._policy = policy
        self._description = self._describe(self._loaded_in_place)
        self.get_logger().info(f"loaded {self._description} in {time.monotonic() - started:.1f} s")
        return super().on_configure(state)

    def _load(self, checkpoint: str) -> Policy:
        """A policy that has run once, so that the first observation does not pay for what happens only once.

        Args:
            checkpoint: to load with nothing but what comes with it; empty for what the parameters say.

        Raises:
            ValueError, OSError, RuntimeError: as `Policy.load` and `Policy.warm_up`.
        """
        # Imported here: torch takes seconds, in which a wrong parameter would go unnoticed.
        from ki_ros.policy import Policy, PolicyError

        values = self.parameters
        if checkpoint:
            source: dict[str, Any] = {"checkpoint": checkpoint}
        elif values.checkpoint or values.allow_untrained:
            source = {
                name: getattr(values, name) or None
                for name in ("preset", "checkpoint", "norm_stats", "tokenizer", "action_space")
            }
        else:
            raise PolicyError(
                "checkpoint is empty: untrained weights move the arm at random. Give a checkpoint, "
                "or set allow_untrained in simulation"
            )
        policy = Policy.load(
            **source,
            base_view=CameraRole(values.base_camera),
            threads=values.threads or None,
            device=values.device,
            dtype=values.dtype,
            num_steps=values.num_steps,
            engine=values.engine,
            seed=None if values.seed < 0 else values.seed,
        )
        policy.warm_up()
        return policy

    def _describe(self, checkpoint: str) -> str:
        values = self.parameters
        name = checkpoint or values.checkpoint or f"{values.preset} (untrained)"
        engine = "" if self._policy is None else f", engine {self._policy.engine.name}"
        return f"{name} on {values.device} in {values.dtype}{engine}"

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Starts the inference thread."""
        with self._mailbox:
            self._running = True
            self._newest = None
        self._thread = threading.Thread(target=self._infer_forever, name="inference", daemon=True)
        self._thread.start()
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops the inference thread; a chunk that is being computed is not published."""
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Frees the model."""
        self._policy = None
        return super().on_cleanup(state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stops inference and frees the model."""
        self._stop()
        self._policy = None
        return super().on_shutdown(state)

    def destroy_node(self) -> None:
        """Stops the inference thread before the node's publisher goes, and a training."""
        self._stop()
        self._training.close()
        super().destroy_node()

    def _stop(self) -> None:
        with self._mailbox:
            self._running = False
            self._mailbox.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    # -- another checkpoint

    def _on_load_checkpoint(
        self, request: srv.LoadCheckpoint.Request, response: srv.LoadCheckpoint.Response
    ) -> srv.LoadCheckpoint.Response:
        # It keeps this thread for as long as loading takes. Nobody acts meanwhile: the executor is disabled.
        try:
            response.message = self._replace_policy(request.checkpoint.strip())
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            kept = f"; {self._description} goes on" if self._policy is not None else ""
            response.message = f"not loaded: {error or type(error).__name__}{kept}"
            self.get_logger().error(response.message)
        else:
            response.success = True
            self.get_logger().info(response.message)
        return response

    def _replace_policy(self, checkpoint: str) -> str:
        """Puts a checkpoint in the place of the one in use. Returns what was done; errors have changed nothing."""
        current = self._policy
        if current is None:
            raise ValueError(
                "no policy is loaded whose place it could take; configure this node first (ros2 lifecycle set), or "
                "start it with the checkpoint"
            )
        # As text: package://ki_ros/... is no path yet.
        checkpoint = checkpoint or str(self._training.checkpoint or "")
        if not checkpoint:
            raise ValueError("checkpoint is empty, and this node has trained none; give the path of one")
        self._require_no_motion()
        started = time.monotonic()
        # Both are in memory for a while: if there is no room for two, the one in use goes on.
        policy = self._load(checkpoint)
        policy.require_can_replace(current)
        # It may have been enabled while the checkpoint was being loaded.
        self._require_no_motion()
        with self._mailbox:
            self._policy = policy
            self._loaded_in_place = checkpoint
            self._description = self._describe(checkpoint)
            # What was seen before is not for the new one to answer.
            self._newest = None
            self._counts["loaded_in_place"] += 1
        return f"loaded {self._description} in {time.monotonic() - started:.1f} s"

    def _require_no_motion(self) -> None:
        if (objection := self._executor_watch.objection()) is not None:
            raise ValueError(objection)

    # -- messages

    def _on_epoch(self, message: msg.Epoch) -> None:
        # A recording that is played back brings those of its time.
        if message.id < self._epoch:
            self.get_logger().warning(
                f"epoch {message.id} is older than the present one, {self._epoch}, and ignored; "
                "make sure that one executor runs; if its machine's clock was set back, start this node again"
            )
            return
        with self._mailbox:
            self._epoch = message.id

    def _on_observation(self, serialised: bytes) -> None:
        with self._mailbox:
            if not self._running:
                return
            self._counts["observations"] += 1
            if self._newest is not None:
                self._counts["observations_superseded"] += 1
            self._newest = serialised
            self._mailbox.notify()

    # -- inference thread

    def _infer_forever(self) -> None:
        while True:
            with self._mailbox:
                self._mailbox.wait_for(lambda: self._newest is not None or not self._running)
                if not self._running:
                    return
                serialised, self._newest = self._newest, None
                policy = self._policy
            try:
                self._infer(policy, serialised)
            except ValueError as error:
                # What the policy or the chunk refuses by name.
                self._fail("refused", str(error))
            except Exception as error:
                # Whatever it is (no memory left on the GPU, say), the arm holds for want of chunks, and it is said.
                self._fail("failed", f"{type(error).__name__}: {error}")

    def _fail(self, kind: str, text: str) -> None:
        self._counts[kind] += 1
        self._last_error = text
        self.get_logger().error(f"no chunk: {text}", throttle_duration_sec=1.0)

    def _infer(self, policy: Policy, serialised: bytes) -> None:
        started = time.monotonic()
        observation = deserialize_message(serialised, msg.Observation)
        if not observation.epoch:
            self._counts["without_instruction"] += 1
            return
        if observation.epoch != self._epoch:
            self._counts["other_epoch"] += 1
            return
        stamp = stamps.from_message(observation.header.stamp)
        status = self._executor_watch.newest()
        commitment = self._agreement.commitment(stamp, observation.epoch, status)
        trained = commitment is not None and status.schedule == "rtc_trained"
        if trained and commitment.rows > policy.config.committed_rows:
            self._counts["committed_rows_beyond_training"] += 1
            commitment = within(commitment, policy.config.committed_rows)
        actions = policy.infer(
            {
                CameraRole(view.header.frame_id): np.frombuffer(view.data, np.uint8).reshape(view.height, view.width, 3)
                for view in observation.views
            },
            np.asarray(observation.state),
            observation.instruction,
            commitment,
            trained=trained,
        )
        elapsed = time.monotonic() - started
        chunk = ActionChunk(
            stamp=stamp,
            observation_sequence=observation.sequence,
            epoch=observation.epoch,
            action_space=policy.config.action_space,
            dt=1.0 / CONTROL_HZ,
            actions=actions,
            inference_time=elapsed,
        )
        message = _to_message(chunk)
        with self._mailbox:
            if not self._running or self._epoch != chunk.epoch:
                self._counts["other_epoch"] += 1
                return
            if self._policy is not policy:
                self._counts["other_policy"] += 1
                return
            self._publisher.publish(message)
        published = time.monotonic() - started
        self._agreement.sent(chunk, self._executor_watch.now())
        self._counts["chunks"] += 1
        self._counts["agreeing"] += commitment is not None
        self._inference_ms.append(elapsed * 1e3)
        self._engine_ms.append(policy.engine_seconds * 1e3)
        self._node_ms.append((published - policy.engine_seconds) * 1e3)

    # -- diagnostics

    def _report(self) -> diagnostics.Report:
        counts = Counter({name: self._counts[name] for name in _COUNTS})
        new, self._reported = counts - self._reported, counts
        values: dict[str, Any] = dict(counts)
        if self._policy is not None:
            values["policy"] = self._description
        # All that an inference takes; what of it is the engine's; and what the node adds until the chunk is sent.
        for name, kept in (("inference", self._inference_ms), ("engine", self._engine_ms), ("node", self._node_ms)):
            if times := list(kept):
                values[f"{name}_ms_p50"], values[f"{name}_ms_p99"] = map(float, np.percentile(times, (50, 99)))
        if (delay := self._agreement.delay) is not None:
            values["delay_ms"] = delay * 1e3
        if self._last_error:
            values["last_error"] = self._last_error
        return diagnostics.Report(*self._judgement(new), values)

    def _judgement(self, new: Counter[str]) -> tuple[bytes, str]:
        """Level and sentence, of what has been counted since the last report."""
        if self._thread is None:
            return diagnostics.WARN, "not active"
        if errors := new["refused"] + new["failed"]:
            return diagnostics.ERROR, f"{errors} observations gave no chunk: {self._last_error}"
        if beyond := new["committed_rows_beyond_training"]:
            return diagnostics.WARN, (
                f"{beyond} chunks came {self._agreement.delay:.2f} s after their observation: the arm was "
                f"committed to more rows than the {self._policy.config.committed_rows} that the model was trained to "
                "go on from (committed_rows), and may jump; use the schedule rtc, or make inference faster"
            )
        if not self._epoch:
            return diagnostics.WARN, "waiting for an instruction: call set_instruction"
        if new["chunks"]:
            return diagnostics.OK, "inferring"
        if new["other_epoch"] or new["without_instruction"]:
            return diagnostics.WARN, f"no observation answers the instruction in force, of epoch {self._epoch}"
        if not new["observations"]:
            return diagnostics.WARN, "no observation comes; the observation node says why"
        return diagnostics.OK, "inferring"


_COUNTS = (
    *("observations", "chunks", "refused", "failed", "without_instruction", "other_epoch", "other_policy"),
    *("observations_superseded", "loaded_in_place", "agreeing", "committed_rows_beyond_training"),
)


def _to_message(chunk: ActionChunk) -> msg.ActionChunk:
    message = msg.ActionChunk(
        observation_sequence=chunk.observation_sequence,
        epoch=chunk.epoch,
        action_space=chunk.action_space.value,
        dt=chunk.dt,
        horizon=chunk.horizon,
        action_dim=chunk.actions.shape[1],
        actions=chunk.actions.astype(np.float32).ravel().tolist(),
        inference_time=chunk.inference_time,
    )
    message.header.stamp = stamps.to_message(chunk.stamp)
    return message


def main() -> None:
    """Entry point of the node."""
    run(PolicyNode)


if __name__ == "__main__":
    main()
