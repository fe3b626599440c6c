"""The third-party optimizer of examples/optimizer: found by its entry point once installed, and held to the contract."""

from __future__ import annotations

import json
import sys
import time
import tomllib
from pathlib import Path

import pytest

from deploy import cli
from scaler.optimizers.contract import CHECKS
from scaler.optimizers.registry import create_optimizer, optimizer_names

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "optimizer"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as an installer leaves it: the module, and metadata with what the package's own pyproject.toml declares."""
    folder = tmp_path_factory.mktemp("site-packages")
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    for module in tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["tool"]["setuptools"]["py-modules"]:
        (folder / f"{module}.py").write_bytes((EXAMPLE / f"{module}.py").read_bytes())
    information = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = [f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items()) for group, named in project["entry-points"].items()]
    (information / "entry_points.txt").write_text("\n".join(points))
    return folder


@pytest.fixture
def on_path(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(installed)
    monkeypatch.delitem(sys.modules, "round_robin", raising=False)


@pytest.mark.usefixtures("on_path")
def test_it_is_found_by_its_name(installed: Path) -> None:
    assert "round-robin" in optimizer_names()
    optimizer = create_optimizer("round-robin", {"spare": 0.1})
    assert optimizer.name == "round-robin"
    assert Path(sys.modules["round_robin"].__file__ or "").is_relative_to(installed)


@pytest.mark.usefixtures("on_path")
def test_the_command_line_knows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["optimizers", "describe", "round-robin", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["optimizer"]["package"] == "headrace-round-robin"
    assert told["optimizer"]["summary"].startswith("Every task gets")


@pytest.mark.usefixtures("on_path")
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_keeps_the_contract(check) -> None:
    check(create_optimizer("round-robin"), time.monotonic)


def test_it_is_unknown_where_it_is_not_installed() -> None:
    assert "round-robin" not in optimizer_names()
