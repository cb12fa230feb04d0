"""A proxy in front of a server that speaks TCP, which refuses connections or lets bytes vanish."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

HOST = "127.0.0.1"


class _Link:
    """One caller's connection, and ours to the server in its name."""

    def __init__(self, caller: socket.socket, server: socket.socket | None) -> None:
        self.caller = caller
        self.server = server
        #: Whether all that is sent from now on is swallowed, for as long as it is open.
        self.is_dead = server is None
        #: Whether what the server sends arrives one byte a second. Read for each byte.
        self.drips = False
        #: Set when it drips no more.
        self.flows = threading.Event()

    def run(self) -> None:
        """Forward until one side closes."""
        threads = [threading.Thread(target=self._pump, args=(self.caller, self.server))]
        if self.server is not None:
            threads.append(threading.Thread(target=self._pump, args=(self.server, self.caller)))
        for thread in threads:
            thread.daemon = True
            thread.start()

    def close(self) -> None:
        """Close both sides, which ends the threads."""
        for side in (self.caller, self.server):
            if side is not None:
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
                side.close()

    def _drip(self, data: bytes) -> bytes:
        """Send byte by byte for as long as it drips. Returns the rest."""
        while self.drips and data:
            self.caller.sendall(data[:1])
            data = data[1:]
            self.flows.wait(1)
        return data

    def _pump(self, source: socket.socket, target: socket.socket | None) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if target is None or self.is_dead:
                    continue
                if source is self.server:
                    data = self._drip(data)
                target.sendall(data)
        self.close()


class TcpProxy:
    """Forwards to a port of this machine. Used through `running`."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._links: list[_Link] = []
        self._swallows = self._drips = False
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]

    def refuse(self) -> None:
        """Cut every connection and refuse new ones, as where no process listens."""
        self._listener.close()
        self._cut()

    def swallow(self) -> None:
        """Answer nothing any more, on connections that are open and on new ones, as where packets
        are dropped. Those stay silent after `heal`, until the caller gives them up."""
        with self._lock:
            self._swallows = True
            for link in self._links:
                link.is_dead = True

    def drip(self) -> None:
        """Let what the server sends arrive one byte a second, on all connections, until `heal`."""
        with self._lock:
            self._drips = True
            for link in self._links:
                link.flows.clear()
                link.drips = True

    def heal(self) -> None:
        """Forward what is new, and what drips."""
        with self._lock:
            self._swallows = self._drips = False
            for link in self._links:
                link.drips = False
                link.flows.set()
        if self._listener.fileno() == -1:
            self._listener = self._listen(self.port)

    def close(self) -> None:
        """End."""
        self._listener.close()
        self._cut()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server((HOST, port), backlog=128)
        # A listener that is closed would still accept once: the thread polls instead.
        listener.settimeout(0.05)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while listener.fileno() != -1:
            try:
                caller, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            caller.settimeout(None)
            try:
                self._link(caller)
            except OSError:
                # The server itself is away.
                caller.close()

    def _link(self, caller: socket.socket) -> None:
        with self._lock:
            link = _Link(caller, None if self._swallows else self._connect())
            link.drips = self._drips
            self._links = [*(old for old in self._links if old.caller.fileno() != -1), link]
            link.run()

    def _connect(self) -> socket.socket:
        return socket.create_connection((HOST, self._target))

    def _cut(self) -> None:
        with self._lock:
            links, self._links = self._links, []
        for link in links:
            link.close()


@contextmanager
def running(target: int) -> Iterator[TcpProxy]:
    """A proxy on a free port of 127.0.0.1, until the end of the block."""
    proxy = TcpProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
