"""The parts that our own programs share: options, run folder, environment."""
