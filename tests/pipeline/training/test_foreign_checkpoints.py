"""A checkpoint that another writer has sealed is refused with a sentence unless it is what a run would have saved."""

import hashlib
import io
import random
import zipfile

import pytest
import torch

from artifacts import ArtifactError
from pipeline.run import Run, running
from pipeline.studies.trials import Trial, run_trials
from pipeline.training.sealed_file import load_sealed, save_sealed
from tests.pipeline.training.test_loop import CONFIG, Bigrams, Killed, cross_entropy, killed_at, trained

OFTEN = CONFIG.model_copy(update={"checkpoint_seconds": 1e-9})


def sealed(path, raw):
    """These bytes behind the digest that fits them, which names the run."""
    digest = hashlib.sha256(f"{path.parent.name}/{path.name}".encode() + raw).digest()
    path.write_bytes(digest + raw)


def saved(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@pytest.fixture
def path(corpus, tmp_path):
    """The checkpoint of a run that was killed after nine steps."""
    model = Bigrams().train()
    with pytest.raises(Killed):
        trained(corpus, model, config=OFTEN, checkpoints=tmp_path, loss=killed_at(9, cross_entropy(model)))
    return tmp_path / "train.pt"


RAW = {
    "nothing": b"",
    "garbage": b"garbage" * 1000,
    "an empty zip": b"PK\x05\x06" + bytes(18),
    "a pickle that calls": b"cos\nsystem\n(S'true'\ntR.",
    "a list": saved([1, 2]),
    "numbers by number": saved({1: 2}),
}


@pytest.mark.parametrize("what", RAW)
def test_what_no_run_saves_is_refused(what, path, corpus, tmp_path):
    sealed(path, RAW[what])
    with pytest.raises(ArtifactError, match=r"train\.pt is sealed, but .*; remove it, or use --force, to begin anew$"):
        trained(corpus, Bigrams().train(), config=OFTEN, checkpoints=tmp_path)


def test_bytes_changed_at_random_are_refused_or_loaded_and_nothing_else(path):
    """In the pickle, where most of what a reader obeys stands."""
    archive, generator = zipfile.ZipFile(io.BytesIO(path.read_bytes()[32:])), random.Random(15)
    refused = 0
    for _ in range(150):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as changed:
            for name in archive.namelist():
                raw = bytearray(archive.read(name))
                if name.endswith("data.pkl"):
                    raw[generator.randrange(len(raw))] = generator.randrange(256)
                changed.writestr(name, bytes(raw))
        sealed(path, file.getvalue())
        try:
            load_sealed(path)
        except ArtifactError:
            refused += 1
    assert refused > 50


def without(name):
    return lambda state: state.pop(name)


def with_(**values):
    return lambda state: state.update(values)


def moments(state):
    return state["optimizer"]["state"][0]


STATES = {
    "no step": (without("step"), "it holds 'nibble_layout', .* where a run saves"),
    "nothing by name": (dict.clear, "it holds nothing, where a run saves"),
    "more": (with_(more=1), "'more', where a run saves"),
    "a step beyond the last": (with_(step=20), "its step is 20, of a run of 20"),
    "a negative step": (with_(step=-1), "its step is -1"),
    "a step that is text": (with_(step="3"), "its step is '3'"),
    "seconds that are none": (with_(seconds=float("nan")), "its seconds are nan"),
    "a generator's state cut": (
        with_(generator=torch.zeros(3, dtype=torch.uint8)), "its generator is no state of a generator"
    ),
    "no global generator": (with_(global_generator=None), "its global_generator is no state of a generator"),
    "no model": (with_(model=[1]), "its model is no tensors by name"),
    "a model of numbers": (with_(model={"a": 1}), "its model is no tensors by name"),
    "a tensor missing": (lambda state: state["model"].popitem(), r"of another model: .*Missing key\(s\)"),
    "a tensor too many": (lambda state: state["model"].update(x=torch.ones(2)), r"of another model: .*Unexpected key"),
    "a tensor of another shape": (
        lambda state: state["model"].update({"out.bias": torch.ones(3)}), "of another model: .*size mismatch for out"
    ),
    "no optimizer": (with_(optimizer={}), "its optimizer is none of AdamW's"),
    "other settings": (
        lambda state: state["optimizer"]["param_groups"][0].update(amsgrad=True), "has other groups of parameters"
    ),
    "fewer groups": (lambda state: state["optimizer"]["param_groups"].pop(), "has other groups of parameters"),
    "groups that are none": (lambda state: state["optimizer"].update(param_groups=[1]), "has other groups"),
    "other parameters": (lambda state: state["optimizer"]["state"].update({99: {}}), "of other parameters than these"),
    "no moments": (lambda state: moments(state).clear(), "holds no moments of parameter 0"),
    "moments of another shape": (
        lambda state: moments(state).update(exp_avg=torch.ones(2)), r"exp_avg of parameter 0 is not \(256, 6\) of torch"
    ),
    "moments of float64": (
        lambda state: moments(state).update(exp_avg_sq=moments(state)["exp_avg_sq"].double()), "exp_avg_sq of param"
    ),
    "no record": (with_(record=None), "its record is none of 9 steps"),
    "a record of more steps": (lambda state: state["record"]["intervals"].append({}), "its record is none of 9 steps"),
    "a record of text": (lambda state: state["record"].update(whole={"a": "b"}), "its record is none of 9 steps"),
    "more skipped than done": (lambda state: state["record"].update(skipped_steps=10), "its record is none of 9"),
}  # fmt: skip


@pytest.mark.parametrize("what", STATES)
def test_a_state_of_another_form_is_refused(what, path, corpus, tmp_path):
    change, message = STATES[what]
    state = load_sealed(path)
    change(state)
    save_sealed(state, path)
    wanted = r"train\.pt is of another (form|model).*; remove it, or use --force, to begin anew$"
    with pytest.raises(ArtifactError, match=wanted) as refused:
        trained(corpus, Bigrams().train(), config=OFTEN, checkpoints=tmp_path)
    assert refused.match(message)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("numbers", [{}, {"numbers": None}, {"numbers": {"loss": "x"}}, {"numbers": {}, "more": 1}])
def test_a_trial_that_is_remembered_as_something_else_is_refused(numbers, tmp_path):
    trial = Trial(name="arm", seed=0, compute=dict, arguments=())
    save_sealed(numbers, tmp_path / trial.file_name)
    with (
        running(Run(checkpoints=tmp_path)),
        pytest.raises(ArtifactError, match=r"\.trial is of another form: it holds"),
    ):
        run_trials([trial], "study")
