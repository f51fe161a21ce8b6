"""MB212: forward runs without autograd, and gives the same values."""

from collections.abc import Iterator

import torch

from manual_backprop.validation.case import Case
from manual_backprop.validation.exceptions import Broken
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.tolerances import SAME_RTOL, mismatch

MB212_SKELETON = """
class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ___
        return x**2

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return 2 * x * grad_output


validate(Square, (randn(4, 3),))
"""


@rule("MB212", "Does forward run without autograd?", "2 forwards", skeleton=MB212_SKELETON)
def forward_without_grad(case: Case) -> Iterator[Finding]:
    """forward runs under no_grad and inference_mode, and gives the same values there.

    forward does something else, or crashes, under torch.no_grad or torch.inference_mode: evaluation fails although
    training works.

    Seen in: linkedin/Liger-Kernel#930: UnboundLocalError in forward under no_grad, so that evaluation crashed.

    Wrong:
        ctx.save_for_backward(x)
        ctx.version = x._version  # a tensor of inference mode has no version

    Right:
        ctx.save_for_backward(x)  # save_for_backward notices by itself when x is changed
    """
    nothing = (False,) * len(case.needs)
    for mode, needs in ((torch.no_grad, None), (torch.inference_mode, None), (torch.no_grad, nothing)):
        words = mode.__name__ + (" with inputs that require no grad" if needs else "")
        try:
            with mode():
                outputs = case.run(needs=needs).outputs
        except Broken as broken:
            yield case.fail(
                f"forward raises under {words}: {type(broken.error).__name__}: {broken.error}",
                cause="forward counts on a graph or on inputs that require grad",
                fix="let forward compute the same whether gradients are asked for or not",
            )
            continue
        for number, (a, b) in enumerate(zip(outputs, case.plain.outputs, strict=True)):
            case.compared += 1
            found = mismatch(a, b, SAME_RTOL[case.dtype])
            if found is not None:
                yield case.fail(f"output {number} is different under {words}", output=number, index=found.index,
                           cause="forward branches on requires_grad", fix="compute the same value")  # fmt: skip
