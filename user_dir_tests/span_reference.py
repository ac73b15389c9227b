"""Adaptive span and persistent memory as the papers' formulas say, with loops, in float64 and without the package.

Sukhbaatar et al. 2019: arXiv 1905.07799 (mask, eq. 2-4) and 1907.01470 (memory, eq. 6-9). Positions count from 0.
"""

import math


def mask(z, ramp, x, max_span=math.inf):
    return min(1.0, max(0.0, (ramp + z - x) / ramp)) if x < max_span else 0.0


def attention(query, keys, values, position, z, ramp, memory=(), hidden=()):
    """One head, queries and keys at the same positions. query, keys, values: T x D lists; position[d - 1] is the
    vector of distance d; memory: (key, value) pairs; hidden: positions nobody sees. Returns T x D."""
    size, rows = len(query[0]), []
    for t, q in enumerate(query):
        terms = [(math.exp(dot(q, k) / math.sqrt(size)), v) for k, v in memory]
        for r in range(t):
            distance = t - r
            if distance > len(position) or r in hidden:
                continue
            logit = (dot(q, keys[r]) + dot(q, position[distance - 1])) / math.sqrt(size)
            terms.append((mask(z, ramp, distance - 1, len(position)) * math.exp(logit), values[r]))
        total = sum(weight for weight, _ in terms)
        rows.append([sum(w * v[d] for w, v in terms) / total if total else 0.0 for d in range(size)])
    return rows


def layer(x, p, heads, position, spans, ramp, hidden=()):
    """Attention sublayer of one sentence, x: T x C, p: weights by name. Persistent keys and values at use scale."""
    size = len(x[0]) // heads
    q, k, v = (matrix(p[f"{name}_proj"], x) for name in "qkv")
    merged = [[] for _ in x]
    for h in range(heads):
        one = [[row[h * size : (h + 1) * size] for row in m] for m in (q, k, v)]
        memory = list(zip(p["memory_key"][h], p["memory_value"][h])) if "memory_key" in p else []
        for row, y in zip(merged, attention(*one, position, spans[h], ramp, memory, hidden)):
            row += y
    return matrix(p["out_proj"], merged)


def matrix(weight, rows):
    return [[dot(w, row) for w in weight] for row in rows]


def dot(a, b):
    return sum(u * v for u, v in zip(a, b))
