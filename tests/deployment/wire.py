"""The holders' way to the door, with the test in the middle: what they say is read there in plain.

Only whoever has the door's private key can do this, which the test has. TLS ends here and begins
anew towards the door; a holder is told this address in its kit. The way can be cut so that nothing
is answered any more, also at the moment at which an update sets out.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from asyncio import StreamReader, StreamWriter
from concurrent.futures import Future
from contextlib import suppress

from confide.server.deploy.federation import Federation

_PIECE = 65536


class Wire:
    """One holder's way. ``sent`` is every byte that the holder said, as it was before TLS."""

    def __init__(self, fed: Federation) -> None:
        self.sent = bytearray()
        self.trap = b""  # cut as soon as the holder says this
        self._door = fed.port
        door = fed.folder / "door"
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server.load_cert_chain(door / "server.crt", door / "server.key")
        self._client = ssl.create_default_context(cafile=str(fed.ca))
        self._ready: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        self.port = self._ready.result(10)

    def cut(self) -> None:
        """From now on no byte arrives anywhere; nobody is told."""
        self._loop.call_soon_threadsafe(self._whole.clear)

    def mend(self) -> None:
        self._loop.call_soon_threadsafe(self._whole.set)

    def is_cut(self) -> bool:
        return not self._whole.is_set()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(20)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._whole, self._over = asyncio.Event(), asyncio.Event()
        self._whole.set()
        server = await asyncio.start_server(self._meet, "127.0.0.1", 0, ssl=self._server)
        self._ready.set_result(server.sockets[0].getsockname()[1])
        await self._over.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _meet(self, said: StreamReader, back: StreamWriter) -> None:
        writers = [back]
        with suppress(OSError, asyncio.CancelledError):
            answered, on = await asyncio.open_connection(
                "127.0.0.1", self._door, ssl=self._client, server_hostname="localhost"
            )
            writers.append(on)
            ways = [self._pump(said, on, self.sent), self._pump(answered, back, bytearray())]
            tasks = [asyncio.ensure_future(way) for way in ways]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()

    async def _pump(self, source: StreamReader, sink: StreamWriter, kept: bytearray) -> None:
        with suppress(OSError):
            while piece := await source.read(_PIECE):
                kept += piece
                if self.trap and kept is self.sent and self.trap in piece:
                    self.trap = b""
                    self._whole.clear()
                await self._whole.wait()
                sink.write(piece)
                await sink.drain()
