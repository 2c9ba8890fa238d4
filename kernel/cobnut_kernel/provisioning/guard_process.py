"""The guard: a process that ends the kernels of an owner who ended without doing it himself.

It is run as a script, isolated and without site-packages, and imports nothing of cobnut: it starts in some
milliseconds and takes little memory. It reads what it guards from stdin; the end of stdin is the end of the owner,
however he ended. Lines, paths in hexadecimal:

* `add PID START PATH…`: the process group PID, whose leader started at START (0: unknown), and its files
* `remove PID`
* `folder PATH`: the owner's folder, which goes last
"""

from __future__ import annotations

import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

GRACE = 0.75
"""How long a kernel has between SIGTERM and SIGKILL, in seconds: it shall be gone a second after its owner."""


def main() -> None:
    """Guard until stdin ends, then end what is left."""
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # its only end is that of its owner
    groups: dict[int, int] = {}
    files: dict[int, list[bytes]] = {}
    folder = b""
    for line in sys.stdin.buffer:
        word, *arguments = line.split() or [b""]
        if word == b"folder":
            folder = bytes.fromhex(arguments[0].decode())
        elif word == b"add":
            pid = int(arguments[0])
            groups[pid] = int(arguments[1])
            files[pid] = [bytes.fromhex(path.decode()) for path in arguments[2:]]
        elif word == b"remove":
            groups.pop(int(arguments[0]), None)
            files.pop(int(arguments[0]), None)
    end_groups(groups)
    remove_files([path for paths in files.values() for path in paths], folder)


def end_groups(groups: dict[int, int]) -> None:
    """End process groups: SIGTERM, a moment of grace, SIGKILL."""
    alive = [pid for pid, start in groups.items() if is_same(pid, start) and send(pid, signal.SIGTERM)]
    deadline = time.monotonic() + GRACE
    while alive and time.monotonic() < deadline:
        time.sleep(0.01)
        alive = [pid for pid in alive if send(pid, 0)]
    for pid in groups:
        if is_same(pid, groups[pid]):
            send(pid, signal.SIGKILL)


def is_same(pid: int, start: int) -> bool:
    """Say whether the number still belongs to the group: its leader may have ended, but is nobody else."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            text = file.read()
    except OSError:
        return True  # a number stays taken while a group has it
    return start in (0, int(text[text.rindex(b")") + 2 :].split()[19]))


def send(pid: int, signum: int) -> bool:
    """Send a signal to a group; False where there is none any more."""
    try:
        os.killpg(pid, signum)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def remove_files(files: list[bytes], folder: bytes) -> None:
    """Remove the kernels' files, and folders of theirs; then the owner's folder with all that lies in it."""
    for path in files:
        remove(os.rmdir if os.path.isdir(path) else os.unlink, path)  # noqa: PTH112
    try:
        left = os.listdir(folder or b"/nowhere")  # noqa: PTH208
    except OSError:
        left = []
    for name in left:
        remove(os.unlink, os.path.join(folder, name))  # noqa: PTH118
    remove(os.rmdir, folder)


def remove(how: Callable[[bytes], None], path: bytes) -> None:
    """Remove a file or a folder, or leave what cannot be removed."""
    try:  # noqa: SIM105
        how(path)
    except OSError:
        pass


if __name__ == "__main__":
    main()
