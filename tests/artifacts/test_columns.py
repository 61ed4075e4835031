"""Every metric that is shown anywhere has one entry and words, and places that count from one."""

from collections import Counter

import pytest

from artifacts.columns import COLUMNS, HEADLINE, HUB, PAIRS, REPORT, RUN, SEEDS, SYMBOLS, Place, changed, columns, names
from artifacts.meanings import MODEL
from artifacts.meanings import REPORT as REPORT_WORDS

METRICS = {
    "held_out_bits_per_byte": 1.87104,
    "held_out_loss_nats": 3.26349,
    "loss_increase_nats": 0.01964,
    "kl_to_teacher_nats": 0.016194,
    "loss_recovered": 0.98981,
    "expert_bytes": 1028.3,
}


@pytest.mark.parametrize("place", Place)
def test_places_are_counted_from_one_without_a_gap(place):
    assert sorted(column.at[place] for column in COLUMNS if place in column.at) == list(range(1, 1 + len(names(place))))


def test_a_metric_has_one_entry_and_it_and_what_stands_beside_it_have_words():
    assert set(Counter(column.metric for column in COLUMNS).values()) == {1}
    assert {
        name for column in COLUMNS for name in (column.metric, *column.beside)
    } <= MODEL.keys() | REPORT_WORDS.keys()


@pytest.mark.parametrize("place", [RUN, SEEDS, PAIRS, REPORT])
def test_a_table_heads_all_of_its_columns_differently(place):
    headings = [column.heading for column in columns(place)]
    assert all(headings)
    assert len(set(headings)) == len(headings)


def test_a_column_has_the_heading_and_form_of_its_place():
    assert [column.heading for column in columns(RUN)] == [
        "bits/byte",
        "Δ nats",
        "KL nats",
        "recovered",
        "bytes/expert",
    ]
    assert [column.text(METRICS) for column in columns(RUN)] == ["1.8710", "+0.0196", "0.01619", "0.9898", "1,028"]
    assert [column.heading for column in columns(SEEDS)][:4] == [
        "bits/byte",
        "loss, nats",
        "Δ to parent, nats",
        "KL, nats",
    ]
    assert columns(SEEDS)[5].text(METRICS) == "1028"
    assert [column.heading for column in columns(REPORT)][1:3] == ["loss, nats/token", "Δ against parent, nats"]
    assert columns(REPORT)[9].text(METRICS) == ""
    assert [column.heading for column in columns(PAIRS)] == ["loss, nats", "bits/byte", "parameters", "train tokens"]


def test_headlines_and_what_the_hub_shows_come_in_their_own_order():
    assert names(HEADLINE) == (
        "held_out_loss_nats", "loss_recovered", "held_out_bits_per_byte", "train_tokens", "symbols_bits_per_byte",
    )  # fmt: skip
    assert all(column.words for column in columns(HEADLINE))
    assert names(HUB)[:3] == ("held_out_bits_per_byte", "held_out_loss_nats", "loss_increase_nats")
    assert len(names(HUB)) == 13
    assert names(SYMBOLS)[:2] == ("loss_recovered_over_biases", "loss_recovered")


def test_only_what_two_models_can_be_compared_by_has_changed():
    before = {"held_out_loss_nats": 3.0, "loss_increase_nats": 0.25}
    assert changed("held_out_loss_nats", 3.5, before) == 0.5
    assert changed("loss_increase_nats", 0.5, before) is None
    assert changed("num_parameters", 7.0, before) is None
