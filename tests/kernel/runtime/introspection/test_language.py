"""What a front end asks about code, answered by objects of the helper's own, in threads beside the cells."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import warnings
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any
from weakref import ref

import pytest
from IPython.core.completer import IPCompleter, provisionalcompleter
from IPython.core.history import HistoryManager
from IPython.core.interactiveshell import InteractiveShell
from tests.kernel.leftovers import until
from traitlets.config import Config

from cobnut_kernel.protocol.messages import MessageType
from cobnut_kernel.runtime.imports import user_folder_last, without_user_folder
from cobnut_kernel.runtime.interruption import frames
from cobnut_kernel.runtime.introspection.aside import Aside, is_aside
from cobnut_kernel.runtime.introspection.expressions import Origin, read
from cobnut_kernel.runtime.introspection.language import Language
from cobnut_kernel.runtime.introspection.matches import static
from cobnut_kernel.runtime.shells.namespace import NamespaceKind, make_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    from tests.kernel.wire import WireClient

TYPES = "_jupyter_types_experimental"
PLENTY = 20.0
"""Seconds that jedi may take where its answer is what is tested, on a machine that is busy with other things."""


@pytest.fixture(scope="module")
def shell() -> InteractiveShell:
    """IPython's shell with a few names; its history is in memory."""
    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    exec(_NAMES, shell.user_ns)
    return shell


_NAMES = """
import os, sys, textwrap, types
text = "abc"
number = 3
table = {"first key": 1, "second": {"deep": 2}}
class Thing:
    'A thing.'
    kept = 1
    def method(self, alpha, beta=2): 'Do it.'
    @property
    def value(self): return 1 / 0
    @classmethod
    def made(cls, size): pass
    def _hidden(self): pass
thing = Thing()
thing.inst = 5
def function(alpha, beta=1, *, gamma=3): 'Say alpha.'
"""


@pytest.fixture
def language() -> Iterator[Language]:
    """The answers, given as much time as they need."""
    language = Language(deadline=PLENTY, jedi_after=None)
    yield language
    language.close()


@pytest.fixture
def hasty() -> Iterator[Language]:
    """The answers, given little time."""
    language = Language(deadline=0.2, aside=Aside(threads=3, patience=0.1))
    yield language
    language.close()


def completed(language: Language, shell: InteractiveShell, code: str, cursor: int | None = None) -> list[str]:
    """Return what a front end would put in the place of the whole code."""
    reply = language.complete(shell, {"code": code, "cursor_pos": cursor})
    assert reply["status"] == "ok"
    assert [match["text"] for match in reply["metadata"][TYPES]] == reply["matches"]
    assert len(set(reply["matches"])) == len(reply["matches"])
    return [code[: reply["cursor_start"]] + text + code[reply["cursor_end"] :] for text in reply["matches"]]


def types(language: Language, shell: InteractiveShell, code: str) -> dict[str, tuple[str, str]]:
    """Return type and signature of each completion."""
    reply = language.complete(shell, {"code": code, "cursor_pos": len(code)})
    return {match["text"]: (match["type"], match["signature"]) for match in reply["metadata"][TYPES]}


# ── completion ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("os.pathc", "os.pathconf"),
        ("import os; os.pathc", "import os; os.pathconf"),
        ("import os.path as p\np.isd", "import os.path as p\np.isdir"),
        ("from os import path as p\np.isd", "from os import path as p\np.isdir"),
        ("from os import pathc", "from os import pathconf"),
        ("prin", "print"),
        ("numb", "number"),
        ("defined_here = 1\ndefined_h", "defined_here = 1\ndefined_here"),
        ("defined_here = 'a'\ndefined_here.upp", "defined_here = 'a'\ndefined_here.upper"),
        ("whi", "while"),
        ("%tim", "%timeit"),
        ("%%tim", "%%timeit"),
        ("%timeit os.pathc", "%timeit os.pathconf"),
        ("table['fi", "table['first key"),
        ("table['second']['de", "table['second']['deep"),
        ("table['second'].ke", "table['second'].keys"),
        ("thing.meth", "thing.method"),
        ("thing.ins", "thing.inst"),
        ("thing._hid", "thing._hidden"),
        ("text.upp", "text.upper"),
        ("'abc'.upp", "'abc'.upper"),
        ("[1].app", "[1].append"),
        ("function(al", "function(alpha="),
        ("function(1, gam", "function(1, gamma="),
        ("thing.method(al", "thing.method(alpha="),
        ("def mine(delta=1): pass\nmine(del", "def mine(delta=1): pass\nmine(delta="),
        ("print(prin", "print(print"),
        ("\\alp", "\\alpha"),
        ("\\alpha", "α"),
        ("\\GREEK SMALL LETTER ALP", "\\GREEK SMALL LETTER ALPHA"),
        ("import subproc", "import subprocess"),
        ("import xml.dom.minid", "import xml.dom.minidom"),
        ("from xml.dom import minid", "from xml.dom import minidom"),
        ("open('/et", "open('/etc/"),
        ("if True:\n    os.pathc", "if True:\n    os.pathconf"),
        ("print(os.pathc", "print(os.pathconf"),
        ("!ls\nos.pathc", "!ls\nos.pathconf"),
        ("f'{os.pathc", "f'{os.pathconf"),
    ],
)
def test_completions(language: Language, shell: InteractiveShell, code: str, expected: str) -> None:
    """Names, attributes, items, arguments, magics, modules, paths and characters are completed."""
    assert expected in completed(language, shell, code)


@pytest.mark.parametrize(
    "code",
    [
        "os.pa",
        "os.",
        "text.",
        "text._",
        "thing.",
        "Thing.",
        "thing.inst.bi",
        "prin",
        "number.",
        "types.",
        "sys.std",
        "table['",
        "import os; os.pa",
        "function.",
        "thing.method.",
        "import js",
        "%ti",
        "function(al",
    ],
)
def test_the_names_are_those_that_ipython_finds(language: Language, shell: InteractiveShell, code: str) -> None:
    """What is looked up in live objects is what jedi and IPython would have found."""
    own = IPCompleter(shell=shell, namespace=shell.user_ns, global_namespace=shell.user_ns, parent=shell)
    own.custom_completers = shell.Completer.custom_completers
    with provisionalcompleter():
        theirs = {code[: match.start] + match.text for match in own.completions(code, len(code))}
    assert set(completed(language, shell, code)) == theirs


def test_types_and_signatures(language: Language, shell: InteractiveShell) -> None:
    """Each completion says what it is, and functions how they are called."""
    found = types(language, shell, "thing.")
    assert found["method"] == ("function", "(alpha, beta=2)")
    assert found["made"] == ("function", "(size)")
    assert found["value"] == ("property", "")
    assert found["inst"] == ("instance", "")
    assert types(language, shell, "os.path")["path"] == ("module", "")
    assert types(language, shell, "Thin")["Thing"] == ("class", "")
    assert types(language, shell, "whi")["while"] == ("keyword", "")
    assert types(language, shell, "function(al")["alpha="] == ("param", "")
    assert types(language, shell, "%timei")["%timeit"] == ("magic", "")
    assert types(language, shell, "Thing.metho")["method"] == ("function", "(self, alpha, beta=2)")
    assert types(language, shell, "made = ''\nmade.upp")["upper"][0] == "function"


def test_private_names_come_only_when_asked_for(language: Language, shell: InteractiveShell) -> None:
    """Behind a dot nothing private is shown; an underscore shows it."""
    assert not [code for code in completed(language, shell, "thing.") if "._" in code]
    assert "thing.__class__" in completed(language, shell, "thing._")


@pytest.mark.parametrize(
    ("code", "cursor", "matches_in", "span"),
    [
        ("os.pathc", None, "pathconf", (3, 8)),
        ("os.pathc + 1", 8, "pathconf", (3, 8)),
        ("prin", 0, "print", (0, 0)),
        ("'🙂é'; os.pathc", None, "pathconf", (9, 14)),
        ("os.pathc", 99, "pathconf", (3, 8)),
        ("os.pathc", -5, "print", (0, 0)),
        ("", None, "print", (0, 0)),
        ("a = 1\nos.pathc\nb", 14, "pathconf", (9, 14)),
    ],
)
def test_the_cursor(
    language: Language, shell: InteractiveShell, code: str, cursor: int | None, matches_in: str, span: tuple[int, int]
) -> None:
    """It counts code points; none means the end, 0 the beginning, and one outside is moved in."""
    reply = language.complete(shell, {"code": code} if cursor is None else {"code": code, "cursor_pos": cursor})
    assert matches_in in reply["matches"]
    assert (reply["cursor_start"], reply["cursor_end"]) == span


def test_nothing_to_complete(language: Language, shell: InteractiveShell) -> None:
    """A name that nobody knows has no completions, at the cursor."""
    reply = language.complete(shell, {"code": "no_such_name_anywhere"})
    assert reply == {"status": "ok", "matches": [], "cursor_start": 21, "cursor_end": 21, "metadata": {TYPES: []}}


@pytest.mark.parametrize("content", [{}, {"code": 3}, {"code": "os.", "cursor_pos": "2"}])
def test_a_request_without_sense_says_what_is_missing(
    language: Language, shell: InteractiveShell, content: dict[str, Any]
) -> None:
    """Code that is no text and a cursor that is no number are errors with their names."""
    with pytest.raises(TypeError, match=r"code|cursor_pos"):
        language.complete(shell, content)
    with pytest.raises(TypeError, match=r"code|cursor_pos"):
        language.inspect(shell, content)


def test_the_users_settings_hold(language: Language, shell: InteractiveShell) -> None:
    """What the shell's completer is told, before or between requests, ours obeys: settings, matchers and hooks."""
    own = shell.Completer
    assert "thing.__class__" not in completed(language, shell, "thing.")
    own.omit__names = 0
    own.disable_matchers = ["IPCompleter.magic_matcher"]
    own.custom_matchers.append(lambda text: ["mine!"] if text == "mi" else [])
    shell.set_hook("complete_command", lambda _shell, _event: ["hooked"], str_key="hookme")
    try:
        assert "thing.__class__" in completed(language, shell, "thing.")
        assert completed(language, shell, "%timei") == []
        assert "mine!" in completed(language, shell, "mi")
        assert "hookme hooked" in completed(language, shell, "hookme ho")
        own.use_jedi = False
        assert "os.pathconf" in completed(language, shell, "os.pathc")
        assert "x = ''\nx.upper" in completed(language, shell, "x = ''\nx.upp")
    finally:
        own.omit__names, own.disable_matchers, own.use_jedi = 2, [], True
        own.custom_matchers.clear()


def test_an_outer_namespace_is_read_through_to(language: Language, shell: InteractiveShell) -> None:
    """Where a shell has names of its own and those of another, both are completed and described, its own first."""
    module = make_namespace(NamespaceKind.PRIVATE, shell.user_module)
    module.__dict__["number"] = "mine"
    config = Config({"HistoryManager": {"enabled": False}})
    inner = InteractiveShell(config=config, user_module=module, user_ns=module.__dict__)
    assert "number.upper" in completed(language, inner, "number.upp")
    assert "thing.method" in completed(language, inner, "thing.meth")
    assert "thing" in completed(language, inner, "thin")
    assert "A thing." in language.inspect(inner, {"code": "thing"})["data"]["text/plain"]


def test_a_namespace_that_changes_meanwhile(language: Language, shell: InteractiveShell) -> None:
    """Completions are found while a cell defines names all the time."""
    space, stop = shell.user_ns, threading.Event()

    def define() -> None:
        count = 0
        while not stop.is_set():
            count += 1
            space[f"defined_{count % 5000}"] = count
            if count % 5000 == 0:
                for number in range(5000):
                    space.pop(f"defined_{number}", None)

    thread = threading.Thread(target=define)
    thread.start()
    try:
        for _ in range(30):
            assert "thing" in completed(language, shell, "thin")
        for _ in range(3):
            assert "x = ''\nx.upper" in completed(language, shell, "x = ''\nx.upp")
    finally:
        stop.set()
        thread.join()
        for name in [name for name in space if name.startswith("defined_")]:
            del space[name]


# ── the user's code ─────────────────────────────────────────────────────────────────────────────────────────────────

_HOSTILE = {
    "sleeps": "time.sleep(1000)",
    "loops": "\n        while True: pass",
    "exits": "raise SystemExit",
    "interrupts": "raise KeyboardInterrupt",
    "fails": "1 / 0",
}


@pytest.mark.parametrize("way", _HOSTILE)
def test_live_objects_that_misbehave(hasty: Language, shell: InteractiveShell, way: str) -> None:
    """Objects whose methods hang or raise are completed from their classes, and the next request as ever."""
    source = f"""
import time
class Hostile:
    def known(self): pass
    def __dir__(self): {_HOSTILE[way]}
    def __getattr__(self, name): {_HOSTILE[way]}
    def __repr__(self): {_HOSTILE[way]}
    def __len__(self): {_HOSTILE[way]}
"""
    exec(source, shell.user_ns)
    shell.user_ns["hostile"] = shell.user_ns["Hostile"]()
    try:
        for _ in range(2):
            assert "hostile.known" in completed(hasty, shell, "hostile.kno")
            assert "Hostile" in hasty.inspect(shell, {"code": "hostile"})["data"]["text/plain"]
            assert "thing.method" in completed(hasty, shell, "thing.meth")
    finally:
        del shell.user_ns["hostile"], shell.user_ns["Hostile"]


def test_threads_that_hang_are_few(shell: InteractiveShell) -> None:
    """Beyond the limit nothing that may hang is begun; answers go on, and threads come back when they are free."""
    release = threading.Event()
    aside = Aside(threads=2, patience=1000)
    language = Language(deadline=0.05, aside=aside)

    class Blocked:
        known = 1

        def __dir__(self) -> list[str]:
            release.wait()
            return []

    shell.user_ns["blocked"] = Blocked()
    try:
        for _ in range(5):
            assert "blocked.known" in completed(language, shell, "blocked.kno")
        assert len(aside.threads) == 2
        assert "thing.method" in completed(language, shell, "thing.meth")
        release.set()
        deadline = time.monotonic() + PLENTY
        while language.is_complete(shell, {"code": "1"}) == {"status": "unknown"}:
            assert time.monotonic() < deadline, "No thread came back."
        assert len(aside.threads) == 2
    finally:
        release.set()
        del shell.user_ns["blocked"]
        language.close()


def test_a_thread_that_computes_for_ever_is_stopped() -> None:
    """What came too late and runs bytecode is ended after a while, and its thread with it."""
    aside = Aside(threads=3, patience=0.05)

    def spin() -> None:
        while True:
            pass

    aside.run(spin, lambda: None, 0.01)
    (thread,) = aside.threads
    thread.join(PLENTY)
    assert not thread.is_alive()
    assert aside.run(lambda: "fine", lambda: "late", PLENTY) == "fine"
    aside.close()


def test_a_thread_that_imports_is_stopped_after_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the midst of it: the locks of imports would stay taken, for all threads."""
    monkeypatch.syspath_prepend(tmp_path)
    go, looks = threading.Event(), list[bool]()
    monkeypatch.setattr(sys, "slow_import", go.wait, raising=False)
    (tmp_path / "slow_to_import.py").write_text("import sys\nsys.slow_import()\n")
    (tmp_path / "quick_to_import.py").write_text("")
    importing = frames.imports

    def look(frame: FrameType) -> bool:
        if frame is sys._current_frames().get(worker.ident):
            looks.append(importing(frame))
        return importing(frame)

    first = threading.Thread(target=import_module, args=("slow_to_import",))
    first.start()
    until(lambda: "slow_to_import" in sys.modules)

    def import_and_spin() -> None:
        import_module("slow_to_import")
        while True:
            pass

    aside = Aside(threads=3, patience=1000)
    aside.run(import_and_spin, lambda: None, 0.01)
    (worker,) = aside._workers
    until(lambda: sys._current_frames()[worker.ident].f_code.co_name == "acquire")  # the lock of the module
    assert worker._current is not None
    monkeypatch.setattr(frames, "imports", look)
    stopping = threading.Thread(target=worker.stop, args=(worker._current,))
    stopping.start()
    until(lambda: looks)
    assert all(looks)
    go.set()
    for each in (first, stopping, worker.thread):
        each.join(PLENTY)
        assert not each.is_alive()
    assert aside.run(lambda: import_module("quick_to_import").__name__, lambda: "late", PLENTY) == "quick_to_import"
    aside.close()


def test_what_is_late_does_not_answer_the_next_request() -> None:
    """Each request gets its own answer, though the one before is still at work."""
    aside, go = Aside(), threading.Event()
    assert aside.run(lambda: go.wait() and "first", lambda: "instead", 0.01) == "instead"
    assert aside.run(lambda: "second", lambda: "late", PLENTY) == "second"
    go.set()
    assert aside.run(lambda: "third", lambda: "late", PLENTY) == "third"
    aside.close()


def test_the_filters_of_warnings_are_left_alone(language: Language, shell: InteractiveShell) -> None:
    """Requests neither change the list of filters nor lose what a cell adds to it meanwhile, and show no warnings."""
    before = list(warnings.filters)
    listed = warnings.filters
    kept: list[bool] = []
    shell.input_transformers_cleanup.append(
        lambda lines: kept.append(is_aside() and warnings.filters is listed) or lines
    )
    try:
        for code in ("1 is 1", "'\\d'", "os.pa", "x = ''\nx.upp"):
            language.is_complete(shell, {"code": code})
            completed(language, shell, code)
            language.inspect(shell, {"code": code})
    finally:
        shell.input_transformers_cleanup.pop()
    assert kept
    assert all(kept)
    assert warnings.filters is listed
    assert list(warnings.filters) == before


def test_jedi_is_made_ready_after_the_first_completion(shell: InteractiveShell) -> None:
    """Who never completes does not pay for jedi; who has completed once finds it ready soon."""
    language = Language(deadline=PLENTY, jedi_after=0.01)
    warmed: list[Any] = []
    language.warm_up = lambda *args, **options: warmed.append((args, options))  # pyright: ignore[reportAttributeAccessIssue]
    language.inspect(shell, {"code": "thing"})
    assert language._timer is None
    for _ in range(3):
        completed(language, shell, "thing.meth")
    until(lambda: warmed)
    assert warmed == [((shell,), {"jedi": True})]
    language.close()


def test_jedi_is_made_ready_in_a_pause_only(shell: InteractiveShell) -> None:
    """Who goes on asking is not slowed down by it, whatever he asks for; in the first pause it is made ready."""
    language, warmed = Language(deadline=PLENTY, jedi_after=60), []
    language.warm_up = lambda *args, **_: warmed.append(args)  # pyright: ignore[reportAttributeAccessIssue]
    completed(language, shell, "thing.meth")
    timers = {language._timer}
    for ask in (partial(completed, language, shell, "thing.meth"), partial(language.inspect, shell, {"code": "thing"})):
        language._asked_at -= 60
        ask()
        language._make_jedi_ready(ref(shell))
        assert not warmed
        timers.add(language._timer)
    assert len(timers) == 3
    language._asked_at -= 60
    language._make_jedi_ready(ref(shell))
    assert warmed == [(shell,)]
    for timer in timers:
        assert timer is not None
        timer.cancel()
    language.close()


def test_nothing_is_made_ready_after_the_end(shell: InteractiveShell) -> None:
    """A look that was on its way when the language was closed neither warms up nor looks again."""
    language, warmed = Language(deadline=PLENTY, jedi_after=60), []
    language.warm_up = lambda *args, **_: warmed.append(args)  # pyright: ignore[reportAttributeAccessIssue]
    completed(language, shell, "thing.meth")
    timer = language._timer
    language.close()
    language._make_jedi_ready(ref(shell))
    assert language._timer is timer
    assert not warmed


def test_warming_up_ends_with_everything_imported(tmp_path: Path) -> None:
    """A kernel that has warmed up answers from what is there."""
    program = (
        "import sys, time\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "from cobnut_kernel.runtime.introspection.language import Language\n"
        "shell, language = InteractiveShell(), Language()\n"
        "before = set(sys.modules)\n"
        "language.warm_up(shell)\n"
        "deadline = time.monotonic() + 20\n"
        "while not language._aside._idle: assert time.monotonic() < deadline; time.sleep(0.01)\n"
        "assert 'jedi' not in sys.modules and 'IPython.core.guarded_eval' in sys.modules\n"
        "assert 'IPython.core.oinspect' in sys.modules and 'pygments' in sys.modules\n"
        "language.warm_up(shell, jedi=True)\n"
        "while 'jedi' not in sys.modules: assert time.monotonic() < deadline; time.sleep(0.01)\n"
        "print('warm')\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.stdout, done.returncode) == ("warm\n", 0), done.stderr


# ── inspection ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_inspection(language: Language, shell: InteractiveShell) -> None:
    """A function is described with its signature and docstring; with its source where more is asked for."""
    reply = language.inspect(shell, {"code": "function", "cursor_pos": 3, "detail_level": 0})
    assert (reply["status"], reply["found"], reply["metadata"]) == ("ok", True, {})
    assert "Say alpha." in reply["data"]["text/plain"]
    assert "text/html" not in reply["data"]
    detailed = language.inspect(shell, {"code": "textwrap.dedent", "detail_level": 1})
    assert "lines = text.splitlines" in plain(detailed) or "margin = None" in plain(detailed)
    brief = language.inspect(shell, {"code": "textwrap.dedent", "detail_level": 0})
    assert "margin = None" not in plain(brief)


def plain(reply: dict[str, Any]) -> str:
    """Return an inspection's text without its colours."""
    return re.sub("\x1b[^m]*m", "", reply["data"]["text/plain"])


@pytest.mark.parametrize(
    ("code", "cursor", "contained"),
    [
        ("thing", 0, "A thing."),
        ("thing.method(1, ", None, "Do it."),
        ("thing.value", None, "property"),
        ("%timeit", None, "Time execution"),
        ("print(function(", None, "Say alpha."),
        ("number + 1", 3, "int"),
    ],
)
def test_what_is_described(
    language: Language, shell: InteractiveShell, code: str, cursor: int | None, contained: str
) -> None:
    """The name at the cursor counts, or the function whose arguments it is in; properties are not evaluated."""
    reply = language.inspect(shell, {"code": code, "cursor_pos": cursor})
    assert reply["found"]
    assert contained in reply["data"]["text/plain"]


@pytest.mark.parametrize("code", ["", "no_such_name", "os.no_such_name", "'a string'", "1 +", "(", "'''"])
def test_what_is_not_found(language: Language, shell: InteractiveShell, code: str) -> None:
    """What stands for nothing is not found, which is no error."""
    assert language.inspect(shell, {"code": code}) == {"status": "ok", "found": False, "data": {}, "metadata": {}}


def test_sections_are_left_out(language: Language, shell: InteractiveShell) -> None:
    """`omit_sections` names what a front end does not want to see."""
    reply = language.inspect(shell, {"code": "function", "omit_sections": ["docstring", "Type"]})
    assert "Say alpha." not in reply["data"]["text/plain"]


def test_inspection_leaves_the_builtins_alone(language: Language, shell: InteractiveShell) -> None:
    """No name comes into the builtins or goes: a cell may need it in that moment."""
    level = shell.builtin_trap._nested_level
    seen: list[int] = []

    class Watching:
        def __repr__(self) -> str:
            seen.append(shell.builtin_trap._nested_level)
            return "watching"

    shell.user_ns["watching"] = Watching()
    assert "watching" in language.inspect(shell, {"code": "watching"})["data"]["text/plain"]
    assert set(seen) == {level}
    del shell.user_ns["watching"]


# ── completeness ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("code", "reply"),
    [
        ("1 + 1", {"status": "complete"}),
        ("for i in x:", {"status": "incomplete", "indent": "    "}),
        ("if a:\n    if b:", {"status": "incomplete", "indent": "        "}),
        ("print(", {"status": "incomplete", "indent": ""}),
        ("1 +", {"status": "invalid"}),
        ("raise = 2", {"status": "invalid"}),
        ("%%timeit\n1", {"status": "incomplete", "indent": ""}),
        ("!ls", {"status": "complete"}),
        ("await x", {"status": "complete"}),
        ("", {"status": "complete"}),
    ],
)
def test_completeness(language: Language, shell: InteractiveShell, code: str, reply: dict[str, str]) -> None:
    """Code is complete, incomplete with the indentation of the next line, or invalid."""
    assert language.is_complete(shell, {"code": code}) == reply


def test_completeness_that_cannot_be_told(hasty: Language, shell: InteractiveShell) -> None:
    """A transformer of the user's that hangs makes it unknown."""
    go = threading.Event()
    shell.input_transformers_cleanup.append(lambda lines: go.wait() and lines)
    try:
        assert hasty.is_complete(shell, {"code": "1"}) == {"status": "unknown"}
    finally:
        go.set()
        shell.input_transformers_cleanup.pop()


# ── history ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Remembering:
    """What the history of a shell needs to be read."""

    def __init__(self, manager: HistoryManager) -> None:
        self.history_manager = manager


@pytest.fixture
def remembering(shell: InteractiveShell, tmp_path: Path) -> Iterator[Any]:
    """A shell in its third session, of which nothing is on disk yet."""
    file = tmp_path / "history.sqlite"
    for first, inputs in ((True, ["one = 1", "%pwd", "two"]), (False, ["one = 1", "four"])):
        manager = HistoryManager(shell=shell, hist_file=str(file), enabled=True, db_log_output=True)
        for line, source in enumerate(inputs, 1):
            manager.output_hist_reprs[line] = f"out {line}" if first else ""
            manager.store_inputs(line, source.replace("%pwd", "get_ipython()"), source)
            manager.store_output(line)
        manager.end_session()
        manager.close()
    manager = HistoryManager(shell=shell, hist_file=str(file), enabled=True, db_cache_size=1000)
    for line, source in enumerate(["five", "one = 1", "%six"], 1):
        manager.store_inputs(line, source.replace("%six", "six()"), source)
    manager.output_hist_reprs[1] = "5"
    yield Remembering(manager)
    manager.close()


@pytest.mark.parametrize(
    ("request_", "rows"),
    [
        ({"hist_access_type": "tail", "n": 2}, [(3, 2, "one = 1"), (3, 3, "%six")]),
        (
            {"hist_access_type": "tail", "n": 4, "raw": False},
            [(2, 2, "four"), (3, 1, "five"), (3, 2, "one = 1"), (3, 3, "six()")],
        ),
        (
            {"hist_access_type": "tail", "n": 3, "output": True},
            [(3, 1, ("five", "5")), (3, 2, ("one = 1", None)), (3, 3, ("%six", None))],
        ),
        ({"hist_access_type": "tail", "n": 0}, []),
        ({"hist_access_type": "range"}, [(0, 1, "five"), (0, 2, "one = 1"), (0, 3, "%six")]),
        ({"hist_access_type": "range", "start": 2, "stop": 3}, [(0, 2, "one = 1")]),
        ({"hist_access_type": "range", "start": -1}, [(0, 3, "%six")]),
        ({"hist_access_type": "range", "session": 3, "stop": -2}, [(3, 1, "five")]),
        ({"hist_access_type": "range", "session": -1}, [(2, 1, "one = 1"), (2, 2, "four")]),
        ({"hist_access_type": "range", "session": 1, "start": 2, "stop": 3, "raw": False}, [(1, 2, "get_ipython()")]),
        ({"hist_access_type": "range", "session": -2, "start": 3, "output": True}, [(1, 3, ("two", "out 3"))]),
        ({"hist_access_type": "range", "session": -9}, []),
        ({"hist_access_type": "search", "pattern": "one*"}, [(1, 1, "one = 1"), (2, 1, "one = 1"), (3, 2, "one = 1")]),
        ({"hist_access_type": "search", "pattern": "one*", "unique": True}, [(3, 2, "one = 1")]),
        ({"hist_access_type": "search", "pattern": "*o*", "n": 2}, [(2, 2, "four"), (3, 2, "one = 1")]),
        ({"hist_access_type": "search", "pattern": "%*"}, [(1, 2, "%pwd"), (3, 3, "%six")]),
        ({"hist_access_type": "search", "pattern": "t*", "output": True}, [(1, 3, ("two", "out 3"))]),
    ],
)
def test_history(
    language: Language, remembering: Any, request_: dict[str, Any], rows: list[tuple[int, int, Any]]
) -> None:
    """Tail, range and search go over this session, though it is on no disk yet, and those before."""
    assert language.history(remembering, request_) == {"status": "ok", "history": rows}


def test_all_of_the_history(language: Language, remembering: Any) -> None:
    """A tail that asks for no number gets ten inputs, this session's last."""
    rows = language.history(remembering, {"hist_access_type": "tail"})["history"]
    assert [row[:2] for row in rows] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)]


@pytest.mark.parametrize("damage", ["missing", "broken", "foreign"])
@pytest.mark.parametrize("access", ["tail", "search"])
def test_a_damaged_history(language: Language, remembering: Any, tmp_path: Path, damage: str, access: str) -> None:
    """What cannot be read is empty, and this session is there."""
    file = tmp_path / damage
    if damage == "broken":
        file.write_bytes(b"no database at all" * 1000)
    elif damage == "foreign":
        file.touch()
    remembering.history_manager.hist_file = str(file)
    reply = language.history(remembering, {"hist_access_type": access, "n": 2})
    assert reply == {"status": "ok", "history": [(3, 2, "one = 1"), (3, 3, "%six")]}
    assert file.exists() == (damage != "missing")


def test_a_history_request_without_sense(language: Language, remembering: Any) -> None:
    """An unknown kind and numbers that are none are errors that say what may be asked."""
    with pytest.raises(ValueError, match="'tail', 'range' or 'search'"):
        language.history(remembering, {"hist_access_type": "all"})
    with pytest.raises(TypeError, match="whole number"):
        language.history(remembering, {"hist_access_type": "tail", "n": "ten"})


# ── what stands before the cursor ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "expression", "prefix"),
    [
        ("os.pa", "os", "pa"),
        ("a.b[0]['k'].c.", "a.b[0]['k'].c", ""),
        ("f(x)\nx.", "x", ""),
        ("y = x\nx.", "x", ""),
        ("for y in x:\n  x.", "x", ""),
        ("f(x, key=x, *x)\nx.a", "x", "a"),
        ("z = [x, x]; x.a", "x", "a"),
        ("if x: x.a", "x", "a"),
        ("x[0] = 1; x.y = 2\nx.a", "x", "a"),
    ],
)
def test_an_expression_to_look_up(text: str, expression: str, prefix: str) -> None:
    """Names, attributes and items whose first name the text only reads are looked up."""
    before = read(text)
    assert before is not None
    assert (before.expression, before.prefix) == (expression, prefix)
    assert not before.roots & before.rebound


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\nx.",
        "for x in y:\n  x.",
        "with y as x:\n  x.",
        "def f(x):\n  x.",
        "def f(a, x=1):\n  x.",
        "x, y = 1\nx.",
        "(x := 1)\nx.",
        "[x.a for x in y if x.",
        "lambda x: x.",
        "x: int\nx.",
        "x += 1\nx.",
        "class x: pass\nx.",
        "del x\nx.",
        "try: pass\nexcept E as x:\n  x.",
        "from . import x\nx.",
        "a = x = 2\nx.",
        "global x\nx.",
    ],
)
def test_a_name_that_the_text_binds(text: str) -> None:
    """What the text binds is not what the namespace has."""
    before = read(text)
    assert before is not None
    assert before.roots & before.rebound


@pytest.mark.parametrize(
    "text",
    [
        "f().",
        "(a + b).",
        "'x",
        "'''x\n",
        "# x.",
        "x = 'a' # b.",
        "3.",
        "%magic x.",
        "!ls x.",
        "%%cell\nx.",
        "def f",
        "class C",
        "import o",
        "from x",
        "from . import a",
        "from m import *\nx",
        "f()(a",
    ],
)
def test_what_tokens_cannot_tell(text: str) -> None:
    """Calls, strings, comments, IPython's own lines and what cannot be known are left to others."""
    assert read(text) is None


def test_what_a_text_imports() -> None:
    """Import statements say where a name comes from."""
    before = read("import a.b, c as d\nfrom e.f import (g, h as i)\nx.")
    assert before is not None
    origins = {"a": Origin("a"), "d": Origin("c"), "g": Origin("e.f", "g"), "i": Origin("e.f", "h")}
    assert before.imports == origins


def test_names_found_without_running_anything() -> None:
    """Classes, instances, slots, modules and builtins tell their names through no code of their own."""

    class Loud(type):
        def __dir__(cls) -> list[str]:
            raise AssertionError

        def __getattribute__(cls, name: str) -> Any:
            raise AssertionError

    class Quiet(metaclass=Loud):
        __slots__ = ("slotted", "spoken")

        def __getattribute__(self, name: str) -> Any:
            raise AssertionError

        @property
        def __class__(self) -> Any:
            raise AssertionError

        def method(self) -> None: ...

    spaces = [{"Quiet": Quiet, "quiet": Quiet(), "sys": sys}]
    for code, expected in (
        ("quiet.me", "method"),
        ("quiet.sl", "slotted"),
        ("Quiet.me", "method"),
        ("sys.std", "stdout"),
        ("sys.stdout.wri", "write"),
        ("from sys import std", "stdin"),
        ("qui", "quiet"),
        ("pri", "print"),
    ):
        found = [match.text for match in static(code, len(code), spaces)]
        assert (expected in found) == (code != "sys.stdout.wri" or hasattr(type(sys.stdout), "write"))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import zipimpor", "zipimport"),
        ("from zipimpor", "zipimport"),
        ("x = 1; import os, zipimpor", "zipimport"),
        ("import xml.dom.minid", "minidom"),
        ("import importlib.mach", "machinery"),
        ("import ", "zipimport"),
    ],
)
def test_modules_found_without_looking_at_a_folder(code: str, expected: str) -> None:
    """What is loaded, and what Python brings, needs no search; what is private is for those who begin it so."""
    import_module("xml.dom.minidom")
    found = [match.text for match in static(code, len(code), [])]
    assert expected in found
    assert "__main__" not in found
    assert "__main__" in [match.text for match in static("import __m", 10, [])]


@pytest.mark.parametrize(
    "code", ["import os zip", "imported zip", "import nothing_of_that_name", "'import zip", "# import zip"]
)
def test_no_modules_where_none_is_imported(code: str) -> None:
    """Only the place of a name in an import statement is one for modules."""
    assert not [match for match in static(code, len(code), []) if match.type == "module"]


# ── the user's folder ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_users_file_is_not_taken_for_a_module_that_we_need(tmp_path: Path) -> None:
    """`jedi.py`, `parso.py` and others beside a notebook are imported by the user's own code only."""
    for name in ("jedi", "parso", "sqlite3", "codeop", "pygments", "glob", "uuid", "html"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of the user was imported')")
    (tmp_path / "mine.py").write_text("answer = 42")
    program = (
        "import sys\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "from cobnut_kernel.runtime.introspection.language import Language\n"
        "shell, language = InteractiveShell(), Language(deadline=20)\n"
        "sys.path.insert(0, '')\n"
        "reply = language.complete(shell, {'code': 'text = str(1)\\ntext.isal'})\n"
        "assert 'isalpha' in reply['matches'], reply\n"
        "assert language.inspect(shell, {'code': 'print', 'detail_level': 1})['found']\n"
        "assert 'mine' in language.complete(shell, {'code': 'import min'})['matches']\n"
        "language.is_complete(shell, {'code': 'x'}), language.history(shell, {})\n"
        "assert sys.path[0] == ''\n"
        "import mine\n"
        "assert 'answer' in language.complete(shell, {'code': 'from mine import ans'})['matches']\n"
        "try: import uuid\n"
        "except SystemExit: print('his own')\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.stdout, done.returncode) == ("his own\n", 0), done.stderr


def test_a_users_own_jedi_leaves_completion_without(tmp_path: Path) -> None:
    """Where the user has imported a `jedi` of his own, IPython's own matcher answers."""
    (tmp_path / "jedi.py").write_text("mine = True")
    program = (
        "import sys\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "from cobnut_kernel.runtime.introspection.language import Language\n"
        "shell, language = InteractiveShell(), Language(deadline=20)\n"
        "sys.path.insert(0, '')\n"
        "import jedi\n"
        "assert 'upper' in ' '.join(language.complete(shell, {'code': 'x = \"\"\\nx.upp'})['matches'])\n"
        "print(jedi.mine)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_the_search_for_modules_is_a_threads_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one thread looks past the user's folder, another imports from it; nothing changes on sys.path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (tmp_path / "only_here.py").write_text("here = 1")
    (tmp_path / "only_here_too.py").write_text("here = 2")
    found: list[int] = []

    def elsewhere() -> None:
        found.append(__import__("only_here").here)

    path = list(sys.path)
    with without_user_folder():
        assert sys.path == path
        with pytest.raises(ModuleNotFoundError):
            __import__("only_here")
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        with user_folder_last():
            found.append(__import__("only_here_too").here)
    assert found == [1, 2]
    for name in ("only_here", "only_here_too"):
        del sys.modules[name]


# ── over the wire ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "code", ["import time; time.sleep(1000)", "while True: pass", "import asyncio; await asyncio.sleep(1000)"]
)
def test_answers_come_while_a_cell_runs(client: WireClient, code: str) -> None:
    """Whatever the main thread does, questions about code are answered."""
    client.execute("import os\nkept_name = 1")
    cell = client.send_code(f"print('up')\n{code}")
    client.wait_for_text(cell, "up")
    complete = client.ask(MessageType.COMPLETE_REQUEST, {"code": "kept_na", "cursor_pos": 7}).content
    assert complete["matches"] == ["kept_name"]
    inspect = client.ask(MessageType.INSPECT_REQUEST, {"code": "os.getcwd", "cursor_pos": 5, "detail_level": 0}).content
    assert inspect["found"]
    assert client.ask(MessageType.IS_COMPLETE_REQUEST, {"code": "if x:"}).content["indent"] == "    "
    history = client.ask(MessageType.HISTORY_REQUEST, {"hist_access_type": "tail", "n": 1}).content["history"]
    assert code in history[0][2]
    names = [row["name"] for row in client.ask(MessageType.VARIABLES_REQUEST).content["variables"]]
    assert "kept_name" in names
    (told,) = client.control(MessageType.STACK_REQUEST)["cells"]
    assert told["msg_id"] == cell.request.msg_id
    assert told["frames"][0]["source"] == code
    assert not cell.idle
    client.control(MessageType.INTERRUPT_REQUEST)
    assert client.finish(cell).content["ename"] == "KeyboardInterrupt"


def test_an_interrupt_does_not_hit_a_completion(client: WireClient) -> None:
    """Interrupts are for cells: a completion that hangs is answered in time, and the kernel lives (#261)."""
    client.execute("import time\nclass Slow:\n    fast = 1\n    def __dir__(self): time.sleep(1000)\nslow = Slow()")
    asked = client.request(MessageType.COMPLETE_REQUEST, {"code": "slow.fa", "cursor_pos": 7})
    for _ in range(5):
        client.control(MessageType.INTERRUPT_REQUEST)
    assert client.finish(asked).content["matches"] == ["fast"]
    assert client.execute("6 * 7").result == "42"
