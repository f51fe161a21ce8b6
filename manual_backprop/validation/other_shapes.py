"""The gradient at other shapes: is it the derivative there?"""

from collections.abc import Callable, Iterator

from manual_backprop.validation.case import Case
from manual_backprop.validation.diagnosis.locate import wrong_derivatives
from manual_backprop.validation.exceptions import Broken, Skipped, raised_on_purpose
from manual_backprop.validation.report.finding import Finding
from manual_backprop.validation.samples import Reshaped


def judged(
    case: Case,
    other: Reshaped,
    setting: str,
    crash: Callable[[Case, Broken, str], Finding],
    shape_matters: bool = False,
) -> Iterator[Finding]:
    """Whether the gradient at other shapes is the derivative."""
    try:
        oracle = case.oracle_at(other.values, other.others)
    except Broken as broken:
        if raised_on_purpose(broken.error):
            raise Skipped(f"{broken.stage} refuses: {broken.error}") from broken
        # A gradient of the wrong shape is a failure, because backward gave a wrong answer; a loud refusal is not.
        # Told by torch's own English, because torch has no exception class for it. Should the words change, such a
        # gradient is reported by `crash` (a warning under MB703) instead.
        wrong = "invalid gradient" in str(broken) and shape_matters
        yield (raises if wrong else crash)(case, broken, setting)
        return
    if case.trusted:
        yield from wrong_derivatives(case, oracle, setting)


def raises(case: Case, broken: Broken, setting: str) -> Finding:
    return case.fail(
        f"{broken.stage} raises {setting}: {type(broken.error).__name__}: {' '.join(str(broken.error).split())}",
        cause="backward takes a shape for granted (view(-1, …), squeeze(), an index 0)",
        fix="name the sizes, and reduce with dim=",
    )


def refuses(case: Case, broken: Broken, setting: str) -> Finding:
    return case.warn(
        f"{broken.stage} raises {setting}, where forward runs: {' '.join(str(broken.error).split())}",
        cause="backward is written for one rank (t(), mm, sum(0))",
        fix="use mT, @ and a sum over all leading axes",
    )
