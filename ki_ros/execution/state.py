"""The executor's states, and the names of every reason for which it does not move the arm."""

from __future__ import annotations

import enum


class State(enum.IntEnum):
    """The numbers are those of ExecutorStatus.msg."""

    DISABLED = 0
    """No command leaves the node."""

    HOLDING = 1
    """The arm is brought to rest, and then the last command is repeated: it stays where it is. After a pause of the
    executor nothing is sent until the arm is known to rest."""

    EXECUTING = 2
    """An action chunk is being executed."""


class Reason(str, enum.Enum):
    """Why the executor is not executing. The value is what ExecutorStatus.reason says."""

    NONE = ""
    """It is executing."""

    DISABLED = "disabled"
    """Nobody has enabled it, or somebody has disabled it. Ends with a successful enable."""

    AWAITING_JOINT_STATE = "awaiting_joint_state"
    """Disabled; it enables itself with the first joint state that allows it (enabled_at_start)."""

    TRACKING_LOST = "tracking_lost"
    """Disabled by itself: the arm is far from where it was commanded. Ends with a successful enable, never by itself:
    sending the old command again could make the arm jump to it."""

    STOPPED = "stopped"
    """The operator has stopped it. Ends with a reset, and then an enable."""

    NOT_ALONE = "not_alone"
    """Another node would move the arm too: stopped, as by the operator, and then disabled."""

    NO_CONTROLLER = "no_controller"
    """Nobody takes the arm's commands: stopped, as by the operator, and then disabled."""

    CONTACT = "contact"
    """A joint's effort was above the limit: stopped, as by the operator."""

    HOLD_TO_RUN = "hold_to_run"
    """The operator does not hold the button. Ends when it is held, and then with a good chunk."""

    NO_INSTRUCTION = "no_instruction"
    """No instruction has been given. Ends with one, and a chunk that answers it."""

    WAITING_FOR_CHUNK = "waiting_for_chunk"
    """No chunk has come since the instruction, the enabling or the last fault. Ends with a good one."""

    STALE_CHUNK = "stale_chunk"
    """Chunks have stopped coming, or are too old when they come. Ends with a good one."""

    WAITING_FOR_COMMAND = "waiting_for_command"
    """Teleoperation: no command has come. Ends with one."""

    STALE_COMMAND = "stale_command"
    """Teleoperation: commands have stopped coming. Ends with one that is close to the arm."""

    START_POSE = "start_pose"
    """Teleoperation: the command is too far from the arm to begin. Ends when it is close."""

    CHUNK_EXHAUSTED = "chunk_exhausted"
    """The rows of the chunk that may be executed open loop are used up. Ends with a good one."""

    NON_FINITE = "non_finite"
    """The policy sent NaN or infinity. Ends with a good chunk."""

    INVALID_CHUNK = "invalid_chunk"
    """The policy sent a chunk of a wrong shape or with an unknown action space. Ends with a good one."""

    GUARD_REFUSAL = "guard_refusal"
    """A row asked for a position too far from the arm's to be meant. Ends with a good chunk."""

    OBSERVATION_REFUSED = "observation_refused"
    """There was no observation, for want of a camera say. Ends with a good chunk from an observation after that."""

    STALE_JOINT_STATE = "stale_joint_state"
    """Joint states have stopped coming, or carry impossible stamps. Ends with a joint state and then a good chunk."""

    AWAITING_REST = "awaiting_rest"
    """Commands have paused, and by the joint states from after that the arm still moves. Nothing is sent. Ends when it
    stands still, and then with a good chunk."""


class ChunkRefusal(str, enum.Enum):
    """Why a chunk was not taken."""

    NON_FINITE = "non_finite"
    INVALID = "invalid_chunk"
    WRONG_EPOCH = "wrong_epoch"
    STALE = "stale_chunk"
    FUTURE = "future_stamp"
    OUT_OF_ORDER = "out_of_order"


class Intervention(str, enum.Enum):
    """What the guard changed about a wanted command."""

    NON_FINITE = "non_finite"
    POSITION_LIMITED = "position_limited"
    TRACKING_LIMITED = "tracking_limited"
    VELOCITY_LIMITED = "velocity_limited"
    ACCELERATION_LIMITED = "acceleration_limited"
    WORKSPACE_LIMITED = "workspace_limited"
    SELF_COLLISION_LIMITED = "self_collision_limited"
