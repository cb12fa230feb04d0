"""TCP ports of 127.0.0.1."""

import random
import socket

HOST = "127.0.0.1"
#: Below the ports that Linux and macOS give to outgoing connections, so that none of those takes
#: a port between the look and the server's start.
UNPRIVILEGED = range(20_000, 32_000)


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        # As servers do, so that connections of a server just stopped do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen()
        except OSError:
            return False
    return True


def is_listening(port: int) -> bool:
    """Whether a server takes connections there now."""
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False


def preferred_or_any(preferred: int | None) -> int:
    """The preferred port if it is free, else some other one that is."""
    if preferred is not None and is_free(preferred):
        return preferred
    return next(port for port in random.sample(UNPRIVILEGED, 1000) if is_free(port))
