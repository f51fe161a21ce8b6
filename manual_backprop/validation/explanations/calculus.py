"""MB1xx: is it the derivative?"""

from manual_backprop.validation.explanations.entry import LINEAR, SQUARE, explained

ENTRIES = (
    explained(
        "MB101",
        "The gradient that backward returns is not the derivative of what forward computes, as central differences in "
        "float64 measure it. Training goes on with it, only worse; a missing factor looks like a badly chosen learning "
        "rate.",
        "Dao-AILab/quack PR#53: a normalisation with a residual multiplied (dres + dout) by the derivative of the "
        "norm, where only dout goes through it.",
        SQUARE,
        "return x * grad_output",
        "return 2 * x * grad_output",
    ),
    explained(
        "MB102",
        "For random grad_outputs of both signs and of sizes far from 1, the gradient is not that of the reference. "
        "No finite differences are needed, so this also works in low precision and on large inputs.",
        "linkedin/Liger-Kernel PR#1298: with reduction='none' every gradient of the fused cross-entropy was "
        "multiplied by grad_output[0]. The forward was right, and a gradient of ones hid it.",
        LINEAR.replace("randn(5)))", "randn(5)), reference=F.linear)"),
        "grad_weight = grad_output.mT @ input / len(input)  # the mean, where the cost takes it already\n"
        "return grad_output @ weight, grad_weight, grad_output.sum(0)",
        "return grad_output @ weight, grad_output.mT @ input, grad_output.sum(0)",
    ),
    explained(
        "MB103",
        "The output is not that of the reference. Forward and backward may well agree with each other, and finite "
        "differences then find nothing: it is the right gradient of another function.",
        "linkedin/Liger-Kernel PR#435: cross-entropy with reduction='none' returned one number instead of one a row.",
        """
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
""",
        "ctx.count = a.numel()  # the mean over the elements\nreturn 0.5 * (a - y).square().mean()",
        "ctx.count = len(a)\nreturn 0.5 * (a - y).square().sum(-1).mean()",
    ),
    explained(
        "MB104",
        "f(x + h) − f(x) − h·gradient has to shrink as h². If it shrinks as h, the gradient is not the derivative, "
        "however close it is: the order depends on no chosen step or tolerance, which is where small errors hide.",
        "chainer/chainer#3541: “Bad gradients pass gradient check”: for a time the checker itself was wrong, and "
        "broken backward passes left their tests green. Two oracles that share nothing guard against that.",
        SQUARE,
        "return 2.01 * x * grad_output",
        "return 2 * x * grad_output",
    ),
    explained(
        "MB105",
        "At a kink (abs, max or ReLU at 0) there is no derivative, and any value between the two one-sided slopes will "
        "do. This one lies outside of them, or is NaN. Random inputs never meet the kink; the zeros behind a ReLU or a "
        "mask do.",
        "pytorch/pytorch#2421: the gradient of norm at zero was NaN, 0 / 0, and made every update NaN; torch takes the "
        "subgradient 0 there since.",
        SQUARE.replace("Square", "ReLU").replace("x**2", "F.relu(x)"),
        "return grad_output * F.relu(x) / x  # 0 / 0 at 0",
        "return grad_output * (x > 0)",
    ),
    explained(
        "MB106",
        "For complex tensors torch's gradient is that with respect to the conjugate variable, so that one can step "
        "against it: what was a factor in forward comes back conjugated. Real inputs never show the difference.",
        "tensorflow/tensorflow#4859: the gradient of a complex matrix product was not conjugated; no test had complex "
        "numbers.",
        """
class Multiply(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, grad_output):
        a, b = ctx.saved_tensors
        ___


complex_randn = partial(torch.randn, dtype=torch.complex128, requires_grad=True)
validate(Multiply, (complex_randn(4, 3), complex_randn(4, 3)))
""",
        "return grad_output * b, grad_output * a",
        "return grad_output * b.conj(), grad_output * a.conj()",
    ),
)
