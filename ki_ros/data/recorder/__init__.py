"""Recording of episodes, as far as it needs no ROS.

topics   what a recording holds
bag      one episode's bag, written behind a bounded queue
disk     when the disk is too full to go on
arrival  times of arrival on a simulated clock, and what was lost before it arrived
"""
