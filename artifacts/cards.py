"""Lineage as text for people: a Mermaid graph, the markdown card of one artifact, and that of a run. Pure strings."""

import base64
import json
from collections.abc import Mapping, Sequence

from artifacts.columns import COMPARABLE, HEADLINE, changed, names
from artifacts.comparison import compare
from artifacts.lineage import ArtifactId
from artifacts.manifest import Manifest
from artifacts.markdown import code, fenced, folded, table
from artifacts.meanings import in_order, meaning
from artifacts.names import enumerated


def mermaid(
    manifests: Sequence[Manifest],
    current: ArtifactId | None = None,
    links: Mapping[ArtifactId, str] | None = None,
) -> str:
    """A flowchart of these artifacts, arrows from input to output; a node with a link can be clicked."""
    nodes = {manifest.id: _node(manifest.id) for manifest in manifests}
    oldest_first = sorted(manifests, key=lambda manifest: manifest.lineage.sequence)
    lines = ["flowchart TD"]
    lines += [f'    {nodes[m.id]}["{_label(m)}"]' for m in oldest_first]
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
) -> str:
    """The card of one artifact, in the markdown that Prefect's UI shows: where it is from, what it is.

    `used_by` are the artifacts made directly from it, `beside` others of its stage; what is in `links` can be clicked.
    """
    links = links or {}
    known = {ancestor.id: ancestor for ancestor in ancestry} | {manifest.id: manifest}
    graph = mermaid(list(known.values()), manifest.id, links)
    config = fenced(json.dumps(manifest.lineage.config, indent=2, sort_keys=True, ensure_ascii=False), "json")
    sections = [
        f"# {manifest.lineage.stage} · `{manifest.short}`",
        fenced(graph, "mermaid"),
        *([_image(plot_png)] if plot_png else []),
        "## Made from\n\n" + _parents(manifest, known, links),
        "## Used by\n\n" + _children(manifest.id, used_by, links),
        *(["## Others of this stage\n\n" + _siblings(manifest, beside, links)] if beside else []),
        "## Metrics\n\n" + metrics_table(manifest, known),
        "## Facts\n\n" + table(("fact", "value"), _facts(manifest)),
        folded("Config", config),
    ]
    return "\n\n".join(sections) + "\n"


def run_card(
    made: Mapping[ArtifactId, str],
    manifests: Sequence[Manifest],
    links: Mapping[ArtifactId, str] | None = None,
    *,
    stopped: str | None = None,
) -> str:
    """The card of one run of the chain: the graph of what it came to, and a row for each artifact.

    `made` says of each artifact how the run came by it, such as "reused"; `manifests` are these and all that they were
    made from; `stopped` says where and why the run did not go on.
    """
    links = links or {}
    known = {manifest.id: manifest for manifest in manifests}
    rows = [
        (known[id].lineage.stage, _named(id, links), how, headline(known[id]))
        for id, how in made.items()
        if id in known
    ]
    sections = [
        "# From text to symbols",
        *([f"**Stopped** at {code(stopped)} Run the same command again to go on from here."] if stopped else []),
        fenced(mermaid(manifests, links=links), "mermaid") if manifests else "Nothing was made.",
        *([table(("stage", "artifact", "how", "measured"), rows)] if rows else []),
    ]
    return "\n\n".join(sections) + "\n"


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


def _label(manifest: Manifest) -> str:
    lines = [manifest.lineage.stage, manifest.short, headline(manifest)]
    return "<br/>".join(line for line in lines if line)


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
        rows.append((_named(child.id, links), code(roles), f"`{child.kind}`", headline(child)))
    return table(("artifact", "as", "kind", "measured"), rows) if rows else "Nothing yet."


def _siblings(manifest: Manifest, others: Sequence[Manifest], links: Mapping[ArtifactId, str]) -> str:
    """A row an artifact, with what it was asked for differently."""
    rows = []
    for other in others:
        differs = [f"{name} {json.dumps(there)}" for name, (_, there) in compare(manifest, other).recipe.items()]
        rows.append((_named(other.id, links), code(enumerated(differs) or "nothing, but its bytes"), headline(other)))
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
