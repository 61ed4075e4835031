"""How often the interval that `python -m pipeline.symbolic ablate` prints holds the mean, of what experts really lose.

    python -m tests.benchmarks.ablation_interval --store DIR --expert 0 165 --expert 1 3737

The documents of many held-out tokens are taken as all there are; of them so many are drawn at random with replacement,
again and again, and it is counted in how many draws the interval holds the mean over all. Nominal are 95 %.
"""

# N tokens, D documents, S documents of a draw

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from artifacts import Store
from artifacts.terminal import say
from pipeline.corpus.windows import held_out_windows, target_positions
from pipeline.measuring.loss import token_losses
from pipeline.models.ablation import ablated
from pipeline.opening import Opened
from pipeline.symbolic.asking.ablate import WINDOWS_A_PASS, clustered
from pipeline.symbolic.commands.asked import open_asked

DRAWS = 1000
DOCUMENTS = (10, 30, 119)


@torch.no_grad()
def losses_without(opened: Opened, layer: int, expert: int, tokens: int) -> Tensor:
    """(N) by how much the loss of each held-out token grows."""
    windows = held_out_windows(opened.corpus.held_out, num_tokens=tokens, length=opened.context)
    parts: list[Tensor] = []
    for inputs_BT, targets_BT in zip(*(of.split(WINDOWS_A_PASS) for of in windows), strict=True):
        whole_BT = token_losses(opened.model(inputs_BT), targets_BT).double()
        with ablated(opened.model, {layer: [expert]}):
            parts.append((token_losses(opened.model(inputs_BT), targets_BT).double() - whole_BT).flatten())
    return torch.cat(parts)


def coverage(value_N: Tensor, document_N: Tensor, documents: int, generator: torch.Generator) -> float:
    """Share of the draws of so many documents whose interval holds the mean of all values."""
    of_D = [value_N[document_N == document] for document in document_N.unique()]
    mean, held = float(value_N.mean()), 0
    for _ in range(DRAWS):
        drawn = [of_D[at] for at in torch.randint(len(of_D), (documents,), generator=generator).tolist()]
        number_S = torch.tensor([len(part) for part in drawn])
        found, half_width, _ = clustered(torch.cat(drawn), torch.repeat_interleave(torch.arange(documents), number_S))
        held += half_width is not None and abs(found - mean) <= half_width
    return held / DRAWS


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ablation_interval")
    parser.add_argument("--store", type=Path, default=Path("store"), help="folder of the store")
    parser.add_argument("--model", default="latest", metavar="ID", help="the model (default: latest)")
    parser.add_argument(
        "--expert", type=int, nargs=2, action="append", required=True, metavar=("L", "E"), help="again for more"
    )
    parser.add_argument("--tokens", type=int, default=65_536, help="held-out tokens, about (default: 65536)")
    args = parser.parse_args(arguments)
    opened = open_asked(Store(args.store), args.model)
    split, generator = opened.corpus.held_out, torch.Generator().manual_seed(0)
    position_WT = target_positions(split, num_tokens=args.tokens, length=opened.context)
    document_N = split.document_of(position_WT).flatten()
    for layer, expert in args.expert:
        value_N = losses_without(opened, layer, expert, args.tokens)
        held = (f"{coverage(value_N, document_N, of, generator):.1%} of {of} documents" for of in DOCUMENTS)
        say(f"layer {layer}, expert {expert}: {float(value_N.mean()):+.5f} nats; {', '.join(held)}")


if __name__ == "__main__":
    main()
