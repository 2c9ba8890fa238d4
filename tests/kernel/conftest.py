"""Kernel processes and clients for the tests that look at a kernel from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.kernel.wire import KernelProcess, WireClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(scope="session", autouse=True)
def _own_user_directories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the kernels away from the history, the start-up files and the state of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        yield


@pytest.fixture
def start_kernel() -> Iterator[Callable[..., KernelProcess]]:
    """Start kernels that only this test knows; the options are those of `KernelProcess`."""
    started: list[KernelProcess] = []

    def start(*arguments: Any, **options: Any) -> KernelProcess:
        started.append(KernelProcess(*arguments, **options))
        return started[-1]

    yield start
    for kernel in started:
        kernel.end()


@pytest.fixture(scope="module")
def shared_kernels() -> Iterator[list[KernelProcess]]:
    """The kernels of a file's tests, the last one in use."""
    kernels: list[KernelProcess] = []
    yield kernels
    for kernel in kernels:
        kernel.end()


@pytest.fixture
def kernel(shared_kernels: list[KernelProcess]) -> Iterator[KernelProcess]:
    """The kernel that the tests of a file share; one that ends or stays busy fails its test and is replaced."""
    if not shared_kernels or shared_kernels[-1].process.poll() is not None:
        shared_kernels.append(KernelProcess())
    kernel = shared_kernels[-1]
    yield kernel
    fault = "has ended the kernel" if kernel.process.poll() is not None else None
    if any(client.waits for client in kernel.clients):
        fault = fault or "has left the kernel busy"
        kernel.end()
    kernel.disconnect()
    assert fault is None, f"The test {fault}. {kernel.describe()}"


@pytest.fixture
def client(kernel: KernelProcess) -> WireClient:
    """A client of its own for each test."""
    return kernel.connect()
