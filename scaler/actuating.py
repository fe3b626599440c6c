"""Between the control loop and an actuator: looks once a second, and carries orders out beside the loop, which never waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import structlog

from scaler.actuators.actuator import Actuator
from scaler.optimizers.snapshot import Snapshot
from scaler.policy.actuating import ActuatingPolicy, adjusted
from scaler.policy.actuating_settings import ActuatingSettings
from scaler.policy.control import PUBLISHED, ControlPolicy, Decision
from schemas.plan import Plan
from schemas.scale import ScaleOffer, ScaleOrder

logger = structlog.get_logger()
TURN_S = 0.5
CALL_S_MAX = 15.0
BACK_OFF_S = 1.0
BACK_OFF_S_MAX = 30.0
TRIGGER = "workers and threads"


class Actuating:
    """`begin` with each term of leadership; `turn`, `seen` and `planned` from the control loop; `run` beside it."""

    def __init__(
        self, actuator: Actuator, settings: ActuatingSettings | None = None, now_ms: Callable[[], float] = lambda: time.time() * 1000.0
    ) -> None:
        self._actuator, self._settings, self._now_ms = actuator, settings or ActuatingSettings(), now_ms
        self._policy = ActuatingPolicy(self._settings)
        self._offers: Sequence[ScaleOffer] = ()
        self._orders: dict[str, ScaleOrder] = {}
        self._looked_ms = float("-inf")
        self._asked: frozenset[str] = frozenset()
        self._leads = False
        self._reason = ""
        self.failure = ""
        """Why the actuator does not do what it is asked for; empty while it does."""

    # -- of the control loop

    def begin(self) -> None:
        """This process leads from now on, and knows nothing of before."""
        self._policy, self._orders, self._asked, self._leads = ActuatingPolicy(self._settings), {}, frozenset(), True

    def end(self) -> None:
        """It leads no more: no order goes out."""
        self._leads, self._orders = False, {}

    def turn(self, control: ControlPolicy, now_ms: float, *, pinned: bool = False) -> Plan | None:
        """Look, if that is due. A plan to publish now (`control` has it already): who leaves is unbound, or threads change in place."""
        if not self._offers or now_ms - self._looked_ms < self._settings.look_ms:
            return None
        self._looked_ms = now_ms
        policy = self._policy
        policy.offered(self._offers, now_ms)
        adjustment = policy.look(control.glimpse(now_ms), now_ms, rebinding=pinned or control.rebinding)
        self._orders = policy.orders(control.plan, now_ms)
        if policy.leaving - self._asked:
            control.ask(f"{', '.join(sorted(policy.leaving - self._asked))} is to leave")
        self._asked = policy.leaving
        self._tell(now_ms)
        plan = adjusted(control.plan, adjustment, now_ms) if adjustment is not None else None
        if plan is not None and adjustment is not None:
            control.observe_plan(plan)
            control.history.append(Decision(at_ms=now_ms, epoch=plan.epoch, kind=PUBLISHED, trigger=TRIGGER, reason=adjustment.reason))
        return plan

    def seen(self, snapshot: Snapshot, now_ms: float) -> Snapshot:
        """The snapshot as planners are to see it."""
        return self._policy.seen(snapshot, now_ms)

    def planned(self) -> None:
        """It was decided about what came of the last `seen`."""
        self._policy.planned()

    def explained(self) -> Mapping[str, str]:
        """By class: what is wanted, and why."""
        told = self._policy.explained(self._now_ms())
        return {name: f"{text}; the actuator fails: {self.failure}" for name, text in told.items()} if self.failure else told

    def counts(self) -> dict[str, tuple[int, int]]:
        """By class: (workers wanted, workers that run), as far as an actuator offers any."""
        return {
            offer.accelerator: (order.wanted if (order := self._orders.get(offer.accelerator)) else offer.wanted, offer.running)
            for offer in self._offers
        }

    # -- beside it

    async def run(self) -> None:
        """Ask what is offered and carry orders out, until cancelled; an actuator that raises or blocks is tried again, ever more slowly."""
        started, back_off_s = False, BACK_OFF_S
        try:
            while True:
                try:
                    async with asyncio.timeout(CALL_S_MAX):
                        if not started:
                            await self._actuator.start()
                            started = True
                        self._offers = await self._actuator.offers()
                        if self._leads and self._orders:
                            await self._actuator.apply(dict(self._orders))
                    self.failure, back_off_s, pause_s = "", BACK_OFF_S, TURN_S
                except Exception as error:  # an actuator may be somebody else's and raise anything: workers stay as they are, and it is told
                    self.failure, self._offers = str(error) or type(error).__name__, ()
                    logger.warning("the actuator failed", actuator=self._actuator.name, error=self.failure, again_in_s=back_off_s)
                    pause_s, back_off_s = back_off_s, min(2.0 * back_off_s, BACK_OFF_S_MAX)
                await asyncio.sleep(pause_s)
        finally:
            await self._close()

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(CALL_S_MAX):
                await self._actuator.close()
        except Exception as error:  # as above; nothing more is asked of it
            logger.warning("the actuator did not end well", actuator=self._actuator.name, error=str(error) or type(error).__name__)

    def _tell(self, now_ms: float) -> None:
        said = "; ".join(f"{name}: {order.wanted} wanted, {order.reason}" for name, order in self._orders.items())
        if said != self._reason:
            self._reason = said
            logger.info("workers wanted", mode=self._policy.mode, **{name: order.wanted for name, order in self._orders.items()}, reason=said)
