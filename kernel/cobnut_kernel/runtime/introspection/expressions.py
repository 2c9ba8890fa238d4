"""What stands before the cursor, as the tokens say: an expression, the beginning of a name, and what the text binds.

It answers what can be looked up in a namespace. Where tokens do not tell enough (a call's result, a string, a name that
the text binds itself) the answer is None, or names the name as rebound: that is left to static analysis.
"""

from __future__ import annotations

import io
import re
import tokenize
from dataclasses import dataclass, field, replace
from keyword import iskeyword
from typing import NamedTuple

_SKIPPED = frozenset({tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER})
_CLOSING = {")": "(", "]": "[", "}": "{"}
_OPENING = frozenset(_CLOSING.values())
_CALL = "call"
"""A bracket that holds arguments."""

_ENDS = frozenset({"\n", ";"})
_OPERATORS = frozenset(
    {"+", "-", "*", "/", "//", "%", "**", "@", "==", "!=", "<", ">", "<=", ">=", "&", "|", "^", "<<", ">>"}
    | {"and", "or", "is", "not", "in"}
)
_READ_BEFORE = (_OPERATORS - {"in"}) | {".", "(", "[", "if", "else", "for"}
"""What follows a name only where it is read."""

_READ_AFTER = _OPERATORS | {"=", "return", "yield", "await", "if", "elif", "while", "else", "assert"}
"""What a name follows only where it is read, if its statement, or the head of its block, ends after it."""

_MODULE = re.compile(r"(?:^|[\n;])[ \t]*(?:from[ \t]+|import[ \t]+(?:[^,;\n]+,[ \t]*)*)([\w.]*)\Z")
_BOUND_AFTER = frozenset({"def", "class", "del", "as", "global", "nonlocal", "lambda"})


class _Token(NamedTuple):
    type: int
    text: str
    end: tuple[int, int]

    @property
    def is_name(self) -> bool:
        return self.type == tokenize.NAME and not iskeyword(self.text)


_END = _Token(tokenize.NEWLINE, "\n", (0, 0))


@dataclass(frozen=True)
class Origin:
    """What an import statement binds a name to: a module, or what a module has under a name."""

    module: str
    name: str | None = None


@dataclass(frozen=True)
class Before:
    """What stands before the cursor.

    `expression` is what the prefix is to be an attribute of; `source` the module that it is imported from; `callee` the
    function whose argument is begun, `arguments` those it has by name. `roots` are the names with which `expression`
    and `callee` begin. `names` are all names in the text, `imports` those that it imports, `rebound` those that it may
    bind otherwise.
    """

    prefix: str
    expression: str | None = None
    source: str | None = None
    callee: str | None = None
    arguments: frozenset[str] = frozenset()
    roots: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    imports: dict[str, Origin] = field(default_factory=dict[str, Origin])
    rebound: frozenset[str] = frozenset()


def read(text: str) -> Before | None:
    """Read the text before the cursor; None where tokens do not tell enough."""
    tokens = _tokens(text)
    if tokens is None:
        return None
    lines = text.split("\n")
    at_cursor = bool(tokens) and tokens[-1].end == (len(lines), len(lines[-1]))
    prefix = ""
    if at_cursor and tokens[-1].type == tokenize.NAME:
        prefix = tokens.pop().text
    elif at_cursor and tokens[-1].type in {tokenize.NUMBER, tokenize.STRING}:
        return None
    before = _Reader(tokens).read()
    return None if before is None else replace(before, prefix=prefix)


def _tokens(text: str) -> list[_Token] | None:
    """Return the tokens that matter; None where the cursor is in a string, a comment or a line of IPython's own."""
    *others, line = text.split("\n")
    if text.lstrip().startswith("%%") or line.lstrip().startswith(("%", "!", "?")):
        return None
    python = ["" if other.lstrip().startswith(("%", "!")) else other for other in others]
    tokens: list[_Token] = []
    comment_in_line = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO("\n".join([*python, line])).readline):
            if token.type == tokenize.ERRORTOKEN and token.string.strip():
                return None
            if token.type == tokenize.COMMENT:
                comment_in_line = token.end[0]
            elif token.type not in _SKIPPED and token.string.strip(" \t\f") and token.type != tokenize.ERRORTOKEN:
                tokens.append(_Token(token.type, token.string.replace("\r\n", "\n"), token.end))
    except (tokenize.TokenError, SyntaxError) as error:
        if "multi-line statement" not in str(error):  # that one is a bracket that is still open
            return None
    return None if comment_in_line == len(others) + 1 else tokens


class _Reader:
    """Reads the tokens before the cursor, the begun name taken off."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._brackets: list[tuple[str, int]] = []
        self._imports: dict[str, Origin] = {}
        self._rebound: set[str] = set()

    def read(self) -> Before | None:
        start = max((i + 1 for i, token in enumerate(self._tokens) if token.text in _ENDS), default=0)
        statement = [token.text for token in self._tokens[start:]]
        if "import" in statement or statement[:1] == ["from"]:
            return _imported_from(statement)
        if statement and statement[-1] in {"def", "class"}:
            return None
        if statement and statement[-1] == ".":
            return self._attribute()
        return self._name()

    def _attribute(self) -> Before | None:
        start = self._primary(len(self._tokens) - 2)
        if start is None or not self._scan(start):
            return None
        return replace(self._found(), expression=self._text(start, -1), roots=frozenset({self._tokens[start].text}))

    def _name(self) -> Before | None:
        if not self._scan(len(self._tokens)):
            return None
        bracket, place = self._brackets[-1] if self._brackets else ("", 0)
        if bracket != _CALL or self._tokens[-1].text not in {"(", ","}:
            return self._found()
        start = self._primary(place - 1)
        if start is None:
            return None
        pairs = zip(self._tokens[place:], self._tokens[place + 1 :], strict=False)
        return replace(
            self._found(),
            callee=self._text(start, place),
            roots=frozenset({self._tokens[start].text}),
            arguments=frozenset(name.text for name, after in pairs if name.is_name and after.text == "="),
        )

    def _found(self) -> Before:
        names = {
            token.text
            for token, before in zip(self._tokens, [_END, *self._tokens], strict=False)
            if token.is_name and before.text != "."
        }
        return Before("", names=frozenset(names), imports=self._imports, rebound=frozenset(self._rebound))

    def _text(self, start: int, stop: int) -> str:
        return "".join(token.text for token in self._tokens[start:stop])

    def _primary(self, place: int) -> int | None:
        """Return where the expression that ends here begins: a name, its attributes, and items under a constant."""
        while place >= 0:
            token = self._tokens[place]
            if token.text == "]":
                place = self._item(place) - 1
            elif token.type == tokenize.STRING:
                return place if token.text[0] in "'\"" and not self._joined(place) else None
            elif not token.is_name:
                return None
            elif place and self._tokens[place - 1].text == ".":
                place -= 2
            else:
                return place
        return None

    def _item(self, place: int) -> int:
        """Return where the brackets that end here begin; 0 where more than a constant or a name is in them."""
        if place >= 2 and self._tokens[place - 2].text == "[":
            held = self._tokens[place - 1]
            return place - 2 if held.is_name or held.type in {tokenize.NUMBER, tokenize.STRING} else 0
        signed = place >= 3 and self._tokens[place - 2].text == "-" and self._tokens[place - 3].text == "["
        return place - 3 if signed and self._tokens[place - 1].type == tokenize.NUMBER else 0

    def _joined(self, place: int) -> bool:
        return place > 0 and self._tokens[place - 1].type == tokenize.STRING

    # ── what the text binds ─────────────────────────────────────────────────────────────────────────────────────────

    def _scan(self, stop: int) -> bool:
        """Gather what the tokens bind, and the brackets that are open; say whether that can be told."""
        place = 0
        while place < stop:
            token = self._tokens[place]
            if token.text in {"import", "from"} and self._before(place).text in _ENDS | {":"}:
                end = next((i for i in range(place, stop) if self._tokens[i].text in _ENDS), stop)
                if not self._import([token.text for token in self._tokens[place:end]]):
                    return False
                place = end
                continue
            self._follow_bracket(place)
            if token.is_name and self._binds(place):
                self._rebound.add(token.text)
            place += 1
        return True

    def _before(self, place: int) -> _Token:
        return self._tokens[place - 1] if place else _END

    def _after(self, place: int) -> _Token:
        return self._tokens[place + 1] if place + 1 < len(self._tokens) else _END

    def _follow_bracket(self, place: int) -> None:
        text = self._tokens[place].text
        if text in _OPENING:
            before = self._before(place)
            is_call = text == "(" and (before.is_name or before.text in {")", "]"})
            is_call = is_call and not (before.is_name and self._before(place - 1).text in {"def", "class"})
            self._brackets.append((_CALL if is_call else text, place))
        elif text in _CLOSING and self._brackets:
            self._brackets.pop()

    def _binds(self, place: int) -> bool:
        before, after = self._before(place).text, self._after(place).text
        if before == ".":
            return False
        if before in _BOUND_AFTER:
            return True
        if after in _READ_BEFORE or (before in _READ_AFTER and after in _ENDS | {":", ")", "]", "}", ","}):
            return False
        bracket = self._brackets[-1][0] if self._brackets else ""
        if bracket == _CALL:
            return not (before in {"(", ",", "=", "*", "**"} and after in {")", ",", "="})
        if bracket in {"[", "{"}:
            return after not in {"]", "}", ",", ":"}
        return not (before in _ENDS and after in _ENDS)

    def _import(self, words: list[str]) -> bool:
        """Note what an import statement binds; say whether that can be told."""
        words = [word for word in words if word not in {"(", ")"}]
        if "*" in words:
            return False
        module = ""
        if words[0] == "from":
            place = words.index("import") if "import" in words else len(words)
            module, words = "".join(words[1:place]), words[place:]
        for item in " ".join(words[1:]).split(" , "):
            path, _, alias = item.partition(" as ")
            self._bind_import(module, path.replace(" ", ""), alias)
        return True

    def _bind_import(self, module: str, path: str, alias: str) -> None:
        name = alias or path.split(".")[0]
        if module.startswith("."):
            self._rebound.add(name)
        elif module:
            self._imports[name] = Origin(module, path)
        else:
            self._imports[name] = Origin(path if alias else name)


def _imported_from(statement: list[str]) -> Before | None:
    """Read an import statement that is being written; None where no module has been named yet."""
    if statement[0] != "from" or "import" not in statement or statement[-1] not in {"import", ",", "("}:
        return None
    module = "".join(statement[1 : statement.index("import")])
    return None if module.startswith(".") else Before("", source=module)


def module_begun(text: str) -> str | None:
    """Return the beginning of a module's name, dots and all, where an import statement names one at the cursor."""
    found = _MODULE.search(text)
    return found and found[1]


def dotted(expression: str) -> list[str] | None:
    """Split an expression into the names of which each is an attribute of the one before; None if it is none."""
    parts = expression.split(".")
    return parts if all(part.isidentifier() for part in parts) else None
