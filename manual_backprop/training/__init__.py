"""The MNIST run: needs the extra `train`."""
