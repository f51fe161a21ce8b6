"""MB102 and MB103: the gradient and the value, beside those of a reference in plain torch."""

from collections.abc import Iterator

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import wrong_gradient
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.report.heat_map import excerpt
from manual_backprop.validation.rule import rule
from manual_backprop.validation.rules.skeletons import LINEAR
from manual_backprop.validation.tolerances import SAME_RTOL, coarsest, mismatch

MB102_SKELETON = LINEAR.replace("randn(5)))", "randn(5)), reference=F.linear)")
MB103_SKELETON = """
class QuadraticCost(Function):  # the book's: the mean over the samples of half the squared distance
    @staticmethod
    def forward(ctx, a, y):
        ctx.save_for_backward(a, y)
        ___

    @staticmethod
    def backward(ctx, grad_output):
        a, y = ctx.saved_tensors
        return grad_output * (a - y) / ctx.count, None


def reference(a, y):
    return 0.5 * (a - y).square().sum(-1).mean()


validate(QuadraticCost, (randn(4, 3), torch.ones(4, 3, dtype=torch.float64)), reference=reference)
"""


@rule(
    "MB102",
    "Is it the reference's gradient?",
    "6 passes",
    needs="plain reference",
    explains="MB104 MB105 MB6 MB7 MB80",
    skeleton=MB102_SKELETON,
)
def reference_gradient(case: Case) -> Iterator[Finding]:
    """The gradient for random grad_outputs of both signs is that of the reference.

    For random grad_outputs of both signs and of sizes far from 1, the gradient is not that of the reference. No
    finite differences are needed, so this rule also works in low precision and on large inputs.

    Seen in: linkedin/Liger-Kernel PR#1298: with reduction='none' every gradient of the fused cross-entropy was
    multiplied by grad_output[0]. The forward was right, and a gradient of ones hid it.

    Wrong:
        grad_weight = grad_output.mT @ input / len(input)  # the mean, where the cost takes it already
        return grad_output @ weight, grad_weight, grad_output.sum(0)

    Right:
        return grad_output @ weight, grad_output.mT @ input, grad_output.sum(0)
    """
    reference = case.reference
    for scale in (1.0, 30.0, 1e-3):
        given = [None if c is None else scale * c for c in case.plain.cotangents]
        expected = reference.gradients(cotangents=given)
        actual = case.gradients(cotangents=given)
        wrong = case.compare(actual, expected, reference.noise, scale)
        for slot, found in wrong:
            yield wrong_gradient(case, slot, found, "is not the reference's", others=expected)
        case.judged.update(i for i, need in enumerate(case.needs) if need)
        if wrong:
            return


@rule("MB103", "Is it the reference's value?", "2 forwards", needs="plain reference", skeleton=MB103_SKELETON)
def reference_value(case: Case) -> Iterator[Finding]:
    """The outputs are those of the reference.

    The output is not that of the reference. Forward and backward may well agree with each other, and finite
    differences then find nothing, because the gradient is the right one of another function.

    Seen in: linkedin/Liger-Kernel PR#435: cross-entropy with reduction='none' returned one number instead of one a
    row.

    Wrong:
        ctx.count = a.numel()  # the mean over the elements
        return 0.5 * (a - y).square().mean()

    Right:
        ctx.count = len(a)
        return 0.5 * (a - y).square().sum(-1).mean()
    """
    mine, theirs = case.plain.outputs, case.reference.run().outputs
    for number, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        dtype = coarsest([a, b])
        case.compared += 1
        found = mismatch(a, b, SAME_RTOL[dtype])
        if found is not None:
            expected, actual = found.numbers
            yield case.fail(
                f"output {number} is not the reference's",
                cause="forward computes another function than the reference",
                fix="make forward agree with the reference before looking at backward",
                output=number,
                index=found.index,
                expected=expected,
                actual=actual,
                details=(f"at {list(found.index)}: expected {expected:.6g}, got {actual:.6g}",),
                excerpt=excerpt(found),
            )
