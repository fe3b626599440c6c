"""What variants and paths are really worth: folds answers and feedback into tallies, and says what is in force and what was flagged. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from scaler.policy.accuracy_window import Answered, Place, Waiting, Window, WindowSettings
from scaler.policy.posterior import credit, restarted, settle, take_back
from schemas.catalog import Catalog, VariantSpec, split_variant_key
from schemas.effective import model_of
from schemas.feedback import Feedback, Judged, judged
from schemas.learned import AccuracyState, AccuracyTally, FeedbackCounts, Learned
from schemas.terminal import COMPLETED, Terminal, decode_terminal

PATHS_MAX = 200
"""Of each endpoint; of further ones nothing is learned."""

MODEL_SHOWN = 12
"""Characters of each model's hash that a path's tally is kept under."""


class Finding(msgspec.Struct, frozen=True):
    """A variant or path (then of an endpoint) fell below what it promises, or came back."""

    endpoint: str
    name: str
    tally: AccuracyTally


class AccuracyBook:
    """One judge's knowledge. Records that an earlier judge has counted are only remembered: `restored` says which."""

    def __init__(self, restored: AccuracyState | None = None, settings: WindowSettings | None = None) -> None:
        state = restored or AccuracyState()
        self._counted = dict(state.offsets)
        self.offsets = dict(state.offsets)
        # Copies: a state that was read stays as it was.
        self.variants = {key: msgspec.structs.replace(tally) for key, tally in state.variants.items()}
        self.paths = {name: {path: msgspec.structs.replace(tally) for path, tally in paths.items()} for name, paths in state.paths.items()}
        self.counts: FeedbackCounts = msgspec.structs.replace(state.counts)
        self.findings: list[Finding] = []
        """Since somebody looked: whoever does empties the list."""
        self.changed = False
        """Whether there is anything to tell since somebody looked."""
        self._window = Window(settings or WindowSettings())
        self._specs: dict[str, VariantSpec] = {}
        self._single: frozenset[str] = frozenset()

    # -- what is observed

    def observe_catalog(self, catalog: Catalog) -> None:
        """What variants promise, and of which models: of another model, or of a variant that is gone, nothing is known."""
        self._specs = catalog.variants()
        self._single = frozenset(name for name, endpoint in catalog.endpoints.items() if endpoint.graph is None)
        self.variants = {
            key: restarted(tally, self._specs[key].accuracy, model_of(self._specs[key])) for key, tally in self.variants.items() if key in self._specs
        }
        self.paths = {name: paths for name, paths in self.paths.items() if name in catalog.endpoints}
        self.changed = True

    def answer(self, place: Place, at_ms: int, key: bytes, value: bytes) -> None:
        """A record of {p}.responses."""
        self._pass(place)
        answered = Answered(value, at_ms, place)
        waiting = self._window.answer(key, answered)
        if waiting is not None:
            self._join(answered, waiting)

    def feedback(self, place: Place, at_ms: int, key: bytes, feedback: Feedback) -> None:
        """A record of {p}.feedback."""
        self._pass(place)
        if not key or not feedback.judges:
            self._count("invalid", counted=self._old(place))
            return
        waiting = Waiting(feedback, at_ms, place)
        answered = self._window.find(key, at_ms)
        if answered is not None:
            self._join(answered, waiting)
            return
        before = self._window.wait(key, waiting)
        if before is not None:
            self._count("repeated" if before.feedback == feedback else "conflicting", counted=self._old(place))

    def invalid(self, place: Place) -> None:
        """A record of {p}.feedback that is none."""
        self._pass(place)
        self._count("invalid", counted=self._old(place))

    # -- what is told

    def settle(self) -> None:
        """Give up what waited too long, and bring tallies in line with their counts."""
        for place in self._window.unmatched:
            self._count("unmatched", counted=self._old(place))
        self._window.unmatched.clear()
        if not self.changed:
            return
        for endpoint, name, tally in self._tallies():
            flagged = tally.flagged
            settle(tally)
            # The path of an endpoint of one stage is its variant once more.
            if tally.flagged != flagged and endpoint not in self._single:
                self.findings.append(Finding(endpoint, name, msgspec.structs.replace(tally)))

    def learned(self) -> Learned:
        """What everybody is to go by."""
        return Learned(variants={key: tally.in_force for key, tally in sorted(self.variants.items()) if tally.in_force is not None})

    def state(self, by: str, at_ms: int) -> AccuracyState:
        """All that a successor must know."""
        return AccuracyState(
            variants=self.variants,
            paths=self.paths,
            counts=self.counts,
            waiting=self._window.waiting,
            offsets=self.offsets,
            at_ms=at_ms,
            by=by,
        )

    # -- inside

    def _pass(self, place: Place) -> None:
        self.offsets[place[0]] = max(self.offsets.get(place[0], 0), place[1] + 1)

    def _old(self, place: Place) -> bool:
        return place[1] < self._counted.get(place[0], 0)

    def _count(self, what: str, *, counted: bool) -> None:
        if not counted:
            setattr(self.counts, what, getattr(self.counts, what) + 1)
            self.changed = True

    def _join(self, answered: Answered, said: Waiting) -> None:
        feedback = said.feedback
        # What an earlier judge joined is in the tallies: then it is remembered, so that it can be taken back, and not counted once more.
        counted = self._old(said.place) and self._old(answered.place)
        if answered.feedback == feedback:
            self._count("repeated", counted=counted)
            return
        terminal = _read(answered.value)
        if terminal is None or terminal.outcome != COMPLETED:
            self._count("unanswered", counted=counted)
            return
        found = judged(feedback, terminal)
        if found is None:
            self._count("incomparable", counted=counted)
            return
        if answered.feedback is not None:
            self._take_back(answered, counted=counted)
            self._count("conflicting", counted=counted)
        else:
            self._count("credited", counted=counted)
        answered.feedback = feedback
        answered.credits = self._credit(terminal, found, counted=counted)

    def _credit(self, terminal: Terminal, found: Judged, *, counted: bool) -> list[tuple[str, str, float, float, int]]:
        given: list[tuple[str, str, float, float, int]] = []
        for endpoint, name, tally in self._about(terminal):
            if not counted:
                credit(tally, found.right, found.wrong)
                self.changed = True
            given.append((endpoint, name, found.right, found.wrong, tally.halvings))
        return given

    def _take_back(self, answered: Answered, *, counted: bool) -> None:
        for endpoint, name, right, wrong, halvings in [] if counted else answered.credits:
            tally = self.paths.get(endpoint, {}).get(name) if endpoint else self.variants.get(name)
            if tally is not None:
                take_back(tally, right, wrong, halvings)
                self.changed = True

    def _about(self, terminal: Terminal) -> Iterable[tuple[str, str, AccuracyTally]]:
        """The tallies that an answer counts in: its path, and its variant where the endpoint has one stage.

        Which stages of a graph run depends on the input, so what a path got right says nothing of its variants alone.
        """
        models = [step for step in terminal.path if (spec := self._specs.get(step.variant)) is not None and not spec.call]
        if not models:
            return
        if terminal.endpoint in self._single and len(models) == 1:
            key = models[0].variant
            spec = self._specs[key]
            yield "", key, self.variants.setdefault(key, AccuracyTally(promised=spec.accuracy, model=model_of(spec)))
        paths = self.paths.setdefault(terminal.endpoint, {})
        path = ",".join(sorted({f"{step.stage.partition('#')[0]}={split_variant_key(step.variant)[1]}" for step in models}))
        model = ",".join(sorted({model_of(self._specs[step.variant])[:MODEL_SHOWN] for step in models}))
        if path in paths or len(paths) < PATHS_MAX:
            if path not in paths or paths[path].model != model:
                paths[path] = AccuracyTally(model=model)
            tally = paths[path]
            tally.promised = terminal.accuracy if terminal.accuracy is not None else tally.promised
            yield terminal.endpoint, path, tally

    def _tallies(self) -> Iterable[tuple[str, str, AccuracyTally]]:
        yield from (("", key, tally) for key, tally in self.variants.items())
        for endpoint, paths in self.paths.items():
            yield from ((endpoint, path, tally) for path, tally in paths.items())


def _read(value: bytes) -> Terminal | None:
    """Anybody can write to the topic; what is no terminal record is no answer."""
    try:
        return decode_terminal(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
