"""A front end that debugs: the messages that JupyterLab sends, and what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cobnut_kernel.protocol.messages import Channel

if TYPE_CHECKING:
    from tests.kernel.wire import Exchange, WireClient

Content = dict[str, Any]


class FrontEnd:
    """One client's debugging session."""

    def __init__(self, client: WireClient) -> None:
        self.client = client
        self._seq = 0
        self._seen = 0

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, command: str, arguments: Content | None = None) -> Exchange:
        """Send a request and do not wait for it."""
        self._seq += 1
        content = {"type": "request", "seq": self._seq, "command": command, "arguments": arguments or {}}
        return self.client.request("debug_request", content, Channel.CONTROL)

    def ask(self, command: str, **arguments: Any) -> Content:
        """Ask, and return the response, whatever it is."""
        exchange = self.send(command, arguments)
        response = self.client.finish(exchange).content
        asked = exchange.request.content["seq"], command
        assert "type" in response, response
        assert (response["type"], response["request_seq"], response["command"]) == ("response", *asked)
        return response

    def body(self, command: str, **arguments: Any) -> Content:
        """Ask, and return the body of a response that must be a good one."""
        response = self.ask(command, **arguments)
        assert response["success"], response
        return response.get("body") or {}

    def error(self, command: str, **arguments: Any) -> str:
        """Ask what must be refused, and return why."""
        response = self.ask(command, **arguments)
        assert not response["success"], response
        return response["message"]

    # ── events ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def events(self) -> list[Content]:
        """Every event so far."""
        return [message.content for _, message in self.client.messages if message.msg_type == "debug_event"]

    def wait_for(self, event: str) -> Content:
        """Wait for an event of a kind that has not been waited for yet, and return its body."""

        def found() -> list[int]:
            events = self.events
            return [number for number in range(self._seen, len(events)) if events[number]["event"] == event]

        self.client.wait(found, f"the debug event {event!r}")
        number = found()[0]
        self._seen = number + 1
        return self.events[number].get("body") or {}

    # ── what JupyterLab does with them ──────────────────────────────────────────────────────────────────────────────

    def start(self, **attach: Any) -> Content:
        """Begin a session as JupyterLab does, and return what the debugger can."""
        capabilities = self.body(
            "initialize",
            clientID="jupyterlab",
            clientName="JupyterLab",
            adapterID="cobnut",
            pathFormat="path",
            linesStartAt1=True,
            columnsStartAt1=True,
            supportsVariableType=True,
            supportsVariablePaging=True,
            supportsRunInTerminalRequest=True,
            locale="en",
        )
        self.body("attach", **attach)
        return capabilities

    def stop(self) -> None:
        """End a session as JupyterLab does."""
        self.body("disconnect", restart=False, terminateDebuggee=False)

    def set_breakpoints(self, code: str, *lines: int, **options: Any) -> str:
        """Set the breakpoints of a cell, and return its path."""
        path = self.body("dumpCell", code=code)["sourcePath"]
        made = self.body(
            "setBreakpoints",
            source={"path": path},
            breakpoints=[{"line": line, **options} for line in lines],
            lines=list(lines),
            sourceModified=False,
        )
        assert [each["line"] for each in made["breakpoints"]] == list(lines)
        self.body("configurationDone")
        return path

    def wait_for_stop(self, reason: str = "breakpoint") -> int:
        """Wait until a thread stops, and return it."""
        body = self.wait_for("stopped")
        assert body["reason"] == reason, body
        return body["threadId"]

    def frames(self, thread: int = 1) -> list[Content]:
        """Return the frames of a stopped thread."""
        return self.body("stackTrace", threadId=thread)["stackFrames"]

    def scope(self, frame: int, name: str = "Locals") -> dict[str, Content]:
        """Return the variables of a frame's scope, by name."""
        scopes = {scope["name"]: scope for scope in self.body("scopes", frameId=frame)["scopes"]}
        found = self.body("variables", variablesReference=scopes[name]["variablesReference"])["variables"]
        return {variable["name"]: variable for variable in found}
