"""`headrace graph show`: the tree, the Mermaid text and the picture of a graph."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from deploy.catalog_files import load_catalog_files
from deploy.cli import run
from deploy.graph_drawing import ANSWER, Drawing, draw, mermaid
from deploy.graph_svg import svg
from schemas.graph import Branch, Case, ForEachNode, GraphSpec, SplitterNode, StageNode, SwitchNode

ROOT = Path(__file__).resolve().parents[2]
TASK = ROOT / "examples" / "fashion" / "task.yaml"
GRAPHS = ROOT / "examples" / "fashion" / "graphs"
SVG = "{http://www.w3.org/2000/svg}"
CASCADE_TREE = """\
fashion-cascade: accuracy 0.92 within 500 ms by default
└── sure  switch
    ├── when max(quick.probs) >= 0.9: quick  fashion: mlp128
    │   └── image: request
    └── otherwise: careful  fashion: resnet-int8, wide
        └── image: request
"""
CASCADE_MERMAID = """\
flowchart LR
  n_request(["request"])
  n_quick["quick<br/>fashion<br/>mlp128"]
  n_careful["careful<br/>fashion<br/>resnet-int8, wide"]
  n_sure{{"sure<br/>switch"}}
  n__answer(["answer"])
  n_request -->|"image"| n_quick
  n_request -->|"image"| n_careful
  n_quick -->|"when max(quick.probs) &gt;= 0.9"| n_sure
  n_careful -->|"otherwise"| n_sure
  n_sure --> n__answer
"""


@pytest.fixture(scope="module")
def everything() -> GraphSpec:
    """Every kind of node."""
    (graph,) = (each.graph for each in load_catalog_files([TASK, GRAPHS / "everything.yaml"]).endpoints if each.name == "fashion-everything")
    assert graph is not None
    return graph


def shown(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert run(["graph", "show", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_the_tree_goes_from_the_answer_backwards(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, TASK, GRAPHS / "cascade.yaml") == CASCADE_TREE


def test_what_is_needed_twice_is_drawn_once_and_rows_have_a_tree_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, TASK, GRAPHS / "everything.yaml", "fashion-everything").splitlines()
    assert lines[0].startswith("fashion-everything: ")
    assert sum("contrast  fashion-contrast" in line and "row_" not in line and "(above)" not in line for line in lines) == 1
    inside = [line.strip("│├└─ ") for line in lines]
    at = inside.index("rows  for each row, up to 64: all")
    assert inside[at + 1 : at + 5] == [
        "each row: row_answer  fashion: mlp128, cnn32-int8",
        "image: row_contrast  fashion-contrast",
        "image: row",
        "image: request",
    ]


def test_mermaid_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, TASK, GRAPHS / "cascade.yaml", "--mermaid") == CASCADE_MERMAID


def test_rows_are_a_subgraph_in_mermaid(everything: GraphSpec) -> None:
    text = mermaid(draw(everything))
    inner = text[text.index("  subgraph n_rows") : text.index("  end\n")]
    assert "    n_rows__row_contrast -->" in inner
    assert "n_careful__vote" in text
    assert '-.->|"copy of 50%"| n_watched' in text


def test_words_of_users_are_text_in_mermaid_and_svg() -> None:
    stage = StageNode(task="t", inputs={"a": "request.a"})
    nodes = {"one": stage, "taken": SwitchNode(cases=(Case('one.a == "</text>#|" and 1 < 2', "one"),), otherwise="one")}
    drawing = draw(GraphSpec(nodes=nodes, output="taken"))
    assert '&quot;&lt;/text&gt;&num;|&quot; and 1 &lt; 2, otherwise"|' in mermaid(drawing)
    texts = [text.text for text in ET.fromstring(svg(drawing, "<title>")).iter(f"{SVG}text")]
    assert 'when one.a == "</text>#|" and 1 < 2, otherwise' in texts


def test_every_box_and_arrow_is_in_the_picture(everything: GraphSpec) -> None:
    drawing = draw(everything)
    root = ET.fromstring(svg(drawing, "everything"))
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {box.lines[0] for box in boxes_of(drawing)} <= set(texts)
    arrows = [path for path in root.iter(f"{SVG}path") if path.get("marker-end")]
    assert len(arrows) == arrows_of(drawing)
    assert sum(path.get("stroke-dasharray") is not None for path in arrows) == 1


def test_boxes_do_not_overlap_and_stay_inside(everything: GraphSpec) -> None:
    root = ET.fromstring(svg(draw(everything), "everything"))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    rects = [tuple(float(rect.get(key, 0)) for key in ("x", "y", "width", "height")) for rect in root.iter(f"{SVG}rect") if rect.get("rx")]
    assert len(rects) > 15
    for left, top, wide, high in rects:
        assert left >= 0
        assert top >= 0
        assert left + wide <= width
        assert top + high <= height
    for number, one in enumerate(rects):
        for other in rects[number + 1 :]:
            apart = one[0] + one[2] <= other[0] or other[0] + other[2] <= one[0] or one[1] + one[3] <= other[1] or other[1] + other[3] <= one[1]
            assert apart or contains(one, other) or contains(other, one)


def contains(outer: tuple[float, ...], inner: tuple[float, ...]) -> bool:
    right, bottom = outer[0] + outer[2], outer[1] + outer[3]
    return outer[0] <= inner[0] and outer[1] <= inner[1] and inner[0] + inner[2] <= right and inner[1] + inner[3] <= bottom


def boxes_of(drawing: Drawing) -> list[object]:
    found = []
    for box in drawing.boxes.values():
        found += [box, *(boxes_of(box.inner) if box.inner else [])]
    return found


def arrows_of(drawing: Drawing) -> int:
    return len(drawing.arrows) + sum(arrows_of(box.inner) for box in drawing.boxes.values() if box.inner)


def test_weights_and_outer_references_have_their_arrows() -> None:
    stage = StageNode(task="t", inputs={"a": "request.a"})
    inner = {"x": StageNode(task="t", inputs={"r": "row.r", "o": "far.o"})}
    nodes = {
        "near": stage,
        "far": stage,
        "split": SplitterNode(branches=(Branch(3, "near"), Branch(1, "far"))),
        "each": ForEachNode(over={"r": "split.rows"}, nodes=inner, output="x"),
    }
    drawing = draw(GraphSpec(nodes=nodes, output="each", outputs={"label": "text", "same": "same"}))
    labels = {(arrow.source, arrow.target): arrow.label for arrow in drawing.arrows}
    assert labels == {
        ("request", "near"): "a",
        ("request", "far"): "a",
        ("near", "split"): "75%",
        ("far", "split"): "25%",
        ("split", "each"): "rows as r",
        ("far", "each"): "o",
        ("each", ANSWER): "label = text, same",
    }


def test_a_graph_in_circles_or_with_holes_is_drawn_too() -> None:
    nodes = {"a": StageNode(task="t", inputs={"x": "b.x"}), "b": StageNode(task="t", inputs={"x": "a.x", "y": "nowhere.y"})}
    drawing = draw(GraphSpec(nodes=nodes, output="a"))
    assert [(arrow.source, arrow.target) for arrow in drawing.arrows] == [("b", "a"), ("a", "b"), ("a", ANSWER)]
    ET.fromstring(svg(drawing, "circles"))


def test_the_picture_is_written_and_json_names_the_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cascade.svg"
    out = shown(capsys, TASK, GRAPHS / "cascade.yaml", "--svg", file, "--json")
    (graph,) = json.loads(out.splitlines()[-1])["graphs"]
    assert (graph["endpoint"], graph["graph"]["output"]) == ("fashion-cascade", "sure")
    assert ET.parse(file).getroot().tag == f"{SVG}svg"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([TASK, GRAPHS / "cascade.yaml", "fashion-cascde"], 1, "did you mean 'fashion-cascade'?"),
        ([TASK, GRAPHS / "cascade.yaml", GRAPHS / "shadow.yaml", "--svg", "/nowhere/a.svg"], 1, "name one of fashion-cascade, fashion-shadow"),
        ([TASK, GRAPHS / "cascade.yaml", "--svg", "/nowhere/a.svg"], 1, "cannot be written"),
        ([TASK, GRAPHS / "cascade.yaml", "--svg", "a.svg", "--mermaid"], 2, "either --mermaid or --svg"),
        ([TASK], 1, "there is no endpoint in these files"),
        (["missing.yaml"], 1, "cannot be read"),
    ],
)
def test_what_cannot_be_shown_is_told(capsys: pytest.CaptureFixture[str], arguments: list[str | Path], code: int, words: str) -> None:
    assert run(["graph", "show", *map(str, arguments)]) == code
    assert words in capsys.readouterr().err


def test_a_task_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["graph", "show", str(GRAPHS / "cascade.yaml")]) == 0
    shown = capsys.readouterr()
    assert "unknown here is task fashion" in shown.err
    assert "sure  switch" in shown.out
