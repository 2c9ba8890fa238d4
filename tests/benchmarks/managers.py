"""The benchmark of managers: `python tests/benchmarks/managers.py [--rounds N] [--small] [--only ROW]`."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manager_work import Size
from table import Line, Row, Sample, Target, WorkFailed, arguments, chosen, compile_ours, measure, report

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

DEATH_LIMIT = 5.0
"""How many seconds a kernel may go on without its owner before that counts as never."""

WORK_LIMIT = 180.0
"""How many seconds a work may take."""

USUAL = Size(repeats=3, trips=300, displays=30_000, asleep=5.0, kernels=5)
SMALL = Size(repeats=1, trips=5, displays=300, asleep=0.1, kernels=2)

PEER = "jupyter_client"
"""The peer as it comes: with ipykernel."""


@dataclass(frozen=True)
class Pair:
    """A manager with a kernel.

    Attributes:
        name: over its column.
        library: of the manager, "cobnut" or "jupyter_client".
        python: the interpreter that has the library.
        kernel: the name of the kernelspec.
        folder: the home of all of it, with the kernelspecs.
        forked: the name of the kernelspec that our manager forks, where it is the one to fork it.
    """

    name: str
    library: str
    python: str
    kernel: str
    folder: Path
    forked: str = ""
    ours: bool = False

    def command(self, work: str, size: Size, kernel: str = "") -> list[str]:
        """Return the command of the process that does a work."""
        script = str(Path(__file__).with_name("manager_work.py"))
        given = (self.library, str(self.folder / "kernels"), kernel or self.kernel, work, json.dumps(asdict(size)))
        return [self.python, script, *given]

    def environment(self) -> dict[str, str]:
        """Return a home of its own, and nothing that Jupyter or a session set."""
        foreign = ("JUPYTER_", "IPYTHON", "XDG_", "JPY_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {**kept, "HOME": str(self.folder), "IPYTHONDIR": str(self.folder / "ipython"), "LANG": "C.UTF-8"}


def pairs(folder: Path, peers: Path | None) -> list[Pair]:
    """Return what is measured: ours first; jupyter_client with ipykernel, which is what it is for, and with ours."""
    ours = partial(Pair, library="cobnut", python=sys.executable, folder=folder, ours=True)
    own = ours("cobnut", kernel="own-cold", forked="own-forked")
    if peers is None:
        return [own]
    theirs = partial(Pair, library="jupyter_client", python=str(peers / "bin" / "python"), folder=folder)
    return [
        own,
        ours("cobnut, ipykernel", kernel="ipykernel"),
        theirs(PEER, kernel="ipykernel"),
        theirs("jupyter_client, our kernel", kernel="own-cold"),
    ]


def write_kernelspecs(folder: Path, peers: Path | None) -> None:
    """Write the kernelspecs: our kernel, cold and as it comes, ipykernel of the peers, and each of them through sh."""
    own = [sys.executable, "-P", "-m", "cobnut_kernel", "-f", "{connection_file}"]
    cold = {"kernel_provisioner": {"provisioner_name": "local-provisioner"}}
    _write_kernelspec(folder, "own-forked", own, {}, "message")
    _write_kernelspec(folder, "own-cold", own, cold, "message")
    if peers is not None:
        ipykernel = [str(peers / "bin" / "python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        _write_kernelspec(folder, "ipykernel", ipykernel, {}, "signal")


def _write_kernelspec(folder: Path, name: str, argv: list[str], metadata: dict[str, Any], interrupts: str) -> None:
    through_sh = ["sh", "-c", '"$@"; exit', "sh", *argv]
    for full_name, command in ((name, argv), (f"{name}-sh", through_sh)):
        place = folder / "kernels" / full_name
        place.mkdir(parents=True)
        spec = {"argv": command, "display_name": name, "language": "python", "metadata": metadata}
        (place / "kernel.json").write_text(json.dumps({**spec, "interrupt_mode": interrupts}))


def done(pair: Pair, size: Size, *, work: str, kernel: str = "") -> Sequence[Sample]:
    """Do a work in a process of its own."""
    with _process(pair, pair.command(work, size, kernel)) as process:
        try:
            out, errors = process.communicate(timeout=WORK_LIMIT)
        except subprocess.TimeoutExpired:
            raise WorkFailed("never") from None
    if process.returncode:
        print(errors, file=sys.stderr)
        noted = (
            "result not heard"
            if "result not heard" in errors.splitlines()
            else f"died (exit code {process.returncode})"
        )
        raise WorkFailed(noted)
    return [Sample(value, note) for value, note in json.loads(out.splitlines()[-1])]


def forked_or_cold(pair: Pair, size: Size, *, work: str) -> Sequence[Sample]:
    """Do a work with our fork server, which is warm; a peer has none and starts cold."""
    return done(pair, size, work=work, kernel=pair.forked or pair.kernel)


def owner_death(pair: Pair, size: Size, *, wrapper: str = "") -> Sequence[Sample]:
    """Kill the process that owns a kernel, and wait until the kernel has gone."""
    kernel = pair.kernel + wrapper if wrapper else pair.forked or pair.kernel
    with _process(pair, pair.command("own", size, kernel)) as owner:
        assert owner.stdout is not None
        line = owner.stdout.readline()
        if not line:
            raise WorkFailed("died")
        ended = os.pidfd_open(_innermost(json.loads(line)))
        try:
            began = time.perf_counter()
            owner.kill()
            poll = select.poll()
            poll.register(ended, select.POLLIN)
            gone = poll.poll(DEATH_LIMIT * 1000)
            seconds = time.perf_counter() - began
            if not gone:
                signal.pidfd_send_signal(ended, signal.SIGKILL)
                raise WorkFailed("never")
            return [Sample(seconds * 1000)]
        finally:
            os.close(ended)


def _innermost(pid: int) -> int:
    """Return the process that a wrapper has started, or the process itself."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    is_wrapper = Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sh\0")
    return int(children[0]) if is_wrapper else pid


@contextlib.contextmanager
def _process(pair: Pair, command: list[str]) -> Generator[subprocess.Popen[str]]:
    """Run a process, and leave nothing of it."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=pair.environment(),
        cwd=pair.folder,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def _row(key: str, work: Callable[[Pair, Size], Sequence[Sample]], *lines: Line) -> Row[Pair, Size]:
    return Row(key, lines, work)


_AHEAD = Target(1.0, PEER)
ROWS = [
    _row(
        "start",
        partial(done, work="start"),
        Line("cold start → process runs", "ms"),
        Line("… → ready (the first reply)", "ms", _AHEAD),
        Line("… → first result", "ms", _AHEAD),
    ),
    _row(
        "fork",
        partial(forked_or_cold, work="start"),
        Line("start, fork server warm (peers: cold) → process runs", "ms"),
        Line("… → ready (the first reply)", "ms", Target(25)),
        Line("… → first result", "ms", Target(25)),
    ),
    _row(
        "restart-now",
        partial(forked_or_cold, work="restart-now"),
        Line("restart (now) → ready", "ms", _AHEAD),
        Line("… → first result", "ms", Target(25)),
    ),
    _row(
        "restart",
        partial(forked_or_cold, work="restart"),
        Line("restart (the kernel is asked to end) → ready", "ms", _AHEAD),
        Line("… → first result", "ms", _AHEAD),
    ),
    _row("stop", partial(forked_or_cold, work="stop"), Line("stop (the kernel is asked to end)", "ms", Target(50))),
    _row("kill", partial(forked_or_cold, work="kill"), Line("stop (now)", "ms", Target(50))),
    _row("owner", owner_death, Line("owner killed → kernel gone", "ms", Target(1000))),
    _row(
        "owner-sh",
        partial(owner_death, wrapper="-sh"),
        Line("owner killed → kernel gone, behind `sh -c`", "ms", Target(1000)),
    ),
    _row(
        "execute",
        partial(forked_or_cold, work="execute"),
        Line("execute `pass` → reply and idle, p50", "ms", _AHEAD),
        Line("the same, p99", "ms", _AHEAD),
    ),
    _row(
        "displays",
        partial(forked_or_cold, work="displays"),
        Line("30 000 displays, reader asleep: received", "", Target(USUAL.displays), more_is_better=True),
        Line("… idle seen", "", Target(1), more_is_better=True),
    ),
    _row(
        "descriptors",
        partial(forked_or_cold, work="descriptors"),
        Line("descriptors of the owner per kernel and client", "", _AHEAD),
    ),
]


def main() -> int:
    """Measure, print the table; return 1 where ours could not do a row."""
    compile_ours()
    options = arguments("Our managers beside jupyter_client's, by the same program.", ROWS)
    rows = [row for row in ROWS if not options.only or row.key in options.only]
    peers = None if options.no_peers else options.peers.resolve()
    with tempfile.TemporaryDirectory(prefix="cobnut-", ignore_cleanup_errors=True) as folder:
        write_kernelspecs(Path(folder), peers)
        subjects = chosen(pairs(Path(folder), peers), options)
        results = measure(rows, subjects, options.rounds, SMALL if options.small else USUAL)
    return report(results, options)


if __name__ == "__main__":
    sys.exit(main())
