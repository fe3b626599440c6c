"""`taps:` of an endpoint in a file: what it may say, and what is said of what it may not."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from deploy.catalog_files import load_catalog_files
from schemas.catalog import Catalog, TaskSpec, TensorSpec, VariantSpec, decode_endpoint, encode_catalog
from schemas.errors import CatalogError
from schemas.tap import TapSample, TapSpec

TASKS = {
    "fashion": TaskSpec(
        name="fashion",
        variants=tuple(
            VariantSpec(
                name=name,
                file="f",
                sha256="0" * 64,
                accuracy=0.9,
                inputs=(TensorSpec("image", "FP32", (-1, 4)),),
                outputs=(TensorSpec("probs", "FP32", (-1, 3)),),
            )
            for name in ("small", "wide")
        ),
    ),
    "read": TaskSpec(
        name="read", variants=(VariantSpec(name="v", file="f", sha256="0" * 64, accuracy=0.9, inputs=(TensorSpec("probs", "FP32", (-1, 3)),)),)
    ),
}
GRAPH = """
graph:
  nodes:
    - name: first
      stage: {task: fashion, inputs: {image: request.image}}
    - name: second
      stage: {task: read, inputs: {probs: first.probs}}
  output: second
"""


def stated(tmp_path: Path, taps: str, target: str = "task: fashion") -> TapSpec | None:
    file = tmp_path / "e.yaml"
    file.write_text(f"kind: endpoint\nname: watched\n{target}\n{taps}\n")
    (endpoint,) = load_catalog_files([file], Catalog(tasks=TASKS)).endpoints
    assert decode_endpoint(encode_catalog(endpoint)) == endpoint
    return endpoint.taps


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("taps: {}", TapSpec()),
        ("taps: {sample: 0.25}", TapSpec(sample=TapSample(rate=0.25))),
        (
            "taps: {sample: {rate: 0.1, outcomes: {failed: 1}, variants: {fashion/wide: 0.5}}, payload: metadata}",
            TapSpec(sample=TapSample(rate=0.1, outcomes={"failed": 1.0}, variants={"fashion/wide": 0.5}), payload="metadata"),
        ),
        (
            "taps: {redact: [image, probs], max_bytes: 100, retention_hours: 48}",
            TapSpec(redact=("image", "probs"), max_bytes=100, retention_hours=48),
        ),
    ],
)
def test_what_a_file_says(tmp_path: Path, text: str, expected: TapSpec | None) -> None:
    assert stated(tmp_path, text) == expected


@pytest.mark.parametrize("stages", ["[first]", '["*"]', "[first, second]"])
def test_stages_of_a_graph(tmp_path: Path, stages: str) -> None:
    found = stated(tmp_path, f"taps: {{stages: {stages}, redact: [anything]}}", GRAPH)
    assert found is not None
    assert found.stages == tuple(re.findall(r"[\w*]+", stages))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("taps: 3", "`taps` is a mapping"),
        ("taps: {sampel: 1}", "unknown key 'sampel' in `taps`; did you mean 'sample'?"),
        ("taps: {sample: 1.5}", "it lies in 0..1"),
        ("taps: {sample: often}", "`sample` of `taps` is a number"),
        ("taps: {sample: {outcomes: {complete: 1}}}", "did you mean 'completed'?"),
        ("taps: {sample: {variants: {fashion/wid: 1}}}", "no variant 'fashion/wid' (write task/variant); did you mean 'fashion/wide' or"),
        ("taps: {sample: {variants: {wide: 1}}}", "write task/variant"),
        ("taps: {payload: ful}", "`payload` of `taps` is full or metadata, not 'ful'; did you mean 'full'?"),
        ("taps: {redact: [imgae]}", "has no tensor 'imgae'; did you mean 'image'?"),
        ("taps: {redact: [image, image]}", "'image' stands twice"),
        ("taps: {redact: image}", "`redact` of `taps` is a list"),
        ("taps: {max_bytes: -1}", "it lies in 0.."),
        ("taps: {retention_hours: 0}", "it lies in 1.."),
        ("taps: {stages: [frist]}", "has no stage 'frist'"),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_what_is_near(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CatalogError) as caught:
        stated(tmp_path, text)
    assert message in str(caught.value)
    assert re.search(r"e\.yaml:[45]: ", str(caught.value))


def test_a_stage_that_a_graph_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"has no stage 'frist'.*did you mean 'first'"):
        stated(tmp_path, "taps: {stages: [frist]}", GRAPH)


def test_the_page_s_endpoint_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "taps.md").read_text()
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "e.yaml").write_text(text)
    (endpoint,) = load_catalog_files([tmp_path / "e.yaml"], Catalog(tasks=TASKS)).endpoints
    assert endpoint.taps is not None
    assert msgspec.structs.asdict(endpoint.taps.sample)["variants"] == {"fashion/wide": 0.2}
