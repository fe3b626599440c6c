"""Optimizers by name: near misses, options, broken plug-ins, the command line."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from deploy import cli
from scaler.optimizers.registry import BUILT_IN, create_optimizer, describe_optimizer, describe_optimizers, optimizer_names
from schemas.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def plug_ins(tmp_path, monkeypatch):
    information = tmp_path / "moody-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: moody\nVersion: 1\n")
    points = ("torn = moody_torn:Torn", "gone = moody_gone:Gone", "number = moody:NUMBER", "mute = moody:Mute", "angry = moody:Angry")
    (information / "entry_points.txt").write_text("[headrace.optimizers]\nfine = moody:Fine\n" + "\n".join(points) + "\n")
    (tmp_path / "moody_torn.py").write_text("raise RuntimeError('torn')\n")
    (tmp_path / "moody.py").write_text(
        "NUMBER = 3\nclass Mute: pass\n"
        "class Fine:\n    '''Does\n    nothing.'''\n    name, source = 'fine', 'here'\n    def propose(self, snapshot, limits): ...\n"
        "class Angry:\n    def __init__(self): raise OSError('no')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_built_in_is_called_as_it_is_found_and_says_where_it_comes_from(name):
    described = describe_optimizer(name)
    assert create_optimizer(name).name == name
    assert (described.fault, described.package) == ("", "headrace")
    assert described.source
    assert len(described.description) > 60


def test_the_package_declares_the_same_entry_points():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["headrace.optimizers"]
    assert declared == BUILT_IN


def test_an_unknown_name_gets_its_near_misses():
    with pytest.raises(ConfigurationError, match="did you mean 'proteus'"):
        create_optimizer("protues")
    with pytest.raises(ConfigurationError, match="known: headrace, greedy"):
        describe_optimizer("x")


def test_options_that_an_optimizer_does_not_take_are_refused():
    with pytest.raises(ConfigurationError, match=r"greedy.*colour"):
        create_optimizer("greedy", {"colour": 1.0})


@pytest.mark.parametrize(
    ("name", "said"),
    [("torn", "RuntimeError: torn"), ("gone", "moody_gone"), ("number", "no class or function"), ("mute", "no propose"), ("angry", "OSError")],
)
@pytest.mark.usefixtures("plug_ins")
def test_a_broken_plug_in_is_named_and_ends_nothing_else(name, said):
    with pytest.raises(ConfigurationError, match=name) as raised:
        create_optimizer(name)
    assert said in str(raised.value)
    assert "moody" in str(raised.value)
    found = {each.name: each for each in describe_optimizers()}
    assert said in found[name].fault
    assert (found["fine"].fault, found["fine"].package, found["fine"].summary) == ("", "moody", "Does")
    assert set(BUILT_IN) <= set(found)
    assert name in optimizer_names()


@pytest.mark.usefixtures("plug_ins")
def test_the_list_shows_all_of_them(capsys):
    assert cli.run(["optimizers", "list", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["default"] == "headrace"
    faults = {each["name"]: each["fault"] for each in told["optimizers"]}
    assert faults["loki"] == ""
    assert "RuntimeError" in faults["torn"]


@pytest.mark.usefixtures("plug_ins")
def test_describing_shows_the_whole_text_or_what_is_wrong(capsys):
    assert cli.run(["optimizers", "describe"]) == 0
    assert capsys.readouterr().out.startswith("headrace (default)")
    assert cli.run(["optimizers", "describe", "themis"]) == 0
    assert "On a cluster of fixed size" in capsys.readouterr().out
    assert cli.run(["optimizers", "describe", "torn"]) == 1
    assert "RuntimeError: torn" in capsys.readouterr().err
