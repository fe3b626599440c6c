"""The import order, and who may touch which library: the whole source is read, nothing is run."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("schemas", "graphs", "broker", "workers", "scaler", "deploy")
POLICIES = ("broker.policy", "workers.policy", "scaler.policy", "scaler.optimizers", "scaler.simulator")
SHELLS = ("broker", "workers", "scaler")
SEAMS = ("broker.log", "broker.reading", "broker.role", "broker.frame_files")
"""What every shell may name: protocols without code, what is done with any reader, and the file that recordings are kept in."""
BENCHMARKS = "deploy.bench"
"""Compares with bare clients, and so may use them."""

CLOCKS_AND_CHANCE = {"datetime", "random", "secrets", "time", "uuid"}
OUTSIDE = {"http", "io", "logging", "os", "pathlib", "shutil", "signal", "socket", "ssl", "subprocess", "sys", "tempfile", "urllib", "warnings"}
LOOPS_AND_THREADS = {"asyncio", "concurrent", "contextvars", "multiprocessing", "queue", "select", "selectors", "threading"}
IMPURE = CLOCKS_AND_CHANCE | OUTSIDE | LOOPS_AND_THREADS
PURE_LIBRARIES = {"msgspec", "numpy", "simpleeval", "highspy", "scipy", "statsmodels"}
OWNERS = {
    "aiokafka": ("broker.kafka",),
    "redis": ("broker.redis_store",),
    "faust": ("scaler.app",),
    "onnxruntime": ("workers.cpu", "workers.gpu"),
    "openvino": ("workers.vpu",),
    "pynq": ("workers.fpga",),
    "onnx": (
        "workers.onnx_files",
        "workers.onnx_cutting",
        "workers.model_splitting",
        "workers.cpu",
        "workers.gpu",
        "workers.vpu",
        "workers.contract_cases",
        "workers.fpga",
    ),
    "ruamel": ("deploy.yaml_documents",),
    "click": ("deploy.cli", "deploy.commands"),
    "rich": ("deploy.commands", "deploy.demo", "deploy.bench"),
    "uvloop": ("deploy",),
    "highspy": ("scaler.optimizers",),
    "scipy": ("scaler",),
    "statsmodels": ("scaler.policy",),
    "matplotlib": ("deploy",),
    "jinja2": ("deploy",),
    "pyarrow": ("broker.tap_sinks", "deploy"),
    "opentelemetry": ("broker.tap_sinks",),
}
"""Library -> the modules (or packages, or module name prefixes) that may import it."""


class Import(NamedTuple):
    """`module` imports `target`."""

    module: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def sources() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, ast.parse(path.read_text(), str(path))


SOURCES = dict(sources())


def imports_of(name: str, tree: ast.Module) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(name, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative imports hide the order"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield Import(name, full if full in SOURCES else str(node.module), node.lineno)


IMPORTS = [found for name, tree in SOURCES.items() for found in imports_of(name, tree)]


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def is_policy(module: str) -> bool:
    return any(inside(module, policy) for policy in POLICIES)


def allowed(found: Import) -> bool:
    """Whether design.md's order allows an import of ours by ours."""
    module, target = found.module, found.target
    package, wanted = module.partition(".")[0], target.partition(".")[0]
    if wanted == "schemas" or package == "deploy":
        return True
    if wanted == "deploy" or package == "schemas":
        return wanted == package
    if package == "graphs" or wanted == "graphs":
        return wanted == "graphs"
    if is_policy(module):
        return is_policy(target) and (wanted == package or package == "scaler")
    return wanted == package or target in SEAMS or (package == "scaler" and is_policy(target))


def test_the_source_was_found() -> None:
    assert {name.partition(".")[0] for name in SOURCES} == set(PACKAGES)
    assert len(SOURCES) > 80
    assert any(found.target == "broker.policy.entry" for found in IMPORTS)


def test_imports_follow_the_order_of_the_layers() -> None:
    ours = [found for found in IMPORTS if found.target.partition(".")[0] in PACKAGES]
    assert [str(found) for found in ours if not allowed(found)] == []


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("schemas.plan", "graphs.spec"),
        ("graphs.spec", "broker.log"),
        ("broker.policy.entry", "broker.log"),
        ("broker.policy.entry", "workers.policy.batcher"),
        ("workers.worker", "broker.kafka"),
        ("workers.worker", "broker.policy.entry"),
        ("scaler.planner", "workers.worker"),
        ("broker.sink", "deploy.cli"),
        ("workers.policy.batcher", "scaler.policy.static_plan"),
    ],
)
def test_the_check_of_the_order_can_fail(module: str, target: str) -> None:
    assert not allowed(Import(module, target, 1))


def test_policies_schemas_and_graphs_touch_no_clock_chance_log_or_loop() -> None:
    pure = [found for found in IMPORTS if is_policy(found.module) or found.module.partition(".")[0] in ("schemas", "graphs")]
    assert [str(found) for found in pure if found.target.partition(".")[0] in IMPURE] == []


def test_policies_schemas_and_graphs_use_few_libraries() -> None:
    pure = [found for found in IMPORTS if is_policy(found.module) or found.module.partition(".")[0] in ("schemas", "graphs")]
    foreign = {found.target.partition(".")[0] for found in pure} - set(PACKAGES) - set(sys.stdlib_module_names)
    assert foreign <= PURE_LIBRARIES


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_only_where_it_is_wrapped(library: str) -> None:
    users = [found for found in IMPORTS if found.target.partition(".")[0] == library and not inside(found.module, BENCHMARKS)]
    owners = OWNERS[library]
    strangers = [found for found in users if not any(inside(found.module, owner) or found.module.startswith(owner + "_") for owner in owners)]
    assert [str(found) for found in strangers] == []


def test_only_the_configuration_reads_the_environment() -> None:
    readers = {
        f"{name}:{node.lineno}"
        for name, tree in SOURCES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"))
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and {alias.name for alias in node.names} & {"environ", "getenv", "environb"})
    }
    assert {reader for reader in readers if not reader.startswith("deploy.configuration:")} == set()


def test_nothing_is_pickled() -> None:
    assert [str(found) for found in IMPORTS if found.target.partition(".")[0] in ("pickle", "marshal", "shelve", "dill", "cloudpickle")] == []
