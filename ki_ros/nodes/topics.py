"""Names and quality of service of the graph's own topics and services.

Names of sensor and controller topics are parameters of the nodes that use them: they belong to the rig's drivers.
"""

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

OBSERVATION = "observation"
OBSERVATION_STATUS = "observation_status"
ACTION_CHUNK = "action_chunk"
INSTRUCTION = "instruction"
EPOCH = "epoch"
SET_INSTRUCTION = "set_instruction"
JOINT_COMMAND = "joint_command"
EXECUTOR_STATUS = "executor_status"
ENABLE = "enable"
STOP = "stop"
RESET = "reset"
HOLD_TO_RUN = "hold_to_run"
EPISODE = "episode"
START_EPISODE = "start_episode"
STOP_EPISODE = "stop_episode"
TRAINING_STATUS = "training_status"
START_TRAINING = "start_training"
STOP_TRAINING = "stop_training"
LOAD_CHECKPOINT = "load_checkpoint"

SENSOR_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=5,
    reliability=ReliabilityPolicy.BEST_EFFORT,
    durability=DurabilityPolicy.VOLATILE,
)
"""Camera images and joint states: what is lost is not sent again, the next one is better."""

NEWEST_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.VOLATILE,
)
"""Observations and chunks: only the newest is of use."""

LATCHED_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
"""The instruction, the state of a training: who joins late receives it too."""

EPISODE_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=10,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
"""Beginnings and ends of episodes: latched, and deep enough that an end is not pushed out by the next beginning."""

COMMAND_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=10,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.VOLATILE,
)
"""Commands and the executor's status."""
