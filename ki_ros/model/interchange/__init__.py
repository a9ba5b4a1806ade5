"""Checkpoints to and from openpi's PyTorch layout and LeRobot's pi05 layout."""

from ki_ros.model.interchange.convert import export_checkpoint, import_checkpoint
from ki_ros.model.interchange.errors import InterchangeError
from ki_ros.model.interchange.report import Report

__all__ = ["InterchangeError", "Report", "export_checkpoint", "import_checkpoint"]
