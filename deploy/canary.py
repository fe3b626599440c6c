"""What `headrace canary` does to the catalog: reads how canaries stand, and writes the endpoint's record with another share."""

from __future__ import annotations

import time

import msgspec

from broker.log import Log
from broker.policy.canary import asked_percent
from deploy.snapshots import CLIENT_ID, read_catalog, read_topic
from deploy.suggestions import did_you_mean
from graphs.canary_arms import canaries, with_percent
from schemas.canary import (
    NODE_MARK,
    PROMOTED,
    ROLLED_BACK,
    RUNNING,
    CanaryCommand,
    CanaryStatus,
    Phase,
    Weighed,
    canary_topic,
    canary_topics,
    decode_status,
    encode_canary,
    status_key,
)
from schemas.catalog import Catalog, EndpointSpec, catalog_key, encode_catalog
from schemas.errors import CatalogError
from schemas.graph import CanaryNode
from schemas.names import Names

BY_HAND = "headrace canary"


class CanaryStanding(msgspec.Struct, frozen=True, kw_only=True):
    """One canary as `headrace canary status` shows it. `phase` is `off` where none was started."""

    endpoint: str
    node: str
    stable: str
    candidate: str
    phase: str
    percent: float
    steps: tuple[float, ...]
    reason: str = ""
    changed_ms: int = 0
    candidate_answers: int = 0
    step_requests: int = 0
    evidence: tuple[Weighed, ...] = ()


async def canary_standings(log: Log, names: Names, endpoint: str = "") -> list[CanaryStanding]:
    """Every canary, or those of one endpoint. Raises CatalogError for an endpoint that is not there."""
    catalog = await read_catalog(log, names)
    statuses = await _statuses(log, names)
    if endpoint:
        _endpoint(catalog, endpoint)
    return [
        _standing(spec.name, path, node, statuses.get((spec.name, path)))
        for spec in catalog.endpoints.values()
        if spec.graph is not None and endpoint in ("", spec.name)
        for path, node in canaries(spec.graph).items()
    ]


async def change_canary(log: Log, names: Names, endpoint: str, command: CanaryCommand) -> CanaryStanding:
    """Carry a command out, whether or not anything of Headrace runs: the endpoint's record says what share the candidate gets.

    Raises CatalogError where there is no such canary, or where the command makes no sense as it stands.
    """
    await log.create_topics(canary_topics(names))
    spec = _endpoint(await read_catalog(log, names), endpoint)
    path, node = _canary(spec, command.node)
    before = (await _statuses(log, names)).get((endpoint, path))
    percent = asked_percent(command, node)
    if percent is None:
        raise CatalogError("`set` needs --percent")
    if command.action == "start" and node.percent > 0.0 and before is not None and before.phase == RUNNING:
        raise CatalogError(f"the canary {path!r} of {endpoint!r} runs already, at {node.percent:g} %: `set` moves it, `rollback` ends it")
    phases: dict[str, Phase] = {"promote": PROMOTED, "rollback": ROLLED_BACK}
    status = CanaryStatus(
        endpoint=endpoint,
        node=path,
        phase=phases.get(command.action, RUNNING if percent > 0.0 else ROLLED_BACK),
        percent=percent,
        reason=command.reason or f"{command.action} by hand",
        changed_ms=int(time.time() * 1000),
        command=before.command if before is not None else -1,
        by=BY_HAND,
    )
    goes_on = command.action == "set" and before is not None and before.phase == RUNNING == status.phase
    await _write(log, names, spec, path, status, said=not goes_on)
    return _standing(endpoint, path, msgspec.structs.replace(node, percent=percent), status)


async def _write(log: Log, names: Names, spec: EndpointSpec, path: str, status: CanaryStatus, *, said: bool) -> None:
    """A canary that goes on keeps what its judge knows: then only the share is written."""
    assert spec.graph is not None
    changed = msgspec.structs.replace(spec, graph=with_percent(spec.graph, path, status.percent))
    writer = log.writer(CLIENT_ID)
    await writer.start()
    try:
        await writer.write(names.catalog, 0, [(catalog_key(changed), encode_catalog(changed), ())])
        if said:
            await writer.write(canary_topic(names), 0, [(status_key(status.endpoint, status.node), encode_canary(status), ())])
    finally:
        await writer.close()


async def _statuses(log: Log, names: Names) -> dict[tuple[str, str], CanaryStatus]:
    found: dict[tuple[str, str], CanaryStatus] = {}
    for record in await read_topic(log, canary_topic(names)):
        if record.value is None or NODE_MARK.encode() not in (record.key or b""):
            continue
        try:
            status = decode_status(record.value)
        except msgspec.DecodeError:
            continue
        found[status.endpoint, status.node] = status
    return found


def _endpoint(catalog: Catalog, name: str) -> EndpointSpec:
    spec = catalog.endpoints.get(name)
    if spec is None:
        raise CatalogError(f"there is no endpoint {name!r}{did_you_mean(name, catalog.endpoints)}")
    return spec


def _canary(spec: EndpointSpec, node: str) -> tuple[str, CanaryNode]:
    found = canaries(spec.graph) if spec.graph is not None else {}
    if not found:
        raise CatalogError(f"endpoint {spec.name!r} has no canary in its graph")
    if not node and len(found) > 1:
        raise CatalogError(f"endpoint {spec.name!r} has several canaries: say --node {' or '.join(found)}")
    path = node or next(iter(found))
    if path not in found:
        raise CatalogError(f"endpoint {spec.name!r} has no canary {path!r}{did_you_mean(path, found)}")
    return path, found[path]


def _standing(endpoint: str, path: str, node: CanaryNode, status: CanaryStatus | None) -> CanaryStanding:
    """The catalog says the share; a standing that speaks of another one is of the past."""
    phase, reason = "running" if node.percent > 0.0 else "off", ""
    if status is not None and status.percent == node.percent:
        phase, reason = status.phase, status.reason
    judge = status.judge if status is not None and phase == RUNNING else None
    return CanaryStanding(
        endpoint=endpoint,
        node=path,
        stable=node.stable,
        candidate=node.candidate,
        phase=phase,
        percent=node.percent,
        steps=node.steps,
        reason=reason,
        changed_ms=status.changed_ms if status is not None else 0,
        candidate_answers=judge.candidate.answered if judge is not None else 0,
        step_requests=node.step_requests,
        evidence=status.evidence if status is not None and reason else (),
    )
