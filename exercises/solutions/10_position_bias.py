"""Task 10: one number per clear verdict, (first shown won) - 1/n; then the cluster bootstrap."""
import numpy as np


def clear_verdicts(rows):
    """(row number, 1 if the response shown first won, 1/n) of each clear verdict."""
    found = []
    for number, row in enumerate(rows):
        for s in row["samples"] if row["n"] > 1 else []:
            if s["scores"] and s["scores"].count(max(s["scores"])) == 1:
                best = s["scores"].index(max(s["scores"]))
                found.append((number, float(s["permutation"][0] == best), 1 / row["n"]))
    return found


def first_position(rows):
    _, first, expected = zip(*clear_verdicts(rows))
    return sum(first) / len(first), sum(expected) / len(expected)


def is_biased(rows):
    sums, counts = np.zeros(len(rows)), np.zeros(len(rows))
    for number, first, expected in clear_verdicts(rows):
        sums[number] += first - expected
        counts[number] += 1
    picked = np.random.default_rng(0).integers(len(rows), size=(2000, len(rows)))
    low, high = np.quantile(sums[picked].sum(1) / counts[picked].sum(1), [0.025, 0.975])
    return bool(low > 0 or high < 0)
