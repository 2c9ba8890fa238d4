"""What some tests need from the system's package manager: found there, or the test is skipped and names the package.

Who has installed packages for the tests names them in `COBNUT_REQUIRED_PACKAGES`: with them a skip is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import NoReturn

import pytest

REQUIRED = "COBNUT_REQUIRED_PACKAGES"
"""The environment variable with the names of the packages that are there, separated by blanks."""

_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where daemons are, which a user's PATH leaves out."""


def require_program(program: str, *, package: str) -> str:
    """Return the path of a program of a package, or skip the test."""
    found = shutil.which(program, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_SYSTEM_FOLDERS)))
    return found or missing(f"There is no {program}", package=package)


def require_r_package(name: str, *, package: str) -> str:
    """Return the path of R where it has a package, or skip the test."""
    program = require_program("R", package="r-base-core")
    command = [program, "--no-save", "--no-restore", "--slave", "-e", f"quit(status = !requireNamespace('{name}'))"]
    asked = subprocess.run(command, capture_output=True, timeout=30, check=False)
    return program if asked.returncode == 0 else missing(f"R has no {name}", package=package)


def missing(what: str, *, package: str) -> NoReturn:
    """Skip the test, or fail it where the package was said to be there."""
    reason = f"{what}: install the package {package}."
    if package in os.environ.get(REQUIRED, "").split():
        pytest.fail(f"{reason} {REQUIRED} says that it is installed.", pytrace=False)
    pytest.skip(reason)
