"""No text breaks a table, a fence or a fold."""

import html
import re

from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from artifacts.markdown import code, fenced, folded, table

RENDER = MarkdownIt("commonmark").enable("table").render
TEXT = st.text(st.sampled_from("ab1 _*[]()<>&|`\\\n\r\t~-:#'\"!é😀\x85\u2028"), min_size=1, max_size=12)


@given(TEXT)
@example("a|b")
@example("a\\|b")
@example("`")
@example(" ")
@example("--- | ---\n| x |")
def test_code_in_a_table_shows_the_text_and_nothing_else(text):
    shown = RENDER(table(("one", "two"), [(code(text), "after"), ("next", "row")]))
    rows = re.findall(r"<tr>(.*?)</tr>", shown, re.DOTALL)
    assert [len(re.findall(r"<t[hd]>", row)) for row in rows] == [2, 2, 2]
    (found,) = re.findall(r"<code>(.*?)</code>", rows[1], re.DOTALL)
    assert html.unescape(found) == text.replace("\r", "\n") or html.unescape(found) == text


@given(TEXT.filter(lambda text: "\r" not in text))  # to markdown a line break like the others
@example("```\nout")
@example("````")
@example("</details>")
def test_a_fence_holds_whatever_it_holds(text):
    tokens = MarkdownIt("commonmark").parse(folded("Config", fenced(text, "json")))
    (block,) = [token for token in tokens if token.type == "fence"]
    assert block.content == text + "\n"
    assert block.info == "json"
