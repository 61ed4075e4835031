"""An expert written back as a KAN: the same function, and a folder that plain pykan loads, edits and refits."""

import re
import subprocess
import sys

import pytest
import torch

from pipeline.symbolic.__main__ import main
from pipeline.symbolic.exporting import kan_folder
from pipeline.symbolic.formulas._pykan import pykan
from pipeline.symbolic.showing.magnitudes import arguments, coordinates_by_size, function_values, magnitude_expression
from tests.catalogue import BY_NAME
from tests.pictures import assert_picture
from tests.tiny_symbols import CONSTANT, DENSE, DROPPED, LOGIC, SPLINE, D
from tests.tolerances import assert_close, relative_rms

# N tokens, D model width, S states, K coordinates

CONSTANT_FUNCTION = 1 + BY_NAME["constant"].code


@pytest.mark.parametrize("expert", [e for e in range(CONSTANT) if e != CONSTANT_FUNCTION])
def test_the_kan_of_an_expert_is_its_formula_beyond_a_splines_range_too(symbols, expert):
    experts = symbols.blocks()[1].moe
    x_ND = 2 * torch.randn(301, D, generator=torch.Generator().manual_seed(expert))
    with torch.no_grad(), pykan() as kan:
        made = kan_folder.build(kan, experts, expert)
        columns = sorted(coordinates_by_size(experts, expert))
        found_N = made(x_ND[:, columns]).detach()[:, 0]
        assert made.depth == (3 if expert == SPLINE else 2)
        assert made.width_in[0] == len(columns)
    assert_close(found_N, function_values(experts, expert, arguments(experts, expert, x_ND)), 1e-5)


BY_KANPILER = ("identity", "square", "tanh", "gaussian", "cube", "fourth_power", "fifth_power", "sin", "cos", "arctan")


@pytest.mark.parametrize("name", BY_KANPILER)
def test_kanpilers_kan_of_the_expression_is_the_same_where_it_knows_the_function(symbols, name):
    experts, expert = symbols.blocks()[1].moe, 1 + BY_NAME[name].code
    expression = magnitude_expression(experts, expert, digits=None)
    coordinates = sorted(expression.free_symbols, key=lambda symbol: int(str(symbol)[2:]))
    x_NK = torch.randn(97, len(coordinates), generator=torch.Generator().manual_seed(0))
    with pykan() as kan:
        theirs_N1 = kan.kanpiler(coordinates, expression)(x_NK).detach()
        ours_N1 = kan_folder.build(kan, experts, expert)(x_NK).detach()
    assert_close(ours_N1, theirs_N1, 2e-5)


@pytest.mark.parametrize("name", ["relu", "relu2", "clipped_exp", "abs", "gelu"])
def test_kanpiler_fails_or_says_something_else_of_functions_that_it_does_not_know(symbols, name):
    """Why KANs are built edge by edge; when this fails, kanpiler has learnt them."""
    experts, expert = symbols.blocks()[1].moe, 1 + BY_NAME[name].code
    expression = magnitude_expression(experts, expert, digits=None)
    coordinates = sorted(expression.free_symbols, key=lambda symbol: int(str(symbol)[2:]))
    x_NK = torch.randn(97, len(coordinates), generator=torch.Generator().manual_seed(0))
    with pykan() as kan:
        if name not in ("abs", "gelu"):
            with pytest.raises(IndexError):
                kan.kanpiler(coordinates, expression)
        else:
            theirs_N1 = kan.kanpiler(coordinates, expression)(x_NK).detach()
            assert relative_rms(theirs_N1, kan_folder.build(kan, experts, expert)(x_NK).detach()) > 0.1


def blocks_of(readme):
    """The indented lines of Python in a README, section by section."""
    parts = re.split(r"^## ", readme, flags=re.MULTILINE)[1:]
    return ["\n".join(line[4:] for line in part.splitlines() if line.startswith("    ")) for part in parts]


@pytest.mark.parametrize("expert", [DENSE, 1 + BY_NAME["relu2"].code, 1 + BY_NAME["signed_root"].code, SPLINE, LOGIC])
def test_the_folder_of_a_kan_is_loaded_by_three_lines_edited_and_refitted_by_plain_pykan(
    symbols_store, symbols, tmp_path, capsys, expert
):
    folder = tmp_path / "made" / "kan"
    arguments_ = ["kan", "latest", "--layer", "1", "--expert", str(expert), "--to", str(folder)]
    assert main([*arguments_, "--store", str(symbols_store.root)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "see its README.md" in out
    assert list(folder.parent.iterdir()) == [folder]
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "firings.pt", "kan_cache_data", "kan_config.yml", "kan_functions.py", "kan_state", "plot.png",
    }  # fmt: skip
    assert_picture((folder / "plot.png").read_bytes())
    load, look, edit = blocks_of((folder / "README.md").read_text())
    assert len(load.splitlines()) == 3
    probe = "torch.save(model(data['train_input']).detach(), 'found.pt')"
    code = f"import matplotlib; matplotlib.use('Agg')\n{load}\n{look}\n{probe}\n{edit}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "x_1" in done.stdout.splitlines()[-1]
    experts, data = symbols.blocks()[1].moe, torch.load(folder / "firings.pt")
    x_SD = torch.zeros(len(data["train_input"]), D)
    x_SD[:, sorted(coordinates_by_size(experts, expert))] = data["train_input"]
    wanted_S = function_values(experts, expert, arguments(experts, expert, x_SD))
    assert_close(torch.load(folder / "found.pt")[:, 0], wanted_S, 1e-5)
    assert_close(data["train_label"][:, 0], wanted_S)
    assert (folder / "figures").is_dir()
    assert not (folder / "model").exists()


@pytest.mark.parametrize(
    ("expert", "message"),
    [(CONSTANT, "adds a constant"), (CONSTANT_FUNCTION, "adds a constant"), (DROPPED, "was dropped")],
)
def test_an_expert_without_a_formula_and_a_full_folder_are_refused_in_one_sentence(
    symbols_store, tmp_path, capsys, expert, message
):
    def command(expert, folder):
        given = ["kan", "latest", "--layer", "0", "--expert", str(expert), "--to", str(folder)]
        return main([*given, "--store", str(symbols_store.root)])

    assert command(expert, tmp_path / "new") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").write_text("")
    assert command(DENSE, tmp_path) == 2
    assert "is no empty folder" in capsys.readouterr().err
