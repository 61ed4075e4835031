"""Text of one's own, as tests read it: with the stage's settings but for those that they name."""

import json

from pipeline.corpus.readers import Reading
from pipeline.corpus.sources import read_sources

READING = Reading(
    validation_share=0.05,
    held_out_share=0.1,
    max_bytes=10**9,
    text_field="text",
    domain_field="domain",
    unreadable="refuse",
    hf_split="train",
)


def read(*sources, **changes):
    settings = {name: getattr(READING, name) for name in READING.__slots__}
    return read_sources([str(source) for source in sources], Reading(**{**settings, **changes}))


def texts(documents):
    return [document.text for document in documents]


def write_jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path
