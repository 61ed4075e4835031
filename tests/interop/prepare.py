"""`python -m tests.interop.prepare DIR`: exports of every kind, with what the project itself makes of the same text.

Models are tiny and of random weights, over a corpus of this repository's pages: what is compared is numbers. They are
those of torch's own operators, whether or not the C++ kernels were built: with AVX-512 those round a token to 15 bits
where tables are int8 or int4, which is no question of the export.
"""

import json
import math
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import torch

from artifacts import Circumstance, Recipe, Store
from pipeline import codec
from pipeline.exchange.exporting import export
from pipeline.measuring.loss import token_losses
from pipeline.stage import run_stage
from stages.prepare_corpus import PrepareCorpusConfig, prepare_corpus
from tests.tiny import EVERY_KIND, SOFTMAX, tiny_model
from tests.tiny_symbols import symbols_model

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = 64
KINDS = EVERY_KIND | {"peer-relu": SOFTMAX.model_copy(update={"gate": "relu", "pools": "per-head", "num_experts": 80})}
CHOSEN = "int4"
"""The one that goes through all tools."""


@patch("kernels.backends.cpu_library", lambda: None)
def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tasks").mkdir(parents=True)
    store = Store(folder / "store")
    corpora = {
        name: run_stage(prepare_corpus, PrepareCorpusConfig(
            sources=(str(ROOT / "docs"), str(ROOT / "README.md")), tokenizer=name, vocab_size=400
        ), inputs={}, store=store).id
        for name in ("bpe", "bytes")
    }  # fmt: skip
    corpus = codec.load(store.open(corpora["bpe"]))
    vocabulary = corpus.spec.vocab_size
    models = {name: (tiny_model(spec, vocab_size=vocabulary), "bpe") for name, spec in KINDS.items()}
    models["symbols"] = symbols_model(), "bytes"
    tokens = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(0))
    logits = {}
    for name, (model, tokenizer) in models.items():
        id = store.publish(
            recipe=Recipe(stage=f"made-{name}", stage_version=1, config={"training": {"context_length": CONTEXT}},
                          seed=0, inputs={"corpus": corpora[tokenizer]}),
            kind=model.kind, spec=model.spec.model_dump(mode="json"), tensors=model.to_tensors(), metrics={}, files={},
            circumstance=Circumstance.now(device="cpu", seconds=0.0),
        )  # fmt: skip
        export(store, id, folder / name, shard_bytes=10_000)
        with torch.no_grad():
            logits[name] = model(tokens)
    torch.save({"tokens": tokens, "logits": logits, "kinds": {name: model.kind for name, (model, _) in models.items()}},
               folder / "expected.pt")  # fmt: skip
    write_tasks(folder, corpus, models[CHOSEN][0])


def write_tasks(folder, corpus, model) -> None:
    """Two tasks of lm-eval out of held-out text, and what this project measures on them."""
    split, tokenizer = corpus.held_out, corpus.tokenizer
    ids = split.tokens_at(torch.arange(split.num_tokens)).tolist()
    starts = [*split.document_start_D.tolist(), len(ids)]
    texts = [tokenizer.decode(ids[a : b - 1]) for a, b in pairwise(starts)]
    pieces = [text[at : at + 700] for text in texts for at in range(0, len(text) - 700, 700)][:12]
    nats, text_bytes = 0.0, 0
    for text in pieces:
        nats += rolling_nats(model, tokenizer.encode(text), tokenizer.separator)
        text_bytes += len(text.encode())
    questions = [
        {
            "context": text[:60],
            "choices": [other[60:80] for other in pieces[at : at + 4] + pieces[: max(0, at - 8)]][:4],
        }
        for at, text in enumerate(pieces)
    ]
    right = sum(best_choice(model, tokenizer, question) == 0 for question in questions)
    expected = {"bits_per_byte": nats / text_bytes / math.log(2), "accuracy": right / len(questions), "chosen": CHOSEN}
    (folder / "expected.json").write_text(json.dumps(expected))
    for name, rows, task in (
        ("rolling", [{"text": text} for text in pieces], ROLLING),
        ("choices", questions, CHOICES),
    ):
        data = folder.resolve() / "tasks" / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name, data=data) + task)


TASK = """task: legible_{name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
"""
ROLLING = """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
"""
CHOICES = """output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
target_delimiter: ""
metric_list:
  - metric: acc
"""


@torch.no_grad()
def rolling_nats(model, ids: list[int], first: int) -> float:
    """Of all tokens, each read by a window of CONTEXT; the last window is full too, and counts what is new in it."""
    read, nats = [first, *ids], 0.0
    for end in [*range(CONTEXT, len(ids), CONTEXT), len(ids)]:
        new = end - (end - 1) // CONTEXT * CONTEXT
        window = torch.tensor(read[max(0, end - CONTEXT) : end + 1])
        losses = token_losses(model(window[None, :-1]), window[None, 1:])[0]
        nats += float(losses[-new:].double().sum())
    return nats


@torch.no_grad()
def best_choice(model, tokenizer, question) -> int:
    """The continuation of largest likelihood."""
    before, likelihoods = len(tokenizer.encode(question["context"])), []
    for choice in question["choices"]:
        ids = torch.tensor(tokenizer.encode(question["context"] + choice))
        losses = token_losses(model(ids[None, :-1]), ids[None, 1:])[0]
        likelihoods.append(-float(losses[before - 1 :].sum()))
    return max(range(len(likelihoods)), key=likelihoods.__getitem__)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
