"""MB202: None stands for a gradient only where the output does not depend on the input."""

from collections.abc import Iterator

from manual_backprop.validation.case import Case
from manual_backprop.validation.exceptions import Inconclusive
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.rules.skeletons import LINEAR


@rule("MB202", "Is None returned where a gradient is due?", "1 pass", needs="plain truth", skeleton=LINEAR)
def missing_gradient(case: Case) -> Iterator[Finding]:
    """backward returns None only where the output does not depend on the input.

    backward returns None for an input on which the output depends. Torch takes None for zero: the parameter is never
    trained, and no message says so.

    Seen in: pytorch/ao PR#4817: the quantised linear layers returned None for the bias, which stayed as it was for
    the whole run; the tests had bias=False.

    Wrong:
        return grad_output @ weight, grad_output.mT @ input, None

    Right:
        return grad_output @ weight, grad_output.mT @ input, grad_output.sum(0)
    """
    absent = [i for i, g in enumerate(case.plain.gradients) if g is None and case.needs[i]]
    case.compared += sum(case.needs)
    oracle = case.oracle
    for slot in absent:
        if not oracle.measurable:
            raise Inconclusive("None is returned, and differences cannot tell whether a gradient is due")
        slope = oracle.slope(oracle.direction([slot] if oracle.values[slot].numel() else [], "missing"))
        if slope.is_zero:
            continue
        yield case.fail(
            f"the gradient of `{case.slots[slot].name}` is None, and the output depends on it",
            cause=f"along a random direction of this input the output changes by {slope.central:.6g} per unit",
            fix="compute the gradient where ctx.needs_input_grad asks for it",
            input=case.slots[slot].name,
            expected=slope.central,
            actual=0.0,
        )
