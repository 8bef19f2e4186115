"""Ports for the servers of tests."""

import os
import random
import socket

_RANGE = range(20_000, 32_000, 10)  # above those that Ray gives to workers, below those that systems give to clients
_left = random.Random(os.getpid()).sample(_RANGE, len(_RANGE))  # two processes of tests look in other places


def free_port() -> int:
    """A port that nobody listens on, with the nine after it: no client is given one meanwhile, and nobody here again."""
    while _left:
        port = _left.pop()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise RuntimeError(f"one of the ports {_RANGE} must be free")
