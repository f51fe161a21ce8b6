"""Where samples come from a running program: the pytest plugin."""
