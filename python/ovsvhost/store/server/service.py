"""What the sessions of one server share: databases, locks, and the transactions that wait.

Everything here runs on the server's event loop, one message at a time, so nothing needs a lock of its own.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ovsvhost.store.server.datum import new_uuid
from ovsvhost.store.server.execute import execute
from ovsvhost.store.server.locks import LockTable
from ovsvhost.store.server.operation import WaitUnsatisfied
from ovsvhost.store.server.server_database import server_database

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from ovsvhost.store.server.database import Database
    from ovsvhost.store.server.session import Session
    from ovsvhost.store.server.transaction import Change

_log = logging.getLogger(__name__)


class Waiting:
    """A transaction whose ``wait`` does not hold yet (RFC 7047 §5.2.6): tried after each commit, until it times out."""

    def __init__(self, session: Session, database: Database, request_id: Any, params: list[Any], now: float) -> None:
        self.session = session
        self.database = database
        self.request_id = request_id
        self.params = params
        self.since = now
        self.timer: asyncio.TimerHandle | None = None


class Service:
    """The databases, served.

    Args:
        databases: what clients may ask for; ``_Server`` is added.
        loop: where everything runs.
    """

    def __init__(self, databases: list[Database], loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.id = new_uuid()
        self.locks = LockTable()
        self.sessions: dict[Session, None] = {}
        self.databases = {database.name: database for database in (*databases, server_database(databases))}
        self._waiting: dict[Waiting, None] = {}
        self._has_news = False
        self._is_retrying = False
        for database in self.databases.values():
            database.listeners.append(self._listener(database))

    def _listener(self, database: Database) -> Callable[[list[Change]], None]:
        def note(changes: list[Change]) -> None:
            self._has_news = True
            for session in self.sessions:
                for monitor in session.monitors.values():
                    if monitor.database is database:
                        monitor.note(changes)

        return note

    def publish(self) -> None:
        """Tell every client what was committed since the last call; then those who wait get another try."""
        if not self._has_news:
            return
        self._has_news = False
        for session in list(self.sessions):
            session.flush_monitors()
        if self._waiting and not self._is_retrying:
            self._is_retrying = True
            self.loop.call_soon(self._retry_all)

    def transact(self, session: Session, database: Database, request_id: Any, params: list[Any]) -> None:
        """Run a transaction and answer it, now or when its ``wait`` holds or times out."""
        self._try(Waiting(session, database, request_id, params, self.loop.time()))

    def _try(self, waiting: Waiting) -> None:
        elapsed_ms = int((self.loop.time() - waiting.since) * 1000)
        if waiting.timer is not None:
            waiting.timer.cancel()
            waiting.timer = None
        session = waiting.session
        try:
            results = execute(waiting.database, waiting.params, lambda name: self.locks.owns(session, name), elapsed_ms)
        except WaitUnsatisfied as wait:
            self._waiting[waiting] = None
            if wait.timeout_ms is not None:
                left_ms = max(1, wait.timeout_ms - elapsed_ms)
                waiting.timer = self.loop.call_later(left_ms / 1000, self._retry, waiting)
            return
        except Exception:  # noqa: BLE001 - a mistake of ours in one request must not take the other clients down
            self._waiting.pop(waiting, None)
            _log.exception("a transaction met a bug in the database server")
            session.reply_error(waiting.request_id, {"error": "internal error", "details": "see the switch's log"})
            return
        self._waiting.pop(waiting, None)
        self.publish()
        session.reply(waiting.request_id, results)

    def _retry(self, waiting: Waiting) -> None:
        if waiting in self._waiting:
            self._try(waiting)

    def _retry_all(self) -> None:
        self._is_retrying = False
        for waiting in list(self._waiting):
            self._retry(waiting)

    def find_waiting(self, session: Session, request_id: Any) -> Waiting | None:
        """The client's waiting transaction of that id."""
        for waiting in self._waiting:
            if waiting.session is session and waiting.request_id == request_id:
                return waiting
        return None

    def drop_waiting(self, waiting: Waiting) -> None:
        """Forget a waiting transaction."""
        self._waiting.pop(waiting, None)
        if waiting.timer is not None:
            waiting.timer.cancel()

    def drop_session(self, session: Session) -> None:
        """A client hung up: its locks go to the next ones, its transactions are forgotten."""
        self.sessions.pop(session, None)
        for waiting in [w for w in self._waiting if w.session is session]:
            self.drop_waiting(waiting)
        self.locks.unlock_all(session)
