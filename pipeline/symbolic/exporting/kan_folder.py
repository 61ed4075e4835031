"""An expert's formula written back as a KAN: a folder that plain pykan loads, plots, edits and refits.

The KAN is built edge by edge. pykan's own compiler of sympy expressions, `kanpiler`, gives the same one for functions
that its library has; on Max and Min it fails, and erf, Abs and Piecewise it takes for other functions without a word.
"""

# N tokens, D model width, S states, K coordinates

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.errors import Mistake
from kernels.symbol_table.functions import KNOTS, SPLINE_CODE
from pipeline.models.language_model import LanguageModel
from pipeline.models.symbols import SymbolExperts
from pipeline.symbolic.formulas import kan_functions
from pipeline.symbolic.formulas._pykan import DEGREE, Pykan, picture, pykan
from pipeline.symbolic.formulas.functions import BY_CODE
from pipeline.symbolic.formulas.kan_functions import NAMES
from pipeline.symbolic.formulas.kan_pruning import fix
from pipeline.symbolic.showing.blocks import symbol_experts
from pipeline.symbolic.showing.fired import firings
from pipeline.symbolic.showing.magnitudes import arguments, coefficients, function_values
from pipeline.symbolic.showing.reading import Reading
from pipeline.symbolic.tiers import TIER_WORDS, Tier

STATES = 1000
"""Most states that go with a KAN."""
_README = Path(__file__).with_name("kan.md")


def check_formula(experts: SymbolExperts, expert: int) -> None:
    """ValueError for an expert whose magnitude is no function of the state."""
    tier = Tier(int(experts.tier_E[expert]))
    if tier == Tier.T4:
        raise Mistake(f"expert {expert} was dropped ({tier.name}), so there is no formula; choose one of T0 to T2")
    code = int(experts.code_E[expert])
    if tier == Tier.T3 or (code != SPLINE_CODE and BY_CODE[code].name == "constant"):
        raise Mistake(
            f"expert {expert} ({tier.name}) adds a constant, of which there is no KAN; choose one of T0 to T2 with a "
            "function (`show` lists them)"
        )


def write_kan(model: LanguageModel, reading: Reading, tokens_WT: Tensor, folder: Path, *, id: str) -> int:
    """Writes the folder, whole or not at all, with states of these tokens; returns how many of them there are.

    ValueError where the folder holds something, or the expert has no formula.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Mistake(f"--to: {folder} is there already and is no empty folder; name another, or remove it")
    experts, expert = symbol_experts(model, reading.layer), reading.expert
    check_formula(experts, expert)
    x_SD, fires = _states(model, reading, tokens_WT)
    value_S = function_values(experts, expert, arguments(experts, expert, x_SD))
    index_K = list(coefficients(experts, expert))
    names = [f"x_{index}" for index in index_K]
    labels_S1 = value_S[:, None]
    data = {"train_input": x_SD[:, index_K], "train_label": labels_S1}
    data |= {"test_input": data["train_input"], "test_label": labels_S1}
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        scratch.chmod(0o755)
        with pykan() as kan:
            made = build(kan, experts, expert)
            made(data["train_input"])
            made.saveckpt(str(scratch / "kan"))
            (scratch / "plot.png").write_bytes(picture(made, names, "m"))
        torch.save(data, scratch / "firings.pt")
        shutil.copy(kan_functions.__file__, scratch / "kan_functions.py")
        readme = _readme(reading, id, index_K, names, len(x_SD), is_spline=made.depth == 3, fires=fires)
        (scratch / "README.md").write_text(readme, encoding="utf-8")
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return len(x_SD)


def build(kan: Pykan, experts: SymbolExperts, expert: int) -> Any:
    """The expert's formula as a MultKAN of its coordinates, in order of their indices.

    [K, 1, 1] with a function on the last edge; a spline is [K, 1, 1, 1], its argument clipped to its range before it.
    """
    coefficient_K = torch.tensor(list(coefficients(experts, expert).values()))
    intercept, code = float(experts.intercept_E[expert]), int(experts.code_E[expert])
    scale, offset = float(experts.scale_E[expert]), float(experts.offset_E[expert])
    is_spline = code == SPLINE_CODE
    model = kan.MultKAN(
        width=[len(coefficient_K), *([1, 1, 1] if is_spline else [1, 1])], grid=KNOTS - 1, k=DEGREE, grid_range=[0, 1],
        base_fun="zero", auto_save=False,
    )  # fmt: skip
    if not is_spline:
        name = BY_CODE[code].name
        fix(model, NAMES.get(name, name), coefficient_K, intercept, scale=scale, offset=offset)
        return model
    fix(model, "x", coefficient_K, intercept, scale=1.0, offset=0.0)
    model.unfix_symbolic(2, 0, 0)
    model.fix_symbolic(1, 0, 0, "clip", fit_params_bool=False)
    row = int(experts.spline_row_E[expert])
    low, high = float(experts.spline_low_W[row]), float(experts.spline_high_W[row])
    with torch.no_grad():
        model.symbolic_fun[1].affine.data[0, 0] = torch.tensor([1 / (high - low), -low / (high - low), 1.0, 0.0])
        edge = model.act_fun[2]
        # Splines that sum to one: scale and offset of the curve are those of its coefficients.
        edge.coef.data[0, 0] = scale * experts.spline_coefficient_WK[row] + offset
        edge.scale_sp.data.fill_(1.0)
        edge.scale_base.data.zero_()
    return model


@torch.no_grad()
def _states(model: LanguageModel, reading: Reading, tokens_WT: Tensor) -> tuple[Tensor, bool]:
    """(S, D) states on which the expert fires; of all tokens where these are hardly any, and False then."""
    trace = model.trace(tokens_WT)
    x_ND = trace.expert_inputs[reading.layer]
    fired = firings(symbol_experts(model, reading.layer), x_ND, trace.routings[reading.layer])
    token_P = fired.token_P[fired.expert_P == reading.expert]
    fires = len(token_P) > 1
    return (x_ND[token_P] if fires else x_ND)[:STATES], fires


def _readme(
    reading: Reading, id: str, index_K: Sequence[int], names: Sequence[str], rows: int, *, is_spline: bool, fires: bool
) -> str:
    beyond = "It adds gate * m * v where it fires; gate, v and the rule are no part of the KAN."
    if reading.tier == Tier.T2:
        beyond = "It adds m * v where its statement is true; v and the statement are no part of the KAN."
    edges = "Edges from the inputs are lines; the last is the function."
    if is_spline:
        edges = (
            "Edges from the inputs are lines; then z is brought from the spline's range to 0 to 1 and clipped, as the\n"
            "formula is constant outside; the last edge is the spline, which stays one: fix it to give it a formula."
        )
    if reading.tier == Tier.T0:
        edges += "\nu is dense, so that there are as many inputs as the model is wide, and the plot shows hardly more."
    return _README.read_text(encoding="utf-8").format(
        expert=reading.expert, layer=reading.layer, id=id, tier=reading.tier.name, tier_words=TIER_WORDS[reading.tier],
        function=reading.function, argument=reading.argument, beyond=beyond, inputs=len(index_K), rows=f"{rows:,}",
        coordinates=", ".join(map(str, index_K)), names=list(names), edges=edges, last=2 if is_spline else 1,
        where="on which the expert fires" if fires else "of all tokens, since the expert fired on one at most",
    )  # fmt: skip
