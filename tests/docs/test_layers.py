"""The tree keeps to the tables of ARCHITECTURE.md: who may use whom."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
CORE_TEXT, PYTHON_TEXT = TEXT.split("## The Python layer")
#: Room of the core -> rooms it may use, as the document says.
ROOMS = {
    room: set(re.findall(r"`(\w+)`", may))
    for room, may in re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|$", CORE_TEXT, re.MULTILINE)
}
#: Python modules that may import the extension.
CORE_USERS = {
    module
    for modules, may in re.findall(r"^\| (`[^|]*`) \| [^|]* \| (yes|no) \|$", PYTHON_TEXT, re.MULTILINE)
    for module in re.findall(r"`(\w+)`", modules)
    if may == "yes"
}


def rust_files(room: str) -> list[Path]:
    return sorted((ROOT / "rust" / room).rglob("*.rs"))


def without_tests(source: str) -> str:
    return source.split("#[cfg(test)]", maxsplit=1)[0]


def test_every_room_of_the_tree_stands_in_the_table() -> None:
    rooms = {path.name for path in (ROOT / "rust").iterdir() if path.is_dir()} - {"tests"}
    assert rooms == set(ROOMS)


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_room_uses_only_what_the_table_allows(room: str) -> None:
    for path in rust_files(room):
        used = set(re.findall(r"\bcrate::(\w+)", without_tests(path.read_text()))) - {room}
        assert used <= ROOMS[room], f"{path.relative_to(ROOT)} uses {sorted(used - ROOMS[room])}"


def test_unsafe_code_lives_in_its_rooms() -> None:
    allowed = ("sys", "memory", "ring", "burst", "testing", "port/afxdp", "port/packet")
    for path in (ROOT / "rust").rglob("*.rs"):
        if re.search(r"allow\(unsafe_code", path.read_text()):
            place = path.relative_to(ROOT / "rust").as_posix()
            assert place.startswith(tuple(f"{room}/" for room in allowed)), f"{place} may not hold unsafe code"


def reach(room: str) -> set[str]:
    """A room and all that its code can call."""
    found, new = set(), {room}
    while new:
        found |= new
        new = {used for name in new for used in ROOMS.get(name, set())} - found
    return found


@pytest.mark.parametrize("room", sorted(reach("pmd")))
def test_code_that_poll_threads_run_knows_no_lock_but_the_one_that_is_counted(room: str) -> None:
    files = [ROOT / f"rust/{room}.rs"] if (ROOT / f"rust/{room}.rs").exists() else rust_files(room)
    assert files, f"no room {room}: this test looks in the wrong place"
    for path in files:
        source = without_tests(path.read_text())
        if path.name != "lock.rs":
            others = re.findall(r"\b(?:Mutex|RwLock|Condvar|Barrier|parking_lot|spin|pthread_\w+|SYS_futex)\b", source)
            assert not others, f"{path.relative_to(ROOT)} uses {sorted(set(others))} instead of crate::lock::Lock"
        # A channel's sender may wait for its receiver; poll threads send what happens once a fault or an answer.
        assert room == "pmd" or "mpsc" not in source, f"{path.relative_to(ROOT)} uses a channel"


@pytest.mark.parametrize("room", ["daemon", "testing"])
def test_the_page_of_a_room_with_many_files_names_each(room: str) -> None:
    folder = ROOT / "python/ovsvhost" / room
    page = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert files - set(re.findall(r"\w+", page)) == set()


def imports_at_run_time(path: Path) -> list[str]:
    """Dotted names that a module imports when it runs; what is imported for type checkers only moves no data."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    names = []
    for node in ast.walk(tree):
        if id(node) in typing_only or not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        source = f"{node.module}." if isinstance(node, ast.ImportFrom) and node.module else ""
        names += [source + alias.name for alias in node.names]
    return names


def test_only_apply_and_observed_touch_the_extension() -> None:
    assert {"apply", "observed"} == CORE_USERS
    package = ROOT / "python/ovsvhost"
    users = {
        path.relative_to(package).parts[0].removesuffix(".py")
        for path in package.rglob("*.py")
        if any("_core" in name.split(".") for name in imports_at_run_time(path))
    }
    assert users <= CORE_USERS
    assert users, "nobody imports the extension: this test looks in the wrong place"
