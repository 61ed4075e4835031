"""pykan kept behind its door, and formulas of KANs whose inputs are pruned."""

import ast
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import sympy
import torch

import pipeline
from pipeline.symbolic.formulas import _pykan
from pipeline.symbolic.formulas._pykan import picture, pykan
from pipeline.symbolic.formulas.kan_functions import ENTRIES, NAMES
from pipeline.symbolic.formulas.kan_pruning import pruned
from tests.catalogue import BY_NAME
from tests.pictures import assert_picture

# S samples, C candidates, K kept


def states():
    return torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()


def same(before, after):
    return torch.equal(before[0], after[0]) and np.array_equal(before[1], after[1]) and before[2] == after[2]


def planted(seed=0, candidates=7, samples=211, kept=(1, 4, 5), noise=0.0):
    """Inputs, and 1.7 * relu2 of three of them."""
    generator = torch.Generator().manual_seed(seed)
    mix_CC = torch.eye(candidates) + 0.2 * torch.randn(candidates, candidates, generator=generator)
    x_SC = torch.randn(samples, candidates, generator=generator) @ mix_CC + 0.3
    z_S = x_SC[:, list(kept)] @ torch.tensor([1.2, -0.9, 0.7]) + 0.4
    y_S = 1.7 * torch.relu(z_S).square()
    return x_SC, y_S + noise * torch.randn(samples, generator=generator), torch.rand(samples, generator=generator) + 0.1


def fitted(x_SC, y_S, weight_S, *, keep=3, seed=3, function="relu2"):
    return pruned(
        x_SC, y_S, weight_S, function, keep=keep, start=lambda kept_K: torch.full((keep + 1,), 0.5), seed=seed
    )


def everything(kan):
    """What touches most: training with a penalty, scores, pruning, fixing, a plot."""
    model = kan.MultKAN(width=[3, 1, 1], grid=3, k=3, seed=11, auto_save=False)
    x = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    data = {"train_input": x, "train_label": x[:, :1], "test_input": x, "test_label": x[:, :1]}
    model.fit(data, opt="LBFGS", steps=1, lamb=1e-3)
    model = model.prune_input(threshold=0.0, log_history=False)
    model.auto_save = False
    model(x)
    model.fix_symbolic(1, 0, 0, "tanh", fit_params_bool=True)
    picture(model, ["a", "b", "c"], "y")


def test_whatever_runs_within_the_door_leaves_generators_output_folder_and_warnings_alone(
    monkeypatch, tmp_path, capfd, recwarn
):
    monkeypatch.chdir(tmp_path)
    with pykan():
        pass  # the import
    before, settings = states(), (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
    filters = list(warnings.filters)
    with torch.no_grad(), pykan() as kan:
        everything(kan)
    assert same(before, states())
    assert settings == (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
    assert warnings.filters == filters
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert len(recwarn) == 0


def test_the_same_without_the_door_would_not():
    """Else the test above proves nothing: pykan seeds, prints, and shows progress."""
    code = (
        "import torch; torch.manual_seed(5); before = torch.get_rng_state()\n"
        "from kan import KAN; import os\n"
        "KAN(width=[2, 1, 1])\n"
        "assert not torch.equal(before, torch.get_rng_state()); assert os.listdir() == ['model']"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import os, tempfile; os.chdir(tempfile.mkdtemp())\n{code}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "checkpoint directory created" in done.stdout


def test_the_first_import_through_the_door_leaves_all_alone_too(tmp_path):
    code = (
        "import random, numpy as np, torch, os, sys, warnings; warnings.simplefilter('error')\n"
        "from pipeline.symbolic.formulas._pykan import pykan\n"
        "torch.manual_seed(7); np.random.seed(7); random.seed(7); assert 'kan' not in sys.modules\n"
        "a = torch.get_rng_state(), str(np.random.get_state()), random.getstate(), torch.get_default_dtype()\n"
        "n = torch.get_num_threads()\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "with pykan() as kan: kan.MultKAN(width=[2, 1, 1], auto_save=False)\n"
        "b = torch.get_rng_state(), str(np.random.get_state()), random.getstate(), torch.get_default_dtype()\n"
        "assert torch.equal(a[0], b[0]) and a[1:] == b[1:] and n == torch.get_num_threads(); assert os.listdir() == []"
    )
    root = Path(pipeline.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_all_is_undone_after_an_error_too_and_our_functions_leave_the_library(capfd):
    from kan.utils import SYMBOLIC_LIB

    before, library = states(), dict(SYMBOLIC_LIB)
    assert set(ENTRIES).isdisjoint(library)

    def fail_within():
        with pykan() as kan:
            assert set(ENTRIES) <= set(SYMBOLIC_LIB)
            kan.MultKAN(width=[2, 1, 1], seed=1, auto_save=False)
            raise KeyError

    with pytest.raises(KeyError):
        fail_within()
    assert same(before, states())
    assert library == SYMBOLIC_LIB
    assert capfd.readouterr() == ("", "")


def test_nothing_but_the_door_imports_kan():
    importers = set()
    for path in Path(pipeline.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            importers |= {path for name in names if name.split(".")[0] == "kan"}
    assert importers == {Path(_pykan.__file__)}


@pytest.mark.parametrize("name", [name for name in ENTRIES if name != "clip"])
def test_what_pykan_is_lent_is_the_catalogues_function(name):
    f, symbol, complexity, _ = ENTRIES[name]
    z = torch.linspace(-12, 12, 97)
    assert torch.equal(f(z), BY_NAME[name].f(z))
    assert complexity == BY_NAME[name].complexity
    z_symbol = sympy.Symbol("z", real=True)
    assert symbol(z_symbol) == BY_NAME[name].symbol(z_symbol)


def test_every_function_of_the_catalogue_has_a_name_in_the_library():
    from kan.utils import SYMBOLIC_LIB

    for name in BY_NAME:
        assert NAMES.get(name, name) in {**SYMBOLIC_LIB, **ENTRIES} or name == "constant"


def test_a_planted_function_is_found_with_its_inputs():
    x_SC, y_S, weight_S = planted()
    found = fitted(x_SC, y_S, weight_S)
    assert found.kept_K.tolist() == [1, 4, 5]
    z_S = x_SC[:, found.kept_K] @ found.coefficient_K + found.intercept
    again_S = found.scale * torch.relu(z_S).square() + found.offset
    assert float((again_S - y_S).square().mean() / y_S.var()) < 1e-3


def test_weights_say_which_samples_count():
    x_SC, y_S, weight_S = planted(samples=400)
    wild_S = y_S.clone()
    wild_S[300:] = 50.0
    weight_S[300:] = 0
    found, quiet = fitted(x_SC, wild_S, weight_S), fitted(x_SC, y_S, weight_S)
    assert found.kept_K.tolist() == quiet.kept_K.tolist()
    torch.testing.assert_close(
        found.coefficient_K * abs(found.scale) ** 0.5, quiet.coefficient_K * abs(quiet.scale) ** 0.5
    )


def test_the_same_seed_makes_the_same_formula_whatever_the_generators_say():
    given = planted(noise=0.3)
    torch.manual_seed(1)
    first = fitted(*given)
    torch.manual_seed(2)
    np.random.seed(9)
    second = fitted(*given)
    assert torch.equal(first.coefficient_K, second.coefficient_K)
    assert (first.intercept, first.scale, first.offset) == (second.intercept, second.scale, second.offset)


def coefficients_set_out_with():
    with pykan() as kan:
        return kan.MultKAN(width=[6, 1, 1], grid=3, k=3, seed=3, auto_save=False).act_fun[0].coef.detach()


def test_what_freed_memory_held_has_no_part_in_what_a_kan_sets_out_with():
    generator, found = torch.Generator().manual_seed(0), set()
    for number in range(150):
        # As many whole numbers as a spline has coefficients: where least squares finds room for its list of columns.
        freed = torch.randint(0, 3, (6,), dtype=torch.int32, generator=generator) * (number % 2)
        del freed
        found.add(coefficients_set_out_with().numpy().tobytes())
    assert len(found) == 1
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_picture_of_a_kan_is_a_picture_and_leaves_no_figure():
    from matplotlib import pyplot

    open_before = pyplot.get_fignums()
    with pykan() as kan:
        model = kan.MultKAN(width=[2, 1, 1], auto_save=False)
        model(torch.rand(30, 2, generator=torch.Generator().manual_seed(0)))
        content = picture(model, ["x_1", "x_7"], "m")
    assert_picture(content)
    assert pyplot.get_fignums() == open_before
