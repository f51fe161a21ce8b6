"""MB7xx: empty batches, single samples, broadcasting, other ranks, the same tensor twice."""

from manual_backprop.validation.explanations.entry import BOTH, LINEAR, NOT_MATERIALIZED, SQUARE, explained

BATCH = LINEAR.replace("randn(5)))", "randn(5)), batch_dim=0)")
ALL = "return grad_output @ weight, grad_output.mT @ input, grad_output.sum(0)"

ENTRIES = (
    explained(
        "MB701",
        "A batch without samples crashes backward, or gives no gradient. It is what is left at the end of an epoch, on "
        "one of many workers, or behind a filter.",
        "Dao-AILab/flash-attention PR#2776: forward takes a batch of none, and backward was refused by CUDA; "
        "intel/torch-xpu-ops PR#5416: it aborted.",
        SQUARE.replace("(randn(4, 3),))", "(randn(4, 3),), batch_dim=0)"),
        "largest = grad_output.abs().max()  # of no elements there is none\n"
        "return 2 * x * (grad_output / largest) * largest",
        "return 2 * x * grad_output",
    ),
    explained(
        "MB702",
        "A batch of one sample gives a wrong gradient or crashes: an axis of size 1 was squeezed, or mistaken for one "
        "that broadcasts.",
        "fla-org/flash-linear-attention#1140: wrong gradients only for chunks of one or two tokens, as in decoding.",
        BATCH,
        "error = grad_output.squeeze()\nreturn grad_output @ weight, error.mT @ input, error.sum(0)",
        ALL,
    ),
    explained(
        "MB703",
        "Where an input has size 1 and is broadcast, its gradient is not summed over that axis as it should be.",
        "tenstorrent/tt-metal#40008: gradients of inputs that were broadcast in the forward.",
        """
class Scale(Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, grad_output):
        x, scale = ctx.saved_tensors
        ___


validate(Scale, (randn(4, 3), randn(4, 3)), batch_dim=0)
""",
        "grad_scale = grad_output * x\n"
        "if scale.shape != grad_output.shape:\n"
        "    grad_scale = grad_scale.mean(0, keepdim=True)  # not the sum\n"
        "return (grad_output * scale).sum_to_size(x.shape), grad_scale",
        "grad_scale = grad_output * x\n"
        "return (grad_output * scale).sum_to_size(x.shape), grad_scale.sum_to_size(scale.shape)",
    ),
    explained(
        "MB704",
        "forward takes inputs with more or fewer leading axes than the sample that was tested, and for those backward "
        "is wrong or crashes: the sum over the samples is one over the first axis.",
        "ooples/AiDotNet.Tensors#234: a bias reduced over axis 0 only, which breaks for sequences; "
        "linkedin/Liger-Kernel#1375: a group norm that forward takes with any rank and backward with one.",
        """
class Softmax(Function):
    @staticmethod
    def forward(ctx, x):
        a = x.softmax(-1)
        ctx.save_for_backward(a)
        return a

    @staticmethod
    def backward(ctx, grad_output):
        (a,) = ctx.saved_tensors
        ___


validate(Softmax, (randn(4, 3),), batch_dim=0)
""",
        "return a * (grad_output - (a * grad_output).sum(1, keepdim=True))  # the last axis only of matrices",
        "return a * (grad_output - (a * grad_output).sum(-1, keepdim=True))",
    ),
    explained(
        "MB705",
        "The same tensor stands in two slots, as in attention of x to itself, and gets only one of its two gradients.",
        "pytorch/pytorch#183604 and #181146: with the same tensor in two slots torch.compile returned half of the "
        "gradient.",
        """
class MatMul(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx, grad_output):
        a, b = ctx.saved_tensors
        ___


validate(MatMul, (randn(3, 3), randn(3, 3)))
""",
        "grads = {a: grad_output @ b.mT}\n"
        "grads[b] = a.mT @ grad_output  # overwrites, where b is a\n"
        "return grads[a], grads[b]",
        "return grad_output @ b.mT, a.mT @ grad_output",
    ),
    explained(
        "MB706",
        "With one of several outputs unused, backward crashes or returns something wrong.",
        "pytorch/pytorch#58511: a Function that passes two tensors through, of which one goes unused: that one's layer "
        "gets a gradient of zeros where one expects None.",
        NOT_MATERIALIZED,
        "return grad_sin * x.cos() - grad_cos * x.sin()",
        BOTH,
    ),
)
