"""A case: a subject, the results that many rules need, each made once, and the words in which a rule answers."""

import contextlib
import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manual_backprop.validation import comparison, precision, tolerances
from manual_backprop.validation.audit import Audit, audited, functions_of, hand_written, reads_raw_memory
from manual_backprop.validation.exceptions import Broken
from manual_backprop.validation.oracle import Oracle
from manual_backprop.validation.report.finding import Finding, Status
from manual_backprop.validation.rule import Rule
from manual_backprop.validation.subject import Gradients, Subject
from manual_backprop.validation.tolerances import Mismatch, coarsest, largest


@dataclass
class Plain:
    """One forward and backward pass in the plain setting."""

    outputs: list[Tensor]
    cotangents: list[Any]
    gradients: Gradients


class Case(Subject):
    """A subject as the rules are asked about it.

    Attributes:
        trusted: False for a surrogate gradient, which is not meant to be the derivative and is not compared with one.
        sample: the number of this sample, where there are several; None otherwise.
        judged: the slots whose gradient an oracle of values (differences, the reference) has judged, right or wrong.
        rule: the rule that is asked now.
        reported: the message of the exception that has been reported as a failure, so that the other rules which it
            stops do not report it again.
    """

    trusted = True
    sample: int | None = None
    reported: str = ""
    rule: Rule

    @functools.cached_property
    def judged(self) -> set[int]:
        return set()

    def prepare(self) -> None:
        """Measures dtype and noise of a large sample now, because later a rule's own tensors take memory, too."""
        if self.large:
            with contextlib.suppress(Broken):
                _ = self.dtype, self.noise

    # --- made once ----------------------------------------------------------------------------------------------------

    @property
    def plain(self) -> Plain:
        """The pass in the plain setting, or the exception that it raised: made once, whichever of them it is."""
        if isinstance(self._plain, Broken):
            raise self._plain
        return self._plain

    @functools.cached_property
    def _plain(self) -> Plain | Broken:
        try:
            return self._made()
        except Broken as broken:
            return broken

    @property
    def plain_runs(self) -> bool:
        """Whether the plain pass has been made and raised nothing."""
        return isinstance(vars(self).get("_plain"), Plain)

    def _made(self) -> Plain:
        graph = self.run()
        cotangents = self.cotangents(graph.outputs)
        outputs = [output.detach().clone() for output in graph.outputs]
        self.kinds = [(output.shape, output.requires_grad) for output in graph.outputs]
        self.functions, self.hand_written = functions_of(graph.outputs), hand_written(graph.outputs)
        gradients = self.differentiate(graph, cotangents)
        for i, gradient in enumerate(gradients):  # one by one, so that at most one gradient is in memory twice
            gradients[i] = None if gradient is None else gradient.detach().clone()
        return Plain(outputs, cotangents, gradients)

    @functools.cached_property
    def functions(self) -> list[type]:
        """The Function classes in the graph, outermost first."""
        return functions_of(self.run().outputs)

    @functools.cached_property
    def hand_written(self) -> bool:
        """Whether a backward that is not torch's own is in the graph."""
        return hand_written(self.run().outputs)

    @functools.cached_property
    def reads_raw_memory(self) -> bool:
        return reads_raw_memory(self)

    @property
    def audit(self) -> Audit:
        """The plain pass with the raw return of each hand-written backward; made anew each time where it is large."""
        return audited(self) if self.large else self._audit

    @functools.cached_property
    def _audit(self) -> Audit:
        return audited(self)

    @functools.cached_property
    def computes_in(self) -> torch.dtype:
        return precision.computes_in(self)

    @functools.cached_property
    def oracle(self) -> Oracle:
        """The oracle at the plain sample."""
        plain = self.plain
        return Oracle(self, self.computes_in, known=(plain.outputs, plain.cotangents, plain.gradients))

    def oracle_at(
        self,
        values: Sequence[Tensor],
        others: Sequence[object] | None = None,
        widen: bool = True,
        longest: float = math.inf,
    ) -> Oracle:
        """The oracle at another sample; the arguments are those of `Oracle`."""
        return Oracle(self, self.computes_in, values, others, widen, longest)

    # --- two gradients of it ------------------------------------------------------------------------------------------

    @functools.cached_property
    def dtype(self) -> torch.dtype:
        """The least precise floating dtype that the numbers pass through: of a tensor, or of a cast inside forward."""
        dtypes = (coarsest([*self.values, *self.plain.outputs]), self.computes_in)
        return min(dtypes, key=tolerances.PRECISION_ORDER.index)

    @functools.cached_property
    def noise(self) -> list[float | Tensor]:
        """The change of each gradient when inputs and cotangents move by one rounding (see `tolerances`)."""
        return self.noise_at(self.values, self.plain.cotangents, self.plain.gradients)

    @property
    def still(self) -> list[float]:
        """A noise of zero for each slot, because the same computation on the same numbers needs no allowance."""
        return [0.0] * len(self.slots)

    def noise_at(self, values: Sequence[Tensor], cotangents: Sequence[Any], expected: Gradients) -> list[Any]:
        sizes = [largest(gradient) for gradient in self.plain.gradients]
        return comparison.noise_at(self, values, cotangents, expected, sizes)

    def compare(
        self, actual: Gradients, expected: Gradients, noise: Sequence[Any] | None = None, scale: float = 1.0
    ) -> list[tuple[int, Mismatch]]:
        """The slots whose two gradients differ by more than two runs of one function may differ.

        Args:
            noise: the conditioning noise of each slot; the plain setting's where it is None.
            scale: how many times larger the cotangents are than the plain ones.
        """
        self.compared += sum(
            any(g is not None and g.numel() for g in two) for two in zip(actual, expected, strict=True)
        )
        spread = [tolerances.NOISE_FACTOR * scale * n for n in (self.noise if noise is None else noise)]
        return comparison.mismatches(actual, expected, spread, self.dtype)

    def changed(self, before: Sequence[bytes | None], after: Sequence[bytes | None]) -> list[int]:
        """The places at which two snapshots (`audit.snapshot`) differ."""
        self.compared += sum(old is not None for old in before)
        return [i for i, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]

    # --- answers ------------------------------------------------------------------------------------------------------

    def ask(self, rule: Rule) -> None:
        """Starts to ask a rule: findings get the code of this rule from here on, and comparisons are counted for it."""
        self.rule, self.compared, self._started = rule, 0, time.perf_counter()

    def finding(self, status: Status, message: str, **fields: Any) -> Finding:
        """A complete finding of the rule that is asked, with a repro and the seconds since the finding before."""
        before, self._started = self._started, time.perf_counter()
        place = f"sample {self.sample}: " if self.sample is not None and status != "pass" else ""
        return Finding(
            status,
            place + message,
            code=self.rule.code,
            check=self.rule.name,
            family=self.rule.family,
            repro=self._repro(),
            seconds=self._started - before,
            sample=self.sample,
            **fields,
        )

    def fail(self, message: str, **fields: Any) -> Finding:
        return self.finding("fail", message, **fields)

    def warn(self, message: str, **fields: Any) -> Finding:
        return self.finding("warn", message, **fields)

    def _repro(self) -> str:
        reference = f", reference={self.reference.name}" if self.reference is not None else ""
        batch_dim = f", batch_dim={self.batch_dim}" if self.batch_dim is not None else ""
        return f'validate({self.name}, inputs, only="{self.rule.code}"{reference}{batch_dim}, seed={self.seed})'
