"""What a process has one of: made once, ended with the portal, let go of by forked children."""

from __future__ import annotations

import os
import signal
from typing import ClassVar

import pytest
from tests.kernel.launches import on_portal

from cobnut_kernel.portal import Portal
from cobnut_kernel.provisioning.per_process import PerProcess

pytestmark = pytest.mark.usefixtures("runtime")


class Noted(PerProcess):
    """One that notes its end."""

    ended: ClassVar[list[str]] = []

    def disown(self) -> None:
        """End the process as the test expects it."""
        os._exit(7)

    def _release(self) -> None:
        self.ended.append(type(self).__name__)


class Later(Noted):
    """One of another kind, which has the other one made before it."""

    def __init__(self) -> None:
        Noted.shared()

    def disown(self) -> None:
        """Leave that to the other one."""


def test_there_is_one_until_the_portal_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind has its own, and the last one made ends first; then there is another one."""
    monkeypatch.setattr(Noted, "ended", [])
    later, noted = on_portal(Later.shared), on_portal(Noted.shared)
    assert (type(later), type(noted)) == (Later, Noted)
    assert on_portal(Later.shared) is later
    assert on_portal(Noted.shared) is noted
    Portal.shared().stop()
    assert Noted.ended == ["Later", "Noted"]
    assert on_portal(Noted.shared) is not noted
    Portal.shared().stop()


def test_a_forked_child_lets_go_of_it() -> None:
    """It is told in the child, and goes on in the parent."""
    noted = on_portal(Noted.shared)
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGKILL)  # it was not told
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert on_portal(Noted.shared) is noted
    Portal.shared().stop()
