"""Local kernels: where they are reached, how they are started, what is left of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.kernel.leftovers import until
from traitlets import Any as AnyTrait
from traitlets.config import LoggingConfigurable

from cobnut_kernel.connection_files import OwnerDirectory, load_connection_file
from cobnut_kernel.errors import KernelStartError
from cobnut_kernel.kernelspec import KernelSpec
from cobnut_kernel.portal import Portal
from cobnut_kernel.provisioning import files, local, placement, ports
from cobnut_kernel.provisioning.guard import Guard
from cobnut_kernel.provisioning.local import LocalProvisioner
from cobnut_kernel.provisioning.owner_pipe import OwnerPipe

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

pytestmark = pytest.mark.usefixtures("runtime")

SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]), flush=True)"
SLEEP = "import signal; print('up', flush=True); signal.pause()"
IPC = [sys.executable, "-c", SLEEP, "ipykernel", "{connection_file}"]


def provisioner(*argv: str, language: str = "python", transport: str = "auto", **spec: Any) -> LocalProvisioner:
    """Make the provisioner of a kernel; by default one that sleeps, and could have unix sockets."""
    kernel_spec = KernelSpec(argv=list(argv or IPC), name="k", language=language, **spec)
    return LocalProvisioner(kernel_id="id", kernel_spec=kernel_spec, transport=transport)


def do(function: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
    """Do something where provisioners live."""
    return Portal.shared().call(function, *args)


def prepare(kernel: LocalProvisioner, **options: Any) -> dict[str, Any]:
    """Do what comes before a launch."""
    return do(lambda: kernel.pre_launch(**options))


def launch(kernel: LocalProvisioner, **options: Any) -> dict[str, Any]:
    """Launch a kernel as a manager does; returns its connection."""

    async def begin() -> dict[str, Any]:
        arguments = await kernel.pre_launch(**options)
        info = await kernel.launch_kernel(arguments.pop("cmd"), **arguments)
        assert kernel.has_process
        await kernel.post_launch(**arguments)
        return info

    return do(begin)


def end(kernel: LocalProvisioner) -> int | None:
    """End a kernel as a manager does; returns its exit code."""

    async def finish() -> int | None:
        await kernel.kill()
        code = await kernel.wait()
        await kernel.cleanup()
        return code

    return do(finish)


def shown(*argv: str, spec_env: dict[str, str] | None = None, **options: Any) -> tuple[list[str], dict[str, str], str]:
    """Launch a kernel that shows its arguments, environment and folder."""
    kernel = provisioner(sys.executable, "-c", SHOW, *argv, resource_dir="/resources", env=spec_env or {})
    launch(kernel, **options)
    assert do(kernel.wait) == 0
    end(kernel)
    return json.loads(kernel.output_tail())


# ── where it is reached ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("argv", "language", "transport", "expected"),
    [
        (["python", "-m", "cobnut_kernel"], "python", "auto", "ipc"),
        (["python", "-m", "ipykernel_launcher"], "Python", "auto", "ipc"),
        (["/opt/bin/xpython"], "python", "auto", "ipc"),
        (["python", "-m", "some_kernel"], "python", "auto", "tcp"),
        (["R", "--args", "ipykernel"], "R", "auto", "tcp"),
        (["python", "-m", "ipykernel_launcher"], "python", "tcp", "tcp"),
        (["R"], "R", "ipc", "ipc"),
    ],
)
def test_kernels_that_can_are_reached_by_unix_sockets(
    argv: list[str], language: str, transport: str, expected: str
) -> None:
    """Known Python kernels get sockets in our private folder, all others ports of this machine, or what is asked."""
    kernel = provisioner(*argv, language=language, transport=transport)
    prepare(kernel)
    assert kernel.connection_file is not None
    info = load_connection_file(kernel.connection_file)
    assert info.transport == expected
    if expected == "ipc":
        assert "xpython" in argv[0] or Path(info.ip).parent == OwnerDirectory.shared().path
    else:
        assert info.ip == "127.0.0.1"
    do(kernel.cleanup)
    assert expected == "tcp" or not list(Path(info.ip).parent.glob("[0-9]*"))
    assert "xpython" not in argv[0] or not Path(info.ip).parent.exists()


def test_the_connection_is_private_and_complete(runtime: Path) -> None:
    """The file lies in our folder with mode 0600, and says what the provisioner returns, the key as bytes."""
    kernel = provisioner()
    info = launch(kernel, env={**os.environ, "JPY_SESSION_NAME": "book.ipynb"})
    path = runtime / "cobnut" / OwnerDirectory.shared().path.name / "kernel-id.json"
    assert kernel.connection_file == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = json.loads(path.read_text())
    assert info == {**content, "key": content["key"].encode()}
    assert len(info["key"]) == 64
    assert (content["kernel_name"], content["jupyter_session"]) == ("k", "book.ipynb")
    end(kernel)
    assert not path.exists()


def test_no_two_kernels_share_key_sockets_or_ports() -> None:
    """Whatever is started at the same time, each has its own."""
    kernels = [provisioner("R", language="R") for _ in range(20)] + [provisioner() for _ in range(20)]
    infos = [prepare(kernel) and kernel.connection_info for kernel in kernels]
    numbers = [info[name] for info in infos[:20] for name in info if name.endswith("_port")]
    assert len(set(numbers)) == 100
    assert len({info["key"] for info in infos}) == 40
    assert len({info["ip"] for info in infos[20:]}) == 20
    for kernel in kernels:
        do(kernel.cleanup)
    assert not ports.promised


def test_promised_ports_are_given_to_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that a starting kernel has not bound yet is not chosen again, though the system offers it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        promised = probe.getsockname()[1]
    offered = iter([promised, promised])
    bind = ports._bind
    monkeypatch.setattr(ports, "_bind", lambda ip, number: bind(ip, number or next(offered, 0)))
    monkeypatch.setattr(ports, "promised", {promised})
    found = ports.Ports()
    assert found.find("127.0.0.1", [0]) != [promised]
    found.give_back()


def test_a_restart_is_reached_where_it_was() -> None:
    """Key, sockets, ports and file stay through a restart; a new connection is made when it is asked for."""
    for kernel in (provisioner(), provisioner(transport="tcp")):
        before = dict(launch(kernel))

        async def restart(kernel: LocalProvisioner = kernel) -> None:
            await kernel.kill(restart=True)
            await kernel.wait()
            await kernel.cleanup(restart=True)
            assert kernel.connection_file is not None
            assert kernel.connection_file.exists()

        do(restart)
        assert launch(kernel) == before
        do(restart)
        kernel.connection_info = {}
        assert launch(kernel)["key"] != before["key"]
        end(kernel)
    assert not ports.promised


def test_keys_for_encryption_last_through_a_restart() -> None:
    """They are in the file, and again in that of the next launch; other than with `auto` unix sockets have them too."""
    curve: dict[str, Any] = {"metadata": {"supported_encryption": ["curve"]}}
    for transport, policy in (("tcp", "auto"), ("ipc", "required")):
        kernel = provisioner(transport=transport, **curve)
        before = dict(launch(kernel, transport_encryption=policy))
        assert kernel.connection_file is not None
        assert json.loads(kernel.connection_file.read_text())["curve_secretkey"] == before["curve_secretkey"]
        end(kernel)
        assert launch(kernel, transport_encryption=policy) == before
        end(kernel)
    for kernel in (provisioner(transport="tcp", **curve), provisioner(transport="ipc", **curve)):
        assert "curve_secretkey" not in launch(
            kernel, transport_encryption="auto" if "ipc" in kernel.transport else None
        )
        end(kernel)
    with pytest.raises(KernelStartError, match="must be encrypted"):
        launch(provisioner(), transport_encryption="required")


def test_a_path_too_long_for_sockets_means_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the sockets' path would not fit the kernel gets ports; where sockets were asked for, it is refused."""
    monkeypatch.setattr(placement, "SOCKET_PATH_LIMIT", 20)
    kernel = provisioner()
    prepare(kernel)
    assert kernel.connection_info["transport"] == "tcp"
    do(kernel.cleanup)
    with pytest.raises(KernelStartError, match="too long for a socket: set TMPDIR"):
        prepare(provisioner(transport="ipc"))


# ── how it is started ───────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_is_filled_in_as_documented(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Known fields are replaced, launch arguments too; unknown ones stay, and so do braces that are none."""
    monkeypatch.setenv("HOME", "/home/me")
    argv, _, _ = shown(
        "{connection_file}",
        "{prefix}/x",
        "{resource_dir}",
        "{cwd}",
        "{env}",
        "{x} {{prefix}} {a.b}",
        "~/f",
        cwd=str(tmp_path),
        extra_arguments=["more", "{prefix}"],
    )
    file = OwnerDirectory.shared().path / "kernel-id.json"
    assert argv == [
        os.path.realpath(file),
        f"{sys.prefix}/x",
        "/resources",
        str(tmp_path),
        "{env}",
        f"{{x}} {{{sys.prefix}}} {{a.b}}",
        "/home/me/f",
        "more",
        sys.prefix,
    ]


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("python", sys.executable),
        ("python3", sys.executable),
        (f"python3.{sys.version_info[1]}", sys.executable),
        ("python2", "python2"),
        ("/usr/bin/python", "/usr/bin/python"),
    ],
)
def test_a_bare_python_is_the_one_we_run_on(program: str, expected: str) -> None:
    """A kernelspec that says `python` means our interpreter, whatever PATH finds."""
    kernel = provisioner(program, "-c", "")
    assert prepare(kernel)["cmd"] == [expected, "-c", ""]
    do(kernel.cleanup)


def test_environment_and_folder_are_those_asked_for(tmp_path: Path) -> None:
    """The kernel runs in `cwd` with `env`, the spec's variables, and the id of its owner."""
    _, env, cwd = shown(spec_env={"X": "${A}!"}, cwd=tmp_path, env={"A": "1"})
    assert cwd == str(tmp_path)
    assert (env["X"], env["A"], env["JPY_PARENT_PID"]) == ("1!", "1", str(os.getpid()))
    assert "HOME" not in env
    _, env, cwd = shown()
    assert (cwd, env["PATH"]) == (str(Path.cwd()), os.environ["PATH"])


@pytest.mark.parametrize(
    ("argv", "cwd", "reason"),
    [
        (["/no/such/program"], None, "/no/such/program is not there: install it"),
        (["no-such-program"], None, "no-such-program is not there"),
        ([os.devnull], None, "may not be used: see their permissions"),
        ([sys.executable], "/no/such/folder", "cannot start in /no/such/folder: there is no such folder"),
        (["{script}"], None, "names an interpreter that is not there: see its first line"),
        (["{binary}"], None, "no program that this machine can run: correct the argv"),
        ([sys.executable, "nul\0"], None, "cannot be started: embedded null"),
    ],
)
def test_a_kernel_that_cannot_start_says_why(argv: list[str], cwd: str | None, reason: str, tmp_path: Path) -> None:
    """The error names what is missing and what to do."""
    programs = {"{script}": b"#!/no/such/interpreter\n", "{binary}": b"\x7fELF nonsense"}
    for name, content in programs.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o755)
    argv = [str(tmp_path / part) if part in programs else part for part in argv]
    kernel = provisioner(*argv)
    with pytest.raises(KernelStartError, match=reason):
        launch(kernel, cwd=cwd)
    assert not kernel.has_process
    do(kernel.cleanup)


def test_a_removed_working_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who starts a kernel in a folder that is gone is told so; a folder that is named is used."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    kernel = provisioner()
    with pytest.raises(KernelStartError, match="has been removed"):
        launch(kernel)
    launch(kernel, cwd=tmp_path)
    end(kernel)


def test_a_kernel_is_told_of_its_owner_and_not_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own owner's variables are ours; a kernel of ours gets our process and, started cold, the pipe of our end."""
    monkeypatch.setenv("JPY_PARENT_PID", "12")
    monkeypatch.setenv("COBNUT_OWNER_FD", "3:4")
    _, env, _ = shown()
    assert env["JPY_PARENT_PID"] == str(os.getpid())
    assert "COBNUT_OWNER_FD" not in env
    argv, env, _ = shown("like cobnut_kernel")
    assert argv == ["like cobnut_kernel"]
    number, _, inode = env["COBNUT_OWNER_FD"].partition(":")
    pipe = OwnerPipe.shared()
    assert (int(number), int(inode)) == (pipe.reading_end, os.fstat(pipe.reading_end).st_ino)
    child = os.fork()
    if not child:
        os._exit(0 if OwnerPipe._of_this_process is None else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_owners_pipe_ends_with_him() -> None:
    """A kernel whose wrapper hides its owner's process sees the end of the pipe."""
    read = "import os; fd = int(os.environ['COBNUT_OWNER_FD'].split(':')[0])"
    script = f"{read}; print('up', flush=True); os.read(fd, 1); print('end', flush=True)"
    kernel = provisioner(sys.executable, "-c", script, "like cobnut_kernel")
    launch(kernel)
    until(lambda: "up" in kernel.output_tail())

    async def end_of_owner() -> None:
        OwnerPipe.shared().close()
        assert await kernel.wait() == 0

    Portal.shared()._at_end.clear()  # it is closed only once
    Portal.shared().at_end(Guard.shared().close)
    do(end_of_owner)
    assert kernel.output_tail() == "up\nend\n"
    end(kernel)


def test_an_independent_kernel_outlives_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Path) -> None:
    """It is not guarded, has no pipe to us, no variable of ours, and its files where they stay."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(runtime / "jupyter"))
    monkeypatch.setenv("JPY_PARENT_PID", "12")
    told = tmp_path / "told"
    show = "import json, os, sys; print('nobody reads it', flush=True)"
    show += f"\nopen({str(told)!r}, 'w').write(json.dumps([dict(os.environ), os.readlink('/proc/self/fd/1')]))"
    wait = "import signal; signal.pause()"
    kernel = provisioner(sys.executable, "-c", f"{show}\n{wait}", "like cobnut_kernel", "{connection_file}")
    info = launch(kernel, independent=True)
    until(told.exists)
    until(told.read_text)
    env, stdout = json.loads(told.read_text())
    assert not {"JPY_PARENT_PID", "COBNUT_OWNER_FD"} & env.keys()
    assert stdout == os.devnull
    assert kernel.connection_file == runtime / "jupyter" / "kernel-id.json"
    assert Path(info["ip"]).parent == runtime / "jupyter"
    pid = kernel.pid
    assert pid is not None

    async def let_go() -> None:
        kernel.let_go()

    do(let_go)
    Portal.shared().stop()
    assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    assert kernel.connection_file.exists()
    kernel.connection_file.unlink()
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


# ── what its manager's user wishes ──────────────────────────────────────────────────────────────────────────────────


class Wanting(LoggingConfigurable):
    """A manager with settings about the connection."""

    transport = AnyTrait()
    ip = AnyTrait()
    shell_port = AnyTrait()
    hb_port = AnyTrait()
    session = AnyTrait()
    connection_file = AnyTrait()
    cache_ports = AnyTrait(True)


def wanting(*argv: str, **wishes: Any) -> LocalProvisioner:
    """Make the provisioner of a manager with wishes."""
    kernel_spec = KernelSpec(argv=list(argv or IPC), name="k", language="python")
    return LocalProvisioner(kernel_id="id", kernel_spec=kernel_spec, parent=Wanting(**wishes))


def free_port() -> int:
    """Find a port that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_managers_settings_are_honoured(tmp_path: Path) -> None:
    """Ports, address, key and file are those that were set; what was left out is chosen."""
    tmp_path.chmod(0o755)
    shell, hb = free_port(), free_port()
    file = tmp_path / "new" / "my.json"
    session = SimpleNamespace(key=b"my key")
    kernel = wanting(ip="*", shell_port=shell, hb_port=hb, session=session, connection_file=str(file))
    info = launch(kernel)
    assert (info["transport"], info["ip"], info["shell_port"], info["hb_port"]) == ("tcp", "0.0.0.0", shell, hb)
    assert (info["key"], kernel.connection_file) == (b"my key", file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text())["shell_port"] == shell
    assert len({info[name] for name in info if name.endswith("_port")} - {0}) == 5
    end(kernel)
    assert list(file.parent.iterdir()) == []


def test_the_paths_of_sockets_can_be_chosen(tmp_path: Path) -> None:
    """With ipc the address is the beginning of the paths, and a port the number at the end of one."""
    kernel = wanting(transport="ipc", ip=f"{tmp_path}/x", shell_port=2)
    info = prepare(kernel) and kernel.connection_info
    assert [info[f"{name}_port"] for name in ("shell", "iopub", "stdin", "control", "hb")] == [2, 1, 3, 4, 5]
    assert info["ip"] == f"{tmp_path}/x"
    do(kernel.cleanup)


def test_a_restart_does_not_take_what_came_of_it_for_wishes() -> None:
    """A manager that shows the connection it got may still be given another one; chosen ports stay."""
    shell = free_port()
    kernel = wanting(transport="tcp", shell_port=shell)
    before = dict(launch(kernel))
    manager = kernel.parent
    assert isinstance(manager, Wanting)
    manager.hb_port = before["hb_port"]
    end(kernel)
    assert launch(kernel) == before
    end(kernel)
    manager.hb_port = 0
    kernel.connection_info = {}
    anew = launch(kernel)
    assert anew["shell_port"] == shell
    assert anew["hb_port"] != before["hb_port"]
    end(kernel)


@pytest.mark.parametrize(
    ("wishes", "reason"),
    [
        ({"ip": "192.0.2.1"}, "only be launched on a local interface, and '192.0.2.1' is no address of this machine"),
        ({"ip": "no address"}, "only be launched on a local interface"),
        ({"transport": "tcp", "shell_port": -1}, "There is no port -1 for the kernel on 127.0.0.1"),
        ({"transport": "ipc", "ip": "/" + "x" * 110}, "too long for a socket"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(wishes: dict[str, Any], reason: str) -> None:
    """An address of another machine, a port that is none, a path that is too long: the error says so."""
    kernel = wanting(**wishes)
    with pytest.raises(KernelStartError, match=reason):
        prepare(kernel)
    assert list(OwnerDirectory.shared().path.iterdir()) == [OwnerDirectory.shared().path / "owner.json"]
    assert not ports.promised


def test_a_chosen_port_that_is_in_use_is_named() -> None:
    """Nobody else's port is taken, and no other is chosen in its place."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(KernelStartError, match=f"The port {number} of 127.0.0.1 is in use: choose another"):
            prepare(wanting(shell_port=number))
    assert not ports.promised


def test_a_kernelspec_can_ask_for_a_transport() -> None:
    """`metadata.cobnut.transport` says what nothing else does; the manager's and the provisioner's setting go first."""
    asks = {"metadata": {"cobnut": {"transport": "ipc"}}}
    for expected, kernel in {
        "ipc": provisioner("R", language="R", **asks),
        "tcp": provisioner("R", language="R", transport="tcp", **asks),
    }.items():
        prepare(kernel)
        assert kernel.connection_info["transport"] == expected
        do(kernel.cleanup)


# ── ports, and files, that somebody else has ────────────────────────────────────────────────────────────────────────

BIND = """
import json, signal, socket, sys
info = json.load(open(sys.argv[1]))
bound = []
for name in ("shell", "iopub", "stdin", "control", "hb"):
    made = socket.socket()
    {reuse}made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((info["ip"], info[name + "_port"]))
    made.listen()
    bound.append(made)
print("up", flush=True)
signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ports are held on Linux only")
def test_a_promised_port_is_nobody_elses() -> None:
    """The ports are bound until the end, through a restart; the kernel can listen on them, others are refused."""
    kernel = provisioner(sys.executable, "-c", BIND.format(reuse=""), "{connection_file}", transport="tcp")
    info = prepare(kernel)
    number = kernel.connection_info["shell_port"]
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", number))

    async def begin() -> None:
        await kernel.launch_kernel(info.pop("cmd"), **info)

    do(begin)
    until(lambda: "up" in kernel.output_tail(), kernel.output_tail())
    socket.create_connection(("127.0.0.1", number)).close()

    async def kill() -> None:
        await kernel.kill(restart=True)
        await kernel.wait()
        await kernel.cleanup(restart=True)

    do(kill)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", number))
    launch(kernel)
    until(lambda: "up" in kernel.output_tail(), kernel.output_tail())
    end(kernel)
    with socket.create_server(("127.0.0.1", number)):
        pass


def test_ports_are_given_back_at_the_end_of_the_portal() -> None:
    """Those of a kernel that nobody has cleaned up after too."""
    kernel = provisioner("R", language="R")
    prepare(kernel)
    assert len(ports.promised) == 5
    Portal.shared().stop()
    assert not ports.promised
    assert kernel.connection_info["shell_port"]


def test_a_kernel_that_lost_a_port_is_started_again_on_others() -> None:
    """Not more than three times, and with other ports each time; one that cannot share an address gets its own."""
    kernel = provisioner(sys.executable, "-c", BIND.format(reuse="0 and "), "{connection_file}", transport="tcp")
    first = launch(kernel)
    if ports.HOLDS:  # this kernel cannot bind what we hold
        do(kernel.wait)
        assert "already in use" in kernel.stderr_tail()
        second = do(kernel.launch_again)
        assert second is not None
        assert second["key"] != b""
        until(lambda: "up" in kernel.output_tail(), kernel.output_tail())
        socket.create_connection(("127.0.0.1", second["shell_port"])).close()
        assert {second[name] for name in second if name.endswith("_port")} != {
            first[name] for name in first if name.endswith("_port")
        }
        assert do(kernel.launch_again) is None  # it runs
    end(kernel)
    assert not ports.promised

    unlucky = provisioner(sys.executable, "-c", "raise SystemExit('Address already in use')", transport="tcp")
    launch(unlucky)
    for _ in range(local.RETRIES):
        do(unlucky.wait)
        assert do(unlucky.launch_again) is not None
    do(unlucky.wait)
    assert do(unlucky.launch_again) is None
    end(unlucky)


def test_other_deaths_are_final() -> None:
    """A kernel that ends for another reason, or is not reached by ports, is not started again."""
    other = provisioner(sys.executable, "-c", "raise SystemExit('broken')", transport="tcp")
    on_sockets = provisioner(sys.executable, "-c", "raise SystemExit('Address already in use')", transport="ipc")
    for kernel in (other, on_sockets):
        assert do(kernel.launch_again) is None
        launch(kernel)
        do(kernel.wait)
        assert do(kernel.launch_again) is None
        end(kernel)


def test_a_connection_file_that_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk the start fails with what to do, and leaves no file and no port; later it works again."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    kernel = provisioner(transport="tcp")
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_connection_file", full)
        with pytest.raises(
            KernelStartError, match=r"kernel-id.json cannot be written: No space left on device: free some"
        ):
            prepare(kernel)
    assert not ports.promised
    Portal.shared().stop()
    kernel = provisioner(transport="tcp")
    with monkeypatch.context() as patch:
        patch.setattr(OwnerDirectory, "_make", full)
        with pytest.raises(KernelStartError, match="No space left on device"):
            prepare(kernel)
    launch(kernel)
    end(kernel)


def test_a_runtime_folder_that_has_vanished_is_made_again() -> None:
    """A logout may remove it: the next start makes it anew, and so does a restart."""
    kernel = provisioner()
    before = dict(launch(kernel))
    shutil.rmtree(OwnerDirectory.shared().path)

    async def kill() -> None:
        await kernel.kill(restart=True)
        await kernel.wait()
        await kernel.cleanup(restart=True)

    do(kill)
    assert launch(kernel) == before
    assert kernel.connection_file is not None
    assert kernel.connection_file.exists()
    end(kernel)


# ── while it runs ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_it_says_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    """Stdout and stderr are there to be asked for, and on no screen."""
    kernel = provisioner(sys.executable, "-c", "import sys; print('a'); print('b', file=sys.stderr)")
    launch(kernel)
    do(kernel.wait)
    assert sorted(kernel.output_tail()) == ["\n", "\n", "a", "b"]
    assert kernel.stderr_tail() == "b\n"
    assert capfd.readouterr() == ("", "")
    end(kernel)


def test_it_is_known_whether_it_runs() -> None:
    """`poll`, `wait` and `has_process` say what the process does, before, while and after."""
    kernel = provisioner()
    assert (kernel.has_process, kernel.pid, kernel.pgid, do(kernel.poll), do(kernel.wait)) == (
        False,
        None,
        None,
        0,
        None,
    )
    assert kernel.output_tail() == kernel.stderr_tail() == ""
    launch(kernel)
    assert (kernel.has_process, do(kernel.poll)) == (True, None)
    assert kernel.pid == kernel.pgid
    assert end(kernel) == -signal.SIGKILL
    assert (kernel.has_process, do(kernel.poll)) == (False, -9)
    assert kernel.pid is not None
    assert not psutil.pid_exists(kernel.pid)
    do(kernel.kill)
    do(kernel.terminate)


def test_it_is_told_to_end_and_which_process_it_is() -> None:
    """SIGTERM reaches it; the information for other processes is JSON and names process, start and boot."""
    kernel = provisioner()
    launch(kernel)
    told = json.loads(json.dumps(do(kernel.get_provisioner_info)))
    assert told["process"]["pid"] == kernel.pid
    assert {"start_time", "boot_id"} <= set(told["process"])
    assert told["connection_info"]["key"].encode() == kernel.connection_info["key"]
    do(kernel.terminate)
    assert do(kernel.wait) == -signal.SIGTERM
    end(kernel)


def test_paths_are_resolved_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that the kernel names is looked for from where it was started."""
    monkeypatch.setenv("HOME", "/home/me")
    kernel = provisioner()
    launch(kernel, cwd=tmp_path)
    end(kernel)
    assert kernel.resolve_path("a/../b") == str(tmp_path / "b")
    assert kernel.resolve_path("~/b") == "/home/me/b"
    assert kernel.resolve_path("/b") == "/b"


def test_its_sockets_and_its_file_go_with_it(runtime: Path) -> None:
    """What a killed kernel could not remove itself is removed for it; the guard forgets it."""
    script = "import socket\nfor n in range(1, 6): socket.socket(socket.AF_UNIX).bind(f'{argv}-{n}')\n"
    kernel = provisioner(
        sys.executable,
        "-c",
        "import json, sys; argv = json.load(open(sys.argv[2]))['ip']\n" + script + SLEEP,
        "ipykernel",
        "{connection_file}",
    )
    launch(kernel)
    until(lambda: "up" in kernel.output_tail(), kernel.output_tail())
    folder = OwnerDirectory.shared().path
    assert len(list(folder.iterdir())) == 7
    assert len(Guard.shared()._entries) == 1
    end(kernel)
    assert [path.name for path in folder.iterdir()] == ["owner.json"]
    assert Guard.shared()._entries == {}
