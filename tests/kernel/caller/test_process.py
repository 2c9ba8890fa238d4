"""Callers and their process: its end, its children, other loops than the stock ones, and what is imported."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from textwrap import dedent

import pytest
from tests.kernel.test_layers import with_parts

BEGINNING = """
    import asyncio, os, sys, threading, time
    import anyio
    from cobnut_kernel.caller import Caller, Pending, PendingCancelled
"""


def run(code: str) -> str:
    """Run a script in which every warning is an error and nothing may be complained about; return what it prints."""
    script = dedent(BEGINNING) + dedent(code)
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout.strip()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_process_ends_although_callers_live(backend: str) -> None:
    """Idle ones, one that awaits, which may clean up, and one that blocks and is left alone."""
    printed = run(f"""
        caller = Caller("NewThread", backend={backend!r})
        entered = threading.Event()

        def block():
            entered.set()
            time.sleep(1000)

        async def work():
            awaiting.set()
            try:
                await anyio.sleep_forever()
            finally:
                print("cleaned")

        awaiting = threading.Event()
        caller.to_thread(int).wait_sync()
        caller.call_soon(work)
        caller.to_thread(block)
        entered.wait()
        awaiting.wait()
        print("end")
    """)
    assert printed.splitlines() == ["end", "cleaned"]


@pytest.mark.parametrize("run_", ["asyncio.run(main())", "anyio.run(main)", "anyio.run(main, backend='trio')"])
def test_a_script_ends_with_its_loop(run_: str) -> None:
    """A worker that blocks does not hold it up, unlike those of `asyncio.to_thread`."""
    printed = run(f"""
        entered = threading.Event()

        def block():
            entered.set()
            time.sleep(1000)

        async def main():
            Caller().to_thread(block)
            Caller().call_later(1000, print)
            Caller().queue_call(anyio.sleep_forever)
            await anyio.to_thread.run_sync(entered.wait)

        {run_}
        print(Caller.all_callers())
    """)
    assert printed == "[]"


def test_the_library_may_be_imported_while_a_thread_starts_with_it() -> None:
    """The next line of the documented example; two threads in one import would each get half of it."""
    printed = run("""
        my_worker = Caller("NewThread", backend="trio")
        import trio

        async def work():
            await trio.sleep(0)
            return 5

        print(my_worker.call_soon(work).wait_sync())
    """)
    assert printed == "5"


def test_an_exit_handler_may_still_call() -> None:
    """Those registered later run before the callers stop."""
    printed = run("""
        import atexit
        caller = Caller("NewThread", backend="asyncio")
        atexit.register(lambda: print(caller.call_soon(lambda: 5).wait_sync()))
    """)
    assert printed == "5"


def test_a_forked_child_has_no_callers() -> None:
    """What was pending is cancelled there, without callbacks; new callers can be made; the parent's go on."""
    printed = run("""
        caller = Caller("NewThread", backend="asyncio")
        caller.to_thread(int).wait_sync()
        pending = caller.call_soon(anyio.sleep_forever)
        queued = caller.queue_call(anyio.sleep_forever)
        pending.add_done_callback(lambda _: print("callback in", "parent" if os.getpid() == parent else "child"))
        parent = os.getpid()
        if (child := os.fork()) == 0:
            try:
                assert Caller.all_callers(running_only=False) == []
                assert caller.stopped
                try:
                    pending.wait_sync()
                except PendingCancelled:
                    print("cancelled", queued.done(), queued.cancelled(), flush=True)
                other = Caller("NewThread", backend="asyncio")
                print(other.to_thread(lambda: 5).wait_sync(), flush=True)
                other.stop()
                other.stopped.wait_sync()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        print(caller.call_soon(lambda: 7).wait_sync(), pending.done(), flush=True)
    """)
    assert printed.splitlines() == ["cancelled True True", "5", "7 False", "callback in parent"]


@pytest.mark.parametrize("where", ["task", "worker"])
def test_forking_in_a_call(where: str) -> None:
    """In the child of a task, or of a worker's function, nothing hangs and nothing is complained about."""
    printed = run(f"""
        def fork():
            if (child := os.fork()) == 0:
                print(Caller.all_callers(running_only=False), flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            return 3

        async def main():
            caller = Caller()
            print(await caller.{"call_soon" if where == "task" else "to_thread"}(fork))

        asyncio.run(main())
    """)
    assert printed.splitlines() == ["[]", "3"]


def test_multiprocessing_by_fork_works_beside_callers() -> None:
    """A pool of processes, started in a worker."""
    printed = run("""
        import multiprocessing

        def use_processes():
            with multiprocessing.get_context("fork").Pool(2) as pool:
                return pool.map(abs, [-1, -2])

        async def main():
            print(await Caller().to_thread(use_processes))

        asyncio.run(main())
    """)
    assert printed == "[1, 2]"


def test_the_kernels_loop_goes_on_after_a_task_was_interrupted() -> None:
    """Given as `loop_factory` it is that of the caller and its workers; an exit in one of their tasks ends nothing."""
    printed = run("""
        import logging
        from cobnut_kernel.runtime.loop import KernelLoop

        logging.disable()
        caller = Caller("NewThread", backend="asyncio", backend_options={"loop_factory": KernelLoop})

        async def leave(error):
            async def raise_it():
                raise error
            task = asyncio.create_task(raise_it())
            await asyncio.wait([task])
            task.exception()
            return type(asyncio.get_running_loop()).__name__

        for error in (KeyboardInterrupt(), SystemExit(3)):
            print(caller.call_soon(leave, error).wait_sync(), caller.to_thread(leave, error).wait_sync())
        print(caller.running, len(caller.children))
    """)
    assert printed.splitlines() == ["KernelLoop KernelLoop", "KernelLoop KernelLoop", "True 1"]


@pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is optional")
def test_uvloop_serves_callers() -> None:
    """Asked for as anyio does; calls, cancellations and the end of its loop work as on asyncio's own."""
    printed = run("""
        import warnings
        warnings.simplefilter("ignore")

        caller = Caller("NewThread", backend="asyncio", backend_options={"use_uvloop": True})
        print(caller.call_soon(lambda: type(asyncio.get_running_loop()).__module__).wait_sync())
        forever = caller.call_soon(asyncio.sleep, 1000)
        forever.cancel()
        forever.wait_sync(result=False)
        print(forever.cancelled(), caller.to_thread(abs, -3).wait_sync())

        async def main():
            Caller()
            return Caller(), Caller().call_soon(asyncio.sleep, 1000)

        guest, pending = anyio.run(main, backend_options={"use_uvloop": True})
        print(bool(guest.stopped), pending.cancelled(), pending.done())
    """)
    assert printed.splitlines() == ["uvloop", "True 3", "True True True"]


def test_eager_tasks_are_served() -> None:
    """Where the loop starts tasks at once, a call may be over before `call_soon` returns."""
    if sys.version_info < (3, 12):
        pytest.skip("asyncio has eager tasks since Python 3.12")
    printed = run("""
        async def main():
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
            call = Caller().call_soon(lambda: 5)
            print(call.done(), await call)
            late = Caller().call_soon(asyncio.sleep, 1000)
            late.cancel()
            await late.wait(result=False)
            print(late.cancelled())

        asyncio.run(main())
    """)
    assert printed.splitlines() == ["True 5", "True"]


def test_the_package_imports_neither_zmq_nor_trio_nor_anyio() -> None:
    """What is not needed to serve a loop that runs waits until it is."""
    script = "import sys, cobnut_kernel.caller; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    unwanted = {"zmq", "trio", "anyio", "IPython", "traitlets", "cobnut_kernel.caller.groups"}
    assert with_parts(set(modules), unwanted) == set()
