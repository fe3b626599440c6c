"""Learned costs ({p}.catalog, `learned/costs`): what variants took on each type of worker, so that whoever leads next need not try them again."""

from __future__ import annotations

import msgspec

from schemas.decoding import strict
from schemas.profile import Latency, Milliseconds

LEARNED_COSTS_KEY = b"learned/costs"
LEARNED_COSTS_VERSION = 1


class LearnedCost(msgspec.Struct, frozen=True, kw_only=True):
    """One variant on one type of worker."""

    variant: str
    """Variant key, `task/variant`."""
    model: str
    """The SHA-256 (or call) that was measured: of another one nothing is known."""
    type: str
    """Workers of one type are alike: class, device and size."""
    latency: dict[int, dict[int, Latency]]
    """By threads, then by batch size in rows."""
    load_ms: Milliseconds = 0.0
    memory_bytes: int = 0


class LearnedCosts(msgspec.Struct, frozen=True, kw_only=True):
    """All that a leader knew."""

    costs: tuple[LearnedCost, ...] = ()
    at_ms: int = 0
    """Unix time."""
    by: str = ""
    version: int = LEARNED_COSTS_VERSION


_decode = strict(msgspec.json.Decoder(LearnedCosts).decode)


def encode_learned_costs(record: LearnedCosts) -> bytes:
    """The record's value."""
    return msgspec.json.encode(record)


def decode_learned_costs(value: bytes) -> LearnedCosts:
    """Raises msgspec.DecodeError (ValidationError) for anything else."""
    return _decode(value)
