"""Training of a KI policy. Knows torch and the model, and neither ROS nor where samples come from."""
