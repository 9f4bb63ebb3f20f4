"""Right for the wrong reason: how true are judgments whose scores are right? From the records.

    python -m results.reasons           # -> results/reasons.csv, .png and results/README.md

A rule reward (Eq. 11) and the meta RM's labels look at scores alone. The toy world knows its truth,
so the reasons of a judgment can be graded too (toy_world/truth.py). Test items with n >= 2, parsed
judgments; correct: Eq. 10. Measures, shares of judgments:

    names what counts   no criterion of weight 0, and at least two thirds of the query's weight
    weighs rightly      and every stated weight is within rounding of the true share of those named
    reads rightly       every verdict is the level that the response in that place has
    all three           the reasons are true
    scores follow       criteria, weights and verdicts have the same response on top as the scores

and, as few judgments are true in every word, means over judgments of what is true in them:

    weight placed       of the weight that it states, the part that lies where the truth has it
    verdicts right      of its verdicts
    order right         of its pairs of responses under one criterion: better, same or worse

Rows: correct judgments; incorrect ones, which say what chance gives; of each those that the meta RM
lets vote (the half of an item's 32 with the highest logits) and those that it leaves out. A row
"a - b" is the difference on the same items and seeds: n and difficulty cancel. A row "ROC-AUC
within items" asks whether the meta logit ranks a correct judgment above an incorrect one (column
`correct`), and among the correct ones of an item one that is above their mean in a measure above
one that is not.
Intervals: 95 % bootstrap over items, all seeds together.
"""
import argparse
import math
import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from eval import bootstrap_ci, mean, paired_ci
from grm import is_correct
from infer_scale import default_k_meta
from meta_rm import roc_auc
from plumbing.figures import print_table, write_csv
from plumbing.runs import ROOT, command_line
from results.figures import draw_reasons
from results.records import load, seeds_on_record
from results.tables import fill, markdown
from toy_world.truth import WIDTH, read_truth

JUDGES = {"base": "base", "GRM-RFT": "grm/after_rft", "GRM": "grm",  # their folders on record
          "undamaged judge": "undamaged"}  # the ceiling, without meta logits
MEASURES = {
    "names what counts": lambda t, n: t.only and t.most,
    "weighs rightly": lambda t, n: t.weighs,
    "reads rightly": lambda t, n: t.reads,
    "all three": lambda t, n: t.weighs and t.reads,
    "scores follow": lambda t, n: t.agrees,
    "weight placed": lambda t, n: t.placed / 50,
    "verdicts right": lambda t, n: 1 - t.wrong / (t.named * n),
    "order right": lambda t, n: 1 - 2 * t.swapped / (t.named * n * (n - 1))}
ITEMS = 10 ** 6  # more than a run has: seed and item in one number


def judgments(run, seeds):
    """{column: (N,) array} of all seeds' parsed judgments, or None: seed, item, correct, the meta
    logit, whether it votes, and MEASURES."""
    rows = []
    for seed in seeds:
        record = load(seed, run) or {}
        for item, text in enumerate(record.get("truth", ())):  # all runs: the first items of a set
            row = record["rows"][item]
            usable = [j for j, s in enumerate(row["samples"]) if s["scores"] and row["n"] > 1]
            logits = row.get("meta_logits") or [math.nan] * len(row["samples"])
            best_first = sorted(usable, key=lambda j: -logits[j])
            votes = set(best_first[:default_k_meta(len(row["samples"]))])
            for j in usable:
                truth = read_truth(text[WIDTH * j:WIDTH * (j + 1)])
                rows.append((seed, item, is_correct(row["samples"][j]["scores"], row["rewards"]),
                             logits[j], j in votes,  # criteria that nobody can read are not true
                             *(truth and m(truth, row["n"]) or 0 for m in MEASURES.values())))
    names = ("seed", "item", "correct", "logit", "votes", *MEASURES)
    return dict(zip(names, np.array(rows, dtype=float).T, strict=True)) if rows else None


def put(row, name, value, ends=(None, None), items=""):
    row |= {name: value, f"{name} low": ends[0], f"{name} high": ends[1]}
    row |= {f"{name} items": items} if items else {}


def shares(label, found, chosen):
    """Row of the shares among the chosen judgments, (N,) bool."""
    row = {"row": label, "kind": "share", "judgments": int(chosen.sum()),
           "items": len(set(found["item"][chosen]))}
    for name in MEASURES if chosen.any() else ():
        values = found[name][chosen]
        put(row, name, values.mean(), bootstrap_ci(values, clusters=found["item"][chosen]))
    parts = [found["all three"][chosen & (found["seed"] == s)] for s in np.unique(found["seed"])]
    return row | {"seeds": " ".join(f"{100 * p.mean():.1f}" for p in parts if len(p))}


def item_means(found, chosen, name):
    """{(seed, item): mean of its chosen judgments}"""
    keys = found["seed"][chosen].astype(int) * ITEMS + found["item"][chosen].astype(int)
    sums, counts = np.bincount(keys, found[name][chosen]), np.bincount(keys)
    return {divmod(i, ITEMS): sums[i] / counts[i] for i in np.flatnonzero(counts).tolist()}


def differences(label, a, b):
    """Row of a - b where both have judgments of an item and seed.  a, b: (judgments, which)."""
    row = {"row": label, "kind": "difference"}
    for name in MEASURES:
        x, y = item_means(*a, name), item_means(*b, name)
        common = [key for key in x if key in y]
        row["items"] = len({item for _, item in common})
        if common:
            before, after = [y[key] for key in common], [x[key] for key in common]
            put(row, name, mean(after) - mean(before),
                paired_ci(before, after, clusters=[item for _, item in common]))
    return row


def auc_within(found, chosen, name):
    """(mean ROC-AUC of the meta logit for a column, within items of one seed; its interval; how
    many items tell)."""
    groups = defaultdict(list)
    for seed, item, logit, label in zip(*(found[c][chosen] for c in (
            "seed", "item", "logit", name)), strict=True):
        groups[seed, item].append((logit, label))
    aucs, items = [], []
    for (_, item), pairs in groups.items():
        logits, values = map(np.array, zip(*pairs, strict=True))
        if min(values) < max(values):
            aucs.append(roc_auc(logits, values > values.mean()))
            items.append(item)
    return (mean(aucs), bootstrap_ci(aucs, clusters=items), len(set(items))) if aucs else (None,)


def rows_of(seeds):
    table, kept = [], {}
    for judge, folder in JUDGES.items():
        for how, run in (("greedy", "greedy"), ("sampled", "voting")):
            found = judgments(f"{folder}/{run}", seeds)
            if found is None:
                continue
            right, votes = found["correct"] == 1, found["votes"] == 1
            sides = (("correct", right), ("incorrect", ~right))
            table += [shares(f"{judge}, {how}, {side}", found, mask) for side, mask in sides]
            kept[judge] = found, right  # the sampled ones, where there are any
            if np.isnan(found["logit"]).any():
                continue
            table.append(differences(f"{judge}, correct - incorrect", (found, right),
                                     (found, ~right)))
            for side, mask in sides:
                table += [shares(f"{judge}, {side}, votes", found, mask & votes),
                          shares(f"{judge}, {side}, left out", found, mask & ~votes),
                          differences(f"{judge}, {side}, votes - left out",
                                      (found, mask & votes), (found, mask & ~votes))]
            row = {"row": f"{judge}, ROC-AUC within items", "kind": "auc"}
            for name in ("correct", *MEASURES):
                put(row, name, *auc_within(found, right | (name == "correct"), name))
            table.append(row)
    for before, after in zip(list(kept), list(kept)[1:]):
        table.append(differences(f"{after} - {before}, correct", kept[after], kept[before]))
    return table


# ----- table and figure -----

def cell(row, name):
    """A number with its interval, in percent or points."""
    if row.get(name) is None:
        return ""
    sign = "+" if row["kind"] == "difference" else ""
    ends = [row[f"{name} {end}"] for end in ("low", "high")]
    told = " ".join(f"{100 * x:{sign}.1f}" for x in ends if x is not None)
    few = f" of {row[f'{name} items']}" if f"{name} items" in row else ""
    return f"{100 * row[name]:{sign}.1f} [{told}]{few}"


def make(seeds, folder=Path("results")):
    """Table and figure from the records; its block in results/README.md."""
    table = rows_of(seeds)
    if not table:
        return
    write_csv(folder / "reasons.csv", table)
    draw_reasons(table, list(MEASURES), folder / "reasons.png")
    columns = ["correct", *MEASURES]
    lines = [[r["row"], f"{r.get('items', '')}", *[cell(r, name) for name in columns]]
             for r in table if not re.search(r"greedy|, (votes|left out)$|incorrect, v", r["row"])]
    fill({"table reasons": markdown(["", "items", *columns], lines)})
    print_table([{"row": r["row"], **{n: cell(r, n) for n in columns}} for r in table],
                ["row", *columns])


@command_line
def main():
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    os.chdir(ROOT)
    make(seeds_on_record())


if __name__ == "__main__":
    main()
