"""Text of a corpus as a person sees it on one line: controls, marks of direction and broken bytes stand there as such.

A line break is \\n, a tab \\t, another character that is not seen \\uXXXX, a byte that is no UTF-8 there \\xNN,
and a backslash two of them.
"""

import codecs
from collections.abc import Iterable, Sequence

from artifacts.terminal import on_one_line


def bytes_of(token_bytes: Sequence[bytes], tokens: Iterable[int]) -> bytes:
    """What these tokens stand for, one after the other."""
    return b"".join(token_bytes[token] for token in tokens)


def visible(data: bytes) -> str:
    return _shown(_escaped(data).decode(errors="backslashreplace"))


def quoted(data: bytes) -> str:
    """The same in quotes, as Python writes a string."""
    text = visible(data)
    quote = '"' if "'" in text and '"' not in text else "'"
    return f"{quote}{text.replace(quote, chr(92) + quote)}{quote}"


def parted(before: bytes, last: bytes) -> tuple[str, str]:
    """What is before the last token and that token, both visible; a character that it completes is wholly its own."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
    first = decoder.decode(_escaped(before))
    return _shown(first), _shown(decoder.decode(_escaped(last), final=True))


def _escaped(data: bytes) -> bytes:
    return data.replace(b"\\", b"\\\\")


def _shown(text: str) -> str:
    return on_one_line(text.replace("\t", "\\t"))


def token_texts(token_bytes: Sequence[bytes]) -> list[str]:
    """The text of every token; a byte that is no UTF-8 by itself is the half of a surrogate pair that stands for it."""
    return [data.decode("utf-8", "surrogateescape") for data in token_bytes]


def quoted_text(text: str) -> str:
    """As `quoted`, of a text whose broken bytes are such halves."""
    return quoted(text.encode("utf-8", "surrogateescape"))
