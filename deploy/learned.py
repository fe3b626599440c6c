"""What was learned and what was alerted, as the topics have it now."""

from __future__ import annotations

import msgspec

from broker.log import Log
from deploy.snapshots import read_catalog, read_topic
from schemas.alerts import Alert, alerts_topic, decode_alert
from schemas.effective import effective_accuracy
from schemas.learned import STATE_KEY, AccuracyState, AccuracyTally, AgreementTally, accuracy_topic, decode_accuracy_state
from schemas.names import Names


class ModelStanding(msgspec.Struct, frozen=True, kw_only=True):
    """One variant: what it promises, what feedback says of it, and what each endpoint of its task goes by."""

    variant: str
    declared: float
    learned: AccuracyTally | None
    goes_by: dict[str, float]
    """By endpoint."""
    agreement: AgreementTally | None = None
    """With the most accurate variant, where an endpoint asks for that."""

    @property
    def rows(self) -> float:
        """That feedback judged; older ones fade."""
        return 0.0 if self.learned is None else self.learned.right + self.learned.wrong


class Accuracies(msgspec.Struct, frozen=True, kw_only=True):
    """Of all variants, and of the paths of all endpoints."""

    models: list[ModelStanding]
    state: AccuracyState


async def read_accuracies(log: Log, names: Names) -> Accuracies:
    """As the leading scaler wrote them last."""
    catalog, state = await read_catalog(log, names), AccuracyState()
    for record in await read_topic(log, accuracy_topic(names)):
        if record.key == STATE_KEY and record.value is not None:
            try:
                state = decode_accuracy_state(record.value)
            except msgspec.DecodeError:
                continue
    models: list[ModelStanding] = []
    for key, spec in sorted(catalog.variants().items()):
        endpoints = [endpoint for endpoint in catalog.endpoints.values() if endpoint.task == key.partition("/")[0]]
        goes_by = {endpoint.name: effective_accuracy(key, spec, catalog.learned, endpoint.accuracy_policy) for endpoint in endpoints}
        learned, agreement = state.variants.get(key), state.agreements.get(key)
        models.append(ModelStanding(variant=key, declared=spec.accuracy, learned=learned, goes_by=goes_by, agreement=agreement))
    return Accuracies(models=models, state=state)


async def read_alerts(log: Log, names: Names, *, since_ms: int | None = None) -> list[Alert]:
    """Oldest first; what is none is left out."""
    found: list[Alert] = []
    for record in await read_topic(log, alerts_topic(names), since_ms=since_ms):
        try:
            found.append(decode_alert(record.value or b""))
        except msgspec.DecodeError:
            continue
    return found
