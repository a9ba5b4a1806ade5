"""The policy network and what surrounds it on the way in and out. Torch and numpy only; knows no ROS."""
