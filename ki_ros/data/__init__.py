"""Recorded episodes. Knows no ROS."""
