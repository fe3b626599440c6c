"""What the golden files say of an order for one stage of a graph, and of the stage's record."""

from __future__ import annotations

import msgspec

from schemas.stage import StageRecord
from schemas.stage import TensorHead as RawHead
from schemas.terminal import PathStep
from schemas.work import NextStage, StagePart

EARLIER_PART = StagePart(
    instance="lines.recognise#12",
    revision=4,
    topic="headrace.stage.pages.lines.recognise",
    request_bytes=21,
    request_inputs={"language": "lang"},
    tensors=(RawHead("crop", "UINT8", (1, 32, 96, 3), 9_216), RawHead("words", "BYTES", (2,), 13)),
    outputs=("text",),
    answers={"answer": "text"},
    path=(PathStep(stage="detect", variant="d/small", accuracy=0.9, accelerator="cpu", device="CPU", queued_ms=0.5, computed_ms=4.0, batch_size=1),),
    path_accuracy=0.81,
    parameters=b"\x81\xa3top\x03",
    ready_ms=1_700_000_000_040,
)
PART = msgspec.structs.replace(
    EARLIER_PART,
    then=(
        NextStage(
            instance="lines.spell#12",
            variant="spell/small",
            accuracy=0.95,
            deadline_ms=1_700_000_000_400,
            inputs={"words": "text"},
            model=False,
            topic="headrace.stage.pages.lines.spell",
            outputs=("spelt",),
            answers={"answer": "spelt"},
            parameters=b"\x81\xa3top\x03",
            path_accuracy=0.77,
        ),
    ),
)
EARLIER_STAGE = StageRecord(
    version=1,
    endpoint="pages",
    revision=4,
    instance="lines.recognise#12",
    attempt=1,
    variant="recognise/large",
    accuracy=0.9,
    accelerator="vpu",
    device="NPU",
    queued_ms=1.5,
    computed_ms=3.25,
    batch_size=8,
    finished_ms=1_700_000_000_090,
    tensors=(RawHead("text", "BYTES", (1, 1), 9),),
    worker="worker-vpu-0",
)
STAGE = msgspec.structs.replace(EARLIER_STAGE, fused=True)
FAILED_STAGE = msgspec.structs.replace(
    EARLIER_STAGE, tensors=(), accelerator="", device="", queued_ms=0.0, computed_ms=0.0, batch_size=0, error_code="backend_error",
    error_message="it raised",
)  # fmt: skip
