"""The process of one board: opens it, then does one thing after the other until the worker hangs up, or the board is lost."""

from __future__ import annotations

import os
import socket
import threading
import warnings

import numpy as np

from workers.fpga import board_messages as say
from workers.fpga.board_session import NotPossible, Session
from workers.fpga.packing import Bytes

REASON_CHARACTERS_MAX = 600
LINGER_S = 0.0002
"""After each batch: under load, the next one comes about as soon."""


def main(connection_descriptor: int, memory_descriptor: int, life_descriptor: int) -> None:
    """Runs in the child; `life_descriptor` is a pipe that closes when the worker dies."""
    warnings.simplefilter("ignore")
    threading.Thread(target=_end_with_worker, args=(life_descriptor,), daemon=True).start()
    connection = socket.socket(fileno=connection_descriptor)
    shared: Bytes = np.memmap(os.fdopen(memory_descriptor, "r+b"), np.uint8, "r+", shape=(say.SHARED_BYTES,))
    order = say.receive_request(connection)
    if not isinstance(order, say.Open):
        return
    try:
        session = Session(order, shared)
        say.send(connection, session.opened())
    except Exception as error:  # pynq raises what it likes; whatever it is, there is no board
        say.send(connection, say.Lost(reason=_described(error)))
        return
    # Through the network a batch takes so long that there is nothing to be gained.
    linger_s = 0.0 if session.is_remote else LINGER_S
    while (request := say.receive_request(connection, linger_s)) is not None:
        reply = _answer(session, request)
        say.send(connection, reply)
        if isinstance(reply, say.Lost):
            break
    # Buffers on the board are freed by pynq as the interpreter ends; a board that is lost would keep it from ending.
    if request is not None:
        os._exit(1)


def _answer(session: Session, request: say.Request) -> say.Reply:
    try:
        if isinstance(request, say.Run):
            return session.run(request)
        if isinstance(request, say.Load):
            return session.load(request)
        if isinstance(request, say.Unload):
            session.unload(request.key)
        return session.tell()
    except NotPossible as error:
        return say.Refused(reason=str(error)[:REASON_CHARACTERS_MAX])
    except Exception as error:  # a hung accelerator, a dead channel, forgotten buffers: the state of the board is unknown
        return say.Lost(reason=_described(error))


def _described(error: Exception) -> str:
    """gRPC's errors say what happened in `details()`."""
    details = getattr(error, "details", None)
    code = getattr(error, "code", None)
    if callable(details) and callable(code):
        return f"{code()}: {details()}"[:REASON_CHARACTERS_MAX]
    return f"{type(error).__name__}: {error}"[:REASON_CHARACTERS_MAX]


def _end_with_worker(descriptor: int) -> None:
    os.read(descriptor, 1)
    os._exit(0)
