"""Task 13: votes need p > 1/2 on the item; a meta RM moves that turning point, if it can tell the
judgments of one item apart. A ROC-AUC over all items does not say so; validation items do.
"""
from math import comb


def majority(p, k):
    return sum(comb(k, right) * p ** right * (1 - p) ** (k - right)
               * ((2 * right > k) + (2 * right == k) / 2) for right in range(k + 1))


def let_through(p, t, f):
    return p * t / (p * t + (1 - p) * f)


def turning_point(t, f):
    return f / (t + f)  # let_through(p, t, f) = 1/2


def advice(rows):
    def most(right):
        return (2 * sum(right) > len(right)) + (2 * sum(right) == len(right)) / 2

    def guided(row):
        k = len(row["right"])
        best = sorted(range(k), key=lambda j: row["logits"][j], reverse=True)[:k // 2]
        return most([row["right"][j] for j in best])
    accuracy = {"one": sum(sum(row["right"]) / len(row["right"]) for row in rows) / len(rows),
                "votes": sum(most(row["right"]) for row in rows) / len(rows),
                "guided": sum(map(guided, rows)) / len(rows)}
    return next(way for way, a in accuracy.items() if a >= max(accuracy.values()) - 0.02)
