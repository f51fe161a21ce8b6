"""MB706: an output that no loss uses."""

from collections.abc import Iterator

import torch

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.rules.skeletons import NOT_MATERIALIZED


@rule("MB706", "May an output go unused?", "2 passes an output", needs="plain two-outputs", skeleton=NOT_MATERIALIZED)
def unused_output(case: Case) -> Iterator[Finding]:
    """A loss that uses one of the outputs gets the derivative of that output alone.

    Where one of several outputs is unused, backward crashes or returns a wrong gradient.

    Seen in: pytorch/pytorch#58511: a Function that passes two tensors through, of which one goes unused: that one's
    layer gets a gradient of zeros where one expects None.

    Wrong:
        return grad_sin * x.cos() - grad_cos * x.sin()

    Right:
        grad = torch.zeros_like(x)
        if grad_sin is not None:
            grad = grad + grad_sin * x.cos()
        if grad_cos is not None:
            grad = grad - grad_cos * x.sin()
        return grad
    """
    targets = case.targets
    for target in targets:
        graph = case.run()
        cotangent = case.plain.cotangents[target]
        expected = case.differentiate(
            case.run(), [c if i == target or c is None else torch.zeros_like(c)
                            for i, c in enumerate(case.plain.cotangents)]
        )  # fmt: skip
        others = [i for i in targets if i != target]
        # The other outputs stay in the graph, behind operations that give them no gradient.
        loss = (graph.outputs[target] * cotangent.conj()).sum()
        loss = loss + sum(graph.outputs[i].detach().abs().sum() * 0 for i in others)
        asked = [leaf for leaf in graph.leaves if leaf.requires_grad]
        try:
            found = iter(torch.autograd.grad(loss.real if loss.is_complex() else loss, asked, allow_unused=True))
        except Exception as error:
            yield case.fail(
                f"backward raises when only output {target} is used: {error}",
                cause="backward counts on a gradient for each output",
                fix="test each grad_output for None before using it",
            )
            return
        actual = [next(found) if leaf.requires_grad else None for leaf in graph.leaves]
        message = f"is wrong when only output {target} is used"
        yield from differing(case, actual, expected, message, f"only when output {target} is used alone")
