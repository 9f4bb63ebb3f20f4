"""From the records of runs to the rows of a table: mean, interval, paired difference, verdict.

A result is one number per item and seed. A row's interval is the 95 % bootstrap over items of their means over seeds; its
difference to another row is paired by item, over the seeds that both have (base and undamaged judge are the same for every
seed). The verdict says whether that difference has the sign of the paper's, unless the seeds contradict each other, or it is one of
single seeds that is smaller than what seeds alone do.
"""
import functools
import math
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

import eval as evaluation
from infer_scale import credit, item_credit
from meta_rm import roc_auc
from results.compact import load
from toy_world.world import DOMAINS

UNTRAINED = re.compile(r"(base|undamaged)/.*|(bon|reference)/(base|undamaged)")  # runs of judges that no seed changes
WHERE = {"greedy", "voting", "8", "32", "eval", "tokenprob", "bon", "reference", "principles"}  # parts of a run's name that name no judge
NO_DIFFERENCE = 0.2  # points, our choice: up to here the paper's numbers count as equal (0.2 and 0.5 in Table 11, which it calls comparable)


# ----- results: one number per item and seed -----
# (functions that make functions are cached, so that `over_seeds` meets the same function again and reads a run only once)

def anything(row):
    return True


def several(row):
    return row["n"] > 1


def lists(row):
    return row["n"] > 2 or "of" in row


def single(row):
    return row["n"] == 1


@functools.cache
def in_domain(domain, least=2):
    return lambda row: row["domain"] == domain and row["n"] >= least


@functools.cache
def among(ids):
    return lambda row: row["id"] in ids and row["n"] > 1


def greedy_credit(row):
    return credit(row["samples"][0]["scores"], row["rewards"])


def greedy_tokens(row):
    return row["samples"][0]["tokens"]


@functools.cache
def voting_credit(k, method="vote", k_meta=None):
    return lambda row: item_credit(row, k, method, k_meta)


@functools.cache
def nth_credit(j):
    """Of results/principles.py, whose sample j is the judgment with the principles of setting j."""
    return lambda row: credit(row["samples"][j]["scores"], row["rewards"])


@functools.cache
def single_score(k=None):
    """Score of a single response: of its first judgment, or of each block of k."""
    return lambda row: tuple(evaluation.single_scores(row, k) if k else evaluation.single_scores(row)[:1])


@functools.cache
def over_seeds(seeds, name, value_of, keep=several):
    """{"values": {seed: {item: value}}, "domain", "label", "commits", "untrained", "judge"} of the runs on record; None if there is none.

    The pairs of one best-of-N item (`of`) are one item: its credit is their product, all must be won.
    """
    found = {"values": {}, "domain": {}, "label": {}, "commits": set(), "untrained": bool(UNTRAINED.fullmatch(name)),
             "judge": "/".join(part for part in name.split("/") if part not in WHERE)}
    for seed in seeds:
        record = load(seed, name)
        rows = [r for r in record["rows"] if r["rewards"] and keep(r)] if record else []
        if rows:
            parts = defaultdict(list)
            for r in rows:
                parts[r.get("of", r["id"])].append(value_of(r))
            found["values"][seed] = {i: v[0] if len(v) == 1 else math.prod(v) for i, v in parts.items()}
            found["domain"] |= {r.get("of", r["id"]): r["domain"] for r in rows}
            found["label"] |= {r["id"]: r["rewards"][0] for r in rows}
            found["commits"].add(record["commit"])
    return found if found["values"] else None


def means(result):
    """{item: mean over those of the seeds that have it}."""
    columns = list(result["values"].values())
    return {i: evaluation.mean(c[i] for c in columns if i in c) for i in dict.fromkeys(i for c in columns for i in c)}


# ----- rows: interval, paired difference, verdict -----

def row(label, result, paper="", against=None, number=None, gain=None, **more):
    """What a table says of one row.  paper: its number, as text; number: the same as a number, where the text holds more than
    one.  against: label of the row to compare with.  gain: the paper's difference to that row, where its numbers do not say it."""
    if number is None:
        number = float(paper) if paper.replace(".", "").isdigit() else None
    return {"label": label, "result": result, "paper": paper, "against": against, "number": number, "gain": gain, "more": more}


def finish(specs, value="accuracy", domain_differences=False):
    """Rows of a table.  value: accuracy (fractions), auc (ROC-AUC of single responses), share (fractions), tokens.
    domain_differences: the paired interval of every domain too, as columns DOMAIN_low and DOMAIN_high."""
    named, rows = {s["label"]: s for s in specs}, []
    for spec in specs:
        result, other = spec["result"], named.get(spec["against"])
        line = {"row": spec["label"], value: "not run", "low": "", "high": "", "seeds": "", "items": ""}
        ends, spread, each, told = None, 0.0, [], {"difference_seeds": "", "from": "", "to": ""}
        if result:
            line |= summary(result, value)
            if other and other["result"]:
                before, after = matched(other["result"], result)
                ends, each = difference(before, after, value), seed_differences(before, after, value)
                spread = seed_spread(before, after, other["result"], result, value)
                seeds = max(before["values"], after["values"], key=len)
                told = {"difference_seeds": " ".join(map(str, seeds)), "from": summary(before, value)[value],
                        "to": summary(after, value)[value]}
        line |= {"against": spec["against"] or "", "difference_low": ends[0] if ends else "", "difference_high": ends[1] if ends else "",
                 **told, "paper": spec["paper"], "verdict": verdict(spec, other, ends, told["to"] - told["from"] if ends else 0.0, spread, each)}
        if value == "accuracy":
            line |= {d: by_domain(result, d) for d in DOMAINS}
        for d in DOMAINS if domain_differences else ():
            parts = ends and [only_domain(r, d, result["domain"]) for r in (before, after)]
            there = parts and all(means(r) for r in parts)
            line |= dict(zip((f"{d}_low", f"{d}_high"), difference(*parts, value) if there else ("", ""), strict=True))
        rows.append(line | spec["more"] | {"commit": " ".join(sorted(result["commits"])) if result else ""})
    return rows


def summary(result, value):
    per_seed = result["values"]
    scale = 1 if value == "tokens" else 100
    if value == "auc":
        labels, columns = auc_columns(result, per_seed)
        mean, low, high = evaluation.auc_ci(columns, labels, draws=1000)
        count = len(labels)
    else:
        values = list(means(result).values())
        mean, (low, high), count = evaluation.mean(values), evaluation.bootstrap_ci(values), len(values)
    return {value: mean, "low": low, "high": high, "seeds": " ".join(f"{scale * a:.1f}" for a in seed_values(result, value)), "items": count}


def seed_values(result, value):
    """The number of each seed by itself."""
    if value == "auc":
        return [evaluation.auc_ci(columns, labels, draws=0)[0] for labels, columns in (auc_columns(result, [s]) for s in result["values"])]
    return [evaluation.mean(v.values()) for v in result["values"].values()]


def matched(a, b):
    """Two results on the seeds that both have, so that no seed's luck stands on one side only. A judge that was never trained is
    compared with all seeds of the other; so are results without a common seed."""
    common = [seed for seed in a["values"] if seed in b["values"]]
    if a["untrained"] or b["untrained"] or not common:
        return a, b
    return tuple({**result, "values": {seed: result["values"][seed] for seed in common}} for result in (a, b))


def seed_spread(before, after, a, b, value):
    """Of two judges trained once each and compared on one seed: how far the seeds of either lie apart (largest minus smallest),
    since the intervals resample items only. 0 for two runs of one judge, for untrained ones, and for more than one seed."""
    if before["judge"] == after["judge"] or a["untrained"] or b["untrained"] or len(before["values"]) > 1:
        return 0.0
    return max(max(x) - min(x) for x in (seed_values(result, value) for result in (a, b)))


def seed_differences(a, b, value):
    """b - a of every seed by itself; a judge that was never trained, or the same seed of another run, has one number for all of them."""
    x, y = (seed_values(r, value) for r in (a, b))
    count = max(len(x), len(y))
    return [after - before for before, after in zip(x * count if len(x) == 1 else x, y * count if len(y) == 1 else y, strict=False)]


def difference(a, b, value):
    """(low, high) of b - a, the two means over seeds, on the same items."""
    if value == "auc":
        ids = [i for i in a["label"] if i in b["label"]]
        (labels, x), (_, y) = (auc_columns(r, r["values"], ids) for r in (a, b))
        rng, found = np.random.default_rng(0), []
        while len(found) < 1000:
            picked = rng.integers(len(labels), size=len(labels))
            if 0 < labels[picked].sum() < len(labels):
                found.append(np.mean([roc_auc(c[picked], labels[picked]) for c in y.T])
                             - np.mean([roc_auc(c[picked], labels[picked]) for c in x.T]))
        return tuple(map(float, np.quantile(found, [0.025, 0.975])))
    x, y = means(a), means(b)
    common = [i for i in x if i in y]
    return evaluation.paired_ci([x[i] for i in common], [y[i] for i in common])


def auc_columns(result, seeds, ids=None):
    """(labels (N,), scores (N, seeds x blocks)) of the single responses."""
    ids = ids or list(result["label"])
    return (np.array([result["label"][i] for i in ids]),
            np.array([[x for s in seeds for x in result["values"][s][i]] for i in ids], dtype=float))


def only_domain(result, domain, domain_of):
    return {**result, "values": {seed: {i: v for i, v in values.items() if domain_of.get(i) == domain} for seed, values in result["values"].items()}}


def by_domain(result, domain):
    if result is None:
        return ""
    values = [v for i, v in means(result).items() if result["domain"][i] == domain]
    return evaluation.mean(values) if values else ""


def verdict(spec, other, ends, ours=0.0, spread=0.0, each=()):
    """agrees, differs, no difference seen, seeds disagree, within the seeds' spread, or not tested; "-" where the paper does not report
    this difference.  ours: the difference between ends; spread: that of seed_spread; each: the differences of the seeds."""
    gain = spec["gain"]
    if gain is None and other and spec["number"] is not None and other["number"] is not None:
        gain = spec["number"] - other["number"]
    if gain is None:
        return "-" if spec["result"] or not spec["paper"] else "not tested"
    if ends is None:
        return "not tested"
    low, high = ends
    if round(abs(gain), 2) <= NO_DIFFERENCE:
        return "agrees" if low <= 0 <= high else "differs"
    if low <= 0 <= high:
        return "no difference seen"
    if each and min(each) < 0 < max(each):
        return "seeds disagree"
    if spread and abs(ours) <= spread:
        return "within the seeds' spread"
    return "agrees" if (low > 0) == (gain > 0) else "differs"


def write(name, rows, command="python -m results.reproduce --tables"):
    """results/NAME.csv, and the table printed; nothing if too little of it has been run to show."""
    value = next((v for v in ("accuracy", "auc", "share", "tokens") if rows and v in rows[0]), None)
    if not rows or value and sum(r[value] == "not run" for r in rows) > len(rows) / 2:
        print(f"\n{name}: too little on record; an old results/{name}.csv is kept")
        return
    rows = [{**{k: v for k, v in r.items() if k != "commit"}, "command": command, "commit": r["commit"]} for r in rows]
    evaluation.write_csv(Path("results") / f"{name}.csv", rows)
    print(f"\n{name}")
    if value == "tokens":  # print_table would take the intervals for fractions
        rows = [{k: f"{v:.1f}" if isinstance(v, float) else v for k, v in r.items()} for r in rows]
    elif value in ("auc", "share"):  # ... and not these
        rows = [{**r, value: f"{100 * r[value]:.1f}" if isinstance(r[value], float) else r[value]} for r in rows]
    evaluation.print_table(rows, [c for c in dict.fromkeys(k for r in rows for k in r) if c not in ("command", "commit", *DOMAINS)])
