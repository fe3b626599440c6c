"""A backend plug-in that computes on the CPU, and misbehaves where a request's first pixels ask for it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from schemas.catalog import VariantSpec
from workers.backend import BackendOptions, Device, Loaded, Tensors
from workers.cpu.backend import CpuBackend

SUMMONS = (251, 17, 251)
"""The first pixels of an image that asks for something; the fourth says what."""
RAISES, HANGS, DIES, DAWDLES = 1, 2, 3, 4
DAWDLE_S = 3.0
"""Longer than a lease, shorter than what counts as hanging."""


class MoodyBackend:
    """The CPU backend with moods."""

    def __init__(self, options: BackendOptions) -> None:
        self._calm = CpuBackend(options)

    def describe(self) -> Device:
        return self._calm.describe()

    def load(self, key: str, spec: VariantSpec, file: Path, *, batch_size_max: int, threads: int) -> Loaded:
        if "unloadable" in spec.name:
            raise RuntimeError("out of device memory")
        return self._calm.load(key, spec, file, batch_size_max=batch_size_max, threads=threads)

    def infer(self, key: str, inputs: Tensors, rows: int) -> Tensors:
        for image in inputs["image"]:
            pixels = image.ravel()
            if tuple(pixels[:3].tolist()) == SUMMONS:
                self._indulge(int(pixels[3]))
        return self._calm.infer(key, inputs, rows)

    def _indulge(self, mood: int) -> None:
        if mood == RAISES:
            raise RuntimeError("kernel panic")
        if mood == HANGS:
            time.sleep(3_600)
        if mood == DIES:
            os._exit(86)
        if mood == DAWDLES:
            time.sleep(DAWDLE_S)

    def unload(self, key: str) -> None:
        self._calm.unload(key)
