"""The process of one Python task: imports its function, then answers one call after the other until the worker hangs up."""

from __future__ import annotations

import signal
import socket
from typing import Any, cast

import msgspec

from schemas.raw_tensors import decode_raw, encode_raw
from workers.cpu.python_tasks.frames import Closed, Frame, Oversized, receive, send
from workers.cpu.python_tasks.loading import Function, NotLoadable, load_function
from workers.cpu.python_tasks.returned import LIMITS, checked_types

MESSAGE_CHARACTERS_MAX = 400
ALARM_MARGIN_S = 1.0
_parameters = msgspec.msgpack.Decoder(dict[str, Any]).decode


def main(descriptor: int, call: str, call_ms_max: int) -> None:
    """Runs in the child. The first frame says whether the function could be loaded."""
    connection = socket.socket(fileno=descriptor)
    try:
        function = load_function(call)
    except BaseException as error:  # a module that exits at import must be named, too
        reason = str(error) if isinstance(error, NotLoadable) else f"{call} cannot be imported: {_described(error)}"
        send(connection, Frame(error=reason[:MESSAGE_CHARACTERS_MAX]), [])
        return
    send(connection, Frame(), [])
    while True:
        try:
            frame, data = receive(connection)
        except Closed:
            return
        # The worker ends a call that takes too long. Where the worker itself is gone, the kernel does, even if the call holds the interpreter.
        signal.setitimer(signal.ITIMER_REAL, call_ms_max / 1e3 + ALARM_MARGIN_S)
        answer, parts = _answer(function, frame, data)
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            send(connection, answer, parts)
        except Oversized as error:
            send(connection, Frame(error=f"it returned too much: {error}"), [])


def _answer(function: Function, frame: Frame, data: bytearray) -> tuple[Frame, list[bytes]]:
    try:
        inputs = decode_raw(data, 0, frame.tensors, LIMITS)
        parameters = _parameters(frame.parameters) if frame.parameters else {}
    except (ValueError, msgspec.DecodeError) as error:
        return Frame(error=f"what it was given cannot be read: {_described(error)}"), []
    try:
        returned = function(inputs, parameters)
    except BaseException as error:  # whatever a call raises is that call's answer, SystemExit and KeyboardInterrupt included
        return Frame(error=f"it raised {_described(error)}"), []
    try:
        heads, parts = encode_raw(checked_types(cast("object", returned)))
    except ValueError as error:
        text = str(error)
        return Frame(error=text[:MESSAGE_CHARACTERS_MAX]), []
    return Frame(heads), parts


def _described(error: BaseException) -> str:
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # an exception whose own text raises
        text = type(error).__name__
    return text[:MESSAGE_CHARACTERS_MAX]
