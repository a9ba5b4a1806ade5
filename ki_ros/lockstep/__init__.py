"""Simulated episodes in lockstep: rig, executor and policy or scripted operator in one process. No ROS here."""
