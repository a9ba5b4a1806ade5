"""Recordings in rosbag2's formats, written and read without ROS."""
