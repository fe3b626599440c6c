"""How often variants say what the most accurate one says: joins sampled answers with second opinions, where nobody gives labels. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import msgspec

from graphs.second_opinion import is_sampled, reference_of
from scaler.policy.accuracy_window import Place
from scaler.policy.posterior import credit, interval
from schemas.catalog import Catalog, VariantSpec, variant_key
from schemas.effective import model_of
from schemas.feedback import Labels, compared, labels_of
from schemas.learned import AccuracyState, AgreementTally
from schemas.terminal import COMPLETED, Terminal, decode_terminal

WAITING_MAX = 5_000
"""Answers whose second opinion has not come, and the other way round: most never come where there is much to do."""


class _Said(NamedTuple):
    variant: str
    labels: Labels


class _Asked(NamedTuple):
    """What an endpoint has compared."""

    share: float
    reference: str


class AgreementBook:
    """One judge's knowledge, as far as `restored` and what was read since go."""

    def __init__(self, restored: AccuracyState | None = None) -> None:
        state = restored or AccuracyState()
        self.tallies = {key: msgspec.structs.replace(tally) for key, tally in state.agreements.items()}
        self.offsets = dict(state.agreement_offsets)
        """Records that are counted: `topic:partition` -> the next offset."""
        self.changed = False
        """Whether there is anything to tell since somebody looked."""
        self._asked: dict[str, _Asked] = {}
        self._share_max = 0.0
        self._specs: dict[str, VariantSpec] = {}
        self._answers: OrderedDict[bytes, _Said] = OrderedDict()
        self._opinions: OrderedDict[bytes, _Said] = OrderedDict()

    @property
    def wanted(self) -> bool:
        """Whether any endpoint asks for it."""
        return bool(self._asked)

    def observe_catalog(self, catalog: Catalog) -> None:
        """Who asks for it, and of which models: between others nothing is known."""
        self._specs = catalog.variants()
        self._asked = {}
        for name, endpoint in catalog.endpoints.items():
            task = catalog.tasks.get(endpoint.task)
            reference = reference_of(task) if task is not None and endpoint.agreement is not None else None
            if reference is not None and endpoint.agreement is not None and endpoint.agreement.sample > 0.0:
                self._asked[name] = _Asked(endpoint.agreement.sample, variant_key(endpoint.task, reference.name))
        self._share_max = max((asked.share for asked in self._asked.values()), default=0.0)
        known = {key: tally for key, tally in self.tallies.items() if self._models(key, tally.reference) == tally.models}
        if len(known) < len(self.tallies):
            self.tallies, self.changed = known, True

    def answer(self, place: Place, key: bytes, value: bytes) -> None:
        """A record of {p}.responses; the first of an id counts."""
        self._pass(place)
        if not is_sampled(key.decode(errors="replace"), self._share_max) or key in self._answers:
            return
        terminal = _read(value)
        asked = None if terminal is None else self._asked.get(terminal.endpoint)
        if terminal is None or asked is None or not is_sampled(terminal.id, asked.share):
            return
        said = _said(terminal)
        if said is not None and said.variant != asked.reference:
            self._join(key, said, self._opinions.pop(key, None), self._answers)

    def opinion(self, place: Place, key: bytes, value: bytes) -> None:
        """A shadow's record of {p}.tap.responses."""
        self._pass(place)
        terminal = _read(value)
        asked = None if terminal is None else self._asked.get(terminal.endpoint)
        said = None if terminal is None else _said(terminal)
        if asked is not None and said is not None and said.variant == asked.reference:
            self._join(key, said, self._answers.pop(key, None), self._opinions)

    def settle(self) -> None:
        """Bring means and intervals in line with the counts."""
        for tally in self.tallies.values():
            tally.mean, tally.low, tally.high = interval(tally.right, tally.wrong)

    def _pass(self, place: Place) -> None:
        self.offsets[place[0]] = max(self.offsets.get(place[0], 0), place[1] + 1)

    def _join(self, key: bytes, said: _Said, other: _Said | None, waiting: OrderedDict[bytes, _Said]) -> None:
        if other is None:
            waiting[key] = said
            if len(waiting) > WAITING_MAX:
                waiting.popitem(last=False)
            return
        answer, opinion = (other, said) if waiting is self._opinions else (said, other)
        found = compared(opinion.labels, answer.labels)
        models = self._models(answer.variant, opinion.variant)
        if found is None or models is None:
            return
        tally = self.tallies.get(answer.variant)
        if tally is None or (tally.reference, tally.models) != (opinion.variant, models):
            tally = self.tallies[answer.variant] = AgreementTally(reference=opinion.variant, models=models)
        credit(tally, found.right, found.wrong)
        self.changed = True

    def _models(self, key: str, reference: str) -> str | None:
        """What a tally belongs to; None where one of the two is gone."""
        specs = self._specs.get(key), self._specs.get(reference)
        return None if specs[0] is None or specs[1] is None else f"{model_of(specs[0])}~{model_of(specs[1])}"


def _said(terminal: Terminal) -> _Said | None:
    """Which variant said what; None where nothing was completed, or nothing can be compared."""
    labels = labels_of(terminal) if terminal.outcome == COMPLETED and terminal.path else None
    return None if labels is None else _Said(terminal.path[-1].variant, labels)


def _read(value: bytes) -> Terminal | None:
    """Anybody can write to the topics; what is no terminal record is no answer."""
    try:
        return decode_terminal(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
