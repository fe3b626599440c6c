"""The profiler on a backend whose time is a number: what is measured, how it is interleaved, and where the budget ends it."""

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest

from schemas.catalog import TensorSpec, VariantSpec
from schemas.profile import PROFILE_VERSION, Latency, Profile, latency_at
from workers.backend import BackendOptions, Device, Loaded
from workers.buckets import batch_buckets
from workers.contract_cases import affine, selection
from workers.cpu.backend import CpuBackend
from workers.profile_store import ProfileStore, decode_profile, encode_profile
from workers.profiler import QUICK, Profiler, ProfileSettings, example_tensor, profile_variants

X = TensorSpec("x", "FP32", (-1, 3))


class Timetable:
    """A backend on a clock of its own: `cost_ms(key, rows, call)` passes with each call."""

    def __init__(self, cost_ms, batch_sizes=()):
        self.cost_ms = cost_ms
        self.batch_sizes = batch_sizes
        self.now_s = 0.0
        self.calls = []
        self.counts = Counter()
        self.held = []

    def clock(self):
        return self.now_s

    def describe(self):
        return Device(accelerator="cpu", name="timetable")

    def load(self, key, spec, file, *, batch_size_max, threads):
        if key.endswith("broken"):
            raise RuntimeError(key)
        self.held.append(key)
        return Loaded(spec=spec, device="timetable", batch_sizes=self.batch_sizes, load_ms=12.0, memory_bytes=345)

    def infer(self, key, inputs, rows):
        assert inputs["x"].shape == (rows, 3)
        self.calls.append((key, rows))
        self.counts[key, rows] += 1
        self.now_s += self.cost_ms(key, rows, self.counts[key, rows]) / 1e3
        return {}

    def unload(self, key):
        self.held.remove(key)


def variant(name, **changes):
    return VariantSpec(name=name, file="", sha256=name * 2, accuracy=0.5, inputs=(X,), **changes), Path(name)


def profiled(backend, settings, *names, on_progress=None):
    profiler = Profiler(backend, settings, host="here", clock=backend.clock, now_ms=lambda: 1234.5)
    return profiler.profile_variants({f"task/{name}": variant(name) for name in names}, on_progress)


def test_latency_is_measured_by_batch_size():
    backend = Timetable(lambda key, rows, call: 2.0 * rows)
    (profile,) = profiled(backend, ProfileSettings(batch_size_max=4, threads=2), "a")
    for quantile in ("p50_ms", "p95_ms"):
        assert {rows: getattr(latency, quantile) for rows, latency in profile.batches.items()} == pytest.approx({1: 2, 2: 4, 4: 8})
    assert (profile.variant, profile.sha256, profile.device, profile.host, profile.threads) == ("task/a", "aa", "timetable", "here", 2)
    assert (profile.load_ms, profile.memory_bytes, profile.measured_ms, profile.accelerator) == (12.0, 345, 1234, "cpu")
    assert profile.spread == 0.0
    assert backend.held == []


def test_the_slow_first_call_is_not_counted():
    (profile,) = profiled(Timetable(lambda key, rows, call: 50.0 if call == 1 else 1.0), ProfileSettings(batch_sizes=(1, 2)), "a")
    assert profile.batches[1].p95_ms == pytest.approx(1.0)


def test_rounds_visit_every_variant_and_size_in_turn():
    backend = Timetable(lambda key, rows, call: 100.0)
    profiled(backend, ProfileSettings(budget_ms=800.0, batch_sizes=(1, 2)), "a", "b")
    one_round = [("task/a", 1), ("task/a", 2), ("task/b", 1), ("task/b", 2)]
    assert backend.calls == one_round * (len(backend.calls) // 4)
    assert len(backend.calls) // 4 == 4


def test_noise_shows_as_spread():
    quiet = Timetable(lambda key, rows, call: 10.0)
    noisy = Timetable(lambda key, rows, call: 10.0 if call % 40 < 20 else 15.0)
    settings = ProfileSettings(budget_ms=1000.0, batch_sizes=(1,))
    assert profiled(quiet, settings, "a")[0].spread == 0.0
    assert profiled(noisy, settings, "a")[0].spread == pytest.approx(0.5, abs=0.2)


def test_p95_is_above_p50_where_calls_differ():
    (profile,) = profiled(Timetable(lambda key, rows, call: 30.0 if call % 10 == 0 else 10.0), ProfileSettings(batch_sizes=(1,)), "a")
    assert profile.batches[1].p50_ms == pytest.approx(10.0)
    assert profile.batches[1].p95_ms == pytest.approx(30.0)


@pytest.mark.parametrize("cost_ms", [0.05, 0.3, 2.0, 5.0])
@pytest.mark.parametrize("settings", [QUICK, ProfileSettings()])
def test_the_budget_ends_the_measurement(cost_ms, settings):
    backend = Timetable(lambda key, rows, call: cost_ms * rows)
    (profile,) = profiled(backend, settings, "a")
    assert backend.now_s * 1e3 <= settings.budget_ms * 1.6
    assert latency_at(profile.batches, 32).p50_ms == pytest.approx(32 * cost_ms, rel=0.01)


def test_a_variant_slower_than_the_budget_is_measured_at_two_sizes():
    backend = Timetable(lambda key, rows, call: 1000.0 * rows)
    (profile,) = profiled(backend, QUICK, "a")
    assert {rows: latency.samples for rows, latency in profile.batches.items()} == {1: 2, 2: 2}


def test_only_sizes_that_the_backend_takes_are_measured():
    (profile,) = profiled(Timetable(lambda key, rows, call: 1.0, batch_sizes=(2, 6)), ProfileSettings(batch_sizes=(1, 2, 4)), "a")
    assert list(profile.batches) == [2]
    (profile,) = profiled(Timetable(lambda key, rows, call: 1.0, batch_sizes=(3,)), ProfileSettings(batch_sizes=(1, 2)), "a")
    assert list(profile.batches) == [3]


def test_the_variants_own_batch_limit_holds():
    backend = Timetable(lambda key, rows, call: 1.0)
    profiler = Profiler(backend, ProfileSettings(), clock=backend.clock)
    assert list(profiler.profile("task/a", *variant("a", batch_size_max=3)).batches) == [1, 2, 3]


def test_what_was_loaded_is_unloaded_when_another_variant_fails():
    backend = Timetable(lambda key, rows, call: 1.0)
    with pytest.raises(RuntimeError):
        profiled(backend, QUICK, "a", "broken")
    assert backend.held == []


def test_a_worker_measures_what_it_holds_already():
    backend = Timetable(lambda key, rows, call: 1.0)
    loaded = {"task/a": backend.load("task/a", *variant("a"), batch_size_max=4, threads=1)}
    (profile,) = Profiler(backend, ProfileSettings(batch_size_max=4), clock=backend.clock).measure(loaded)
    assert list(profile.batches) == [1, 2, 4]
    assert backend.held == ["task/a"]


def test_progress_grows_to_one():
    seen = []
    profiled(Timetable(lambda key, rows, call: 1.0), QUICK, "a", "b", on_progress=lambda done, what: seen.append((done, what)))
    parts = [done for done, _ in seen]
    assert parts == sorted(parts)
    assert parts[0] == 0.0
    assert parts[-1] == 1.0
    assert {what for _, what in seen} >= {"loading task/a", "warming task/b", "measuring task/b"}


@pytest.mark.parametrize("build", [affine, selection])
def test_a_real_backend_is_profiled(tmp_path, build):
    case = build(tmp_path)
    settings = ProfileSettings(budget_ms=400.0, batch_size_max=4)
    (profile,) = profile_variants(CpuBackend(BackendOptions(accelerator="cpu")), {"task/a": (case.spec, case.file)}, settings)
    assert list(profile.batches) == [1, 2, 4]
    assert all(0 < latency.p50_ms <= latency.p95_ms for latency in profile.batches.values())


@pytest.mark.parametrize(("datatype", "low", "high"), [("UINT8", 0, 255), ("INT64", 0, 1), ("FP16", 0, 1), ("FP32", 0, 1), ("BOOL", 0, 1)])
def test_example_tensors_stay_in_range(datatype, low, high):
    tensor = example_tensor(TensorSpec("x", datatype, (-1, 5, -1)), 4, np.random.default_rng(0), free_axis=7)
    assert tensor.shape == (4, 5, 7)
    assert low <= tensor.min() < tensor.max() <= high


def test_example_strings_are_bytes():
    tensor = example_tensor(TensorSpec("x", "BYTES", (-1, 2)), 3, np.random.default_rng(0), free_axis=7)
    assert tensor.tolist() == [[b"", b""]] * 3


def test_buckets_are_powers_of_two_and_the_limit():
    assert [batch_buckets(limit) for limit in (1, 2, 6, 32)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8, 16, 32)]
    with pytest.raises(ValueError, match="at least one row"):
        batch_buckets(0)


# --- the store ---


PROFILE = Profile(
    variant="task/a",
    sha256="ab" * 32,
    accelerator="cpu",
    device="Processor (with / in its name)",
    host="here",
    threads=2,
    batches={1: Latency(1.0, 2.0, 10), 8: Latency(5.0, 6.0, 10)},
    load_ms=3.0,
    memory_bytes=4,
)
PLACE = {"device": PROFILE.device, "threads": 2, "host": "here"}


def test_a_stored_profile_comes_back_under_the_variant_that_asks(tmp_path):
    store = ProfileStore(tmp_path / "profiles")
    file = store.put(PROFILE)
    assert file.parent == tmp_path / "profiles"
    assert store.get("task/a", PROFILE.sha256, **PLACE) == PROFILE
    assert store.get("other/b", PROFILE.sha256, **PLACE) == msgspec.structs.replace(PROFILE, variant="other/b")
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("change", [{"device": "Another"}, {"threads": 1}, {"host": "there"}])
def test_a_profile_holds_for_its_place_only(tmp_path, change):
    store = ProfileStore(tmp_path)
    store.put(PROFILE)
    assert store.get("task/a", PROFILE.sha256, **(PLACE | change)) is None
    assert store.get("task/a", "cd" * 32, **PLACE) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"{}",
        encode_profile(msgspec.structs.replace(PROFILE, batches={})),
        encode_profile(msgspec.structs.replace(PROFILE, host="copied from elsewhere")),
        encode_profile(msgspec.structs.replace(PROFILE, version=PROFILE_VERSION + 1)),
    ],
)
def test_an_unusable_profile_is_as_none(tmp_path, data):
    store = ProfileStore(tmp_path)
    file = store.put(PROFILE)
    file.write_bytes(data)
    assert store.get("task/a", PROFILE.sha256, **PLACE) is None
    store.put(PROFILE)
    assert store.get("task/a", PROFILE.sha256, **PLACE) == PROFILE


def test_profiles_are_readable_json_that_names_host_and_device():
    text = encode_profile(PROFILE)
    assert decode_profile(text) == PROFILE
    assert b'"host": "here"' in text
    assert text.count(b"\n") > 10
