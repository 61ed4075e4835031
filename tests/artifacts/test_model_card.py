"""The card for the Hub: its metadata is the Hub's, its markdown holds whatever stands in it, its code runs."""

import html
import re

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from artifacts import Circumstance, Lineage, Manifest, Recipe, Store, mermaid
from artifacts.ancestry import known_ancestry
from artifacts.manifest import LARGEST, FileRecord
from artifacts.model_card import metadata, model_card
from artifacts.verification import Damage
from pipeline.models import LanguageModel
from pipeline.report import Report, ReportSpec
from tests.tiny import DENSE, INT4, VERTICAL, tiny_corpus, tiny_model

MEASURED = {"held_out_loss_nats": 2.625, "kl_to_teacher_nats": 1e-05, "loss_recovered": 0.99, "seconds": 7.0}


def chain(publish):
    corpus = publish(metrics={"train_tokens": 1_500_000, "text_bytes_code": 77})
    monet = publish("train-monet", kind="monet", corpus=corpus, metrics={"held_out_loss_nats": 2.5})
    peer = publish("distill-peer", {"lr": 0.1}, kind="peer", corpus=corpus, monet=monet, metrics=MEASURED)
    return corpus, monet, peer


def card_of(store: Store, id: str) -> str:
    ancestry = known_ancestry(store, [store.resolve(id)])
    return model_card(store.manifest(id), ancestry.manifests, ancestry.missing)


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_hub_reads_the_metadata_of_a_model(store, publish):
    corpus, _, peer = chain(publish)
    data = ModelCard(card_of(store, peer)).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("mit", "legible-experts", "text-generation")
    assert data.tags == ["legible-experts", "peer", "distill-peer"]
    assert data.model_name == peer
    results = {result.metric_type: result for result in data.eval_results or []}
    assert results.keys() == {"held_out_loss_nats", "kl_to_teacher_nats", "loss_recovered"}
    assert results["kl_to_teacher_nats"].metric_value == 1e-05
    assert results["held_out_loss_nats"].metric_name == "mean cross-entropy of a held-out token, nats"
    assert {result.dataset_type for result in results.values()} == {corpus}


def test_a_corpus_gets_the_card_of_a_data_set_and_a_report_none_of_a_model(store, publish):
    corpus = publish()
    report = publish("report", kind="report", corpus=corpus, metrics={"dense_bits_per_byte": 1.9})
    data = DatasetCard(card_of(store, corpus)).data
    assert (data.license, data.pretty_name, data.task_categories) == ("unknown", corpus, ["text-generation"])
    assert front_matter(card_of(store, report)).keys() == {"license", "library_name", "tags"}
    record = publish("record-activations", kind="record", corpus=corpus, metrics={"recorded_tokens": 9.0})
    about = front_matter(card_of(store, record))
    assert about.keys() == {"license", "library_name", "tags"}
    assert about["license"] == "unknown"  # the tokens are those of the text
    assert "from pipeline import codec, records" in card_of(store, record)
    assert "pipeline.generate" not in card_of(store, record)
    assert "| `dense_bits_per_byte` | 1.9 | held-out bits a byte of the dense baseline |" in card_of(store, report)


def test_the_card_tells_lineage_metrics_data_digests_and_limits(store, publish):
    corpus, monet, peer = chain(publish)
    card, manifest = card_of(store, peer), store.manifest(peer)
    assert f"   └─ {peer}  [peer]" in card
    assert mermaid(store.ancestry(peer), peer) in card
    assert "| metric | value | change from `monet` | meaning |" in card
    assert "| `held_out_loss_nats` | 2.625 | +0.125 | mean cross-entropy of a held-out token, nats |" in card
    assert "mean KL(parent \\|\\| this)" in card
    assert f"The corpus `{corpus}`, contents" in card
    assert "| `text_bytes_code` | 77 | bytes of text of the domain code |" in card
    assert "| `train_tokens` | 1,500,000 | tokens of the train split |" in card
    for record in manifest.files.values():
        assert f"`{record.sha256}`" in card
    assert f"--monet {monet}" in card
    assert "One run with one seed, 0" in card
    assert "with changes" not in card


def test_figures_are_not_compared_with_those_of_a_corpus(store, publish):
    corpus = publish(metrics={"train_tokens": 1_500_000})
    monet = publish("train-monet", kind="monet", corpus=corpus, metrics={"train_tokens": 7})
    assert "change from" not in card_of(store, monet)


def test_an_ancestor_that_is_gone_is_named_and_the_rest_is_told(store, publish):
    corpus, monet, peer = chain(publish)
    (store.root / corpus / "manifest.json").unlink()
    card = card_of(store, peer)
    assert f"> * `{corpus}`: `manifest.json cannot be read (No such file or directory)`" in card
    assert "Ancestors that cannot be read: 1" in card
    assert "model-index" not in front_matter(card)  # nobody can say on which text the figures were measured
    assert f"`{monet}`" in card


def test_changes_to_the_code_are_told(store, publish):
    manifest = store.manifest(publish())
    dirty = manifest.model_copy(update={"lineage": manifest.lineage.model_copy(update={"dirty": True})})
    assert "at commit `c0ffee`, with changes" in model_card(dirty, [dirty])


def test_an_artifact_without_metrics_has_a_card(store, publish):
    manifest = store.manifest(publish("train-monet", kind="monet")).model_copy(update={"metrics": {}})
    card = model_card(manifest, [manifest])
    assert "None were recorded." in card
    assert "model-index" not in front_matter(card)


VALUES = {
    "corpus": tiny_corpus,
    "dense": lambda: tiny_model(DENSE),
    "monet": lambda: tiny_model(VERTICAL),
    "peer-int4": lambda: tiny_model(INT4),
    "report": lambda: Report(ReportSpec(rows=()), {"report.md": b"# none"}),
}


@pytest.mark.parametrize("kind", VALUES)
def test_the_code_on_the_card_loads_the_artifact_beside_its_card(kind, tmp_path, monkeypatch):
    value, store = VALUES[kind](), Store(tmp_path / "store")
    id = store.publish(
        recipe=Recipe(stage="made-up", stage_version=1, config={}, seed=0, inputs={}),
        kind=value.kind,
        spec=value.spec.model_dump(mode="json"),
        tensors=value.to_tensors(),
        metrics={},
        files=value.to_files(),
        circumstance=Circumstance.now(device="cpu", seconds=1.0),
    )
    (store.root / id / "README.md").write_text(card := card_of(store, id))
    (lines,) = [block.content for block in MarkdownIt().parse(card) if block.info == "python"]
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(lines, scope)
    assert scope["value"].kind == value.kind == kind
    assert isinstance(value, LanguageModel) == ("python -m pipeline.generate" in card)


TEXT = st.text(st.sampled_from("ab1e _*[]()<>&|`\\\n\t~-:#'\"!%@{},?é😀\x85\u2028\x7f"), min_size=1, max_size=10)


@settings(deadline=None, max_examples=50)
@given(TEXT, TEXT, TEXT, st.floats(-LARGEST, LARGEST))
def test_no_text_breaks_the_card(key, text, other, number):
    recipe = Recipe(
        stage="train-monet", stage_version=1, config={key: text, "deep": {other: [text]}}, seed=0, inputs={}
    )
    here = Circumstance(
        commit=text, dirty=True, torch=other, python=key, device=text, seconds=1, created="2026-01-31T12:00:00+00:00"
    )
    lineage = Lineage(**recipe.model_dump(), **here.model_dump(), sequence=1)
    manifest = Manifest.describe(
        id=recipe.id,
        kind="monet",
        spec={key: text},
        metrics={other: number, "held_out_loss_nats": number},
        lineage=lineage,
        files={"weights.safetensors": FileRecord(sha256="0" * 64, bytes=1)},
    )
    card = model_card(manifest, [manifest], [Damage(id="x", what=text)])
    assert front_matter(card) == metadata(manifest, [manifest])
    shown = MarkdownIt("commonmark").enable("table").render(card.split("---\n", 2)[2])
    assert shown.count("<h2>") == 7
    assert shown.count("<h1>") == 1
    assert shown.count("<details>") == shown.count("</details>") == 3
    tables = re.findall(r"<table>(.*?)</table>", shown, re.DOTALL)
    assert len(tables) == 3
    for one in tables:
        assert len({len(re.findall(r"<t[hd]>", row)) for row in re.findall(r"<tr>(.*?)</tr>", one, re.DOTALL)}) == 1
    assert other in html.unescape(tables[0])


def test_text_that_other_readers_of_yaml_take_for_numbers_is_quoted(store, publish):
    corpus = publish()
    monet = publish("train-monet", kind="monet", corpus=corpus)
    manifest = store.manifest(corpus).model_copy(update={"content_sha256": "1e" + "0" * 62})
    card = model_card(store.manifest(monet), [manifest])
    assert f'revision: "{manifest.content_sha256}"' in card


def test_a_card_is_one_text_however_often_it_is_written(store, publish):
    *_, peer = chain(publish)
    assert len({card_of(store, peer) for _ in range(2)}) == 1
