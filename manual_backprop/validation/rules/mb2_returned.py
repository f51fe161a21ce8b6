"""MB201, MB203 to MB205: the raw return of `backward`, below the engine, which repairs shapes and dtypes in silence."""

from collections.abc import Iterator

import torch
from torch import Tensor

from manual_backprop.validation.audit import Call, audited
from manual_backprop.validation.case import Case
from manual_backprop.validation.exceptions import Broken
from manual_backprop.validation.naming import counted
from manual_backprop.validation.oracle import in_dtype
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.rules.skeletons import LINEAR, SQUARE

MB201_SKELETON = """
class Scale(Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x * factor

    @staticmethod
    def backward(ctx, grad_output):
        ___


validate(Scale, (randn(4, 3), 2.0))
"""
MB205_SKELETON = """
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
"""


@rule("MB201", "One gradient for each argument?", "1 pass", needs="audit", skeleton=MB201_SKELETON)
def gradient_count(case: Case) -> Iterator[Finding]:
    """backward returns one value for each argument of forward, a tensor or None.

    backward has to return one value for each argument of forward, None for an argument that is no tensor. Torch raises
    an error for most wrong counts, but only at the first backward, and accepts surplus Nones at the end.

    Seen in: huawei-noah/AdderNet#21: “returned an incorrect number of gradients (expected 2, got 1)”, at the first
    backward of the training script.

    Wrong:
        return grad_output * ctx.factor  # forward has two arguments

    Right:
        return grad_output * ctx.factor, None
    """
    for call in case.audit.calls:
        case.compared += 1
        expected, found = len(call.arguments), len(call.values)
        names = ", ".join(argument.name for argument in call.arguments)
        too_many = any(value is not None for value in call.values[expected:])
        if found < expected or too_many:
            yield case.fail(
                f"{call.function.__name__}.backward returns {counted(found, 'gradient')} where forward takes "
                f"{counted(expected, 'argument')}",
                cause=f"the arguments are {names}",
                fix="return one gradient for each argument, None for an argument that is no tensor",
            )
            continue
        for name, value in zip(names.split(", "), call.values, strict=False):
            if value is not None and not isinstance(value, Tensor):
                yield case.fail(
                    f"{call.function.__name__}.backward returns a {type(value).__name__} as the gradient of `{name}`",
                    cause="a nested tuple, an array or a number is no gradient",
                    fix="return a tensor or None",
                    input=name,
                )


@rule("MB203", "Has each gradient its argument's shape?", "1 pass", needs="audit", skeleton=LINEAR)
def gradient_shape(case: Case) -> Iterator[Finding]:
    """Each gradient has the shape of its argument; the engine would sum a larger one without a word.

    A gradient has another shape than its input. Where the shape comes from broadcasting, the engine sums the gradient
    and nobody notices; whoever calls backward otherwise (torch.func, a fused optimizer, a test) gets the wrong shape.

    Seen in: ooples/AiDotNet.Tensors#234: the gradient of a bias was summed over the first axis only, and stayed too
    large for a batch of sequences.

    Wrong:
        return grad_output @ weight, grad_output.mT @ input, grad_output

    Right:
        return grad_output @ weight, grad_output.mT @ input, grad_output.sum(0)
    """
    for call, number, value in _returned(case):
        argument = call.arguments[number]
        if argument.shape is not None and value.shape != argument.shape:
            axes = _extra_axes(tuple(value.shape), tuple(argument.shape))
            yield case.fail(
                f"{call.function.__name__}.backward returns shape {tuple(value.shape)} as the gradient of "
                f"`{argument.name}`, which has {tuple(argument.shape)}",
                cause=f"the sum over {axes} is missing" if axes else "perhaps it is the gradient of another argument",
                fix="sum over the axes along which forward broadcast it (Tensor.sum_to_size)",
                input=argument.name,
            )


@rule("MB204", "Has each gradient its argument's dtype?", "2 passes", needs="audit", skeleton=SQUARE)
def gradient_dtype(case: Case) -> Iterator[Finding]:
    """Each gradient has the dtype of its argument, in the sample's dtype and in the other of float32 and float64.

    A gradient has another dtype than its input. The engine casts the gradient back, so .grad looks right although its
    numbers have lost digits.

    Seen in: pytorch/pytorch#87979: bfloat16 in the forward, float16 in the backward, under custom_bwd.

    Wrong:
        return 2 * x.float() * grad_output.float()

    Right:
        return 2 * x * grad_output
    """
    for values in _dtype_variants(case):
        for call, number, value in _returned(case, values):
            argument = call.arguments[number]
            if argument.dtype is not None and value.dtype != argument.dtype:
                yield case.fail(
                    f"{call.function.__name__}.backward returns {value.dtype} as the gradient of `{argument.name}`, "
                    f"which is {argument.dtype}",
                    cause="a constant of another dtype, or a cast, is left in backward",
                    fix=f"return it in {argument.dtype}; make constants with new_zeros, zeros_like or dtype=",
                    input=argument.name,
                )
                return


@rule("MB205", "Is it on its argument's device?", "1 pass", needs="audit", skeleton=MB205_SKELETON, status="warn")
def gradient_device(case: Case) -> Iterator[Finding]:
    """Each gradient is on the device of its argument and in its layout; another layout is a warning.

    A gradient lies on another device than its input, or has another layout (sparse for a dense input). Training works
    as long as nothing but one kind of optimizer reads that gradient.

    Seen in: pytorch/pytorch#105846: a custom backward returned a sparse gradient for a dense weight, and the next
    operation on its way back does not take one.

    Wrong:
        return None, torch.sparse_coo_tensor(index.unsqueeze(0), grad_output, ctx.shape, check_invariants=True)

    Right:
        return None, grad_output.new_zeros(ctx.shape).index_add(0, index, grad_output)
    """
    for call, number, value in _returned(case):
        argument = call.arguments[number]
        if argument.device is not None and (value.device != argument.device or value.layout != argument.layout):
            # Another layout is a warning only, because torch's own embedding may return a sparse gradient, too.
            tell = case.fail if value.device != argument.device else case.warn
            yield tell(
                f"{call.function.__name__}.backward returns the gradient of `{argument.name}` on {value.device} as "
                f"{value.layout}, and `{argument.name}` is on {argument.device} as {argument.layout}",
                cause="backward makes a tensor on another device or in another layout",
                fix="make the tensor with new_zeros or zeros_like",
                input=argument.name,
            )


def _returned(case: Case, values: list[Tensor] | None = None) -> Iterator[tuple[Call, int, Tensor]]:
    """Each tensor that a Function returned for an argument that asked for it."""
    audit = case.audit if values is None else audited(case, values)
    for call in audit.calls:
        for number, (value, needed) in enumerate(zip(call.values, call.needed, strict=False)):
            if needed and isinstance(value, Tensor) and number < len(call.arguments):
                case.compared += 1
                yield call, number, value


def _dtype_variants(case: Case) -> Iterator[list[Tensor] | None]:
    yield None
    if case.reads_raw_memory:
        return  # because NumPy computes in float64 unless told otherwise, and may be meant for the sample's dtype only
    for other in (torch.float32, torch.float64):
        values = [in_dtype(value, other) for value in case.values]
        if any(a.dtype != b.dtype for a, b in zip(values, case.values, strict=True)):
            try:
                case.run(values)
            except Broken:
                continue
            yield values


def _extra_axes(found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """The axes over which the shape `found` has to be summed to become `wanted`, in words; empty where no sum does."""
    padded = (1,) * (len(found) - len(wanted)) + wanted
    if len(padded) != len(found) or any(w not in (1, f) for f, w in zip(found, padded, strict=True)):
        return ""
    axes = [i for i, (f, w) in enumerate(zip(found, padded, strict=True)) if f != w or i < len(found) - len(wanted)]
    return "axis " + ", ".join(map(str, axes))
