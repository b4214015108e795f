"""One client: its requests (RFC 7047 §4.1), its monitors, its answers.

A client that does not read its answers is not read from either, and updates for it are only noted (see ``monitor``);
so it can hold up nobody but itself. What is no JSON-RPC ends the connection, as ovsdb-server does.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from ovsvhost.errors import PeerError
from ovsvhost.store.server.datum import is_identifier
from ovsvhost.store.server.error import OvsdbError, syntax_error
from ovsvhost.store.server.jsonrpc import Framer, check_message, encode
from ovsvhost.store.server.monitor import Monitor, monitor_from_params

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovsvhost.store.server.database import Database
    from ovsvhost.store.server.service import Service

WRITE_BUFFER_SIZE = 1024 * 1024
"""Bytes of answers that may wait for a client before it counts as slow."""

_log = logging.getLogger(__name__)


class _PlainError(Exception):
    """A refusal whose ``error`` is a bare string, as some of RFC 7047's are."""


class Session(asyncio.Protocol):
    """The server's end of one connection.

    Args:
        service: what all sessions share.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._framer = Framer()
        self._inbox: deque[dict[str, Any]] = deque()
        self._transport: asyncio.Transport | None = None
        self._is_slow = False
        self.monitors: dict[str, Monitor] = {}
        self._handlers: dict[str, Callable[[str, list[Any]], Any]] = {
            "monitor": self._monitor,
            "monitor_cond": self._monitor,
            "monitor_cond_since": self._monitor,
            "monitor_cond_change": self._monitor_cond_change,
            "monitor_cancel": self._monitor_cancel,
            "get_schema": lambda method, params: self._database(method, params).schema.to_json(),
            "list_dbs": lambda _method, _params: list(self._service.databases),
            "get_server_id": lambda _method, _params: self._service.id,
            "lock": self._lock,
            "steal": self._lock,
            "unlock": self._unlock,
            "set_db_change_aware": self._set_db_change_aware,
            "echo": lambda _method, params: params,
        }

    # The connection.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_SIZE)
        self._service.sessions[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, and with it its monitors, locks and waiting transactions."""
        if exc is not None:
            _log.debug("lost a database client: %s", exc)
        self._transport = None
        self._inbox.clear()
        self.monitors.clear()
        self._service.drop_session(self)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client; complete messages are handled at once."""
        try:
            self._inbox.extend(self._framer.feed(data))
            self._handle_inbox()
        except PeerError as error:
            _log.warning("closed the connection of a database client: %s", error)
            self.close()

    def pause_writing(self) -> None:
        """The client does not keep up."""
        self._is_slow = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client caught up: it hears the news, then its further requests are handled."""
        self._is_slow = False
        self.flush_monitors()
        if self._transport is not None:
            self._transport.resume_reading()
            self.data_received(b"")

    def close(self) -> None:
        """End the connection; what was written before is still sent."""
        if self._transport is not None:
            self._transport.close()
        self._inbox.clear()

    def abort(self) -> None:
        """End the connection now, for a client that does not take what was written."""
        if self._transport is not None:
            self._transport.abort()

    # Sending.

    def _send(self, message: dict[str, Any]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(message))

    def reply(self, request_id: Any, result: Any) -> None:
        """Answer a request; what the client monitors is told before."""
        self.flush_monitors()
        self._send({"id": request_id, "result": result, "error": None})

    def reply_error(self, request_id: Any, error: Any) -> None:
        """Refuse a request."""
        self.flush_monitors()
        self._send({"id": request_id, "result": None, "error": error})

    def notify_lock(self, method: str, name: str) -> None:
        """``locked`` and ``stolen`` (RFC 7047 §4.1.9, §4.1.10)."""
        self._send({"method": method, "params": [name], "id": None})

    def flush_monitors(self) -> None:
        """Send what was noted for the client, unless it is slow."""
        for monitor in self.monitors.values():
            if self._is_slow:
                return
            notification = monitor.flush()
            if notification is not None:
                self._send(notification)

    # Requests.

    def _handle_inbox(self) -> None:
        while self._inbox and not self._is_slow:
            message = self._inbox.popleft()
            kind = check_message(message)
            if kind == "request":
                self._handle_request(message["method"], message["params"], message["id"])
            elif kind == "notification":
                self._handle_notification(message["method"], message["params"])
            else:
                raise PeerError("a reply came, but nothing was asked")

    def _handle_notification(self, method: str, params: list[Any]) -> None:
        if method != "cancel" or len(params) != 1:
            return
        waiting = self._service.find_waiting(self, params[0])
        if waiting is not None:
            self._service.drop_waiting(waiting)
            self.reply_error(waiting.request_id, "canceled")

    def _handle_request(self, method: str, params: list[Any], request_id: Any) -> None:
        try:
            if method == "transact":
                database = self._database(method, params)
                if self._service.find_waiting(self, request_id) is not None:
                    raise syntax_error(params, f"{method}: duplicate request ID")
                self._service.transact(self, database, request_id, params)
                return
            handler = self._handlers.get(method, _unknown_method)
            self.reply(request_id, handler(method, params))
        except OvsdbError as error:
            self.reply_error(request_id, error.to_json())
        except _PlainError as error:
            self.reply_error(request_id, str(error))

    def _database(self, method: str, params: list[Any]) -> Database:
        if not params or type(params[0]) is not str:
            raise syntax_error(params, f"{method} request params must begin with <db-name>")
        database = self._service.databases.get(params[0])
        if database is None:
            raise syntax_error(
                params, f"{method} request specifies unknown database {params[0]}", tag="unknown database"
            )
        return database

    # Monitors.

    def _monitor(self, method: str, params: list[Any]) -> Any:
        database = self._database(method, params)
        version = {"monitor": 1, "monitor_cond": 2, "monitor_cond_since": 3}[method]
        if len(params) > 1 and _id_key(params[1]) in self.monitors:
            raise syntax_error(params[1], "duplicate monitor ID")
        monitor = monitor_from_params(database, params, version)
        initial = monitor.initial()
        self.monitors[_id_key(monitor.id)] = monitor
        return initial

    def _monitor_cond_change(self, _method: str, params: list[Any]) -> dict[str, Any]:
        if len(params) != 3:
            raise syntax_error(params, "invalid parameters")
        old_key, new_key = _id_key(params[0]), _id_key(params[1])
        monitor = self.monitors.get(old_key)
        if monitor is None:
            raise syntax_error(params[0], "unknown monitor session")
        if old_key != new_key and new_key in self.monitors:
            raise syntax_error(params[1], "duplicate monitor ID")
        self.flush_monitors()
        notification = monitor.change_conditions(params[1], params[2])
        self.monitors[new_key] = self.monitors.pop(old_key)
        if notification is not None:
            self._send(notification)
        return {}

    def _monitor_cancel(self, _method: str, params: list[Any]) -> dict[str, Any]:
        if len(params) != 1:
            raise _PlainError("invalid parameters")
        if self.monitors.pop(_id_key(params[0]), None) is None:
            raise _PlainError("unknown monitor")
        return {}

    # Locks and the rest.

    def _lock_name(self, method: str, params: list[Any]) -> str:
        if len(params) != 1 or not is_identifier(params[0]):
            raise syntax_error(params, f"{method} request params must be <id>")
        return str(params[0])

    def _lock(self, method: str, params: list[Any]) -> dict[str, Any]:
        name = self._lock_name(method, params)
        locks = self._service.locks
        if locks.has_asked(self, name):
            raise syntax_error(params, f'must issue "unlock" before new "{method}"')
        return {"locked": locks.steal(self, name) if method == "steal" else locks.lock(self, name)}

    def _unlock(self, method: str, params: list[Any]) -> dict[str, Any]:
        name = self._lock_name(method, params)
        if not self._service.locks.has_asked(self, name):
            raise syntax_error(params, f'{method}: "unlock" without "lock" or "steal"')
        self._service.locks.unlock(self, name)
        return {}

    def _set_db_change_aware(self, method: str, params: list[Any]) -> dict[str, Any]:
        if len(params) != 1 or type(params[0]) is not bool:
            raise syntax_error(params, f"{method}: true or false parameter expected")
        # The set of databases never changes here, so there is nothing that this client would be spared.
        return {}


def _unknown_method(_method: str, _params: list[Any]) -> Any:
    raise _PlainError("unknown method")


def _id_key(monitor_id: Any) -> str:
    return json.dumps(monitor_id, sort_keys=True)
