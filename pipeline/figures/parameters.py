"""Where a model's parameters lie."""

from matplotlib.figure import Figure

from pipeline.figures.style import grouped_bars, heading, png
from pipeline.models import LanguageModel

MOST_LABELS = 16


def parameters_by_block(title: str, model: LanguageModel) -> bytes:
    """Millions of parameters of each block: attention and norms, router, experts."""
    parts: dict[str, list[float]] = {"attention": [], "router": [], "experts": []}
    for block in model.blocks():
        total = sum(parameter.numel() for parameter in block.parameters())
        experts = sum(tensor.numel() for tensor in block.moe.state_dict().values())
        router = 0 if block.router is None else sum(parameter.numel() for parameter in block.router.parameters())
        own = sum(parameter.numel() for parameter in block.moe.parameters())
        for name, count in (("attention", total - router - own), ("router", router), ("experts", experts)):
            parts[name].append(count / 1e6)

    def draw(figure: Figure) -> None:
        heading(figure, title)
        axes = figure.subplots()
        every = -(-len(model.blocks()) // MOST_LABELS)
        labels = [str(at) if at % every == 0 else "" for at in range(len(model.blocks()))]
        grouped_bars(axes, labels, parts)
        axes.set_xlabel("block")
        axes.set_ylabel("numbers, millions")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)

    return png(draw)
