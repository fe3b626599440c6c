"""Decoders that fail in one way: whatever bytes come, they give the record or msgspec.DecodeError."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

Decoded = TypeVar("Decoded")


def strict(decode: Callable[[bytes], Decoded]) -> Callable[[bytes], Decoded]:
    """The same decoder; text that is not UTF-8 and endless nesting, which msgspec lets through as errors of their own, are DecodeErrors too.

    Records of the control topics are read by every process, at every start: one that no reader expects to fail would end them all.
    """

    def decoded(value: bytes) -> Decoded:
        try:
            return decode(value)
        except (UnicodeDecodeError, RecursionError) as error:
            raise msgspec.DecodeError(str(error)) from None

    return decoded
