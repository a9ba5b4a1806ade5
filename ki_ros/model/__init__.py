"""The policy network: pi0.5 with knowledge insulation. Knows torch, and no ROS."""

from ki_ros.model.config import ExpertConfig, KIConfig, LanguageConfig, VisionConfig
from ki_ros.model.model import KIModel
from ki_ros.model.observation import Observation

__all__ = ["ExpertConfig", "KIConfig", "KIModel", "LanguageConfig", "Observation", "VisionConfig"]
