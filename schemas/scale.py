"""How many workers of a class are to run, and what whoever starts them offers: records of {p}.scale, as JSON, tagged by `kind`.

An order's key is the class, an offer's key is `offer/` and the class: the topic is compacted, and the last record of each counts.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from schemas.decoding import strict
from schemas.plan import EPOCH_MAX

SCALE_VERSION = 1
OFFER_KEY_PREFIX = "offer/"
Workers = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class ScaleOrder(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="order"):
    """Of the leading scaler: so many worker processes of a class."""

    accelerator: str
    wanted: Workers
    leaving: tuple[str, ...] = ()
    """Workers that no plan binds any more: they end first, where fewer are wanted than run."""
    epoch: Annotated[int, msgspec.Meta(ge=0, lt=EPOCH_MAX)] = 0
    """The plan in force when it was decided; an order of an older one than the last is ignored."""
    by: str = ""
    reason: str = ""
    made_ms: int = 0
    version: int = SCALE_VERSION


class ScaleOffer(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="offer"):
    """Of whoever starts and stops workers (the supervisor of `headrace up`, say): what can be asked of it, and how it stands."""

    accelerator: str
    least: Workers
    most: Workers
    """An order beyond these two is met as far as they allow."""
    threads: Annotated[int, msgspec.Meta(ge=1)] = 1
    """That each worker can be bound with."""
    cores: Annotated[int, msgspec.Meta(ge=0)] = 0
    """That all workers of all classes offered by it share; 0: no limit but the counts."""
    wanted: Workers = 0
    """The count that it acts on."""
    running: Workers = 0
    """Processes that it has; starting ones too."""
    failing: str = ""
    """Why a worker does not start, where one fails again and again."""
    by: str = ""
    at_ms: int = 0
    version: int = SCALE_VERSION


_encoder = msgspec.json.Encoder()
_scale: msgspec.json.Decoder[ScaleOrder | ScaleOffer] = msgspec.json.Decoder(ScaleOrder | ScaleOffer)
_decode = strict(_scale.decode)


def scale_key(record: ScaleOrder | ScaleOffer) -> bytes:
    """The key of a record in {p}.scale."""
    prefix = OFFER_KEY_PREFIX if isinstance(record, ScaleOffer) else ""
    return f"{prefix}{record.accelerator}".encode()


def encode_scale(record: ScaleOrder | ScaleOffer) -> bytes:
    """The value of a record in {p}.scale."""
    return _encoder.encode(record)


def decode_scale(value: bytes) -> ScaleOrder | ScaleOffer:
    """Raises msgspec.DecodeError (or ValidationError) for what is neither."""
    return _decode(value)
