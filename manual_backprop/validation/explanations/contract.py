"""MB2xx: what exactly does backward return?"""

from manual_backprop.validation.explanations.entry import BOTH, LINEAR, NOT_MATERIALIZED, SINCOS, SQUARE, explained

ASKED = """
grad_input = grad_weight = grad_bias = None
if ctx.needs_input_grad[0]:
    grad_input = grad_output @ weight
if ctx.needs_input_grad[1]:
    grad_weight = grad_output.mT @ input
if ctx.needs_input_grad[2]:
    grad_bias = grad_output.sum(0)
return grad_input, grad_weight, grad_bias
"""
ALL = "return grad_output @ weight, grad_output.mT @ input, grad_output.sum(0)"

ENTRIES = (
    explained(
        "MB201",
        "backward has to return one value for each argument of forward, None for those that are no tensors. Torch "
        "raises for most wrong counts, but only at the first backward, and trailing Nones too many it accepts.",
        "huawei-noah/AdderNet#21: “returned an incorrect number of gradients (expected 2, got 1)”, at the first "
        "backward of the training script.",
        """
class Scale(Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x * factor

    @staticmethod
    def backward(ctx, grad_output):
        ___


validate(Scale, (randn(4, 3), 2.0))
""",
        "return grad_output * ctx.factor  # forward has two arguments",
        "return grad_output * ctx.factor, None",
    ),
    explained(
        "MB202",
        "backward returns None for an input on which the output depends. Torch takes that for a zero: the parameter "
        "is never trained, and nothing is said.",
        "pytorch/ao PR#4817: the quantised linear layers returned None for the bias, which stayed as it was for the "
        "whole run; the tests had bias=False.",
        LINEAR,
        "return grad_output @ weight, grad_output.mT @ input, None",
        ALL,
    ),
    explained(
        "MB203",
        "A gradient has another shape than its input. Where the shape could have been broadcast, the engine sums it "
        "and nobody notices; whoever calls backward otherwise (torch.func, a fused optimizer, a test) gets the wrong "
        "shape.",
        "ooples/AiDotNet.Tensors#234: the gradient of a bias was summed over the first axis only, and stayed too "
        "large for a batch of sequences.",
        LINEAR,
        "return grad_output @ weight, grad_output.mT @ input, grad_output",
        ALL,
    ),
    explained(
        "MB204",
        "A gradient has another dtype than its input. The engine casts it back, so the .grad looks right while the "
        "numbers in it have lost the digits.",
        "pytorch/pytorch#87979: bfloat16 in the forward, float16 in the backward, under custom_bwd.",
        SQUARE,
        "return 2 * x.float() * grad_output.float()",
        "return 2 * x * grad_output",
    ),
    explained(
        "MB205",
        "A gradient lies on another device than its input, or has another layout (sparse for a dense one). It works "
        "as long as nothing but one kind of optimizer reads it.",
        "pytorch/pytorch#105846: a custom backward returned a sparse gradient for a dense weight, and the next "
        "operation on its way back does not take one.",
        """
class Embedding(Function):
    @staticmethod
    def forward(ctx, index, weight):
        ctx.save_for_backward(index)
        ctx.shape = weight.shape
        return weight[index]

    @staticmethod
    def backward(ctx, grad_output):
        (index,) = ctx.saved_tensors
        ___


validate(Embedding, (torch.tensor([0, 2, 2, 5]), randn(6, 3)))
""",
        "return None, torch.sparse_coo_tensor(index.unsqueeze(0), grad_output, ctx.shape, check_invariants=True)",
        "return None, grad_output.new_zeros(ctx.shape).index_add(0, index, grad_output)",
        status="warn",
    ),
    explained(
        "MB206",
        "A gradient is NaN or infinite where the derivative is finite: a 0 · ∞ or 0 / 0 that the formula has and the "
        "function has not. One such element makes every weight NaN after the next step.",
        "fastino-ai/GLiNER2 PR#155: a masked entry's zero times an infinite slope. The loss looked well at every step, "
        "and one backward put NaN on 225 parameters.",
        """
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
""",
        "return grad_base, grad_output * base**exponent * base.log()  # 0 · −∞ where the base is 0",
        "return grad_base, grad_output * torch.xlogy(base**exponent, base)",
    ),
    explained(
        "MB207",
        "Two gradients, or a gradient and a tensor of somebody else, share memory. Accumulating or clipping the one "
        "in place then changes the other.",
        "linkedin/Liger-Kernel PR#1305: an in-place backward returned a view of the buffer that it was given, so that "
        "a test compared two gradients that were one and the same memory.",
        """
class AddFlat(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.shapes = a.shape, b.shape
        return a.flatten() + b.flatten()

    @staticmethod
    def backward(ctx, grad_output):
        a_shape, b_shape = ctx.shapes
        ___


validate(AddFlat, (randn(2, 3), randn(3, 2)))
""",
        "return grad_output.view(a_shape), grad_output.view(b_shape)",
        "return grad_output.reshape(a_shape).clone(), grad_output.reshape(b_shape).clone()",
    ),
    explained(
        "MB208",
        "With some inputs frozen, backward returns something else for the others, or crashes. Tests in which "
        "everything requires grad never take that branch; fine-tuning takes it at once.",
        "mgmalek/efficient_cross_entropy#1: UnboundLocalError, because the gradient of the projection is assigned only "
        "where it is asked for; shader-slang/slangpy#1056: an illegal memory access when one of two requires grad.",
        LINEAR,
        "if ctx.needs_input_grad[1]:\n    grad_weight = grad_output.mT @ input\n"
        "return grad_output @ weight, grad_weight, grad_output.sum(0)  # unbound where the weight is frozen",
        ASKED,
    ),
    explained(
        "MB209",
        "A gradient is computed that nobody asked for, and thrown away. Nothing is wrong but the time: for a frozen "
        "weight a third of the backward. It is a warning.",
        "NVIDIA/apex PR#1517: the gradient of the weight was computed although the weight was frozen; leaving it out "
        "made a training step some 20 % faster.",
        LINEAR,
        ALL,
        ASKED,
        status="warn",
    ),
    explained(
        "MB210",
        "With ctx.set_materialize_grads(False) the gradient of an output that nobody used arrives as None. This "
        "backward calculates with it.",
        "pytorch/pytorch#58511: unused outputs get gradients of zeros; pytorch/pytorch PR#41821 lets one switch that "
        "off, and every such backward has to look for None itself.",
        NOT_MATERIALIZED,
        "return grad_sin * x.cos() - grad_cos * x.sin()",
        BOTH,
    ),
    explained(
        "MB211",
        "An output depends on the inputs, and what comes back through it is dropped: a loss that is built on it trains "
        "nothing. Either backward has a share to add, or the output is to be marked as non-differentiable, so that "
        "nobody builds on it.",
        "Dao-AILab/flash-attention#1817: “softmax_lse is silently not backpropagated”: a loss on the second output "
        "leaves every gradient at zero.",
        SINCOS,
        "return grad_sin * x.cos()  # and the cosine?",
        "return grad_sin * x.cos() - grad_cos * x.sin()",
    ),
    explained(
        "MB212",
        "forward does something else, or crashes, under torch.no_grad or torch.inference_mode: evaluation fails "
        "although training works.",
        "linkedin/Liger-Kernel#930: UnboundLocalError in forward under no_grad, so that evaluation crashed.",
        """
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
""",
        "ctx.save_for_backward(x)\nctx.version = x._version  # tensors of inference mode have none",
        "ctx.save_for_backward(x)  # notices by itself when x is changed",
    ),
)
