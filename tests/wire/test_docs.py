"""Documentation against code: tables, topics, metrics, options, links, and the snippets that can run without a server."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, get_args

import click
import msgspec
import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from broker.canary import CanaryControl
from broker.dispatcher_metrics import DispatcherMetrics
from broker.memory import MemoryLog
from broker.sink_metrics import SinkMetrics
from broker.tap_metrics import TapMetrics
from deploy.cli import COMMANDS
from deploy.commands.command import SHARED, Option
from deploy.configuration import environment_variable, read_configuration
from deploy.watchdog import LoopWatchdog
from deploy.yaml_documents import Problems, read_documents
from graphs.combiners import BUILT_IN
from scaler.accuracy_metrics import AccuracyMetrics
from scaler.control_loop_metrics import ControlMetrics
from schemas.canary import canary_topics, decode_command
from schemas.errors import REQUEST_ERRORS
from schemas.graph import Guardrails, Node
from schemas.learned import accuracy_spec
from schemas.limits import Limits
from schemas.names import ACCELERATORS, Names
from schemas.request import Routing, read_routing
from workers.backends import DEFAULT_BACKENDS
from workers.metrics import WorkerMetrics

ROOT = Path(__file__).resolve().parents[2]
PAGES = {page.name: page.read_text() for page in (*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md"))}
OURS = ("quickstart.md", "wire.md", "operations.md", "models.md", "graphs.md", "embedded.md", "taps.md", "CONTRIBUTING.md")
MARK = re.compile(r"^<!-- (\w+)(?:: (.+?))? -->\n((?:\|.*\n)+)", re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def tables(kind: str) -> list[tuple[str, str, list[list[str]]]]:
    """(page, what the mark names, rows of cells) of every marked table."""
    return list(marked(kind))


def marked(kind: str) -> Iterator[tuple[str, str, list[list[str]]]]:
    for page, text in PAGES.items():
        for found, target, table in MARK.findall(text):
            if found == kind:
                rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()[2:]]
                yield page, target, rows


def names_in(cell: str) -> list[str]:
    return CODE.findall(cell)


def load(target: str) -> Any:
    module, _, attribute = target.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError:
        owner, _, inner = module.rpartition(".")
        return getattr(getattr(import_module(owner), inner), attribute)


def command(name: str) -> click.Command:
    module, _, attribute = COMMANDS[name].partition(":")
    return getattr(import_module(module), attribute)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its sub-commands, by the words that call it."""
    for name in COMMANDS:
        found = command(name)
        yield name, found
        if isinstance(found, click.Group):
            yield from ((f"{name} {inner}", found.commands[inner]) for inner in found.commands)


def snippets(page: str, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(PAGES[page]) if kind == language]


def named_snippet(page: str, file: str) -> str:
    (found,) = (body for _, body in FENCE.findall(PAGES[page]) if body.startswith(f"# {file}\n"))
    return found


# Tables.


@pytest.mark.parametrize(("page", "target", "rows"), tables("fields"))
def test_tables_of_fields_name_the_fields_of_the_struct(page: str, target: str, rows: list[list[str]]) -> None:
    stated = [name for row in rows for name in names_in(row[0])]
    assert sorted(stated) == sorted(load(target).__struct_fields__), f"{page}: table of {target}"


@pytest.mark.parametrize(("page", "target", "rows"), tables("keys"))
def test_tables_of_keys_name_the_keys_of_catalog_files(page: str, target: str, rows: list[list[str]]) -> None:
    stated = [name for row in rows for name in names_in(row[0])]
    assert sorted(stated) == sorted(load(target)), f"{page}: table of {target}"


@pytest.mark.parametrize(("page", "target", "rows"), tables("parameters"))
def test_tables_of_parameters_name_the_parameters(page: str, target: str, rows: list[list[str]]) -> None:
    assert [name for row in rows for name in names_in(row[0])] == list(signature(load(target)).parameters), f"{page}: table of {target}"


def test_the_tables_are_there() -> None:
    assert {target for kind in ("fields", "keys") for _, target, _ in tables(kind)} >= {
        "schemas.request.Routing",
        "schemas.terminal.Terminal",
        "schemas.terminal.ErrorDetail",
        "schemas.terminal.PathStep",
        "schemas.profile.Profile",
        "deploy.catalog_tasks.VARIANT_KEYS",
        "schemas.stage.StageRecord",
        "schemas.stage.TensorHead",
        "schemas.work.StagePart",
        "schemas.work.NextStage",
        "schemas.canary.CanaryCommand",
        "schemas.canary.CanaryStatus",
        "schemas.feedback.Feedback",
        "deploy.catalog_graphs.GRAPH_KEYS",
        "deploy.catalog_taps.TAPS_KEYS",
        "deploy.catalog_taps.SAMPLE_KEYS",
        "deploy.catalog_graphs.GUARDRAIL_KEYS",
        *(f"deploy.catalog_graphs.{kind}_KEYS" for kind in ("STAGE", "SPLITTER", "CANARY", "SHADOW", "ENSEMBLE", "FOR_EACH", "CALL")),
    }


@pytest.mark.parametrize("target", ["schemas.stage.StageRecord", "schemas.stage.TensorHead", "schemas.work.StagePart", "schemas.work.NextStage"])
def test_positional_records_have_their_positions(target: str) -> None:
    (rows,) = (rows for _, found, rows in tables("fields") if found == target)
    stated = [(int(at), name) for row in rows for at, name in re.findall(r"(\d+) `(\w+)`", row[0])]
    assert stated == list(enumerate(load(target).__struct_fields__))


def test_every_kind_of_node_has_its_row_and_its_section() -> None:
    rows = re.findall(r"^\| \[(\w+)\]\(#(\w+)\) \|", PAGES["graphs.md"], re.MULTILINE)
    kinds = {kind.__struct_config__.tag for kind in get_args(Node)}
    assert {name for name, _ in rows} == kinds | {"call"}  # which is no node any more where graphs run
    assert {anchor for _, anchor in rows} <= anchors(PAGES["graphs.md"])


def test_every_built_in_combiner_has_its_row() -> None:
    (table,) = re.findall(r"^\| combiner \| merges \|\n\|.*\n((?:\|.*\n)+)", PAGES["graphs.md"], re.MULTILINE)
    stated = {name for line in table.splitlines() for name in names_in(line.split("|")[1])}
    assert {name for name in stated if ":" not in name and "." not in name} == set(BUILT_IN)


def test_default_guardrails() -> None:
    (rows,) = (rows for _, found, rows in tables("keys") if found == "deploy.catalog_graphs.GUARDRAIL_KEYS")
    stated = {names_in(row[0])[0]: None if row[1] == "off" else float(row[1]) for row in rows}
    assert stated == msgspec.structs.asdict(Guardrails())


def test_error_codes_and_whether_to_retry() -> None:
    ((_, _, rows),) = tables("codes")
    stated = {names_in(row[0])[0]: row[2] for row in rows}
    assert stated == {code: "yes" if error.retryable else "no" for code, error in REQUEST_ERRORS.items()}


def test_datatypes_with_their_ranges_and_sizes() -> None:
    ((_, target, rows),) = tables("datatypes")
    datatypes: Mapping[str, Any] = load(target)
    assert [names_in(row[0])[0] for row in rows] == list(datatypes)
    for row in rows:
        datatype = datatypes[names_in(row[0])[0]]
        if datatype.name != "BYTES":
            assert row[2].startswith(f"{datatype.dtype.itemsize} byte"), row
        if datatype.element is int:
            assert row[1] == f"{np.iinfo(datatype.dtype).min}..{np.iinfo(datatype.dtype).max}"


def test_limits_have_their_values() -> None:
    ((_, _, rows),) = tables("limits")
    stated = {names_in(row[0])[0]: int(row[1]) for row in rows}
    assert stated == msgspec.structs.asdict(Limits())


def test_topics_have_their_partitions_and_settings() -> None:
    ((_, _, rows),) = tables("topics")
    names = Names("{p}")
    topics = {topic.name: topic for topic in (*names.topics(), *canary_topics(names), accuracy_spec(names), names.stage_topic("ENDPOINT", "STAGE"))}
    stated: dict[str, list[str]] = {name: row for row in rows for name in names_in(row[0])}
    assert set(stated) == set(topics)
    for name, row in stated.items():
        settings = dict(setting.split("=") for setting in names_in(row[2]))
        assert int(row[1]) == topics[name].partitions, name
        assert settings == {key: value for key, value in topics[name].config.items() if key != "max.message.bytes"}, name
        assert int(topics[name].config["max.message.bytes"]) == (2 << 20) + ((64 << 10) if name.endswith("dead-letters") else 0)


def registered() -> dict[str, tuple[Metric, str]]:
    """Every metric of ours with the role that has it."""
    found: dict[str, tuple[Metric, str]] = {}
    roles: tuple[tuple[str, Callable[[CollectorRegistry], object]], ...] = (
        ("dispatcher", DispatcherMetrics),
        ("worker", WorkerMetrics),
        ("sink", SinkMetrics),
        ("taps", TapMetrics),
        ("scaler", ControlMetrics),
        ("scaler", watch_canaries),
        ("scaler", AccuracyMetrics),
        ("all", LoopWatchdog),
    )
    for role, build in roles:
        registry = CollectorRegistry()
        build(registry)
        found |= {metric.name: (metric, role) for metric in registry.collect()}
    return found


def watch_canaries(registry: CollectorRegistry) -> CanaryControl:
    return CanaryControl(MemoryLog(), Names(), name="docs", leading=lambda: False, registry=registry)


def labels_of(registry_name: str) -> tuple[str, ...]:
    for build in (DispatcherMetrics, WorkerMetrics, SinkMetrics, TapMetrics, ControlMetrics, watch_canaries, AccuracyMetrics):
        registry = CollectorRegistry()
        build(registry)
        for collector in registry._collector_to_names:
            if getattr(collector, "_name", "") == registry_name:
                return tuple(getattr(collector, "_labelnames", ()))
    return ()


def test_metrics_with_type_labels_and_role() -> None:
    ((_, _, rows),) = tables("metrics")
    metrics = registered()
    stated = {names_in(row[0])[0]: row for row in rows}
    assert set(stated) == set(metrics)
    for name, row in stated.items():
        metric, role = metrics[name]
        assert (row[1], row[3]) == (metric.type, role), name
        assert tuple(names_in(row[2])) == labels_of(name), name


# Commands.


def test_commands_in_the_documentation_exist() -> None:
    words = {words for words, _ in commands()}
    for page, text in PAGES.items():
        for line in re.findall(r"(?:^|`|\| |\$ (?:\w+=\S+ )?)headrace ([a-z][a-z -]*)", text, re.MULTILINE):
            called = line.split(" -")[0].split()
            if called and called[0] in COMMANDS:
                if isinstance(command(called[0]), click.Group) and len(called) > 1:
                    assert " ".join(called[:2]) in words, f"{page}: headrace {line}"
            elif page in OURS:
                pytest.fail(f"{page}: there is no command `headrace {line}`")


def test_options_in_the_documentation_exist() -> None:
    known = {name for _, found in commands() for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}
    foreign = {"--describe", "--group", "--bootstrap-server", "--prefix", "--no-save", "--help"}
    for page in OURS:
        text = re.sub(r"^mvn .*$|^\| \[\w+\.\w+\]\(producers.*$", "", PAGES[page], flags=re.MULTILINE)
        for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - foreign:
            assert option in known, f"{page}: there is no option {option}"


def test_operations_names_every_option_of_the_roles() -> None:
    pages = PAGES["operations.md"] + PAGES["taps.md"]
    for role in ("dispatcher", "worker", "sink", "scaler", "taps"):
        for parameter in command(role).params:
            assert any(f"`{name}`" in pages for name in parameter.opts), f"{role} {parameter.opts}"


def test_environment_variables_are_those_of_options() -> None:
    options = [p for _, found in commands() for p in found.params if isinstance(p, Option)]
    variables = {p.envvar if isinstance(p.envvar, str) else environment_variable(p.name or "") for p in options}
    variables |= {"HEADRACE_CONFIG", "HEADRACE_TEST_KAFKA", "HEADRACE_TEST_REDIS"}
    for page, text in PAGES.items():
        assert set(re.findall(r"HEADRACE_[A-Z_]*[A-Z]", text)) <= variables, page


def test_the_example_configuration_is_read(tmp_path: Path) -> None:
    (text,) = snippets("operations.md", "toml")
    file = tmp_path / "headrace.toml"
    file.write_text(text)
    options = {parameter.name or "" for parameter in command("worker").params}
    found = read_configuration(file, command="worker", options=options, shared=SHARED, commands=COMMANDS)
    assert found.options["threads"] == tomllib.loads(text)["worker"]["threads"]
    assert set(found.client_options) == {"kafka_options", "redis_options"}


def test_default_backends() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (`[\w-]+`|none of its own) \|", PAGES["models.md"], re.MULTILINE)
    stated = {name: backend.strip("`") for name, backend in rows if name in ACCELERATORS and backend.startswith("`")}
    assert stated == DEFAULT_BACKENDS


# Snippets.


@pytest.mark.parametrize(("page", "text"), [(page, text) for page in OURS for text in snippets(page, "python")])
def test_python_snippets_compile(page: str, text: str) -> None:
    compile(text, page, "exec")


@pytest.mark.parametrize("text", snippets("wire.md", "json"))
def test_terminal_records_in_the_documentation_are_ones(text: str) -> None:
    from schemas.terminal import OUTCOMES, decode_terminal

    assert decode_terminal(text.strip().encode()).outcome in OUTCOMES


def test_yaml_snippets_are_catalog_documents(tmp_path: Path) -> None:
    for number, text in enumerate(snippets("models.md", "yaml")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        problems = Problems()
        assert read_documents(file, problems)
        problems.raise_if_any()


def test_the_canary_command_in_the_documentation_is_one() -> None:
    (endpoint, command_json) = re.findall(r"^\$ echo '([\w-]+):(\{.*\})' \| kcat .* -t headrace\.canary ", PAGES["wire.md"], re.MULTILINE)[0]
    assert endpoint == "fashion-canary"
    assert decode_command(command_json.encode()).percent == 25


def test_the_request_of_the_producers_is_one() -> None:
    body = (ROOT / "docs" / "producers" / "request.json").read_bytes()
    routing: Routing = read_routing(body, (), Limits())
    assert (routing.endpoint, routing.min_accuracy, routing.timeout_ms, routing.rows) == ("fashion", 0.9, 300, 1)


def test_the_python_task_of_the_documentation_computes() -> None:
    named: dict[str, Any] = {}
    exec(named_snippet("models.md", "shop_tasks.py"), named)
    found = named["best"]({"probs": np.array([[0.1, 0.7, 0.2], [0.6, 0.1, 0.3]], np.float32)}, {"k": 2})
    assert found["classes"].tolist() == [[1, 2], [0, 2]]
    assert np.allclose(found["sure"], [[0.7, 0.2], [0.6, 0.3]])


def test_graphs_in_the_documentation_are_catalog_documents(tmp_path: Path) -> None:
    whole = [text for text in snippets("graphs.md", "yaml") if text.startswith("kind:")]
    assert len(whole) > 1
    for number, text in enumerate(whole):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text)
        problems = Problems()
        assert read_documents(file, problems)
        problems.raise_if_any()


def test_the_backend_of_the_documentation_passes_the_contract(tmp_path: Path) -> None:
    for file in ("reference_backend.py", "test_reference_backend.py"):
        (tmp_path / file).write_text(named_snippet("models.md", file))
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:asyncio", "-p", "no:cov", "-c", "/dev/null", "--rootdir", "."]
    done = subprocess.run([*argv, "test_reference_backend.py"], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 passed" in done.stdout, "models.md shows another number"


# Links.


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", re.sub(FENCE, "", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", OURS)
def test_links_lead_somewhere(page: str) -> None:
    folder = ROOT if page == "CONTRIBUTING.md" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(FENCE, "", PAGES[page])):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = folder / path if path else folder / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{page}: {target}"
