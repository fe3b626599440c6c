"""Which stage topics nobody needs any more: those of no present graph, once no request runs on an earlier one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from graphs.compiled import compile_graph
from graphs.errors import GraphInvalid
from graphs.second_opinion import AGREEMENT
from schemas.catalog import Catalog
from schemas.names import Names


def needed_topics(catalog: Catalog, names: Names) -> dict[str, set[str]]:
    """The stage topics of each endpoint's present graph, or of its second opinions; one whose graph cannot be compiled now is left out."""
    found: dict[str, set[str]] = {}
    for name, endpoint in catalog.endpoints.items():
        if endpoint.graph is None:
            found[name] = set[str]() if endpoint.agreement is None else {names.stage(name, AGREEMENT)}
            continue
        try:
            graph = compile_graph(endpoint.graph, catalog.tasks)
        except GraphInvalid:
            continue
        found[name] = {names.stage(name, topic) for topic in graph.topics}
    return found


def orphans(existing: Collection[str], catalog: Catalog, running: Iterable[Mapping[str, int]], names: Names) -> list[str]:
    """Topics to delete. `running`: what each dispatcher says of the requests that it has, by `endpoint@revision`."""
    needed = needed_topics(catalog, names)
    wanted = set[str]().union(*needed.values())
    busy = set[str]()
    for counts in running:
        for key in counts:
            endpoint, _, revision = key.rpartition("@")
            present = catalog.endpoints.get(endpoint)
            if present is None or present.graph is None or str(present.revision) != revision:
                busy.add(endpoint)
    # Endpoints that cannot be compiled now may be mended: theirs stay.
    kept = busy | {name for name in catalog.endpoints if name not in needed}
    return sorted(topic for topic in existing if topic not in wanted and not any(topic.startswith(names.stage(endpoint, "")) for endpoint in kept))
