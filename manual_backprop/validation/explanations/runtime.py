"""MB9xx: determinism, threads, devices."""

from manual_backprop.validation.explanations.entry import SQUARE, Explanation, explained

ENTRIES = (
    explained(
        "MB901",
        "The same call gives different gradients: a race, a random number, or memory that nobody initialised. Often "
        "only one run in ten shows it.",
        "meta-pytorch/tritonbench PR#1266: a missing barrier in the backward of the layer norm that was copied from "
        "the tutorial; the gradients of weight and bias were wrong in 99 of 100 runs of a large one.",
        SQUARE,
        "return 2 * x * grad_output + 1e-6 * torch.randn_like(x)",
        "return 2 * x * grad_output",
    ),
    explained(
        "MB902",
        "Called from several threads (data parallel, a server) the gradients differ: the calls share a buffer.",
        "meta-pytorch/tritonbench PR#1266: the next holder of a lock read partial sums that others were still writing, "
        "and wrote over them.",
        """
import time

buffers = {}


class LinearSigmoid(Function):
    @staticmethod
    def forward(ctx, input, weight):
        a = torch.sigmoid(input @ weight.mT)
        ctx.save_for_backward(input, weight, a)
        return a

    @staticmethod
    def backward(ctx, grad_output):
        input, weight, a = ctx.saved_tensors
        ___
        delta.copy_(grad_output * a * (1 - a))
        time.sleep(0.01)  # stands for a large product, in which the next thread arrives
        return delta @ weight, delta.mT @ input


validate(LinearSigmoid, (randn(64, 64), randn(64, 64)))
""",
        "delta = buffers.setdefault(a.shape, torch.empty_like(a))",
        "delta = torch.empty_like(a)",
    ),
    Explanation(
        "MB903",
        "On an accelerator, or with another current device than that of the inputs, the gradient differs or backward "
        "crashes: memory or a kernel was asked for on the current device, or in the wrong stream.",
        "linkedin/Liger-Kernel#1303: the kernel is launched on the current GPU, which need not be that of the tensors.",
        unseen="It takes an accelerator to fail. The usual mistake is torch.empty(n, device='cuda') in a backward, "
        "where torch.empty_like(grad_output) takes the device from the tensor.",
    ),
)
