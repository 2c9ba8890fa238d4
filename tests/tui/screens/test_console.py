"""The console: keys are pressed, and what then stands is asserted."""

from __future__ import annotations

from typing import Any

import pytest
from textual import events

from cobnut.kernel_status import Status
from cobnut.model.cell import RunState
from cobnut.screens.help import Help
from cobnut.screens.picker import Picker
from cobnut.screens.question import Question
from cobnut.widgets.prompt import Editor
from cobnut_kernel.manager.lifecycle import DeathReport, KernelState

pytestmark = pytest.mark.anyio

ERROR = ("error", {"ename": "ZeroDivisionError", "evalue": "division by zero", "traceback": ["ZeroDivisionError: no"]})


async def test_a_cell_runs(open_terminal: Any) -> None:
    """Four keys to the first result: what is typed runs on Enter, and its output stands under it."""
    async with open_terminal() as terminal:
        terminal.kernel.outputs["6*7"] = [("execute_result", {"data": {"text/plain": "42"}, "execution_count": 1})]
        await terminal.type("6*7\n")
        await terminal.until_shown(r"\[1\] 6\*7")
        await terminal.until_shown(r"\n.*│     42\n")
        assert terminal.kernel.executed == ["6*7"]
        assert terminal.prompt == ""
        assert "In [2]:" in terminal.text


async def test_what_is_entered_before_the_kernel_is_ready_runs_then(open_terminal: Any) -> None:
    """The prompt works while the kernel starts: cells wait in order, and what is being typed stays."""
    async with open_terminal() as terminal:
        manager = terminal.manager
        manager.comes_up_at_once = False
        await terminal.press("escape", "n", "enter")
        kernel = terminal.kernels[1]
        await terminal.type("a = 1\nb = 2\nunfinish")
        assert kernel.executed == []
        assert [cell.state for cell in terminal.session.document.cells] == [RunState.QUEUED] * 2
        assert terminal.session.status is Status.PENDING
        kernel.manager.come_up()
        await terminal.until(lambda: kernel.executed == ["a = 1", "b = 2"])
        assert terminal.prompt == "unfinish"


async def test_output_appears_while_the_cell_runs(open_terminal: Any) -> None:
    """A cell's output is on the screen before the cell has ended."""
    async with open_terminal() as terminal:
        terminal.kernel.endless.add("loop()")
        await terminal.type("loop()\n")
        await terminal.until(lambda: terminal.session.is_running)
        terminal.kernel.say("stream", {"name": "stdout", "text": "first\n"})
        await terminal.until_shown("first")
        assert terminal.session.is_running
        assert terminal.session.status is Status.BUSY
        terminal.kernel.finish()
        await terminal.until(lambda: terminal.session.status is Status.IDLE)


async def test_a_block_gets_another_line(open_terminal: Any) -> None:
    """Enter adds an indented line to what is not complete, and runs it after an empty line."""
    async with open_terminal() as terminal:
        await terminal.type("for i in range(3):\n")
        assert terminal.prompt == "for i in range(3):\n    "
        await terminal.type("print(i)\n\n")
        await terminal.until(lambda: terminal.kernel.executed == ["for i in range(3):\n    print(i)"])


async def test_ctrl_j_runs_at_once(open_terminal: Any) -> None:
    """ctrl+j runs the input as it is, complete or not."""
    async with open_terminal() as terminal:
        await terminal.type("def f(")
        await terminal.press("ctrl+j")
        await terminal.until(lambda: terminal.kernel.executed == ["def f("])


async def test_another_language_asks_its_kernel(open_terminal: Any) -> None:
    """For other languages the kernel says whether the input is complete."""
    async with open_terminal(spec_name="ir") as terminal:
        terminal.kernel.verdict = "incomplete"
        await terminal.until(lambda: terminal.session.client is not None)
        await terminal.type("f <- function() {\n")
        assert terminal.prompt.startswith("f <- function() {\n")
        terminal.kernel.verdict = "complete"
        await terminal.type("}\n")
        await terminal.until(lambda: terminal.kernel.executed)
        assert len(terminal.kernel.asked) == 2


async def test_ctrl_c_interrupts_then_clears_and_never_quits(open_terminal: Any, clock: Any) -> None:
    """ctrl+c interrupts what runs; with nothing running it clears the input; with no input it says how to leave."""
    async with open_terminal() as terminal:
        terminal.kernel.endless.add("loop()")
        await terminal.type("loop()\n")
        await terminal.until(lambda: terminal.session.is_running)
        await terminal.type("draft")
        await terminal.press("ctrl+c")
        await terminal.until(lambda: terminal.session.status is Status.IDLE)
        assert terminal.session.document.cells[0].state is RunState.INTERRUPTED
        assert (terminal.kernel.interrupts, terminal.prompt) == (1, "draft")
        await terminal.press("ctrl+c")
        assert terminal.prompt == "draft", "pressed twice in a hurry it does not clear the input"
        clock.now += 2
        await terminal.press("ctrl+c")
        assert (terminal.kernel.interrupts, terminal.prompt) == (1, "")
        await terminal.press("ctrl+c")
        assert "^Q quits" in terminal.text
        await terminal.press("ctrl+z")
        assert terminal.prompt == "draft"


async def test_ctrl_c_right_behind_enter_is_for_what_was_entered(open_terminal: Any) -> None:
    """Where both keys come in one piece, the cell is submitted before the interrupt looks for it."""
    async with open_terminal() as terminal:
        terminal.kernel.endless.add("loop()")
        await terminal.type("loop()")
        editor = terminal.app.screen.query_one(Editor)
        editor.post_message(events.Key("enter", "\r"))
        editor.post_message(events.Key("ctrl+c", "\x03"))
        await terminal.until(lambda: terminal.session.document.cells)
        await terminal.until(lambda: terminal.session.status is Status.IDLE)
        assert (terminal.kernel.interrupts, terminal.prompt) == (1, "")


async def test_ctrl_c_takes_back_what_waits_for_the_kernel(open_terminal: Any) -> None:
    """While the kernel starts, ctrl+c drops the cells that wait: none of them runs later."""
    async with open_terminal() as terminal:
        terminal.manager.comes_up_at_once = False
        await terminal.press("escape", "n", "enter")
        await terminal.type("a = 1\n")
        await terminal.press("ctrl+c")
        assert terminal.session.document.cells[0].state is RunState.ABORTED
        terminal.kernels[1].manager.come_up()
        await terminal.until(lambda: terminal.session.client is not None)
        assert terminal.kernels[1].executed == []


async def test_escape_i_i_interrupts(open_terminal: Any) -> None:
    """Esc i i interrupts, as single keys and as Alt+i i."""
    async with open_terminal() as terminal:
        terminal.kernel.endless.add("loop()")
        for number, keys in enumerate([("escape", "i", "i"), ("alt+i", "i")], start=1):
            await terminal.type("loop()\n")
            await terminal.until(lambda: terminal.session.is_running)
            await terminal.press(*keys)
            await terminal.until(lambda: not terminal.session.is_running)
            assert terminal.kernel.interrupts == number


async def test_a_second_kernel_has_its_own_prompt_and_cells(open_terminal: Any) -> None:
    """A kernel is started and switched to by keyboard; draft, history and document are its own."""
    async with open_terminal() as terminal:
        await terminal.type("x = 1\ndraft one")
        second = await terminal.open_second_kernel()
        assert terminal.session.name == "python-2"
        assert terminal.prompt == ""
        await terminal.type("y = 2\n")
        await terminal.until(lambda: second.executed == ["y = 2"])
        assert "x = 1" not in terminal.text
        await terminal.type("draft two")
        await terminal.press("escape", "1")
        assert (terminal.session.name, terminal.prompt) == ("scratch", "draft one")
        assert "x = 1" in terminal.text
        await terminal.press("escape", "2")
        assert (terminal.session.name, terminal.prompt) == ("python-2", "draft two")
        await terminal.press("ctrl+c", "up")
        assert terminal.prompt == "y = 2"


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (["alt+1"], "scratch"),
        (["escape", "1"], "scratch"),
        (["escape", "full_stop"], "scratch"),
        (["alt+comma"], "scratch"),
        (["ctrl+pagedown"], "scratch"),
        (["ctrl+pageup"], "scratch"),
        (["ctrl+t", "up", "enter"], "scratch"),
        (["ctrl+t", "s", "c", "r", "enter"], "scratch"),
        (["f6", "1"], "scratch"),
        (["escape", "2"], "python-2"),
        (["escape", "escape", "1"], "python-2"),
    ],
)
async def test_ways_to_another_kernel(open_terminal: Any, keys: list[str], name: str) -> None:
    """By number, by neighbour, from the list, from the cells: every way leads there."""
    async with open_terminal() as terminal:
        await terminal.open_second_kernel()
        await terminal.press(*keys)
        await terminal.until(lambda: terminal.session.name == name)


async def test_a_number_without_a_kernel_is_said(open_terminal: Any) -> None:
    """Esc 7 with two kernels does nothing, and says what to press."""
    async with open_terminal() as terminal:
        await terminal.press("escape", "7")
        assert "There is no kernel 7: Esc n starts one." in terminal.text


async def test_unknown_letters_say_what_to_press(open_terminal: Any) -> None:
    """A printable key that is no command does not vanish."""
    async with open_terminal() as terminal:
        await terminal.press("escape", "z")
        assert "Esc z is no command: Esc ? shows all of them." in terminal.text
        await terminal.press("escape", "i", "x")
        assert "Esc i x is no command" in terminal.text
        await terminal.type("ok")
        assert terminal.prompt == "ok"


async def test_command_mode_is_said_and_left(open_terminal: Any) -> None:
    """After Esc the mode is named with the letters that may follow; Esc, Enter and any other key leave it."""
    async with open_terminal() as terminal:
        await terminal.type("ab")
        for leaving, prompt in (("escape", "ab"), ("enter", "ab"), ("left", "ab")):
            await terminal.press("escape")
            assert "COMMAND Esc" in terminal.text
            assert "n new" in terminal.text
            await terminal.press(leaving)
            assert "COMMAND" not in terminal.text
            assert terminal.prompt == prompt
        await terminal.type("c")
        assert terminal.prompt == "acb"


@pytest.mark.parametrize(
    ("data", "first", "second", "prompt"),
    [
        (b"b\x1b1c", "", "", "ac"),
        (b"b\x1b1c\rd\x1b2e\r", "ac", "be", ""),
        (b"x\x1b[Dy\r", "", "yx", ""),
        (b"1+1\r2+2\r", "", "1+1;2+2", ""),
        (b"\x1b.c\nq", "ac", "", "q"),
        (b"\x141\rz\n", "az", "", ""),
        (b"bc\x1b[D\x7fd\n", "", "dc", ""),
        (b"a\x1b[200~1\r2\x1b[201~b", "", "", "a1\n2b"),
    ],
)
async def test_type_ahead_keeps_its_order(
    open_terminal: Any, data: bytes, first: str, second: str, prompt: str
) -> None:
    """What a slow line delivers at once means what it means key by key: text, commands, answers, text again."""
    async with open_terminal() as terminal:
        await terminal.type("a")
        await terminal.open_second_kernel()
        await terminal.receive(data)
        await terminal.until(lambda: terminal.prompt == prompt)
        await terminal.until(lambda: ";".join(terminal.kernels[0].executed) == first)
        await terminal.until(lambda: ";".join(terminal.kernels[1].executed) == second)


async def test_restart_asks_only_while_something_runs(open_terminal: Any) -> None:
    """Esc 0 0 starts an idle kernel anew at once, and asks where a cell would be lost."""
    async with open_terminal() as terminal:
        terminal.kernel.endless.add("loop()")
        await terminal.press("escape", "0", "0")
        await terminal.until(lambda: terminal.kernel.restarts == 1 and terminal.session.status is Status.IDLE)
        assert "The kernel is started anew" in terminal.text
        await terminal.type("loop()\n")
        await terminal.until(lambda: terminal.session.is_running)
        await terminal.press("escape", "0", "0")
        assert isinstance(terminal.app.screen, Question)
        await terminal.press("x", "escape")
        assert terminal.kernel.restarts == 1
        await terminal.press("escape", "0", "0", "r")
        await terminal.until(lambda: terminal.kernel.restarts == 2 and terminal.session.status is Status.IDLE)
        assert terminal.session.document.cells[0].state is RunState.INTERRUPTED
        await terminal.type("after\n")
        await terminal.until(lambda: terminal.kernel.executed[-1] == "after")


async def test_stop_then_close(open_terminal: Any) -> None:
    """Esc S S stops a kernel, its cells stay to be read; again closes it, but never the last one."""
    async with open_terminal() as terminal:
        await terminal.open_second_kernel()
        await terminal.type("y = 2\n")
        await terminal.press("escape", "S", "S")
        await terminal.until(lambda: terminal.session.status is Status.STOPPED)
        assert "y = 2" in terminal.text
        await terminal.type("z\n")
        assert "This kernel has ended, and the input is kept." in terminal.text
        assert terminal.prompt == "z"
        await terminal.press("escape", "S", "S")
        assert [session.name for session in terminal.sessions] == ["scratch"]
        await terminal.press("escape", "S", "S")
        await terminal.until(lambda: terminal.session.status is Status.STOPPED)
        await terminal.press("escape", "S", "S")
        assert "This is the only kernel" in terminal.text
        assert len(terminal.sessions) == 1
        await terminal.press("escape", "0", "0")
        await terminal.until(lambda: terminal.session.status is Status.IDLE)


async def test_a_kernel_that_is_killed_says_so(open_terminal: Any) -> None:
    """Its line names the signal, its document says why and what to press, and the other kernel goes on."""
    async with open_terminal() as terminal:
        second = await terminal.open_second_kernel()
        second.endless.add("loop()")
        await terminal.type("loop()\n")
        await terminal.until(lambda: terminal.session.is_running)
        second.manager.die(DeathReport(None, "SIGKILL", "Traceback of the end", KernelState.READY))
        await terminal.until_shown(r"2 ✗ python-2 *dead SIGKILL")
        assert "The kernel has ended: killed by SIGKILL. Esc 0 0 starts it anew, Esc S S closes it." in terminal.text
        assert "Traceback of the end" in terminal.text
        assert terminal.session.document.cells[0].state is RunState.ERROR
        assert not terminal.session.is_running
        await terminal.press("escape", "1")
        await terminal.type("still\n")
        await terminal.until(lambda: terminal.kernel.executed == ["still"])


async def test_a_kernel_that_cannot_start_says_why(open_terminal: Any) -> None:
    """A failed start is a dead kernel with a reason; the prompt goes on."""
    async with open_terminal() as terminal:
        terminal.manager.comes_up_at_once = False
        await terminal.press("escape", "n", "enter")
        report = DeathReport(None, None, "", KernelState.PROVISIONING, "python3 was not found")
        terminal.kernels[1].manager.die(report)
        await terminal.until(lambda: terminal.session.status is Status.DEAD)
        assert "The kernel could not be started: python3 was not found." in terminal.text


async def test_a_notice_goes_when_another_kernel_is_shown(open_terminal: Any) -> None:
    """What is said of one kernel is not said of its neighbour, nor of itself when it is another state."""
    async with open_terminal() as terminal:
        await terminal.open_second_kernel()
        await terminal.press("escape", "S", "S")
        await terminal.until(lambda: terminal.session.status is Status.STOPPED)
        await terminal.type("z\n")
        assert "This kernel has ended, and the input is kept." in terminal.lines[-1]
        await terminal.press("ctrl+pageup")
        assert terminal.session.name == "scratch"
        assert terminal.lines[-1].startswith("scratch ○ idle")
        await terminal.press("ctrl+pageup")
        await terminal.type("\n")
        assert "This kernel has ended" in terminal.lines[-1]
        terminal.app.kernels.restart(terminal.session)
        await terminal.until(lambda: terminal.session.status is Status.IDLE)
        assert terminal.lines[-1].startswith("python-2 ○ idle")


async def test_a_notice_goes_with_the_next_action(open_terminal: Any) -> None:
    """What was said is gone as soon as something else is done; typing text does not count."""
    async with open_terminal() as terminal:
        await terminal.until(lambda: terminal.session.status is Status.IDLE)
        await terminal.press("ctrl+d")
        await terminal.type("x")
        assert "^Q quits and stops the kernels." in terminal.lines[-1]
        await terminal.press("left")
        assert terminal.lines[-1].startswith("scratch ○ idle")


async def test_the_numbers_begin_anew_with_the_kernel(open_terminal: Any) -> None:
    """After a restart the prompt says In [1], and the next cell is that one."""
    async with open_terminal() as terminal:
        await terminal.type("a\nb\n")
        await terminal.until_shown(r"In \[3\]:")
        await terminal.press("escape", "0", "0")
        await terminal.until_shown(r"In \[1\]:")
        await terminal.until(lambda: terminal.session.status is Status.IDLE)
        await terminal.type("c\n")
        await terminal.until_shown(r"\[1\] c")
        await terminal.until_shown(r"In \[2\]:")


@pytest.mark.parametrize("answers", [True, False])
async def test_a_cell_that_an_interrupt_does_not_stop(open_terminal: Any, clock: Any, answers: bool) -> None:
    """After two seconds it is said what can be done, until the cell ends; nothing of it stays in the document."""
    from cobnut_kernel.errors import KernelNotReadyError

    async def interrupt() -> None:
        if not answers:
            raise KernelNotReadyError("The kernel did not answer the interrupt_request within 5 seconds.")

    async with open_terminal() as terminal:
        terminal.kernel.endless.add("loop()")
        terminal.kernel.manager.interrupt_kernel = interrupt
        await terminal.type("loop()\n")
        await terminal.until(lambda: terminal.session.is_running)
        await terminal.press("ctrl+c")
        await terminal.until_shown("interrupting")
        assert "Not stopped yet" not in terminal.text
        clock.now += 2
        await terminal.until_shown(r"\nNot stopped yet: \^C again, or Esc 0 0 restarts it")
        terminal.kernel.finish()
        await terminal.until(lambda: terminal.session.status is Status.IDLE)
        assert "Not stopped yet" not in terminal.text
        assert terminal.session.document.items == terminal.session.document.cells


@pytest.mark.parametrize("opening", [["ctrl+t"], ["f1"], ["escape", "n"], ["ctrl+p"]])
async def test_what_is_typed_behind_escape_in_a_dialog_is_for_the_prompt(open_terminal: Any, opening: Any) -> None:
    """Where Esc and what follows arrive in one, Esc closes the dialog, and the rest is text, in its order."""
    async with open_terminal() as terminal:
        await terminal.press(*opening)
        await terminal.receive(b"\x1bzQ1 \x7f!")
        await terminal.until(lambda: terminal.prompt == "zQ1!")
        assert terminal.app.screen is terminal.app.console_screen
        await terminal.press(*opening)
        await terminal.receive(b"\x1bA?")
        await terminal.until(lambda: terminal.prompt == "zQ1!A?")


async def test_what_is_typed_behind_escape_in_a_dialog_is_for_the_cells(open_terminal: Any) -> None:
    """Over the cells the rest is a command, as every letter is there."""
    async with open_terminal() as terminal:
        await terminal.open_second_kernel()
        await terminal.press("f6", "ctrl+t")
        await terminal.receive(b"\x1b1")
        await terminal.until(lambda: terminal.session.name == "scratch")


async def test_input_is_refused_and_never_hangs(open_terminal: Any) -> None:
    """A kernel that asks for input nevertheless gets an end of file, and a line says so."""
    async with open_terminal() as terminal:
        terminal.kernel.endless.add("input()")
        await terminal.type("input()\n")
        await terminal.until(lambda: terminal.session.is_running)
        from cobnut_kernel.protocol.messages import Channel

        terminal.kernel.say("input_request", {"prompt": "? ", "password": False}, channel=Channel.STDIN)
        await terminal.until_shown("The cell asked for input, and got the end of the file")
        assert terminal.kernel.manager.clients[0].inputs == ["\x04"]


async def test_new_kernels_are_chosen_and_broken_ones_explained(open_terminal: Any) -> None:
    """The list names what can be started, and says why the rest cannot."""
    async with open_terminal() as terminal:
        await terminal.press("escape", "n")
        assert "> cobnut  Python 3 (cobnut)  /usr/bin/python3" in terminal.text
        assert "julia   cannot start       /usr/share/jupyter/kernels/julia/kernel.json is no JSON" in terminal.text
        await terminal.press("down", "down", "enter")
        assert isinstance(terminal.app.screen, Picker), "a broken kernel cannot be chosen"
        await terminal.press("i", "r", "enter")
        await terminal.until(lambda: terminal.session.name == "ir")
        await terminal.press("escape", "n", "i", "r", "enter")
        await terminal.until(lambda: terminal.session.name == "ir-3")


async def test_quit_ends_at_once_when_nothing_runs(open_terminal: Any) -> None:
    """ctrl+q stops all kernels and ends with status 0."""
    async with open_terminal() as terminal:
        await terminal.press("ctrl+q")
        await terminal.until(lambda: terminal.app.return_value == 0)
        assert terminal.manager.shutdowns == [False]


async def test_quit_asks_when_something_runs(open_terminal: Any) -> None:
    """ctrl+q while a cell runs asks; only the letter that is offered quits."""
    async with open_terminal() as terminal:
        terminal.kernel.endless.add("loop()")
        await terminal.type("loop()\n")
        await terminal.until(lambda: terminal.session.is_running)
        await terminal.press("ctrl+q")
        assert "1 cell runs. Quitting stops all kernels." in terminal.text
        await terminal.press("enter", "y", "ctrl+q")
        assert terminal.manager.shutdowns == []
        await terminal.press("ctrl+q", "s")
        await terminal.until(lambda: terminal.app.return_value == 0)


@pytest.mark.parametrize("key", ["ctrl+q", "ctrl+c"])
async def test_quitting_again_does_not_wait(open_terminal: Any, key: str) -> None:
    """Where the kernels take their time, a second ctrl+q or ctrl+c kills them."""
    import anyio

    async with open_terminal() as terminal:
        terminal.manager.holds_shutdown = anyio.Event()
        await terminal.press("ctrl+q")
        await terminal.until_shown(r"\^C do not wait")
        assert terminal.session.status is Status.STOPPING
        await terminal.press("x", key)
        await terminal.until(lambda: terminal.app.return_value == 0)
        assert terminal.manager.shutdowns == [False, True]


async def test_help_is_for_what_has_the_focus(open_terminal: Any) -> None:
    """F1 begins with the keys of the prompt; in the cells, `?` begins with theirs."""
    async with open_terminal(80, 24) as terminal:
        await terminal.press("f1")
        assert isinstance(terminal.app.screen, Help)
        assert terminal.lines[1] == " In the prompt"
        await terminal.press("escape", "f6", "question_mark")
        assert terminal.lines[1] == " In the cells"
        await terminal.press("pagedown", "q")
        assert not isinstance(terminal.app.screen, Help)


async def test_every_command_is_in_the_palette(open_terminal: Any) -> None:
    """The palette finds a command by its name, shows its keys, and carries it out."""
    async with open_terminal() as terminal:
        await terminal.press("ctrl+p")
        await terminal.type("new")
        assert "> New kernel" in terminal.text
        await terminal.press("enter")
        await terminal.until(lambda: isinstance(terminal.app.screen, Picker) and "Start a kernel" in terminal.text)


async def test_a_failing_action_is_said_and_nothing_stops(open_terminal: Any, monkeypatch: Any, caplog: Any) -> None:
    """An error in an action becomes a line; the next key works."""
    caplog.failures_are_expected = True
    async with open_terminal() as terminal:
        monkeypatch.setattr(terminal.app.kernels, "restart", lambda _: 1 / 0)
        await terminal.press("escape", "0", "0")
        assert "That failed: division by zero" in terminal.text
        await terminal.type("x\n")
        await terminal.until(lambda: terminal.kernel.executed == ["x"])


async def test_a_poisoned_message_is_said_and_the_pump_goes_on(
    open_terminal: Any, monkeypatch: Any, caplog: Any
) -> None:
    """An error while a message is taken in becomes a notice; the next message is taken."""
    caplog.failures_are_expected = True
    async with open_terminal() as terminal:
        document = terminal.session.document
        fold = document.fold

        def poisoned(channel: Any, message: Any, now: float) -> None:
            if message.content.get("text") == "poison":
                raise ValueError("poison")
            fold(channel, message, now)

        monkeypatch.setattr(document, "fold", poisoned)
        terminal.kernel.outputs["x"] = [("stream", {"name": "stdout", "text": "poison"})]
        terminal.kernel.outputs["y"] = [("stream", {"name": "stdout", "text": "good"})]
        await terminal.type("x\ny\n")
        await terminal.until_shown("✗ poison")
        await terminal.until_shown("    good")


async def test_nothing_ticks_while_nothing_runs(open_terminal: Any, clock: Any) -> None:
    """The clock goes while a cell runs, and stands when none does."""
    async with open_terminal() as terminal:
        ticking = terminal.app.console_screen._clock._active
        terminal.kernel.endless.add("loop()")
        assert not ticking.is_set()
        await terminal.type("loop()\n")
        await terminal.until(lambda: terminal.session.is_running)
        assert ticking.is_set()
        clock.now += 12
        await terminal.until_shown("busy 12s")
        terminal.kernel.finish()
        await terminal.until(lambda: not ticking.is_set())
