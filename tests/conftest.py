import torch

# pytest-xdist runs a process a core: more threads would only wait for each other.
torch.set_num_threads(1)
