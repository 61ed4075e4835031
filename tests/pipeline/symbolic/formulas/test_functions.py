"""The catalogue: what torch computes and what sympy shows are one function."""

import shutil
import subprocess
from pathlib import Path

import pytest
import sympy
import torch

from kernels import backends
from kernels.activations import ACTIVATIONS
from kernels.packing import pack_int4
from kernels.symbol_table import symbol_table
from kernels.symbol_table.tables import SymbolTables, Tier, shapes
from pipeline.models.symbols import activation_code
from pipeline.symbolic.exporting import export
from pipeline.symbolic.formulas.functions import BY_CODE, CATALOGUE, SPLINE_CODE, apply_codes
from tests.catalogue import BY_NAME


@pytest.mark.parametrize("function", CATALOGUE, ids=lambda function: function.name)
def test_a_functions_torch_form_is_its_sympy_form(function):
    z = sympy.Symbol("z", real=True)
    points_P = torch.cat([torch.linspace(-4, 4, 41), torch.tensor([-11.5, 11.5])]).double()
    shown = [float(function.symbol(z).subs(z, point)) for point in points_P.tolist()]
    torch.testing.assert_close(function.f(points_P), torch.tensor(shown, dtype=torch.float64), rtol=1e-9, atol=1e-12)


POINTS_P = torch.tensor([0.0, 1e-3, -1e-3, 0.4, -0.4, 1.0, -1.0, 2.5, -2.5, 9.9, -9.9, 11.5, -11.5, 40.0, -40.0])
HARNESS = """
#define main runtime_main
#include "{runtime}"
#undef main
int main(void) {{
    uint8_t code[{functions}];
    Layer layer;
    memset(&layer, 0, sizeof layer);
    layer.code = code;
    for (int i = 0; i < {functions}; i++) code[i] = (uint8_t)i;
    float z;
    while (scanf("%f", &z) == 1)
        for (uint32_t i = 0; i < {functions}; i++) printf("%.9g\\n", function_of(&layer, i, z));
}}
"""


def wanted_FP():
    """(F, P) float64: the sympy forms at the points."""
    z = sympy.Symbol("z", real=True)
    values = [[float(f.symbol(z).subs(z, point).evalf(30)) for point in POINTS_P.tolist()] for f in CATALOGUE]
    return torch.tensor(values, dtype=torch.float64)


def by_operator():
    """(F, P): one expert a function, whose v has a single 1 that no other's has."""
    count = len(CATALOGUE)
    made = {
        name: torch.zeros(shape, dtype=dtype)
        for name, (shape, dtype) in shapes(
            d_model=2 * count, experts=count, coordinates=1, dense=0, literals=0, gates=0, vocabulary=2, splines=0
        ).items()
    }
    made |= {
        "tier_E": torch.full((count,), Tier.T1, dtype=torch.uint8), "code_E": torch.arange(count, dtype=torch.uint8),
        "scale_E": torch.ones(count), "coefficient_EK": torch.ones(count, 1), "v_scale_E": torch.ones(count).half(),
        "v_EB": pack_int4(torch.eye(count, 2 * count, dtype=torch.int8)),
    }  # fmt: skip
    tables = SymbolTables(cell_start_C1=torch.tensor([0, count], dtype=torch.int32), **made)
    x_PD = torch.zeros(len(POINTS_P), 2 * count)
    x_PD[:, 0] = POINTS_P
    cell_P, start_P1 = torch.zeros(len(POINTS_P), dtype=torch.int64), torch.arange(len(POINTS_P) + 1)
    tokens_BT = torch.zeros(1, len(POINTS_P), dtype=torch.int64)
    return symbol_table(x_PD, cell_P, start_P1, torch.ones(len(POINTS_P)), tokens_BT, tables, 1)[:, :count].T


def close(found_FP):
    torch.testing.assert_close(found_FP.double(), wanted_FP(), rtol=2e-5, atol=1e-6)


def test_torch_and_the_operators_agree_with_sympy_far_out_too(monkeypatch):
    close(torch.stack([function.f(POINTS_P) for function in CATALOGUE]))
    close(by_operator())  # C++, where it was built
    monkeypatch.setattr(backends, "cpu_library", lambda: None)
    close(by_operator())


def test_the_exported_program_agrees_with_sympy_far_out_too(tmp_path):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler was found; install gcc or clang to run what is exported")
    runtime = Path(export.__file__).with_name("runtime.c")
    (tmp_path / "harness.c").write_text(HARNESS.format(runtime=runtime, functions=len(CATALOGUE)))
    subprocess.run(["cc", "-O3", "-o", "harness", "harness.c", "-lm"], cwd=tmp_path, check=True)
    given = " ".join(f"{z:.9g}" for z in POINTS_P.tolist())
    done = subprocess.run([tmp_path / "harness"], input=given, capture_output=True, text=True, check=True)
    close(torch.tensor([float(line) for line in done.stdout.split()]).view(len(POINTS_P), -1).T)


def test_codes_and_names_are_unique_and_none_is_the_splines():
    assert len(BY_CODE) == len(BY_NAME) == len(CATALOGUE)
    assert SPLINE_CODE not in BY_CODE
    assert all(BY_CODE[code].code == code for code in BY_CODE)


def test_codes_keep_their_meaning():
    """Artifacts hold these numbers; a change here makes old ones say something else."""
    names = ["constant", "identity", "square", "relu", "relu2", "gelu"]
    names += ["silu", "sigmoid", "tanh", "softplus", "abs", "gaussian"]
    names += ["cube", "fourth_power", "fifth_power", "signed_root", "three_halves_power", "clipped_exp"]
    names += ["signed_log", "sin", "cos", "arctan"]
    assert {function.code: function.name for function in CATALOGUE} == dict(enumerate(names))


def test_every_pair_gets_the_function_of_its_own_code():
    code_P = torch.tensor([2, 4, 1, 2, 10], dtype=torch.uint8)
    z_P = torch.tensor([-3.0, 2.0, -5.0, 0.5, -7.0])
    assert apply_codes(code_P, z_P).tolist() == [9.0, 4.0, -5.0, 0.25, 7.0]


@pytest.mark.parametrize("code", [len(CATALOGUE), 99, SPLINE_CODE])
def test_a_code_outside_the_catalogue_is_refused(code):
    with pytest.raises(ValueError, match=f"code {code} is not in the catalogue"):
        apply_codes(torch.tensor([1, code], dtype=torch.uint8), torch.zeros(2))


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_every_activation_of_a_model_is_in_the_catalogue(name):
    z_P = torch.linspace(-3, 3, 13)
    torch.testing.assert_close(BY_CODE[activation_code(name)].f(z_P), ACTIVATIONS[name].f(z_P))
