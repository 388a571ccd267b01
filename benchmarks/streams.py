"""Open streams and keep them open, as browsers with an EventSource do."""

import asyncio
import statistics
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.contender import HOST, Refused

# New clients in each second, whether or not the server keeps up.
PER_SECOND = 1000


@dataclass
class Stream(asyncio.Protocol):
    """Records when the first byte of its body arrived."""

    head: bytes = b""
    first_byte: "asyncio.Future[float]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    def data_received(self, data: bytes) -> None:
        if self.first_byte.done():
            return
        self.head += data
        if b"data: " in self.head:
            if self.head.startswith(b"HTTP/1.1 200 "):
                self.first_byte.set_result(asyncio.get_running_loop().time())
            else:
                self.connection_lost(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.first_byte.done():
            reason = f"a stream ended with {self.head[:60]!r}"
            self.first_byte.set_exception(Refused(reason))


@asynccontextmanager
async def opened(port: int, path: str, count: int) -> AsyncIterator[dict[str, float]]:
    """The times to the first byte, in milliseconds, with all streams kept open."""
    loop = asyncio.get_running_loop()
    request = f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
    transports: list[asyncio.Transport] = []

    async def open_at(due: float) -> float:
        transport, stream = await loop.create_connection(Stream, HOST, port)
        transports.append(transport)
        transport.write(request)
        return await stream.first_byte - due

    try:
        start, opening = loop.time(), []
        for number in range(count):
            due = start + number / PER_SECOND
            await asyncio.sleep(due - loop.time())
            opening.append(asyncio.create_task(open_at(due)))
        try:
            async with asyncio.timeout(60):
                times = await asyncio.gather(*opening)
        except OSError as error:
            # A limit of files or threads, in this process or in the server's.
            raise Refused(f"{count} streams were not opened: {error!r}") from error
        yield {
            "first_byte_p50_ms": round(1000 * statistics.median(times), 1),
            "first_byte_max_ms": round(1000 * max(times), 1),
        }
    finally:
        for transport in transports:
            transport.close()
