"""The graph without a broker: the same callables and the same models, run one after the other in this process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from headrace_ocr import stages
from headrace_ocr.ladder import CLASSIFIER

Tensors = dict[str, NDArray[Any]]
NO_PARAMETERS: Mapping[str, Any] = {}


class Pipeline:
    """Loads models from a folder that `headrace_ocr.fetch` wrote as they are first asked for; `spent_ms` collects each stage's times."""

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self._folder = folder / "models"
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self.spent_ms: dict[str, list[float]] = {}

    def read(self, image: bytes, detector: str, recogniser: str) -> list[str]:
        """The lines of one page."""
        found = self.cut(image, detector)
        recognised = self.recognise(found["lines"], self.orient(found["lines"]), recogniser)
        return self.text(recognised, found["boxes"])

    def cut(self, image: bytes, detector: str) -> Tensors:
        """`lines` and `boxes` of a page."""
        packed = np.array([image], object)
        page = stages.decode({"image": packed}, NO_PARAMETERS)["page"]
        found = self.run(f"detect-{detector}", {"page": page})["map"]
        return stages.cut({"image": packed, "map": found}, NO_PARAMETERS)

    def orient(self, lines: NDArray[np.uint8]) -> NDArray[np.float32]:
        """By line, the probability that it is upside down."""
        rows = [self.run(f"orient-{CLASSIFIER}", {"line": line[None]})["turned"] for line in lines]
        return np.concatenate(rows) if rows else np.zeros(0, np.float32)

    def recognise(self, lines: NDArray[np.uint8], turned: NDArray[np.float32], recogniser: str) -> Tensors:
        """Rows one by one, as a for_each does, joined."""
        name = f"recognise-{recogniser}"
        rows = [self.run(name, {"line": lines[at : at + 1], "turned": turned[at : at + 1]}) for at in range(len(lines))]
        if not rows:
            return {"codes": np.zeros((0, 0), np.int32), "confidence": np.zeros(0, np.float32), "upside_down": np.zeros(0, np.float32)}
        return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}

    def text(self, recognised: Tensors, boxes: NDArray[np.float32]) -> list[str]:
        """The lines in reading order."""
        read = stages.text({**recognised, "boxes": boxes}, NO_PARAMETERS)["text"]
        return [line.decode() for line in read.tolist()]

    def run(self, model: str, inputs: Tensors) -> Tensors:
        """One call of one model."""
        session = self._sessions.get(model)
        if session is None:
            file = str(self._folder / f"{model}.onnx")
            session = self._sessions[model] = onnxruntime.InferenceSession(file, self._options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        started = time.perf_counter()
        outputs = session.run(names, inputs)
        self.spent_ms.setdefault(model, []).append((time.perf_counter() - started) * 1e3)
        return {name: np.asarray(output) for name, output in zip(names, outputs, strict=True)}
