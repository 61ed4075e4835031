"""A tokenizer that a checkpoint brings: byte-level BPE, or pieces with a fallback to bytes, as its tokenizer.json is.

What its tokens stand for is read from their names, and every text that is encoded is compared with the text of its
tokens: one that changes text cannot be used, since a loss a byte would be of another text.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from kernels.errors import Mistake
from pipeline.corpus.tokenizer import TOKENIZER, byte_of_character, decode_parts

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What stands for a space in the names of pieces."""
MOST_TOKENS = 2**16


class ImportedTokenizer:
    """Every text is one that its tokens stand for, after one space where the tokenizer begins each text with one."""

    def __init__(self, raw: bytes, *, separator: int | None, num_tokens: int) -> None:
        self._raw, self.separator = raw, separator
        self._tokenizer, record = _opened(raw)
        self._tokenizer.encode_special_tokens = True  # "</s>" in a document is text
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        known = _token_bytes(record)
        if not known or max(known) >= num_tokens:
            raise Mistake(
                f"{TOKENIZER} has a token {max(known, default=0)}, where the vocabulary has {num_tokens}; take both "
                "from one checkpoint"
            )
        if separator is not None and not 0 <= separator < num_tokens:
            raise Mistake(
                f"a document ends with token {separator}, where the vocabulary has {num_tokens}; take eos_token_id of "
                f"{CONFIG} and {TOKENIZER} from one checkpoint"
            )
        self.token_bytes = tuple(known.get(token, b"") for token in range(num_tokens))

    def encode(self, text: str) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        self._check(text, ids)
        return ids

    def encode_many(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        return (np.array(self.encode(text), dtype=np.uint16) for text in texts)

    def decode(self, ids: Iterable[int]) -> str:
        return decode_parts(self.token_bytes, ids)

    def to_files(self) -> dict[str, bytes]:
        return {TOKENIZER: self._raw}

    def _check(self, text: str, ids: list[int]) -> None:
        got, wanted = b"".join(self.token_bytes[token] for token in ids), text.encode()
        if got not in (wanted, b" " + wanted):
            at = next((i for i, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), len(wanted))
            raise Mistake(
                f"{TOKENIZER} does not keep text as it is: {wanted[max(0, at - 8) : at + 8]!r} becomes "
                f"{got[max(0, at - 8) : at + 8]!r}; losses a byte need one that does, so leave such text out"
            )


def imported_tokenizer(folder: Path) -> ImportedTokenizer:
    """The tokenizer in the folder of a checkpoint, or of an imported model. Mistake where there is none to use.

    A vocabulary that config.json makes larger, as models pad theirs, has tokens that stand for no text.
    """
    file = folder / TOKENIZER
    if not file.is_file():
        raise Mistake(f"there is no {TOKENIZER} in {folder}; name the folder of a checkpoint, or of an imported model")
    raw = file.read_bytes()
    config, tokens = _read(folder / CONFIG), _read(folder / TOKENIZER_CONFIG)
    _, record = _opened(raw)
    num_tokens = config.get("vocab_size", max(_token_bytes(record), default=0) + 1)
    if type(num_tokens) is not int or not 1 <= num_tokens <= MOST_TOKENS:
        raise Mistake(f"{folder} has a vocabulary of {num_tokens!r} tokens; a corpus numbers at most {MOST_TOKENS}")
    return ImportedTokenizer(raw, separator=_separator(tokens, config, record), num_tokens=num_tokens)


def _read(file: Path) -> Mapping[str, Any]:
    return _parsed(file.read_bytes(), file.name) if file.is_file() else {}


def _parsed(raw: bytes, name: str = TOKENIZER) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Mistake(f"{name} is no JSON ({error}); copy it again") from None
    if not isinstance(found, dict):
        raise Mistake(f"{name} is no JSON object; copy it again")
    return found


def _opened(raw: bytes) -> tuple[Tokenizer, dict[str, Any]]:
    """With the JSON that it is, whose fields are then of the types that `tokenizers` knows."""
    record = _parsed(raw)
    try:
        return Tokenizer.from_buffer(raw), record  # from_str tells the same as Exception, and nothing narrower
    except ValueError as error:
        raise Mistake(f"{TOKENIZER} is none that `tokenizers` opens ({error}); copy it again") from error


def _separator(tokens: Mapping[str, Any], config: Mapping[str, Any], record: Mapping[str, Any]) -> int | None:
    """The token that ends a document: eos, by its text or by its number."""
    name = tokens.get("eos_token")
    name = name.get("content") if isinstance(name, dict) else name
    if isinstance(name, str):
        added = {one["content"]: one["id"] for one in record.get("added_tokens") or []}
        found = added.get(name, record["model"]["vocab"].get(name))
        if found is None:
            raise Mistake(f"{TOKENIZER_CONFIG} has eos_token {name!r}, which {TOKENIZER} does not know")
        return found
    number = config.get("eos_token_id")
    number = number[0] if isinstance(number, list) and number else number
    return number if type(number) is int else None


def _token_bytes(record: Mapping[str, Any]) -> dict[int, bytes]:
    """By token, the text that it stands for; nothing of what is special."""
    model = record.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not all(type(token) is int and token >= 0 for token in vocab.values()):
        raise Mistake(f"{TOKENIZER} has no vocabulary of pieces and their numbers; BPE has one")
    kinds = set(_kinds(record.get("decoder")))
    if not kinds & {"ByteLevel", "ByteFallback"}:
        raise Mistake(
            f"{TOKENIZER} decodes by {', '.join(sorted(kinds)) or 'nothing'}; wanted ByteLevel, or pieces with "
            "ByteFallback, which lose no text"
        )
    text_of = _byte_level if "ByteLevel" in kinds else _piece
    special = {one["id"]: one for one in record.get("added_tokens") or []}
    found = {token: text_of(name) for name, token in vocab.items() if token not in special}
    return found | {
        token: b"" if one.get("special") else str(one["content"]).encode() for token, one in special.items()
    }


def _kinds(decoder: Any) -> Iterator[str]:
    if isinstance(decoder, dict):
        yield str(decoder.get("type"))
        for inner in decoder.get("decoders") or []:
            yield from _kinds(inner)


def _byte_level(name: str) -> bytes:
    byte_of = byte_of_character()
    return bytes(byte_of[character] for character in name) if {*name} <= byte_of.keys() else name.encode()


def _piece(name: str) -> bytes:
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes.fromhex(name[3:5])
    return name.replace(_SPACE, " ").encode()
