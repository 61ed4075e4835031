"""Monet's public release, without it: its forward pass written out from its equations, and checkpoints in its layout.

Nothing here reads code of the house: tests compare the two.
"""

import json
import math
from pathlib import Path
from statistics import NormalDist

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers

# B sequences, T tokens, D width, H router heads, E sub-experts an axis, M hidden units

CONFIG = {
    "model_type": "monet",
    "vocab_size": 300,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "hidden_act": "relu2",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "moe_dim": 4,
    "moe_heads": 2,
    "moe_experts": 6,
    "moe_topk": 2,
    "moe_groups": 2,
    "moe_decompose": "vertical",
}
LARGE = CONFIG | {
    "vocab_size": 32_000, "hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16,
    "num_key_value_heads": 16, "moe_dim": 16, "moe_heads": 8, "moe_experts": 512, "moe_topk": 8, "moe_groups": 4,
    "max_position_embeddings": 2048,
}  # fmt: skip
"""Of the shape that is called 1.4B."""


def shapes(config) -> dict[str, tuple[int, ...]]:
    d, h, e, m = (config[name] for name in ("hidden_size", "moe_heads", "moe_experts", "moe_dim"))
    kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
    found = {"model.embed_tokens.weight": (config["vocab_size"], d)}
    for block in range(config["num_hidden_layers"]):
        at = f"model.layers.{block}."
        found |= {at + f"{name}.weight": (d,) for name in ("input_layernorm", "post_attention_layernorm")}
        found |= {at + f"self_attn.{name}_proj.weight": (kv if name in "kv" else d, d) for name in "qkvo"}
        if block % config["moe_groups"] == 0:
            for axis in "12":
                found |= {
                    at + f"router.w{axis}.weight": (h * e, d),
                    at + f"router.norm{axis}.running_mean": (h,),
                    at + f"router.norm{axis}.running_var": (h,),
                    at + f"router.norm{axis}.num_batches_tracked": (),
                }
        if config["moe_decompose"] == "vertical":
            half = e * m // 2
            for axis in "12":
                found |= {at + f"moe.u{axis}.weight": (half, d), at + f"moe.u{axis}.bias": (half,)}
                found |= {at + f"moe.v{axis}{other}.weight": (d // 2, half) for other in "12"}
                found[at + f"moe.b{axis}"] = (e, d // 2)
        else:
            found |= {at + "moe.u.weight": (e * m, d), at + "moe.u.bias": (e * m,), at + "moe.v.weight": (d, e * m)}
            found[at + "moe.b"] = (e, d)
    return found | {"model.norm.weight": (d,), "lm_head.weight": (config["vocab_size"], d)}


def tensor(name, shape, generator, extreme=False) -> torch.Tensor:
    """Random weights. Extreme ones have large biases, gates of nearly 0 and 1, and statistics of 18 magnitudes: with
    still larger logits, two that are nearly equal make rounding of float32 visible in any two programs."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(17)
    if name.endswith("running_var"):
        value = torch.rand(shape, generator=generator) + 0.5
        return value * 10.0 ** torch.linspace(-12, 6, len(value)) if extreme else value
    value = torch.randn(shape, generator=generator)
    if name.endswith("norm.weight"):
        return 1 + 0.2 * value
    if name.endswith(("running_mean", "bias", ".b", ".b1", ".b2")):
        return value * (5 if extreme else 0.3)
    saturating = extreme and ".router." in name
    return value * shape[-1] ** -0.5 * (15 if saturating else 1)


def write_checkpoint(
    folder: Path, config=CONFIG, *, seed=0, extreme=False, router=1, shards=1, dtype=torch.float32
) -> None:
    """A folder as the release lays one out, without a tokenizer; tensor by tensor, for any size. Scores of routers are
    `router` times as large."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    names = list(shapes(config).items())
    share = math.ceil(len(names) / shards)
    places = {}
    for shard in range(shards):
        file = "model.safetensors" if shards == 1 else f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {}
        for name, shape in names[shard * share : (shard + 1) * share]:
            value = tensor(name, shape, generator, extreme) * (router if ".router.w" in name else 1)
            part[name] = value.to(dtype) if value.is_floating_point() else value
            places[name] = file
        save_file(part, folder / file, metadata={"format": "pt"})
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def write_tokenizer(folder: Path) -> None:
    """Pieces with a fallback to bytes, as Llama's: 300 of them with those for nothing but control."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("a", "t"), ("c", "at"), ("▁", "cat"), ("▁", "s"), ("h", "e")]
    letters = sorted({*"▁acdehinorstmbg;.,", *(part for merge in merges for part in merge if len(part) == 1)})
    pieces += letters + ["".join(merge) for merge in merges]
    vocab = {piece: token for token, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": "<s>"}))


def forward(config, weights, tokens_BT):
    """Logits, and the gates of every router, as its equations have them."""
    x = weights["model.embed_tokens.weight"][tokens_BT]
    gates, all_gates = None, []
    for block in range(config["num_hidden_layers"]):
        w = {k.removeprefix(p): v for k, v in weights.items() if k.startswith(p := f"model.layers.{block}.")}
        x = x + attention(config, w, rms(x, w["input_layernorm.weight"], config["rms_norm_eps"]))
        read = rms(x, w["post_attention_layernorm.weight"], config["rms_norm_eps"])
        if block % config["moe_groups"] == 0:
            gates = tuple(gate(config, w, axis, read) for axis in "12")
            all_gates.append(gates)
        x = x + (vertical if config["moe_decompose"] == "vertical" else horizontal)(config, w, read, *gates)
    return rms(x, weights["model.norm.weight"], config["rms_norm_eps"]) @ weights["lm_head.weight"].T, all_gates


def rms(x, weight, eps):
    return weight * (x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps))


def attention(config, w, x):
    """Every query by itself, over the keys up to it."""
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    width = config["hidden_size"] // heads
    q, k, v = (x @ w[f"self_attn.{name}_proj.weight"].T for name in "qkv")
    out = torch.zeros_like(q)
    for head in range(heads):
        own, shared = slice(head * width, (head + 1) * width), head * kv // heads
        theirs = slice(shared * width, (shared + 1) * width)
        turned_q, turned_k = (turn(part, config["rope_theta"]) for part in (q[..., own], k[..., theirs]))
        for t in range(x.shape[1]):
            score = (turned_k[:, : t + 1] @ turned_q[:, t, :, None])[..., 0] / math.sqrt(width)
            out[:, t, own] = (torch.softmax(score, -1)[:, None] @ v[:, : t + 1, theirs])[:, 0]
    return out @ w["self_attn.o_proj.weight"].T


def turn(x, theta):
    width = x.shape[-1]
    out = torch.empty_like(x)
    for t in range(x.shape[1]):
        for i in range(width // 2):
            angle = t / theta ** (2 * i / width)
            a, b = x[:, t, i], x[:, t, i + width // 2]
            out[:, t, i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, t, i + width // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def gate(config, w, axis, x):
    z = (x @ w[f"router.w{axis}.weight"].T).unflatten(-1, (config["moe_heads"], config["moe_experts"]))
    mean, variance = (w[f"router.norm{axis}.running_{what}"] for what in ("mean", "var"))
    normal = (z - mean[:, None]) / torch.sqrt(variance[:, None] + 1e-5)
    quantile = NormalDist().inv_cdf(1 - config["moe_topk"] / config["moe_experts"])
    least = torch.minimum(normal.amax(-1, keepdim=True), torch.tensor(quantile, dtype=x.dtype))
    return torch.softmax(torch.where(normal >= least, z, -1e10), dim=-1)


def relu2(x):
    return torch.clamp(x, min=0) ** 2


def horizontal(config, w, x, g1, g2):
    a = relu2(x @ w["moe.u.weight"].T + w["moe.u.bias"]).unflatten(-1, (config["moe_experts"], -1))
    mixed = torch.einsum("btim,bthi,bthj->btjm", a, g1, g2).flatten(-2)
    return mixed @ w["moe.v.weight"].T + torch.einsum("bthj,jd->btd", g2, w["moe.b"])


def vertical(config, w, x, g1, g2):
    a, b = (
        relu2(x @ w[f"moe.u{i}.weight"].T + w[f"moe.u{i}.bias"]).unflatten(-1, (config["moe_experts"], -1))
        for i in "12"
    )
    top = (
        torch.einsum("btim,bthi->btim", a, g1).flatten(-2) @ w["moe.v11.weight"].T
        + torch.einsum("btjm,bthj,bthi->btim", b, g2, g1).flatten(-2) @ w["moe.v12.weight"].T
        + torch.einsum("bthi,id->btd", g1, w["moe.b1"])
    )
    bottom = (
        torch.einsum("btim,bthi,bthj->btjm", a, g1, g2).flatten(-2) @ w["moe.v21.weight"].T
        + torch.einsum("btjm,bthj->btjm", b, g2).flatten(-2) @ w["moe.v22.weight"].T
        + torch.einsum("bthj,jd->btd", g2, w["moe.b2"])
    )
    return torch.cat([top, bottom], dim=-1)
