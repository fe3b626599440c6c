"""Records of the scale topic keep the bytes that they were released with."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from schemas.scale import ScaleOffer, ScaleOrder, decode_scale, encode_scale, scale_key

GOLDEN = Path(__file__).parent / "golden"
ORDER = ScaleOrder(
    accelerator="cpu",
    wanted=2,
    leaving=("cpu-3",),
    epoch=12,
    by="scaler-1",
    reason="cpu-3 drained; 2 workers are enough for a forecast of 150.0/s",
    made_ms=1_700_000_000_000,
    version=1,
)
OFFER = ScaleOffer(
    accelerator="cpu",
    least=1,
    most=4,
    threads=4,
    cores=4,
    wanted=2,
    running=3,
    failing="cpu-4 died 3 times in a row: no such device",
    by="supervisor",
    at_ms=1_700_000_001_000,
    version=1,
)
RECORDS = {"scale-order-v1.json": (ORDER, b"cpu"), "scale-offer-v1.json": (OFFER, b"offer/cpu")}


@pytest.mark.parametrize("file", RECORDS)
def test_records_are_written_and_read_as_released(file: str) -> None:
    record, key = RECORDS[file]
    golden = (GOLDEN / file).read_bytes().rstrip(b"\n")
    assert decode_scale(golden) == record
    assert encode_scale(record) == golden
    assert scale_key(record) == key


def test_fields_of_a_later_version_are_passed_over_and_those_of_an_earlier_one_have_defaults() -> None:
    assert decode_scale(b'{"kind": "order", "accelerator": "cpu", "wanted": 1, "version": 2, "new": [1]}') == ScaleOrder(
        accelerator="cpu", wanted=1, version=2
    )


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"[" * 100_000,
        b'{"kind": "order", "accelerator": "cpu"}',
        b'{"kind": "order", "accelerator": "cpu", "wanted": -1}',
        b'{"kind": "order", "accelerator": "cpu", "wanted": 1e300}',
        b'{"kind": "order", "accelerator": "cpu", "wanted": 1, "epoch": 9007199254740991}',
        b'{"kind": "offer", "accelerator": "cpu", "least": 1, "most": 2, "threads": 0}',
        b'{"kind": "other", "accelerator": "cpu"}',
    ],
)
def test_what_is_no_such_record_raises_one_error(value: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_scale(value)
