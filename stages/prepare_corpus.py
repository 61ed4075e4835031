"""Text -> corpus: read the sources, hold some out, train a tokenizer, encode."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from artifacts import canonical_json, sha256_of_bytes
from kernels.errors import Mistake
from pipeline.corpus.default import default_sha256, read_default
from pipeline.corpus.documents import Document, DocumentSplits, sample_of
from pipeline.corpus.imported_tokenizer import imported_tokenizer
from pipeline.corpus.readers import Reading
from pipeline.corpus.sources import Source, read_sources, sources_sha256
from pipeline.corpus.splits import Corpus, CorpusSpec, make_split
from pipeline.corpus.text_files import user_path
from pipeline.corpus.tokenizer import BpeTokenizer, ByteTokenizer, TextTokenizer
from pipeline.figures.corpus import corpus_mix
from pipeline.measuring.compressors import CompressorsConfig, measure_compressors
from pipeline.stage import Output, StageConfig, stage


class PrepareCorpusConfig(StageConfig):
    sources: tuple[str, ...] = Field(
        default=(),
        exclude=True,  # the recipe holds the digest of their contents instead
        max_length=1024,
        description="Files, folders, .jsonl, .csv, .parquet or hf:NAME to read text from, each optionally after "
        "domain=; none means the default corpus, text of the pinned Python packages. At most 1024 sources.",
    )
    tokenizer: Literal["bpe", "bytes", "imported"] = Field(
        default="bpe",
        description="Byte-level BPE trained on the train split, raw bytes as tokens, or that of tokenizer_folder: bpe, "
        "bytes or imported.",
    )
    tokenizer_folder: str = Field(
        default="",
        exclude=True,  # the recipe's digest of sources covers what is read of it
        max_length=4096,
        description="Folder of a checkpoint, or of an import-monet in the store, whose tokenizer.json an imported "
        "tokenizer is.",
    )
    vocab_size: int = Field(
        default=1024,
        ge=259,
        le=65536,
        description="Most tokens that the BPE may have; bytes have 256.",
    )
    held_out_share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="Share held out of every source of one's own: its last documents, or the last "
        "bytes of a single text. The default corpus holds out a fixed list of packages.",
    )
    validation_share: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="Share of every source of one's own that settings are chosen on: the documents before "
        "the held-out ones, or the bytes of a single text. The default corpus has a fixed list of packages for it.",
    )
    max_bytes: int = Field(
        default=64_000_000,
        ge=1000,
        le=10**11,
        description="Most bytes of text to take: shared equally among sources of one's own "
        "(their beginnings), and in proportion among the splits and domains of the default corpus.",
    )
    tokenizer_sample_bytes: int = Field(
        default=8_000_000,
        ge=1000,
        le=10**9,
        description="Bytes of train text that the BPE is trained on, spread evenly.",
    )
    text_field: str = Field(
        default="text",
        min_length=1,
        max_length=200,
        description="Field that holds the text in .jsonl, .csv, .parquet and hf: sources, 1 to 200 characters.",
    )
    domain_field: str = Field(
        default="domain",
        max_length=200,
        description="Field of such rows that names a row's domain, at most 200 characters; rows without it, or all "
        "if this is empty, are of their source's domain.",
    )
    unreadable: Literal["refuse", "skip"] = Field(
        default="refuse",
        description="What becomes of a row or file that is not UTF-8, no JSON object, or without a string as text: "
        "refuse (with its place), or skip (and count).",
    )
    hf_split: str = Field(
        default="train",
        min_length=1,
        max_length=200,
        description="Split of hf: data sets that is read, as the hub names it, 1 to 200 characters.",
    )
    compressors: CompressorsConfig = Field(
        default=CompressorsConfig(), description="What text general compressors are measured on."
    )

    @field_validator("sources")
    @classmethod
    def _name_something(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        for source in sources:
            Source.parse(source)
        return sources

    @model_validator(mode="after")
    def _imports_from_somewhere(self) -> Self:
        if (self.tokenizer == "imported") != bool(self.tokenizer_folder):
            raise Mistake(
                f"tokenizer {self.tokenizer} and tokenizer_folder {self.tokenizer_folder[:400]!r} do not go together; "
                "an imported tokenizer is in a folder, and no other is"
            )
        return self

    @model_validator(mode="after")
    def _leave_some_to_train_on(self) -> Self:
        if self.held_out_share + self.validation_share >= 1:
            raise Mistake(
                f"held_out_share of {self.held_out_share} and validation_share of {self.validation_share} leave "
                "nothing to train on; together they must be below 1"
            )
        return self


def sources_digest(config: PrepareCorpusConfig) -> str:
    """sha256 of what the stage would read outside the store."""
    text = sources_sha256(config.sources, hf_split=config.hf_split) if config.sources else default_sha256()
    if config.tokenizer != "imported":
        return text
    tokenizer = imported_tokenizer(user_path(config.tokenizer_folder))
    tokens = {name: sha256_of_bytes(raw) for name, raw in tokenizer.to_files().items()}
    described = {"text": text, **tokens, "separator": tokenizer.separator, "tokens": len(tokenizer.token_bytes)}
    return sha256_of_bytes(canonical_json(described).encode())


@stage(name="prepare-corpus", version=5, sources=sources_digest)
def prepare_corpus(config: PrepareCorpusConfig) -> Output[Corpus]:
    """text -> corpus: documents with their domains as tokens, some to choose by, some held out."""
    splits = _read(config)
    tokenizer = _tokenizer(config, splits)
    spec = CorpusSpec(
        tokenizer=config.tokenizer,
        vocab_size=len(tokenizer.token_bytes),
        domains=splits.domains,
        separator=tokenizer.separator if config.tokenizer == "imported" else None,
    )
    index = {domain: i for i, domain in enumerate(splits.domains)}
    encoded = {
        name: make_split(((index[document.domain], document.text) for document in documents), tokenizer)
        for name, documents in splits.by_name.items()
    }
    corpus = Corpus(spec, **encoded, tokenizer=tokenizer)
    files = {"contents.json": _contents(splits), "plot.png": _picture(splits, corpus)}
    metrics = {**_metrics(splits, corpus), **measure_compressors(corpus, config.compressors)}
    return Output(value=corpus, metrics=metrics, files=files)


def _read(config: PrepareCorpusConfig) -> DocumentSplits:
    if not config.sources:
        return read_default(max_bytes=config.max_bytes)
    reading = Reading(
        validation_share=config.validation_share,
        held_out_share=config.held_out_share,
        max_bytes=config.max_bytes,
        text_field=config.text_field,
        domain_field=config.domain_field,
        unreadable=config.unreadable,
        hf_split=config.hf_split,
    )
    return read_sources(config.sources, reading)


def _tokenizer(config: PrepareCorpusConfig, splits: DocumentSplits) -> TextTokenizer:
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    if config.tokenizer == "imported":
        return imported_tokenizer(user_path(config.tokenizer_folder))
    return BpeTokenizer.train(sample_of(splits.train, config.tokenizer_sample_bytes), config.vocab_size)


def _metrics(splits: DocumentSplits, corpus: Corpus) -> Mapping[str, float]:
    text_bytes = _bytes_by_domain(splits.documents)
    held_out_bytes = sum(document.num_bytes for document in splits.held_out)
    return {
        "text_bytes": text_bytes.total(),
        **{f"text_bytes_{domain}": text_bytes[domain] for domain in splits.domains},
        "held_out_text_bytes": held_out_bytes,
        "train_tokens": corpus.train.num_tokens,
        "validation_tokens": corpus.validation.num_tokens,
        "held_out_tokens": corpus.held_out.num_tokens,
        "bytes_per_token_held_out": held_out_bytes / corpus.held_out.num_tokens,
        "documents_dropped": splits.num_dropped,
        "documents_unreadable": splits.num_unreadable,
        "replacement_characters": sum(document.text.count("\ufffd") for document in splits.documents),
    }


def _contents(splits: DocumentSplits) -> bytes:
    """JSON: text bytes by split, domain and origin."""
    counts: dict[str, dict[str, Counter[str]]] = {}
    for split, documents in splits.by_name.items():
        for document in documents:
            by_origin = counts.setdefault(split, {}).setdefault(document.domain, Counter())
            by_origin[document.origin] += document.num_bytes
    return json.dumps(counts, indent=1).encode()


def _picture(splits: DocumentSplits, corpus: Corpus) -> bytes:
    title = f"Corpus: {corpus.train.num_tokens:,} tokens to train on, {corpus.held_out.num_tokens:,} held out"
    return corpus_mix(title, _bytes_by_domain(splits.train), _bytes_by_domain(splits.held_out))


def _bytes_by_domain(documents: Iterable[Document]) -> Counter[str]:
    text_bytes = Counter[str]()
    for document in documents:
        text_bytes[document.domain] += document.num_bytes
    return text_bytes
