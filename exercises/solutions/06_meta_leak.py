"""Task 6: hinted judgments leak the label, the shown order mislabels, a split by row puts an item
on both sides.
"""
import random


def training_rows(judgments):
    rows = []
    for t in judgments:
        # a hinted judgment knew the answer; the judges to be guided will not
        if t["shown"] is None or t["hinted"]:
            continue
        # the place where the best one was shown
        best = t["permutation"].index(t["rewards"].index(max(t["rewards"])))
        correct = all(t["shown"][best] > s for i, s in enumerate(t["shown"]) if i != best)
        rows.append((t["id"], t["text"], float(correct)))
    return rows


def split(rows, held_out=0.1, seed=0):
    train, held = [], []
    for row in rows:  # seed and id decide, not hash(id), which differs from process to process
        (held if random.Random(f"{seed}/{row[0]}").random() < held_out else train).append(row)
    return train, held
