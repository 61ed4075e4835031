"""Python source falls apart into code that still parses and the prose of its docstrings."""

import ast
import inspect
from pathlib import Path

import pytest

import pipeline
from pipeline.corpus.python_source import clean_docstring, code_and_prose

SOURCE = '''#!/usr/bin/env python
"""A module.

    With an indented part.
"""
import os  # why


class Empty(Exception):
    r"""Raised \\never."""


def f(x, y="# no comment"):  # a comment
    \'\'\'Doc of f.\'\'\'
    text = """not a
    docstring"""
    if x:
        "a lone string"
    g(
        "an argument"
        "in two parts"
    )
    long = \\
        "continued"
    return f"{x} # not a comment {y!r}", [
        'a'
    ]
'''


def test_comments_and_docstrings_leave_the_code():
    code, _ = code_and_prose(SOURCE)
    assert "module" not in code
    assert "why" not in code
    assert "a comment\n" not in code.replace("# not a comment", "").replace("# no comment", "")
    assert '"# no comment"' in code
    assert '"an argument"\n        "in two parts"' in code
    assert '"continued"' in code
    assert "    docstring" in code


def test_a_block_left_empty_gets_pass():
    code, _ = code_and_prose(SOURCE)
    assert "class Empty(Exception):\n    pass\n" in code
    assert "if x:\n        pass\n" in code
    ast.parse(code)


def test_prose_holds_the_docstrings_in_order():
    _, prose = code_and_prose(SOURCE)
    assert prose == [
        "A module.\n\nWith an indented part.",
        "Raised \\never.",
        "Doc of f.",
        "a lone string",
    ]


@pytest.mark.parametrize("source", ["", '"', "x = '", '"""', "'''a", "#", '""', 'b"bytes"\n', "(((", "\\"])
def test_any_text_is_taken_even_if_it_is_no_python(source):
    code, prose = code_and_prose(source)
    assert isinstance(code, str)
    assert all(prose)


@pytest.mark.parametrize("path", sorted(Path(pipeline.__file__).parent.glob("*.py")), ids=lambda path: path.name)
def test_this_package_still_parses_to_the_same_names_without_its_docstrings(path):
    source = path.read_text(encoding="utf-8")
    code, _ = code_and_prose(source)
    assert names(code) == names(source)
    assert ast.get_docstring(ast.parse(code)) is None


def names(source: str) -> list[str]:
    return [node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]


@pytest.mark.parametrize("text", ["One line.", "First.\n\n    Then.\n        Deeper.\n    ", "\n  a\n  b\n", " x\n\ty"])
def test_cleaning_a_docstring_agrees_with_the_standard_library(text):
    assert clean_docstring(text) == "\n".join(line.rstrip() for line in inspect.cleandoc(text).split("\n"))
