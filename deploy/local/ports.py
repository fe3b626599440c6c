"""Picks free TCP ports on the loopback interface for servers that this machine will run."""

from __future__ import annotations

import random
import socket

from schemas.errors import ConfigurationError

LOOPBACK = "127.0.0.1"
PORT_FIRST, PORT_LAST = 20_000, 32_000
"""Below every system's ephemeral range (Linux starts at 32,768).

A client that connects again and again to a stopped server's port would otherwise once be given that very port as its own, connect to itself,
and keep the server from ever listening there again.
"""
DRAWS = 500


def free_ports(count: int) -> list[int]:
    """`count` different ports on which nothing listens; drawn at random, so that two stacks starting at once rarely meet."""
    held: list[socket.socket] = []
    try:
        for port in random.sample(range(PORT_FIRST, PORT_LAST), DRAWS):
            if len(held) == count:
                break
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((LOOPBACK, port))
            except OSError:
                listener.close()
            else:
                held.append(listener)
        if len(held) < count:
            raise ConfigurationError(
                f"no {count} free ports between {PORT_FIRST} and {PORT_LAST} on {LOOPBACK}: end what listens there, or give addresses"
            )
        return [listener.getsockname()[1] for listener in held]
    finally:
        for listener in held:
            listener.close()
