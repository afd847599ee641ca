"""A line between a site and the gateway that can be cut, can swallow what is sent, and can be slow."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_PIECE = 65_536
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST, as a firewall or a rebooted router does


class Line:
    """Forwards TCP connections to a port on loopback.

    Attributes:
        port: where it listens.
        bytes_per_s: most bytes per second and direction; None: as many as come.
        carried: bytes so far, in both directions.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.bytes_per_s: float | None = None
        self.carried = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._open = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._wait(self._listen())

    def close(self) -> None:
        """End it."""
        self._wait(self._cut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Every connection is reset, and new ones are refused."""
        self._wait(self._cut())
        try:
            yield
        finally:
            self._wait(self._listen())

    @contextmanager
    def swallowing(self) -> Iterator[None]:
        """Nothing arrives any more, and nobody is told; what was on its way arrives when the line is back."""
        self._loop.call_soon_threadsafe(self._open.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._open.set)

    def _wait(self, work: Any) -> None:
        future: Future[None] = asyncio.run_coroutine_threadsafe(work, self._loop)
        future.result(10)

    async def _listen(self) -> None:
        self._open.set()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            taken: socket.socket = writer.get_extra_info("socket")
            with suppress(OSError):
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()  # the gateway is away
            return
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._carry(reader, back), self._carry(there, writer))
        finally:
            self._writers -= {writer, back}

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(_PIECE):
                await self._open.wait()
                if self.bytes_per_s is not None:
                    await asyncio.sleep(len(piece) / self.bytes_per_s)
                self.carried += len(piece)
                writer.write(piece)
                await writer.drain()
        with suppress(OSError):
            writer.close()


def reroute(home: Path, port: int) -> None:
    """Have a site reach its gateway through another port of this machine."""
    file = home / "membership" / "current" / "membership.json"
    membership = json.loads(file.read_text())
    host = membership["gateway"].rpartition(":")[0]
    file.write_text(json.dumps(membership | {"gateway": f"{host}:{port}"}))
