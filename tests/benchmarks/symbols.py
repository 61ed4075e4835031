"""Symbols against the int8 PEER: microseconds a token of every block's router, experts and both, on one thread.

`python -m tests.benchmarks.symbols SYMBOLS_ID INT8_ID --store DIR --batch 256 1`. Both models run as they do in
evaluation, with the C++ kernels, on the states that they have themselves of held-out tokens. Times are CPU time of this
process, the least of `--repeats` that the models take in turns. Blocks that share a router are each shown with it; in
the sum of all blocks it counts once. The same calls are made with no tokens, which is what calling costs by itself.
`--plot FILE` draws loss against the sum, a point a model, `--also` more of them.
"""

# B windows, T tokens of a window, N = B * T tokens of a batch, D model width

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from artifacts import Manifest, Store
from kernels import backends
from pipeline import codec
from pipeline.corpus.splits import Corpus
from pipeline.corpus.windows import held_out_windows
from pipeline.models.language_model import LanguageModel
from pipeline.models.peer.router import PeerRouter
from pipeline.models.peer.spec import PeerSpec
from pipeline.models.symbols import SymbolRouter, SymbolSpec
from tests.benchmarks.kernels import take_turns
from tests.benchmarks.loss_by_speed import ModelPoint, loss_by_speed

WINDOW = 64
STATES = {1: 32}
"""Batches a measurement goes through, so that tables do not wait in the nearest cache; 4 of other sizes."""
PARTS = "router", "experts", "layer"


@dataclass(frozen=True, slots=True)
class Batch:
    x_ND: Tensor
    tokens_BT: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A model with the states of its own that it is measured on."""

    name: str
    manifest: Manifest
    model: LanguageModel
    batches: list[list[Batch]]
    """A list a block."""
    router: list[nn.Module]
    """The one that each block uses."""

    @property
    def peer(self) -> PeerSpec:
        spec = self.model.spec.experts
        assert isinstance(spec, PeerSpec | SymbolSpec)
        return spec.peer if isinstance(spec, SymbolSpec) else spec

    def scores(self, layer: int) -> PeerRouter:
        router = self.router[layer]
        found = router.scores if isinstance(router, SymbolRouter) else router
        assert isinstance(found, PeerRouter)
        return found

    def empty(self) -> list[list[Batch]]:
        """As many batches as there are, with no token in them."""
        return [[Batch(batch.x_ND[:0], batch.tokens_BT[:, :0]) for batch in batches] for batches in self.batches]

    def parts(self, layer: int) -> dict[str, Callable[[], object]]:
        router, experts, batches = self.router[layer], self.model.blocks()[layer].moe, self.batches[layer]
        routings = [router(batch.x_ND, batch.tokens_BT) for batch in batches]

        def route() -> None:
            for batch in batches:
                router(batch.x_ND, batch.tokens_BT)

        def add() -> None:
            for batch, routing in zip(batches, routings, strict=True):
                experts(batch.x_ND, routing)

        def both() -> None:
            for batch in batches:
                experts(batch.x_ND, router(batch.x_ND, batch.tokens_BT))

        return dict(zip(PARTS, (route, add, both), strict=True))


def subject(store: Store, id: str, size: int) -> Subject:
    artifact = store.open(id)
    model = codec.load(artifact)
    corpus_id = next(m.id for m in store.ancestry(artifact.id) if m.kind == "corpus")
    corpus = codec.load(store.open(corpus_id))
    assert isinstance(model, LanguageModel)
    assert isinstance(corpus, Corpus)
    model.eval()
    count, length = STATES.get(size, 4), min(size, WINDOW)
    if size % length:
        raise SystemExit(f"--batch {size} is above {WINDOW} and no multiple of it; take {size // WINDOW * WINDOW}")
    inputs_WT, _ = held_out_windows(corpus.held_out, num_tokens=count * max(size, WINDOW), length=WINDOW)
    blocks, batches = model.blocks(), []
    for inputs_BT in inputs_WT.split(max(1, size // WINDOW)):
        trace = model.trace(inputs_BT)
        # Of a smaller batch the last tokens, which have a context.
        batches.append(
            [Batch(x_ND[-size:].clone(), inputs_BT[:, -length:].contiguous()) for x_ND in trace.expert_inputs]
        )
    routers: list[nn.Module] = []
    for block in blocks:
        routers.append(routers[-1] if block.router is None else block.router)
    by_block = [list(batches_of_block) for batches_of_block in zip(*batches, strict=True)]
    return Subject(name=id, manifest=artifact.manifest, model=model, batches=by_block, router=routers)


def measured(subjects: Sequence[Subject], size: int, repeats: int) -> list[list[dict[str, float]]]:
    """Microseconds a token of each part, for each block and in it for each subject."""
    found = []
    for layer in range(len(subjects[0].router)):
        ops = {(i, part): op for i, s in enumerate(subjects) for part, op in s.parts(layer).items()}
        least = take_turns({f"{i} {part}": op for (i, part), op in ops.items()}, repeats)
        scale = 1e6 / (size * len(subjects[0].batches[layer]))
        found.append([{part: least[f"{i} {part}"] * scale for part in PARTS} for i in range(len(subjects))])
    return found


def sums(subject: Subject, times: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of all blocks: a router counts once, however many blocks use it."""
    owns = [block.router is not None for block in subject.model.blocks()]
    router = sum(time["router"] for time, own in zip(times, owns, strict=True) if own)
    experts = sum(time["experts"] for time in times)
    return {"router": router, "experts": experts, "layer": router + experts}


def table(subjects: Sequence[Subject], size: int, times: list[list[dict[str, float]]]) -> Iterator[str]:
    yield f"**Batch {size}**, us a token:\n"
    heads = [f"{name} {part}" for part in PARTS for name in ("symbols", "int8")]
    yield "| block | " + " | ".join(heads) + " | router ratio | experts ratio | layer ratio |"
    yield "| --- |" + " ---: |" * (len(heads) + 3)
    ours, theirs = subjects[:2]
    rows = {str(layer): pair for layer, pair in enumerate(times)}
    rows["all"] = [sums(s, [pair[i] for pair in times]) for i, s in enumerate((ours, theirs))]
    for name, pair in rows.items():
        cells = [f"{pair[i][part]:.2f}" for part in PARTS for i in (0, 1)]
        ratios = [f"{pair[1][part] / pair[0][part]:.2f}" for part in PARTS]
        yield f"| {name} | " + " | ".join(cells + ratios) + " |"


def query_line(peer: Subject, size: int, repeats: int) -> str:
    """The dense query's product alone, in the two precisions."""
    weight_SX = peer.scores(0).query.weight.detach()
    x_XN = torch.randn(size, weight_SX.shape[1], generator=torch.Generator().manual_seed(0)).T
    half_SX = weight_SX.bfloat16()
    ops: dict[str, Callable[[], object]] = {
        "fp32": lambda: [weight_SX @ x_XN for _ in range(20)],
        "bf16": lambda: [(half_SX @ x_XN.bfloat16()).float() for _ in range(20)],
    }
    least = {name: seconds * 1e6 / (20 * size) for name, seconds in take_turns(ops, repeats).items()}
    return (
        f"Query of the int8 PEER ({weight_SX.shape[0]} x {weight_SX.shape[1]}), us a token: fp32 "
        f"{least['fp32']:.2f} (it is what the tables above have), bf16 with the casts {least['bf16']:.2f}, which is "
        f"{least['bf16'] / least['fp32']:.2f} of it\n"
    )


def calls_line(subjects: Sequence[Subject], size: int, repeats: int, times: list[list[dict[str, float]]]) -> str:
    """What calling costs, and what is left of all blocks without it."""
    calls = measured([replace(subject, batches=subject.empty()) for subject in subjects], size, repeats)
    alone, whole = ([sums(s, [pair[i] for pair in taken]) for i, s in enumerate(subjects)] for taken in (calls, times))
    ours, theirs = ({part: w[part] - a[part] for part in PARTS} for a, w in zip(alone, whole, strict=True))
    return (
        f"Calls without a token, all blocks, us a token: symbols {alone[0]['layer']:.2f}, int8 "
        f"{alone[1]['layer']:.2f}; "
        f"the rest is {ours['layer']:.2f} and {theirs['layer']:.2f}, a ratio of {theirs['layer'] / ours['layer']:.2f}\n"
    )


def description(subject: Subject) -> str:
    peer, metrics, pairs = subject.peer, subject.manifest.metrics, pairs_a_token(subject)
    grid = f"{peer.num_heads} x {peer.num_keys} x {peer.num_columns}"
    scores = f"{peer.score_terms} of {peer.score_features} features" if peer.score_features else "dense"
    return (
        f"| {subject.name} | {subject.model.shape.d_model} | {peer.num_experts:,} | "
        f"{grid} | {scores} | {peer.u_terms or 'dense'} | {pairs:.1f} | "
        f"{metrics['held_out_loss_nats']:.4f} |"
    )


def pairs_a_token(subject: Subject) -> float:
    """Cells that a token reaches, mean over blocks."""
    count = tokens = 0
    for router, batches in zip(subject.router, subject.batches, strict=True):
        for batch in batches:
            routing = router(batch.x_ND, batch.tokens_BT)
            count += len((routing.cells if isinstance(router, SymbolRouter) else routing).cell_P)
            tokens += len(batch.x_ND)
    return count / tokens


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("symbols", help="id of a symbols artifact")
    parser.add_argument("int8", help="id of an int8 PEER, its own best: of a dense one")
    parser.add_argument("--store", type=Path, default=Path("store"))
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 1], help="tokens a call")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--plot", type=Path, help="PNG of loss against time, at the first batch size")
    parser.add_argument("--also", nargs="*", default=[], help="ids of more models for the picture")
    parser.add_argument("--set", choices=backends.INSTRUCTION_SETS, help="instructions to use (default: the best)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=200, highlight=False)
    library = backends.cpu_library()
    if library is None:
        raise SystemExit("the C++ kernels are not built; `make native`, then measure")
    if asked.set is not None:
        library = replace(library, instruction_set=asked.set)
        backends.cpu_library = lambda: library
    console.print(f"torch {torch.__version__}, one thread, C++ kernels for {library.instruction_set}\n")
    store = Store(asked.store)
    for size in asked.batch:
        drawn = asked.plot is not None and size == asked.batch[0]
        ids = [asked.symbols, asked.int8, *(asked.also if drawn else ())]
        subjects = [subject(store, id, size) for id in ids]
        if size == asked.batch[0]:
            console.print("| model | width | experts | heads x grid | scores | u | cells a token | held-out nats |")
            console.print("| --- |" + " ---: |" * 7)
            for each in subjects:
                console.print(description(each))
            console.print()
        times = measured(subjects, size, asked.repeats)
        for line in table(subjects, size, times):
            console.print(line)
        console.print()
        console.print(calls_line(subjects[:2], size, asked.repeats, [pair[:2] for pair in times]))
        console.print(query_line(subjects[1], size, asked.repeats))
        if drawn:
            points = [
                ModelPoint(
                    name=s.manifest.kind + ("" if s.peer.score_features else ", dense router"),
                    microseconds=sums(s, [block[i] for block in times])["layer"],
                    loss_nats=s.manifest.metrics["held_out_loss_nats"],
                )
                for i, s in enumerate(subjects)
            ]
            asked.plot.write_bytes(loss_by_speed(f"Loss against speed, batch {size}, one thread", points))


if __name__ == "__main__":
    main()
