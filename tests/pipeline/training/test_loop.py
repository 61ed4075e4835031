"""fit: a killed run ends with the same bits, rates and decay reach whom they should, and the loss goes down."""

import itertools
import math

import pytest
import torch
from torch import nn

from artifacts import ArtifactError
from pipeline.run import Run, running
from pipeline.training import training_curve as curve
from pipeline.training.config import TrainingConfig
from pipeline.training.loop import Rate, fit
from pipeline.training.losses import next_token
from pipeline.training.sealed_file import load_sealed, save_sealed
from pipeline.training.training_curve import to_csv

CONFIG = TrainingConfig(steps=20, batch_size=3, context_length=7, learning_rate=0.02, warmup_steps=4)


class Bigrams(nn.Module):
    """The next byte from the last, with everything a checkpoint must hold: dropout, and statistics that move."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.table, self.norm, self.out = nn.Embedding(256, 6), nn.BatchNorm1d(6), nn.Linear(6, 256)

    def forward(self, tokens_BT):
        x = self.norm(self.table(tokens_BT).flatten(0, 1))
        return self.out(nn.functional.dropout(x, 0.2, self.training)).unflatten(0, tokens_BT.shape)


def cross_entropy(model):
    def loss(batch, step):
        nats = next_token(model(batch[0]), batch[1])
        return nats, {"train_loss_nats": nats.item()}

    return loss


class Killed(Exception):
    pass


def killed_at(step_of_death, loss):
    def dying(batch, step):
        if step == step_of_death:
            raise Killed
        return loss(batch, step)

    return dying


def trained(corpus, model, *, config=CONFIG, checkpoints=None, seed=3, loss=None, **options):
    with running(Run(seed=seed, checkpoints=checkpoints)):
        return fit(model, split=corpus.train, config=config, loss=loss or cross_entropy(model), **options)


@pytest.mark.parametrize("deaths", [(7,), (1, 8, 19)], ids=str)
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(corpus, tmp_path, monkeypatch, deaths):
    monkeypatch.setattr(curve, "MOST_POINTS", 7)  # intervals of three steps: every death is amid one
    whole = Bigrams().train()
    wanted = trained(corpus, whole)
    config = CONFIG.model_copy(update={"checkpoint_seconds": 1e-9})
    for resumption, death in enumerate(deaths):
        model = Bigrams(seed=resumption).train()  # what goes on from a checkpoint may start from anything
        with pytest.raises(Killed):
            trained(corpus, model, config=config, checkpoints=tmp_path, loss=killed_at(death, cross_entropy(model)))
        assert (tmp_path / "train.pt").is_file()
    first = []
    resumed = Bigrams(seed=99).train()
    loss = cross_entropy(resumed)
    got = trained(corpus, resumed, config=config, checkpoints=tmp_path, loss=lambda b, s: first.append(s) or loss(b, s))
    assert first[0] == deaths[-1]
    assert len(first) == CONFIG.steps - deaths[-1]
    assert got.losses == wanted.losses
    assert to_csv(got.curve) == to_csv(wanted.curve)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_loops_of_one_run_keep_their_checkpoints_apart(corpus, tmp_path):
    config = CONFIG.model_copy(update={"checkpoint_seconds": 1e-9})
    for what in ("train dense", "fine-tune"):
        trained(corpus, Bigrams().train(), config=config, checkpoints=tmp_path, what=what)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fine-tune.pt", "train-dense.pt"]


def test_no_checkpoint_is_kept_where_none_was_asked_for_or_the_time_was_short(corpus, tmp_path):
    trained(corpus, Bigrams().train(), checkpoints=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_gives_the_same_bits_and_another_gives_others(corpus):
    tables = []
    for seed in (3, 3, 4):
        model = Bigrams().train()
        trained(corpus, model, seed=seed)
        tables.append(model.table.weight)
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def test_the_loss_goes_down_and_the_model_ends_in_evaluation(corpus):
    model, seen = Bigrams().train(), []
    loss = cross_entropy(model)

    def watched(batch, step):
        total, numbers = loss(batch, step)
        seen.append(total.item())
        return total, numbers

    fitted = trained(corpus, model, config=CONFIG.model_copy(update={"steps": 60}), loss=watched)
    assert seen[0] == pytest.approx(math.log(256), abs=0.7)
    assert sum(seen[-10:]) / 10 < seen[0] - 1
    assert fitted.losses == {"train_loss_nats": pytest.approx(sum(seen[-6:]) / 6)}
    assert [(point.step, point.numbers["train_loss_nats"]) for point in fitted.curve] == list(enumerate(seen, 1))
    assert fitted.curve[-1].tokens == 60 * 3 * 7
    assert fitted.tokens_per_second > 0
    assert not model.training


def test_the_rate_warms_up_in_a_line_and_decays_in_a_cosine():
    config = TrainingConfig(steps=110, warmup_steps=10, final_rate_share=0.2)
    shares = [config.rate_share(step) for step in range(110)]
    assert shares[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert shares[10] == 1
    assert shares[60] == pytest.approx((1 + 0.2) / 2)
    assert shares[35] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert all(a > b for a, b in itertools.pairwise(shares[10:]))
    assert 0.2 <= shares[-1] < 0.201
    assert TrainingConfig(steps=5, warmup_steps=0).rate_share(0) == 1


def test_a_warm_up_longer_than_the_training_ends_with_it_and_the_recipe_says_so():
    for config in (TrainingConfig(steps=8), TrainingConfig(steps=8, warmup_steps=16)):
        assert config.model_dump()["warmup_steps"] == 8
        assert [config.rate_share(step) for step in range(8)] == [(step + 1) / 8 for step in range(8)]
    assert TrainingConfig().warmup_steps == 100
    assert TrainingConfig(steps=100).warmup_steps == 100


@pytest.mark.parametrize(("steps", "warmup", "told"), [(3, 3, True), (3, 50, True), (3, 2, False), (1, 1, False)])
def test_a_warm_up_of_the_whole_training_is_said(corpus, caplog, steps, warmup, told):
    config = TrainingConfig(steps=steps, batch_size=3, context_length=7, warmup_steps=warmup)
    trained(corpus, Bigrams(), config=config)
    assert (f"train: warm-up takes all {steps} steps" in caplog.text) == told


def test_the_checkpoint_interval_is_no_part_of_the_recipe():
    assert "checkpoint_seconds" not in CONFIG.model_dump()


def spoilt_at(steps, wrong, loss):
    """The same loss, but for these steps, where it and its gradient are `wrong`."""

    def spoilt(batch, step):
        total, numbers = loss(batch, step)
        return total * (wrong if step in steps else 1), numbers

    return spoilt


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_step_whose_loss_is_not_finite_moves_nothing_and_is_counted(corpus, wrong):
    model, states = Bigrams().train(), {}
    loss = cross_entropy(model)

    def watched(batch, step):
        states[step] = model.table.weight.detach().clone()
        return loss(batch, step)

    fitted = trained(corpus, model, loss=spoilt_at({3, 7}, wrong, watched))
    assert fitted.skipped_steps == 2
    assert [step for step in range(19) if torch.equal(states[step], states[step + 1])] == [3, 7]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert [point.numbers.keys() == {"train_loss_nats"} for point in fitted.curve] == [
        step not in (3, 7) for step in range(20)
    ]


def test_a_gradient_that_is_not_finite_moves_nothing_though_the_loss_is(corpus):
    model = Bigrams().train()
    loss = cross_entropy(model)

    def steep(batch, step):
        total, numbers = loss(batch, step)
        return (total + (model.out.bias * 0).sqrt().sum() if step == 5 else total), numbers  # d sqrt(0) is infinite

    fitted = trained(corpus, model, loss=steep)
    assert fitted.skipped_steps == 1
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_steps_skipped_before_a_death_are_counted_after_it(corpus, tmp_path):
    config = CONFIG.model_copy(update={"checkpoint_seconds": 1e-9})
    model = Bigrams().train()
    spoilt = spoilt_at({3}, math.nan, cross_entropy(model))
    with pytest.raises(Killed):
        trained(corpus, model, config=config, checkpoints=tmp_path, loss=killed_at(9, spoilt))
    assert trained(corpus, model, config=config, checkpoints=tmp_path).skipped_steps == 1


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_stays_not_finite_ends_the_run(corpus, wrong):
    model = Bigrams().train()
    spoilt = spoilt_at(range(3, 20), wrong, cross_entropy(model))
    message = rf"train: the loss \({wrong}\) or its gradient is not finite at step 12 and at the 9 before it; lower"
    with pytest.raises(RuntimeError, match=message):
        trained(corpus, model, loss=spoilt)


def test_a_checkpoint_of_another_layout_of_int4_tables_is_refused(corpus, tmp_path):
    config = CONFIG.model_copy(update={"checkpoint_seconds": 1e-9})
    model = Bigrams().train()
    with pytest.raises(Killed):
        trained(corpus, model, config=config, checkpoints=tmp_path, loss=killed_at(9, cross_entropy(model)))
    path = tmp_path / "train.pt"
    save_sealed({**load_sealed(path), "nibble_layout": "interleaved"}, path)
    with pytest.raises(
        ArtifactError, match="int4 tables of layout interleaved; this version reads layout half-split: use --force"
    ):
        trained(corpus, model, config=config, checkpoints=tmp_path)


class Loose(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix, self.vector, self.apart = (
            nn.Parameter(torch.full(shape, 2.0)) for shape in ((3, 5), (7,), (2, 3))
        )


ONE_STEP = TrainingConfig(steps=1, batch_size=1, context_length=2, learning_rate=0.01, warmup_steps=0, weight_decay=0.0)


def test_parameters_learn_at_their_own_multiple(corpus):
    """AdamW's first step is the learning rate against the gradient's sign."""
    model = Loose()
    total = lambda batch, step: (sum(p.sum() for p in model.parameters()), {})  # noqa: E731
    rates = [Rate(parameters=[model.apart], multiplier=5.0)]
    trained(corpus, model, config=ONE_STEP, loss=total, rates=rates)
    for parameter, moved in ((model.matrix, 0.01), (model.vector, 0.01), (model.apart, 0.05)):
        torch.testing.assert_close(parameter.detach(), torch.full_like(parameter, 2.0 - moved), rtol=1e-6, atol=1e-6)


def test_only_matrices_decay(corpus):
    model = Loose()
    nothing = lambda batch, step: (sum((0 * p).sum() for p in model.parameters()), {})  # noqa: E731
    rates = [Rate(parameters=[model.apart], multiplier=5.0)]
    trained(corpus, model, config=ONE_STEP.model_copy(update={"weight_decay": 0.5}), loss=nothing, rates=rates)
    shares = [p.detach().unique().item() / 2 for p in (model.matrix, model.vector, model.apart)]
    assert shares == pytest.approx([1 - 0.5 * 0.01, 1, 1 - 0.5 * 0.05], rel=1e-6)


def test_parameters_that_need_no_gradient_are_left_alone(corpus):
    model = Bigrams().train()
    model.table.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained(corpus, model)
    assert torch.equal(model.table.weight, before["table.weight"])
    assert not torch.equal(model.out.weight, before["out.weight"])


def test_a_model_in_evaluation_is_trained_in_evaluation(corpus):
    model = Bigrams().eval()
    statistics = model.norm.running_mean.clone()
    trained(corpus, model)
    assert torch.equal(model.norm.running_mean, statistics)


class Told:
    """Tables that hear of every step; the gradients that they hold are not finite at the steps of `wrong`."""

    def __init__(self, wrong=()):
        self.wrong, self.moved, self.skipped = wrong, [], 0

    def finite(self):
        return len(self.moved) + self.skipped not in self.wrong

    def step(self, step, rate_share):
        self.moved.append((step, rate_share))
        return {"flips": 2.0}

    def skip(self):
        self.skipped += 1


def test_what_no_optimizer_holds_moves_after_every_step_at_the_same_share(corpus):
    model, tables = Bigrams().train(), Told()
    fitted = trained(corpus, model, tables=tables)
    assert tables.moved == [(step, CONFIG.rate_share(step)) for step in range(CONFIG.steps)]
    assert tables.skipped == 0
    assert fitted.losses["flips"] == 2.0
    assert fitted.totals["flips"] == 2.0 * CONFIG.steps
    assert all(point.numbers.keys() == {"train_loss_nats", "flips"} for point in fitted.curve)


def test_nothing_moves_where_the_tables_gradients_are_not_finite(corpus):
    model, tables, states = Bigrams().train(), Told(wrong=(4,)), []
    loss = cross_entropy(model)

    def watched(batch, step):
        states.append(model.out.weight.detach().clone())
        return loss(batch, step)

    fitted = trained(corpus, model, tables=tables, loss=watched)
    assert [step for step, _ in tables.moved] == [step for step in range(CONFIG.steps) if step != 4]
    assert (tables.skipped, fitted.skipped_steps) == (1, 1)
    assert torch.equal(states[4], states[5])
    assert not torch.equal(states[5], states[6])


def test_tables_forget_the_gradients_of_a_step_whose_loss_is_not_finite(corpus):
    model, tables = Bigrams().train(), Told()
    trained(corpus, model, tables=tables, loss=spoilt_at({2}, math.nan, cross_entropy(model)))
    assert (tables.skipped, len(tables.moved)) == (1, CONFIG.steps - 1)


def test_progress_ends_with_the_last_step(corpus):
    told = []
    with running(Run(report=told.append)):
        model = Bigrams().train()
        fit(model, split=corpus.train, config=CONFIG, loss=cross_entropy(model), what="learn")
    assert (told[-1].what, told[-1].step, told[-1].total) == ("learn", 20, 20)
    assert told[-1].numbers["tokens_per_second"] > 0
