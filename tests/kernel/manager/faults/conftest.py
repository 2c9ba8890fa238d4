"""The fault matrix: whatever goes wrong, the caller is told what and what to do, and all is as it was before."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.kernel.manager.faces import FACES, Face
from tests.kernel.manager.faults.matrix import SLEEPER

from cobnut_kernel.kernelspec import KernelSpecManager, own_spec

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kernel.manager.conftest import Tiny


@pytest.fixture(params=FACES)
def face_class(request: pytest.FixtureRequest) -> type[Face]:
    """Each way to manage kernels in turn."""
    return FACES[request.param]


@pytest.fixture
def specs(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KernelSpecManager:
    """The kernels that are well; a test adds its own."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    well = {"sleeper": SLEEPER, "tiny": tiny.spec(), "own": own_spec()}
    return KernelSpecManager(extra_specs=well, kernel_dirs=[])
