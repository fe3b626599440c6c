"""Catalog files: what is right becomes specs, and each thing that is wrong is told with file, line and near miss."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import pytest

from deploy.catalog_files import load_catalog_files
from deploy.yaml_documents import FIELDS_MAX, FILE_BYTES_MAX
from schemas.catalog import Catalog, Defaults, EndpointSpec, Quota, TaskSpec, TensorSpec, VariantSpec
from schemas.errors import CatalogError


def model_of(inputs: dict[str, list[int | str]], outputs: dict[str, list[int | str]]) -> bytes:
    def values(kind: int, stated: dict[str, list[int | str]]) -> list[onnx.ValueInfoProto]:
        return [onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in stated.items()]

    graph = onnx.helper.make_graph([], "graph", values(onnx.TensorProto.UINT8, inputs), values(onnx.TensorProto.FLOAT, outputs))
    return onnx.helper.make_model(graph).SerializeToString()


MODEL = model_of({"image": ["N", 1, 28, 28]}, {"probs": ["N", 10]})
SHA256 = hashlib.sha256(MODEL).hexdigest()
TASK = f"""\
kind: task
name: garment
variants:
  - name: linear
    file: linear.onnx
    sha256: {SHA256}
    accuracy: 0.8427
    accelerators: [cpu, vpu]
    inputs: [{{name: image, datatype: UINT8, shape: [-1, 1, 28, 28]}}]
    outputs: [{{name: probs, datatype: FP32, shape: [-1, 10]}}]
"""
ENDPOINT = """\
kind: endpoint
name: fashion
task: garment
defaults: {min_accuracy: 0.8, timeout_ms: 500}
quotas:
  acme: {rate_rps: 10, burst: 20}
  "*": {rate_rps: 1.5}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "linear.onnx").write_bytes(MODEL)
    return tmp_path


def written(folder: Path, text: str, name: str = "fashion.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def problems(folder: Path, text: str, present: Catalog | None = None) -> list[str]:
    file = written(folder, text)
    with pytest.raises(CatalogError) as refused:
        load_catalog_files([file], present or Catalog())
    return [line.removeprefix(f"{file}:") for line in str(refused.value).splitlines()]


def problem(folder: Path, text: str, present: Catalog | None = None) -> str:
    found = problems(folder, text, present)
    assert len(found) == 1, found
    return found[0]


def test_tasks_and_endpoints_of_several_documents_become_specs(folder: Path) -> None:
    loaded = load_catalog_files([written(folder, f"# both\n---\n{ENDPOINT}---\n{TASK}---\n")])
    variant = VariantSpec(
        name="linear",
        file="linear.onnx",
        sha256=SHA256,
        accuracy=0.8427,
        accelerators=("cpu", "vpu"),
        inputs=(TensorSpec("image", "UINT8", (-1, 1, 28, 28)),),
        outputs=(TensorSpec("probs", "FP32", (-1, 10)),),
    )
    assert loaded.tasks == (TaskSpec(name="garment", variants=(variant,)),)
    quotas = {"acme": Quota(rate_rps=10.0, burst=20), "*": Quota(rate_rps=1.5, burst=1)}
    assert loaded.endpoints == (EndpointSpec(name="fashion", task="garment", defaults=Defaults(min_accuracy=0.8, timeout_ms=500), quotas=quotas),)
    assert loaded.models == {SHA256: folder / "linear.onnx"}


def test_an_alias_stands_for_what_it_names(folder: Path) -> None:
    second = (
        TASK[TASK.index("  - name") :].replace("linear\n", "twin\n", 1).replace("[{name: image, datatype: UINT8, shape: [-1, 1, 28, 28]}]", "*in")
    )
    loaded = load_catalog_files([written(folder, TASK.replace("inputs: [", "inputs: &in [") + second)])
    linear, twin = loaded.tasks[0].variants
    assert twin.inputs == linear.inputs == (TensorSpec("image", "UINT8", (-1, 1, 28, 28)),)


def test_inputs_and_outputs_that_are_not_stated_come_from_the_model(folder: Path) -> None:
    loaded = load_catalog_files([written(folder, TASK[: TASK.index("    inputs")])])
    assert loaded.tasks[0].variants[0].inputs == (TensorSpec("image", "UINT8", (-1, 1, 28, 28)),)
    assert loaded.tasks[0].variants[0].outputs == (TensorSpec("probs", "FP32", (-1, 10)),)


def test_a_model_that_does_not_fit_what_is_stated_is_refused(folder: Path) -> None:
    told = problem(folder, TASK.replace("[-1, 1, 28, 28]", "[-1, 3, 28, 28]"))
    assert told.startswith("5: ")
    assert "[-1, 1, 28, 28] in the model, [-1, 3, 28, 28] in the catalog" in told


def test_a_file_that_is_no_model_is_refused(folder: Path) -> None:
    (folder / "linear.onnx").write_bytes(b"no model")
    told = problem(folder, TASK.replace(SHA256, hashlib.sha256(b"no model").hexdigest()))
    assert "not an ONNX model" in told


def test_a_task_of_the_present_catalog_serves_an_endpoint_file(folder: Path) -> None:
    task = load_catalog_files([written(folder, TASK)]).tasks[0]
    loaded = load_catalog_files([written(folder, ENDPOINT)], Catalog(tasks={"garment": task}))
    assert [endpoint.name for endpoint in loaded.endpoints] == ["fashion"]


def test_an_endpoint_alone_is_not_checked_against_a_catalog_that_is_not_known_yet(folder: Path) -> None:
    assert [endpoint.task for endpoint in load_catalog_files([written(folder, ENDPOINT)]).endpoints] == ["garment"]


def test_the_hash_is_told_where_it_is_missing(folder: Path) -> None:
    told = problem(folder, TASK.replace(f"    sha256: {SHA256}\n", ""))
    assert told == f"5: the variant needs `sha256`: linear.onnx has sha256: {SHA256}"


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("accuracy:", "acuracy:", 7, ["unknown key 'acuracy' in a variant", "did you mean 'accuracy'?"]),
        ("accuracy: 0.8427", "accuracy: 1.2", 7, ["1.2", "0..1"]),
        ("accuracy: 0.8427", "accuracy: .nan", 7, ["a number"]),
        ("accuracy: 0.8427", "accuracy: high", 7, ["a number, not 'high'"]),
        ("kind: task", "kind: tsak", 1, ["unknown kind 'tsak'", "did you mean 'task'?"]),
        ("name: garment", "name: gar/ment", 2, ["'gar/ment' is not a name"]),
        ("name: garment", "name: [a]", 2, ["is text, not a list"]),
        ("name: garment", "title: x", 1, ["a task needs `name`"]),
        (f"sha256: {SHA256}", f"sha256: {'0' * 64}", 6, [f"its SHA-256 is {SHA256}"]),
        (f"sha256: {SHA256}", "sha256: ABC", 6, ["64 lower-case hexadecimal"]),
        ("file: linear.onnx", "file: lost.onnx", 5, ["there is no file", "lost.onnx"]),
        ("file: linear.onnx", "file: ../linear.onnx", 5, ["leaves the folder"]),
        ("[cpu, vpu]", "[cpu, npu]", 8, ["unknown accelerator 'npu'", "vpu"]),
        ("[cpu, vpu]", "[]", 8, ["`accelerators` is empty"]),
        ("[cpu, vpu]", "cpu", 8, ["`accelerators` of a variant is a list"]),
        ("datatype: UINT8", "datatype: uint8", 9, ["unknown datatype 'uint8'", "'UINT8'"]),
        ("[-1, 1, 28, 28]", "[-1, 0, 28, 28]", 9, ["neither -1"]),
        ("[-1, 1, 28, 28]", "[-1, 1.5]", 9, ["whole numbers"]),
        ("[-1, 1, 28, 28]", "[1,1,1,1,1,1,1,1,1]", 9, ["9 axes"]),
        ("    accuracy: 0.8427\n", "    accuracy: 0.8427\n    accuracy: 0.9\n", 8, ["'accuracy' stands twice", "line 7"]),
        ("    accuracy: 0.8427\n", "    accuracy: 0.8427\n    batch_size_max: 0\n", 8, ["1..1024"]),
        ("    accuracy: 0.8427\n", "    accuracy: 0.8427\n    <<: {}\n", 8, ["unknown key '<<'"]),
        ("accuracy: 0.8427", "accuracy: !!python/object/apply:os.getcwd []", 7, ["a number, not a list"]),
        ("accuracy: 0.8427", "accuracy: {", 9, ["not valid YAML"]),
    ],
)
def test_what_is_wrong_is_told_with_its_line(folder: Path, old: str, new: str, line: int, words: list[str]) -> None:
    found = problems(folder, TASK.replace(old, new, 1))
    matching = [told for told in found if told.startswith(f"{line}: ") and all(word in told for word in words)]
    assert matching, found


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("task: garment", "task: garmnet", 3, ["'garmnet' is neither", "did you mean 'garment'?"]),
        ("min_accuracy: 0.8", "min_accuracy: 0.9", 4, ["accuracy of 0.9", "reaches 0.8427"]),
        ("timeout_ms: 500", "timeout_ms: 0", 4, ["`timeout_ms`", "1..86400000"]),
        ("timeout_ms: 500", "timeout: 500", 4, ["unknown key 'timeout'", "'timeout_ms'"]),
        ("timeout_ms: 500", "priority: 10", 4, ["0..9"]),
        ("rate_rps: 10", "rate_rps: -1", 6, ["`rate_rps`"]),
        ("rate_rps: 10, ", "", 6, ["needs `rate_rps`"]),
        ("burst: 20", "burst: yes", 6, ["a whole number, not 'yes'"]),
        ("acme:", "ac me:", 6, ["'ac me' is not a tenant's name"]),
    ],
)
def test_what_is_wrong_with_an_endpoint_is_told_once(folder: Path, old: str, new: str, line: int, words: list[str]) -> None:
    told = problem(folder, f"{ENDPOINT.replace(old, new, 1)}---\n{TASK}")
    assert told.startswith(f"{line}: ")
    assert all(word in told for word in words), told


def test_everything_wrong_in_a_file_is_told_at_once(folder: Path) -> None:
    text = TASK.replace("accuracy:", "acuracy:").replace("[cpu, vpu]", "[cpu, npu]") + "---\n" + ENDPOINT.replace("burst", "brust")
    found = problems(folder, text)
    assert [told.partition(":")[0] for told in found] == ["4", "7", "8", "17"]


def test_an_endpoint_is_not_blamed_for_the_faults_of_its_task(folder: Path) -> None:
    found = problems(folder, f"{ENDPOINT}---\n{TASK.replace('0.8427', '7')}")
    assert all("accuracy" in told and told.startswith("15: ") for told in found), found


def test_names_stated_twice_are_refused_within_and_across_files(folder: Path) -> None:
    first, second = written(folder, TASK, "a.yaml"), written(folder, TASK, "b.yaml")
    with pytest.raises(CatalogError, match=r"b\.yaml:2: task 'garment' is stated twice"):
        load_catalog_files([first, second])
    assert "'fashion' is stated twice" in problem(folder, f"{TASK}---\n{ENDPOINT}---\n{ENDPOINT}")
    twice = TASK + TASK[TASK.index("  - name") :]
    assert problem(folder, twice).startswith("11: variant 'linear' stands twice")


def test_a_task_may_not_fall_below_the_default_floor_of_an_endpoint_that_exists(folder: Path) -> None:
    present = Catalog(endpoints={"old": EndpointSpec(name="old", task="garment", defaults=Defaults(min_accuracy=0.95))})
    assert "endpoint 'old' asks for an accuracy of 0.95" in problem(folder, TASK, present)


def test_an_expansion_bomb_ends_early(folder: Path) -> None:
    lines = ["kind: task", "name: a", "a: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    tensors = ", ".join(["*t"] * 10)
    variant = f"{{name: v, inputs: [{tensors}], outputs: [{tensors}]}}"
    text = "\n".join([*lines[:2], f"variants: [&t {{name: t, datatype: FP32, shape: [{', '.join('1' * 8000)}]}}, {', '.join([variant] * 200)}]"])
    found = problems(folder, text)
    assert any(f"more than {FIELDS_MAX} fields" in told for told in found)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[" * 2_000, "nested too deeply"),
        (b"", "no document"),
        (b"- a\n- b\n", "a document is a mapping"),
        (b"a: &a [*a]\n", "needs `kind`"),
        (b"#" * (FILE_BYTES_MAX + 1), "the limit is"),
        (b"kind: task\nname: *nowhere\n", "undefined alias"),
    ],
)
def test_files_that_are_no_catalog_are_refused_with_a_reason(folder: Path, content: bytes, words: str) -> None:
    file = folder / "odd.yaml"
    file.write_bytes(content)
    with pytest.raises(CatalogError, match=words):
        load_catalog_files([file])


def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(CatalogError, match=r"none\.yaml:1: cannot be read: No such file"):
        load_catalog_files([folder / "none.yaml"])
