"""False alarms of `validate` on torch's own operators, whose derivatives are right: there should be none.

    python scripts/sweep_op_db.py                       # every op of op_db, float64, CPU, two processes
    python scripts/sweep_op_db.py --match linalg        # those whose name contains this
    python scripts/sweep_op_db.py --db autograd_function_db

Runs every rule but compile and export on the first sample of each op that has an input that requires grad. Prints the
counts, then each failure, each gradient that is unchecked and each refusal with its reason. `autograd_function_db`
holds torch's own test Functions, some of which are wrong. Needs `expecttest`, which torch's testing module imports.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

SKIP = ("MB806", "MB807")

# What it finds that torch has: told apart from false alarms, each with its reason. Codes beyond these are failures.
KNOWN: dict[str, tuple[tuple[str, ...], str]] = {
    "as_strided": (("MB4", "MB804"), "reads the memory behind its input, by definition"),
    "as_strided_copy": (("MB4",), "reads the memory behind its input, by definition"),
    "as_strided_scatter": (("MB1", "MB4", "MB8"), "wrong in torch for this sample: gradcheck says so too"),
    "normal": (("MB1", "MB604", "MB8"), "torch takes a sample to be constant"),
    "nn.functional.max_unpool3d": (("MB1", "MB8"), "duplicate indices in this sample: gradcheck says so too"),
    "nn.functional.hardsigmoid": (("MB101",), "torch's 1/6 is good to 3e-8 in float64"),
    "nn.functional.rrelu": (
        ("MB509", "MB510", "MB902", "MB8"),
        "torch fills the noise after saving it: offloading loses it",
    ),
    "nn.functional.linear_cross_entropy": (("MB506", "MB8"), "keeps tensors on ctx, and is differentiable once"),
    "select_scatter": (("MB804",), "wrong in torch: the gradient under vmap is as many times too large as dim is long"),
    "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu": (
        ("MB401", "MB405"),
        "an internal op, for one layout",
    ),
    "NumpyCubeNotComposableAutogradFunction": (("MB",), "really wrong: ignores grad_output"),
    "NumpySortAutogradFunction": (("MB",), "really wrong: its forward returns the input unsorted"),
    "CubeGenVmapAutogradFunction": (("MB",), "really wrong: ignores the second grad_output"),
    "ScaleGradGenVmapAutogradFunction": (("MB",), "no derivative by intention (skip='MB1' tells so)"),
    "ZeroGradientsGenVmapAutogradFunction": (("MB",), "no derivative by intention, and of a larger shape"),
    "NumpyMulAutogradFunction": (("MB203",), "counts on the engine to sum a broadcast gradient"),
    "MulGenVmapAutogradFunction": (("MB203",), "counts on the engine to sum a broadcast gradient"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--db", default="op_db", choices=["op_db", "autograd_function_db"])
    parser.add_argument("--match", default="", help="only ops whose name contains this")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", help="append one line an op to this file")
    parser.add_argument("--worker", type=int, nargs=2, metavar=("START", "STEP"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        for row in swept(arguments.db, arguments.match, *arguments.worker):
            print(json.dumps(row), flush=True)
        return 0
    started = time.perf_counter()
    rows = list(in_processes(arguments))
    return told(rows, time.perf_counter() - started)


def in_processes(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of several worker processes; one that dies is started again behind the op that killed it."""
    step, names = arguments.processes, [op.name for op in operators(arguments.db, arguments.match)]
    places = list(range(step))
    workers = {k: start(arguments, k, step) for k in range(step) if k < len(names)}
    sink = open(arguments.json, "a", encoding="utf-8") if arguments.json else None  # noqa: SIM115
    while workers:
        for k, worker in list(workers.items()):
            assert worker.stdout is not None
            line = worker.stdout.readline()
            if line:
                places[k] += step
                row = json.loads(line)
            elif worker.wait() == 0:
                del workers[k]
                continue
            else:
                row = {"op": names[places[k]], "status": "died", "reason": f"exit {worker.returncode}", "seconds": 0}
                places[k] += step
                workers[k] = start(arguments, places[k], step)
            if sink:
                sink.write(json.dumps(row) + "\n")
                sink.flush()
            yield row


def start(arguments: argparse.Namespace, place: int, step: int) -> subprocess.Popen:
    command = [sys.executable, __file__, "--db", arguments.db, "--match", arguments.match]
    command += ["--worker", str(place), str(step)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def operators(db: str, match: str) -> list[Any]:
    if db == "op_db":
        from torch.testing._internal.common_methods_invocations import op_db as found
    else:
        from torch.testing._internal.autograd_function_db import autograd_function_db as found
    return [op for op in found if op.supports_autograd and match in op.name]


def swept(db: str, match: str, start: int, step: int) -> Iterator[dict[str, Any]]:
    import torch

    torch.set_num_threads(1)
    for op in operators(db, match)[start::step]:
        begun = time.perf_counter()
        row = {"op": op.name + (f".{op.variant_test_name}" if op.variant_test_name else ""), "reason": ""}
        try:
            row |= asked(op)
        except (TypeError, ValueError) as error:
            row |= {"status": "refused", "reason": str(error)}
        except Exception as error:
            row |= {"status": "error", "reason": f"{type(error).__name__}: {error}"}
        yield row | {"seconds": round(time.perf_counter() - begun, 2)}


def asked(op: Any) -> dict[str, Any]:
    import torch
    from torch import Tensor
    from torch.utils import _pytree as pytree

    from manual_backprop import validate

    torch.manual_seed(0)
    if torch.float64 not in op.supported_backward_dtypes("cpu"):
        return {"status": "no float64", "reason": "no derivative in float64 on the CPU"}
    for sample in op.sample_inputs("cpu", torch.float64, requires_grad=True):
        inputs = (sample.input, *sample.args)
        if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in pytree.tree_leaves(inputs)):
            break
    else:
        return {"status": "no sample", "reason": "no sample requires grad"}

    def function(*arguments: Any) -> Any:
        if op.name.endswith("AutogradFunction"):  # their wrappers take another number of arguments than the op
            return op.op(*arguments, **sample.kwargs)
        wrapped = op.gradcheck_wrapper(op.op, *arguments, **sample.kwargs)
        return sample.output_process_fn_grad(wrapped)

    report = validate(function, inputs, skip=SKIP)
    statuses = Counter(finding.status for finding in report.findings)
    told = report.errors or report.failures or report.unchecked
    reason = "; ".join(f"{finding.code} {finding.message} [{finding.cause}]" for finding in told)
    codes = sorted({finding.code for finding in report.failures})
    known, why = KNOWN.get(op.name, ((), ""))
    explained = bool(codes) and all(code.startswith(known) for code in codes)
    return {
        "status": "found in torch" if report.verdict == "failed" and explained else report.verdict,
        "reason": f"{why}: {reason}" if explained else reason,
        "codes": codes,
        "counts": statuses,
        "inconclusive": [f.code for f in report.findings if f.status == "inconclusive"],
    }


def told(rows: list[dict[str, Any]], seconds: float) -> int:
    statuses = Counter(row["status"] for row in rows)
    print(f"{len(rows)} ops in {seconds:.0f} s: " + ", ".join(f"{n} {status}" for status, n in statuses.most_common()))
    findings: Counter[str] = Counter()
    for row in rows:
        findings.update(row.get("counts", {}))
    print("findings: " + ", ".join(f"{n} {status}" for status, n in findings.most_common()))
    for status in ("failed", "found in torch", "error", "died", "unchecked", "refused", "no float64", "no sample"):
        for row in rows:
            if row["status"] == status:
                print(f"{status:>14} {row['op']}: {row['reason'][:600]}")
    return 1 if statuses["failed"] or statuses["error"] or statuses["died"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
