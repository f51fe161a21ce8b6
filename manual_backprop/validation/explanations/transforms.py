"""MB8xx: double backward, forward mode, vmap, torch.func, torch.compile, torch.export."""

from manual_backprop.validation.explanations.entry import Explanation, explained

CUBE = """
class Cube(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    ___


validate(Cube, (randn(4, 3),))
"""
RIGHT = "def backward(ctx, grad_output):\n    (x,) = ctx.saved_tensors\n    return 3 * x**2 * grad_output"
PRODUCT = """
class Product(Function):
    @staticmethod
    def forward(a, b):
        return a * b**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad_output):
        a, b = ctx.saved_tensors
        return grad_output * b**2, grad_output * 2 * a * b

    @staticmethod
    ___


validate(Product, (randn(4, 3), randn(4, 3)))
"""
COMPILED = RIGHT.replace(
    "    return", "    if torch.compiler.is_compiling():\n        return 2 * x * grad_output\n    return"
)

ENTRIES = (
    explained(
        "MB801",
        "backward can be differentiated, and its derivative is wrong: something in it was detached, or computed "
        "outside of the graph. Gradient penalties and second-order methods then calculate with a wrong number.",
        "pytorch/pytorch#104040: intermediates that are saved in forward carry no graph, so that double backward is "
        "wrong in silence.",
        CUBE,
        RIGHT.replace("grad_output\n", "grad_output\n").removesuffix("grad_output") + "grad_output.data",
        RIGHT,
    ),
    explained(
        "MB802",
        "A penalty on the gradient of f(x).sum() misses the second-order term. @once_differentiable looks only at "
        "whether grad_output requires grad; behind .sum() it does not, and nothing is said.",
        "lab-cosmo/sphericart#139: second derivatives that “fail silently”.",
        CUBE,
        "@torch.autograd.function.once_differentiable\n" + RIGHT,
        RIGHT,
    ),
    explained(
        "MB803",
        "Forward mode and backward do not belong to the same derivative: ⟨g, jvp(v)⟩ is not ⟨vjp(g), v⟩.",
        "pytorch/pytorch#187284: under torch.compile the tangents of forward mode were dropped, and nothing was said.",
        PRODUCT,
        "def jvp(ctx, tangent_a, tangent_b):\n"
        "    a, b = ctx.saved_tensors\n"
        "    return tangent_a * b**2  # and what b contributes?",
        "def jvp(ctx, tangent_a, tangent_b):\n"
        "    a, b = ctx.saved_tensors\n"
        "    return tangent_a * b**2 + 2 * a * b * tangent_b",
    ),
    explained(
        "MB804",
        "Under torch.vmap the result is not what a loop over the samples gives: the rule mixes samples up, or takes "
        "the batch axis for another.",
        "pytorch/functorch#207: “autograd.Function is silently incorrect on functorch transforms”; pytorch/pytorch "
        "PR#186303: a compiled vmap went around the Function's own vmap rule and its backward.",
        """
class Centre(Function):
    @staticmethod
    def forward(x):
        return x - x.mean()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output - grad_output.mean()

    @staticmethod
    def vmap(info, in_dims, x):
        ___


validate(Centre, (randn(4, 3),))
""",
        "return Centre.apply(x), in_dims[0]  # one mean for the whole batch",
        "return torch.stack([Centre.apply(sample) for sample in x.unbind(in_dims[0])]), 0",
    ),
    explained(
        "MB805",
        "torch.func.grad, vjp or jacrev gives another gradient than backward does. Under them tensors do not say "
        "requires_grad, and a branch that asks for it takes the wrong way.",
        "pytorch/functorch#207: “autograd.Function is silently incorrect on functorch transforms”, which is why a "
        "Function needs setup_context for them.",
        """
class Sine(Function):
    @staticmethod
    def forward(x):
        ___
        return x.sin(), slope

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, grad_output, _):
        (slope,) = ctx.saved_tensors
        return slope * grad_output


def sine(x):
    return Sine.apply(x)[0]


validate(sine, (randn(4, 3),))
""",
        "slope = x.cos() if x.requires_grad else torch.zeros_like(x)",
        "slope = x.cos()",
    ),
    explained(
        "MB806",
        "Under torch.compile the gradient is another one than in eager mode. A compiled path that leaves out the "
        "custom backward is no test of it; validate proves with a canary that it runs.",
        "pytorch/pytorch#193279: torch.compile(torch.func.grad(f)) drops the custom backward, and differentiates "
        "forward instead.",
        CUBE.replace("(Cube,", "(Cube.apply,"),
        COMPILED,
        RIGHT,
    ),
    Explanation(
        "MB807",
        "What torch.export traces is another function, or has another gradient, than the one that runs in eager mode.",
        "pytorch/rfcs PR#28: in the review of an exporter that removes autograd.Function, a maintainer notes that this "
        "changes the backward pass, and asks to forbid training then.",
        unseen="torch.export leaves every custom backward out, the right and the wrong ones, and differentiates "
        "forward instead. The probe's canary, a backward that is wrong on purpose, goes unnoticed there, and so the "
        "probe says skip; it will fail as soon as a version of torch exports custom backward passes, and yours comes "
        "out another.",
    ),
)
