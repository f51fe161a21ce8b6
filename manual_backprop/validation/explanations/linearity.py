"""MB3xx: is it linear in grad_output?"""

from manual_backprop.validation.explanations.entry import SINCOS, SQUARE, explained

RIGHT = "return 2 * x * grad_output"

ENTRIES = (
    explained(
        "MB301",
        "backward(−g) is not −backward(g). A backward is a linear map of grad_output; torch.autograd.gradcheck feeds "
        "it non-negative ones only, and so accepts an absolute value or a square.",
        "jiecaoyu/XNOR-Net-PyTorch#43: the gradient of a binarised activation is built from the sign and the absolute "
        "value of what comes in, and gradcheck in float32 with atol=1e-2 said True.",
        SQUARE,
        "return 2 * x * grad_output.abs()",
        RIGHT,
    ),
    explained(
        "MB302",
        "backward(c·g) is not c·backward(g): a clipped gradient, a constant in the place of the real one, or an "
        "underflow. Loss scaling and gradient accumulation multiply g by thousands, or divide it.",
        "ashawkey/stable-dreamfusion#158: the backward did not multiply by the gradient that came in, and so lost the "
        "scale of mixed-precision training.",
        SQUARE,
        "return 2 * x * grad_output.clamp(-1, 1)",
        RIGHT,
    ),
    explained(
        "MB303",
        "backward(g₁ + g₂) is not the sum of the two: whatever depends on g other than by a matrix, such as keeping "
        "its largest elements only.",
        "jiecaoyu/XNOR-Net-PyTorch#43: grad.abs().mean() * grad is quadratic in what comes in.",
        SQUARE,
        "large = grad_output.abs() >= grad_output.abs().mean()\nreturn 2 * x * grad_output * large",
        RIGHT,
    ),
    explained(
        "MB304",
        "Nothing comes in, and still a gradient goes out: something was added that is not the derivative's business, "
        "such as weight decay or noise.",
        "ashawkey/stable-dreamfusion#158: a backward that returned a gradient stored in the forward, whatever came in.",
        SQUARE,
        "return 2 * x * grad_output + 1e-4 * x",
        RIGHT,
    ),
    explained(
        "MB305",
        "Of two outputs, what comes back for both together is not the sum of what comes back for each alone. "
        "gradcheck asks one output at a time and never sends two.",
        "Dao-AILab/flash-attention#141: does the second output, the log-sum-exp, contribute to the gradients? It does "
        "not, and nothing says so.",
        SINCOS,
        "if grad_sin.any():\n    return grad_sin * x.cos()  # and the share of the other?\nreturn -grad_cos * x.sin()",
        "return grad_sin * x.cos() - grad_cos * x.sin()",
    ),
    explained(
        "MB306",
        "With a grad_output that is zero almost everywhere, and signed where it is not, a share is missing: a shortcut "
        "takes some zeros for all of them.",
        "linkedin/Liger-Kernel PR#1298: grad_output[0] stood for all rows; if the first is masked, all are 0.",
        """
class Cumsum(Function):
    @staticmethod
    def forward(ctx, x):
        return x.cumsum(-1)

    @staticmethod
    def backward(ctx, grad_output):
        ___
        return grad_output.flip(-1).cumsum(-1).flip(-1)


validate(Cumsum, (randn(2, 4),))
""",
        "if not grad_output[..., -1].any():  # earlier steps may have one\n    return torch.zeros_like(grad_output)",
        "# every step counts",
    ),
)
