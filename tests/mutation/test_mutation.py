"""Mutation: each mutant breaks what it says, `validate` notices all of them, and poor tests let the right ones live."""

import json
import sys

import pytest
import torch
from torch.autograd import Function

from manual_backprop.cli import main as cli
from manual_backprop.cli.loading import load
from manual_backprop.mutation.mutants import CannotMutate, Command, Mutant, Run, Validation, outcomes
from manual_backprop.mutation.ways import BY_NAME, MUTATIONS, installed, replacement


class Linear(Function):
    @staticmethod
    def forward(ctx, input, weight, bias, shift):
        ctx.save_for_backward(input, weight)
        return input @ weight.mT + bias - shift, input.sum(-1)

    @staticmethod
    def backward(ctx, grad_output, grad_sum):
        input, weight = ctx.saved_tensors
        grad_bias = grad_output.sum(0)
        return grad_output @ weight + grad_sum.unsqueeze(-1), grad_output.mT @ input, grad_bias, -grad_bias


def leaves():
    draw = torch.Generator().manual_seed(0)
    shapes = {"input": (4, 3), "weight": (3, 3), "bias": (3,), "shift": (3,)}
    return {n: torch.randn(s, generator=draw, dtype=torch.float64).requires_grad_() for n, s in shapes.items()}


def gradients(x, times=1):
    """The gradients of the `times`-th backward through one graph, and whether grad_output was left alone."""
    outputs = Linear.apply(*x.values())
    given = [2 * torch.randn(o.shape, generator=torch.Generator().manual_seed(1), dtype=o.dtype) for o in outputs]
    kept = [g.clone() for g in given]
    for _ in range(times):
        found = torch.autograd.grad(outputs, list(x.values()), given, retain_graph=True, allow_unused=True)
    untouched = all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))
    return dict(zip(x, found, strict=True)), untouched


def mutated(name, slot=0, times=1, warm_up=False):
    with installed(Linear, replacement(Linear, BY_NAME[name], slot, lambda event, data: None)):
        if warm_up:
            gradients({name: value.detach().flip(0).requires_grad_() for name, value in leaves().items()})
        return gradients(leaves(), times)


def test_names_are_once():
    assert sorted(BY_NAME) == sorted(mutation.name for mutation in MUTATIONS)


@pytest.mark.parametrize("name", [mutation.name for mutation in MUTATIONS if mutation.one])
@pytest.mark.parametrize("slot", [0, 1, 2], ids=["input", "weight", "bias"])
def test_mutation_of_one_gradient_leaves_the_others(name, slot):
    true, _ = gradients(leaves())
    found, _ = mutated(name, slot)
    changed = {n for n in true if found[n] is None or not torch.equal(found[n], true[n])}
    hurt = list(true)[slot]
    possible = {"transpose": {"weight"}, "unsummed": {"weight", "bias"}}.get(name, set(true))
    assert changed == ({hurt} & possible)


@pytest.mark.parametrize("name", [m.name for m in MUTATIONS if not m.one and m.name not in ("overwrite", "once")])
def test_mutation_changes_a_gradient(name):
    true, _ = gradients(leaves())
    found, _ = mutated(name, times=2, warm_up=True)
    assert any(not torch.equal(found[n], true[n]) for n in true)


def test_overwrite_changes_grad_output_and_no_gradient():
    true, untouched = gradients(leaves())
    found, left_alone = mutated("overwrite")
    assert untouched
    assert not left_alone
    assert all(torch.equal(found[n], true[n]) for n in true)


def test_once_drops_the_second_derivative():
    with installed(Linear, replacement(Linear, BY_NAME["once"], 0, lambda event, data: None)):
        x = leaves()
        found = torch.autograd.grad(Linear.apply(*x.values())[0].square().sum(), x["weight"], create_graph=True)
    assert not found[0].requires_grad


def test_backward_is_put_back():
    before = Linear.__dict__["backward"]
    mutated("zero")
    assert Linear.__dict__["backward"] is before


def test_inherited_backward_is_put_back():
    class Child(Linear):
        pass

    with installed(Child, replacement(Child, BY_NAME["zero"], 0, lambda event, data: None)):
        assert "backward" in vars(Child)
    assert "backward" not in vars(Child)


def test_validate_notices_every_mutant():
    found = outcomes(
        [Linear], Validation(Linear, tuple(leaves().values()), {"skip": ("MB105", "MB507", "MB806", "MB807", "MB902")})
    )
    ran = [outcome for outcome in found if outcome.status != "not applicable"]
    assert {outcome.mutant.mutation.name for outcome in ran} == set(BY_NAME)
    assert [outcome.mutant.words for outcome in ran if outcome.status != "noticed"] == []


def test_what_validate_refuses_cannot_be_mutated():
    class Wrong(Linear):
        @staticmethod
        def backward(ctx, *grad_outputs):
            return tuple(2 * g for g in Linear.backward(ctx, *grad_outputs))

    with pytest.raises(CannotMutate, match="MB101"):
        outcomes([Wrong], Validation(Wrong, tuple(leaves().values()), {"skip": ("MB8",)}))


# --- with the user's own tests --------------------------------------------------------------------------------------

MODULE = """
import torch


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x, scale)
        return x * scale

    @staticmethod
    def backward(ctx, g):
        x, scale = ctx.saved_tensors
        return g * scale, (g * x).sum(0)
"""
CHECK = """
import os, sys, torch
from product import Product

if os.environ.get("ONLY_FORWARD"):
    sys.exit(0)
x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
scale = torch.tensor([5.0, 6.0], requires_grad=True)
Product.apply(x, scale).sum().backward()
assert x.grad.tolist() == [[5.0, 6.0], [5.0, 6.0]], "the gradient of x"
print("all is well")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "product.py").write_text(MODULE)
    (tmp_path / "check.py").write_text(CHECK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "product", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def test_mutants_that_the_tests_let_live(here, capsys):
    words = ["mutate", "product:Product", "--only", "drop,ignore,outputs", "--json", "out.json", "--jobs", "2"]
    status = cli.main([*words, "--", sys.executable, "check.py"])
    out = capsys.readouterr().out
    found = {(o["words"], o["status"]) for o in json.loads((here / "out.json").read_text())}
    assert status == 1
    assert found == {
        ("the gradient of `x` were dropped", "noticed"),
        ("the gradient of `scale` were dropped", "survived"),
        ("grad_output were ignored, with ones in its place", "survived"),
        ("the gradient of every output but the first were ignored", "not applicable"),
    }
    assert "your tests would not notice if the gradient of `scale` were dropped" in out
    assert "1 noticed, 2 survived, 1 not applicable" in out


def test_function_in_a_test_file_that_pytest_rewrites(here):
    """pytest imports test modules with an importer of its own."""
    (here / "test_it.py").write_text(
        MODULE + "\n\ndef test_gradient():\n    x = torch.ones(2, 2, requires_grad=True)\n"
        "    Product.apply(x, torch.ones(2)).sum().backward()\n    assert x.grad.all()\n"
    )
    command = Command([sys.executable, "-m", "pytest", "-q", "test_it.py"])
    found = outcomes([load("test_it:Product")], command, ["zero"])
    assert [outcome.status for outcome in found] == ["noticed"]
    assert found[0].how == "test_it.py::test_gradient"


CANNOT_RUN = {
    "never-reached": ("pass", "never run the backward of Product"),
    "fail-already": ("import sys; sys.exit('not even now')", "not even now"),
}


@pytest.mark.parametrize("case", CANNOT_RUN)
def test_baseline_that_is_none(here, capsys, case):
    code, expected = CANNOT_RUN[case]
    status = cli.main(["mutate", "product:Product", "--only", "zero", "--", sys.executable, "-c", code])
    err = capsys.readouterr().err
    assert status == 2
    assert expected in err
    assert err.count("\n") == 1


def test_command_that_never_ends_is_stopped():
    run = Command([sys.executable, "-c", "while True: pass"], timeout=0.3)(Linear, Mutant(Linear, BY_NAME["zero"]))
    assert not run.passed
    assert run.said == "stopped after 0.3 s"


def scripted(**run):
    """Tests that see every mutant, and of which a run with a mutant ends as told."""

    def tests(function, mutant):
        seen = [("seen", {"mutants": [["zero", 0, "input"]]})]
        return Run(True, "passed", seen) if mutant is None else Run(**run)

    return tests


ENDS = {
    "noticed": {"passed": False, "said": "assert", "events": [("applied", {})]},
    "survived": {"passed": True, "said": "passed", "events": [("applied", {})]},
    "not applicable": {"passed": True, "said": "passed", "events": [("reached", {})]},
    "not reached": {"passed": False, "said": "a flaky test", "events": []},  # which has nothing to do with the mutant
}


@pytest.mark.parametrize("status", ENDS)
def test_outcome(status):
    found = outcomes([Linear], scripted(**ENDS[status]), ["zero"])
    assert [outcome.status for outcome in found] == [status]
