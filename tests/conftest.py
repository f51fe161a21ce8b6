"""Every test starts from the same seed, and hypothesis tries the same examples in every run."""

import hypothesis
import torch

hypothesis.settings.register_profile("stable", deadline=None, derandomize=True, database=None, max_examples=50)
hypothesis.settings.load_profile("stable")

torch.set_num_threads(1)  # The tensors are tiny, and pytest-xdist has every core at work already.


def pytest_runtest_setup() -> None:
    torch.manual_seed(0)
