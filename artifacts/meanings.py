"""Every metric by its one name, with its unit in the name, and what it says.

They are words of artifacts, so that a card can explain itself; pipeline/measuring and the stages measure them.
"""

import re
from collections.abc import Mapping

MODEL: Mapping[str, str] = {
    "held_out_loss_nats": "mean cross-entropy of a held-out token, nats",
    "held_out_loss_standard_error_nats": "standard error of that mean over windows taken as independent, nats",
    "held_out_bits_per_byte": "held-out cross-entropy a byte of text, bits",
    "loss_increase_nats": "held-out loss minus the parent's on the same tokens, nats a token",
    "loss_increase_standard_error_nats": "standard error of the paired difference over windows, nats",
    "kl_to_teacher_nats": "mean KL(parent || this) over held-out tokens, nats",
    "loss_recovered": "(L_ablated - L) / (L_ablated - L_parent), the parent's experts zeroed for L_ablated",
    "loss_without_experts_nats": "L_ablated: held-out loss with every expert layer's output zeroed, nats",
    "validation_loss_nats": "loss on the validation split, on which settings are chosen, nats a token",
    "held_out_tokens_measured": "held-out tokens behind these figures",
    "active_experts_per_token": "pairs of a token and an expert in a block, mean over blocks and 16,384 held-out "
    "tokens",
    "num_experts": "experts a block",
    "expert_bytes": "bytes of one expert: its rows of u and v, scales, bias, and its share of the index of cells",
    "table_bytes_per_parameter": "bytes of tables, accumulators, scales, biases, moments and the index of cells "
    "over entries of u and v",
    "effective_experts": "exp of the entropy of the mean gate over 16,384 held-out tokens: sub-experts an axis "
    "(Monet), experts a block (PEER)",
    "effective_experts_least": "the least of those over routers, heads and axes, or over blocks",
    "firing_mismatches": "pairs of 16,384 held-out tokens on which retrieval and the rule "
    "A_r + B_c > threshold do not agree",
    "train_tokens": "tokens trained on by this stage, forward-only ones included",
    "context_tokens": "tokens of context that an imported checkpoint's config allows",
    "tokens_per_second": "training tokens a second",
    "num_parameters": "parameters in all",
    "train_loss_nats": "next-token loss over the last tenth of the training steps, nats a token",
    "train_kl_to_teacher_nats": "KL(teacher || student) over the last tenth of the training steps, nats a token",
    "uniformity_loss": "Monet's uniformity loss over the last tenth of the steps; at best log(sub-experts an axis)",
    "ambiguity_loss": "Monet's ambiguity loss over the last tenth of the steps, in [0, 1)",
    "layer_error_share": "squared error of the layers' outputs as a share of the teacher's mean square",
    "conversion_logit_error": "largest difference of a logit between Monet and the PEER that nothing was dropped from",
    "num_experts_before": "neurons a block of the untruncated PEER",
    "kept_energy_share": "share of the contribution energy that the kept experts hold, mean over blocks",
    "effective_experts_before": "exp entropy of the contribution energies of the untruncated pool, mean over blocks",
    "undistilled_loss_increase_nats": "loss_increase_nats after cutting down, before distilling",
    "undistilled_kl_to_teacher_nats": "kl_to_teacher_nats after cutting down, before distilling",
    "sqnr_db": "signal to quantization noise of u and v together, decibels",
    "rows_below_smallest_scale": "rows of u and v whose scale float16 cannot hold exactly and was raised to 2^-14",
    "firing_drift_mean": "1 - tokens an expert fires on in both models / in either, mean over experts that fire",
    "firing_drift_gate_weighted": "the same weighted by the experts' summed gates in the parent",
    "firing_drift_same_rate_null_mean": "expected drift of an unrelated set of that rate p: 1 - p / (2 - p)",
    "experts_drifted_share": "share of the experts that fire in either model whose drift is above 0.1",
    "gate_shift_mean": "|change of an expert's summed gate| over the parent's, mean weighted by the parent's",
    "loss_increase_from_int4_nats": "held-out loss minus that of the int4 model before fine-tuning, nats a token",
    "loss_increase_from_int4_standard_error_nats": "standard error of that paired difference over windows, nats",
    "flips_per_touched_weight": "share of the touched int4 weights that change in a step, last tenth of the steps",
    "scale_growths": "rows whose scale grew in a step, mean over the last tenth of the steps",
    "rows_refused": "rows left as they were, their gradient or scale overflowing, over all steps",
    "steps_skipped": "steps that moved nothing, their loss or a gradient not being finite",
    "reported_tokens": "held-out tokens that F1, R2 and output energies of symbols are counted on",
    "loss_recovered_over_biases": "(L_biases - L) / (L_biases - L_parent), L_biases with axis biases and no experts",
    "loss_recovered_biases_alone": "control: loss_recovered with axis biases, which symbols keep, and no experts",
    "loss_recovered_gate_constant_magnitude": "control: loss_recovered with gates kept and activations each expert's "
    "mean on train tokens",
    "loss_recovered_gate_constant_magnitude_over_biases": "the same control by loss_recovered_over_biases",
    "loss_recovered_constant_magnitude": "control: loss_recovered with gate times activation each expert's mean on "
    "train tokens",
    "loss_recovered_constant_magnitude_over_biases": "the same control by loss_recovered_over_biases",
    "loss_recovered_permuted_firing": "control: loss_recovered with experts, not biases, fired on permuted tokens; "
    "below loss_recovered_biases_alone it is harm",
    "loss_recovered_permuted_firing_over_biases": "the same control by loss_recovered_over_biases; below 0 it is harm",
    "readable_energy_share": "share of the output energy in tiers T1 to T3, on reported_tokens held-out tokens",
    "verbatim_energy_share": "share of the output energy in T1 experts that are the neuron itself, as it has few "
    "coordinates, on reported_tokens held-out tokens",
    "shortened_energy_share": "the same in T1 experts with the neuron's function of fewer or other terms",
    "other_function_energy_share": "the same in T1 experts with another function",
    "rule_energy_share": "the same in T2 and T3, experts that token logic fires",
    "verbatim_expert_share": "share of the experts that are in T1 as the neuron itself, as it has few coordinates",
    "shortened_expert_share": "share of the experts in T1 with the neuron's function of fewer or other terms",
    "other_function_expert_share": "share of the experts in T1 with another function",
    "rule_expert_share": "share of the experts in T2 and T3",
    "expert_share_t0": "share of the experts written exactly, dense",
    "expert_share_t1": "share of the experts written as a function of few coordinates, fired exactly",
    "expert_share_t2": "share of the experts written as token logic with a function",
    "expert_share_t3": "share of the experts written as token logic with a constant",
    "expert_share_t4": "share of the experts dropped",
    "energy_share_t0": "share of the output energy in T0, on reported_tokens held-out tokens",
    "energy_share_t1": "the same in T1",
    "energy_share_t2": "the same in T2",
    "energy_share_t3": "the same in T3",
    "energy_share_t4": "the same in T4, lost",
    "firing_f1_mean": "mean F1 of an expert's firing in the executed symbols against that in the parent, each model "
    "on its own states of reported_tokens held-out tokens, over experts that are not dropped and fire in the parent",
    "firing_f1_mean_dropped_as_zero": "the same over all experts that fire in the parent, 0 for dropped ones",
    "firing_f1_same_rate_null_mean": "expected F1 of a random firing of the same rate: the mean rate in the parent",
    "rule_firing_f1_mean": "the same as firing_f1_mean, of the rules on the parent's own states: 1 by construction "
    "where a rule is the exact comparison",
    "token_logic_f1_mean": "mean F1 of the best gate of two token literals, over experts that fire on "
    "reported_tokens held-out tokens; found on train tokens",
    "token_logic_f1_same_rate_null_mean": "expected F1 of a random statement of the same rate, over those experts",
    "gates_per_rule_mean": "mean number of gates of the firing rules of T2 and T3",
    "rule_gates_total": "gates of all firing rules of T2 and T3",
    "rule_gates_pass_through": "those of them that only pass one literal on, or its negation",
    "rule_searched_share": "share of the experts for which firing rules were searched",
    "rule_f1_mean": "mean F1 of an expert's best rule of all learners against firing on reported_tokens held-out "
    "tokens, over the experts searched that fire there; found and chosen on train tokens",
    "rule_f1_single_gate_mean": "the same of its best gate of two literals",
    "rule_f1_same_rate_null_mean": "expected F1 of a random rule of the same rate, over those experts",
    "rule_f1_permuted_mean": "control: the same search, but for trees and nets, where they fire on permuted tokens",
    "deep_rule_share": "share of the experts for which trees and gate networks were tried too",
    "deep_rule_f1_mean": "rule_f1_mean over those of these experts that fire there",
    "deep_rule_f1_gate_mean": "the same of their best gate of two literals",
    "deep_rule_f1_tree_mean": "the same of their decision tree",
    "deep_rule_f1_net_mean": "the same of their gate network, minimised",
    "deep_rule_f1_same_rate_null_mean": "expected F1 of a random rule of the same rate, over those experts",
    "deep_rule_won_gate_share": "share of those experts whose best rule by F1 and length is a gate of two literals",
    "deep_rule_won_chain_share": "the same of a chain of three or four literals",
    "deep_rule_won_threshold_share": "the same of a threshold, at least m of n literals",
    "deep_rule_won_tree_share": "the same of a decision tree",
    "deep_rule_won_net_share": "the same of a gate network",
    "nets_by_difflogic": "1 where difflogic's layer trained the gate networks, 0 where our own did",
    "score_name_f1_mean": "mean F1 of the statement that names a router's score against the score being high, on "
    "reported_tokens held-out tokens; found on train tokens, as all names are",
    "score_name_f1_same_rate_null_mean": "expected F1 of a random statement of that rate: the mean share of tokens",
    "score_name_f1_permuted_mean": "control: the same search where scores are high on the tokens of a permutation",
    "feature_name_f1_mean": "mean F1 of the statement that names a feature of the scores against its upper tail, on "
    "reported_tokens held-out tokens",
    "feature_name_f1_same_rate_null_mean": "expected F1 of a random statement of that rate: the mean share of tokens",
    "feature_name_f1_permuted_mean": "control: the same search where features are high on permuted tokens",
    "coordinate_name_f1_mean": "mean F1 of the statement that names a coordinate against its upper tail, on "
    "reported_tokens held-out tokens",
    "coordinate_name_f1_same_rate_null_mean": "expected F1 of a random statement of that rate: mean share of tokens",
    "coordinate_name_f1_permuted_mean": "control: the same search where coordinates are high on permuted tokens",
    "r2_energy_weighted": "1 - error / variance of magnitudes over reported_tokens held-out tokens, weighted by "
    "|v|^2, mean over blocks; each expert by itself on the parent's states",
    "kan_experts_tried": "experts whose formula was also fitted as a KAN with pruned inputs",
    "kan_experts_won": "those where matching pursuit with as many bits, also on the same samples, errs more on train "
    "tokens",
    "kan_experts_chosen": "those that are written by the KAN's formula in the end",
    "kan_seconds": "seconds of training, pruning and refitting KANs",
    "description_bits_per_expert": "mean description length of an expert as written, of no split, bits",
    "description_bits_per_expert_exact": "mean description length if all were written exactly, bits",
    "description_bits_axis_biases_per_expert": "bits of the axis biases, kept as dense numbers, over the experts; 8 "
    "a number, as of a coefficient",
    "description_bits_per_expert_with_biases": "description_bits_per_expert plus those",
    "formula_coordinates_median": "median number of coordinates of the formulas in T0 to T2; of a dense one, the width",
    "formula_coordinates_mean": "mean number of coordinates of the formulas in T1 and T2",
    "block_loss_recovered_least": "least loss_recovered of a block replaced alone, against that block zeroed, on the "
    "8,192 validation tokens that error budgets are set on",
    "experts_per_second": "experts of all blocks over the seconds of distilling them and the threads used",
    "naming_seconds": "seconds of naming scores, coordinates and experts in words, controls included",
    "distillation_seconds": "seconds from recording to the assembled symbolic model",
    "peak_memory_bytes": "largest resident size of the process so far",
}
"""Of a model."""

CORPUS: Mapping[str, str] = {
    "text_bytes": "bytes of text in all splits",
    "held_out_text_bytes": "bytes of held-out text",
    "train_tokens": "tokens of the train split",
    "validation_tokens": "tokens of the validation split, on which settings are chosen",
    "held_out_tokens": "tokens of the held-out split",
    "bytes_per_token_held_out": "bytes of held-out text over its tokens",
    "documents_dropped": "documents left out: repeated ones, and held-out ones that mostly repeat train",
    "documents_unreadable": "rows and files left out as unreadable, where the config says to skip them",
    "replacement_characters": "U+FFFD in the text: half a surrogate pair in JSON, or there already when it was read",
    "ppmd_held_out_bits_per_byte": "what PPMd-6 needs for the windows that models are measured on, bits a byte",
    "ppmd_primed_held_out_bits_per_byte": "the same after it has read train text, primed_train_bytes of it",
    "ppmd16_held_out_bits_per_byte": "what PPMd-16 needs for them, bits a byte",
    "ppmd16_primed_held_out_bits_per_byte": "the same after it has read train text, primed_train_bytes of it",
    "xz_held_out_bits_per_byte": "what xz needs for the windows that models are measured on, bits a byte",
    "xz_primed_held_out_bits_per_byte": "the same after it has read train text, primed_train_bytes of it",
    "held_out_tokens_compressed": "held-out tokens whose text the compressors were measured on",
    "primed_train_tokens": "train tokens whose text primed compressors have read, in windows spread evenly",
    "primed_train_bytes": "bytes of that text",
}
"""Of a corpus; `text_bytes_X` are those of the domain X."""

REPORT: Mapping[str, str] = {
    "context_tokens": "tokens of a window in which the model was trained, or else measured",
    "dense_bits_per_byte": "held-out bits a byte of the dense baseline",
    "symbols_bits_per_byte": "held-out bits a byte of the symbolic model",
    "bits_per_byte_increase_over_dense": "held-out bits a byte of the symbolic model minus those of the dense baseline",
    "monet_bits_per_byte": "held-out bits a byte of Monet",
    "dense_bits_per_byte_over_monet": "held-out bits a byte of the dense baseline minus those of Monet",
    "monet_bits_per_byte_over_primed_ppmd": "held-out bits a byte of Monet minus those of primed PPMd-6",
    "seconds_of_all_stages": "time that the stages of all models took, seconds",
}
"""Of a report on a chain of models."""

RECORD: Mapping[str, str] = {
    "recorded_tokens": "tokens that are recorded",
    "recorded_documents": "documents that some of them are of",
    "recorded_domains": "domains that some of them are of",
    "recorded_loss_nats": "mean cross-entropy of the token after each of them, nats",
    "fired_experts_per_token": "experts of a block that add anything on a token, mean over tokens and blocks",
    "kept_experts_per_token": "those of them that are kept, the ones that contribute most",
    "omitted_share_mean": "contributions of experts that are not kept over all contributions on a token, mean over "
    "tokens and blocks",
    "omitted_share_most": "the same of the block where it is largest",
    "experts_seen_share": "share of the experts that are kept on some token",
    "record_bytes_per_block": "bytes of a block's tensors, those that all blocks share not counted",
}
"""Of a record of activations."""

SUPERPOSITION: Mapping[str, str] = {
    "superposition_tokens": "tokens that were examined",
    "superposition_documents": "documents that they are of",
    "co_active_experts_per_token": "experts of a block that are examined on a token, mean over tokens and blocks",
    "co_active_experts_per_token_untrained": "the same of the untrained model",
    "listed_experts_per_token": "most experts that are examined on a token",
    "jcs": "joint code share: co-active pairs of joint codes over all co-active pairs, labels being next tokens, mean "
    "over blocks",
    "jcs_shuffled_labels": "null: the same with labels in random order, of the random draws alone",
    "jcs_shuffled_in_token": "null: the same with next tokens in random order among the places where the same token "
    "stands: the codes that only tell which token it is",
    "jcs_untrained_shuffled_in_token": "the same of the untrained model",
    "jcs_untrained": "control: the same of an untrained model of this shape in which as many experts fire",
    "jcs_untrained_shuffled_labels": "null of that control",
    "jcs_not_testable": "share of co-active pairs that fire too seldom to be tested; they count as no codes",
    "jcs_untrained_not_testable": "the same of the untrained model",
    "jcs_by_mass": "the same as jcs, a pair on a token counting by the product of what the two contribute",
    "blind_spot_codes": "joint codes among pairs drawn by what they contribute that are not co-active beyond chance",
    "jcs_token_class": "jcs with the class of the current token as label, of the random draws alone",
    "jcs_untrained_token_class": "the same of the untrained model",
    "jcs_domain": "jcs with the domain as label, of the random draws alone",
    "jcs_untrained_domain": "the same of the untrained model",
    "pairs_counted": "pairs of experts of a block that are co-active on 6 tokens or more, mean over blocks",
    "pairs_significant": "those co-active beyond chance in their strata, false discovery rate 1 %",
    "pairs_significant_by_frequency": "those beyond the null that knows frequencies alone, a comparison",
    "hs": "hidden share: co-active pairs on a token, drawn at random, of which the logits without i plus those without "
    "j less those without both have another largest one than the output, mean over blocks",
    "frozen_hs": "the same with routers above held to what they chose",
    "additivity_r2": "1 - E|second difference|^2 / E|d_i + d_j|^2 of centred logits, over the same pairs",
    "frozen_additivity_r2": "the same with routers above held to what they chose",
    "iota_mean": "E|second difference| / sqrt(E|d_i| E|d_j|), mean over the pairs looked at, half of them joint codes",
    "iota_null": "99th percentile of iota over matched co-active partners",
    "hidden_pairs_share": "share of the pairs looked at whose iota is above that and whose sum of effects names "
    "another token on a quarter of tokens or more",
    "second_screen_agreement": "share of the surveyed pairs that are linked beside all others too, in 75 % of halves "
    "of the text or more",
    "largest_code_component": "experts that joint codes among the surveyed pairs join to one component, the largest",
    "triples_needed_share": "share of the triples looked at whose labels are others without any one of the three",
    "contribution_correlation": "Pearson's r of an expert's contributions with those of the PEER's on the same tokens, "
    "mean over experts that fire there and blocks",
    "contribution_correlation_null": "the same with another expert that fires about as often",
    "contributions_survive": "share of those experts with r of 0.9 or more",
}
"""Of a report of superposition; `X_low` and `X_high` are the ends of the 95 % interval of X."""

_RANKINGS: Mapping[str, str] = {
    "mass": "summed contributions",
    "frequency": "how often it fires",
    "energy": "summed squared contributions",
    "partners": "how many experts it is co-active with beyond chance",
    "lift": "the mean logarithm of its lifts",
    "halves": "the same effect in the other half of the windows",
}
_EFFECTS: Mapping[str, str] = {
    "everywhere": "the loss increase without the expert over all tokens",
    "where_it_fires": "the loss increase without the expert on the tokens where it fires",
    "change": "the absolute change of the loss without the expert, mean over all tokens",
}
_LINKS: Mapping[str, str] = {
    "dense": "dense", "monet": "Monet", "peer": "PEER", "int8": "PEER int8", "int4": "PEER int4",
    "tuned": "fine-tuned int4", "symbols": "symbols",
}  # fmt: skip

STUDY: Mapping[str, str] = {
    r"loss_(\w+)_nats": "held-out loss of the arm {0}, nats a token, mean over seeds",
    r"(\w+)_minus_(\w+)_half_width_nats": "half width of the 95 % interval of {0} minus {1}, nats a token",
    r"(\w+)_minus_(\w+)_nats": "held-out loss of {0} minus that of {1}, paired by seed, nats a token",
    r"table_rate_(\w+)": "peak step of u and v of {0}: of those tried, that of least validation loss",
    r"rates_at_an_end": "rates chosen that are the least or the largest tried, so that a better may lie beyond",
    r"num_tuning_seeds": "seeds by which rates were chosen, none of them behind another figure",
    r"num_seeds": "seeds behind each figure",
}
"""Of a study, by forms of names."""


def in_order(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    """What says most comes first."""
    places = {name: place for place, name in enumerate((*MODEL, *CORPUS, *REPORT, *RECORD, *SUPERPOSITION))}
    return sorted(metrics.items(), key=lambda item: (places.get(item[0], len(places)), item[0]))


def meaning(name: str, kind: str) -> str:
    """What this metric of an artifact of this kind says, or nothing if its name must do."""
    if kind == "corpus" and name.startswith("text_bytes_"):
        return f"bytes of text of the domain {name.removeprefix('text_bytes_')}"
    if kind == "report" and name not in REPORT:
        return _of_superposition(name) or _of_a_study(name)
    return {"corpus": CORPUS, "report": REPORT, "record": RECORD}.get(kind, MODEL).get(name, "")


def _of_superposition(name: str) -> str:
    """Words for a figure of superposition, of one model or of all links of a chain, and for the ends of intervals."""
    link, _, rest = name.partition("_")
    if link in _LINKS and (words := _of_superposition(rest)):
        return f"{_LINKS[link]}: {words}"
    if end := re.fullmatch(r"(\w+)_(low|high)", name):
        return f"{end[2]} end of the 95 % interval of {end[1]}" if _of_superposition(end[1]) else ""
    if found := re.fullmatch(r"(pairs_significant|pairs_tested|joint_codes)_(row|column|cell|neither)", name):
        share = "share no sub-key" if found[2] == "neither" else f"share a {found[2]} of the key grid"
        what = {"pairs_significant": "pairs beyond chance", "pairs_tested": "those tested for joint codes"}
        return f"{what.get(found[1], 'tested pairs that are joint codes')}, of experts that {share}, mean over blocks"
    if found := re.fullmatch(rf"rank_correlation_([a-z]+)_({'|'.join(_EFFECTS)})(_null)?", name):
        words = f"Spearman's correlation of {_RANKINGS[found[1]]} with {_EFFECTS[found[2]]}"
        return f"what 95 % of permutations stay within of {words}" if found[3] else words
    return SUPERPOSITION.get(name, "")


def _of_a_study(name: str) -> str:
    """Words for a figure of a study, whose names are made of those of its arms."""
    for form, words in STUDY.items():
        if found := re.fullmatch(form, name):
            return words.format(*found.groups())
    return ""
