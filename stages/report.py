"""All models of the chain -> report: one table and one picture of what each step cost and saved."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated

from pydantic import Field

from pipeline.plots import chain_costs
from pipeline.report import Report, ReportSpec, Row
from pipeline.stage import Measured, Output, StageConfig, stage

BITS = "held_out_bits_per_byte"


class ReportConfig(StageConfig):
    """How the report is drawn; what it says comes from its inputs."""

    width_inches: float = Field(default=8.0, ge=3, le=40, description="Width of the picture in inches, 3 to 40.")
    dots_per_inch: int = Field(default=120, ge=50, le=600, description="Resolution of the picture, 50 to 600.")


@stage(name="report", version=2)
def report(
    config: ReportConfig,
    *,
    dense: Annotated[Measured, "dense"],
    monet: Annotated[Measured, "monet"],
    peer: Annotated[Measured, "peer"],
    int8: Annotated[Measured, "peer-int8"],
    int4: Annotated[Measured, "peer-int4"],
    tuned: Annotated[Measured, "peer-int4"],
    symbols: Annotated[Measured, "symbols"],
) -> Output[Report]:
    """All models -> report: bits a byte, loss against the parent and bytes an expert, along the chain."""
    rows = (
        _row("dense", dense),
        _row("Monet", monet),
        _row("PEER", peer),
        _row("PEER int8", int8),
        _row("PEER int4", int4),
        _row("int4 fine-tuned", tuned),
        _row("symbols", symbols),
    )
    files = {"report.md": _page(rows).encode(), "plot.png": _picture(rows, config)}
    return Output(value=Report(ReportSpec(rows=rows), files), metrics=_summary(rows))


def _row(name: str, measured: Measured) -> Row:
    return Row(name=name, id=measured.id, kind=measured.kind, seconds=measured.seconds, metrics=dict(measured.metrics))


def _summary(rows: Sequence[Row]) -> dict[str, float]:
    """Bits a byte of the first and the last model, and what the whole chain added to the dense baseline."""
    first, last = rows[0].metrics[BITS], rows[-1].metrics.get(BITS)
    summary = {"dense_bits_per_byte": first, "seconds_of_all_stages": math.fsum(row.seconds for row in rows)}
    if last is None:
        return summary
    return {**summary, "symbols_bits_per_byte": last, "bits_per_byte_increase_over_dense": last - first}


def _count(value: float) -> str:
    return f"{value:,.0f}"


# Title of the column, metric, form.
COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("bits/byte", BITS, "{:.4f}".format),
    ("loss, nats/token", "held_out_loss_nats", "{:.4f}".format),
    ("Δ against parent, nats", "loss_increase_nats", "{:+.4f}".format),
    ("KL, nats", "kl_to_teacher_nats", "{:.5f}".format),
    ("recovered", "loss_recovered", "{:.4f}".format),
    ("bytes/expert", "expert_bytes", _count),
    ("table bytes/parameter", "table_bytes_per_parameter", "{:.3f}".format),
    ("active experts/token", "active_experts_per_token", "{:.1f}".format),
    ("parameters", "num_parameters", _count),
)


def _page(rows: Sequence[Row]) -> str:
    head = ["model", *(title for title, _, _ in COLUMNS), "seconds"]
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *(_cells(row) for row in rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    made_of = "\n".join(f"- {row.name}: `{row.id}`" for row in rows)
    return (
        "# From text to symbols\n\n"
        f"{table}\n\n"
        "Losses are over the held-out split; differences are paired, token by token, with the model that each was "
        "made from: PEER with Monet, int8 and int4 with PEER, the fine-tuned int4 with the float PEER, symbols with "
        "the fine-tuned int4. `recovered` saturates on small models: read it beside Δ and KL.\n\n"
        "![bits a byte and bytes an expert along the chain](plot.png)\n\n"
        f"## Measured\n\n{made_of}\n"
    )


def _cells(row: Row) -> list[str]:
    cells = [form(row.metrics[metric]) if metric in row.metrics else "" for _, metric, form in COLUMNS]
    return [row.name, *cells, f"{row.seconds:,.1f}"]


def _picture(rows: Sequence[Row], config: ReportConfig) -> bytes:
    dense, *chain = rows
    return chain_costs(
        [row.name for row in chain],
        bits_per_byte=[row.metrics.get(BITS, math.nan) for row in chain],
        baseline_bits_per_byte=dense.metrics[BITS],
        expert_bytes=[row.metrics.get("expert_bytes", 0.0) for row in chain],
        width=config.width_inches,
        dots_per_inch=config.dots_per_inch,
    )
