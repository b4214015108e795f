"""Who may use whom: the table of the layers, held against the files."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import ovsvhost

REPOSITORY = Path(__file__).parents[2]
PACKAGE = Path(ovsvhost.__file__).parent


def runtime_imports(file: Path) -> set[str]:
    """Modules that the file imports when it runs; what only a type checker sees is left out."""
    tree = ast.parse(file.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_only_apply_and_observed_touch_the_core() -> None:
    files = list(PACKAGE.rglob("*.py"))
    assert PACKAGE / "apply.py" in files
    users = {file.relative_to(PACKAGE).as_posix() for file in files if "ovsvhost._core" in runtime_imports(file)}
    assert users <= {"apply.py", "observed.py"}
    assert "apply.py" in users


def test_the_layers_contract_is_kept() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_has_grown_past_400_lines() -> None:
    long = {file.name: lines for file in PACKAGE.rglob("*.py") if (lines := len(file.read_text().splitlines())) > 400}
    assert long == {}
