"""MB206: no NaN and no infinity where the derivative is finite."""

from collections.abc import Iterator

import torch

from manual_backprop.validation.case import Case
from manual_backprop.validation.differences import settled
from manual_backprop.validation.exceptions import Inconclusive
from manual_backprop.validation.naming import counted
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.tolerances import dense

MB206_SKELETON = """
class Power(Function):
    @staticmethod
    def forward(ctx, base, exponent):
        ctx.save_for_backward(base, exponent)
        return base**exponent

    @staticmethod
    def backward(ctx, grad_output):
        base, exponent = ctx.saved_tensors
        grad_base = grad_output * exponent * base ** (exponent - 1)
        ___


leaf = partial(torch.tensor, dtype=torch.float64, requires_grad=True)
validate(Power, (leaf([0.0, 1.5, 2.0]), leaf([2.0, 3.0, 0.5])))
"""


MOST_PLACES = 8  # elements that are NaN or infinite and looked at: each costs ten forward passes, and one is enough


@rule("MB206", "Is it finite where the derivative is?", "1 pass", skeleton=MB206_SKELETON)
def finite_gradient(case: Case) -> Iterator[Finding]:
    """A gradient has no NaN and no infinity where the derivative is finite.

    A gradient is NaN or infinite where the derivative is finite: the formula of backward has a 0 · ∞ or 0 / 0, and the
    function has none. One such element makes every weight NaN after the next step.

    Seen in: fastino-ai/GLiNER2 PR#155: a masked entry's zero times an infinite slope. The loss looked well at every
    step, and one backward put NaN on 225 parameters.

    Wrong:
        return grad_base, grad_output * base**exponent * base.log()  # 0 · −∞ where the base is 0

    Right:
        return grad_base, grad_output * torch.xlogy(base**exponent, base)
    """
    oracle = case.oracle
    unsure = False
    for slot, gradient in enumerate(case.plain.gradients):
        case.compared += gradient is not None
        if gradient is None or bool(dense(gradient).isfinite().all()):
            continue
        places = (~dense(gradient).isfinite()).flatten().nonzero().flatten().tolist()
        slopes = oracle.elements(slot, places[:MOST_PLACES]).slopes if oracle.measurable else []
        smooth = bool(slopes) and settled(oracle.slope(oracle.direction([slot], "settled")))
        sure = [place for place, slope in zip(places, slopes, strict=False) if smooth and settled(slope)]
        unsure |= not sure
        if not sure or not case.trusted:
            continue
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(sure[0]), gradient.shape))
        yield case.fail(
            f"the gradient of `{case.slots[slot].name}` is {dense(gradient)[index].item()} "
            "where the derivative is finite",
            cause=f"backward computes 0/0, 0·∞ or an overflow, at {counted(len(places), 'element')}",
            fix="write the derivative in its stable form",
            input=case.slots[slot].name,
            index=index,
            expected=slopes[places.index(sure[0])].central,
            actual=dense(gradient)[index].item(),
        )
    if unsure:
        raise Inconclusive("a gradient is not finite, and differences cannot tell whether the derivative is")
