"""A request that kills whoever computes it must not take others with it: they share its first deaths, and never their own last attempt."""

from __future__ import annotations

from policy_stage import START_MS, dispatcher, report, request

from broker.policy import events as ev
from broker.policy.entry import Commands
from schemas.telemetry import Departed


def test_who_shares_a_lane_with_a_poisoned_request_is_not_taken_along_to_the_last() -> None:
    policy = dispatcher("w0")
    entries = [request("poison", timeout_ms=60_000), *(request(f"innocent-{n}", timeout_ms=60_000) for n in range(6))]
    for offset, entry in enumerate(entries):
        entry.offset = offset
    now_ms, incarnation, lives = START_MS + 10.0, 1, 0
    lost: list[str] = []
    on_lane: list[str] = []

    def carry_out(commands: Commands) -> None:
        on_lane.extend(send.entry.key.decode() for send in commands.sends)
        lost.extend(letter.entry.key.decode() for letter in commands.dead_letters)

    carry_out(policy.step(ev.Arrived(0, entries), now_ms))
    while on_lane and lives < 20:
        now_ms += 20.0
        batch, on_lane[:] = list(on_lane), []
        if "poison" in batch:  # the worker dies, and with it whatever it had
            lives += 1
            carry_out(policy.step(ev.TelemetryObserved(Departed(role="worker", name="w0", incarnation=incarnation, at_ms=int(now_ms))), now_ms))
            now_ms, incarnation = now_ms + 500.0, int(now_ms)
            carry_out(policy.step(ev.TelemetryObserved(report("w0", incarnation=incarnation, at_ms=int(now_ms))), now_ms))
        else:
            carry_out(policy.step(ev.Answered(0, [key.encode() for key in batch]), now_ms))
    assert lost == ["poison"]
