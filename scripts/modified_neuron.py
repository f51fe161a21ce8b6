"""One neuron with f(z) ≠ σ(z), and linear neurons, validated: python scripts/modified_neuron.py --help"""

import sys
from collections import Counter
from dataclasses import dataclass

from manual_backprop.chapter import pictures
from manual_backprop.chapter.modified_neuron import EXERCISES, equations, softplus, validated
from manual_backprop.chapter.run import Run, RunOptions, main, off_by
from manual_backprop.validation import RULES as CODES


@dataclass(frozen=True)
class Options(RunOptions):
    """The chapter's exercises: one neuron with f(z) ≠ σ(z), and neurons that are all linear. Which equations change?"""

    skip: tuple[str, ...] = ()
    """Codes of rules of `validate` to leave out; MB806 and MB807, which compile, take most of the time."""
    samples: int = 5
    """In the mini-batch that the equations are held against autograd on."""
    seed: int = 0
    """Of the weights and the mini-batch."""


RULES = [
    ("skip", "codes of rules, such as MB806", lambda o: all(any(p.answers_to(c) for p in CODES) for c in o.skip)),
    ("samples", "from 1 to 1000", lambda o: 1 <= o.samples <= 1000),
    ("seed", "from 0 to 2**63 - 1", lambda o: 0 <= o.seed < 2**63),
]


def show(options: Options, run: Run) -> bool:
    found, passed = {}, True
    for exercise in EXERCISES:
        found[exercise.name] = equations(exercise, options.samples, options.seed)
        rows = [
            (f"{e.code} {'changes' if e.changes else 'stays'}", e.reads, off_by(e.unchanged), off_by(e.exercise))
            for e in found[exercise.name]
        ]
        title = f"{exercise.name}; how far off autograd the equations are"
        run.table(title, ("", "here it reads", "chapter's", "this"), rows, left=2)
        report = validated(exercise, options.skip, options.seed)
        counts = Counter(finding.status for finding in report.findings)
        other = [str(finding) for finding in report.findings if finding.status not in ("pass", "skip")]
        run.say(f"validate: {counts['pass']} rules pass, {counts['skip']} do not apply", *other, "")
        passed = passed and not other
    run.picture("modified_neuron", pictures.modified_neuron(softplus, found))
    for number, es in enumerate(found.values(), start=1):
        run.scalars(f"off_by/chapter_{number}", [e.unchanged for e in es])
        run.scalars(f"off_by/exercise_{number}", [e.exercise for e in es])
    return passed and all(e.exercise < 1e-14 for es in found.values() for e in es)


if __name__ == "__main__":
    sys.exit(main(Options(), RULES, show))
