"""Actuators that raise or block, and those by name: the control loop never waits for one."""

from __future__ import annotations

import asyncio
import threading
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from broker.log import TopicPartition
from broker.memory import MemoryLog
from scaler.actuating import Actuating
from scaler.actuators import registry
from scaler.actuators.apart import ActuatorFailed, ApartActuator
from scaler.actuators.fixed import FixedActuator
from scaler.actuators.local import LocalActuator
from scaler.actuators.registry import BUILT_IN, actuator_names, check_actuator, create_actuator
from schemas.errors import ConfigurationError
from schemas.names import Names
from schemas.scale import ScaleOffer, ScaleOrder, decode_scale, encode_scale, scale_key

NAMES = Names("t")


class Plug:
    """Somebody's actuator."""

    name = "plug"

    def __init__(self, names: Names = NAMES, scaler: str = "") -> None:
        self.names, self.scaler = names, scaler
        self.applied: list[Mapping[str, ScaleOrder]] = []
        self.thread = threading.get_ident()
        self.blocks = threading.Event()
        self.raises = False

    async def start(self) -> None:
        pass

    async def offers(self) -> Sequence[ScaleOffer]:
        if self.raises:
            raise ValueError("no such cluster")
        if self.blocks.is_set():
            time.sleep(0.3)
        return [ScaleOffer(accelerator="cpu", least=0, most=3, wanted=1)]

    async def apply(self, orders: Mapping[str, ScaleOrder]) -> None:
        self.applied.append(orders)

    async def close(self) -> None:
        pass


async def test_a_plug_in_runs_in_a_thread_of_its_own() -> None:
    plug: list[Plug] = []
    apart = ApartActuator("plug", lambda: plug.append(Plug()) or plug[0])
    await apart.start()
    assert [offer.most for offer in await apart.offers()] == [3]
    await apart.apply({"cpu": ScaleOrder(accelerator="cpu", wanted=2)})
    assert plug[0].applied[0]["cpu"].wanted == 2
    assert plug[0].thread != threading.get_ident()
    await apart.close()


async def test_one_that_blocks_its_thread_blocks_nobody_else(eventually: Callable) -> None:
    plug = Plug()
    apart = ApartActuator("plug", lambda: plug, call_s_max=0.05)
    await apart.start()
    plug.blocks.set()
    before_s = time.monotonic()
    with pytest.raises(ActuatorFailed, match=r"'plug' has not come back from offers\(\) for 0\.05 s"):
        await apart.offers()
    with pytest.raises(ActuatorFailed, match=r"still has not come back from offers\(\)"):
        await apart.apply({})
    assert time.monotonic() - before_s < 0.25
    plug.blocks.clear()
    await eventually(lambda: not apart._under_way)
    assert len(await apart.offers()) == 1, "it came back: it is asked again"
    await apart.close()


async def test_one_that_raises_is_named_and_tried_again(eventually: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaler.actuating.BACK_OFF_S", 0.02)
    plug = Plug()
    plug.raises = True
    actuating = Actuating(plug)
    actuating.begin()
    running = asyncio.create_task(actuating.run())
    await eventually(lambda: actuating.failure == "no such cluster")
    plug.raises = False
    await eventually(lambda: not actuating.failure)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert plug.applied == [], "nothing was decided, nothing is asked for"


async def test_the_fixed_one_offers_nothing() -> None:
    assert list(await FixedActuator().offers()) == []


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="actuator 'loacl' is unknown; known: fixed, local"):
        create_actuator("loacl", MemoryLog(), NAMES, "s")


async def test_others_come_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint(name="plug", value="test_actuating_shell:Plug", group="headrace.actuators"),
        EntryPoint(name="gone", value="no_such_module:Thing", group="headrace.actuators"),
        EntryPoint(name="odd", value="test_actuating_shell:NAMES", group="headrace.actuators"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "headrace.actuators" else [])
    assert actuator_names() == ["fixed", "local", "gone", "odd", "plug"]
    plug = create_actuator("plug", MemoryLog(), NAMES, "s")
    await plug.start()
    assert len(await plug.offers()) == 1
    await plug.close()
    with pytest.raises(ConfigurationError, match="actuator 'gone' cannot be loaded"):
        create_actuator("gone", MemoryLog(), NAMES, "s")
    with pytest.raises(ConfigurationError, match=r"'odd' is .*which is no class or function"):
        create_actuator("odd", MemoryLog(), NAMES, "s")


async def test_a_package_that_is_installed_offers_its_actuator_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    information = tmp_path / "crane-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: crane\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[headrace.actuators]\ncrane = crane_plug_in:Crane\n")
    (tmp_path / "crane_plug_in.py").write_text(
        "from schemas.scale import ScaleOffer\n"
        "class Crane:\n"
        "    name = 'crane'\n"
        "    def __init__(self, names, scaler): self.said = f'{names.prefix} {scaler}'\n"
        "    async def start(self): pass\n"
        "    async def offers(self): return [ScaleOffer(accelerator='gpu', least=0, most=7, by=self.said)]\n"
        "    async def apply(self, orders): pass\n"
        "    async def close(self): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "crane" in actuator_names()
    check_actuator("crane")
    crane = create_actuator("crane", MemoryLog(), NAMES, "s1")
    await crane.start()
    assert [(offer.most, offer.by) for offer in await crane.offers()] == [(7, "t s1")]
    await crane.close()


def test_the_package_declares_the_built_in_ones() -> None:
    declared = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]["headrace.actuators"]
    assert tuple(declared) == BUILT_IN


class Supervisor:
    """The other end of {p}.scale."""

    def __init__(self, log: MemoryLog) -> None:
        self.writer, self.log = log.writer("supervisor"), log

    async def say(self, **fields: int) -> None:
        offer = ScaleOffer(accelerator="cpu", least=0, most=4, **fields)
        await self.writer.write(NAMES.scale, 0, [(scale_key(offer), encode_scale(offer), [])])


@pytest.fixture
async def supervised():
    log = MemoryLog()
    await log.create_topics(NAMES.topics())
    clock = [1_000_000.0]
    actuator = LocalActuator(log, NAMES, "scaler-1", now_ms=lambda: clock[0])
    supervisor = Supervisor(log)
    await supervisor.writer.start()
    await actuator.start()
    yield actuator, supervisor, clock
    await actuator.close()


async def orders(log: MemoryLog) -> list[ScaleOrder]:
    reader = log.reader("test")
    await reader.start()
    await reader.assign({TopicPartition(NAMES.scale, 0): "earliest"})
    found = [decode_scale(record.value or b"") for records in (await reader.read(timeout_ms=10, records_max=100)).values() for record in records]
    await reader.close()
    return [record for record in found if isinstance(record, ScaleOrder)]


async def test_orders_are_written_until_the_offers_show_them(supervised) -> None:
    actuator, supervisor, clock = supervised
    wanted = {"cpu": ScaleOrder(accelerator="cpu", wanted=3, epoch=5)}
    await actuator.apply(wanted)
    assert await orders(supervisor.log) == [], "nobody has offered anything"
    await supervisor.say(wanted=1, at_ms=1_000_000)
    assert [offer.wanted for offer in await actuator.offers()] == [1]
    await actuator.apply(wanted)
    await actuator.apply(wanted)
    assert [(order.wanted, order.by) for order in await orders(supervisor.log)] == [(3, "scaler-1")]
    clock[0] += 2_500.0
    await actuator.apply(wanted)
    assert len(await orders(supervisor.log)) == 2, "it was not followed: again"
    await supervisor.say(wanted=3, at_ms=1_002_500)
    await actuator.offers()
    clock[0] += 2_500.0
    await actuator.apply(wanted)
    assert len(await orders(supervisor.log)) == 2


async def test_an_offer_that_is_not_repeated_is_gone_and_nonsense_is_skipped(supervised) -> None:
    actuator, supervisor, clock = supervised
    await supervisor.writer.write(NAMES.scale, 0, [(b"cpu", b'{"kind": "order", "wanted": -1}', []), (b"offer/cpu", b"\xff", [])])
    await supervisor.say(wanted=1, at_ms=1_000_000)
    assert len(await actuator.offers()) == 1
    clock[0] += 20_000.0
    assert list(await actuator.offers()) == []
