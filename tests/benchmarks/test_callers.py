"""The benchmark of callers runs, on a small size and without the peer; nothing is said about time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_every_work_is_done_by_ours(tmp_path: Path) -> None:
    """Each row has a figure of ours on both loops, and of asyncio where it has such a thing."""
    samples = tmp_path / "samples.json"
    command = [sys.executable, str(Path(__file__).with_name("callers.py")), "--small", "--rounds", "1", "--no-peers"]
    done = subprocess.run([*command, "--json", str(samples)], capture_output=True, text=True, timeout=55, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    written = json.loads(samples.read_text())
    assert len(written) == done.stdout.count("\n| ") - 1 == 8
    for row, libraries in written.items():
        for library, values in libraries.items():
            has_none = library == "asyncio" and row.startswith("queue_call")
            assert values == ["has none"] if has_none else all(value > 0 for value in values)
