"""One's own text as documents in splits, not cleaned: files, folders, and `hf:` data sets."""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kernels.errors import Mistake
from pipeline.corpus.delimited import SUFFIXES as DELIMITED
from pipeline.corpus.documents import Document, DocumentSplits, held_out_first
from pipeline.corpus.hub import hf_commit, hf_parts, hf_rows
from pipeline.corpus.readers import MOST_DOMAIN_CHARACTERS, Reading, Row, path_rows, too_long
from pipeline.corpus.remarks import Remarks, left_out, repr_of, some
from pipeline.corpus.text_files import existing, files_under, others_under
from pipeline.run import say


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """`PATH`, `hf:NAME[:CONFIG][@REVISION]`, or either after `domain=`."""

    domain: str
    location: str

    @classmethod
    def parse(cls, text: str) -> "Source":
        named = re.fullmatch(r"([^\W\d_][\w-]*)=(.+)", text)
        domain, location = named.groups() if named and not os.path.exists(text) else (None, text)
        if not location.removeprefix("hf:").strip():
            raise Mistake(f"the source {text!r} names nothing to read; name a file, a folder or hf:NAME")
        domain = domain or re.split(r"[:@]", location.removeprefix("hf:"))[0].rstrip("/").split("/")[-1].split(".")[0]
        if len(domain) > MOST_DOMAIN_CHARACTERS:
            raise Mistake(f"the source {repr_of(text)}: {too_long(domain)}; write a shorter one before it, domain=")
        return cls(domain=_domain_name(domain), location=location)

    @property
    def is_hf(self) -> bool:
        return self.location.startswith("hf:")


def _domain_name(written: str) -> str:
    """Letters and digits of any script in lower case, with _ between; of a name without any its characters' numbers."""
    text = unicodedata.normalize("NFKC", written.lower()).lower()
    # Vowel signs of many scripts are marks: names that differ in them alone are different names.
    kept = "".join(one if unicodedata.category(one)[0] in "LNM" else " " for one in text)
    if name := "_".join(kept.split()):
        return name
    return "text" if written.isascii() else "_".join(f"u{ord(one):x}" for one in text if not one.isspace())


def read_sources(sources: Sequence[str], reading: Reading) -> DocumentSplits:
    """Every domain of every source split by itself: its last share is held out, the one before it for validation.
    Then no text of one split stands in another, whichever sources they are from.

    ValueError for unusable sources.
    """
    share_bytes = reading.max_bytes // len(sources)
    if not share_bytes:
        raise Mistake(
            f"max_bytes: got {reading.max_bytes:,} for {len(sources):,} sources, less than a byte each; take more bytes"
        )
    parts = [_split_source(Source.parse(source), reading, share_bytes) for source in sources]
    splits = held_out_first(
        (document for part in parts for document in part.train),
        (document for part in parts for document in part.validation),
        (document for part in parts for document in part.held_out),
    )
    splits = replace(splits, num_unreadable=sum(part.num_unreadable for part in parts))
    _require_few(splits.domains)
    _require_every_split(splits, sources)
    _tell_what_repeats(parts, splits)
    return splits


def _tell_what_repeats(parts: Sequence[DocumentSplits], splits: DocumentSplits) -> None:
    """Says which domains have lost all that they gave to a split, since other text repeats it."""
    for name, documents in splits.by_name.items():
        given = dict.fromkeys(document.domain for part in parts for document in part.by_name[name])
        for domain in sorted(given.keys() - {document.domain for document in documents}):
            say(f"the split {name!r} has no text of the domain {domain!r}: all of it repeats other text")


def require_sources(sources: Sequence[str]) -> None:
    """ValueError for local sources that are not there or hold no text; reads none of it."""
    for source in map(Source.parse, sources):
        if not source.is_hf:
            existing(source.location)


def _require_few(domains: Collection[str]) -> None:
    if len(domains) > 256:
        raise Mistake(
            f"{len(domains):,} domains were named and 256 is the most; let sources share a domain, or read none from "
            "rows by an empty domain_field"
        )


def _require_every_split(splits: DocumentSplits, sources: Sequence[str]) -> None:
    for name, documents in splits.by_name.items():
        if not documents:
            raise Mistake(
                f"nothing of {some(map(repr_of, sources))} is left for the split {name!r}: {splits.num_dropped:,} "
                "documents repeat text of the others; give more varied text, or other shares"
            )


def sources_sha256(sources: Sequence[str], *, hf_split: str) -> str:
    """Digest of what would be read: contents, names inside folders, domains, but not where the files lie."""
    described = [_described(Source.parse(source), hf_split) for source in sources]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _described(source: Source, hf_split: str) -> dict[str, Any]:
    if source.is_hf and not os.path.exists(source.location.removeprefix("hf:")):
        name, config, revision = hf_parts(source.location)
        commit = revision if revision and re.fullmatch(r"[0-9a-f]{40}", revision) else hf_commit(name, revision)
        return {"domain": source.domain, "hf": name, "config": config, "split": hf_split, "commit": commit}
    path = existing(source.location.removeprefix("hf:"))
    read = files_under(path)
    files = [(name, _file_sha256(file)) for name, file in read]
    described = {"domain": source.domain, "hf_split": hf_split if source.is_hf else None, "files": files}
    # Such files were once read as plain text, which is another corpus of the same bytes.
    return described | {"rows_of": "csv"} if any(file.suffix.lower() in DELIMITED for _, file in read) else described


def _file_sha256(file: Path) -> str:
    try:
        with file.open("rb") as data:
            return hashlib.file_digest(data, "sha256").hexdigest()
    except OSError as error:
        raise Mistake(f"{str(file)!r} cannot be read ({error.strerror}); make it readable or leave it out") from error


def _split_source(source: Source, reading: Reading, max_bytes: int) -> DocumentSplits:
    remarks = Remarks()
    if source.is_hf:
        rows = hf_rows(source.location, reading, remarks)
    else:
        rows = path_rows(existing(source.location), reading, remarks)
    documents = [_document(row, source, remarks) for row in _first_bytes(rows, max_bytes, remarks)]
    _tell(source, remarks, max_bytes)
    if not documents:
        why = f" that can be read ({remarks.first_unreadable})" if remarks.num_unreadable else ""
        raise Mistake(f"{source.location!r} holds no text{why}; name a source that does")
    by_domain: dict[str, list[Document]] = {}
    for document in documents:
        by_domain.setdefault(document.domain, []).append(document)
    _require_few(by_domain)
    parts = [
        _split(own, reading, source.location if len(by_domain) == 1 else f"{source.location}, domain {domain}")
        for domain, own in by_domain.items()
    ]
    return DocumentSplits(
        train=tuple(document for part in parts for document in part.train),
        validation=tuple(document for part in parts for document in part.validation),
        held_out=tuple(document for part in parts for document in part.held_out),
        num_dropped=0,
        num_unreadable=remarks.num_unreadable,
    )


def _document(row: Row, source: Source, remarks: Remarks) -> Document:
    domain = _domain_name(row.domain) if row.domain else source.domain
    if row.domain:
        remarks.spellings.setdefault(domain, set()).add(row.domain)
    return Document(domain=domain, origin=source.domain, name=row.name, text=row.text)


def _tell(source: Source, remarks: Remarks, max_bytes: int) -> None:
    sentences = remarks.sentences(max_bytes)
    if not source.is_hf and (others := others_under(existing(source.location))):
        sentences.append(left_out(others))
    for sentence in sentences:
        say(f"{repr_of(source.location)}: {sentence}")


def _split(documents: list[Document], reading: Reading, location: str) -> DocumentSplits:
    """The last documents are held out, those before them are for validation; the end of a text where there is one."""
    if len(documents) == 1:
        head, tail = _cut(documents[0], reading.held_out_share, location)
        train, validation = _cut(head, reading.validation_share / (1 - reading.held_out_share), location)
        return DocumentSplits(train=(train,), validation=(validation,), held_out=(tail,), num_dropped=0)
    num_before = min(len(documents) - 1, max(1, int(len(documents) * (1 - reading.held_out_share))))
    before, held_out = documents[:num_before], documents[num_before:]
    if num_before == 1:
        train, validation = ([part] for part in _cut(before[0], reading.validation_share, location))
    else:
        num_train = min(num_before - 1, max(1, num_before - round(len(documents) * reading.validation_share)))
        train, validation = before[:num_train], before[num_train:]
    return DocumentSplits(train=tuple(train), validation=tuple(validation), held_out=tuple(held_out), num_dropped=0)


def _cut(document: Document, tail_share: float, location: str) -> tuple[Document, Document]:
    """Head and tail of the text: its last `tail_share` of bytes, from the next character on."""
    data = document.text.encode()
    cut = int(len(data) * (1 - tail_share))
    while cut < len(data) and data[cut] & 0xC0 == 0x80:
        cut += 1
    if not 0 < cut < len(data):
        raise Mistake(f"{location!r} has {len(data)} bytes of text, too few to hold some out; give more text")
    head, tail = (
        Document(domain=document.domain, origin=document.origin, name=f"{document.name} {part}", text=text.decode())
        for part, text in (("head", data[:cut]), ("tail", data[cut:]))
    )
    return head, tail


def _first_bytes(rows: Iterable[Row], max_bytes: int, remarks: Remarks) -> Iterator[Row]:
    """The first `max_bytes` of text; the last document is cut there. Reads no further."""
    left = max_bytes
    for row in rows:
        data = row.text.encode()
        if data and left <= 0:
            remarks.is_cut = True
            return
        if data:
            yield row._replace(text=data[:left].decode(errors="ignore"))
        left -= len(data)
        if left < 0:
            remarks.is_cut = True
            return
