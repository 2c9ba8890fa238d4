"""Every command as data: its key, its letters behind Esc, its name in the palette, its line in the help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from textual.binding import Binding, BindingType

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Command:
    """Something that can be asked for by key, by letters behind Esc, and by name."""

    title: str
    action: str
    """The action that does it, as Textual writes it; without a prefix it is one of the pane's."""
    help: str
    letters: str = ""
    """What is pressed behind Esc; two letters for what should not happen by a slip."""
    keys: str = ""
    """Direct keys, as Textual names them, separated by commas; each can be sent by a plain xterm inside tmux."""

    @property
    def short(self) -> str:
        """The title in a word or two, for the status line."""
        return self.title.lower().removesuffix(" kernel")

    @property
    def shown_keys(self) -> str:
        """The keys as a person reads them: the direct ones, then the letters behind Esc."""
        direct = [shown(key) for key in self.keys.split(",") if key]
        return ", ".join([*direct, f"Esc {' '.join(self.letters)}"] if self.letters else direct)


COMMANDS: Final = (
    Command("Run now", "run_now", "Run the input, complete or not", "r", "ctrl+j"),
    Command("Interrupt", "screen.interrupt", "Interrupt what runs or waits here", "ii"),
    Command("Restart kernel", "screen.restart", "Start this kernel anew", "00"),
    Command("Stop kernel", "screen.stop", "Stop this kernel; close an ended one", "SS"),
    Command("New kernel", "screen.new_kernel", "Choose another kernel and start it", "n"),
    Command("Switch kernel", "screen.switch_kernel", "Choose among the kernels here", "s", "ctrl+t"),
    Command("Next kernel", "screen.step(1)", "Show the next kernel", ".", "ctrl+pagedown"),
    Command("Previous kernel", "screen.step(-1)", "Show the previous kernel", ",", "ctrl+pageup"),
    Command("Next pane", "next_pane", "Go to the cells, or to the prompt", "", "f6"),
    Command("Kernel list", "screen.sidebar", "Show or hide the list of kernels", "\\", "f8"),
    Command("First line", "scroll_cells('first')", "Go to the first line of the cells", "gg", "ctrl+home"),
    Command("Last line", "scroll_cells('last')", "Go to the end, and follow it", "G", "ctrl+end"),
    Command("Help", "app.help", "Show these keys", "?", "f1"),
    Command("Command palette", "app.palette", "Find a command by its name", ":", "ctrl+p"),
    Command("Redraw", "app.redraw", "Draw the whole screen again", "", "ctrl+l"),
    Command("Quit", "app.quit", "Stop all kernels and leave", "q", "ctrl+q"),
)
"""In the order of the help: what concerns cells, kernels, the screen, the program."""

Hint = tuple[str, str]
"""A key as a person reads it, and what it does in a word or two."""

HELP_LABEL: Final = "keys"
"""What the way to all keys is called: the hint that is the last to go where there is little room."""

RUNNING_HINTS: Final[Sequence[Hint]] = (
    ("^C", "interrupt"), ("^T", "kernels"), ("Esc", "commands"), ("F1", HELP_LABEL)
)  # fmt: skip
IDLE_HINTS: Final[Sequence[Hint]] = (
    ("Enter", "run"), ("^T", "kernels"), ("Esc", "commands"), ("F1", HELP_LABEL), ("^Q", "quit")
)  # fmt: skip
CELLS_HINTS: Final[Sequence[Hint]] = (("Up/Down", "scroll"), ("Esc", "prompt"), ("?", HELP_LABEL))
"""The keys that the status line names, the most useful first."""

DIGITS: Final = "123456789"
"""Behind Esc, each shows the kernel with that number."""

_NAMES: Final = {
    "pageup": "PgUp", "pagedown": "PgDn", "escape": "Esc", "delete": "Del", "question_mark": "?", "underscore": "_",
}  # fmt: skip


def shown(key: str) -> str:
    """Write a key as a person reads it: `^T`, `F1`, `PgUp`, `^PgDn`."""
    *modifiers, name = key.split("+")
    letter = name.upper() if modifiers else name
    name = letter if len(name) == 1 else _NAMES.get(name, name.title())
    return "".join("^" if modifier == "ctrl" else f"{modifier.title()}+" for modifier in modifiers) + name


def bindings(prefix: str) -> list[BindingType]:
    """Bind the keys of the commands whose action begins with this prefix; an empty one means those without any."""
    return [
        Binding(command.keys, command.action, command.title, tooltip=command.help)
        for command in COMMANDS
        if command.keys and command.action.partition("(")[0].rpartition(".")[0] == prefix
    ]


@dataclass(frozen=True, slots=True)
class Unknown:
    """Letters that mean nothing behind Esc."""

    letters: str


class EscapeLetters:
    """Collects what is pressed behind Esc until it is a command, or can no longer become one."""

    def __init__(self) -> None:
        self.pressed: str = ""
        """The letters so far."""
        self._commands = {command.letters: command for command in COMMANDS if command.letters}

    def press(self, character: str) -> Command | int | Unknown | None:
        """Return the command that is complete now, the number of a kernel, what is unknown, or None: more follows."""
        letters, self.pressed = self.pressed + character, ""
        if letters in DIGITS:
            return int(letters)
        if letters in self._commands:
            return self._commands[letters]
        if any(known.startswith(letters) for known in self._commands):
            self.pressed = letters
            return None
        return Unknown(letters)

    @property
    def hints(self) -> list[Hint]:
        """The letters that may follow, and what they lead to; what one looks for first comes first."""
        count = len(self.pressed)
        hints = [
            (" ".join(letters[count:]), command.short)
            for letters, command in self._commands.items()
            if letters.startswith(self.pressed)
        ]
        return hints if count else [("1-9", "kernel"), *sorted(hints, key=lambda hint: hint[0] not in "n?sq")]
