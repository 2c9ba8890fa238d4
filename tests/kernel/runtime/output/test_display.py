"""What cells show beside text: display data, its updates, and clearing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cobnut_kernel.protocol.messages import MessageType

if TYPE_CHECKING:
    from tests.kernel.wire import WireClient


def test_display_publishes_mime_bundles(client: WireClient) -> None:
    """Each object shown is one message, in order, with its forms and its metadata."""
    code = (
        "from IPython.display import HTML, Image\n"
        "display(HTML('<i>x</i>'), 7)\nImage(b'\\x89PNG\\r\\n\\x1a\\n', width=3)"
    )
    exchange = client.execute(code)
    first, second = exchange.of_type(MessageType.DISPLAY_DATA)
    assert first["data"]["text/html"] == "<i>x</i>"
    assert first["metadata"] == {}
    assert first["transient"] == {}
    assert second["data"] == {"text/plain": "7"}
    result = exchange.only(MessageType.EXECUTE_RESULT)
    assert result["data"]["image/png"] == "iVBORw0KGgo="
    assert result["metadata"] == {"image/png": {"width": 3}}


def test_a_display_is_updated_by_its_id(client: WireClient) -> None:
    """update_display_data is a message type of its own, and carries the id that the display carried (R17)."""
    exchange = client.execute("handle = display('old', display_id='d1')\nhandle.update('new')")
    assert exchange.types == ["busy", "execute_input", "display_data", "update_display_data", "idle"]
    assert exchange.only(MessageType.DISPLAY_DATA)["transient"] == {"display_id": "d1"}
    update = exchange.only(MessageType.UPDATE_DISPLAY_DATA)
    assert update["data"] == {"text/plain": "'new'"}
    assert update["transient"] == {"display_id": "d1"}


def test_an_update_from_a_later_cell_belongs_to_that_cell(client: WireClient) -> None:
    """The id says which display is meant, the parent says who changed it (R17)."""
    client.execute("handle = display('old', display_id=True)")
    later = client.execute("handle.update('new')")
    assert later.only(MessageType.UPDATE_DISPLAY_DATA)["data"] == {"text/plain": "'new'"}


def test_raw_bundles_pass_unchanged(client: WireClient) -> None:
    """A bundle made by hand is sent with its metadata, nested JSON and all."""
    code = "display({'application/x+json': {'a': [1, {'b': None}], 'n': float('nan')}}, metadata={'m': 1}, raw=True)"
    content = client.execute(code).only(MessageType.DISPLAY_DATA)
    assert content["data"] == {"application/x+json": {"a": [1, {"b": None}], "n": None}}
    assert content["metadata"] == {"m": 1}


def test_what_is_changed_after_it_was_shown_is_shown_as_it_was(client: WireClient) -> None:
    """A mutable bundle is written at once: the cell may go on with it."""
    code = (
        "data = {'application/json': []}\n"
        "for i in range(3):\n    display(data, raw=True)\n    data['application/json'].append(i)"
    )
    shown = [content["data"]["application/json"] for content in client.execute(code).of_type(MessageType.DISPLAY_DATA)]
    assert shown == [[], [0], [0, 1]]


def test_clear_output(client: WireClient) -> None:
    """clear_output is sent in its place between the outputs, with the cell as parent."""
    exchange = client.execute(
        "from IPython.display import clear_output\nprint('a')\nclear_output()\nprint('b')\nclear_output(wait=True)"
    )
    assert exchange.types == ["busy", "execute_input", "stream", "clear_output", "stream", "clear_output", "idle"]
    assert exchange.of_type(MessageType.CLEAR_OUTPUT) == [{"wait": False}, {"wait": True}]


def test_captured_displays_are_not_sent(client: WireClient) -> None:
    """%%capture keeps results and displays from the client and hands them to the cell."""
    exchange = client.execute("%%capture kept\nprint('p')\ndisplay(1)")
    assert exchange.types == ["busy", "execute_input", "idle"]
    assert client.execute("kept.stdout, len(kept.outputs)").result == "('p\\n', 1)"


def test_displays_in_thousands_all_arrive_in_order(client: WireClient) -> None:
    """None is lost and none overtakes another."""
    exchange = client.execute("for i in range(3000):\n    display(i)")
    texts = [content["data"]["text/plain"] for content in exchange.of_type(MessageType.DISPLAY_DATA)]
    assert texts == [str(number) for number in range(3000)]
