"""What our own programs share: options, run folder, environment."""
