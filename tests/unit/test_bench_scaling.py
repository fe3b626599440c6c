"""The benchmark's rows about scaling: offers in steps, what counts as served, the search for capacity, pauses, delays, and the simulator."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from deploy.bench import scaling_prediction, scaling_shift
from deploy.bench.exchange import Answered
from deploy.bench.report import PREDICTED, cells, predicted_cells, summarise
from deploy.bench.rows import Figure, Measured, Sample
from deploy.bench.scaling_burst import steps as burst_steps
from deploy.bench.scaling_capacity import Curve, Point, search
from deploy.bench.scaling_epochs import NEVER_MS, delays_ms, told_by_reports
from deploy.bench.scaling_load import FLOOR, TIMEOUTS_MS, Came, Offer, Photos, Second, Step, judged, recovery_s
from deploy.bench.scaling_models import FIRST, SECOND, Ladder
from deploy.bench.scaling_rebind import Busy, between, busy, longest_pause
from deploy.bench.scaling_stack import plan_of
from deploy.bench.scaling_telemetry import Simulated
from deploy.catalog_files import CatalogFiles
from deploy.commands.bench import ROWS, SCALING_ROWS, chosen_rows
from schemas.catalog import Defaults, EndpointSpec, TaskSpec, TensorSpec, VariantSpec
from schemas.limits import Limits
from schemas.profile import Latency, Profile
from schemas.request import read_routing
from schemas.telemetry import DispatcherReport, WorkerReport, decode_telemetry
from schemas.tensors import decode_inputs
from schemas.terminal import COMPLETED, EXPIRED, JSON_TYPE, MSGPACK_TYPE, TERMINAL_VERSION, PathStep, Terminal, decode_terminal_head, encode_terminal

PHOTO = np.arange(12, dtype=np.uint8).reshape(3, 4)
IMAGE = TensorSpec("image", "UINT8", (-1, 3, 4))
RUNGS = (("small", 0.62, 4.0), ("middle", 0.72, 8.0), ("large", 0.8, 40.0))


def ladder() -> Ladder:
    """Three rungs of two tasks, with the costs of RUNGS."""
    variants = tuple(VariantSpec(name=name, file="none", sha256="0" * 64, accuracy=accuracy) for name, accuracy, _ in RUNGS)
    tasks = tuple(TaskSpec(name=name, variants=variants) for name in (FIRST, SECOND))
    endpoints = tuple(EndpointSpec(name=name, task=name, defaults=Defaults(timeout_ms=400)) for name in (FIRST, SECOND))
    profiles = tuple(
        Profile(
            variant=f"{FIRST}/{name}",
            sha256="0" * 64,
            accelerator="cpu",
            device="d",
            host="h",
            threads=1,
            batches={rows: Latency(rows * ms, rows * ms * 1.1, 50) for rows in (1, 2, 4)},
            load_ms=100.0,
            memory_bytes=1 << 20,
        )
        for name, _, ms in RUNGS
    )
    return Ladder((), CatalogFiles(tasks=tasks, endpoints=endpoints), profiles, [PHOTO], Path())


def answer(key: bytes, outcome: str = COMPLETED, accuracy: float | None = 0.7, written_ms: int = 1_100, queued_ms: float = 10.0) -> Answered:
    step = PathStep(stage="main", variant="a/small", accuracy=0.7, accelerator="cpu", device="d", queued_ms=queued_ms, computed_ms=20.0, batch_size=1)
    terminal = Terminal(
        id=key.decode(),
        outcome=outcome,  # type: ignore[arg-type]
        endpoint=FIRST,
        path=[step] if outcome == COMPLETED else [],
        accuracy=accuracy,
        received_ms=1_000,
        finished_ms=1_050,
        deadline_ms=1_100,
        attempts=1,
        epoch=1,
        version=TERMINAL_VERSION,
    )
    return Answered(1.05, written_ms, encode_terminal(terminal, JSON_TYPE))


# Offers, and what came of them.


def test_an_offer_has_its_rates_and_the_same_seed_the_same_times() -> None:
    photos = Photos([PHOTO])
    steps = [Step(2.0, {FIRST: 50.0, SECOND: 5.0}), Step(1.0, {FIRST: 5.0, SECOND: 100.0})]
    offer, again = photos.offer(steps, 4), photos.offer(steps, 4)
    counts = {(asked.endpoint, asked.at_s >= 2.0): 0 for asked in offer.asked.values()}
    for asked in offer.asked.values():
        counts[asked.endpoint, asked.at_s >= 2.0] += 1
    assert counts == {(FIRST, False): 100, (SECOND, False): 10, (FIRST, True): 5, (SECOND, True): 100}
    times = [request.at_s for request in offer.requests]
    assert times == sorted(times) == [request.at_s for request in again.requests]
    assert set(offer.asked).isdisjoint(again.asked), "an id is answered once"
    assert offer.seconds == 3.0


def test_a_request_is_routed_by_its_headers_and_its_body_is_the_photo() -> None:
    offer = Photos([PHOTO]).offer([Step(1.0, {SECOND: 10.0})], 0)
    assert len({id(request.message[1]) for request in offer.requests}) == 1, "a photo is large: bodies are shared"
    key, body, headers = offer.requests[1].message
    routing = read_routing(body or b"", headers, Limits())
    assert (routing.endpoint, routing.min_accuracy, routing.timeout_ms) == (SECOND, FLOOR, TIMEOUTS_MS[1])
    read = decode_inputs(body or b"", MSGPACK_TYPE, (IMAGE,), Limits())
    assert read.rows == 1
    assert read.inputs["image"][0].tolist() == PHOTO.tolist()
    assert key in offer.asked


def test_only_what_is_in_time_and_above_the_floor_counts_and_the_lead_does_not() -> None:
    offer = Photos([PHOTO]).offer([Step(3.0, {FIRST: 4.0})], 1, lead_s=1.0)
    judgeable = [key for key, asked in offer.asked.items() if asked.at_s >= 1.0]
    answers = {key: answer(key) for key in offer.asked}
    late, low, expired, silent = judgeable[:4]
    answers |= {late: answer(late, written_ms=1_121), low: answer(low, accuracy=FLOOR - 0.01), expired: answer(expired, EXPIRED, None)}
    del answers[silent]
    came = judged(offer, answers)
    assert came.offered == len(judgeable)
    assert came.completed == len(judgeable) - 4
    assert came.outcomes == {"late": 1, "below its floor": 1, "expired/": 1, "unanswered": 1, COMPLETED: len(judgeable) - 4}
    assert came.accuracy_served == pytest.approx(0.7)
    assert came.violations == pytest.approx(4 / len(judgeable))
    assert [second.at_s for second in came.seconds] == [0.0, 1.0]
    assert sum(second.offered for second in came.seconds) == came.offered


def seconds(*parts: float) -> list[Second]:
    return [Second(float(at_s), 100, round(part * 100)) for at_s, part in enumerate(parts)]


def test_recovery_lasts_until_the_last_second_below() -> None:
    assert recovery_s(seconds(1, 0.2, 0.9, 0.97, 0.9, 1, 1), 1.0, 0.95) == 4.0
    assert recovery_s(seconds(0.1, 1, 1), 1.0, 0.95) == 0.0
    assert recovery_s(seconds(1, 0.1, 0.1), 1.0, 0.95) == 2.0


def test_a_shift_is_judged_from_its_beginning() -> None:
    before, after = [0.1] * int(scaling_shift.BEFORE_S), [0.7, 0.96, 1.0]
    came = Came(0, 0, 1.0, 0.7, {}, {}, tuple(seconds(*before, *after)))
    assert scaling_shift.figures_of(came) == (1.0, 0.7)


# The search for capacity.


def searched(capacity_rps: float, start_rps: float, accuracy: float = 0.7, probes_max: int = 12) -> Curve:
    async def probe(rate_rps: float) -> Came:
        attainment = 1.0 if rate_rps <= capacity_rps else 0.9
        return Came(100, 100, attainment, accuracy, {}, {}, ())

    return asyncio.run(search(probe, start_rps, 0.66, probes_max))


@pytest.mark.parametrize("start_rps", [20.0, 90.0, 400.0])
def test_capacity_is_found_from_below_and_from_above(start_rps: float) -> None:
    found = searched(100.0, start_rps)
    assert 100.0 / 1.125 <= found.capacity_rps <= 100.0
    assert [point.rate_rps for point in found.points] == sorted(point.rate_rps for point in found.points)


def test_what_is_not_accurate_enough_is_not_served() -> None:
    found = searched(100.0, 50.0, accuracy=0.6, probes_max=5)
    assert (found.capacity_rps, found.accuracy, len(found.points)) == (0.0, 0.0, 4), "one probe is kept for the middle"
    assert not Point(50.0, 1.0, 0.6).holds(0.66)


# Rebinding and epochs.


def test_a_pause_counts_where_a_rebind_goes_on() -> None:
    computed = [Busy(0, 20), Busy(20, 45), Busy(60, 80), Busy(81, 100), Busy(150, 170)]
    assert longest_pause(computed, [Busy(50, 90)]) == (15.0, 25.0)
    assert longest_pause(computed, [Busy(90, 160)]) == (50.0, 25.0)
    assert longest_pause(computed, [Busy(200, 300)]) == (0.0, 25.0)
    assert between([Busy(50, 90), Busy(100, 110), Busy(115, 120)]) == [Busy(90, 100), Busy(110, 115)], "not before the first, nor after the last"
    assert longest_pause([Busy(0, 100), Busy(10, 20), Busy(101, 110)], [Busy(0, 200)])[0] == 1.0, "what is computed beside is no pause"


def test_answers_tell_when_their_worker_computed() -> None:
    terminals = [decode_terminal_head(answer(b"a", queued_ms=queued_ms).value) for queued_ms in (30.0, 10.0, 10.0)]
    terminals.append(decode_terminal_head(answer(b"a", EXPIRED, None).value))
    assert busy(terminals) == [Busy(1_010.0, 1_030.0), Busy(1_030.0, 1_050.0)]


def test_an_epoch_is_acted_on_when_it_or_a_later_one_is_told() -> None:
    assert delays_ms({2: 100.0, 3: 200.0}, [(90.0, 1), (230.0, 3), (300.0, 3)]) == [130.0, 30.0]
    assert delays_ms({2: 100.0}, [(150.0, 1)]) == [NEVER_MS]


def test_a_plan_by_hand_gives_each_worker_its_lane() -> None:
    plan = plan_of({"w1": ("a/x",), "w2": ("a/x", "a/y")}, 7)
    assert [(binding.worker, binding.lane, binding.variants) for binding in plan.bindings] == [("w1", 0, ("a/x",)), ("w2", 1, ("a/x", "a/y"))]
    assert plan.epoch == 7


# The scaler's load.


def test_simulated_workers_say_what_the_plan_makes_of_them() -> None:
    simulated = Simulated(3, {"a/x": {1: Latency(4.0, 5.0, 9)}}, {FIRST: 30.0}, FLOOR)
    first = [decode_telemetry(value or b"") for _, value, _ in simulated.records(1_000)]
    assert [report.state for report in first if isinstance(report, WorkerReport)] == ["starting"] * 3
    simulated.plan = plan_of({"worker-0001": ("a/x", "a/unknown")}, 5)
    second = [decode_telemetry(value or b"") for _, value, _ in simulated.records(2_000)]
    bound = [report for report in second if isinstance(report, WorkerReport) and report.variants]
    assert [(report.worker, report.lane, report.epoch, list(report.variants)) for report in bound] == [("worker-0001", 0, 5, ["a/x"])]
    demand = [next(report for report in each if isinstance(report, DispatcherReport)).endpoints[FIRST].arrived for each in (first, second)]
    assert demand == [{"0.6": 30}, {"0.6": 60}]
    assert told_by_reports(bound, "worker-0001") == [(2_000.0, 5)]


# The simulator beside it.


def predicted(optimizer: str, steps: Sequence[Step], settle_s: float = 6.0) -> Came:
    return asyncio.run(scaling_prediction.predicted(scaling_prediction.scenario(ladder(), steps, optimizer, settle_s=settle_s), 1))


def test_a_scenario_has_the_offers_steps() -> None:
    scenario = scaling_prediction.scenario(ladder(), burst_steps(10.0), "headrace", settle_s=6.0)
    (load,) = scenario.loads
    assert scenario.duration_s == 6.0 + sum(step.seconds for step in burst_steps(10.0))
    assert load.arrivals.hold_s * len(load.arrivals.rates_rps) == pytest.approx(scenario.duration_s)
    at_s = [load.arrivals.rates_rps[int(second / load.arrivals.hold_s)] for second in (0.5, 9.5, 10.5, 14.5, 15.5)]
    assert at_s == [10.0, 10.0, 30.0, 30.0, 10.0]
    assert {variant.costs["cpu"].latency[1][1].p50_ms for variant in scenario.variants} == {4.0, 8.0, 40.0}


def test_the_simulator_keeps_attainment_by_accuracy_where_the_fixed_variant_cannot() -> None:
    burst = [Step(2.0, {FIRST: 20.0}), Step(3.0, {FIRST: 120.0})]
    fixed, ours = predicted("static-accurate", burst), predicted("headrace", burst)
    assert fixed.offered == ours.offered > 300
    assert fixed.violations > 0.3
    assert ours.violations < 0.1
    assert fixed.accuracy_served == pytest.approx(0.8)
    assert [second.at_s for second in ours.seconds] == [0.0, 1.0, 2.0, 3.0, 4.0]


# The report.


class Row:
    """One figure with a ratio, one without, one without a prediction."""

    name, title, once = "row", "a row", False
    figures = (
        Figure(key="ratio", what="ratio", unit="", limit=2.5, at_least=True, baseline="theirs"),
        Figure(key="plain", what="plain", unit="s", limit=10.0, of_ratio=False),
        Figure(key="silent", what="silent", unit="s", of_ratio=False),
    )

    async def measure(self, *_: object) -> Measured:
        raise NotImplementedError


def test_predictions_stand_beside_what_is_judged() -> None:
    samples = {"ratio": Sample(30.0, 10.0, 4.0), "plain": Sample(3.0, simulated=2.0), "silent": Sample(1.0)}
    ratio, plain, silent = summarise(Row(), [Measured(samples)]).lines
    assert (ratio.ratio, ratio.simulated, ratio.met) == (3.0, 4.0, True)
    assert [predicted_cells(line) for line in (ratio, plain, silent)] == [("4", "-25%"), ("2", "+50%"), ("-", "-")]
    assert len(cells(ratio)) + len(PREDICTED) == 10


def test_the_rows_are_found_under_one_name_and_are_no_part_of_the_default() -> None:
    assert chosen_rows(["scaling"]) == list(SCALING_ROWS)
    assert not set(SCALING_ROWS) & set(chosen_rows([]))
    assert chosen_rows([]) == list(ROWS)
    for row in SCALING_ROWS:
        assert len({(figure.what, figure.baseline) for figure in row.figures}) == len(row.figures)
    assert Offer([], {}, 0.0).lead_s == 0.0
