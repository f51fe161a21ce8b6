"""The command line: `manual-backprop`."""
