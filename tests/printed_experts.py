"""Experts computed from what `show` prints of them, in numpy and plain Python: nothing of pipeline or kernels is used.

States are float64 arrays of shape (N, D), texts lists of windows of token numbers; token n of window w is row
w * T + n of the states.
"""

import math
import re

import numpy as np
from scipy.interpolate import BSpline

FUNCTIONS = {
    "constant": np.ones_like,
    "identity": lambda z: z,
    "square": lambda z: z**2,
    "relu": lambda z: np.maximum(z, 0),
    "relu2": lambda z: np.maximum(z, 0) ** 2,
    "gelu": lambda z: np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in z]),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
    "tanh": np.tanh,
    "softplus": lambda z: np.logaddexp(0, z),
    "abs": np.abs,
    "gaussian": lambda z: np.exp(-(z**2)),
    "cube": lambda z: z**3,
    "fourth_power": lambda z: z**4,
    "fifth_power": lambda z: z**5,
    "signed_root": lambda z: np.sign(z) * np.sqrt(np.abs(z)),
    "three_halves_power": lambda z: np.abs(z) ** 1.5,
    "clipped_exp": lambda z: np.exp(np.minimum(z, 10)),
    "signed_log": lambda z: np.sign(z) * np.log1p(np.abs(z)),
    "sin": np.sin,
    "cos": np.cos,
    "arctan": np.arctan,
}


def gates(fires, states, windows):
    """(N) the gate of the expert on each token: 0 where it does not fire, 1 where logic does."""
    match fires["by"]:
        case "never":
            return np.zeros(len(states[0]))
        case "logic":
            return np.array([float(logic(fires, window, at)) for window in windows for at in range(len(window))])
        case "scores":
            return by_scores(fires, states[fires["reads"]["block"]])


def logic(fires, window, at):
    wires = []
    for literal in fires["literals"]:
        place = at - literal["back"]
        wires.append(place >= 0 and window[place] in literal["tokens"])
    for gate in fires["gates"]:
        wires.append(gate["truth"][2 * wires[gate["a"]] + wires[gate["b"]]])
    return wires[-1]


def by_scores(fires, state):
    read = state @ np.array(fires["features"]).T if fires["scores_of"] == "features" else state
    total = np.zeros(len(state))
    for head in fires["heads"]:
        a, b = (axis_scores(head[axis]["scores"], read) for axis in ("rows", "columns"))
        for n in range(len(state)):
            if fires["gate"] == "softmax":
                total[n] += softmax_gate(a[n], b[n], fires["row"], fires["column"], fires["pairs_per_head"])
            else:
                log_a = log_gate(a[n], fires["row"], head["rows"]["cut"])
                log_b = log_gate(b[n], fires["column"], head["columns"]["cut"])
                limit = -math.inf if head["threshold"] is None else head["threshold"]
                total[n] += math.exp(log_a + log_b) if log_a + log_b > limit else 0
    return total


def axis_scores(sums, read):
    columns = []
    for score in sums:
        columns.append(sum((c * read[:, i] for i, c in score["terms"]), np.full(len(read), score["intercept"])))
    return np.stack(columns, axis=1)


def log_gate(scores, own, cut):
    passing = [s for s in scores if s >= min(cut["limit"], max(scores) - cut["margin"])]
    if scores[own] < min(passing):
        return -math.inf
    return scores[own] - math.log(sum(math.exp(s) for s in passing))


def softmax_gate(a, b, row, column, kept):
    best = sorted((x + y for x in a for y in b), reverse=True)[:kept]
    own = a[row] + b[column]
    return math.exp(own) / sum(math.exp(s) for s in best) if own >= best[-1] else 0


def magnitudes(magnitude, states):
    state = states[magnitude["reads"]["block"]]
    z = np.full(len(state), magnitude["intercept"])
    for coordinate, coefficient in magnitude["terms"]:
        z += coefficient * state[:, coordinate]
    function = magnitude["function"]
    value = spline(function, z) if function["kind"] == "spline" else FUNCTIONS[function["name"]](z)
    return magnitude["scale"] * value + magnitude["offset"]


def spline(function, z):
    """By de Boor's recursion, on knots that go on beyond both ends."""
    c = np.array(function["coefficients"])
    step = (function["high"] - function["low"]) / (len(c) - 3)
    knots = function["low"] + step * np.arange(-3, len(c) + 1)
    return BSpline(knots, c, 3)(np.clip(z, function["low"], function["high"]))


class Text:
    """What the text view with every term and digit says."""

    def __init__(self, out):
        self.lines = [line.strip() for line in out.splitlines()]
        self.said = {line[:12].strip(): line[13:] for line in out.splitlines() if line[:1].strip()}
        self.v = [float(value) for value in self.said["v, whole"].split()]

    def one(self, pattern):
        (found,) = (match for line in self.lines if (match := re.search(pattern, line)))
        return found

    def sums(self, letter):
        """By head (none for features) and number: ((number, coefficient), ...) and the intercept."""
        found = {}
        for line in self.lines:
            if match := re.fullmatch(rf"{letter}(?:\^(\d+))?_(\d+) = (.*)", line):
                terms = [(int(i), float(c)) for c, i in re.findall(r"([+-]\S+) [fxy]_(\d+)", match[3])]
                rest = re.sub(r"[+-]\S+ [fxy]_\d+", "", match[3]).split()
                key = (int(match[1]) if match[1] else None, int(match[2]))
                found[key] = {"terms": terms, "intercept": float(rest[0]) if rest else 0.0}
        return found

    def gates(self, states, windows, layer):
        if "letters" in self.said["fires if"] or "token[" in self.said["fires if"]:
            return np.array([float(self.logic(window, at)) for window in windows for at in range(len(window))])
        own = int(self.one(r"x is the state that block (\d+) normalises")[1])
        assert own == layer
        letter = self.one(r"a and b are sums of the (?:features f|coordinates) of ([xy])")[1]
        block = int(self.one(r"y is that of block (\d+)")[1]) if letter == "y" else layer
        features = self.sums("f")
        read = states[block]
        if features:
            read = np.stack([axis_scores([features[None, i]], read)[:, 0] for i in range(len(features))], axis=1)
        scores = {letter: self.sums(letter) for letter in "ab"}
        total = np.zeros(len(read))
        pairs = re.findall(r"A\^(\d+)_(\d+) \+ B\^\1_(\d+) (?:> (\S+)|is among the (\d+) best)", self.said["fires if"])
        for head, row, column, limit, kept in pairs:
            a, b = (self.of_head(scores[letter], int(head), read) for letter in "ab")
            for n in range(len(read)):
                if kept:
                    total[n] += softmax_gate(a[n], b[n], int(row), int(column), int(kept))
                else:
                    cuts = [{"limit": float(c), "margin": float(m)} for c, m in self.cuts(head)]
                    own = log_gate(a[n], int(row), cuts[0]) + log_gate(b[n], int(column), cuts[1])
                    total[n] += math.exp(own) if own > float(limit.replace("oo", "inf")) else 0
        return total

    def cuts(self, head):
        found = self.one(rf"^head {head}: rows cut (\S+) margin (\S+); columns cut (\S+) margin (\S+)$")
        return (found[1], found[2]), (found[3], found[4])

    @staticmethod
    def of_head(sums, head, read):
        count = sum(h == head for h, _ in sums)
        return axis_scores([sums[head, i] for i in range(count)], read)

    def logic(self, window, at):
        rule, values = self.said["fires if"], []
        listed = [line.removeprefix("where").strip() for line in self.lines]
        matches = [re.fullmatch(r"(.*) = token\[(-?\d+)\] in \{([\d, ]*)\}", line) for line in listed]
        for name, place, tokens in sorted((m.groups() for m in matches if m), key=lambda g: -len(g[0])):
            where = at + int(place)
            values.append(np.bool_(where >= 0 and str(window[where]) in tokens.split(", ")))
            rule = rule.replace(name, f"v[{len(values) - 1}]")
        return bool(eval(rule, {"v": values}))

    def magnitudes(self, state):
        terms = {f"x_{d}": state[:, d] for d in range(state.shape[1])}
        z = eval(self.said.get("where z is", "0"), {"__builtins__": {}}, terms) + np.zeros(len(state))
        return np.array([eval(self.said["magnitude"], {"__builtins__": {}}, {**SYMPY_WORDS, "z": v}) for v in z])


SYMPY_WORDS = {
    "Max": max, "Min": min, "Abs": abs, "True": True, "exp": math.exp, "log": math.log, "sqrt": math.sqrt,
    "erf": math.erf, "tanh": math.tanh, "sin": math.sin, "cos": math.cos, "atan": math.atan,
    "sign": np.sign,
    "Piecewise": lambda *pieces: next(value for value, holds in pieces if holds),
}  # fmt: skip
