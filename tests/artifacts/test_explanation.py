"""diff follows a difference up to its first cause, whichever it is, and says so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import InputRef, Lineage, Manifest, Recipe
from artifacts.comparison import compare
from artifacts.explanation import Explanation, explain
from artifacts.manifest import FileRecord
from tests.circumstance import CIRCUMSTANCE as HERE


def made(stage="train-monet", inputs=None, *, attempt="", sequence=1, content="0" * 64, here=HERE, **asked) -> Manifest:
    """The manifest of an artifact that was never written."""
    inputs = inputs or {}
    refs = {role: InputRef(id=parent.id, sha256=parent.content_sha256) for role, parent in inputs.items()}
    recipe = Recipe.model_validate(
        {"stage": stage, "stage_version": 1, "config": {}, "seed": 0}
        | asked
        | {"inputs": {role: ref.id for role, ref in refs.items()}}
    )
    lineage = Lineage(**recipe.model_dump(exclude={"inputs"}), **here.model_dump(), inputs=refs, sequence=sequence)
    return Manifest.describe(
        id=recipe.id + attempt,
        kind="monet",
        spec={},
        metrics={},
        lineage=lineage,
        files={"weights.safetensors": FileRecord(sha256=content, bytes=1)},
    )


def explained(first: Manifest, second: Manifest, *ancestors: Manifest) -> Explanation:
    return explain(first, second, {ancestor.id: ancestor for ancestor in ancestors})


RECIPES = {
    "config": ({"config": {"clips": 21}}, {"config": {"clips": 3}}, "another config (clips 21 -> 3)"),
    "seed": ({"seed": 0}, {"seed": 1}, "another seed (0 -> 1)"),
    "version": ({"stage_version": 1}, {"stage_version": 2}, "another version of the stage (1 -> 2)"),
    "sources": ({"sources_sha256": "a" * 64}, {"sources_sha256": "b" * 64}, "other sources"),
}


@pytest.mark.parametrize("cause", RECIPES)
def test_what_was_asked_for_differently_is_named(cause):
    a, b, words = RECIPES[cause]
    why = explained(made(**a), made(**b))
    assert why.text == f"b was asked for with {words}."
    assert [link.because for link in why.chain] == ["recipe"]


@pytest.mark.parametrize("cause", RECIPES)
def test_a_difference_is_followed_up_to_its_first_cause(cause):
    a, b, words = RECIPES[cause]
    roots = [made("prepare-corpus", **asked) for asked in (a, b)]
    monets = [made("train-monet", {"corpus": root}, sequence=2) for root in roots]
    peers = [made("distill-peer", {"monet": monet}, sequence=3) for monet in monets]
    why = explained(*peers, *roots, *monets)
    assert [(link.a, link.b) for link in why.chain] == [(pair[0].id, pair[1].id) for pair in (roots, monets, peers)]
    assert [link.because for link in why.chain] == ["recipe", "inputs", "inputs"]
    assert why.chain[0].path == ("monet", "corpus")
    assert why.text == (
        "b was asked for with another input (monet). "
        f"The first cause is monet > corpus ({roots[0].id} -> {roots[1].id}), asked for with {words}."
    )


def test_a_difference_here_and_one_above_are_both_told():
    corpora = [made("prepare-corpus", seed=seed) for seed in (0, 1)]
    first, second = (
        made(inputs={"corpus": corpus}, config={"lr": lr}) for corpus, lr in zip(corpora, (1, 2), strict=True)
    )
    text = explained(first, second, *corpora).text
    assert text.startswith(
        "b was asked for with another config (lr 1 -> 2) and another input (corpus). The first cause"
    )


CIRCUMSTANCES = {
    "commit": ("beef" * 10, "the commit differs (c0ffee -> beefbeefbeef)"),
    "dirty": (True, "the code was changed without a commit for b"),
    "torch": ("2.14.0", "torch differs (2.13.0 -> 2.14.0)"),
    "python": ("3.12.1", "python differs (3.11.7 -> 3.12.1)"),
    "device": ("NVIDIA H200", "device differs (cpu -> NVIDIA H200)"),
}


@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_under_the_same_recipe_circumstances_are_to_blame(name):
    value, words = CIRCUMSTANCES[name]
    again = made(attempt="~2", content="1" * 64, here=HERE.model_copy(update={name: value}))
    why = explained(made(), again)
    assert why.text == f"Same recipe, other bytes: {words}."
    assert why.chain[0].differs.keys() == {name}


def test_under_another_recipe_circumstances_are_told_besides():
    why = explained(made(), made(seed=1, here=HERE.model_copy(update={"device": "cuda"})))
    assert why.text.endswith("another seed (0 -> 1). Besides, device differs (cpu -> cuda).")


def test_without_any_recorded_difference_it_is_chance():
    why = explained(made(), made(attempt="~2", content="1" * 64))
    assert "nothing recorded differs: the stage is not deterministic, or it ran on other hardware" in why.text
    assert why.chain[0].because == "chance"


@pytest.mark.parametrize("hidden", [{"dirty": True}, {"commit": "unknown"}])
def test_changes_that_lineage_does_not_hold_are_a_possible_cause(hidden):
    here = HERE.model_copy(update=hidden)
    assert "changes that lineage does not hold" in explained(made(here=here), made(attempt="~2", here=here)).text


def test_the_cause_may_be_two_attempts_of_an_input():
    first, again = made(), made(attempt="~2", content="1" * 64, here=HERE.model_copy(update={"torch": "2.14.0"}))
    peers = [made("distill-peer", {"monet": monet}) for monet in (first, again)]
    assert "of the same recipe, where torch differs (2.13.0 -> 2.14.0)" in explained(*peers, first, again).text


def test_an_ancestor_that_is_gone_is_told_and_not_guessed():
    corpora = [made("prepare-corpus", seed=seed) for seed in (0, 1)]
    monets = [made(inputs={"corpus": corpus}) for corpus in corpora]
    why = explained(*monets, corpora[0])
    assert why.chain[0].because == "not in the store"
    assert "cannot be told" in why.text


def test_an_input_of_another_stage_is_a_cause():
    tuned, plain = made("finetune-int4"), made("quantize-int4")
    why = explained(made(inputs={"int4": plain}), made(inputs={"int4": tuned}), tuned, plain)
    assert "made by different stages" in why.text


def test_an_input_that_only_one_has_is_a_cause():
    corpus = made("prepare-corpus")
    why = explained(made(), made(inputs={"corpus": corpus}), corpus)
    assert why.text == "b was asked for with an input that only one of them has (corpus)."


def test_artifacts_of_two_stages_are_compared_in_what_both_have():
    corpus = made("prepare-corpus")
    dense = made("train-dense", {"corpus": corpus}, config={"tokens": 1, "mlp": 2}, stage_version=3)
    monet = made("train-monet", {"corpus": corpus}, config={"tokens": 5, "router": 2})
    assert compare(dense, monet).recipe == {"stage": ("train-dense", "train-monet"), "config.tokens": (1, 5)}
    text = explained(dense, monet, corpus).text
    assert "made by train-dense" in text
    assert text.endswith("Both were made from the same corpus.")


def test_of_two_stages_one_may_come_from_the_other():
    monet = made()
    peer = made("distill-peer", {"monet": monet})
    int8 = made("quantize-int8", {"peer": peer})
    assert explained(monet, int8, monet, peer).text.endswith("b was made from a (peer > monet).")
    assert explained(int8, monet, monet, peer).text.endswith("a was made from b (peer > monet).")


def test_an_artifact_and_itself():
    assert explained(made(), made()) == Explanation(text="a and b are the same artifact.", chain=())


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1, True), (0.0, -0.0)])
def test_values_that_only_python_takes_for_equal_differ(one, other):
    first, second = made(config={"lr": one}), made(config={"lr": other})
    assert first.id != second.id
    assert compare(first, second).recipe.keys() == {"config.lr"}


@st.composite
def two_chains(draw):
    """Two artifacts, each the last of its own chain of seeds, and all ancestors, some of them lost."""
    known: list[Manifest] = []
    tops: list[Manifest] = []
    for _ in range(2):
        chain: list[Manifest] = []
        for depth, seed in enumerate(draw(st.lists(st.integers(0, 1), min_size=4, max_size=4))):
            parents = {f"role{i}": chain[i] for i in range(len(chain)) if i == depth - 1 or draw(st.booleans())}
            chain.append(made(f"stage-{depth}", parents, seed=seed, sequence=depth + 1))
        known += chain[:-1]
        tops.append(chain[-1])
    return tops, [one for one in known if draw(st.integers(0, 5)) > 0]


@given(two_chains())
def test_the_chain_ends_with_the_compared_and_every_path_leads_to_its_pair(chains):
    (first, second), known = chains
    why = explained(first, second, *known)
    by_id = {one.id: one for one in (*known, first, second)}
    if first.id == second.id:
        assert why.chain == ()
        return
    assert (why.chain[-1].a, why.chain[-1].b) == (first.id, second.id)
    assert any(link.because != "inputs" for link in why.chain)
    for link in why.chain:
        for top, end in ((first, link.a), (second, link.b)):
            id = top.id
            for role in link.path:
                id = by_id[id].lineage.inputs[role].id
            assert id == end
        assert link.because in ("inputs", "not in the store") or link.differs


@given(two_chains())
def test_both_directions_tell_of_the_same_places(chains):
    (first, second), known = chains
    there, back = explained(first, second, *known).chain, explained(second, first, *known).chain
    assert {(link.a, link.b, link.because) for link in there} == {(link.b, link.a, link.because) for link in back}
