"""The Jacobians of backpropagation in numerator and denominator layout: python scripts/jacobian_layout.py --help"""

import sys
from dataclasses import dataclass

from manual_backprop.chapter import pictures
from manual_backprop.chapter.jacobian_layout import layouts
from manual_backprop.chapter.run import Run, RunOptions, main, off_by


@dataclass(frozen=True)
class Options(RunOptions):
    """Σ′(z) as a diagonal matrix, numerator against denominator layout, ∂z/∂w as a third-order tensor against BP4."""

    sizes: tuple[int, int, int] = (3, 4, 2)
    """Neurons of the three layers."""
    seed: int = 0
    """Of weights, biases, input and desired output."""


RULES = [
    ("sizes", "three sizes from 1 to 8", lambda o: all(1 <= n <= 8 for n in o.sizes)),
    ("seed", "from 0 to 2**63 - 1", lambda o: 0 <= o.seed < 2**63),
]


def show(options: Options, run: Run) -> bool:
    found = layouts(options.sizes, options.seed)
    rows = [(i.words, " × ".join(map(str, i.left.shape)), off_by(i.difference)) for i in found.identities]
    run.table("equal to machine precision", ("", "shape", "off by"), rows)
    tensor = found.third_order
    run.say(
        f"∂z^2/∂w^2 has {tensor.numel()} elements, of which {int(tensor.count_nonzero())} are not 0; "
        f"BP4 has {found.gradients.weights[0].numel()}, and needs no more"
    )
    run.picture("jacobian_layout", pictures.jacobian_layout(found))
    run.scalars("difference", [i.difference for i in found.identities])
    return all(i.difference < 1e-14 for i in found.identities)


if __name__ == "__main__":
    sys.exit(main(Options(), RULES, show))
