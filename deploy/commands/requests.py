"""`headrace send` and `headrace poll`: one request by hand."""

from __future__ import annotations

import asyncio
import uuid
import zlib
from typing import Any

import click
import msgspec
import uvloop

from broker.log import Headers
from broker.store import State, Store
from deploy.commands.command import Command, option
from deploy.commands.output import Output, stdout_is_terminal
from deploy.configuration import Connection
from deploy.connections import open_log
from deploy.graph_resolution import request_tensors
from deploy.request_files import RequestBody, read_request
from deploy.snapshots import CLIENT_ID, read_catalog
from deploy.stores import open_store
from deploy.suggestions import did_you_mean
from schemas.catalog import Catalog, EndpointSpec
from schemas.errors import BadRequest, HeadraceError, UnknownEndpoint
from schemas.limits import Limits
from schemas.tensors import decode_output
from schemas.terminal import OutputTensor, Terminal
from schemas.work import CONTENT_TYPE_HEADER

POLL_MS = 10.0
SHOWN_ELEMENTS = 12
"""Of each output, on a terminal."""
_LIMITS = Limits()


@click.command(cls=Command)
@click.argument("endpoint")
@click.argument("file")
@option("--min-accuracy", type=click.FloatRange(0.0, 1.0), help="Floor; default: the endpoint's.")
@option("--timeout", "timeout_ms", type=click.IntRange(1, _LIMITS.timeout_ms_max), metavar="MS", help="Deadline from now; default: the endpoint's.")
@option("--tenant", help="For fair share and quotas.")
@option("--priority", type=click.IntRange(0, _LIMITS.priority_max), help="1 is the highest, 0 the default.")
@option("--id", "request_id", help="Request id; default: the body's `id`, else a new one.")
@option("--input", "input_name", help="Name of the input that a .npy array is for; default: the endpoint's only input.")
@option("--wait", "wait_ms", type=click.IntRange(0), metavar="MS", help="Poll this long for the answer and print it.")
def send(connection: Connection, output: Output, endpoint: str, file: str, **options: Any) -> None:
    """Publish one request: FILE is a JSON v2 request body, .npy, .npz (arrays by name), or - for JSON on stdin.

    Prints the request's id; with --wait the terminal record, as `headrace poll` does.

    \b
    headrace send fashion image.npy --min-accuracy 0.9 --timeout 300 --wait 1000
    echo '{"inputs": [...]}' | headrace send fashion - --tenant acme
    """
    request_id = uvloop.run(_send(connection, endpoint, file, options))
    wait_ms = options["wait_ms"]
    if wait_ms is not None:
        _show(output, request_id, uvloop.run(_poll(connection, request_id, wait_ms)), waited=True)
        return
    if not output.json:
        click.echo(request_id)
    output.result({"id": request_id})


async def _send(connection: Connection, endpoint: str, file: str, options: dict[str, Any]) -> str:
    names = connection.names
    async with open_log(connection) as log:
        shards = await log.partitions(names.requests)
        if not shards:
            raise HeadraceError(f"there is no topic {names.requests}: is --prefix right, and does a dispatcher run?")
        catalog = await read_catalog(log, names)
        if endpoint not in catalog.endpoints:
            hint = did_you_mean(endpoint, catalog.endpoints) or "; the catalog is empty: apply some with `headrace apply FILE...`"
            raise UnknownEndpoint(f"there is no endpoint {endpoint!r}{hint}")
        body = read_request(file, lambda: options["input_name"] or _only_input(catalog, endpoint))
        request_id = _id(body, options["request_id"])
        writer = log.writer(CLIENT_ID)
        await writer.start()
        try:
            await writer.write(
                names.requests, zlib.crc32(request_id.encode()) % shards, [(request_id.encode(), body.value, _headers(endpoint, body, options))]
            )
        finally:
            await writer.close()
    return request_id


def _id(body: RequestBody, stated: str | None) -> str:
    request_id = stated or body.id or uuid.uuid4().hex
    if len(request_id.encode()) > _LIMITS.request_id_bytes_max:
        raise BadRequest(f"the id has {len(request_id.encode())} bytes: a request id has 1 to {_LIMITS.request_id_bytes_max}")
    return request_id


def _only_input(catalog: Catalog, endpoint: str) -> str:
    spec = catalog.endpoints[endpoint]
    task = catalog.tasks.get(spec.task)
    inputs = {tensor.name for variant in task.variants for tensor in variant.inputs} if task else _of_graph(spec)
    if len(inputs) != 1:
        listed = f" (it takes {', '.join(sorted(inputs))})" if inputs else ""
        raise BadRequest(f"say which input the array is for with --input NAME, or send an .npz with arrays by name{listed}")
    return inputs.pop()


def _of_graph(spec: EndpointSpec) -> set[str]:
    return set(request_tensors(spec.graph.nodes)) if spec.graph is not None else set()


def _headers(endpoint: str, body: RequestBody, options: dict[str, Any]) -> Headers:
    stated = {"endpoint": endpoint, CONTENT_TYPE_HEADER: body.content_type}
    stated |= {name: options[name] for name in ("min_accuracy", "timeout_ms", "tenant", "priority") if options[name] is not None}
    return [(name, str(value).encode()) for name, value in stated.items()]


@click.command(cls=Command)
@click.argument("request_id", metavar="ID")
@option("--wait", "wait_ms", type=click.IntRange(0), default=0, metavar="MS", help="Keep looking this long.")
def poll(connection: Connection, output: Output, request_id: str, wait_ms: int) -> None:
    """Print the terminal record of a request as JSON.

    Exit code 0: there is one, whatever the outcome; 1: still pending, or unknown. On a terminal outputs are shortened.

    \b
    headrace poll 3f1c --wait 1000
    headrace poll 3f1c --json | jq .outcome
    """
    _show(output, request_id, uvloop.run(_poll(connection, request_id, wait_ms)), waited=wait_ms > 0)


async def _poll(connection: Connection, request_id: str, wait_ms: int) -> State:
    async with open_store(connection) as store:
        return await wait_for_answer(store, request_id, wait_ms)


async def wait_for_answer(store: Store, request_id: str, wait_ms: float) -> State:
    """The terminal record, or what is known of the request when the time is over. Raises StoreUnavailable."""
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_ms / 1000
    while True:
        state = await store.status(request_id)
        if isinstance(state, Terminal) or loop.time() >= until:
            return state
        await asyncio.sleep(min(POLL_MS / 1000, max(0.0, until - loop.time())))


def _show(output: Output, request_id: str, state: State, *, waited: bool) -> None:
    if not isinstance(state, Terminal):
        output.result({"id": request_id, "state": state})
        late = " after the wait" if waited else ""
        hint = "its answer is not there yet" if state == "pending" else "never seen, or its answer is no longer kept"
        output.say(f"{request_id}: {state}{late} ({hint})")
        raise click.exceptions.Exit(1)
    if output.json:
        output.result(_plain(state, elements_max=None))
    else:
        shown = _plain(state, elements_max=SHOWN_ELEMENTS if stdout_is_terminal() else None)
        click.echo(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())


def _plain(terminal: Terminal, *, elements_max: int | None) -> dict[str, Any]:
    """The record for JSON: raw bytes become lists, long lists are cut where a limit is given."""
    record: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(terminal, outputs=None))
    if terminal.outputs is not None:
        record["outputs"] = [_plain_output(tensor, elements_max) for tensor in terminal.outputs]
    return record


def _plain_output(tensor: OutputTensor, elements_max: int | None) -> dict[str, Any]:
    values = decode_output(tensor).ravel().tolist()
    plain = [value.decode(errors="backslashreplace") if isinstance(value, bytes) else value for value in values]
    cut = elements_max is not None and len(plain) > elements_max
    data = [*plain[:elements_max], f"... {len(plain)} elements"] if cut else plain
    return {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype, "data": data}
