"""The logits of every scorer, written from the papers' formulas with loops, in float64 and without the package.

Each function takes the scorer's parameters by name, the tokens x (T x C), queries and keys (H x T x D, not
scaled) and returns H x T x T logits as nested lists.
"""

import math


def random(p, x, q, k, heads):
    return _fill(heads, len(x), lambda h, i, j: p["map"][h][i][j])


fixed_random = random


def factorized_random(p, x, q, k, heads):
    return _fill(heads, len(x), lambda h, i, j: _dot(p["left"][h][i], p["right"][h][j]))


def dense(p, x, q, k, heads):
    hidden = _hidden(p, x)
    size = len(x[0]) // heads

    def logit(h, i, j):
        column = [p["weight"][h][d][j] for d in range(size)]
        return _dot(hidden[i][h * size : (h + 1) * size], column) + p["bias"][h][0][j]

    return _fill(heads, len(x), logit)


def factorized_dense(p, x, q, k, heads):
    hidden = _hidden(p, x)
    size, b = len(x[0]) // heads, len(p["weight_b"][0][0])

    def factor(name, h, i, n):
        column = [p[f"weight_{name}"][h][d][n] for d in range(size)]
        return _dot(hidden[i][h * size : (h + 1) * size], column) + p[f"bias_{name}"][h][0][n]

    return _fill(heads, len(x), lambda h, i, j: factor("a", h, i, j // b) * factor("b", h, i, j % b))


def dot_product(p, x, q, k, heads):
    return _fill(heads, len(x), lambda h, i, j: _dot(q[h][i], k[h][j]) / math.sqrt(len(q[h][i])))


def mixture(logits, alphas):
    """logits: one H x T x T per scorer; alphas: K x H before the softmax."""
    heads, steps = len(logits[0]), len(logits[0][0])

    def logit(h, i, j):
        weights = [math.exp(a[h]) for a in alphas]
        return sum(w / sum(weights) * one[h][i][j] for w, one in zip(weights, logits))

    return _fill(heads, steps, logit)


def _hidden(p, x):
    rows = list(zip(p["hidden.weight"], p["hidden.bias"]))
    return [[max(0.0, _dot(row, token) + bias) for row, bias in rows] for token in x]


def _fill(heads, steps, logit):
    return [[[logit(h, i, j) for j in range(steps)] for i in range(steps)] for h in range(heads)]


def _dot(a, b):
    return sum(u * v for u, v in zip(a, b))
