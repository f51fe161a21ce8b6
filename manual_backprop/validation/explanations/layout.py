"""MB4xx: same values, another memory layout."""

from manual_backprop.validation.explanations.entry import DOUBLE, explained

PACKED = "grad_output.as_strided(grad_output.shape, (grad_output.shape[1], 1), grad_output.storage_offset())"
IMAGES = DOUBLE.replace("randn(4, 3)", "randn(2, 3, 4, 4)")
RIGHT = "return 2 * grad_output"

ENTRIES = (
    explained(
        "MB401",
        "A transposed grad_output or input gives another gradient than a contiguous one with the same values: "
        "memory is read in the order in which it lies. The engine hands over whatever layout the next operation left, "
        "and gradcheck only contiguous ones.",
        "Dao-AILab/flash-attention#355: “Incorrect backward pass for non-contiguous output grads”.",
        DOUBLE,
        f"return 2 * {PACKED}",
        RIGHT,
    ),
    explained(
        "MB402",
        "grad_output is a slice of a larger tensor, as behind torch.cat, and is read with strides that were taken for "
        "granted.",
        "fla-org/flash-linear-attention PR#871: strides (D, 1) written into the kernel of causal_conv1d; behind "
        "torch.cat([q, k, v]) the gradients were wrong and nothing was said.",
        DOUBLE,
        "strides = grad_output.stride(0), 1  # the last one taken for granted\n"
        "return 2 * grad_output.as_strided(grad_output.shape, strides, grad_output.storage_offset())",
        RIGHT,
    ),
    explained(
        "MB403",
        "grad_output or an input starts somewhere inside its storage, and is read from the storage's start.",
        "pytorch/pytorch#194719: a kernel that takes each gradient for a tensor of its own reads, of the slices that "
        "torch.cat hands back, the wrong part.",
        DOUBLE,
        "return 2 * grad_output.as_strided(grad_output.shape, grad_output.stride(), 0)",
        RIGHT,
    ),
    explained(
        "MB404",
        "grad_output is expanded, with stride 0, as behind .sum(): one number stands for many. Code that walks through "
        "memory reads past its end, and code that writes into it writes all elements at once.",
        "ROCm/TransformerEngine PR#623: the kernel read past the allocation, and the gradients were inf or NaN; "
        "pytorch/pytorch#64529 is where people learn that .sum() does this.",
        DOUBLE,
        "if 0 in grad_output.stride():  # from .sum(), but perhaps only over one axis\n"
        "    return torch.full_like(grad_output, 2 * grad_output.flatten()[0].item())\n" + RIGHT,
        RIGHT,
    ),
    explained(
        "MB405",
        "Images in channels-last layout give another gradient than the same ones in the usual layout.",
        "open-mmlab/mmcv PR#737: operators on images took contiguous inputs and gradients for granted.",
        IMAGES,
        "n, c, h, w = grad_output.shape\nreturn 2 * grad_output.as_strided((n, c, h, w), (c * h * w, h * w, w, 1))",
        RIGHT,
    ),
    explained(
        "MB406",
        "A tensor may be negated or conjugated by a mere flag (x.conj().imag), with the numbers in memory as they "
        "were. Whoever reads the storage misses it.",
        "pytorch/pytorch#194719: raw memory is all that a kernel sees; what else makes up a tensor is to be resolved "
        "before.",
        DOUBLE,
        "raw = torch.empty(0, dtype=grad_output.dtype)\n"
        "place = grad_output.storage_offset(), grad_output.shape, grad_output.stride()\n"
        "return 2 * raw.set_(grad_output.detach().untyped_storage(), *place)",
        RIGHT,
    ),
)
