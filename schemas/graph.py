"""An endpoint's graph as it stands in the catalog: named nodes, evaluated from the output backwards."""

from __future__ import annotations

from typing import Any

import msgspec

REQUEST = "request"
"""The node that stands for the request's own tensors: `request.image`."""
ROW = "row"
"""Inside a for_each: the tensors of one row of what it goes over."""


class StageNode(msgspec.Struct, frozen=True, kw_only=True, tag_field="node", tag="stage"):
    """Runs a task. `inputs` maps each input of the task to `node.tensor`; `variants` (names) narrows the choice, empty: all of the task's."""

    task: str
    inputs: dict[str, str]
    variants: tuple[str, ...] = ()
    parameters: dict[str, Any] = {}
    """Handed to a Python task as they are."""


class Case(msgspec.Struct, frozen=True):
    """A branch of a switch: `when` is a condition, `then` the node that is taken."""

    when: str
    then: str


class SwitchNode(msgspec.Struct, frozen=True, kw_only=True, tag_field="node", tag="switch"):
    """The first case whose condition holds, else `otherwise`; the nodes of the other branches do not run."""

    cases: tuple[Case, ...]
    otherwise: str


class Branch(msgspec.Struct, frozen=True):
    """A branch of a splitter, taken by `weight` parts of all weights."""

    weight: float
    then: str


class SplitterNode(msgspec.Struct, frozen=True, kw_only=True, tag_field="node", tag="splitter"):
    """Weighted traffic split. `sticky`: `id`, `tenant`, or the name of a request parameter whose value decides."""

    branches: tuple[Branch, ...]
    sticky: str = "id"


class Guardrails(msgspec.Struct, frozen=True, kw_only=True):
    """What a candidate may be worse by than stable before it is rolled back; None: not looked at."""

    failed_share: float | None = 0.02
    latency_p99: float | None = 1.5
    """As a multiple of stable's."""
    attainment: float | None = 0.05
    agreement: float | None = None
    """Least part of answers that agree with stable's on the same requests (argmax of the first output)."""
    accuracy: float | None = 0.02
    """Labelled accuracy, where feedback exists."""


class CanaryNode(msgspec.Struct, frozen=True, kw_only=True, tag_field="node", tag="canary"):
    """A splitter between two nodes whose weight moves by itself in `steps` (percent to the candidate)."""

    stable: str
    candidate: str
    steps: tuple[float, ...] = (1.0, 5.0, 25.0, 50.0, 100.0)
    step_requests: int = 200
    """Candidate answers that a step needs at least."""
    guardrails: Guardrails = Guardrails()
    alerts: bool = False
    """Whether an alert about the endpoint ({p}.alerts, a warning or worse) takes the candidate back."""
    sticky: str = "id"
    percent: float = 0.0
    """To the candidate now; 0 while no canary runs."""


class ShadowNode(msgspec.Struct, frozen=True, kw_only=True, tag_field="node", tag="shadow"):
    """Is `primary`; a `share` of the requests runs `copy` too, whose answers go to {p}.tap.responses only."""

    primary: str
    copy: str
    share: float = 1.0


class EnsembleNode(msgspec.Struct, frozen=True, kw_only=True, tag_field="node", tag="ensemble"):
    """`members` all answer; the combiner merges tensor by tensor.

    `wait`: for how many members, 0 for all; with `by_deadline` fewer will do in the end.
    """

    members: tuple[str, ...]
    combiner: str = "mean"
    weights: tuple[float, ...] = ()
    wait: int = 0
    by_deadline: bool = False
    tensors: tuple[str, ...] = ()
    """Outputs that are merged; empty: all that the members share."""


class ForEachNode(msgspec.Struct, frozen=True, kw_only=True, tag_field="node", tag="for_each"):
    """`nodes` run once for each row (first axis) of the tensors in `over` (row name -> `node.tensor`); rows of `output` are joined in order.

    `policy`: `all`, `at_least` (with `least`), or `best_by_deadline`; missing rows are named in the tensor `missing` (INT64 indices).
    """

    over: dict[str, str]
    nodes: dict[str, Node]
    output: str
    rows_max: int = 256
    policy: str = "all"
    least: int = 0


Node = StageNode | SwitchNode | SplitterNode | CanaryNode | ShadowNode | EnsembleNode | ForEachNode


class GraphSpec(msgspec.Struct, frozen=True, kw_only=True):
    """`output` names the node whose tensors are the answer; `outputs` renames or picks among them (answer name -> tensor name; empty: all)."""

    nodes: dict[str, Node]
    output: str
    outputs: dict[str, str] = {}
    measured: dict[str, float] = {}
    """End-to-end accuracy on labelled data by combination, `stage=variant` joined by commas in the order of the stages' names."""
    fuse: bool = True
    """Stages that follow one another may be computed on one worker without a hand-over between them."""
    calls: tuple[str, ...] = ()
    """Endpoints whose graphs stand in this one, and those that they called: an endpoint cannot call what calls it."""
