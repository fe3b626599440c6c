"""Decides the life of the variants on one worker: load, warm, ready, drain, unload, as the plan says and memory allows."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import msgspec

from schemas.catalog import VariantSpec

DRAIN_MS = 1_000
"""A variant that leaves stays this long after the plan was seen: dispatchers that have not seen it yet still send."""
BACK_OFF_MS = 5_000
BACK_OFF_MS_MAX = 300_000
LOADING, WARMING, READY, DRAINING, FAILED = "loading", "warming", "ready", "draining", "failed"
_PREFERENCE = (READY, WARMING, LOADING, DRAINING, FAILED)


class Wanted(msgspec.Struct, frozen=True):
    """What the plan asks of this worker for one variant; `spec` is None where the catalog does not know it."""

    spec: VariantSpec | None
    batch_size_max: int
    threads: int
    memory_bytes: int = 0
    """What it needs, as far as a profile or an earlier load tells; 0: unknown."""


class Hosted(msgspec.Struct, eq=False):
    """One variant in the backend. `handle` is its name there: a new form of a variant is loaded beside the old one."""

    variant: str
    handle: str
    wanted: Wanted
    epoch: int
    state: str = LOADING
    reason: str = ""
    memory_bytes: int = 0
    load_ms: float = 0.0
    leaving_since_ms: float | None = None


class Load(msgspec.Struct, frozen=True, eq=False):
    """Load this and then say loaded() or failed()."""

    hosted: Hosted


class Warm(msgspec.Struct, frozen=True, eq=False):
    """Run it until it is as fast as it gets, then say warmed() or failed()."""

    hosted: Hosted


class Unload(msgspec.Struct, frozen=True, eq=False):
    """Free it; nothing uses it any more."""

    hosted: Hosted


Command = Load | Warm | Unload


class _Failure(msgspec.Struct, frozen=True):
    identity: Hashable
    epoch: int
    tries: int
    until_ms: float


class HostedVariants:
    """State of every variant on this worker. New variants are ready before old ones leave, where both fit into memory.

    Decisions follow from the state alone, so that calling decide() at any time is right.
    """

    def __init__(self, *, memory_bytes_max: int = 0) -> None:
        self._memory_bytes_max = memory_bytes_max
        self._wanted: dict[str, Wanted] = {}
        self._hosted: list[Hosted] = []
        self._failures: dict[str, _Failure] = {}
        self._generation = 0
        self.epoch = -1

    def plan(self, epoch: int, wanted: dict[str, Wanted], now_ms: float) -> bool:
        """Take a plan (or the same plan with a changed catalog); False for an epoch older than the one that is held."""
        if epoch < self.epoch:
            return False
        self.epoch, self._wanted = epoch, dict(wanted)
        self._forgive(now_ms)
        return True

    def serving(self, variant: str) -> Hosted | None:
        """Whatever computes orders for this variant now: the newest ready form, else one that drains."""
        draining: Hosted | None = None
        for hosted in reversed(self._hosted):
            if hosted.variant == variant:
                if hosted.state == READY:
                    return hosted
                if hosted.state == DRAINING and draining is None:
                    draining = hosted
        return draining

    @property
    def settled(self) -> bool:
        """Each wanted variant is ready or has failed; true where nothing is wanted."""
        shown = self.visible()
        return self.epoch >= 0 and all(variant in shown and shown[variant].state in (READY, FAILED) for variant in self._wanted)

    @property
    def memory_bytes(self) -> int:
        """Of everything that is in memory, what leaves included."""
        return self._used()

    def visible(self) -> dict[str, Hosted]:
        """One entry for each variant, as telemetry shows it; a wanted variant that the catalog lacks is failed."""
        ranked = sorted(self._hosted, key=lambda hosted: _PREFERENCE.index(hosted.state), reverse=True)
        unknown = {
            variant: Hosted(variant, variant, wanted, self.epoch, FAILED, "unknown variant: it is not in the catalog")
            for variant, wanted in self._wanted.items()
            if wanted.spec is None
        }
        return unknown | {hosted.variant: hosted for hosted in ranked}

    def loaded(self, hosted: Hosted, *, memory_bytes: int, load_ms: float, now_ms: float) -> bool:
        """It is in memory; False (and failed) where it turned out too large: unload it. Over the limit, whatever leaves drains at once."""
        hosted.state, hosted.memory_bytes, hosted.load_ms = WARMING, memory_bytes, load_ms
        used = self._used()
        if not self._memory_bytes_max or used <= self._memory_bytes_max:
            return True
        leavers = self._leavers()
        if used - sum(leaver.memory_bytes for leaver in leavers) <= self._memory_bytes_max:
            self._leave(leavers, now_ms)
            return True
        self.failed(hosted, self._no_room(hosted.variant, memory_bytes, used - memory_bytes), now_ms)
        return False

    def warmed(self, hosted: Hosted) -> None:
        hosted.state, hosted.reason = READY, ""
        self._failures.pop(hosted.variant, None)

    def failed(self, hosted: Hosted, reason: str, now_ms: float) -> None:
        """It did not load or does not run; another try needs a newer plan (or file) and some time."""
        hosted.state, hosted.reason, hosted.memory_bytes = FAILED, reason, 0
        before = self._failures.get(hosted.variant)
        tries = before.tries + 1 if before else 1
        back_off_ms = min(BACK_OFF_MS * 2 ** (tries - 1), BACK_OFF_MS_MAX)
        identity = _identity(hosted.wanted.spec) if hosted.wanted.spec else None
        self._failures[hosted.variant] = _Failure(identity, hosted.epoch, tries, now_ms + back_off_ms)

    def unloaded(self, hosted: Hosted) -> None:
        self._hosted.remove(hosted)

    def decide(self, now_ms: float, busy: Callable[[Hosted], bool]) -> Command | None:
        """The next thing to do, one at a time; `busy`: orders wait for it or run on it."""
        self._forgive(now_ms)
        for hosted in self._hosted:
            if hosted.state == WARMING:
                return Warm(hosted)
        self._mark_leaving(now_ms)
        for hosted in self._hosted:
            if self._may_go(hosted, now_ms, busy):
                return Unload(hosted)
        for variant, wanted in self._wanted.items():
            if wanted.spec is None or self._form(variant, wanted) is not None:
                continue
            if self._has_room(wanted):
                return Load(self._host(variant, wanted))
            leavers = [hosted for hosted in self._leavers() if hosted.memory_bytes]
            if leavers:  # drain first: what comes next in the plan must not take the room that they leave
                self._leave(leavers, now_ms)
                return None
            self.failed(self._host(variant, wanted), self._no_room(variant, wanted.memory_bytes, self._used()), now_ms)
        return None

    def _used(self) -> int:
        return sum(hosted.memory_bytes for hosted in self._hosted)

    def _has_room(self, wanted: Wanted) -> bool:
        return not self._memory_bytes_max or self._used() + wanted.memory_bytes <= self._memory_bytes_max

    def _no_room(self, variant: str, needed: int, used: int) -> str:
        return f"no room for {variant}: it needs {needed} bytes, {used} of {self._memory_bytes_max} are in use"

    def _form(self, variant: str, wanted: Wanted) -> Hosted | None:
        """The hosted form that the plan means, failed or not."""
        return next((hosted for hosted in self._hosted if hosted.variant == variant and _fits(hosted.wanted, wanted)), None)

    def _leavers(self) -> list[Hosted]:
        kept = [self._form(variant, wanted) for variant, wanted in self._wanted.items()]
        return [hosted for hosted in self._hosted if hosted not in kept]

    def _mark_leaving(self, now_ms: float) -> None:
        """Old forms drain once the new ones are ready; a plan of which nothing loads does not end the service of the old one."""
        leavers = self._leavers()
        for hosted in self._hosted:
            if hosted not in leavers and hosted.leaving_since_ms is not None:
                hosted.leaving_since_ms = None  # wanted again before it was gone
                hosted.state = READY if hosted.state == DRAINING else hosted.state
        known = {variant: wanted for variant, wanted in self._wanted.items() if wanted.spec is not None}
        forms = [self._form(variant, wanted) for variant, wanted in known.items()]
        pending = any(form is None or form.state in (LOADING, WARMING) for form in forms)
        nothing_works = bool(self._wanted) and not any(form is not None and form.state == READY for form in forms)
        if not pending and not nothing_works:
            self._leave(leavers, now_ms)

    def _leave(self, leavers: list[Hosted], now_ms: float) -> None:
        for hosted in leavers:
            if hosted.leaving_since_ms is None:
                hosted.leaving_since_ms = now_ms
                if hosted.state == READY:
                    hosted.state = DRAINING

    def _may_go(self, hosted: Hosted, now_ms: float, busy: Callable[[Hosted], bool]) -> bool:
        if hosted.leaving_since_ms is None:
            return hosted.state == FAILED and hosted in self._leavers()
        return hosted.state == FAILED or (now_ms - hosted.leaving_since_ms >= DRAIN_MS and not busy(hosted))

    def _host(self, variant: str, wanted: Wanted) -> Hosted:
        self._generation += 1
        taken = any(hosted.handle == variant for hosted in self._hosted)
        hosted = Hosted(variant, f"{variant}#{self._generation}" if taken else variant, wanted, self.epoch)
        self._hosted.append(hosted)
        return hosted

    def _forgive(self, now_ms: float) -> None:
        """A failed variant is tried again for another file (or call) at once, for a newer plan after its back-off."""
        for hosted in [hosted for hosted in self._hosted if hosted.state == FAILED]:
            failure, wanted = self._failures.get(hosted.variant), self._wanted.get(hosted.variant)
            if failure is None or wanted is None or wanted.spec is None:
                continue
            if _identity(wanted.spec) != failure.identity or (self.epoch > failure.epoch and now_ms >= failure.until_ms):
                self._hosted.remove(hosted)


def _identity(spec: VariantSpec) -> Hashable:
    """What is loaded: a file by its bytes; a Python task by all that the catalog says of how it is called."""
    return (spec.call, spec.call_ms_max, spec.inputs, spec.outputs) if spec.call else spec.sha256


def _fits(hosted: Wanted, wanted: Wanted) -> bool:
    """Whether what was loaded can serve what is wanted; a smaller batch limit needs no other form."""
    if hosted.spec is None or wanted.spec is None:
        return False
    same = _identity(hosted.spec) == _identity(wanted.spec) and hosted.spec.file == wanted.spec.file and hosted.threads == wanted.threads
    return same and hosted.batch_size_max >= wanted.batch_size_max
