"""When guidance pays: the gain of guided over plain votes, and what predicts it. From the records.

    python -m results.guidance          # -> results/guidance*.csv, .png and results/README.md

A point is a judge, the meta RM that guides it, and which of its judgments count: all, or ("even")
as many of each kind, a kind being those that were shown the same response first. So an even point
has fewer than 32, and guidance still chooses from them without a look at the kind. The gain is
guided - plain votes, k = 8 and 32; guided: the best half votes. What might predict it, at k = 32:

    plain accuracy      of the plain votes
    errors together     intraclass correlation of correctness (Eq. 10) within items: 0 if an item's
                        judgments err each for itself, 1 if they are all right or all wrong
    lost by votes       share of items whose votes are wrong though some judgment is right
    ROC-AUC in items    how well the meta RM tells correct from incorrect ones of the same item
    lost x skill        lost by votes x (2 ROC-AUC - 1)

Rank correlations with the gain are over all points; as a check over those of the toy alone, and
over these x domains. k_meta is swept at k = 32 (32: no guidance): the best one is chosen on every
other item and graded on the rest, both ways; `over half` is its gain over k/2. Intervals: 95 %
bootstrap over items (prompts, where they repeat) of their means over seeds.
"""
import argparse
import os
import random
from collections import defaultdict
from pathlib import Path

import numpy as np

from eval import bootstrap_ci, clusters_of, graded, item_credit, mean
from grm import is_correct
from infer_scale import default_k_meta
from meta_rm import roc_auc
from plumbing.figures import print_table, write_csv
from plumbing.runs import ROOT, command_line
from results import small_model_tables as small
from results.figures import draw_guidance
from results.records import load, seeds_on_record
from results.tables import fill, markdown
from toy_world.world import DOMAINS

POINTS = {  # point: (run on record, the meta RM's)
    "base": ("base/voting", "grm/meta_rm"),
    "GRM-RFT": ("grm/after_rft/voting", "grm/meta_rm"),
    "RL of 10 steps": ("guidance/rl-10/voting", "grm/meta_rm"),
    "GRM": ("grm/voting", "grm/meta_rm"),
    "GRM, meta 2,000": ("guidance/meta-2000/voting", "guidance/meta-2000/meta_rm"),
    "GRM, meta 8,000": ("guidance/meta-8000/voting", "guidance/meta-8000/meta_rm")}
EVEN = ("base", "GRM-RFT", "GRM")
KS, SWEEP = (8, 32), (1, 2, 4, 8, 12, 16, 20, 24, 28, 32)
PREDICTORS = ("plain accuracy", "errors together", "lost by votes", "ROC-AUC in items",
              "lost x skill")


def points(seeds):
    """[(name, {seed: rows with meta logits}, what is known of the meta RM)]"""
    found = []
    for name, (run, meta) in POINTS.items():
        rows = {s: graded(load(s, run)["rows"]) for s in seeds
                if load(s, meta) and "meta_logits" in (load(s, run) or ())}
        told = [load(s, meta) for s in rows]
        # 16: meta_rm.py's batch size, which no run here changes
        about = {"ROC-AUC held out": mean(t["report"]["held_out"]["all"]["auc"] for t in told),
                 "judgments seen": 16 * mean(t["updates"] for t in told)}
        found += [(name, rows, about)] if rows else []
        if name in EVEN and rows:
            found.append((f"{name}, even", {s: [shown_evenly(row, s) for row in part]
                                            for s, part in rows.items()}, about))
    for path in sorted(small.RUNS.glob("*/voting.json.gz")):
        run = small.load_run(path.parent)
        if len(run["voting"]["rows"][0]["samples"]) < KS[-1]:
            continue
        about = {"ROC-AUC held out": run["meta_rm"]["report"]["held_out"]["all"]["auc"]}
        found.append((f"SmolLM2, {path.parent.name}", {0: graded(run["voting"]["rows"])}, about))
    return found


def shown_evenly(row, seed):
    """The row with as many judgments of each first response, in turn: a block of k is as even as k
    allows. What is over of the commoner kinds is left out."""
    kinds = [[] for _ in range(row["n"])]
    for j in range(len(row["samples"])):
        order = list(range(row["n"]))
        random.Random(f"{seed}/{row['id']}/{j}").shuffle(order)  # as grm.sample_judgments drew it
        kinds[order[0]].append(j)
    chosen = [j for turn in zip(*kinds) for j in turn] or range(len(row["samples"]))
    return {**row, **{key: [row[key][j] for j in chosen] for key in ("samples", "meta_logits")}}


def intraclass(counts):
    """Intraclass correlation of right and wrong within items, of [(judgments, right ones)]: the
    covariance of two judgments of an item, over the variance of one; None if that is 0.
    >>> intraclass([(4, 4), (4, 0)]), intraclass([(2, 1), (2, 1)])
    (1.0, -1.0)
    """
    p = mean(right / count for count, right in counts)
    both = mean(right * (right - 1) / (count * (count - 1)) for count, right in counts)
    return (both - p * p) / (p - p * p) if 0 < p < 1 else None


def rank_correlation(x, y):
    """Spearman's; ties have their mean rank, and what is the same everywhere predicts nothing: 0.
    >>> round(rank_correlation([1, 2, 3, 4], [10, 20, 40, 30]), 6)
    0.8
    """
    ranks = [np.greater.outer(v, v).sum(1) + np.equal.outer(v, v).sum(1) / 2 for v in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1]) if len(set(x)) > 1 < len(set(y)) else 0.0


def measure(parts):
    """The gains of one point and what might predict them.  parts: {seed: rows}."""
    sides, together, lost, skill = {k: defaultdict(dict) for k in KS}, [], [], []
    clusters = clusters_of([row for rows in parts.values() for row in rows])
    for seed, rows in parts.items():
        counts = []
        for row in rows:
            right = [s["scores"] is not None and is_correct(s["scores"], row["rewards"])
                     for s in row["samples"]]
            counts.append((len(right), sum(right)))
            for k, items in sides.items():
                items[row["id"]][seed] = [item_credit(row, min(k, len(right)), how)
                                          for how in ("vote", "guided")]
            lost.append((1 - sides[KS[-1]][row["id"]][seed][0]) * any(right))
            skill.append(roc_auc(*zip(*[(z, y) for z, y in zip(row["meta_logits"], right)
                                        if z is not None] or [(0, 0)])))
        together.append(intraclass(counts))
    found = {"items": len(sides[KS[-1]])}
    for k, items in sides.items():
        each = np.array([np.mean(list(item.values()), 0) for item in items.values()])  # (items, 2)
        gains = [np.diff(np.mean([i[s] for i in items.values() if s in i], 0))[0] for s in parts]
        low, high = bootstrap_ci(each[:, 1] - each[:, 0], clusters=clusters)
        vote, guided = each.mean(0).tolist()
        found |= {f"vote@{k}": vote, f"guided@{k}": guided, f"gain@{k}": guided - vote,
                  f"low@{k}": low, f"high@{k}": high,
                  f"seeds@{k}": " ".join(f"{100 * g:+.1f}" for g in gains)}
    auc, missed = mean(a for a in skill if a is not None), mean(lost)
    icc = mean(t for t in together if t is not None)
    numbers = vote, icc, missed, auc, missed * (2 * auc - 1)
    return found | dict(zip(PREDICTORS, numbers, strict=True))


def sweep(parts, k=32):
    """{"k_meta 1": guided accuracy, ...}, the best k_meta, and its gain over k/2."""
    values = defaultdict(lambda: [[] for _ in SWEEP])
    clusters = clusters_of([row for rows in parts.values() for row in rows])
    for row in (r for rows in parts.values() for r in rows):
        for place, m in zip(values[row["id"]], SWEEP, strict=True):
            place.append(item_credit(row, k, "guided", m))
    each = np.array([[mean(v) for v in item] for item in values.values()])     # (items, SWEEP)
    half, gains = SWEEP.index(default_k_meta(k)), np.zeros(len(each))
    for side in (0, 1):  # chosen on the other side, so that luck is not counted as gain
        gains[side::2] = (each[:, each[1 - side::2].mean(0).argmax()] - each[:, half])[side::2]
    low, high = bootstrap_ci(gains, clusters=clusters)
    found = {f"k_meta {m}": v for m, v in zip(SWEEP, each.mean(0).tolist(), strict=True)}
    return found | {"best k_meta": SWEEP[int(each.mean(0).argmax())],
                    "over half": float(gains.mean()), "over low": low, "over high": high}


def correlations(table, checked):
    """Predictors with the gains: over all points, those of the toy alone, and these x domains."""
    toy = [r for r in table if not r["point"].startswith("SmolLM2")]
    return [{"predictor": name, **{
        f"{where}@{k}": rank_correlation([r[name] for r in rows], [r[f"gain@{k}"] for r in rows])
        for where, rows in (("all", table), ("toy", toy), ("toy domains", checked)) if rows
        for k in KS}} for name in PREDICTORS]


def make(seeds, folder=Path("results")):
    """Tables and figure from the records; their blocks in results/README.md."""
    table, checked = [], []
    for name, parts, about in points(seeds):
        table.append({"point": name, **measure(parts), **about} |
                     (sweep(parts) if "even" not in name else {}))
        for domain in DOMAINS:
            part = {s: [r for r in rows if r["domain"] == domain] for s, rows in parts.items()}
            checked += [measure(part)] if all(part.values()) else []
    if not checked:  # no run of the toy world is on record
        return
    told = correlations(table, checked)
    best = max(told, key=lambda r: abs(r[f"all@{KS[-1]}"]))
    write_csv(folder / "guidance.csv", table)
    write_csv(folder / "guidance_predictors.csv", told)
    draw_guidance(table, best, folder / "guidance.png")
    heads = ["point", "items", *[f"{what}@{k}" for k in KS for what in ("vote", "gain")],
             *PREDICTORS, "best k_meta", "over half"]
    shown = [{c: cell(row, c) for c in heads} for row in table]
    ranks = [{c: f"{x:+.2f}" if isinstance(x, float) else str(x) for c, x in r.items()}
             for r in told]
    for name, rows in (("guidance", shown), ("guidance_predictors", ranks)):
        fill({f"table {name}": markdown(list(rows[0]), [list(r.values()) for r in rows])})
        print_table(rows, list(rows[0]))


def cell(row, column):
    """Percent; of a difference in points, with its interval."""
    value, name = row.get(column, ""), column.replace("gain", "{}").replace("half", "{}")
    if not isinstance(value, float) or "{}" not in name:
        return f"{100 * value:.1f}" if isinstance(value, float) else str(value)
    low, high = (row[name.format(end)] for end in ("low", "high"))
    return f"{100 * value:+.1f} [{100 * low:+.1f} {100 * high:+.1f}]"


@command_line
def main():
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    os.chdir(ROOT)
    make(seeds_on_record())


if __name__ == "__main__":
    main()
