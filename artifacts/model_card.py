"""The card of one artifact for the Hugging Face Hub, README.md: metadata in YAML, then markdown, from lineage alone.

The keys are those of the Hub's specifications, modelcard.md and datasetcard.md in github.com/huggingface/hub-docs.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from artifacts.cards import mermaid, metrics_table, number
from artifacts.columns import HUB, names
from artifacts.lineage import ArtifactId
from artifacts.manifest import Manifest
from artifacts.markdown import code, fenced, folded, table
from artifacts.meanings import meaning
from artifacts.reproduction import command
from artifacts.tree import text_tree
from artifacts.verification import Damage

LIBRARY = "legible-experts"
LICENSE = "mit"  # of the code; lineage knows none of the text
CORPUS, RECORD, REPORT = "corpus", "record", "report"  # the kinds that are no models


def model_card(manifest: Manifest, ancestry: Sequence[Manifest], missing: Sequence[Damage] = ()) -> str:
    """The card; `missing` are ancestors that cannot be read, above which nothing is known."""
    known = {ancestor.id: ancestor for ancestor in ancestry} | {manifest.id: manifest}
    sections = [
        f"---\n{_yaml(metadata(manifest, list(known.values())))}---",
        f"# {manifest.lineage.stage} · `{manifest.short}`",
        _summary(manifest),
        *([_missing(missing)] if missing else []),
        "## How it was made\n\n" + _made(manifest, known),
        "## How to load it\n\n" + _loading(manifest),
        "## Metrics\n\n" + metrics_table(manifest, known, explained=True),
        *_training_data(manifest, known),
        "## How to make it again\n\n" + _again(manifest, known),
        "## Digests\n\n" + _digests(manifest),
        "## Environment\n\n" + _environment(manifest),
        "## Limits\n\n" + "\n".join(f"* {limit}" for limit in _limits(manifest, missing)),
        folded("Config", _json(manifest.lineage.config)),
        folded("Spec", _json(manifest.spec)),
    ]
    return "\n\n".join(sections) + "\n"


def metadata(manifest: Manifest, ancestry: Sequence[Manifest]) -> dict[str, Any]:
    """The front matter. `base_model` and `datasets` name repositories of the Hub, of which lineage knows nothing."""
    tags = [LIBRARY, *dict.fromkeys((manifest.kind, manifest.lineage.stage))]
    if manifest.kind == CORPUS:
        return {"license": "unknown", "pretty_name": manifest.id, "task_categories": ["text-generation"], "tags": tags}
    if manifest.kind == RECORD:  # it holds the text's tokens
        return {"license": "unknown", "library_name": LIBRARY, "tags": tags}
    if manifest.kind == REPORT:
        return {"license": LICENSE, "library_name": LIBRARY, "tags": tags}
    results = _results(manifest, ancestry)
    index = {"model-index": [{"name": manifest.id, "results": results}]} if results else {}
    return {"license": LICENSE, "library_name": LIBRARY, "pipeline_tag": "text-generation", "tags": tags, **index}


def _results(manifest: Manifest, ancestry: Sequence[Manifest]) -> list[dict[str, Any]]:
    """What was measured on the held-out text of a corpus; nothing without knowing which."""
    measured = [name for name in names(HUB) if name in manifest.metrics]
    corpus = next((ancestor for ancestor in ancestry if ancestor.kind == CORPUS), None)
    if not measured or corpus is None:
        return []
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {
                "type": corpus.id,
                "name": f"held-out split of {corpus.id}",
                "split": "held_out",
                "revision": corpus.content_sha256,
            },
            "metrics": [
                {"type": name, "name": meaning(name, manifest.kind), "value": manifest.metrics[name]}
                for name in measured
            ],
        }
    ]


class _Quoting(yaml.SafeDumper):
    """Quotes all text but plain words: other readers of YAML take more bare text for numbers than this writer."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = None if re.fullmatch(r"[A-Za-z]+([_-][A-Za-z]+)*", data) else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Quoting.add_representer(str, _Quoting.represent_str)


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.dump(values, Dumper=_Quoting, sort_keys=False, allow_unicode=True, width=10**6)


def _summary(manifest: Manifest) -> str:
    lineage = manifest.lineage
    parents = [f"`{ref.id}` as {code(role)}" for role, ref in lineage.inputs.items()]
    size = f"{manifest.bytes:,} bytes in {len(manifest.files)} files"
    if "num_parameters" in manifest.metrics:
        size = f"{number(manifest.metrics['num_parameters'])} parameters, {size}"
    return (
        f"`{manifest.id}` is an artifact of kind `{manifest.kind}`: {size}. Stage `{lineage.stage}`, version "
        f"{lineage.stage_version}, made it with seed {lineage.seed} from "
        f"{', '.join(parents) or 'what lies outside the store'}. Every fact on this card was recorded when it was made."
    )


def _missing(missing: Sequence[Damage]) -> str:
    lines = [f"> * `{damage.id}`: {code(damage.what)}" for damage in missing]
    return "> Of these ancestors nothing more can be told, nor of what they were made from:\n>\n" + "\n".join(lines)


def _made(manifest: Manifest, known: Mapping[ArtifactId, Manifest]) -> str:
    manifests = list(known.values())
    graph = folded("The same as a Mermaid graph", fenced(mermaid(manifests, manifest.id), "mermaid"))
    rows = [
        (code(role), f"`{ref.id}`", f"`{known[ref.id].kind}`" if ref.id in known else "not at hand", f"`{ref.sha256}`")
        for role, ref in manifest.lineage.inputs.items()
    ]
    inputs = [table(("as", "input", "kind", "sha256 of its contents"), rows)] if rows else []
    return "\n\n".join([fenced(text_tree(manifests, manifest.id), "text"), graph, *inputs])


def _loading(manifest: Manifest) -> str:
    # The class that restores a kind is known once the module that has it is imported.
    module = {CORPUS: "corpus", RECORD: "records", REPORT: "report"}.get(manifest.kind, "models")
    lines = [
        "from pathlib import Path",
        "from artifacts import Store",
        f"from pipeline import codec, {module}",
        f'value = codec.load(Store(Path("store")).open("{manifest.id}"))',
    ]
    generate = f'python -m pipeline.generate {manifest.id} --prompt "def "'
    is_model = manifest.kind not in (CORPUS, RECORD, REPORT)
    further = f"\n\nWith its corpus in the store, too, it writes:\n\n{fenced(generate, 'sh')}" if is_model else ""
    return (
        f"With these files, `manifest.json` among them, in `store/{manifest.id}/` of a checkout of the code, "
        f"and from its root:\n\n{fenced(chr(10).join(lines), 'python')}{further}"
    )


def _training_data(manifest: Manifest, known: Mapping[ArtifactId, Manifest]) -> Iterator[str]:
    for corpus in known.values():
        if corpus.kind == CORPUS and corpus.id != manifest.id:
            rows = [
                (code(name), number(value), _plain(meaning(name, CORPUS))) for name, value in corpus.metrics.items()
            ]
            yield "\n\n".join(
                [
                    f"## Training data\n\nThe corpus `{corpus.id}`, contents `{corpus.content_sha256}`."
                    + _sources(corpus),
                    table(("metric", "value", "meaning"), rows) if rows else "Nothing of it was measured.",
                    folded("Config of the corpus", _json(corpus.lineage.config)),
                    folded("Spec of the corpus", _json(corpus.spec)),
                ]
            )


def _sources(corpus: Manifest) -> str:
    sources = corpus.lineage.sources_sha256
    return f" The text it was made from has the sha256 `{sources}`; where it lay is not recorded." if sources else ""


def _again(manifest: Manifest, known: Mapping[ArtifactId, Manifest]) -> str:
    """The command, and those of its ancestors, oldest first."""
    above = sorted((one for one in known.values() if one.id != manifest.id), key=lambda one: one.lineage.sequence)
    commands = "\n\n".join(f"`{ancestor.id}`, {_command(ancestor)}" for ancestor in above)
    inputs = f"\n\n{folded('What makes its inputs, in order', commands)}" if above else ""
    return f"In a checkout of the code {_command(manifest)}{inputs}"


def _command(manifest: Manifest) -> str:
    lineage = manifest.lineage
    where = f"at commit {_commit(manifest)}, with torch {code(lineage.torch)}:\n\n{fenced(command(lineage), 'sh')}"
    hint = "\n\nText other than the default corpus is named with `--config.sources`; where it lay is not recorded."
    return where + (hint if lineage.sources_sha256 else "")


def _digests(manifest: Manifest) -> str:
    rows = [(code(name), f"{record.bytes:,}", f"`{record.sha256}`") for name, record in manifest.files.items()]
    return (
        f"Contents `{manifest.content_sha256}`, manifest `{manifest.digest}`.\n\n"
        f"{table(('file', 'bytes', 'sha256'), rows)}"
    )


def _environment(manifest: Manifest) -> str:
    lineage = manifest.lineage
    rows = [
        ("commit", _commit(manifest)),
        ("torch", code(lineage.torch)),
        ("Python", code(lineage.python)),
        ("device", code(lineage.device)),
        ("seconds", f"{lineage.seconds:,.1f}"),
        ("made", lineage.created),
        ("place in its store", str(lineage.sequence)),
    ]
    return table(("fact", "value"), rows)


def _limits(manifest: Manifest, missing: Sequence[Damage]) -> Iterator[str]:
    """What follows from the facts alone."""
    lineage, tokens = manifest.lineage, manifest.metrics.get("held_out_tokens_measured")
    yield f"One run with one seed, {lineage.seed}: no figure here says how much another seed changes."
    if tokens is not None:
        yield f"Figures of held-out text are over {number(tokens)} tokens of its own corpus, and of no other text."
    if lineage.dirty:
        yield "The code had changes that its commit does not hold: that commit need not make the same bytes."
    yield f"Made on {code(lineage.device)}: other hardware and other versions of torch need not make the same bytes."
    if missing:
        yield f"Ancestors that cannot be read: {len(missing)}. The lineage above is not whole."
    if manifest.kind not in (CORPUS, RECORD):
        yield f"The licence `{LICENSE}` is that of the code."
    yield "Recorded were no licence of the text, no language and no intended use."


def _commit(manifest: Manifest) -> str:
    return code(manifest.lineage.commit) + (", with changes" if manifest.lineage.dirty else "")


def _json(value: object) -> str:
    return fenced(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False), "json")


def _plain(text: str) -> str:
    # `|v|^2` stands in the meaning of a metric.
    return text.replace("|", "\\|")
