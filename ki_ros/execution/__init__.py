"""From action chunks to commands that an arm may be given: schedule, guard, supervision, controller adapters.

Nothing in here knows ROS, and nothing reads a clock: every method that depends on time takes `now_ns`, so a test can be
the clock. The parts, in the order in which a command passes them:

    schedule    which row of which chunk is in force at a time, and the path to its target
    guard       what of a wanted command the arm may be given
    executor    the state machine around both: enabled, holding, executing, and why
    adapter     a command as a controller wants it
    velocity    the same for a controller that takes velocities alone
"""
