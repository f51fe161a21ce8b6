"""MB6xx: precision, saturation, autocast."""

from manual_backprop.validation.explanations.entry import LINEAR, explained

AUTOCAST = LINEAR
RMS_NORM = """
def rms_norm(x):
    return (x.float() * (x.float().square().mean(-1, keepdim=True) + 1e-5).rsqrt()).to(x.dtype)


class RMSNorm(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return rms_norm(x)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        ___
        normal = wide * rstd
        grad = rstd * (grad_output - normal * (grad_output * normal).mean(-1, keepdim=True))
        return grad.to(x.dtype)


x = (400 * torch.randn(5, 4, dtype=torch.float64)).requires_grad_()
validate(RMSNorm, (x,), reference=rms_norm)
""".replace(".float()", ".double()")

ENTRIES = (
    explained(
        "MB601",
        "In float32 the gradient loses more digits than torch itself loses with the same numbers: a difference of "
        "large numbers, a sum in an unlucky order.",
        "NVIDIA/apex#1652: gradients of a normalisation that were less precise than those of torch.",
        """
def deviation(x):
    return x.std(-1, correction=0)


class Deviation(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return deviation(x)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        centred = x - x.mean(-1, keepdim=True)
        ___
        return grad_output.unsqueeze(-1) * centred / (x.shape[-1] * variance.sqrt())


x = (100 + 0.1 * torch.randn(5, 8, dtype=torch.float64)).requires_grad_()
validate(Deviation, (x,), reference=deviation)
""",
        "variance = x.square().mean(-1, keepdim=True) - x.mean(-1, keepdim=True).square()",
        "variance = centred.square().mean(-1, keepdim=True)",
    ),
    explained(
        "MB602",
        "In bfloat16, which has eight bits, the gradient is worse than torch's own in bfloat16: something was added up "
        "without an accumulator in float32.",
        "linkedin/Liger-Kernel PR#830: the gradient of the weight is added up chunk by chunk in bfloat16; users had "
        "reported training that was worse, or diverged, although the loss looked the same.",
        LINEAR.replace(
            "(randn(4, 3), randn(5, 3), randn(5))", "(randn(1024, 2), randn(3, 2), randn(3)), reference=F.linear"
        ),
        "grad_weight = torch.zeros_like(weight)\n"
        "for sample, error in zip(input.split(1), grad_output.split(1)):\n"
        "    grad_weight = grad_weight + error.mT @ sample\n"
        "return grad_output @ weight, grad_weight, grad_output.sum(0)",
        "return grad_output @ weight, grad_output.mT @ input, grad_output.sum(0)",
    ),
    explained(
        "MB603",
        "In float16 a number on the way is larger than 65504, or too small to be told from zero, although the result "
        "is neither.",
        "fastino-ai/GLiNER2 PR#155: a clamp to 1 − 1e-6, which in float16 and bfloat16 is 1, let log1p(−1) through, "
        "and the backward was 0 · inf in half precision only.",
        RMS_NORM,
        "wide, rstd = x, (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()  # 400² overflows",
        "wide = x.double()\nrstd = (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt()",
    ),
    explained(
        "MB604",
        "For inputs of size 100 or 10000, where an activation saturates, the gradient is NaN or wrong: exp overflows "
        "on the way to a number that is simply 0 or 1.",
        "jeshraghian/snntorch PR#433: exp(−x) / (exp(−x) + 1)² for the derivative of the sigmoid is inf / inf; "
        "networks trained oddly, and gradcheck on ordinary inputs passes.",
        """
class Sigmoid(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        ___


validate(Sigmoid, (randn(4, 3),), reference=torch.sigmoid)
""",
        "return grad_output * torch.exp(-x) / (1 + torch.exp(-x)) ** 2",
        "a = torch.sigmoid(x)\nreturn grad_output * a * (1 - a)",
    ),
    explained(
        "MB605",
        "At zero, or for inputs around 1e-30, the gradient is NaN or infinite where the function is smooth: a division "
        "by something that underflows.",
        "pytorch/pytorch#36493: the gradient of cdist was NaN for differences around 1e-45: one factor underflowed and "
        "the other was infinite.",
        """
class Sinc(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x == 0, torch.ones_like(x), x.sin() / x)

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        slope = (x * x.cos() - x.sin()) / x**2
        ___
        return grad_output * slope


validate(Sinc, (randn(4, 3),))
""",
        "# 0 / 0 at 0",
        "slope = torch.where(x.abs() < 1e-4, -x / 3, slope)",
    ),
    explained(
        "MB606",
        "With autocast around the forward alone, as torch recommends, backward meets the low dtype that forward "
        "produced beside the saved float32, and calculates something else or raises.",
        "pytorch/ao#4616: under autocast the incoming gradient is bfloat16 and the saved weight float32, and the "
        "product of the two raises.",
        """
class Linear(Function):
    @staticmethod
    ___


validate(Linear, (randn(4, 3), randn(5, 3)))
""",
        "def forward(ctx, input, weight):\n"
        "    ctx.save_for_backward(input, weight)\n"
        "    return input @ weight.mT\n\n"
        "@staticmethod\n"
        "def backward(ctx, grad_output):\n"
        "    input, weight = ctx.saved_tensors\n"
        "    return grad_output @ weight, grad_output.mT @ input",
        "@torch.amp.custom_fwd(device_type='cpu', cast_inputs=torch.float32)\n"
        "def forward(ctx, input, weight):\n"
        "    ctx.save_for_backward(input, weight)\n"
        "    return input @ weight.mT\n\n"
        "@staticmethod\n"
        "@torch.amp.custom_bwd(device_type='cpu')\n"
        "def backward(ctx, grad_output):\n"
        "    input, weight = ctx.saved_tensors\n"
        "    return grad_output @ weight, grad_output.mT @ input",
        status="warn",
    ),
    explained(
        "MB607",
        "With autocast around the backward too, products inside it change their dtype, and what follows does not take "
        "the mixture.",
        "pytorch/pytorch#87979: under custom_bwd the backward ran in another dtype than the forward.",
        """
class LookupLinear(Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type='cpu', cast_inputs=torch.float32)
    def forward(ctx, table, index, weight):
        ctx.save_for_backward(table, index, weight)
        return F.linear(table[index], weight)

    @staticmethod
    ___
    def backward(ctx, grad_output):
        table, index, weight = ctx.saved_tensors
        grad_table = torch.zeros_like(table).index_add_(0, index, grad_output @ weight)
        return grad_table, None, grad_output.mT @ table[index]


validate(LookupLinear, (randn(6, 3), torch.tensor([0, 2, 2]), randn(5, 3)))
""",
        "# no custom_bwd",
        "@torch.amp.custom_bwd(device_type='cpu')",
        status="warn",
    ),
)
