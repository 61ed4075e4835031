"""`python -m pipeline.capacity`: how many experts fit into a memory, for inference and for training, and how fast."""

import sys
from collections.abc import Sequence

import torch

from artifacts import CommandParser, as_command, show_every_text, told, writing_to_stdout
from kernels.errors import Mistake
from pipeline.capacity.speed import Speed, given_speed, measured_speed
from pipeline.capacity.storage import (
    INFERENCE,
    TRAINING,
    Capacity,
    Request,
    capacity,
    expert_bytes,
    parse_bytes,
    value_bytes,
)


def report(capacities: Sequence[Capacity], request: Request, speed: Speed) -> str:
    """Two Markdown tables and what their columns mean."""
    memory, reserve, layer = (n / 1e9 for n in (request.memory_bytes, request.reserve_bytes, request.layer_bytes))
    layers = f"{request.layers:,} layers" if request.layers > 1 else "1 layer"
    lines = [
        f"{memory:,.2f} GB less {reserve:,.2f} GB for the rest, over {layers} of width {request.width:,}: "
        f"{layer:,.2f} GB a layer.",
        "",
        _table("inference", [of for of in capacities if not of.storage.trains], request, speed),
        "",
        _table("training", [of for of in capacities if of.storage.trains], request, speed),
        "",
        f"KB/token: of table rows that a token moves in one layer, with {request.pairs:,} pairs; in training with",
        f"  {request.batch:,} tokens a step, whose pairs touch rows as if drawn uniformly.",
        f"GB/s: {speed.source}.",
        "tokens/s: the most that this traffic allows one layer, a bound. What the kernels compute on the rows, the",
        "  router's selection, attention, the token states that an update reads and the rest of the model are not in",
        "  it, nor that the pages of tables of many GB are found more slowly.",
    ]
    if speed.rate:
        lines.append(
            "kernels/s: tokens that one layer reaches here by kernels/expert_sum, forward; in training backward too,\n"
            "  and kernels/sr_update. The other ways to train have no kernel of their own."
        )
    return "\n".join(lines)


def _table(title: str, capacities: Sequence[Capacity], request: Request, speed: Speed) -> str:
    titles = "bytes/expert", "fit a layer", "key grid", "experts", "GB, all layers", "KB/token", "GB/s", "tokens/s"
    lines = [[title, *titles, *["kernels/s"] * bool(speed.rate)]]
    for of in capacities:
        bandwidth, rate = speed.bandwidth[value_bytes(of.storage, request.width)], speed.rate.get(of.storage.name)
        lines.append(
            [
                of.storage.name, f"{expert_bytes(of.storage, request.width):,.1f}", f"{of.experts_that_fit:,}",
                f"{of.grid.rows:,} x {of.grid.columns:,}", f"{of.grid.experts:,}",
                f"{request.layers * of.pool_bytes / 1e9:,.2f}", f"{of.token_bytes / 1e3:,.1f}",
                f"{bandwidth / 1e9:,.1f}", f"{bandwidth / of.token_bytes:,.0f}",
                *["" if rate is None else f"{rate:,.0f}"] * bool(speed.rate),
            ]
        )  # fmt: skip
    return _markdown(lines)


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]) + " |"

    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    header, *rest = lines
    return "\n".join([line(header), rule, *map(line, rest)])


@as_command
def main(arguments: Sequence[str]) -> int:
    """Prints the two tables; 2 after one sentence for what cannot be planned."""
    show_every_text()
    parser = CommandParser(prog="python -m pipeline.capacity", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--memory", required=True, metavar="SIZE", help="of the machine or GPU: 24GB, 80GB, 1.5GiB")
    parser.add_argument("--width", required=True, type=int, help="of an expert's rows, d_model; even")
    parser.add_argument("--layers", type=int, default=1, help="that share the memory (default: 1)")
    parser.add_argument(
        "--reserve", default="1.5GB", metavar="SIZE",
        help="kept for everything else: process, rest of the model, activations (default: 1.5GB)",
    )  # fmt: skip
    parser.add_argument("--pairs", type=int, default=128, help="experts a token reads in a layer (default: 128)")
    parser.add_argument("--batch", type=int, default=16_384, help="tokens a training step (default: 16384)")
    parser.add_argument(
        "--bandwidth", metavar="SIZE/s",
        help="of another machine, such as 3.35TB/s; without it, reading random rows is measured here, for seconds",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="that measure (default: torch's)")
    values = parser.parse_args(arguments)
    try:
        request = Request(
            memory_bytes=parse_bytes(values.memory, "--memory"),
            reserve_bytes=parse_bytes(values.reserve, "--reserve"),
            width=values.width,
            layers=values.layers,
            pairs=values.pairs,
            batch=values.batch,
        )
        capacities = [capacity(storage, request) for storage in (*INFERENCE, *TRAINING)]
        given = None if values.bandwidth is None else parse_bytes(values.bandwidth, "--bandwidth", "/s")
        if values.threads < 1:
            raise Mistake(f"--threads: got {values.threads}, wanted at least 1")
    except ValueError as error:
        print(told(error), file=sys.stderr)
        return 2
    torch.set_num_threads(values.threads)
    speed = measured_speed(request, capacities) if given is None else given_speed(given, request)
    with writing_to_stdout():
        print(report(capacities, request, speed))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
