"""Lineage as text for people: a Mermaid graph, the markdown card of one artifact, and that of a run. Pure strings."""

import base64
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from artifacts.columns import COMPARABLE, HEADLINE, changed, columns, names
from artifacts.comparison import compare
from artifacts.lineage import ArtifactId
from artifacts.manifest import Manifest
from artifacts.markdown import code, fenced, folded, table
from artifacts.meanings import in_order, meaning
from artifacts.names import enumerated
from artifacts.shown_experts import ShownContext, ShownExpert

SMALL = '%%{init: {"flowchart": {"nodeSpacing": 16, "rankSpacing": 24, "padding": 6}}}%%'
"""Mermaid's spacing, by which the graph of the whole chain fits a screen."""
MOST_TEXT = 160
"""Characters of a statement or a text on a card; the artifact has all of it."""
_TEXT_BYTES = "text_bytes_"


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped:
    """Where and why a run did not go on."""

    at: str
    why: str
    helps_again: bool
    """Whether the same command may get further: not after a mistake, which would be made again."""


def mermaid(
    manifests: Sequence[Manifest],
    current: ArtifactId | None = None,
    links: Mapping[ArtifactId, str] | None = None,
) -> str:
    """A flowchart of these artifacts, arrows from input to output; a node with a link can be clicked."""
    nodes = {manifest.id: _node(manifest.id) for manifest in manifests}
    oldest_first = sorted(manifests, key=lambda manifest: manifest.lineage.sequence)
    of_stage = Counter(manifest.lineage.stage for manifest in manifests)
    lines = [SMALL, "flowchart TD"]
    lines += [f'    {nodes[m.id]}["{_label(m, is_alone=of_stage[m.lineage.stage] == 1)}"]' for m in oldest_first]
    for manifest in oldest_first:
        parents = dict.fromkeys(ref.id for ref in manifest.lineage.inputs.values())
        lines += [f"    {nodes[parent]} --> {nodes[manifest.id]}" for parent in parents if parent in nodes]
    for id, link in (links or {}).items():
        if id in nodes:
            lines.append(f'    click {nodes[id]} href "{_url(link)}" "{id}"')
    if current is not None and current in nodes:
        lines.append("    classDef current fill:#fde68a,stroke:#b45309,color:#1c1917,stroke-width:3px")
        lines.append(f"    class {nodes[current]} current")
    return "\n".join(lines)


def lineage_card(
    manifest: Manifest,
    ancestry: Sequence[Manifest],
    links: Mapping[ArtifactId, str] | None = None,
    *,
    used_by: Sequence[Manifest] = (),
    beside: Sequence[Manifest] = (),
    plot_png: bytes | None = None,
    experts: Sequence[ShownExpert] = (),
    folder: Path | None = None,
) -> str:
    """The card of one artifact, in the markdown that Prefect's UI shows: what it is, where it is from, how to open it.

    `used_by` are the artifacts made directly from it, `beside` others of its stage; what is in `links` can be clicked.
    `experts` are some of it in words, `folder` is where it lies.
    """
    links = links or {}
    known = {ancestor.id: ancestor for ancestor in ancestry} | {manifest.id: manifest}
    graph = mermaid(list(known.values()), manifest.id, links)
    config = fenced(json.dumps(manifest.lineage.config, indent=2, sort_keys=True, ensure_ascii=False), "json")
    sections = [
        f"# {manifest.lineage.stage} · `{manifest.short}`",
        table(*_figures(manifest)),
        *([_experts(experts)] if experts else []),
        fenced(graph, "mermaid"),
        *([_image(plot_png)] if plot_png else []),
        *(["## Open it\n\n" + _commands(manifest, folder)] if folder else []),
        "## Made from\n\n" + _parents(manifest, known, links),
        "## Used by\n\n" + _children(manifest.id, used_by, links),
        *(["## Others of this stage\n\n" + _siblings(manifest, beside, links)] if beside else []),
        folded("All metrics, with what each says", metrics_table(manifest, known, explained=True)),
        folded("Facts", table(("fact", "value"), _facts(manifest))),
        folded("Config", config),
    ]
    return "\n\n".join(sections) + "\n"


def run_card(
    made: Mapping[ArtifactId, str],
    manifests: Sequence[Manifest],
    links: Mapping[ArtifactId, str] | None = None,
    *,
    stopped: Stopped | None = None,
    experts: Sequence[ShownExpert] = (),
) -> str:
    """The card of one run of the chain: the graph of what it came to, and a row for each artifact.

    `made` says of each artifact how the run came by it, such as "reused"; `manifests` are these and all that they were
    made from; `stopped` says where and why the run did not go on; `experts` are some of the symbols in words.
    """
    links = links or {}
    known = {manifest.id: manifest for manifest in manifests}
    rows = [
        (known[id].lineage.stage, _named(id, links), how, in_words(known[id]))
        for id, how in made.items()
        if id in known
    ]
    sections = [
        "# From text to symbols",
        *([_stopped(stopped)] if stopped else []),
        fenced(mermaid(manifests, links=links), "mermaid") if manifests else "Nothing was made.",
        *([table(("stage", "artifact", "how", "measured"), rows)] if rows else []),
        *([_experts(experts)] if experts else []),
    ]
    return "\n\n".join(sections) + "\n"


def failure_card(why: str, trace: str) -> str:
    """The card of a run that failed: the sentence first, then for who looks for a bug where it was raised."""
    return f"# Why this run failed\n\n{code(why)}\n\n{folded('Traceback', fenced(trace.rstrip(), 'text'))}\n"


def brief(manifest: Manifest, store: str) -> dict[str, str]:
    """Loss, seed, steps, corpus and store, those of them that there are: what runs are told apart by."""
    loss = manifest.metrics.get("held_out_loss_nats")
    steps = manifest.lineage.config.get("training", {}).get("steps")
    corpus = manifest.lineage.inputs.get("corpus")
    return {
        **({} if loss is None else {"loss": f"{loss:.4f}"}),
        "seed": str(manifest.lineage.seed),
        **({} if steps is None else {"steps": f"{steps:,}"}),
        **({} if corpus is None else {"corpus": corpus.id.rpartition("-")[2][:8]}),
        "store": store,
    }


def caption(manifest: Manifest, store: str) -> str:
    """The lines of a tile, each short enough for it: the id, then what tells it from others."""
    said = brief(manifest, store)
    lines = (("loss", "seed", "steps"), ("corpus", "store"))
    told = (" · ".join(f"{word} {said[word]}" for word in words if word in said) for words in lines)
    return "\n\n".join([manifest.id, *(line for line in told if line)])


def in_words(manifest: Manifest) -> str:
    """The one figure that says most about the artifact, as people say it, or nothing."""
    column = next((column for column in columns(HEADLINE) if column.metric in manifest.metrics), None)
    return column.words.format(manifest.metrics[column.metric]) if column else ""


def headline(manifest: Manifest) -> str:
    """The one metric that says most about the artifact, or nothing."""
    name = next((name for name in names(HEADLINE) if name in manifest.metrics), None)
    return f"{name} {number(manifest.metrics[name])}" if name else ""


def number(value: float) -> str:
    """Whole numbers whole with their thousands apart, others with five digits."""
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e15 else f"{value:.5g}"


def signed(difference: float) -> str:
    """With its sign; whole numbers whole with their thousands apart."""
    sign = "+" if difference > 0 else ""
    return f"{difference:+.4g}" if difference != int(difference) else f"{sign}{int(difference):,}"


def _node(id: ArtifactId) -> str:
    # Mermaid takes some bare words and digits as its own: hence the letter in front.
    return "n" + id.replace("-", "_").replace("~", "_attempt_")


def _label(manifest: Manifest, *, is_alone: bool) -> str:
    """The stage and its figure; of several of one stage, what tells them apart, too."""
    lines = [manifest.lineage.stage, "" if is_alone else manifest.short, in_words(manifest)]
    return "<br/>".join(line for line in lines if line)


def _figures(manifest: Manifest) -> tuple[list[str], list[list[str]]]:
    """Head and one row of a table: what is asked first of an artifact of this kind, its size and what it took."""
    cells = [*_first_figures(manifest), ("size", _bytes(manifest.bytes)), ("took", duration(manifest.lineage.seconds))]
    return [head for head, _ in cells], [[cell for _, cell in cells]]


def _first_figures(manifest: Manifest) -> Iterator[tuple[str, str]]:
    metrics = manifest.metrics
    if "held_out_loss_nats" in metrics:
        yield "loss, nats a token", f"**{metrics['held_out_loss_nats']:.4f}**"
        if "loss_increase_nats" in metrics:
            yield "Δ to its parent", f"{metrics['loss_increase_nats']:+.4f}"
    elif manifest.kind == "corpus":
        yield from ((f"{split} tokens", number(metrics[name])) for split, name in
                    (("train", "train_tokens"), ("held-out", "held_out_tokens")) if name in metrics)  # fmt: skip
        yield "domains", _domains(metrics)
    elif said := in_words(manifest):
        yield "measured", f"**{said}**"


def _domains(metrics: Mapping[str, float]) -> str:
    """Their shares of the text, the largest first."""
    found = {name.removeprefix(_TEXT_BYTES): size for name, size in metrics.items() if name.startswith(_TEXT_BYTES)}
    total = sum(found.values()) or 1
    largest = sorted(found, key=lambda name: (-found[name], name))
    return enumerated([f"{code(name)} {found[name] / total:.0%}" for name in largest], most=4) or "one"


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def duration(seconds: float) -> str:
    """Seconds, or minutes and seconds from two minutes on."""
    return f"{seconds:.1f} s" if seconds < 120 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


_EXPERTS = (
    "Of the experts on the page those whose words have the best F1 against firing in the model that was distilled, on "
    "held-out text, which chose them; by chance: of random words that are true as often."
)


def _experts(experts: Sequence[ShownExpert]) -> str:
    return "\n\n".join(["## Experts in words", _EXPERTS, *map(_expert, experts)])


def _expert(shown: ShownExpert) -> str:
    lines = [
        f"**Block {shown.layer}, expert {shown.expert}** fires where {code(_cut(shown.statement))} "
        f"(F1 {shown.f1:.2f}; by chance {shown.null_f1:.2f}), and then {code(_cut(shown.writes))}",
        *(f"* {_context(context)}" for context in shown.contexts),
    ]
    return "\n".join([lines[0], "", *lines[1:]])


def _context(context: ShownContext) -> str:
    before = _end(context.before.replace("\n", "⏎"))
    token = context.token.replace("\n", "⏎") or " "
    return f"{code(before)} **→** {code(token)}" if before else f"**→** {code(token)}"


def _end(text: str) -> str:
    return text if len(text) <= 60 else f"…{text[-59:]}"


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


def _stopped(stopped: Stopped) -> str:
    again = " Run the same command again to go on from here." if stopped.helps_again else ""
    return f"**Stopped** at {code(stopped.at)}: {code(stopped.why)}{again}"


def _commands(manifest: Manifest, folder: Path) -> str:
    """A page of the artifact's cannot be a link: a browser that shows this card opens no file."""
    store = ["--store", str(folder.parent)]
    pages = sorted(name for name in manifest.files if name.endswith((".html", ".md")))
    lines = [["python", "-m", "webbrowser", (folder / page).as_uri()] for page in pages]
    if manifest.kind == "symbols":
        lines.append(["python", "-m", "pipeline.symbolic", "show", manifest.id, *store])
    if manifest.kind not in ("corpus", "record", "report"):
        lines.append(["python", "-m", "pipeline.generate", manifest.id, "--prompt", "def ", *store])
    lines.append(["python", "-m", "artifacts", *store, "show", manifest.id])
    return fenced("\n".join(shlex.join(line) for line in lines), "sh")


def _url(link: str) -> str:
    return link.replace('"', "%22").replace("\n", "")


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    lineage = manifest.lineage
    facts = [
        ("id", f"`{manifest.id}`"),
        ("kind", f"`{manifest.kind}`"),
        ("bytes", f"{manifest.bytes:,}"),
        ("sha256 of the contents", f"`{manifest.content_sha256}`"),
        ("stage version", str(lineage.stage_version)),
        ("seed", str(lineage.seed)),
        ("commit", code(lineage.commit[:12]) + (", with changes" if lineage.dirty else "")),
        ("torch, python", code(f"{lineage.torch}, {lineage.python}")),
        ("device", code(lineage.device)),
        ("took", f"{lineage.seconds:,.1f} s"),
        ("made", lineage.created),
        ("sequence", str(lineage.sequence)),
    ]
    return facts + ([("sha256 of the sources", f"`{lineage.sources_sha256}`")] if lineage.sources_sha256 else [])


def _parents(manifest: Manifest, known: Mapping[ArtifactId, Manifest], links: Mapping[ArtifactId, str]) -> str:
    rows = []
    for role, ref in manifest.lineage.inputs.items():
        kind = f"`{known[ref.id].kind}`" if ref.id in known else "not in the store"
        rows.append((code(role), _named(ref.id, links), kind, f"`{ref.sha256[:12]}`"))
    return table(("as", "artifact", "kind", "sha256"), rows) if rows else "Nothing in the store: this is a root."


def _children(id: ArtifactId, used_by: Sequence[Manifest], links: Mapping[ArtifactId, str]) -> str:
    rows = []
    for child in used_by:
        roles = ", ".join(role for role, ref in child.lineage.inputs.items() if ref.id == id)
        rows.append((_named(child.id, links), code(roles), f"`{child.kind}`", in_words(child)))
    return table(("artifact", "as", "kind", "measured"), rows) if rows else "Nothing yet."


def _siblings(manifest: Manifest, others: Sequence[Manifest], links: Mapping[ArtifactId, str]) -> str:
    """A row an artifact, with what it was asked for differently."""
    rows = []
    for other in others:
        differs = [f"{name} {json.dumps(there)}" for name, (_, there) in compare(manifest, other).recipe.items()]
        rows.append((_named(other.id, links), code(enumerated(differs) or "nothing, but its bytes"), in_words(other)))
    return table(("artifact", "was asked for with", "measured"), rows)


def _named(id: ArtifactId, links: Mapping[ArtifactId, str]) -> str:
    return f"[`{id}`]({links[id]})" if id in links else f"`{id}`"


def _image(png: bytes) -> str:
    # Prefect's page strips inline SVG and shows an image only as a data URI.
    return f"![the artifact's plot](data:image/png;base64,{base64.b64encode(png).decode()})"


def metrics_table(manifest: Manifest, known: Mapping[ArtifactId, Manifest], *, explained: bool = False) -> str:
    """A row a metric, a column for each input that can be compared with it; with words for each if `explained`."""
    if not manifest.metrics:
        return "None were recorded."
    parents = {
        role: known[ref.id].metrics
        for role, ref in manifest.lineage.inputs.items()
        if ref.id in known and COMPARABLE & known[ref.id].metrics.keys() & manifest.metrics.keys()
    }
    rows = []
    for name, value in in_order(manifest.metrics):
        changes = [changed(name, value, before) for before in parents.values()]
        # `|v|^2` stands in the meaning of a metric.
        words = [meaning(name, manifest.kind).replace("|", "\\|")] if explained else []
        rows.append((code(name), number(value), *("" if one is None else signed(one) for one in changes), *words))
    heads = [f"change from {code(role)}" for role in parents]
    return table(("metric", "value", *heads, *(["meaning"] if explained else [])), rows)
