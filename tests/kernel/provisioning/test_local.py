"""Local kernels: where they are reached, how they are started, what is left of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.kernel.leftovers import until

from cobnut_kernel.connection_files import OwnerDirectory, load_connection_file
from cobnut_kernel.errors import KernelStartError
from cobnut_kernel.kernelspec import KernelSpec
from cobnut_kernel.portal import Portal
from cobnut_kernel.provisioning import local
from cobnut_kernel.provisioning.guard import Guard
from cobnut_kernel.provisioning.local import LocalProvisioner

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
        assert all(Path(path).parent == OwnerDirectory.shared().path for path in info.ipc_paths())
    else:
        assert info.ip == "127.0.0.1"
    do(kernel.cleanup)


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
    ports = [info[name] for info in infos[:20] for name in info if name.endswith("_port")]
    assert len(set(ports)) == 100
    assert len({info["key"] for info in infos}) == 40
    assert len({info["ip"] for info in infos[20:]}) == 20
    for kernel in kernels:
        do(kernel.cleanup)
    assert not local._taken_ports


def test_promised_ports_are_given_to_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that a starting kernel has not bound yet is not chosen again, though the system offers it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        promised = probe.getsockname()[1]
    monkeypatch.setattr(local, "_taken_ports", set(range(65536)) - {promised})
    assert local._free_ports(1) == [promised]


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
    assert not local._taken_ports


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
    monkeypatch.setattr(local, "SOCKET_PATH_LIMIT", 20)
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
        (["{binary}"], None, "no program that this machine can run"),
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


def test_what_cannot_be_had_yet_is_refused() -> None:
    """A kernel that should outlive us is not started as one that does not."""
    with pytest.raises(KernelStartError, match="not supported yet"):
        prepare(provisioner(), independent=True)


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
