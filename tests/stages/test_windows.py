"""A corpus without one window for a stage is told before the stage begins, whichever stage it is."""

import pytest

from artifacts import Store
from pipeline.corpus.splits import Corpus, make_split
from pipeline.corpus.tokenizer import ByteTokenizer
from pipeline.corpus.windows import require_windows
from pipeline.measuring.held_out import MeasureConfig
from pipeline.run import Progress
from pipeline.stage import Output, StageConfig, longest_window, run_stage, stage
from stages.chain import STAGES, step_of
from stages.presets import PRESETS
from stages.train_dense import TrainDenseConfig, train_dense
from tests.tiny import tiny_corpus

CONTEXT = 24
# The windows of a record are those that it was made of.
READERS = [
    s.name for s in STAGES if "corpus" in s.inputs and not s.inputs["corpus"].measured and "record" not in s.inputs
]


def corpus_with(**lengths: int) -> Corpus:
    """A corpus whose splits of these names have so many tokens."""
    corpus = tiny_corpus()
    splits = {name: getattr(corpus, name) for name in ("train", "validation", "held_out")}
    short = {name: make_split([(0, "a" * length)], ByteTokenizer()) for name, length in lengths.items()}
    return Corpus(corpus.spec, **{**splits, **short}, tokenizer=corpus.tokenizer)


def published(store: Store, corpus: Corpus) -> str:
    @stage(name="hand-in", version=1)
    def hand_in(config: StageConfig) -> Output[Corpus]:
        """Nothing -> corpus: this one."""
        return Output(value=corpus)

    return run_stage(hand_in, StageConfig(), inputs={}, store=store).id


@pytest.mark.parametrize("split", ["train", "validation", "held_out"])
def test_a_split_without_one_window_is_told_before_any_step(tmp_path, training, split):
    store, told = Store(tmp_path), list[Progress]()
    config = TrainDenseConfig(training=training(10**6, context_length=CONTEXT), measure=MeasureConfig(tokens=300))
    id = published(store, corpus_with(**{split: CONTEXT}))
    wanted = f"the {split.replace('_', '-')} split of {CONTEXT} tokens holds no window of {CONTEXT}"
    with pytest.raises(ValueError, match=wanted):
        run_stage(train_dense, config, inputs={"corpus": id}, store=store, report=told.append)
    assert told == []


def test_one_more_token_is_enough():
    require_windows(corpus_with(train=CONTEXT + 1, validation=CONTEXT + 1, held_out=CONTEXT + 1), CONTEXT)


@pytest.mark.parametrize("name", READERS)
def test_the_window_of_every_stage_that_reads_a_corpus_is_known_ahead(name):
    assert longest_window(step_of(name).stage.config_type()) == 128
    assert longest_window(PRESETS["gpu"]().config_of(step_of(name))) == 512
