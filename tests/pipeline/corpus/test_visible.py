"""Text as it is shown: nothing moves a cursor, broken bytes are seen, and what is shown tells all texts apart."""

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.tokenizer import ByteTokenizer
from pipeline.corpus.visible import parted, quoted, quoted_text, token_texts, visible


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"def f():\n\tx", r"def f():\n\tx"),
        (b"\x1b[2J\x07\x00\x7f", r"\u001b[2J\u0007\u0000\u007f"),
        ("\u202e\u2028\u00a0".encode(), r"\u202e\u2028\u00a0"),
        ("é€\U0001f600".encode(), "é€\U0001f600"),
        (b"\xe2\x82", r"\xe2\x82"),
        (b"a\xffb", r"a\xffb"),
        (rb"\n\xff", r"\\n\\xff"),
    ],
)
def test_what_is_not_seen_is_shown_as_an_escape(data, shown):
    assert visible(data) == shown


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_no_two_texts_look_alike_and_none_moves_a_cursor(one, other):
    assert (visible(one) == visible(other)) == (one == other)
    assert visible(one).isprintable()


@given(st.text(max_size=20))
def test_a_text_in_quotes_is_that_text_in_python(text):
    data = text.encode("utf-8", "replace")
    shown = quoted(data)
    assert ast.literal_eval(shown).encode("utf-16", "surrogatepass").decode("utf-16") == data.decode()


@given(st.binary(max_size=12), st.binary(max_size=5))
def test_the_parts_are_the_whole_and_a_character_is_never_torn(before, last):
    first, second = parted(before, last)
    assert first + second == visible(before + last)


def test_a_character_belongs_to_the_token_that_completes_it():
    assert parted(b"a\xe2\x82", b"\xac") == ("a", "€")
    assert parted(b"a", b"\xe2") == ("a", r"\xe2")


def test_texts_of_tokens_keep_their_bytes():
    texts = token_texts(ByteTokenizer().token_bytes)
    assert len(set(texts)) == 256
    assert quoted_text(texts[0x80]) == r"'\x80'"
    assert quoted_text(texts[ord("'")]) == '"' + "'" + '"'
