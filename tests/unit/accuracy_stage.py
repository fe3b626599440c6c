"""Terminal records and catalogs for tests of what is learned from feedback."""

from __future__ import annotations

from schemas.catalog import Catalog, EndpointSpec, TaskSpec, VariantSpec
from schemas.terminal import JSON_TYPE, OutputTensor, PathStep, Terminal, encode_terminal

TASK = TaskSpec(
    name="t",
    variants=(
        VariantSpec(name="small", sha256="aa", accuracy=0.8),
        VariantSpec(name="large", sha256="bb", accuracy=0.95),
        VariantSpec(name="cut", call="m:cut", accuracy=1.0),
    ),
)


def catalog(task=TASK, **policies):
    endpoints = {"e": EndpointSpec(name="e", task="t")} if not policies else {}
    endpoints |= {name: EndpointSpec(name=name, task="t", accuracy_policy=policy) for name, policy in policies.items()}
    return Catalog(tasks={"t": task}, endpoints=endpoints)


def step_of(variant, stage="main"):
    return PathStep(stage=stage, variant=variant, accuracy=0.9, accelerator="cpu", device="d", queued_ms=0, computed_ms=1, batch_size=1)


def answer(request_id, *labels, variant="t/small", outcome="completed", endpoint="e", path=None, encoding=JSON_TYPE):
    """The bytes of a terminal record whose first output says these classes."""
    scores = [1.0 if at == label else 0.0 for label in labels for at in range(4)]
    return encode_terminal(
        Terminal(
            id=request_id,
            outcome=outcome,
            endpoint=endpoint,
            outputs=[OutputTensor("probs", [len(labels), 4], "FP64", scores)] if outcome == "completed" else None,
            path=path if path is not None else [step_of(variant)],
            accuracy=0.9,
            received_ms=0,
            finished_ms=9,
            attempts=1,
            epoch=1,
            version=1,
        ),
        encoding,
    )
