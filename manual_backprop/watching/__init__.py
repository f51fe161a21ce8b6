"""The validator in other programs, which have the samples: the pytest plugin."""
