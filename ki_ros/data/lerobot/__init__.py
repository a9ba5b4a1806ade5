"""LeRobot's dataset format v3.0: written of this package's episodes, and read as such. Does not need LeRobot."""

from ki_ros.data.lerobot.errors import LeRobotError
from ki_ros.data.lerobot.export import ExportOptions, ExportProgress, ExportReport, export_dataset
from ki_ros.data.lerobot.mapping import PRESETS, FeatureMap
from ki_ros.data.lerobot.origins import lerobot_origins, lerobot_settings
from ki_ros.data.lerobot.reader import Dataset, LeRobotEpisode

__all__ = [
    "PRESETS",
    "Dataset",
    "ExportOptions",
    "ExportProgress",
    "ExportReport",
    "FeatureMap",
    "LeRobotEpisode",
    "LeRobotError",
    "export_dataset",
    "lerobot_origins",
    "lerobot_settings",
]
