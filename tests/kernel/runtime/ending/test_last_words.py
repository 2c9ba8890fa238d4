"""What an ending process says, where nobody may read."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.kernel.wire import wait_until


def test_the_log_is_never_waited_for() -> None:
    """Where nobody reads stderr the kernel's last words are dropped, and it ends."""
    code = (
        "import os\nfrom cobnut_kernel.runtime.ending.last_words import say\n"
        "os.set_blocking(2, False)\ntry:\n    while True: os.write(2, b'x' * 4096)\nexcept BlockingIOError: pass\n"
        "os.set_blocking(2, True)\nsay('unread')\nprint('done', flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        process.wait()


@pytest.mark.parametrize("closed", ["2>&-", "2>&1 | true"])
def test_a_process_without_stderr_says_nothing(closed: str) -> None:
    """Neither a closed descriptor nor one whose reader has gone is an error."""
    code = "import time; from cobnut_kernel.runtime.ending.last_words import say; time.sleep(0.1); say('unheard')"
    code += "; import pathlib, sys; pathlib.Path(sys.argv[1]).touch()"
    with tempfile.TemporaryDirectory() as folder:
        done = Path(folder) / "done"
        subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-c", code, str(done)], check=True)
        wait_until(done.exists, "the end of the process")
