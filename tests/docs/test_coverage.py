"""docs/coverage.md says what the tests say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_coverage_is_what_the_tests_say() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/coverage", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
