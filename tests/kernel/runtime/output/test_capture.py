"""Descriptors 1 and 2: what C code and children write is published, in order, and the log gets it too."""

from __future__ import annotations

import faulthandler
import fcntl
import logging
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from tests.kernel.wire import KernelProcess, wait_until

from cobnut_kernel.protocol.messages import Channel, MessageType
from cobnut_kernel.runtime.output.capture import CapturedDescriptors, Log, own_descriptor
from cobnut_kernel.transport import IOThread, SocketSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

    from tests.kernel.wire import WireClient


@pytest.fixture
def thread() -> Iterator[IOThread]:
    """An I/O thread that runs."""
    thread = IOThread("test-io")
    endpoint = thread.open(SocketSpec(zmq.PULL, "inproc://nobody", bind=True), lambda _: None)
    yield thread
    endpoint.close()


class Published:
    """What was published, stream by stream."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, str]] = []

    def __call__(self, name: str, text: str) -> None:
        """Keep it."""
        self.texts.append((name, text))

    def text(self, name: str = "stdout") -> str:
        """Return the text of one stream."""
        return "".join(text for stream, text in self.texts if stream == name)


@pytest.fixture
def published() -> Published:
    """Nothing yet."""
    return Published()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A file that stands for the process's stdout and stderr."""
    return tmp_path / "log"


@contextmanager
def logged(log: Path) -> Generator[None]:
    """Let the process's stdout and stderr be a file; inside a test, for pytest changes them between its phases."""
    before = [os.dup(1), os.dup(2)]
    with log.open("ab") as opened:
        for fd in (1, 2):
            os.dup2(opened.fileno(), fd)
    try:
        yield
    finally:
        for fd, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, fd)
            os.close(kept)


@contextmanager
def capturing(thread: IOThread, publish: Callable[[str, str], None], log: Path) -> Generator[CapturedDescriptors]:
    """Capture both."""
    with logged(log):
        captured = CapturedDescriptors(thread, publish)
        try:
            yield captured
        finally:
            captured.restore()


def descriptors() -> set[str]:
    """Return the process's open descriptors."""
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


# ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_written_is_published_by_itself(thread: IOThread, log: Path, published: Published) -> None:
    """Nobody drains: the I/O thread reads what is there, again and again, from both."""
    with capturing(thread, published, log):
        for turn in range(3):
            os.write(1, f"out {turn}\n".encode())
            os.write(2, f"err {turn}\n".encode())
            wait_until(lambda turn=turn: f"err {turn}\n" in published.text("stderr"), "stderr")
            wait_until(lambda turn=turn: f"out {turn}\n" in published.text(), "stdout")


def test_drain_publishes_what_is_there_at_once(thread: IOThread, log: Path, published: Published) -> None:
    """After it returns, all that was written before is published."""
    with capturing(thread, published, log) as captured:
        for turn in range(200):
            os.write(1, f"{turn}\n".encode())
            captured.drain()
            assert published.text().endswith(f"{turn}\n")
        assert published.text() == "".join(f"{turn}\n" for turn in range(200))


def test_who_reads_at_the_same_time_neither_loses_nor_doubles(
    thread: IOThread, log: Path, published: Published
) -> None:
    """The I/O thread and three drainers read one flood: it is published once, in order."""
    with capturing(thread, published, log) as captured:
        stop = threading.Event()

        def drain() -> None:
            while not stop.is_set():
                captured.drain()

        drainers = [threading.Thread(target=drain) for _ in range(3)]
        for drainer in drainers:
            drainer.start()
        lines = [f"{number}\n" for number in range(20_000)]
        for start in range(0, len(lines), 50):
            os.write(1, "".join(lines[start : start + 50]).encode())
        stop.set()
        for drainer in drainers:
            drainer.join()
        captured.drain()
        assert published.text() == "".join(lines)


def test_characters_are_put_together_across_reads(thread: IOThread, log: Path, published: Published) -> None:
    """A character torn in two writes is one; what is no UTF-8 is replaced."""
    with capturing(thread, published, log) as captured:
        data = "é€😀".encode()
        for index in range(len(data)):
            os.write(1, data[index : index + 1])
            captured.drain()
        os.write(1, b"\xff!")
        captured.drain()
        assert published.text() == "é€😀\ufffd!"


def test_half_a_character_at_the_end_is_said(thread: IOThread, log: Path, published: Published) -> None:
    """Nothing is lost: what never became a character is replaced when the capture ends."""
    with logged(log):
        captured = CapturedDescriptors(thread, published)
        os.write(1, b"\xe2\x82")
        captured.restore()
        assert published.text() == "\ufffd"


def test_a_flood_of_megabytes_arrives_whole(thread: IOThread, log: Path, published: Published) -> None:
    """More than the pipe holds, from a child, while this thread does not help."""
    with capturing(thread, published, log) as captured:
        code = "import os\nfor i in range(64): os.write(1, bytes([65 + i % 26]) * 65536)"
        subprocess.run([sys.executable, "-c", code], check=True)
        captured.drain()
        wait_until(lambda: len(published.text()) == 64 << 16, "all of it")
        assert published.text() == "".join(chr(65 + i % 26) * 65536 for i in range(64))


def test_the_pipes_are_large(thread: IOThread, log: Path) -> None:
    """Code that holds the GIL can write as much before it waits (R36), unless the user's pipes are used up."""
    with capturing(thread, Published(), log):
        sizes = {fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) for fd in (1, 2)}
        assert sizes <= {1 << 20, 1 << 16, 1 << 12, 1 << 13}


def test_a_reader_who_waits_for_the_io_thread_does_not_stop_it(thread: IOThread, log: Path) -> None:
    """Whoever drains may have to wait until the I/O thread has taken text; that one must not wait for him."""
    waited: list[bool] = []
    held, go = threading.Event(), threading.Event()

    def publish(_name: str, _text: str) -> None:
        if not thread.is_current():
            os.write(2, b"for the I/O thread to read\n")
            go.set()
            taken = threading.Event()
            thread.call_soon(thread.call_later, 0.02, taken.set)
            waited.append(taken.wait(10))

    with capturing(thread, publish, log) as captured:
        thread.call_soon(lambda: (held.set(), go.wait(10)))
        assert held.wait(10)  # so that the drainer reads, not the I/O thread
        os.write(1, b"text")
        captured.drain()
        assert waited == [True]


# ── the process around it ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_log_gets_what_it_always_got(thread: IOThread, log: Path) -> None:
    """All that is read is written to the process's own descriptors too, as bytes."""
    with capturing(thread, Published(), log) as captured:
        os.write(1, b"out \xff\n")
        captured.drain()
        os.write(2, b"err\n")
        captured.drain()
        assert log.read_bytes() == b"out \xff\nerr\n"


def test_a_log_that_takes_nothing_stops_nobody(thread: IOThread, log: Path, published: Published) -> None:
    """Where nobody reads the process's own stderr, what fits is written, the newest is kept, the rest is dropped."""
    with logged(log):
        reading, writing = os.pipe()
        os.dup2(writing, 2)
        os.close(writing)
        captured = CapturedDescriptors(thread, published)
        for number in range(100):
            os.write(2, f"{number:05} {'x' * 10_000}\n".encode())
            captured.drain()
        wait_until(lambda: len(published.text("stderr")) == 100 * 10_007, "all of it")
        os.set_blocking(reading, False)
        received = os.read(reading, 1 << 20)
        assert received.startswith(b"00000 x")
        while not received.endswith(b"and on\n"):
            os.write(2, b"and on\n")
            captured.drain()
            received += os.read(reading, 1 << 20)
        assert b"\n00099 x" in received
        assert b"\n00050 x" not in received
        os.close(reading)
        os.write(2, b"to nobody\n")
        captured.drain()
        assert published.text("stderr").endswith("to nobody\n")
        captured.restore()


def test_a_log_whose_reader_is_gone_is_given_up(tmp_path: Path) -> None:
    """A broken pipe is no error, and nothing piles up."""
    reading, writing = os.pipe()
    log = Log(writing)
    os.close(reading)
    log.write(b"x" * 100_000)
    assert not log._waiting
    os.close(writing)


def test_children_inherit_the_two_descriptors_alone(thread: IOThread, log: Path, published: Published) -> None:
    """No child holds a reading end, or the process's own descriptors: it would keep them open for ever."""
    with capturing(thread, published, log) as captured:
        code = "import os; print([fd for fd in range(99) if os.path.exists(f'/proc/self/fd/{fd}')])"
        subprocess.run([sys.executable, "-c", code], check=True, close_fds=False)
        captured.drain()
        wait_until(published.text, "the child's answer")
        plain = subprocess.run(
            [sys.executable, "-c", code], check=True, close_fds=False, stdout=subprocess.PIPE, text=True
        )
        assert published.text() == plain.stdout


def test_afterwards_all_is_as_before(thread: IOThread, log: Path, published: Published) -> None:
    """The descriptors are the process's own again, and none more is open."""
    with logged(log):
        before, links = descriptors(), [os.readlink(f"/proc/self/fd/{fd}") for fd in (1, 2)]  # noqa: PTH115
        captured = CapturedDescriptors(thread, published)
        assert own_descriptor(2) != 2
        os.write(1, b"captured\n")
        captured.restore()
        assert own_descriptor(2) == 2
        assert [os.readlink(f"/proc/self/fd/{fd}") for fd in (1, 2)] == links  # noqa: PTH115
        os.write(1, b"not captured\n")
        wait_until(lambda: descriptors() == before, "the pipes to be closed")
        assert published.text() == "captured\n"
        assert log.read_text() == "captured\nnot captured\n"


def test_a_child_that_lives_on_holds_up_no_end(thread: IOThread, log: Path, published: Published) -> None:
    """A daemon that keeps the pipe's writing end open, and writes, does not keep the kernel from ending."""
    with logged(log):
        before = descriptors()
        captured = CapturedDescriptors(thread, published)
        child = subprocess.Popen(["sh", "-c", "while :; do echo on and on; done"], stderr=subprocess.DEVNULL)
        try:
            wait_until(published.text, "the child to write")
            captured.restore()
            wait_until(lambda: descriptors() == before, "the pipes to be closed")
            child.wait(10)  # the pipe has no reader any more
        finally:
            child.kill()
            child.wait()


def test_it_ends_without_the_io_thread(log: Path, published: Published) -> None:
    """Where the thread has ended before, whoever ends the capture closes all himself."""
    with logged(log):
        before = descriptors()
        captured = CapturedDescriptors(IOThread("never started"), published)
        os.write(1, b"text")
        captured.restore()
        assert published.text() == "text"
        assert descriptors() == before


def test_a_descriptor_that_user_code_has_closed_is_let_go(thread: IOThread, log: Path, published: Published) -> None:
    """`os.close(1)` neither makes the I/O thread spin nor harms what is opened under that number later."""
    with logged(log):
        captured = CapturedDescriptors(thread, published)
        os.write(1, b"last words")
        os.close(1)
        wait_until(lambda: published.text() == "last words", "what was written")
        opened = os.open(os.devnull, os.O_WRONLY)
        assert opened == 1
        captured.drain()
        captured.restore()
        assert os.readlink("/proc/self/fd/1") == os.devnull  # noqa: PTH115


def test_a_process_without_stdout_is_captured_as_far_as_it_goes(
    thread: IOThread, log: Path, published: Published
) -> None:
    """Where descriptor 1 is closed from the start, stderr is captured all the same."""
    with logged(log):
        os.close(1)
        captured = CapturedDescriptors(thread, published)
        os.write(2, b"err")
        captured.drain()
        captured.restore()
        assert published.text("stderr") == "err"


def test_faulthandler_reports_to_the_process(thread: IOThread, log: Path, published: Published) -> None:
    """It is on, and where a user switches it on again; a dump that he asks for is output."""
    with capturing(thread, published, log) as captured:
        assert faulthandler.is_enabled()
        faulthandler.enable()
        faulthandler.dump_traceback(2)
        captured.drain()
        assert "most recent call first" in published.text("stderr")


def test_the_kernels_log_is_redirected_while_captured(thread: IOThread, log: Path, published: Published) -> None:
    """A handler of ours that writes to the process's stderr goes on to do so, and so it does afterwards."""
    with logged(log):
        assert sys.__stderr__ is not None
        handler: logging.StreamHandler[Any] = logging.StreamHandler(sys.__stderr__)
        logger = logging.getLogger("cobnut_kernel")
        logger.addHandler(handler)
        try:
            captured = CapturedDescriptors(thread, published)
            logger.warning("about the kernel")
            captured.restore()
            assert handler.stream is sys.__stderr__
        finally:
            logger.removeHandler(handler)
        assert log.read_text() == "about the kernel\n"
        assert published.texts == []


# ── over the wire ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import os; os.system('echo from a shell')", "from a shell\n"),
        ("import subprocess; r = subprocess.run(['echo', 'from a program'])", "from a program\n"),
        ("import os; n = os.write(1, b'from a descriptor')", "from a descriptor"),
        ("import ctypes; n = ctypes.CDLL(None).printf(b'from C, no line')", "from C, no line"),
        ("import sys; n = sys.__stdout__.write('from the stream below')", "from the stream below"),
        ("import subprocess, sys; r = subprocess.run(['echo', 'given'], stdout=sys.stdout)", "given\n"),
        ("import subprocess, sys; r = subprocess.run([sys.executable, '-c', 'print(1)'])", "1\n"),
        ("import subprocess; r = subprocess.run('echo to the device > /dev/stdout', shell=True)", "to the device\n"),
    ],
)
def test_what_comes_from_outside_python_reaches_its_cell(client: WireClient, code: str, text: str) -> None:
    """It is there before the reply, unflagged, for only this cell runs (R36)."""
    exchange = client.execute(code)
    assert exchange.text() == text
    assert all("routing" not in message.metadata for message in exchange.iopub)


def test_prints_and_children_keep_their_order(client: WireClient) -> None:
    """What a child wrote before a print stands before it, and the other way round."""
    code = "import os\nfor i in range(30):\n    print('print', i)\n    s = os.system(f'echo child {i}')"
    assert client.execute(code).text() == "".join(f"print {i}\nchild {i}\n" for i in range(30))


def test_c_code_and_python_keep_their_order(client: WireClient) -> None:
    """C's own buffer is no longer than a line."""
    code = "import time; c = ctypes.CDLL(None)\nfor i in range(20):\n    c.puts(b'C'); time.sleep(0.001); print(i)"
    assert client.execute("import ctypes").content["status"] == "ok"
    assert client.execute(code).text() == "".join(f"C\n{i}\n" for i in range(20))


def test_a_child_that_outlives_its_cell_is_a_guess(client: WireClient) -> None:
    """Its text goes to its cell while that is the latest one, and is flagged (R32)."""
    code = "import subprocess; c = subprocess.Popen('while [ ! -e go ]; do sleep 0.01; done; echo late', shell=True)"
    exchange = client.execute(code)
    (client.kernel.folder / "go").touch()
    client.wait_for_text(exchange, "late")
    [message] = [message for message in exchange.iopub if message.msg_type == MessageType.STREAM]
    assert message.metadata["routing"] == "latest"


def test_text_of_python_is_not_in_the_log(client: WireClient) -> None:
    """The log is for what comes from outside, as before; prints are the cells'."""
    client.execute("import os; print('said by a print'); s = os.system('echo said by a child >&2')")
    assert "said by a print" not in client.kernel.stderr
    assert "said by a child" in client.kernel.stderr


def test_spawned_workers_print_into_the_cell(client: WireClient) -> None:
    """Processes of multiprocessing that start afresh inherit the descriptors."""
    code = (
        "import multiprocessing as mp\n"
        "with mp.get_context('spawn').Pool(1) as pool: n = pool.map(print, ['spawned one', 'spawned two'], 1);"
        " pool.close(); pool.join()"
    )
    assert sorted(client.execute(code).text().split("\n")) == ["", "spawned one", "spawned two"]


def test_more_than_the_pipe_holds(client: WireClient) -> None:
    """Five megabytes of a child and of a descriptor arrive whole."""
    code = (
        "import os, subprocess, sys\n"
        "r = subprocess.run([sys.executable, '-c', 'print(\"c\" * 5_000_000)'])\n"
        "data = b'd' * 5_000_000\nwhile data: data = data[os.write(1, data):]"
    )
    text = client.execute(code).text()
    assert (text.count("c"), text.count("d")) == (5_000_000, 5_000_000)


def test_a_crash_is_reported_on_the_processs_own_stderr(start_kernel: Callable[..., KernelProcess]) -> None:
    """Faulthandler's report survives the process, though descriptor 2 was captured (R38)."""
    for enable in ("", "import faulthandler; faulthandler.enable(); "):
        kernel = start_kernel()
        client = kernel.connect()
        client.send_code(enable + "import ctypes; ctypes.string_at(0)")
        assert kernel.wait() == -11
        assert "Segmentation fault" in kernel.stderr
        assert "string_at" in kernel.stderr


def test_shutdown_with_a_child_that_floods(start_kernel: Callable[..., KernelProcess]) -> None:
    """A kernel ends although a child of its own keeps writing to the captured descriptor."""
    kernel = start_kernel()
    client = kernel.connect()
    cell = client.execute("import subprocess; child = subprocess.Popen(['sh', '-c', 'while :; do echo flood; done'])")
    client.wait_for_text(cell, "flood")
    client.request(MessageType.SHUTDOWN_REQUEST, {"restart": False}, Channel.CONTROL)
    kernel.wait()
