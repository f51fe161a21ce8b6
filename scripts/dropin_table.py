"""Print the README's table of drop-in rows from test results: python scripts/dropin_table.py [--junit FILE]"""

import argparse
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
ROWS: dict[str, str] = runpy.run_path(str(ROOT / "tests" / "dropin" / "rows.py"))["ROWS"]
NOT_RUN, FAILED = "skipped", ("failure", "error")


class Result(NamedTuple):
    """A test that ran: the row it belongs to, if any, with which backward, what torch says where it refuses, and
    whether torch's own derivative takes the place of our backward, as documented."""

    name: str
    passed: bool
    row: str
    backward: str
    torch: str
    ignored: str


def tests_in(junit: Path) -> Iterator[Result]:
    """Of a JUnit file of pytest's, with the properties that tests/dropin/conftest.py records."""
    for case in ElementTree.parse(junit).iter("testcase"):
        found = {p.get("name"): p.get("value", "") for p in case.iter("property")}
        if case.find(NOT_RUN) is None:
            passed = all(case.find(outcome) is None for outcome in FAILED)
            name = f"{case.get('classname')}::{case.get('name')}"
            yield Result(name, passed, *(found.get(key, "") for key in Result._fields[2:]))


def line(row: str, tests: list[Result]) -> str:
    """A line of the table."""
    mine = [test for test in tests if test.row == row]
    ours = _passed(test for test in mine if test.backward == "right")
    caught = _passed(test for test in mine if test.backward == "canary" and not test.ignored)
    ignored = _passed(test for test in mine if test.backward == "canary" and test.ignored)
    canaries = "; ".join(filter(None, (caught, ignored and f"{ignored} ignored by torch")))
    refusals = dict.fromkeys(test.torch for test in mine if test.torch)
    torch = "<br>".join(f"“{sentence}”".replace("|", r"\|") for sentence in refusals) or "the same"
    return f"| {row} | {ROWS[row]} | {ours} | {torch} | {canaries} |"


def _passed(tests: Iterable[Result]) -> str:
    passed = [test.passed for test in tests]
    return f"{sum(passed)} of {len(passed)}" if passed else ""


def complaints(tests: list[Result]) -> list[str]:
    """What keeps the contract from being kept: a row without a test or a canary, and each test that failed."""
    seen = {(test.row, test.backward) for test in tests}
    missing = [
        f"no test with the {b} backward: {row}" for row in ROWS for b in ("right", "canary") if (row, b) not in seen
    ]
    return missing + [f"failed: {test.name}" for test in tests if not test.passed]


def run_pytest(junit: Path, arguments: list[str]) -> None:
    """Its output goes to stderr; a test that fails is among the results."""
    command = [sys.executable, "-m", "pytest", "-q", "-k", "dropin", f"--junit-xml={junit}", *arguments]
    subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
    if not junit.exists():
        sys.exit("pytest wrote no results")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, epilog="Other arguments are handed on to pytest.")
    parser.add_argument("--junit", type=Path, help="results of `pytest -k dropin --junit-xml` (default: run it)")
    options, arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        junit = options.junit or Path(folder) / "junit.xml"
        if not options.junit:
            run_pytest(junit, arguments)
        elif arguments or not junit.is_file():
            parser.error(f"--junit: expected a file and nothing else, found {' '.join([str(junit), *arguments])}")
        tests = list(tests_in(junit))
    print("| row | what the user does | ours: passed | torch.nn | canaries caught |")
    print("|---|---|---|---|---|")
    print("\n".join(line(row, tests) for row in ROWS))
    wrong = complaints(tests)
    print("\n".join(wrong), end="\n" if wrong else "", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
