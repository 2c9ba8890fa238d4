"""Which cell the running code belongs to: its task's, its thread's, and where nobody knows, the latest one.

Laws of the file:

* What a cell starts belongs to it, also after its end: tasks by their context, threads by what started them, work of
  an executor by who submitted it.
* To ask costs one look at a context variable; threads pay when they start, never when they print.
"""

from __future__ import annotations

import _thread
import threading
from contextlib import contextmanager
from contextvars import Context, ContextVar, Token
from dataclasses import replace
from functools import partial, wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from cobnut_kernel.protocol.codec import EMPTY
from cobnut_kernel.protocol.json import dumps
from cobnut_kernel.protocol.messages import Header, Message, MessageType
from cobnut_kernel.runtime.imports import without_user_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from cobnut_kernel.runtime.job import Job

LATEST = dumps({"routing": "latest"})
"""The metadata of output whose cell is a guess: the one begun last."""

_THREAD_STARTERS = (
    (_thread, "start_new_thread"),
    (_thread, "start_joinable_thread"),  # from Python 3.13 on
    (threading, "_start_new_thread"),
    (threading, "_start_joinable_thread"),
)


class CurrentJob:
    """The job that the running code belongs to.

    Tasks inherit it from the code that made them, threads too while `ThreadRouting` lasts. What has none, a thread
    of C code say, belongs to the latest cell: the one begun last of those that run, or else the one begun last.
    """

    def __init__(self) -> None:
        self.here: ContextVar[Job | None] = ContextVar("cobnut_job", default=None)
        self.latest: Job | None = None
        self.thread_metadata: bytes = LATEST
        self._running: dict[Job, None] = {}
        self._shown: Job | None = None

    def begin(self, job: Job) -> None:
        """Say that the running context works for this job from now on."""
        self.here.set(job)
        if job.message.msg_type == MessageType.EXECUTE_REQUEST:
            self._running[job] = None
            self.latest = job
            if not job.message.content.get("silent"):
                self._shown = job

    def end(self, job: Job) -> None:
        """Say that a cell has ended; what it has started still belongs to it."""
        if job in self._running:
            del self._running[job]
            running = list(self._running)
            self.latest = running[-1] if running else self._shown or self.latest

    @contextmanager
    def working_for(self, job: Job | None) -> Generator[None]:
        """Let the running context work for a job while this lasts."""
        token = self.here.set(job)
        try:
            yield
        finally:
            self.here.reset(token)

    def get(self) -> Job | None:
        """Return the job that the running code belongs to; None before the first."""
        return self.here.get() or self.latest

    def parent(self) -> bytes:
        """Return the header of that job's request, as JSON."""
        job = self.here.get() or self.latest
        return job.message.header_json if job is not None else EMPTY

    def of_unknown_thread(self) -> tuple[bytes, bytes]:
        """Return the parent and the metadata of output of a thread that nobody knows the cell of: a guess."""
        job = self.latest
        return (job.message.header_json, self.thread_metadata) if job is not None else (EMPTY, EMPTY)

    def of_processes(self) -> tuple[bytes, bytes]:
        """Return the parent and the metadata of what C code and child processes write.

        It is the one cell's that runs. With several, or none, it is a guess.
        """
        job = self.latest
        if job is None:
            return EMPTY, EMPTY
        return job.message.header_json, EMPTY if len(self._running) == 1 else LATEST

    def set_thread_parent(self, parent: Mapping[str, Any] | None) -> Token[Job | None]:
        """Let the output of the calling thread, or task, belong to another request, as in ipykernel.

        Args:
            parent: the request or its header, as `get_parent` gives it; None follows the latest cell.

        Returns:
            What `reset_thread_parent` takes.

        Raises:
            MalformedMessageError: the parent names no request.
        """
        return self.here.set(None if parent is None else self._job_of(parent))

    def reset_thread_parent(self, token: Token[Job | None]) -> None:
        """Undo a `set_thread_parent`, in the thread or task that it was called in.

        Raises:
            ValueError: the token is of another thread or task.
        """
        self.here.reset(token)

    def _job_of(self, parent: Mapping[str, Any]) -> Job | None:
        """Find the job of a request; one that is not at hand is stood for by a copy that names the request."""
        header = Header.from_dict(dict(parent.get("header") or parent))
        model = self.here.get() or self.latest
        for job in (model, *self._running, self._shown):
            if job is not None and job.message.msg_id == header.msg_id:
                return job
        if model is None:
            return None
        written = dumps(dict(parent.get("header") or parent))
        return replace(model, message=Message(header, None, {}, {}, header_json=written))


class ThreadRouting:
    """Gives each thread that starts, and the work of thread pools, the job of who asked for it, while this lasts.

    All ways to start a thread lead through `_thread`, so it is changed there, for all threads of the process; what
    somebody else has put there meanwhile, a debugger say, is left alone at the end.

    Args:
        thread_output: "cell" for that, or "latest" to leave threads to the latest cell, as ipykernel 7 does.
    """

    def __init__(self, current: CurrentJob, thread_output: str = "cell") -> None:
        self._current = current
        self._follows_latest: bool = thread_output == "latest"
        self._changed: list[tuple[Any, str, Any, Any]] = []

    def __enter__(self) -> Self:
        if self._follows_latest:
            self._current.thread_metadata = EMPTY  # it is no guess, but what was asked for
            return self
        for module, name in _THREAD_STARTERS:
            if hasattr(module, name):
                self._change(module, name, self._starter)
        with without_user_folder():
            executors = import_module("concurrent.futures.thread")
        self._change(executors.ThreadPoolExecutor, "submit", self._submitter)
        return self

    def __exit__(self, *_: object) -> None:
        self._current.thread_metadata = LATEST
        while self._changed:
            owner, name, original, ours = self._changed.pop()
            if getattr(owner, name) is ours:
                setattr(owner, name, original)

    def _change(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        original = getattr(owner, name)
        ours = make(original)
        self._changed.append((owner, name, original, ours))
        setattr(owner, name, ours)

    def _starter(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a `start_new_thread` that hands on the job; what it would refuse is left to it to refuse."""
        here = self._current.here

        @wraps(original)
        def start(function: Any, *args: Any, **kwargs: Any) -> Any:
            job = here.get()
            if job is None or not callable(function):
                return original(function, *args, **kwargs)

            # No frame of ours is the thread's first: a debugger looks for threading's there, to know the thread.
            context = Context()
            context.run(here.set, job)
            return original(partial(context.run, function), *args, **kwargs)

        return start

    def _submitter(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a `submit` whose work belongs to who submits it, whoever had the worker's thread started."""
        current = self._current

        @wraps(original)
        def submit(executor: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            job = current.here.get()

            def work() -> Any:
                with current.working_for(job):
                    return fn(*args, **kwargs)

            return original(executor, work)

        return submit
