"""Backward passes that are wrong on purpose: a test that does not notice them compares nothing.

Some of torch's paths ignore a custom backward in silence (`torch.compile` of `torch.func.grad`, `torch.export`); there
a comparison with `torch.nn` would pass whatever our backward did.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map_only

from manual_backprop import functions

FORMS = [forms for forms in vars(functions).values() if isinstance(forms, functions.TwoForms)]
_IN_THE_ENVIRONMENT = "MANUAL_BACKPROP_TESTS_CANARY"


@contextlib.contextmanager
def wrong_backward() -> Iterator[None]:
    """Every gradient and tangent of our Functions has the wrong sign and size, here and in the processes started here.

    Wrong in sign too, because an optimizer such as Adam takes the same step from a gradient of another size.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_IN_THE_ENVIRONMENT, "1")
        for forms in FORMS:
            for function in (forms.full, forms.plain):
                patch.setattr(function, "backward", staticmethod(_wrong(function.backward)))
            patch.setattr(forms.full, "jvp", staticmethod(_wrong(forms.full.jvp)))
        network = functions.NetworkCostFunction
        patch.setattr(network, "backward", staticmethod(_wrong(network.backward)))
        torch._dynamo.reset()  # What was compiled before is right.
        yield
    torch._dynamo.reset()


def as_in_parent() -> contextlib.AbstractContextManager:
    """For the first line of a worker process: wrong if its parent is inside of `wrong_backward`."""
    return wrong_backward() if _IN_THE_ENVIRONMENT in os.environ else contextlib.nullcontext()


def _wrong(right: Callable) -> Callable:
    def wrong(*arguments: Any) -> Any:
        return tree_map_only(torch.Tensor, lambda gradient: -0.7 * gradient, right(*arguments))

    return wrong
