"""`python -m pipeline.seeds`: the chain's metrics, mean and standard deviation over seeds, as a Markdown table.

Below it what makes its rows no means of like things, and dense against Monet, paired by seed. The tables in README.md
are what this prints after `python flows.py run --seed 0`, `--seed 1` and `--seed 2`.
"""

import statistics
import sys
from collections.abc import Sequence

from artifacts import (
    ArtifactError,
    CommandParser,
    Manifest,
    Store,
    as_command,
    canonical_json,
    sha256_of_bytes,
    show_every_text,
    store_folder,
    told,
)
from artifacts.columns import PAIRS, SEEDS, columns
from artifacts.layout import flowing, terminal_width, wrapped
from artifacts.markdown import code, table
from artifacts.terminal import say
from pipeline.measuring.alike import context_of, unlike


def newest_by_seed(manifests: Sequence[Manifest]) -> dict[str, dict[int, Manifest]]:
    """For every stage and seed its newest artifact; manifests come oldest first."""
    found: dict[str, dict[int, Manifest]] = {}
    for manifest in manifests:
        found.setdefault(manifest.lineage.stage, {})[manifest.lineage.seed] = manifest
    return found


def spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation over seeds; the value alone if there is one."""
    if not values:
        return ""
    mean = form.format(statistics.fmean(values))
    if len(values) < 2:
        return mean
    return f"{mean} ± {form.replace('+', '').format(statistics.stdev(values))}"


def table_or_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, which files and wide terminals take; in others its cells line after line."""
    text, width = table(head, rows, numbers_from=1), terminal_width()
    if width is None or max(map(len, text.splitlines())) <= width:
        return text
    return flowing(head, rows, width)


def model_table(stages: dict[str, dict[int, Manifest]]) -> str:
    """A row for every stage that measured a model."""
    shown, rows = columns(SEEDS), []
    for stage, by_seed in stages.items():
        made = list(by_seed.values())
        if not any("held_out_loss_nats" in manifest.metrics for manifest in made):
            continue
        cells = [spread([m.metrics[c.metric] for m in made if c.metric in m.metrics], c.form) for c in shown]
        contexts = [context for m in made if (context := context_of(m.lineage.config)) is not None]
        cells += [spread(contexts, "{:.0f}"), spread([m.lineage.seconds for m in made], "{:.0f}")]
        rows.append((f"`{stage}`", str(len(made)), *cells))
    head = ("stage", "seeds", *(column.heading for column in shown), "context", "seconds")
    return table_or_lines(head, rows)


def unlike_seeds(stages: dict[str, dict[int, Manifest]], manifests: Sequence[Manifest]) -> list[str]:
    """A sentence for each stage whose seeds trained on other amounts, in other windows or on other text."""
    corpora = {str(m.id): _text_of(m) for m in manifests if m.kind == "corpus"}
    found = []
    for stage, by_seed in stages.items():
        measured = {f"seed {seed}": m for seed, m in by_seed.items() if "held_out_loss_nats" in m.metrics}
        texts = [(name, corpora.get(_corpus_of(m))) for name, m in measured.items()]
        found += [f"{stage}: {sentence}" for sentence in _unlike(list(measured.items())) if sentence]
        if len({text for _, text in texts if text is not None}) > 1:
            found.append(f"{stage}: text of " + ", ".join(f"{name} {text}" for name, text in texts if text))
    return found


def _unlike(models: Sequence[tuple[str, Manifest]]) -> tuple[str, str]:
    """What is wrong with a mean over them, or a difference between them: two sentences, empty where nothing is."""
    tokens = [(name, m.metrics.get("train_tokens")) for name, m in models]
    contexts = [(name, context_of(m.lineage.config)) for name, m in models]
    return unlike("train tokens", tokens), unlike("context", contexts, 0.0)


def _corpus_of(manifest: Manifest) -> str:
    ref = manifest.lineage.inputs.get("corpus")
    return "" if ref is None else ref.id


def _text_of(corpus: Manifest) -> str:
    """The beginning of a digest of all that a corpus was asked for but its seed, which changes nothing in it."""
    asked = corpus.lineage.recipe.model_dump(exclude={"seed"})
    return sha256_of_bytes(canonical_json(asked).encode())[:8]


BASELINE, RIVAL = "train-dense", "train-monet"


def pairs_of(stages: dict[str, dict[int, Manifest]]) -> list[tuple[Manifest, Manifest]]:
    """Dense and Monet of each seed that both have, trained alike and measured on one corpus."""
    return [pair for pair in _all_pairs(stages) if not _why_no_pair(*pair)]


def no_pairs(stages: dict[str, dict[int, Manifest]]) -> list[str]:
    """A sentence for each seed whose dense is not set against its Monet."""
    why = [(monet.lineage.seed, _why_no_pair(dense, monet)) for dense, monet in _all_pairs(stages)]
    return [f"seed {seed}: {reason}" for seed, reason in why if reason]


def _all_pairs(stages: dict[str, dict[int, Manifest]]) -> list[tuple[Manifest, Manifest]]:
    dense, monet = stages.get(BASELINE, {}), stages.get(RIVAL, {})
    return [(dense[seed], monet[seed]) for seed in sorted(dense.keys() & monet.keys())]


def _why_no_pair(dense: Manifest, monet: Manifest) -> str:
    if dense.lineage.inputs != monet.lineage.inputs:
        return f"corpus of dense {_corpus_of(dense)}, Monet {_corpus_of(monet)}"
    return "; ".join(sentence for sentence in _unlike([("dense", dense), ("Monet", monet)]) if sentence)


def difference_table(pairs: Sequence[tuple[Manifest, Manifest]]) -> str:
    """Dense minus Monet, paired by seed: the mean difference and its 95 % interval by Student's t, of two seeds on."""
    rows = []
    for column in columns(PAIRS):
        name, form = column.metric, column.form
        known = [(dense, monet) for dense, monet in pairs if name in dense.metrics and name in monet.metrics]
        if not known:
            continue
        dense, monet = ([pair[side].metrics[name] for pair in known] for side in (0, 1))
        rows.append((column.heading, spread(dense, form), spread(monet, form), _difference(dense, monet, form)))
    return table_or_lines((f"{len(pairs)} seeds", "dense", "Monet", "dense - Monet, 95 %"), rows)


def _difference(values: Sequence[float], baseline: Sequence[float], form: str) -> str:
    signed = form.replace(":", ":+")
    if len(values) < 2:
        return signed.format(values[0] - baseline[0])
    from pipeline.studies.intervals import paired  # only now: scipy takes a second to load

    between = paired(values, baseline)
    return f"{signed.format(between.mean)} ± {form.format(between.half_width)}"


def metric_table(by_seed: dict[int, Manifest], names: Sequence[str]) -> str:
    """A row for each of these metrics of one stage."""
    values = {name: [m.metrics[name] for m in by_seed.values() if name in m.metrics] for name in names}
    rows = [(code(name), spread(of_name, "{:.4g}")) for name, of_name in values.items() if of_name]
    return table_or_lines(("metric", "value"), rows)


def _note(what: str, sentence: str) -> str:
    return wrapped(f"**{what}: {sentence}.**", terminal_width())


@as_command
def main(arguments: Sequence[str]) -> int:
    """Prints the table of models, or with --stage all metrics of one stage."""
    show_every_text()
    parser = CommandParser(prog="python -m pipeline.seeds", description=__doc__)
    parser.add_argument("--store", type=store_folder, default="store", help="folder of the artifacts (default: store)")
    parser.add_argument("--stage", help="print every metric of this stage instead")
    parser.add_argument("--metrics", nargs="+", help="with --stage: only these metrics")
    values = parser.parse_args(arguments)
    store = Store(values.store)
    store.require_folder()
    manifests = store.manifests()
    stages = newest_by_seed(manifests)
    if values.stage is None:
        texts = [model_table(stages), *(_note("Not alike", sentence) for sentence in unlike_seeds(stages, manifests))]
        if pairs := pairs_of(stages):
            texts.append(difference_table(pairs))
        texts += [_note("Not compared", sentence) for sentence in no_pairs(stages)]
        say("\n\n".join(texts))
        return 0
    if values.stage not in stages:
        known = ", ".join(stages) or "nothing"
        print(told(f"the store holds nothing made by {values.stage!r}; it has {known}"), file=sys.stderr)  # noqa: T201
        return 2
    by_seed = stages[values.stage]
    names = values.metrics or sorted({name for m in by_seed.values() for name in m.metrics})
    say(metric_table(by_seed, names))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ArtifactError as error:
        print(told(error), file=sys.stderr)  # noqa: T201
        sys.exit(2)
