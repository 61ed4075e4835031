"""Run in an environment of its own, which has nothing of this project: what other tools make of exported folders.

`make interop` does; each line says what was compared with what the project itself had computed, and how far it is.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ["HF_HOME"] = tempfile.mkdtemp()  # no copy of a modeling file from another day

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

TOLERANCE = 1e-5
FAILED = []


def told(what, got, passes) -> None:
    print(f"{'ok    ' if passes else 'FAILED'} {what}: {got}", flush=True)
    if not passes:
        FAILED.append(what)


def opened(folder, **how):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **how).eval()
    return model, AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


@torch.no_grad()
def under_transformers(folder, expected) -> None:
    tokens = expected["tokens"]
    for name, logits in expected["logits"].items():
        model, tokenizer = opened(folder / name)
        output = model(tokens, output_routed_experts=True)
        far = float((output.logits - logits).abs().max())
        told(f"transformers, {name}: logits", f"{far:.1e}", far <= TOLERANCE)
        if name != "dense":
            shape = (*tokens.shape, model.config.num_hidden_layers, model.config.routed_experts_kept)
            right = output.routed_experts.shape == shape == output.routed_gates.shape
            told(f"transformers, {name}: routed_experts", tuple(output.routed_experts.shape), right)
        text = "the experts, and who they are"
        told(f"transformers, {name}: tokenizer", text, tokenizer.decode(tokenizer(text).input_ids) == text)
        prompt = tokens[:, :12]
        how = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
        same = [torch.equal(model.generate(prompt, use_cache=True, **how, **more),
                            model.generate(prompt, use_cache=False, **how, **more))
                for more in ({}, {"num_beams": 3})]  # fmt: skip
        told(f"transformers, {name}: generate with cache and without, greedy and by beams", same, all(same))
        fixed = model.generate(prompt, cache_implementation="static", **how)
        told(f"transformers, {name}: generate with a cache of fixed size", "same tokens",
             torch.equal(fixed, model.generate(prompt, use_cache=False, **how)))  # fmt: skip
        halved, _ = opened(folder / name, dtype=torch.bfloat16, device_map="cpu")
        near = torch.nn.functional.cosine_similarity(halved(tokens).logits.float(), logits, dim=-1)
        told(
            f"transformers, {name}: bfloat16 by device_map, cosine of logits", f"{near.mean():.4f}", near.mean() > 0.95
        )


def under_lm_eval(folder, wanted) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    results = lm_eval.simple_evaluate(
        model="hf", model_args=f"pretrained={folder / wanted['chosen']},trust_remote_code=True,dtype=float32",
        tasks=["legible_rolling", "legible_choices"], task_manager=TaskManager(include_path=str(folder / "tasks")),
        device="cpu", batch_size=4, bootstrap_iters=0,
    )["results"]  # fmt: skip
    bits = results["legible_rolling"]["bits_per_byte,none"]
    told("lm-eval: bits per byte, and the project's own", f"{bits:.6f} {wanted['bits_per_byte']:.6f}",
         abs(bits - wanted["bits_per_byte"]) <= 1e-4)  # fmt: skip
    accuracy = results["legible_choices"]["acc,none"]
    told("lm-eval: multiple choice, and the project's own", f"{accuracy:.4f} {wanted['accuracy']:.4f}",
         abs(accuracy - wanted["accuracy"]) < 1e-9)  # fmt: skip


@torch.no_grad()
def under_transformer_lens(folder, expected) -> None:
    tokens = expected["tokens"]
    for name, logits in expected["logits"].items():
        model, tokenizer = opened(folder / name)
        sys.path.insert(0, str(folder / name))
        from transformer_lens_legible import boot

        bridge = boot(folder / name, model, tokenizer)
        before = bridge(tokens)
        far = float((before - logits).abs().max())
        told(f"TransformerLens, {name}: logits", f"{far:.1e}", far <= TOLERANCE)
        if "blocks.0.mlp.hook_index.hook_out" not in bridge.hook_dict:
            continue
        _, cache = bridge.run_with_cache(tokens)
        index = cache["blocks.0.mlp.hook_index.hook_out"]
        strength = cache["blocks.0.mlp.hook_contribution.hook_out"].abs()
        expert = int(index.flatten()[strength.flatten().argmax()])

        def ablate(value, hook, expert=expert):
            return value.masked_fill(value == expert, -1)

        after = bridge.run_with_hooks(tokens, fwd_hooks=[("blocks.0.mlp.hook_index.hook_out", ablate)])
        apart = float((after - before).abs().max())
        again = float((bridge(tokens) - before).abs().max())
        told(f"TransformerLens, {name}: expert {expert} ablated by a hook, and back", f"{apart:.1e} {again:.1e}",
             apart > 1e-4 and again == 0)  # fmt: skip


@torch.no_grad()
def under_nnsight(folder, expected, name) -> None:
    from nnsight import TransformersModel

    tokens, logits = expected["tokens"], expected["logits"][name]
    lm = TransformersModel(str(folder / name), task="text-generation", trust_remote_code=True, dispatch=True)
    with lm.trace(tokens):
        index = lm.model.layers[0].moe.hook_index.output.save()
        gate = lm.model.layers[0].moe.hook_gate.output.save()
        before = lm.output.logits.save()
    far = float((before - logits).abs().max())
    told(f"nnsight, {name}: logits", f"{far:.1e}", far <= TOLERANCE)
    told(f"nnsight, {name}: hooks that were read", tuple(index.shape), index.shape == gate.shape)
    with lm.trace(tokens):
        lm.model.layers[0].moe.hook_gate.output = torch.zeros_like(gate)
        after = lm.output.logits.save()
    apart = float((after - before).abs().max())
    told(f"nnsight, {name}: gates that were written", f"{apart:.1e}", apart > 1e-4)


def main(folder: Path) -> int:
    expected, wanted = torch.load(folder / "expected.pt"), json.loads((folder / "expected.json").read_text())
    under_transformers(folder, expected)
    under_lm_eval(folder, wanted)
    under_transformer_lens(folder, expected)
    under_nnsight(folder, expected, wanted["chosen"])
    print(f"{len(FAILED)} failed")
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
