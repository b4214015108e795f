"""The server's life: a database file, a socket, a thread with its own event loop.

Opening is done by whoever makes the object, so that its errors reach him; from `EmbeddedServer.start` on, everything
happens in the thread ``ovsdb-server``, and `EmbeddedServer.stop` waits for its end.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from ovsvhost.errors import InternalError
from ovsvhost.store.server.database import Database
from ovsvhost.store.server.listener import ListeningSocket
from ovsvhost.store.server.schema import DatabaseSchema, vswitch_schema
from ovsvhost.store.server.service import Service
from ovsvhost.store.server.session import Session

if TYPE_CHECKING:
    from pathlib import Path

STOP_TIMEOUT_S = 10.0
"""How long `EmbeddedServer.stop` waits for the thread; a disk that hangs in fsync is the only reason to need it."""

_log = logging.getLogger(__name__)


class EmbeddedServer:
    """An OVSDB server inside this process.

    The socket is taken and the database read when the object is made; clients are served from `start` to `stop`.

    Args:
        database: the file; made without rows if it is not there, its directory too.
        socket: where clients connect, mode 0600.
        schema: what a new file gets, and an older one is brought to; Open vSwitch's own by default.

    Errors: `ConfigError` for a damaged or foreign database, or a socket that somebody serves; `KernelError` if the
    system refuses; nothing is left behind in either case.
    """

    def __init__(self, database: Path, socket: Path, *, schema: DatabaseSchema | None = None) -> None:
        self._database = Database.open(database, schema or vswitch_schema())
        try:
            self._listener = ListeningSocket(socket)
        except BaseException:
            self._database.close()
            raise
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_log_loop_error)
        self._stopping = asyncio.Event()
        self._serving: Future[None] = Future()
        self._thread: threading.Thread | None = None
        self._is_stopped = False

    @property
    def remote(self) -> str:
        """What to give to ``ovs-vsctl --db=``."""
        return f"unix:{self._listener.path}"

    def start(self) -> None:
        """Serve clients; the socket answers when this returns."""
        if self._thread is not None or self._is_stopped:
            raise InternalError("the database server was started before")
        self._thread = threading.Thread(target=self._run, name="ovsdb-server", daemon=True)
        self._thread.start()
        self._serving.result()

    def stop(self) -> None:
        """Hang up, bring the database to the disk, take the socket away. Does nothing the second time."""
        if self._is_stopped:
            return
        self._is_stopped = True
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(STOP_TIMEOUT_S)
            if self._thread.is_alive():
                _log.error("the database server does not end within %g s; its disk seems to hang", STOP_TIMEOUT_S)
                return
        self._listener.remove()
        self._listener.socket.close()
        self._loop.close()
        self._database.close()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            if self._serving.done():
                raise
            self._serving.set_exception(error)

    async def _serve(self) -> None:
        service = Service([self._database], self._loop)
        server = await self._loop.create_unix_server(lambda: Session(service), sock=self._listener.socket)
        self._serving.set_result(None)
        await self._stopping.wait()
        # asyncio loses a connection that is being accepted while its server closes: accept no more, wait for these.
        self._loop.remove_reader(self._listener.socket)
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}), return_exceptions=True)
        server.close()
        for session in list(service.sessions):
            session.close()
        await asyncio.sleep(0)
        for session in list(service.sessions):
            session.abort()
        await asyncio.sleep(0)


def _log_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    _log.error("the database server met a problem: %s", context.get("message"), exc_info=context.get("exception"))
