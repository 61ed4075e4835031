"""Text to token ids and back without loss: byte-level BPE trained by `tokenizers`, or plain bytes."""

import codecs
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cache
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from artifacts import ArtifactError

TOKENIZER = "tokenizer.json"
END_OF_DOCUMENT = "<|end|>"
_END_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()
_PIECE_CHARACTERS = 250_000  # long texts are encoded in pieces: bounded memory, and both cores busy
_BATCH_CHARACTERS = 4_000_000


class TextTokenizer(Protocol):
    """What a corpus asks of its tokenizer. `token_bytes[i]` is the text that token i stands for."""

    @property
    def token_bytes(self) -> Sequence[bytes]: ...

    @property
    def separator(self) -> int | None:
        """The token that ends a document and stands for no text; none where tokens are raw bytes."""
        ...

    def encode(self, text: str) -> list[int]: ...

    def encode_many(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """One uint16 array a text, without separators."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Never raises: what is no token and what is not UTF-8 becomes U+FFFD."""
        ...

    def to_files(self) -> dict[str, bytes]: ...


class ByteTokenizer:
    """Every token is one byte of UTF-8."""

    separator = None

    def __init__(self) -> None:
        self.token_bytes = tuple(bytes([value]) for value in range(256))

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_many(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        return (np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint16) for text in texts)

    def decode(self, ids: Iterable[int]) -> str:
        return decode_parts(self.token_bytes, ids)

    def to_files(self) -> dict[str, bytes]:
        return {}


class BpeTokenizer:
    """Byte-level BPE. The text "<|end|>" in a document is text: only the corpus writes the separator."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True  # not kept in tokenizer.json, so set on every opening
        self._tokenizer = tokenizer
        self.separator = tokenizer.token_to_id(END_OF_DOCUMENT)
        byte_of = byte_of_character()
        names = (str(tokenizer.id_to_token(token)) for token in range(tokenizer.get_vocab_size()))
        self.token_bytes = tuple(
            b"" if name == END_OF_DOCUMENT else bytes(byte_of[character] for character in name) for name in names
        )

    @classmethod
    def from_json(cls, raw: bytes) -> "BpeTokenizer":
        """ArtifactError unless it is what `train` makes, of whatever vocabulary."""
        try:
            record = json.loads(raw.decode())
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{TOKENIZER} is no JSON in UTF-8 ({error}); make the artifact again") from None
        if problem := _problem(record):
            raise ArtifactError(
                f"{TOKENIZER} is none that this version trains: {problem}; make the artifact again, or use the version "
                "that made it"
            )
        return cls(Tokenizer.from_str(json.dumps(_form_of(record["model"]["vocab"], record["model"]["merges"]))))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BpeTokenizer":
        """At most `vocab_size` tokens: a short text runs out of pairs before. Same texts, same tokenizer."""
        _let_tokenizers_use_threads()
        tokenizer = _untrained()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_DOCUMENT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            max_token_length=32,  # no token is a whole line of dashes
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def encode_many(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        _let_tokenizers_use_threads()
        for batch in _batches(texts):
            pieces = [_pieces(text) for text in batch]
            encodings = iter(self._tokenizer.encode_batch_fast([piece for text in pieces for piece in text]))
            for text in pieces:
                yield np.array([token for _ in text for token in next(encodings).ids], dtype=np.uint16)

    def decode(self, ids: Iterable[int]) -> str:
        return decode_parts(self.token_bytes, ids)

    def to_files(self) -> dict[str, bytes]:
        return {TOKENIZER: self._tokenizer.to_str().encode()}


def _untrained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _form_of(vocab: Mapping[str, int], merges: Sequence[Any]) -> dict[str, Any]:
    """The JSON of a tokenizer that was trained here, with this vocabulary."""
    form = json.loads(_untrained().to_str())
    form["model"] |= {"vocab": vocab, "merges": [_pair(merge) for merge in merges]}
    form["added_tokens"] = [{"id": vocab.get(END_OF_DOCUMENT), "content": END_OF_DOCUMENT, **_END_FLAGS}]
    return form


def _pair(merge: Any) -> Any:
    """Older versions of `tokenizers` write a merge as its two parts with a space between."""
    return merge.split(" ") if isinstance(merge, str) else merge


def _problem(record: Any) -> str | None:
    """What keeps this JSON from being that of a tokenizer that was trained here, or None.

    `tokenizers` takes much more, regular expressions that panic in Rust among it, and tells all of it as Exception.
    """
    model = record.get("model") if isinstance(record, dict) else None
    if not isinstance(model, dict):
        return "it has no model"
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        return "its model has no vocabulary and merges"
    if problem := _problem_of_vocabulary(vocab) or _problem_of_merges(merges, vocab):
        return problem
    form = _form_of(vocab, merges)
    return _difference(record, form, "its", {"model"}) or _difference(
        model, form["model"], "its model's", {"vocab", "merges"}
    )


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any], whose: str, apart: Set[str]) -> str | None:
    for name in sorted({*theirs, *ours} - apart):
        got, wanted = theirs.get(name), ours.get(name)
        if got != wanted and (got or wanted):  # what is off, none or empty is left out by some versions of `tokenizers`
            return f"{whose} {name!r} is {json.dumps(got)}, not {json.dumps(wanted)}"
    return None


def _problem_of_vocabulary(vocab: Mapping[str, Any]) -> str | None:
    if not all(type(token) is int for token in vocab.values()) or {*vocab.values()} != {*range(len(vocab))}:
        return "the tokens of its vocabulary are not numbered from 0 on, each once"
    alphabet = byte_of_character()
    for name in vocab:
        if name != END_OF_DOCUMENT and not (name and alphabet.keys() >= {*name}):
            return f"{name!r} in its vocabulary is outside the alphabet of bytes"
    missing = [character for character in alphabet if character not in vocab]
    return f"{missing[0]!r}, a byte, is not in its vocabulary" if missing else None


def _problem_of_merges(merges: Sequence[Any], vocab: Mapping[str, Any]) -> str | None:
    for merge in merges:
        pair = _pair(merge)
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            return f"the merge {json.dumps(merge)} is no pair"
        if not vocab.keys() >= {*pair, "".join(pair)} or END_OF_DOCUMENT in (*pair, "".join(pair)):
            return f"the merge {json.dumps(merge)} speaks of tokens that are not in its vocabulary"
    return None


def decoded(tokenizer: TextTokenizer, ids: Iterable[int]) -> Iterator[str]:
    """What `decode` makes of them, bit by bit: a character is there once its last byte is."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    yield from filter(None, (decoder.decode(part) for part in _parts(tokenizer.token_bytes, ids)))
    if left := decoder.decode(b"", final=True):
        yield left


def decode_parts(token_bytes: Sequence[bytes], ids: Iterable[int]) -> str:
    return b"".join(_parts(token_bytes, ids)).decode(errors="replace")


def _parts(token_bytes: Sequence[bytes], ids: Iterable[int]) -> Iterator[bytes]:
    return (token_bytes[i] if 0 <= i < len(token_bytes) else _REPLACEMENT for i in ids)


@cache
def byte_of_character() -> dict[str, int]:
    """The byte-level alphabet: printable Latin-1 bytes are themselves, the others follow from U+0100 on."""
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in itself]
    return {chr(byte): byte for byte in itself} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _pieces(text: str) -> list[str]:
    """Cuts of a long text that change no token: after a lone line break between two other characters."""
    cuts = [0]
    while (start := cuts[-1] + _PIECE_CHARACTERS) < len(text):
        found = re.compile(r"\S\n(?=\S)").search(text, start)
        if found is None:
            break
        cuts.append(found.end())
    return [text[start:end] for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _let_tokenizers_use_threads() -> None:
    """Said aloud, since `tokenizers` writes a warning to stderr at a later fork where nobody chose."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
