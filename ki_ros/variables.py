"""Environment variables of this package's own."""

DIE_WITH_PARENT = "KI_ROS_DIE_WITH_PARENT"
"""Set for nodes that must end when the process that started them does."""
