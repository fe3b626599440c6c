"""Drift of the example's images: how soon river flags it, and that it flags nothing before, over 20 seeds; and what goes in and out of a detector."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import msgspec
import numpy as np
import pytest
from headrace_mlops.dense_network import DenseNetwork
from headrace_mlops.drift import WARM_UP, DriftWatch
from headrace_mlops.events import Joining, Observed
from headrace_mlops.features import answer_features, input_features
from headrace_mlops.shifts import SHIFTS, shifted
from headrace_mlops.watching import DriftDetector, behind

from schemas.alerts import decode_alert, encode_alert
from schemas.cloud_event import CloudEvent, kafka_binary
from schemas.tensors import encode_tensor
from schemas.terminal import MSGPACK_TYPE, OutputTensor, Terminal, encode_terminal

FASHION = Path(__file__).resolve().parents[2] / "examples" / "fashion"
CLEAN, SHIFTED, SEEDS = 3_000, 500, 20
QUICK = ("ADWIN", "Page-Hinkley")


@pytest.fixture(scope="module")
def images():
    with np.load(FASHION / "test-2000.npz") as arrays:
        return arrays["images"]


@pytest.fixture(scope="module")
def features(images):
    """Of all images, clean and shifted, with the confidences of the example's dense network."""
    network = DenseNetwork(FASHION / "models" / "mlp128.onnx")
    seen = {"clean": images} | {shift: shifted(images, shift) for shift in SHIFTS}
    figures = {name: input_features(some) | answer_features(network.probabilities(some)) for name, some in seen.items()}
    return {name: {feature: values.tolist() for feature, values in some.items()} for name, some in figures.items()}


def drawn(features, kind, count, random):
    """Seeded requests of one kind."""
    for at in random.integers(0, len(features[kind]["brightness"]), count).tolist():
        yield {name: values[at] for name, values in features[kind].items()}


def alarms(features, seed, detectors=QUICK):
    """(alarms on clean requests, alarms by shift on what follows)."""
    random, watch = np.random.default_rng(seed), DriftWatch(detectors)
    early = [drift for values in drawn(features, "clean", CLEAN, random) for drift in watch.observe(values)]
    late = {}
    for shift in SHIFTS:
        following = deepcopy(watch)
        late[shift] = [drift for values in drawn(features, shift, SHIFTED, random) for drift in following.observe(values)]
    return early, late


def test_a_shift_is_flagged_within_500_requests_and_nothing_before_over_20_seeds(features):
    delays, false_alarms = {shift: [] for shift in SHIFTS}, 0
    for seed in range(SEEDS):
        early, late = alarms(features, seed)
        false_alarms += len(early)
        for shift, found in late.items():
            delays[shift].append(min((drift.number - CLEAN for drift in found), default=SHIFTED + 1))
    assert false_alarms == 0
    for shift, median_max in (("rotation", 40), ("brightness", 80)):
        assert max(delays[shift]) <= 200, (shift, delays[shift])
        assert 5 <= np.median(delays[shift]) <= median_max, (shift, delays[shift])


def test_each_detector_and_the_features_that_a_shift_concerns_speak(features):
    early, late = alarms(features, 3, ("ADWIN", "Page-Hinkley", "KSWIN"))
    assert early == []
    assert {drift.detector for drift in late["rotation"]} == {"ADWIN", "Page-Hinkley", "KSWIN"}
    assert {drift.feature for drift in late["rotation"]} >= {"slant", "confidence"}
    bright = {drift.feature for drift in late["brightness"]}
    assert {"brightness", "contrast"} <= bright
    assert "slant" not in bright


def test_an_alarm_is_told_once_and_nothing_while_it_warms_up():
    watch = DriftWatch(QUICK)
    random = np.random.default_rng(1)
    early = [watch.observe({"x": value, "broken": float("nan")}) for value in np.concatenate([np.zeros(150), np.full(149, 9.0)])]
    assert not any(early)
    assert len(early) < WARM_UP
    watch = DriftWatch(QUICK)
    found = [drift for value in np.concatenate([random.normal(0, 1, 1_000), random.normal(6, 1, 450)]) for drift in watch.observe({"x": value})]
    assert [drift.detector for drift in found] in (["Page-Hinkley", "ADWIN"], ["ADWIN", "Page-Hinkley"])
    assert all(drift.moved > 0 for drift in found)


def test_unknown_shifts_are_refused(images):
    with pytest.raises(ValueError, match="one of rotation, brightness"):
        shifted(images[:1], "hail")
    assert shifted(images[:3], "rotation").shape == (3, 1, 28, 28)


class Event:
    """A record as aiokafka hands it out."""

    def __init__(self, event, timestamp=7):
        self.key, self.value, self.headers = kafka_binary(event)
        self.timestamp = timestamp


def request_event(request_id, images, **attributes):
    body = msgspec.msgpack.encode({"inputs": [encode_tensor("image", images, raw=True)]})
    return Event(CloudEvent(request_id.encode(), {"id": request_id, "endpoint": "watched", "shadow": False, **attributes}, body, MSGPACK_TYPE))


def answer_event(request_id, scores, **attributes):
    terminal = Terminal(
        id=request_id,
        outcome="completed",
        endpoint="watched",
        outputs=[OutputTensor("probs", list(scores.shape), "FP32", scores.astype("<f4").tobytes())],
        path=[],
        received_ms=0,
        finished_ms=1,
        attempts=1,
        epoch=1,
        version=1,
    )
    said = {"id": request_id, "endpoint": "watched", "shadow": False, "variant": "fashion/wide", **attributes}
    return Event(CloudEvent(request_id.encode(), said, encode_terminal(terminal, MSGPACK_TYPE), MSGPACK_TYPE))


def test_requests_and_answers_are_joined_whichever_comes_first(images):
    joining, scores = Joining(), np.array([[0.1, 0.9]])
    assert joining.observe(request_event("a", images[:1]), answer=False) is None
    found = joining.observe(answer_event("a", scores), answer=True)
    assert isinstance(found, Observed)
    assert (found.id, found.outcome, found.variant, found.at_ms) == ("a", "completed", "fashion/wide", 7)
    assert np.array_equal(found.inputs["image"], images[:1])
    assert np.allclose(found.outputs["probs"], scores)
    assert joining.observe(answer_event("b", scores), answer=True) is None
    assert joining.observe(request_event("b", images[:1]), answer=False) is not None


def test_what_is_cut_or_a_shadow_or_a_stage_or_unreadable_is_passed_over(images):
    joining, scores = Joining(), np.array([[0.1, 0.9]])
    assert joining.observe(request_event("a", images[:1], shadow=True), answer=False) is None
    assert joining.observe(request_event("a", images[:1], problem="cut"), answer=False) is None
    assert joining.observe(request_event("a", images[:1], id="a/lines"), answer=False) is None
    broken = request_event("a", images[:1])
    broken.value = b"\xc1"
    assert joining.observe(broken, answer=False) is None
    assert joining.observe(answer_event("a", scores), answer=True) is None
    assert joining.unreadable == 1


def test_drift_becomes_alerts(images):
    detector = DriftDetector("watched", "image", "probs", DriftWatch(QUICK))
    random = np.random.default_rng(2)
    dark = images // 3
    told = []
    for number in range(900):
        one = (images if number < 700 else dark)[random.integers(0, len(images))][None]
        told += detector.observe(Observed(str(number), "watched", number, "completed", "t/v", {"image": one}, {"probs": np.array([[0.6, 0.4]])}))
    assert told
    assert {alert.kind for alert in told} == {"drift"}
    assert all(alert.evidence["request"] >= 700 for alert in told)
    assert decode_alert(encode_alert(told[0])) == told[0]
    assert behind("watched", 60_000).evidence == {"skipped": 60_000}
