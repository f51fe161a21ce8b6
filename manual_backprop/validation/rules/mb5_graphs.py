"""MB504, MB505 and MB511: a pass depends on its own graph, and on nothing that ran before it or in between."""

from collections.abc import Iterator
from typing import Any

import torch

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.locate import wrong_derivatives
from manual_backprop.validation.diagnosis.patterns import differing
from manual_backprop.validation.exceptions import Broken, Inconclusive, raised_on_purpose
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.rule import rule
from manual_backprop.validation.subject import Gradients, Graph

MB504_SKELETON = """
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
"""
MB505_SKELETON = """
last = {}


class Square(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad_output):
        ___


validate(Square, (randn(4, 3),))
"""
MB511_SKELETON = """
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
"""

STATE: dict[str, Any] = {
    "cause": "there is state outside of ctx: a class attribute, a module global, a counter or a cache",
    "fix": "keep what backward needs on ctx, by save_for_backward",
}


@rule("MB504", "Same result the second time?", "4 passes", skeleton=MB504_SKELETON)
def second_backward(case: Case) -> Iterator[Finding]:
    """A second backward over one graph gives the same gradients, and a third one the gradients of another grad_output.

    A second backward through the same graph (retain_graph=True) gives other gradients than the first, or crashes: the
    first backward has used up or changed something.

    Seen in: dmlc/dgl PR#1060: a cache on ctx leaks unless backward clears it, and once cleared it is gone for a
    second backward with retain_graph=True.

    Wrong:
        return ctx.factors.pop() * x * grad_output

    Right:
        return ctx.factors[0] * x * grad_output
    """
    graph = case.run()
    other = [None if c is None else c.flip(0) * 0.5 if c.ndim else c * 0.5 for c in case.plain.cotangents]
    expected = [case.plain.gradients, case.plain.gradients, case.gradients(cotangents=other)]
    for number, (given, wanted) in enumerate(zip((case.plain.cotangents,) * 2 + (other,), expected, strict=True)):
        try:
            actual = case.differentiate(graph, given, retain_graph=True)
        except Broken as broken:
            message = f"backward number {number + 1} over one graph raises: {broken.error}"
            tell = case.warn if raised_on_purpose(broken.error) else case.fail
            cause = "backward frees or overwrites what it saved"
            yield tell(message, cause=cause, fix="keep what is saved, because the caller said retain_graph=True")
            return
        words: dict[str, Any] = {
            "cause": "backward changes or caches what it works with",
            "fix": "let backward depend on saved tensors and grad_output alone, and change neither",
        }
        message = f"is different in backward number {number + 1} over one graph"
        found = list(differing(case, actual, wanted, message, noise=case.still, **words))
        yield from found
        if found:
            return


@rule("MB505", "Do two graphs stay apart?", "4 passes", skeleton=MB505_SKELETON)
def interleaved_graphs(case: Case) -> Iterator[Finding]:
    """Two graphs that are alive at once do not disturb each other.

    Two calls whose backward passes come later (a layer used twice, two losses) disturb each other, because the state of
    one call is kept in a place that all calls share.

    Seen in: facebookarchive/caffe2 PR#1418: the states of dropout were overwritten between the forward and the
    backward, which made wrong results and no noise.

    Wrong:
        return 2 * last['x'] * grad_output

    Right:
        (x,) = ctx.saved_tensors
        return 2 * x * grad_output
    """
    expected = [case.plain.gradients, case.gradients(case.elsewhere("interleaved"), copied=False)]
    for order in ((0, 1), (1, 0)):
        graphs = [case.run(), case.run(case.elsewhere("interleaved"), copied=False)]
        actual: dict[int, Gradients] = {}
        for which in order:
            graph = graphs[which]
            actual[which] = case.differentiate(graph, case.cotangents(graph.outputs))
            graphs[which] = graph = Graph([], [])
        for which in (0, 1):
            message = "is different when a second forward ran before its backward"
            found = list(differing(case, actual.pop(which), expected[which], message, noise=case.still, **STATE))
            yield from found
            if found:
                return


@rule("MB511", "Is a pass free of what ran before?", "6 passes", skeleton=MB511_SKELETON)
def global_state(case: Case) -> Iterator[Finding]:
    """A pass with other inputs, or without grad, changes no later pass.

    The result depends on what ran before, or a pass changes something that the whole program shares: a cache, the
    random generator, a flag.

    Seen in: RobinBruegger/RevTorch#3: a forward that is run again for the backward drew another mask; the cure that
    was asked for, torch.manual_seed in the backward, writes to what the whole program shares.

    Wrong:
        torch.manual_seed(ctx.seed)  # seeds the whole program
        mask = torch.rand(grad_output.shape) < 0.5

    Right:
        mask = torch.rand(grad_output.shape, generator=torch.Generator().manual_seed(ctx.seed)) < 0.5
    """
    for _ in range(2):
        case.gradients(case.elsewhere("state"), copied=False)
        found = list(_repeated(case, case.gradients(), "after a pass with other inputs"))
        if found:
            yield from found
            return
    graph = case.run()
    with torch.no_grad():
        case.run(case.elsewhere("evaluated"), copied=False)
    actual = case.differentiate(graph, case.plain.cotangents)
    found = list(_repeated(case, actual, "when a forward without grad ran before its backward"))
    yield from found or list(_reseeded(case)) or _right_elsewhere(case)


def _right_elsewhere(case: Case) -> Iterator[Finding]:
    """A failure where the gradient is right for the first sample and wrong for a second one.

    A mask or a buffer that the first pass left behind gives the same gradients however often the first sample is
    repeated, and so escapes the comparisons above; it is wrong for another sample.
    """
    if case.large or not case.trusted or not case.hand_written:
        return
    try:
        if case.oracle.verdict() != "right":
            return
        oracle = case.oracle_at(case.elsewhere("state"))
        setting = "for a second sample of the same shapes, though it is for the first"
        yield from (finding for finding in wrong_derivatives(case, oracle, setting) if finding.index is not None)
    except (Broken, Inconclusive):
        return


def _reseeded(case: Case) -> Iterator[Finding]:
    """A failure where a pass leaves torch's random state the same from whatever state it started.

    Then it has set the global seed. The gradients themselves do not show this, because the same seed gives the same
    gradients; whoever draws random numbers afterwards gets the same ones after every pass.
    """
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        case.gradients()
        ends.append(torch.get_rng_state())
    if torch.equal(*ends):
        yield case.fail(
            "a pass sets torch's global seed, so whoever draws random numbers after it gets the same ones each time",
            cause="torch.manual_seed is called inside forward or backward",
            fix="draw from a torch.Generator that the Function makes, or take the mask as an input",
        )


def _repeated(case: Case, actual: Gradients, words: str) -> Iterator[Finding]:
    message = f"is different {words}"
    yield from differing(case, actual, case.plain.gradients, message, noise=case.still, **STATE)
