"""The detectors as they run: events in, alerts out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from broker.log import Log
from headrace_mlops.adversarial import SqueezingDetector
from headrace_mlops.drift import DriftWatch
from headrace_mlops.events import Observed, follow
from headrace_mlops.features import answer_features, input_features
from schemas.alerts import Alert, alerts_spec, alerts_topic, encode_alert
from schemas.names import Names

CLIENT_ID = "headrace-mlops"
ATTACK_WINDOW = 200
"""Images whose flags are counted together: single ones are flagged by mistake now and then."""
ATTACK_SHARE = 0.15
"""Above this part of them it is an alert: three times the false alarms that are allowed."""
Told = Callable[[Alert], None]


class Detector(Protocol):
    """Takes what was observed of an endpoint, and says what is to be told."""

    endpoint: str

    def observe(self, observed: Observed) -> Sequence[Alert]:
        """In the order of the answers."""
        ...


class DriftDetector:
    """Drift on inputs and confidences of one endpoint."""

    def __init__(self, endpoint: str, input_name: str, output_name: str, watch: DriftWatch | None = None) -> None:
        self.endpoint, self._input, self._output = endpoint, input_name, output_name
        self.watch = watch or DriftWatch()

    def observe(self, observed: Observed) -> Sequence[Alert]:
        values: dict[str, float] = {}
        if self._input in observed.inputs:
            values |= {name: float(value.mean()) for name, value in input_features(observed.inputs[self._input]).items()}
        if self._output in observed.outputs:
            # By variant: which one answers moves with the load, and a change of models is no drift of the world.
            sure = answer_features(observed.outputs[self._output])["confidence"]
            values[f"confidence of {observed.variant}" if observed.variant else "confidence"] = float(sure.mean())
        return [
            Alert(
                source="river",
                kind="drift",
                endpoint=self.endpoint,
                message=f"{drift.feature} has drifted by {drift.moved:+.1f} standard deviations ({drift.detector}, request {drift.number})",
                at_ms=observed.at_ms,
                evidence={"detector": drift.detector, "feature": drift.feature, "request": drift.number, "moved": drift.moved, "id": observed.id},
            )
            for drift in self.watch.observe(values)
        ]


class AttackDetector:
    """Images that look attacked, and when there are more of them than mistakes explain."""

    def __init__(self, endpoint: str, input_name: str, detector: SqueezingDetector) -> None:
        self.endpoint, self._input, self._detector = endpoint, input_name, detector
        self.flagged: dict[str, bool] = {}
        """The latest requests, by id."""
        self._recent: list[bool] = []
        self._quiet = 0

    def observe(self, observed: Observed) -> Sequence[Alert]:
        images = observed.inputs.get(self._input)
        if images is None:
            return ()
        flagged = bool(self._detector.flags(np.asarray(images)).any())
        self.flagged[observed.id] = flagged
        if len(self.flagged) > ATTACK_WINDOW * 50:
            del self.flagged[next(iter(self.flagged))]
        self._recent = [*self._recent[-ATTACK_WINDOW + 1 :], flagged]
        self._quiet -= 1
        share = sum(self._recent) / len(self._recent)
        if len(self._recent) < ATTACK_WINDOW or share <= ATTACK_SHARE or self._quiet > 0:
            return ()
        self._quiet = ATTACK_WINDOW
        message = f"{share:.0%} of the last {ATTACK_WINDOW} images look attacked"
        evidence: dict[str, Any] = {"share": share, "window": ATTACK_WINDOW, "id": observed.id}
        return [
            Alert(
                source="squeezing",
                kind="adversarial",
                endpoint=self.endpoint,
                message=message,
                severity="critical",
                at_ms=observed.at_ms,
                evidence=evidence,
            )
        ]


async def watch(log: Log, kafka: str, names: Names, detector: Detector, *, told: Told, beginning: bool = False) -> None:
    """Follow the taps and write alerts, until cancelled."""
    await log.create_topics([alerts_spec(names)])
    writer = log.writer(CLIENT_ID)
    await writer.start()
    try:
        async for batch in follow(log, kafka, names, detector.endpoint, beginning=beginning):
            alerts = [behind(detector.endpoint, batch)] if isinstance(batch, int) else [alert for one in batch for alert in detector.observe(one)]
            if alerts:
                await writer.write(alerts_topic(names), 0, [(alert.endpoint.encode(), encode_alert(alert), ()) for alert in alerts])
            for alert in alerts:
                told(alert)
    finally:
        await writer.close()


def behind(endpoint: str, skipped: int) -> Alert:
    """That events were passed over: silence afterwards says nothing about those."""
    message = f"the detector was {skipped} events behind and went on with the latest"
    return Alert(
        source="headrace-mlops", kind="behind", endpoint=endpoint, message=message, at_ms=int(time.time() * 1000), evidence={"skipped": skipped}
    )
