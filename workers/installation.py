"""Brings variants into the backend: load, warm, and profile where no profile is stored. Blocks: runs on a thread of the worker's."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from schemas.profile import Latency, Profile
from workers.backend import Backend, Loaded
from workers.host import host_name
from workers.policy.hosting import Hosted
from workers.profiler import QUICK, Profiler, example_tensor
from workers.turns import InTurns

WARM_CALLS = 2
WARM_ROWS_MAX = 4
FREE_AXIS = 64
NO_FILE = Path()
CALL_LATENCY = Latency(p50_ms=1.0, p95_ms=3.0, samples=0)
"""What a Python task is taken for until it has been called; without samples, it gives way to the first few calls."""

Resolve = Callable[[str], Path]
"""The verified model file of a SHA-256; raises ModelRefused."""


class Profiles(Protocol):
    """Where profiles are kept: workers/profile_store.py, or nothing."""

    def get(self, variant: str, sha256: str, *, device: str, threads: int, host: str) -> Profile | None: ...

    def put(self, profile: Profile) -> object: ...


class Installation:
    """Carries out what HostedVariants commands."""

    def __init__(self, backend: Backend, resolve: Resolve, profiles: Profiles, now_ms: Callable[[], float]) -> None:
        self._backend, self._resolve, self._profiles, self._now_ms = backend, resolve, profiles, now_ms

    def load(self, hosted: Hosted) -> Loaded:
        """Raises ModelRefused, or what the runtime raises."""
        wanted = hosted.wanted
        assert wanted.spec is not None
        file = NO_FILE if wanted.spec.call else self._resolve(wanted.spec.sha256)
        return self._backend.load(hosted.handle, wanted.spec, file, batch_size_max=wanted.batch_size_max, threads=wanted.threads)

    def known_profile(self, variant: str, sha256: str, device: str, threads: int) -> Profile | None:
        if not sha256:  # a Python task: its profile would be that of every other one
            return None
        return self._profiles.get(variant, sha256, device=device, threads=threads, host=host_name())

    def warm(self, hosted: Hosted, loaded: Loaded, profile_ms: float, turns: InTurns | None = None) -> Profile:
        """The variant's profile, after it has run at full speed; measured (in `profile_ms`) and stored where there was none.

        `turns`: others are served meanwhile.

        A Python task is not run: nobody knows what it could be given, or what that would do. Its first real calls correct the guess.
        """
        if loaded.call is not None:
            return self._guessed(hosted, loaded)
        threads = hosted.wanted.threads
        stored = self.known_profile(hosted.variant, loaded.spec.sha256, loaded.device, threads)
        if stored is not None:
            self._run_once(hosted, loaded)
            return stored
        settings = msgspec.structs.replace(QUICK, budget_ms=profile_ms, batch_size_max=hosted.wanted.batch_size_max, threads=threads)
        clock = time.perf_counter if turns is None else turns.clock
        measured = Profiler(turns or self._backend, settings, clock=clock, now_ms=self._now_ms).measure({hosted.handle: loaded})[0]
        profile = msgspec.structs.replace(measured, variant=hosted.variant)
        self._profiles.put(profile)
        return profile

    def _guessed(self, hosted: Hosted, loaded: Loaded) -> Profile:
        return Profile(
            variant=hosted.variant,
            sha256="",
            accelerator="cpu",
            device=loaded.device,
            host=host_name(),
            threads=hosted.wanted.threads,
            batches={1: CALL_LATENCY},
            load_ms=loaded.load_ms,
            memory_bytes=loaded.memory_bytes,
        )

    def _run_once(self, hosted: Hosted, loaded: Loaded) -> None:
        """First calls are slow: each fixed size once, and else the small sizes that start at once."""
        random = np.random.default_rng(0)
        sizes = loaded.batch_sizes or (1,) * WARM_CALLS + (min(WARM_ROWS_MAX, hosted.wanted.batch_size_max),)
        for rows in sizes:
            inputs = {spec.name: example_tensor(spec, rows, random, free_axis=FREE_AXIS) for spec in loaded.spec.inputs}
            self._backend.infer(hosted.handle, inputs, rows)

    def unload(self, hosted: Hosted) -> None:
        self._backend.unload(hosted.handle)
