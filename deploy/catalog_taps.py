"""`taps:` of an endpoint in a catalog file: its keys, and whether what it names exists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from deploy.suggestions import did_you_mean
from deploy.yaml_documents import Fields
from schemas.catalog import EndpointSpec, TaskSpec, variant_key
from schemas.tap import EVERY_STAGE, TAP_BYTES_MAX, TapSample, TapSpec
from schemas.terminal import OUTCOMES

TAPS_KEYS = ("sample", "payload", "redact", "max_bytes", "stages", "retention_hours")
SAMPLE_KEYS = ("rate", "outcomes", "variants")
PAYLOADS = ("full", "metadata")
RETENTION_HOURS_MAX = 24 * 366
REDACTED_MAX = 64
WHAT = "`taps`"


def read_taps(endpoint: Fields) -> TapSpec | None:
    """The taps that an endpoint asks for; None where it has none, or where something is wrong with them, which is reported."""
    fields = endpoint.mapping("taps", WHAT, TAPS_KEYS)
    if fields is None:
        return None
    found: dict[str, object] = {
        "sample": _sample(fields),
        "payload": _payload(fields),
        "redact": _words(fields, "redact"),
        "max_bytes": fields.integer("max_bytes", 0, TAP_BYTES_MAX),
        "stages": _words(fields, "stages"),
        "retention_hours": fields.integer("retention_hours", 1, RETENTION_HOURS_MAX),
    }
    return TapSpec(**{key: value for key, value in found.items() if value is not None})  # pyright: ignore[reportArgumentType]


def _sample(fields: Fields) -> TapSample | None:
    if not fields.is_mapping("sample"):
        rate = fields.number("sample", 0.0, 1.0)
        return None if rate is None else TapSample(rate=rate)
    inner = fields.mapping("sample", f"`sample` of {WHAT}", SAMPLE_KEYS)
    if inner is None:
        return None
    rate = inner.number("rate", 0.0, 1.0)
    return TapSample(rate=1.0 if rate is None else rate, outcomes=_rates(inner, "outcomes", OUTCOMES), variants=_rates(inner, "variants", None))


def _rates(fields: Fields, key: str, known: Iterable[str] | None) -> dict[str, float]:
    inner = fields.mapping(key, f"`{key}` of `sample`", known)
    if inner is None:
        return {}
    rates = {name: inner.number(name, 0.0, 1.0) for name in inner.keys()}  # noqa: SIM118 - not a mapping
    return {name: rate for name, rate in rates.items() if rate is not None}


def _payload(fields: Fields) -> str | None:
    text = fields.text("payload")
    if text is None or text in PAYLOADS:
        return text
    fields.problem("payload", f"`payload` of {WHAT} is {' or '.join(PAYLOADS)}, not {text!r}{did_you_mean(text, PAYLOADS)}")
    return None


def _words(fields: Fields, key: str) -> tuple[str, ...] | None:
    found = fields.texts(key) if key in fields else None
    if found is None:
        return None
    if len(found) > REDACTED_MAX:
        fields.problem(key, f"`{key}` of {WHAT} has {len(found)} entries, the limit is {REDACTED_MAX}")
    words = [word for word, _ in found]
    for word, line in found:
        if words.count(word) > 1:
            fields.source.add(line, f"{word!r} stands twice in `{key}` of {WHAT}")
    return tuple(words)


def check_taps(endpoint: EndpointSpec, fields: Fields, tasks: Mapping[str, TaskSpec], stages: Sequence[str]) -> None:
    """Report tensors, variants and stages that the endpoint does not have. `tasks`: those that it runs; `stages`: the paths that can be tapped."""
    taps = endpoint.taps
    inner = fields.mapping("taps", WHAT, TAPS_KEYS) if taps is not None else None
    if taps is None or inner is None:
        return
    variants = {variant_key(task.name, variant.name): variant for task in tasks.values() for variant in task.variants}
    for name in taps.sample.variants:
        if name not in variants:
            inner.problem("sample", f"endpoint {endpoint.name!r} has no variant {name!r} (write task/variant){did_you_mean(name, variants)}")
    tensors = {tensor.name for variant in variants.values() for tensor in (*variant.inputs, *variant.outputs)}
    # Tensors of a graph may be called otherwise than its tasks call them.
    for name in taps.redact if tensors and endpoint.graph is None else ():
        if name not in tensors:
            inner.problem("redact", f"endpoint {endpoint.name!r} has no tensor {name!r}{did_you_mean(name, tensors)}")
    for name in taps.stages:
        if name != EVERY_STAGE and name not in stages:
            inner.problem("stages", f"endpoint {endpoint.name!r} has no stage {name!r} (`{EVERY_STAGE}`: all of them){did_you_mean(name, stages)}")
