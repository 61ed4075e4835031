"""An exported model under TransformerLens 4: an adapter for its bridge. It needs transformer_lens and nothing of ours.

    model, tokenizer = ...from_pretrained(FOLDER, trust_remote_code=True)...
    bridge = boot(FOLDER, model, tokenizer)

Blocks have the usual hooks, and `blocks.N.mlp.` those of the expert layer: hook_index, hook_gate, hook_pre,
hook_contribution, each with hook_in and hook_out behind it; `blocks.N.router.` Monet's hook_gate1 and hook_gate2.
"""

from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES, ArchitectureAdapterFactory
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.architecture_adapter import ArchitectureAdapter
from transformer_lens.model_bridge.generalized_components import (
    AttentionBridge,
    BlockBridge,
    EmbeddingBridge,
    LinearBridge,
    RMSNormalizationBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

ARCHITECTURE = "LegibleForCausalLM"
HOOKS = ("hook_index", "hook_gate", "hook_pre", "hook_contribution")
"""Of an expert layer, those that it has."""


class LegibleAdapter(ArchitectureAdapter):
    """Every part delegates to the model's own forward pass, so that logits are the same."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.cfg.normalization_type, self.cfg.uses_rms_norm, self.cfg.final_rms = "RMS", True, True
        self.cfg.positional_embedding_type, self.cfg.gated_mlp = "rotary", False
        self.weight_processing_conversions = {}
        heads = {letter: LinearBridge(name=f"{letter}_proj") for letter in "qkvo"}
        self.component_mapping = {
            "embed": EmbeddingBridge(name="model.embed_tokens"),
            "blocks": BlockBridge(
                name="model.layers",
                submodules={
                    "ln1": RMSNormalizationBridge(name="input_layernorm", config=self.cfg),
                    "ln2": RMSNormalizationBridge(name="post_attention_layernorm", config=self.cfg),
                    "attn": AttentionBridge(
                        name="self_attn", config=self.cfg, submodules=heads, maintain_native_attention=True
                    ),
                    "router": GeneralizedComponent(
                        name="router",
                        optional=True,
                        submodules={
                            name: GeneralizedComponent(name=name, optional=True)
                            for name in ("hook_gate1", "hook_gate2")
                        },
                    ),
                    "mlp": GeneralizedComponent(
                        name="moe",
                        submodules={name: GeneralizedComponent(name=name, optional=True) for name in HOOKS},
                    ),
                },
            ),
            "ln_final": RMSNormalizationBridge(name="model.norm", config=self.cfg),
            "unembed": UnembeddingBridge(name="lm_head", config=self.cfg),
        }


def boot(folder, model, tokenizer, device="cpu"):
    """The bridge of an opened model."""
    SUPPORTED_ARCHITECTURES[ARCHITECTURE] = LegibleAdapter  # by which a config's architecture is recognised
    ArchitectureAdapterFactory.register_adapter(ARCHITECTURE, LegibleAdapter)  # and from which it is built
    return TransformerBridge.boot_transformers(
        str(folder), hf_model=model, tokenizer=tokenizer, trust_remote_code=True, device=device
    )
