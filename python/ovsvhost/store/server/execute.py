"""A whole ``transact`` request: its operations in order, then the commit (RFC 7047 §4.1.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovsvhost.store.server.error import OvsdbError, syntax_error
from ovsvhost.store.server.operation import OPERATIONS, READ_ONLY, Execution, Members

if TYPE_CHECKING:
    from collections.abc import Callable

    from ovsvhost.store.server.database import Database


def execute(
    database: Database, params: list[Any], owns_lock: Callable[[str], bool], elapsed_ms: int = 0
) -> list[Any] | dict[str, Any]:
    """Run the operations and commit, or leave everything as it was.

    Args:
        database: the one that ``params`` name.
        params: its name, then the operations.
        owns_lock: whether the client holds the lock of that name.
        elapsed_ms: how long this transaction has been waiting.

    Returns:
        One result for each operation: an object, an ``<error>`` where it failed, null for those after it; one
        ``<error>`` more if the commit itself failed.

    Errors: `WaitUnsatisfied`: nothing happened, try again after the next commit.
    """
    if not params or params[0] != database.name:
        return syntax_error(params, "database name expected as first parameter").to_json()
    operations = params[1:]
    transaction = database.begin()
    execution = Execution(transaction, owns_lock, elapsed_ms)
    results: list[Any] = []
    try:
        for number, json in enumerate(operations, 1):
            results.append(_execute_one(database, execution, json, f"ovsdb operation {number} of {len(operations)}"))
    except OvsdbError as error:
        transaction.abort()
        results.append(error.to_json())
        return results + [None] * (len(operations) - len(results))
    except BaseException:
        transaction.abort()
        raise
    try:
        database.commit(transaction)
    except OvsdbError as error:
        results.append(error.to_json())
    return results


def _execute_one(database: Database, execution: Execution, json: Any, name: str) -> dict[str, Any]:
    members = Members(json, name)
    op = members.read("op", "id")
    operation = OPERATIONS.get(op)
    if operation is None:
        raise members.problem(f'No operation "{op}"')
    try:
        result = operation(execution, members)
    except OvsdbError:
        # A member that does not belong there explains the error better than the error does.
        if not members.has_problem:
            members.finish()
        raise
    members.finish()
    if database.is_reserved and op not in READ_ONLY:
        raise OvsdbError(f"{op} operation not allowed on table in reserved database {database.name}", tag="not allowed")
    return result
