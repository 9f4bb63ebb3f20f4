"""Task 9: keep each cluster's sum and size; a resample is then two sums."""
import numpy as np


def bootstrap_interval(values, clusters=None, draws=2000, seed=0):
    if len(values) == 0:
        raise ValueError("no values")
    groups = {}
    for value, label in zip(values, range(len(values)) if clusters is None else clusters):
        groups.setdefault(label, []).append(value)
    sums = np.array([sum(g) for g in groups.values()], dtype=float)
    sizes = np.array([len(g) for g in groups.values()])
    picked = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    low, high = np.quantile(sums[picked].sum(1) / sizes[picked].sum(1), [0.025, 0.975])
    return float(low), float(high)
