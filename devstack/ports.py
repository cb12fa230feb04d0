"""TCP ports of 127.0.0.1."""

import random
import socket

HOST = "127.0.0.1"
#: Below the ports that Linux and macOS use for outgoing connections, so that no connection takes a
#: port between the check and the server's start.
UNPRIVILEGED = range(20_000, 32_000)


def is_free(port: int) -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket() as probe:
        # Servers set this too. It ignores the closed connections of a server that has just stopped.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen()
        except OSError:
            return False
    return True


def is_listening(port: int) -> bool:
    """Whether a server accepts connections on this port now."""
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False


def preferred_or_any(preferred: int | None) -> int:
    """The preferred port if it is free, otherwise another free port."""
    if preferred is not None and is_free(preferred):
        return preferred
    return next(port for port in random.sample(UNPRIVILEGED, 1000) if is_free(port))
