"""What the metrics of the page of symbols say, in words that need no other page."""

from collections.abc import Mapping

PLAIN: Mapping[str, str] = {
    "loss_recovered_over_biases": "How much of what the experts are worth to the model's predictions the symbols keep: "
    "1 is all of it, 0 is what the model predicts without experts.",
    "loss_recovered": "The same, counted from a model whose expert layers are silent altogether.",
    "loss_increase_nats": "How much worse than the model they were made from the symbols predict the next token.",
    "kl_to_teacher_nats": "How far their predictions are from that model's, token by token; 0 is the same.",
    "r2_energy_weighted": "How well the formulas give how strongly each expert speaks where it fires or not; 1 is "
    "exactly. Experts that write much count more.",
    "readable_energy_share": "How much of what the experts write comes from experts that can be read: few coordinates, "
    "or logic over tokens.",
    "verbatim_energy_share": "How much of it comes from experts that are written down as they are, since they read few "
    "coordinates.",
    "verbatim_expert_share": "How many of the experts those are.",
    "firing_f1_mean": "How well the symbols fire where the model's experts fire; 1 is always and nowhere else.",
    "rule_f1_mean": "How well the best rule over tokens that any search found says when an expert fires.",
    "deep_rule_f1_mean": "The same of the experts for which long rules were searched too.",
    "gates_per_rule_mean": "How long the firing rules are that are used: gates of two inputs.",
    "token_logic_f1_mean": "How well one short statement about the last tokens says when an expert fires.",
    "score_name_f1_mean": "How well the names of the router's scores say when these are high.",
    "feature_name_f1_mean": "How well the names of the features that scores are sums of say when these are high.",
    "coordinate_name_f1_mean": "How well the names of coordinates of the state say when these are high.",
    "formula_coordinates_median": "How many coordinates of the state a formula reads.",
    "description_bits_per_expert": "How long an expert's description is.",
}
"""By metric, of those in the place SYMBOLS of artifacts/columns.py."""
TIERS: Mapping[str, str] = {
    "T0": "as it is, all coordinates",
    "T1": "a formula of few coordinates, firing as the router says",
    "T2": "logic over tokens, then a formula",
    "T3": "logic over tokens, then always as strongly",
    "T4": "left out: worth less than its description",
}
