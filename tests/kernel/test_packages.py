"""Tests that need a package of the system skip without it, and fail where it was said to be installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.kernel.packages import REQUIRED

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., dict[str, str]]

NEEDY = '''
"""Tests that need a program, one of them by its fixture, and one that needs an R package."""
import pytest
from tests.kernel.packages import require_program, require_r_package

@pytest.fixture
def ssh():
    return require_program("ssh", package="openssh-client")

def test_program():
    require_program("ssh", package="openssh-client")

def test_fixture(ssh):
    assert ssh.endswith("/ssh")

def test_library():
    require_r_package("IRkernel", package="r-cran-irkernel")

def test_nothing():
    pass
'''


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """The only folder on the path of the tests that are run."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


@pytest.fixture
def outcomes(tmp_path: Path, programs: Path) -> Run:
    """Run the needy tests in a process of their own, with packages that are said to be there."""
    file = tmp_path / "test_needy.py"
    file.write_text(NEEDY)

    def run(required: str | None = None) -> dict[str, str]:
        env = {**os.environ, "PATH": str(programs), "PYTHONPATH": str(Path(__file__).parents[2])}
        env.pop(REQUIRED, None)
        if required is not None:
            env[REQUIRED] = required
        command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(tmp_path)]
        command += ["-p", "no:cacheprovider", "-p", "no:xdist", "-vv", "-rs", str(file)]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
        words = [line.partition("::test_")[2].split()[:2] for line in done.stdout.splitlines() if "::test_" in line]
        states = dict(pair for pair in words if len(pair) == 2 and pair[1].isupper())
        return {**states, "code": str(done.returncode), "text": " ".join(done.stdout.split())}

    return run


def install(folder: Path, program: str, script: str) -> None:
    """Make a program that does as if it was the real one."""
    (folder / program).write_text(f"#!/bin/sh\n{script}\n")
    (folder / program).chmod(0o755)


@pytest.mark.parametrize("required", [None, "", "r-base", "openssh"])
def test_without_the_package_a_test_skips_and_names_it(outcomes: Run, required: str | None) -> None:
    """With nothing said, or others, it passes for neither good nor bad; a part of a name is not the name."""
    run = outcomes(required)
    assert [run[name] for name in ("program", "fixture", "library", "nothing")] == [*["SKIPPED"] * 3, "PASSED"]
    assert "There is no ssh: install the package openssh-client." in run["text"]
    assert "There is no R: install the package r-base-core." in run["text"]
    assert run["code"] == "0"


def test_a_package_that_is_said_to_be_installed_and_is_not_is_a_failure(outcomes: Run) -> None:
    """For a test that asks itself, and for one whose fixture asks; what was not promised still skips."""
    run = outcomes("openssh-server openssh-client")
    assert [run[name] for name in ("program", "fixture", "library", "nothing")] == [
        "FAILED",
        "ERROR",
        "SKIPPED",
        "PASSED",
    ]
    assert f"install the package openssh-client. {REQUIRED} says that it is installed." in run["text"]
    assert run["code"] == "1"


def test_an_r_that_lacks_its_package_is_a_failure_likewise(outcomes: Run, programs: Path) -> None:
    """R itself is not enough."""
    install(programs, "R", "exit 1")
    assert "R has no IRkernel: install the package r-cran-irkernel." in outcomes("r-base-core")["text"]
    run = outcomes("r-base-core r-cran-irkernel")
    assert (run["library"], run["program"], run["code"]) == ("FAILED", "SKIPPED", "1")


def test_with_the_package_a_test_runs(outcomes: Run, programs: Path) -> None:
    """Whatever was said."""
    install(programs, "R", "exit 0")
    install(programs, "ssh", "exit 0")
    for required in (None, "openssh-client r-base-core r-cran-irkernel"):
        run = outcomes(required)
        assert [run[name] for name in ("program", "fixture", "library", "nothing")] == ["PASSED"] * 4


def test_ci_says_of_each_package_that_the_tests_name(request: pytest.FixtureRequest) -> None:
    """`.ci/run` installs what they would skip for, so that nothing is left out where it may install."""
    root = request.config.rootpath
    script = root / ".ci" / "run"
    if not script.exists():
        pytest.skip("These tests are not run from a checkout.")
    said = script.read_text().partition("packages=(")[2].partition(")")[0].split()
    files = [file for file in (root / "tests").rglob("*.py") if file != Path(__file__)]
    named = {name for file in files for name in re.findall(r'package="([a-z0-9-]+)"', file.read_text())}
    assert named
    assert named <= set(said)
    assert f"export {REQUIRED}=" in script.read_text()
