"""Enter runs what is complete, and otherwise adds a line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cobnut.completeness import Verdict, next_indent, python_verdict

COMPLETE = [
    "1 + 1",
    "",
    "# a comment",
    "x = 1\ny = 2",
    "def f():\n    return 1\n",
    "def f():\n    return 1\n    ",
    "def f():\n    return 1\nf()",
    "for i in range(3): print(i)\n",
    "@decorator\ndef f(): ...\n",
    "await something()",
    "async with a as b:\n    await b\n",
    "x = (1,\n2)",
    '"""text\nmore"""',
    "%time x",
    "%timeit -n1 (",
    "!ls (",
    "?print",
    "print?",
    "print??",
    "files = !ls",
    "%matplotlib inline\nx = 1",
    "%%time\nx = 1\n",
    "%%bash\nfor i in 1 2 3\n",
    "import os; os.getcwd()",
    "'a' % 3",
]
INCOMPLETE = [
    "def f():",
    "def f():\n    return 1",
    "for i in range(3): print(i)",
    "if x:\n    y\nelse:",
    "if x:\n    !ls",
    "if x:\n    %time y",
    "%matplotlib inline\nfor x in y:",
    "class A:\n    x = 1",
    "@decorator",
    "f(1,",
    "x = (10\n% 3",
    '"""text',
    "x = 1 + \\",
    "!ls \\",
    "try:\n    x\n",
    "async def f():",
    "match x:\n    case 1:",
    "%%time",
    "%%time\nx = 1",
]
INVALID = ["1 +* 2", "x = )", "def f(:", "  x = 1\n y = 2", "print 'a'", "(" * 5000 + ")" * 5000, "a\0b", "é = ¡"]


@pytest.mark.parametrize("code", COMPLETE)
def test_complete(code: str) -> None:
    """Whole statements, ended blocks, magics, shell lines and questions run."""
    assert python_verdict(code) is Verdict.COMPLETE


@pytest.mark.parametrize("code", INCOMPLETE)
def test_incomplete(code: str) -> None:
    """Open blocks, brackets, strings, continued lines and cell magics get another line."""
    assert python_verdict(code) is Verdict.INCOMPLETE


@pytest.mark.parametrize("code", INVALID)
def test_invalid_runs(code: str) -> None:
    """What no further line can repair is run, so that the kernel says what is wrong with it."""
    verdict = python_verdict(code)
    assert verdict is Verdict.INVALID
    assert verdict.runs


def test_odd_code_warns_nobody() -> None:
    """The check is silent about code that Python warns of: the kernel says it, once."""
    assert python_verdict("'\\d' is 1") is Verdict.COMPLETE


@pytest.mark.parametrize(
    ("code", "indent"),
    [
        ("x = 1", ""),
        ("def f():", "    "),
        ("def f():  # why: because", "    "),
        ("    if x:", "        "),
        ("x = {", "    "),
        ("f(", "    "),
        ("x = 'a:'", ""),
        ("x = 1  # note:", ""),
        ("    y = 1", "    "),
        ("    return y", ""),
        ("        break", "    "),
        ("    returned = 1", "    "),
        ("", ""),
    ],
)
def test_next_indent(code: str, indent: str) -> None:
    """A line goes deeper behind a colon or bracket, back behind what leaves a block, and else stays."""
    assert next_indent(code) == indent


def test_ipython_is_not_imported() -> None:
    """Deciding imports neither IPython nor Textual."""
    code = (
        "import sys; from cobnut.completeness import python_verdict; python_verdict('%time 1\\nx');"
        "print(sorted({'IPython', 'textual'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
