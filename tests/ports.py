"""Ports for the servers of tests."""

import os
import random
import socket

_RANGE = range(20_000, 32_000, 10)  # above those that Ray gives to workers, below those that systems give to clients
_random = random.Random(os.getpid())  # two processes of tests look in other places


def free_port() -> int:
    """A port that nobody listens on, with the nine after it: no client of another test is given one meanwhile."""
    for port in _random.sample(_RANGE, len(_RANGE)):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise RuntimeError(f"one of the ports {_RANGE} must be free")
