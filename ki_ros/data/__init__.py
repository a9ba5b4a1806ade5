"""Samples to train on: recorded episodes, their statistics, and a made-up task. Knows no ROS."""
