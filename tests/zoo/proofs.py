"""For each code, a few lines of plain torch that show an entry of the zoo to be wrong in that way.

Nothing here uses the validator. A proof is true where the entry is wrong; it assumes inputs of the kind that the
entries with its code have, and is no probe for anybody else's Function.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from manual_backprop.zoo.entry import Entry
from tests.zoo import proofs_of_transforms as transforms
from tests.zoo import proofs_of_use as use
from tests.zoo import proofs_of_values as values
from tests.zoo.calls import raw

PROOFS: dict[str, Callable[[Entry], bool]] = {
    **dict.fromkeys(("MB101", "MB104", "MB105", "MB106"), values.not_derivative),
    "MB102": values.against_reference,
    "MB103": values.other_values,
    "MB201": values.wrong_number,
    "MB202": lambda entry: any(
        g is None for g, x in raw(entry, entry.inputs()) if isinstance(x, Tensor) and x.requires_grad
    ),
    "MB203": values.any_raw(lambda grad, input: grad.shape != input.shape),
    "MB204": values.any_raw(lambda grad, input: grad.dtype != input.dtype),
    "MB205": values.any_raw(lambda grad, input: grad.layout != input.layout),
    "MB206": values.any_raw(lambda grad, input: bool(grad.isnan().any())),
    "MB207": values.shared_gradients,
    "MB208": values.frozen_subset_differs,
    "MB210": values.output_left_out,
    "MB211": values.output_varies_without_grad,
    "MB212": values.not_without_grad,
    "MB301": values.linear_in(lambda g: -g),
    "MB302": values.linear_in(lambda g: 65536 * g),
    "MB303": values.linear_in(lambda g: g * torch.linspace(-1, 2, g.numel(), dtype=g.dtype).view(g.shape)),
    "MB304": values.linear_in(torch.zeros_like),
    "MB305": values.across_outputs,
    "MB306": values.linear_in(lambda g: g * (torch.arange(g.numel()).view(g.shape) % g.shape[-1] == 0)),
    "MB401": values.same_values(lambda x: x.mT.contiguous().mT if x.dim() > 1 else x),
    "MB402": values.same_values(values.sliced),
    "MB403": values.same_values(values.offset),
    "MB404": values.expanded,
    "MB405": values.same_values(lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x),
    "MB406": values.same_values(values.flagged),
    "MB501": use.written("inputs"),
    "MB502": use.written("grad_output"),
    "MB503": use.written("saved"),
    "MB504": use.second_backward,
    "MB505": use.after_another_call,
    "MB506": use.leaks,
    "MB507": use.leaks,
    "MB508": use.change_after_forward_unnoticed,
    "MB509": use.offloaded,
    "MB510": use.checkpointed,
    "MB511": use.after_another_call,
    "MB601": use.low_precision(torch.float32),
    "MB602": use.low_precision(torch.bfloat16),
    "MB603": use.low_precision(torch.float16),
    "MB604": use.scaled_inputs(1e2, 1e4),
    "MB605": use.scaled_inputs(1e-30, 1e-200),
    "MB606": use.autocast(also_backward=False),
    "MB607": use.autocast(also_backward=True),
    "MB701": use.batch_of(0),
    "MB702": use.batch_of(1),
    "MB703": use.size_of_one,
    "MB704": use.batch_of(2, 4),
    "MB705": use.same_tensor_twice,
    "MB706": values.output_left_out,
    "MB801": transforms.not_second_derivative,
    "MB802": transforms.gradient_penalty,
    "MB803": transforms.wrong_tangent,
    "MB804": transforms.wrong_vmap,
    "MB805": transforms.wrong_under_func,
    "MB806": transforms.wrong_when_compiled,
    "MB807": transforms.wrong_when_exported,
    "MB901": transforms.not_repeatable,
    "MB902": transforms.not_thread_safe,
}
