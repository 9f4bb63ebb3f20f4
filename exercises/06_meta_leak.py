"""Task 6: labels and split of the meta RM's data, with three bugs. Paper §4. 6 points, two per bug.

The meta RM learns whether a judgment is correct (Eq. 10). Its held-out figures looked too good, its
guidance did not help. Every function is meant to do what its docstring says; find the three places
where it does not.
"""
import random


def training_rows(judgments):
    """Rows (item id, text, label), one for each NON-HINTED judgment that parsed.

    label: 1.0 if correct (Eq. 10), else 0.0.
    A judgment: {"id", "hinted": bool, "text", "permutation", "shown": scores in displayed order or
    None, "rewards": in original order}; permutation[place] is the index of the response shown at
    that place. All have n >= 2.
    """
    rows = []
    for t in judgments:
        if t["shown"] is None:
            continue
        best = t["rewards"].index(max(t["rewards"]))
        correct = all(t["shown"][best] > s for i, s in enumerate(t["shown"]) if i != best)
        rows.append((t["id"], t["text"], float(correct)))
    return rows


def split(rows, held_out=0.1, seed=0):
    """(training rows, held-out rows): about `held_out` of the items, each with all its rows.

    It is called twice, perhaps in another process: for the rows of the RFT stage, and later for
    those of the GRM, which are other rows, in another order, of some of the same items. An item
    must fall on the same side both times; with another seed others are held out.
    """
    rng = random.Random(seed)
    train, held = [], []
    for row in rows:
        (held if rng.random() < held_out else train).append(row)
    return train, held
