"""Is an input complete? Decided here for Python, without a kernel and without IPython, so that Enter is instant.

IPython's own transformer is not asked, not even later: it would cost its import at the first Enter, and its answer
differs only for input that the kernel refuses anyway.
"""

from __future__ import annotations

import ast
import re
import warnings
from codeop import CommandCompiler
from enum import StrEnum
from typing import Final


class Verdict(StrEnum):
    """What Enter does with an input; the words are those of the protocol's is_complete_reply."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    INVALID = "invalid"
    UNKNOWN = "unknown"

    @property
    def runs(self) -> bool:
        """Whether Enter runs the input; what can never become right is run too, and the kernel says what is wrong."""
        return self in (Verdict.COMPLETE, Verdict.INVALID)


INDENT: Final = "    "

_MAGIC: Final = re.compile(r"^([ \t]*)(?:%(?!%)\S|!|\?|[^#'\"]*\?{1,2}[ \t]*$|[\w., ]+=[ \t]*[%!])[^\n]*", re.MULTILINE)
_COMPOUND: Final = (
    ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match,
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef,
)  # fmt: skip
_LEAVES_BLOCK: Final = re.compile(r"[ \t]*(?:return|raise|pass|break|continue)\b")
_STRING_OR_COMMENT: Final = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|#.*")

_compiler = CommandCompiler()
_compiler.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def python_verdict(code: str) -> Verdict:
    """Decide for Python as its prompt does: a block ends with an empty line, and so does a cell magic (`%%`)."""
    ends_blank = not code.rpartition("\n")[2].strip()
    if code.lstrip().startswith("%%"):
        return Verdict.COMPLETE if "\n" in code and ends_blank else Verdict.INCOMPLETE
    if "\n" not in code.strip() and _MAGIC.match(code.strip()):
        return Verdict.INCOMPLETE if code.rstrip(" ").endswith("\\") else Verdict.COMPLETE
    verdict = _compiled(code, ends_blank)
    if verdict is Verdict.INVALID and (plain := _MAGIC.sub(r"\1pass", code)) != code:
        return _compiled(plain, ends_blank)
    return verdict


def _compiled(code: str, ends_blank: bool) -> Verdict:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the kernel will say what is odd about the code
        try:
            if _compiler(code, symbol="exec") is None:
                return Verdict.INCOMPLETE
            statements = ast.parse(code).body
        except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError):
            return Verdict.INVALID
    opens_block = bool(statements) and isinstance(statements[-1], _COMPOUND)
    return Verdict.INCOMPLETE if opens_block and not ends_blank else Verdict.COMPLETE


def next_indent(code: str) -> str:
    """Return the white space that a new line behind `code` begins with: deeper behind a colon or an open bracket."""
    line = code.rpartition("\n")[2]
    indent = line[: len(line) - len(line.lstrip())]
    bare = _STRING_OR_COMMENT.sub("", line).rstrip()
    if bare.endswith((":", "(", "[", "{")):
        return indent + INDENT
    if _LEAVES_BLOCK.match(line):
        return indent.removesuffix(INDENT)
    return indent
