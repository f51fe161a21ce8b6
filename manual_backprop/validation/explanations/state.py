"""MB5xx: what it writes, keeps and leaks."""

from manual_backprop.validation.explanations.entry import SQUARE, explained

SAVED = """
class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ___

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return 2 * x * grad_output


validate(Square, (randn(4, 3),))
"""
CALCULATES = SQUARE.replace("        (x,) = ctx.saved_tensors\n", "")
ON_CTX = """
@staticmethod
def forward(ctx, x):
    ctx.x = x
    return x**2

@staticmethod
def backward(ctx, grad_output):
    return 2 * ctx.x * grad_output
"""
RIGHT = "(x,) = ctx.saved_tensors\nreturn 2 * x * grad_output"

ENTRIES = (
    explained(
        "MB501",
        "forward changes an input without ctx.mark_dirty. Whoever else uses that tensor, or has saved it for its own "
        "backward, calculates with other numbers, and the version counter does not notice writes through .data or "
        "from a kernel.",
        "linkedin/Liger-Kernel#272: the cross-entropy stored its gradient in its input, and the layer before, which "
        "had saved it, computed a wrong gradient without an error.",
        """
class LogSumExp(Function):
    @staticmethod
    def forward(ctx, x):
        largest = x.amax(-1, keepdim=True)
        ___
        ctx.save_for_backward(shifted.softmax(-1))
        return shifted.exp().sum(-1).log() + largest.squeeze(-1)

    @staticmethod
    def backward(ctx, grad_output):
        (softmax,) = ctx.saved_tensors
        return softmax * grad_output.unsqueeze(-1)


validate(LogSumExp, (randn(4, 3),))
""",
        "shifted = x.data.sub_(largest)",
        "shifted = x - largest",
    ),
    explained(
        "MB502",
        "backward overwrites grad_output. Where the output was used twice, or has a hook, somebody else still needs "
        "it; with .sum() behind it, one write changes all elements.",
        "linkedin/Liger-Kernel PR#376: writing into grad_output made the training of Gemma 2 diverge. "
        "pytorch/pytorch#81417 has asked since 2022 for a check of this.",
        SQUARE,
        "return grad_output.mul_(2 * x)",
        "return grad_output * (2 * x)",
    ),
    explained(
        "MB503",
        "backward overwrites a tensor that it had saved. The first time all is well; with retain_graph, a "
        "higher derivative or a checkpoint the second finds other numbers.",
        "axolotl-ai-cloud/axolotl PR#3892: found in review: the gradient is written into the saved input, and a second "
        "backward over the same graph silently returns garbage.",
        """
class Sigmoid(Function):
    @staticmethod
    def forward(ctx, x):
        a = torch.sigmoid(x)
        ctx.save_for_backward(a)
        return a

    @staticmethod
    def backward(ctx, grad_output):
        (a,) = ctx.saved_tensors
        ___


validate(Sigmoid, (randn(4, 3),))
""",
        "return grad_output * a.data.mul_(1 - a)",
        "return grad_output * a * (1 - a)",
    ),
    explained(
        "MB504",
        "A second backward through the same graph (retain_graph=True) gives something else than the first, or "
        "crashes: something was used up.",
        "dmlc/dgl PR#1060: a cache on ctx leaks unless backward clears it, and once cleared it is gone for a second "
        "backward with retain_graph=True.",
        """
class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.factors = [2.0]
        return x**2

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        ___


validate(Square, (randn(4, 3),))
""",
        "return ctx.factors.pop() * x * grad_output",
        "return ctx.factors[0] * x * grad_output",
    ),
    explained(
        "MB505",
        "Two calls whose backward passes come later (a layer used twice, two losses) disturb each other: what belongs "
        "to one call is kept where all calls share it.",
        "facebookarchive/caffe2 PR#1418: the states of dropout were overwritten between the forward and the backward, "
        "which made wrong results and no noise.",
        "last = {}\n\n" + CALCULATES,
        "return 2 * last['x'] * grad_output",
        RIGHT,
    ),
    explained(
        "MB506",
        "A tensor is kept as an attribute of ctx instead of by save_for_backward. It outlives the graph (an output on "
        "ctx is a reference cycle), no in-place change of it is noticed, and offloading and checkpointing miss it.",
        "pytorch/pytorch#25340: a memory leak by tensors on ctx; asappresearch/sru PR#171 mended one.",
        "class Square(Function):\n    ___\n\n\nvalidate(Square, (randn(4, 3),))",
        ON_CTX,
        SQUARE.split(":\n    ", 1)[1]
        .split("\n\n\n")[0]
        .replace("\n    ", "\n")
        .replace("___", "return 2 * x * grad_output"),
    ),
    explained(
        "MB507",
        "After the graph is gone some of its tensors are still there: each step leaks a little more memory.",
        "pytorch/pytorch#5569: a custom Function that leaks its output in every step of the loop.",
        "history = []\n" + SAVED,
        "history.append(x)  # left over from debugging\nctx.save_for_backward(x)\nreturn x**2",
        "ctx.save_for_backward(x)\nreturn x**2",
    ),
    explained(
        "MB508",
        "A tensor that backward needs was changed in place after forward, and backward does not raise but calculates "
        "with the new numbers. save_for_backward compares versions; .data and attributes of ctx escape it.",
        "linkedin/Liger-Kernel PR#1251: writes from Triton do not move the version counter, so that the check for "
        "changes in place never fires, and the layer before computes wrong gradients.",
        SAVED,
        "ctx.save_for_backward(x.data)\nreturn x**2",
        "ctx.save_for_backward(x)\nreturn x**2",
    ),
    explained(
        "MB509",
        "With saved_tensors_hooks (offloading to the CPU or to disk) the gradient is another one, or backward crashes: "
        "it relies on getting back the very tensor, not one of the same values.",
        "pytorch/pytorch PR#153005: why tensors that are not saved by save_for_backward defeat offloading and "
        "activation checkpointing.",
        "slopes = {}\n\n"
        + SQUARE.replace(
            "(x)\n        return x**2", "(x)\n        slopes[x.data_ptr()] = 2 * x.detach()\n        return x**2"
        ),
        "return slopes[x.data_ptr()] * grad_output  # an offloaded x comes back at another address",
        "return 2 * x * grad_output",
    ),
    explained(
        "MB510",
        "Under torch.utils.checkpoint the gradient is another one, or backward crashes. The checkpoint runs forward "
        "again, and gives each saved tensor out only once.",
        "state-spaces/mamba PR#1021: ctx.saved_tensors was looked at twice, and the second look raises under a "
        "checkpoint; pytorch/pytorch#82156 asks for more than one.",
        """
class Multiply(Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, grad_output):
        ___


validate(Multiply, (randn(4, 3), randn(4, 3)))
""",
        "return grad_output * ctx.saved_tensors[1], grad_output * ctx.saved_tensors[0]",
        "a, b = ctx.saved_tensors\nreturn grad_output * b, grad_output * a",
    ),
    explained(
        "MB511",
        "What ran before changes the result, or a pass changes something that all of the program shares: a cache, the "
        "random generator, a flag.",
        "RobinBruegger/RevTorch#3: a forward that is run again for the backward drew another mask; the cure that was "
        "asked for, torch.manual_seed in the backward, writes to what the whole program shares.",
        """
class Dropout(Function):
    @staticmethod
    def forward(ctx, x, seed):
        ctx.seed = seed
        return 2 * x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.5)

    @staticmethod
    def backward(ctx, grad_output):
        ___
        return 2 * grad_output * mask, None


validate(Dropout, (randn(4, 3), 7))
""",
        "torch.manual_seed(ctx.seed)  # of the whole program\nmask = torch.rand(grad_output.shape) < 0.5",
        "mask = torch.rand(grad_output.shape, generator=torch.Generator().manual_seed(ctx.seed)) < 0.5",
    ),
)
