"""Subshells as a client sees them (JEP 91, R39–R46)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.kernel.wire import KernelProcess, WireClient


@pytest.fixture
def subshell(client: WireClient) -> Iterator[str]:
    """A subshell with the main shell's names, taken away at the end."""
    made = client.create_subshell()
    yield made
    client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=made)


@pytest.fixture
def private(client: WireClient) -> Iterator[str]:
    """A subshell with a namespace of its own over the main one."""
    made = client.create_subshell(namespace="private")
    yield made
    client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=made)


def test_kernel_info_says_that_there_are_subshells(client: WireClient) -> None:
    """By the name that JupyterLab looks for."""
    assert "kernel subshells" in client.ask(MessageType.KERNEL_INFO_REQUEST).content["supported_features"]


def test_subshells_are_listed_by_id_while_they_live(client: WireClient) -> None:
    """The main shell is none of them (R39)."""
    before = client.control(MessageType.LIST_SUBSHELL_REQUEST)["subshell_id"]
    made = client.create_subshell()
    assert client.control(MessageType.LIST_SUBSHELL_REQUEST)["subshell_id"] == [*before, made]
    assert client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=made) == {"status": "ok"}
    assert client.control(MessageType.LIST_SUBSHELL_REQUEST)["subshell_id"] == before


def test_a_subshell_is_created_while_the_main_shell_is_busy(client: WireClient) -> None:
    """And runs cells meanwhile."""
    busy = client.send_code("import time; print('on'); time.sleep(60)")
    client.wait_for_text(busy, "on")
    made = client.create_subshell()
    assert client.execute("6 * 7", subshell=made).result == "42"
    assert not busy.idle
    client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=made)
    client.control(MessageType.INTERRUPT_REQUEST)
    client.finish(busy)


def test_cells_of_a_subshell_run_in_a_thread_of_their_own_with_a_loop(client: WireClient, subshell: str) -> None:
    """Not the main one, the same for every cell, with a running event loop (R41)."""
    code = "import asyncio, threading\nawait asyncio.sleep(0)\nthreading.current_thread().name"
    name = client.execute(code, subshell=subshell).result
    assert name != "'MainThread'"
    assert client.execute("threading.current_thread().name", subshell=subshell).result == name


def test_cells_of_one_subshell_run_in_order(client: WireClient, subshell: str) -> None:
    """Sent at once, counted from 1, replies in the order they were sent."""
    cells = [client.send_code(str(number), subshell=subshell) for number in range(20)]
    for cell in cells:
        client.finish(cell)
    assert [cell.content["execution_count"] for cell in cells] == list(range(1, 21))


def test_a_subshell_counts_for_itself(client: WireClient, subshell: str) -> None:
    """Its cells leave the main shell's count, `In`, `Out` and `_i` alone (R42)."""
    count = client.execute("'main'").content["execution_count"]
    assert client.execute("'sub'", subshell=subshell).content["execution_count"] == 1
    after = client.execute(f"In[-1], Out[{count}], _i")
    assert after.content["execution_count"] == count + 1
    assert "'sub'" not in after.result
    assert "'main'" in after.result


def test_a_subshell_has_a_history_of_its_own(client: WireClient, subshell: str) -> None:
    """What it ran, and only that."""
    client.execute("'hazel'", subshell=subshell)
    client.execute("'main'")
    code = "list(get_ipython().history_manager.input_hist_raw)"
    assert client.execute(code, subshell=subshell).result == repr(["", "'hazel'", code])


def test_names_are_shared_by_default(client: WireClient, subshell: str) -> None:
    """What one assigns, all see (R43)."""
    client.execute("shared_name = 5", subshell=subshell)
    assert client.execute("shared_name + 1").result == "6"


def test_a_private_subshell_reads_the_main_names_and_keeps_its_own(client: WireClient, private: str) -> None:
    """In functions, classes and comprehensions; its In and Out are its own too (R43)."""
    client.execute("base = 5")
    code = "own = 2\ndef f(): return base + own\nclass A: z = [base for _ in range(2)]\nf(), A.z"
    assert client.execute(code, subshell=private).result == "(7, [5, 5])"
    assert client.execute("base = 6; base, Out[1], len(In)", subshell=private).result == "(6, (7, [5, 5]), 3)"
    assert client.execute("base, 'own' in globals()").result == "(5, False)"


def test_a_snapshot_goes_its_own_way(client: WireClient) -> None:
    """Later assignments stay on their side."""
    client.execute("leaf = 1")
    made = client.create_subshell(namespace="snapshot")
    client.execute("leaf += 1", subshell=made)
    assert client.execute("leaf").result == "1"
    assert client.execute("leaf", subshell=made).result == "2"
    client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=made)


def test_a_namespace_that_there_is_not_is_an_error(client: WireClient) -> None:
    """The reply names the ones there are."""
    content = client.control(MessageType.CREATE_SUBSHELL_REQUEST, namespace="secret")
    assert content["status"] == "error"
    assert "shared, private, snapshot" in content["evalue"]


def test_get_ipython_is_the_subshells_own(client: WireClient, subshell: str) -> None:
    """In its cells, their tasks, and IPython's own import of it."""
    assert client.execute("get_ipython().subshell_id", subshell=subshell).result == repr(subshell)
    assert client.execute("get_ipython().subshell_id is None").result == "True"


def test_an_unknown_subshell_is_answered_by_an_error(client: WireClient) -> None:
    """Busy, the error, idle (R40)."""
    exchange = client.execute("1", subshell="nobody")
    assert exchange.types == ["busy", "idle"]
    assert exchange.content["status"] == "error"
    assert exchange.content["ename"] == "UnknownSubshellError"
    assert exchange.content["evalue"] == "Unknown subshell_id 'nobody'"


@pytest.mark.parametrize("subshell_id", ["nobody", None, 3])
def test_a_subshell_that_there_is_not_cannot_be_deleted(client: WireClient, subshell_id: object) -> None:
    """The reply says so."""
    content = client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=subshell_id)
    assert (content["status"], content["ename"]) == ("error", "UnknownSubshellError")


def test_the_thread_of_a_deleted_subshell_is_gone(client: WireClient) -> None:
    """With the reply there are as many threads as before (R41)."""
    count = "import threading; threading.active_count()"
    before = client.execute(count).result
    made = client.create_subshell()
    client.execute("1", subshell=made)
    client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=made)
    assert client.execute(count).result == before


def test_an_error_refuses_only_what_waits_in_the_same_subshell(client: WireClient, subshell: str) -> None:
    """Cells of the main shell run (R16)."""
    code = "import asyncio; await asyncio.sleep(0.2); 1 / 0"
    failing = client.send_code(code, subshell=subshell)
    waiting = client.send_code("1", subshell=subshell)
    assert client.execute("'fine'").result == "'fine'"
    assert client.finish(failing).content["status"] == "error"
    assert client.finish(waiting).content["status"] == "aborted"
    assert client.execute("'again'", subshell=subshell).result == "'again'"


def test_output_of_a_subshell_belongs_to_its_cell(client: WireClient, subshell: str) -> None:
    """Streams, displays and results, while the main shell prints too."""
    code = (
        "import asyncio\nfor n in range(20):\n    print(NAME, n)\n    await asyncio.sleep(0.001)\ndisplay(NAME)\nNAME"
    )
    cells = {
        "main": client.send_code(code.replace("NAME", "'main'")),
        "sub": client.send_code(code.replace("NAME", "'sub'"), subshell=subshell),
    }
    for name, cell in cells.items():
        client.finish(cell)
        assert cell.text() == "".join(f"{name} {n}\n" for n in range(20))
        assert cell.of_type(MessageType.DISPLAY_DATA)[0]["data"]["text/plain"] == repr(name)
        assert cell.result == repr(name)


def test_magics_that_users_register_are_there_in_subshells(client: WireClient, subshell: str) -> None:
    """Those of IPython are the subshell's own, the others the main shell's."""
    client.execute(
        "from IPython.core.magic import register_line_magic\n@register_line_magic\ndef hazel(line): return line * 2"
    )
    assert client.execute("%hazel nut", subshell=subshell).result == "'nutnut'"


def test_hooks_fire_for_the_shell_that_ran_the_cell(client: WireClient, subshell: str) -> None:
    """`post_execute` of the main shell is not called for a cell of a subshell (R46)."""
    client.execute(
        "seen = []\ndef note(): seen.append(get_ipython().subshell_id)\n"
        "get_ipython().events.register('post_execute', note)"
    )
    client.execute("1", subshell=subshell)
    assert client.execute("list(seen)").result == "[None]"
    client.execute("get_ipython().events.unregister('post_execute', note)")


def test_deleting_a_busy_subshell_interrupts_its_cell_and_answers_all(client: WireClient) -> None:
    """The running cell ends with KeyboardInterrupt, the waiting one is refused, each with reply and idle (R44)."""
    made = client.create_subshell()
    running = client.send_code("import asyncio; print('on'); await asyncio.sleep(60)", subshell=made)
    client.wait_for_text(running, "on")
    waiting = client.send_code("1", subshell=made)
    assert client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=made)["status"] == "ok"
    assert client.finish(running).content["ename"] == "KeyboardInterrupt"
    assert client.finish(waiting).content["status"] == "aborted"


def test_subshells_are_reached_from_cells(client: WireClient, private: str) -> None:
    """`subshell_context` works with a subshell's shell for a while."""
    client.execute("own = 'private'", subshell=private)
    code = (
        f"manager = get_ipython().kernel.subshell_manager\nwith manager.subshell_context({private!r}) as shell:\n"
        "    inside = get_ipython().subshell_id, shell.user_ns['own']\ninside, get_ipython().subshell_id"
    )
    assert client.execute(code).result == f"(({private!r}, 'private'), None)"


def test_cells_of_a_subshell_on_the_control_channel_run_there(client: WireClient, subshell: str) -> None:
    """The header says where, whatever the channel."""
    cell = client.execute("get_ipython().subshell_id", subshell=subshell, channel=Channel.CONTROL)
    assert cell.result == repr(subshell)


def test_a_subshell_lasts_as_long_as_its_cells_in_threads(client: WireClient) -> None:
    """One that catches the interrupt of the deletion, and goes on, still ends as it should."""
    made = client.create_subshell(namespace="private")
    cell = client.send_code(
        "# thread\nimport time\nown = 'own'\ntry:\n    print('on')\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.5)\nown",
        subshell=made,
    )
    client.wait_for_text(cell, "on")
    assert client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=made)["status"] == "ok"
    assert client.finish(cell).result == "'own'"


def test_subshells_that_have_gone_are_forgotten(start_kernel: Callable[[], KernelProcess]) -> None:
    """Their shells are collected, whatever they were asked for, and whichever ended first of those that ran at once.

    Those that are asked for before the kernel has started too: what that makes, the collector leaves alone.
    """
    client = start_kernel().connect()
    count = (
        "import gc, time\nfrom cobnut_kernel.runtime.shells.subshell import Subshell\n"
        "deadline = time.monotonic() + 20\n"
        "while gc.collect() + any(type(one) is Subshell for one in gc.get_objects()) and time.monotonic() < deadline:\n"
        "    time.sleep(0.05)\n"
        "gc.unfreeze()\nsum(type(one) is Subshell for one in gc.get_objects())"
    )
    for _ in range(3):
        made = [client.create_subshell() for _ in range(3)]
        cells = [
            client.send_code(f"import time; time.sleep({0.02 * delay})", subshell=each)
            for delay, each in zip((1, 3, 2), made, strict=True)
        ]
        asked = [
            client.request(MessageType.COMPLETE_REQUEST, {"code": "pri", "cursor_pos": 3}, subshell_id=each)
            for each in made
        ]
        for exchange in [*cells, *asked]:
            client.finish(exchange)
        for each in made:
            client.control(MessageType.DELETE_SUBSHELL_REQUEST, subshell_id=each)
    assert client.execute(count).result == "0"
