"""The kernel's command line: what it says, what it refuses, and the kernels it runs."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.connect import find_connection_file
from tests.kernel.leftovers import eventually

from cobnut_kernel import __version__, command_line
from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.command_line import COMMANDS, main
from cobnut_kernel.connection_files import load_connection_file

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

PROGRAM = [sys.executable, "-P", "-m", "cobnut_kernel"]


@pytest.fixture(autouse=True)
def _own_jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for connection files."""
    (tmp_path / "private").mkdir(mode=0o700)
    return tmp_path / "private"


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str, str]:
    """Run the command line in this process until it ends; returns its exit status, stdout and stderr."""
    status: Any = 0
    try:
        main(arguments)
    except SystemExit as end:
        status = end.code or 0
    out, err = capsys.readouterr()
    return status, out, err


def files(folder: Path) -> list[str]:
    """Name what lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def running(*arguments: str, stdout: int | None = None) -> Generator[subprocess.Popen[str]]:
    """Run a kernel by its command line; it must end cleanly when it is asked to."""
    process = subprocess.Popen([*PROGRAM, *arguments], text=True, stdout=stdout, stdin=subprocess.DEVNULL)
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


# ── what it says ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """It names every command with an example, says what FILE is, and that there is more help."""
    status, text, _ = said(capsys, "--help")
    assert status == 0
    for command in COMMANDS:
        assert f"cobnut-kernel {command}" in text
    for hint in ("-f FILE", "cobnut-kernel -f .", "--help-all", "readable for you alone", "--set NAME=VALUE"):
        assert hint in text


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_its_own_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """It says what the command does and how it is called."""
    status, text, _ = said(capsys, command, "--help")
    assert (status, f"usage: cobnut-kernel {command}" in text) == (0, True)
    assert "examples:" in text or "example:" in text or command == "list"


def test_all_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """Each trait of the kernel is there with its type, its default and what it is for."""
    status, text, _ = said(capsys, "--help-all")
    assert status == 0
    assert "usage: cobnut-kernel" in text
    lines = text.splitlines()
    number = next(number for number, line in enumerate(lines) if line.startswith("  transport "))
    assert lines[number] == "  transport  any of ['tcp', 'ipc'] (case-insensitive); by default 'tcp'"
    assert lines[number + 1].strip() == "Transport, where no file says it."
    for name in ("kernel_name", "ip", "connection_file", "help_links"):
        assert any(line.startswith(f"  {name}  ") for line in lines)


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    """Program and version, for reports of trouble."""
    assert said(capsys, "--version") == (0, f"cobnut-kernel {__version__}\n", "")


def test_help_imports_nothing_heavy() -> None:
    """Neither sockets nor loops nor IPython are there when --help has been said."""
    script = "import sys\nfrom cobnut_kernel.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    script += "print({'zmq', 'asyncio', 'anyio', 'IPython', 'traitlets', 'jupyter_core'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "set()"


# ── what it refuses ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "say which kernel to run, by -f FILE, or name a command"),
        (["--bogus"], "unrecognized arguments: --bogus"),
        (["-f"], "-f: expected one argument"),
        (["-f", "x", "more"], "unrecognized arguments: more"),
        (["instal", "x"], "no command 'instal': did you mean 'install'?"),
        (["kernel.json"], "no command 'kernel.json': there are install, uninstall, list; a file is given by -f"),
        (["-f", "x", "--set", "quiet"], "'quiet' is no setting: write NAME=VALUE"),
        (["-f", "x", "--Kernel.quiet"], "'Kernel.quiet' is no setting: write NAME=VALUE"),
        (["install", "a b"], "'a b' is no name for a kernel"),
        (["install"], "arguments are required: NAME"),
        (["install", "x", "--backend", "curio"], "invalid choice: 'curio'"),
        (["install", "x", "--user", "--sys-prefix"], "not allowed with argument --user"),
        (["install", "x", "--set", "transprt=ipc"], "no setting 'transprt'. Did you mean 'transport'?"),
        (["install", "x", "--Kernel.transport=udp"], "'transport' must be any of .*not 'udp'"),
        (["install", "x", "--env", "A=B", "1"], "'A=B' is no name of an environment variable"),
        (["list", "x"], "unrecognized arguments: x"),
    ],
)
def test_what_makes_no_sense_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str, tmp_path: Path
) -> None:
    """The exit status is 2, stderr says what is wrong after how it is right, and nothing was written."""
    status, out, err = said(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("usage: cobnut-kernel")
    assert re.search(reason, err)
    assert not (tmp_path / "data").exists()


BROKEN: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "kernel.json is no JSON"),
    "no object": ([1], "holds a list, not an object"),
    "nothing in it": ({}, "names no 'ip'"),
    "a broken registration": (
        {"registration_port": 5, "registration_ip": "127.0.0.1", "kernel_id": "a/b"},
        "kernel_id 'a/b' of the registration",
    ),
    "half a pair of keys": (
        {"ip": "127.0.0.1", "curve_publickey": "x", **dict.fromkeys(
            ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port"), 0
        )},
        "no 'curve_secretkey'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_file_of_no_use_is_said(folder: Path, fault: str) -> None:
    """The kernel ends with 1 and one line that names the file and what is wrong with it; the file stays."""
    content, reason = BROKEN[fault]
    file = folder / "kernel.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    run = subprocess.run([*PROGRAM, "-f", str(file)], capture_output=True, text=True, check=False, timeout=30)
    assert (run.returncode, run.stdout) == (1, "")
    assert reason in run.stderr
    assert str(file) in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert file.exists()


def test_a_place_of_no_use_is_said(folder: Path) -> None:
    """A folder that is not there, or that others can enter, gets no connection file; nor does a folder's own name."""
    folder.chmod(0o755)
    for file, reason in {
        folder / "missing" / "k.json": f"no folder {folder / 'missing'} for the connection file: make it",
        folder: f"The connection file {folder} cannot be read: Is a directory",
        folder / "k.json": "open to others (mode 755): chmod 700 it",
    }.items():
        run = subprocess.run([*PROGRAM, "-f", str(file)], capture_output=True, text=True, check=False, timeout=30)
        assert (run.returncode, run.stdout) == (1, "")
        assert reason in run.stderr
        assert len(run.stderr.splitlines()) == 1
    assert files(folder) == []


def test_a_file_that_cannot_be_written_is_named(folder: Path) -> None:
    """It is the connection file that is told, not the name it had before it was whole; other errors are as they are."""
    file = folder / "k.json"
    refused = PermissionError(13, "Permission denied", str(folder / ".k.json.1-2"))
    told = command_line._explanation(refused, file)
    assert told == f"The connection file {file} cannot be written: Permission denied. Name one in a folder of yours."
    other = OSError(24, "Too many open files", "/elsewhere")
    assert command_line._explanation(other, file) == str(other)


def test_a_port_in_use_is_said(folder: Path) -> None:
    """The kernel ends with 1 and says what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = dict.fromkeys(("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port"), 0)
        info = {**ports, "shell_port": taken.getsockname()[1], "ip": "127.0.0.1", "transport": "tcp", "key": "k"}
        (folder / "kernel.json").write_text(json.dumps(info))
        command = [*PROGRAM, "-f", str(folder / "kernel.json")]
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert run.returncode == 1
    assert "cannot listen where its connection says" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_setting_that_does_not_exist_is_refused_before_the_kernel_starts(folder: Path) -> None:
    """The exit status is 2, and there is no connection file."""
    command = [*PROGRAM, "-f", str(folder / "k.json"), "--set", "kernel.transprt=ipc"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (run.returncode, run.stdout) == (2, "")
    assert "no setting 'transprt'. Did you mean 'transport'?" in run.stderr
    assert files(folder) == []


# ── the kernels it runs ─────────────────────────────────────────────────────────────────────────────────────────────


async def until_written(file: Path) -> None:
    """Wait until a kernel has told where it listens."""
    await eventually(file.exists, f"{file} was not written")


@pytest.mark.anyio
async def test_a_kernel_writes_the_file_that_is_not_there(folder: Path) -> None:
    """It can be connected to by that file, which is its owner's alone, and goes when the kernel ends."""
    file = folder / "kernel.json"
    with running("-f", str(file)):
        await until_written(file)
        assert file.stat().st_mode & 0o777 == 0o600
        async with AsyncKernelClient(connection_file=file) as client:
            await client.wait_for_ready(30)
            assert (await client.run("1").reply()).content["status"] == "ok"
    assert files(folder) == []


@pytest.mark.anyio
async def test_settings_reach_the_kernel(folder: Path) -> None:
    """Its own and IPython's: in the one spelling, and in that of Jupyter's programs."""
    file = folder / "kernel.json"
    links = '[{"text": "Hazel", "url": "https://example.org"}]'
    arguments = ["--set", "transport=ipc", f"--Kernel.ip={folder}/s", f"--set=kernel.help_links={links}"]
    with running("-f", str(file), *arguments, "--HistoryManager.hist_file=:memory:", "--set", "shell.colors=nocolor"):
        await until_written(file)
        info = load_connection_file(file)
        assert (info.transport, info.ip) == ("ipc", f"{folder}/s")
        async with AsyncKernelClient(info) as client:
            reply = await client.wait_for_ready(30)
            assert reply.content["help_links"] == json.loads(links)
            code = "s = get_ipython(); print(s.history_manager.hist_file, s.colors)"
            text = "".join([m.content["text"] async for m in client.run(code) if m.msg_type == "stream"])
            assert text == ":memory: nocolor\n"
    assert files(folder) == []


@pytest.mark.anyio
async def test_a_dot_makes_a_file_and_says_how_to_attach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name that it says is found by Jupyter's own programs, and leads to the kernel."""
    monkeypatch.chdir(tmp_path)
    with running("-f", ".", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(6)]
        name = lines[3].split()[-1]
        assert lines[3].strip() == f"jupyter console --existing {name}"
        assert str(process.pid) in lines[5]
        file = tmp_path / "runtime" / name
        assert str(file) in lines[0]
        await until_written(file)
        assert find_connection_file(name, [str(tmp_path / "runtime")]) == str(file)
        async with AsyncKernelClient(connection_file=file) as client:
            await client.wait_for_ready(30)
    assert files(tmp_path / "runtime") == []
