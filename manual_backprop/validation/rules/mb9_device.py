"""MB903: the gradients on another device."""

import copy
from collections.abc import Iterator

import torch

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.exceptions import Broken, Skipped
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule


@rule("MB903", "Same result on the accelerator?", "1 pass")
def other_device(case: Case) -> Iterator[Finding]:
    """The gradients on the accelerator are those of the CPU.

    On an accelerator, or where the current device is not that of the inputs, the gradient differs or backward crashes,
    because memory or a kernel is asked for on the current device, or in the wrong stream.

    Seen in: linkedin/Liger-Kernel#1303: the kernel is launched on the current GPU, which need not be that of the
    tensors.

    Unseen: It takes an accelerator to fail. The usual mistake is torch.empty(n, device='cuda') in a backward, where
    torch.empty_like(grad_output) takes the device from the tensor.
    """
    if not torch.cuda.is_available() or case.values[0].device.type != "cpu":
        raise Skipped("there is no other device")
    module = case.module
    moved = copy.copy(case)
    moved.leaves = [leaf.cuda() if isinstance(leaf, torch.Tensor) else leaf for leaf in case.leaves]
    moved.module = None if module is None else copy.deepcopy(module).cuda()
    try:
        actual = moved.gradients([v.cuda() for v in case.values], [c if c is None else c.cuda()
                                                                      for c in case.plain.cotangents])  # fmt: skip
    except Broken as broken:
        yield case.fail(
            f"it raises on cuda: {broken.error}",
            cause="a tensor is made without device=",
            fix="make the tensor with new_zeros or zeros_like",
        )
        return
    actual = [None if g is None else g.cpu() for g in actual]
    yield from differing(case, actual, case.plain.gradients, "is different on cuda", "only on cuda")
