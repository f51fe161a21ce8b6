"""The skeleton of a new rule: its file, a code that is free, and nothing that exists overwritten."""

import importlib.util

import pytest

from manual_backprop.cli import new_rule
from manual_backprop.cli.loading import CannotRun
from manual_backprop.cli.main import main
from manual_backprop.validation import RULES, rules
from manual_backprop.validation.rule import REGISTRY


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(rules, "__path__", [str(tmp_path)])
    return tmp_path


def test_the_next_free_code_is_taken(folder, capsys):
    last = max(rule.code for rule in RULES if rule.code.startswith("MB5"))
    assert main(["new-rule", "MB5xx", "torn-buffer"]) == 0
    (file,) = folder.iterdir()
    assert file.name == "mb5_torn_buffer.py"
    assert f"MB{int(last[2:]) + 1}" in file.read_text()
    assert str(file) in capsys.readouterr().out


def test_a_skeleton_is_a_rule_whose_snippets_are_found(folder):
    path = new_rule.write("MB599", "torn-buffer")
    spec = importlib.util.spec_from_file_location("skeleton", path)
    try:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        assert REGISTRY["MB599"].name == "torn-buffer"
        assert "return x * grad_output" in REGISTRY["MB599"].wrong
    finally:
        REGISTRY.pop("MB599", None)


BAD = {
    "a code that is taken": ("MB301", "torn-buffer", "code: MB301 is taken"),
    "no code": ("E501", "torn-buffer", "code: expected MB and three digits"),
    "a name that is taken": ("MB5xx", "memory-leak", "name: a rule is called memory-leak already"),
    "no name": ("MB5xx", "Torn Buffer", "name: expected words with hyphens"),
    "a path": ("MB5xx", "../torn", "name: expected words with hyphens"),
}


@pytest.mark.parametrize(("code", "name", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(folder, capsys, code, name, words):
    assert main(["new-rule", code, name]) == 2
    assert words in capsys.readouterr().err
    assert not list(folder.iterdir())


def test_nothing_is_overwritten(folder):
    path = new_rule.write("MB598", "torn-buffer")
    path.write_text("mine")
    with pytest.raises(CannotRun, match="File exists"):
        new_rule.write("MB597", "torn-buffer")
    assert path.read_text() == "mine"
