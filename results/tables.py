"""The tables of the README on the toy world, from the compact records of the runs (compact.py) and nothing else.

One function per table. It names rows: label, result, the paper's number, the row to compare with. `finish` adds to each the
mean, its 95 % bootstrap interval over items (of the means over seeds), the interval of the difference to the other row, paired by
item and seed, and the verdict: has that difference the sign that the paper's numbers have? The undamaged judge, from which the
toy's base was made, stands in every table as the ceiling.
"""
import functools
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
from compact import load

import eval as evaluation
from grm import is_correct
from infer_scale import credit, item_credit, powers_of_two
from meta_rm import roc_auc
from toy import DOMAINS

TRIES = {  # name: (flags, what is different); the meta RM of the tables was found by these
    "first": ("--batch_size 64 --lr 1e-3", "126 updates of 64"),
    "from-grm": ("--batch_size 64 --lr 1e-3 --model {grm}", "starts from the GRM"),
    "from-undamaged": ("--batch_size 64 --lr 1e-3 --model toy_base/medium-undamaged", "starts from the undamaged judge"),
    "items-6000": ("--batch_size 64 --lr 5e-4 --limit 6000", "four times the items, half the rate"),
    "epochs-4": ("--batch_size 64 --lr 1e-3 --epochs 4", "four epochs"),
}
JUDGES = {"base": "base", "grm/after_rft": "GRM-RFT", "grm": "GRM"}  # folder of the greedy run: name in the tables
NO_DIFFERENCE = 0.2  # points: up to here the paper's numbers count as equal (it says so itself of 0.2, App. E.1.1)


# ----- results: one number per item and seed -----

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
    """{"values": {seed: {item: value}}, "domain", "label", "commits"} of the runs on record; None if there is none.

    The pairs of one best-of-N item (`of`) are one item: its credit is their product, all must be won.
    """
    found = {"values": {}, "domain": {}, "label": {}, "commits": set()}
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


def means(result, seeds=None):
    """{item: mean over these seeds (all)}, of the items that each of them has."""
    columns = [result["values"][s] for s in (seeds or result["values"])]
    return {i: evaluation.mean(c[i] for c in columns) for i in columns[0] if all(i in c for c in columns)}


# ----- rows: interval, paired difference, verdict -----

def row(label, result, paper="", against=None, number=None, gain=None, **more):
    """What a table says of one row.  paper: its number, as text; number: the same as a number, where the text holds more than
    one.  against: label of the row to compare with.  gain: the paper's difference to that row, where its numbers do not say it."""
    if number is None:
        number = float(paper) if paper.replace(".", "").isdigit() else None
    return {"label": label, "result": result, "paper": paper, "against": against, "number": number, "gain": gain, "more": more}


def finish(specs, value="accuracy"):
    """Rows of a table.  value: accuracy (fractions), auc (ROC-AUC of single responses), share (fractions), tokens."""
    named, rows = {s["label"]: s for s in specs}, []
    for spec in specs:
        result, other = spec["result"], named.get(spec["against"])
        line = {"row": spec["label"], value: "not run", "low": "", "high": "", "seeds": "", "items": ""}
        ends = None
        if result:
            line |= summary(result, value)
            if other and other["result"]:
                ends = difference(other["result"], result, value)
        line |= {"against": spec["against"] or "", "difference_low": ends[0] if ends else "", "difference_high": ends[1] if ends else "",
                 "paper": spec["paper"], "verdict": verdict(spec, other, ends)}
        if value == "accuracy":
            line |= {d: by_domain(result, d) for d in DOMAINS}
        rows.append(line | spec["more"] | {"commit": " ".join(sorted(result["commits"])) if result else ""})
    return rows


def summary(result, value):
    per_seed = result["values"]
    scale = 1 if value == "tokens" else 100
    if value == "auc":
        labels, columns = auc_columns(result, per_seed)
        mean, low, high = evaluation.auc_ci(columns, labels, draws=1000)
        each = [evaluation.auc_ci(auc_columns(result, [s])[1], labels, draws=0)[0] for s in per_seed]
        count = len(labels)
    else:
        values = list(means(result).values())
        mean, (low, high), count = evaluation.mean(values), evaluation.bootstrap_ci(values), len(values)
        each = [evaluation.mean(v.values()) for v in per_seed.values()]
    return {value: mean, "low": low, "high": high, "seeds": " ".join(f"{scale * a:.1f}" for a in each), "items": count}


def difference(a, b, value):
    """(low, high) of b - a on the same items, over the seeds that both have (if they share none, over all of each)."""
    seeds = [s for s in b["values"] if s in a["values"]]
    if value == "auc":
        (labels, x), (_, y) = (auc_columns(r, seeds or r["values"]) for r in (a, b))
        rng, found = np.random.default_rng(0), []
        while len(found) < 1000:
            picked = rng.integers(len(labels), size=len(labels))
            if 0 < labels[picked].sum() < len(labels):
                found.append(np.mean([roc_auc(c[picked], labels[picked]) for c in y.T])
                             - np.mean([roc_auc(c[picked], labels[picked]) for c in x.T]))
        return tuple(map(float, np.quantile(found, [0.025, 0.975])))
    x, y = means(a, seeds), means(b, seeds)
    common = [i for i in x if i in y]
    return evaluation.paired_ci([x[i] for i in common], [y[i] for i in common])


def auc_columns(result, seeds):
    """(labels (N,), scores (N, seeds x blocks)) of the single responses."""
    ids = list(result["label"])
    return (np.array([result["label"][i] for i in ids]),
            np.array([[x for s in seeds for x in result["values"][s][i]] for i in ids], dtype=float))


def by_domain(result, domain):
    if result is None:
        return ""
    values = [v for i, v in means(result).items() if result["domain"][i] == domain]
    return evaluation.mean(values) if values else ""


def verdict(spec, other, ends):
    """agrees, differs, no difference seen or not tested; "-" where the paper does not report this difference."""
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
    return "agrees" if (low > 0) == (gain > 0) else "differs"


def write(name, rows, command="python results/reproduce.py --tables"):
    """results/NAME.csv, and the table printed; nothing if too little of it has been run to show."""
    value = next((v for v in ("accuracy", "auc", "share", "tokens") if rows and v in rows[0]), None)
    if not rows or value and sum(r[value] == "not run" for r in rows) > len(rows) / 2:
        return
    rows = [{**{k: v for k, v in r.items() if k != "commit"}, "command": command, "commit": r["commit"]} for r in rows]
    evaluation.write_csv(Path("results") / f"{name}.csv", rows)
    print(f"\n{name}")
    evaluation.print_table(rows, [c for c in dict.fromkeys(k for r in rows for k in r) if c not in ("command", "commit", *DOMAINS)])


# ----- the paper's main tables -----

def training(seeds):
    """Table 2 and 4: base < RFT < GRM, greedy and voted."""
    get = functools.partial(over_seeds, seeds)
    specs = [
        row("base, greedy", get("base/greedy", greedy_credit)),
        row("GRM-RFT, greedy", get("grm/after_rft/greedy", greedy_credit), "68.8", "base, greedy"),
        row("GRM, greedy", get("grm/greedy", greedy_credit), "69.9", "GRM-RFT, greedy"),
        row("general data only, greedy", get("general/after_rft/greedy", greedy_credit), "66.1", "base, greedy"),
        row("general data only, then RL, greedy", get("general/greedy", greedy_credit), "68.7", "general data only, greedy"),
        row("RL straight from the base, greedy", get("straight/greedy", greedy_credit), "", "base, greedy"),
        row("undamaged judge, greedy", get("undamaged/greedy", greedy_credit), "", "GRM, greedy"),
        row("base, Voting@8", get("base/voting", voting_credit(8))),
        row("GRM-RFT, Voting@8", get("grm/after_rft/voting", voting_credit(8)), "69.3", "base, Voting@8"),
        row("GRM, Voting@8", get("grm/8/voting", voting_credit(8)), "70.6", "GRM-RFT, Voting@8"),
        row("undamaged judge, Voting@8", get("undamaged/voting", voting_credit(8)), "", "GRM, Voting@8")]
    write("training", finish(specs))


def ceiling(seeds, keep=several):
    return row("undamaged judge, greedy", over_seeds(seeds, "undamaged/greedy", greedy_credit, keep))


def scaling(seeds):
    """Table 3 and Fig. 4(a): voting, guided voting and the controls; the paper's gains are against Voting@1, guided against voting."""
    def get(*key):
        return over_seeds(seeds, "grm/voting", voting_credit(*key))
    if get(1) is None:
        return
    paper = {("vote", 1): "67.9", ("vote", 8): "70.6", ("vote", 32): "71.0", ("guided", 8): "72.0", ("guided", 32): "72.8"}
    greedy = over_seeds(seeds, "grm/greedy", greedy_credit)
    chance = evaluation.mean(1 / r["n"] for r in evaluation.graded(load(min(get(1)["values"]), "grm/voting")["rows"]))
    specs = [row("greedy", greedy, "69.9", method="", k="", chance=chance)]
    for method in ("vote", "guided", "random", "oracle"):
        for k in powers_of_two(32):
            against = "greedy" if (method, k) == ("vote", 1) else "vote @1" if method == "vote" else f"vote @{k}"
            specs.append(row(f"{method} @{k}", get(k, method), paper.get((method, k), ""), against, method=method, k=k))
    specs += [row("vote @32 against vote @8", get(32), "71.0", "vote @8"),
              row("guided @32 against random 16 of 32", get(32, "guided"), "", "random @32"),
              row("undamaged judge, Voting@8", over_seeds(seeds, "undamaged/voting", voting_credit(8)))]
    write("scaling", finish(specs))


def k_meta(seeds):
    """Table 7: how many of 32 judgments vote."""
    def get(*key):
        return over_seeds(seeds, "grm/voting", voting_credit(*key))
    if get(32) is None:
        return
    paper = {1: "71.5", 8: "72.7", 16: "72.8"}
    specs = [row("none (Voting@32)", get(32), "71.0")]
    specs += [row(f"k_meta {m}", get(32, "guided", m), paper.get(m, ""), "none (Voting@32)",
                  random=evaluation.mean(means(get(32, "random", m)).values())) for m in (1, 2, 4, 8, 16, 24)]
    write("k_meta", finish([*specs, row("undamaged judge, Voting@8", over_seeds(seeds, "undamaged/voting", voting_credit(8)))]))


def methods(seeds):
    """Table 2: what the GRM is compared with."""
    get = functools.partial(over_seeds, seeds)
    specs = [
        row("LLM-as-a-Judge, greedy", get("judge/eval", greedy_credit), "67.8", "GRM, greedy"),
        row("Bradley-Terry (BTRM)", get("btrm", greedy_credit), "68.6", "GRM, greedy"),
        row("CLoud, greedy", get("cloud/greedy", greedy_credit), "68.7", "GRM, greedy"),
        row("PairRM", get("pairrm", greedy_credit), "69.0", "GRM, greedy"),
        row("GRM-RFT, greedy", get("grm/after_rft/greedy", greedy_credit), "68.8", "GRM, greedy"),
        row("GRM, greedy", get("grm/greedy", greedy_credit), "69.9"),
        row("LLM-as-a-Judge, Voting@8", get("judge/voting", voting_credit(8)), "67.6", "GRM, Voting@8"),
        row("LLM-as-a-Judge, TokenProb@8", get("judge/tokenprob", voting_credit(8)), "68.1", "LLM-as-a-Judge, Voting@8"),
        row("CLoud @1", get("cloud", voting_credit(1)), "68.5"),
        row("CLoud @8", get("cloud", voting_credit(8)), "68.8", "CLoud @1"),
        row("GRM, Voting@8", get("grm/8/voting", voting_credit(8)), "70.6", "GRM, greedy"),
        row("GRM, Voting@32", get("grm/voting", voting_credit(32)), "71.0", "GRM, Voting@8"),
        row("GRM, guided @32", get("grm/voting", voting_credit(32, "guided")), "72.8", "GRM, Voting@32"),
        ceiling(seeds), row("undamaged judge, Voting@8", get("undamaged/voting", voting_credit(8)))]
    write("methods", finish(specs))


def ablations(seeds):
    """Table 4: RFT without one of its parts (greedy, before RL), and the whole recipe without principles."""
    get = functools.partial(over_seeds, seeds)

    def part(name):
        return get(f"ablations/{name}/greedy", greedy_credit)
    specs = [
        row("GRM-RFT", get("grm/after_rft/greedy", greedy_credit), "68.8"),
        row("RFT without hinted sampling (1)", part("no-hinted"), "68.0", "GRM-RFT"),
        row("RFT without non-hinted sampling (2)", part("no-non-hinted"), "67.4", "GRM-RFT"),
        row("RFT without rejective sampling (1 and 2)", get("general/after_rft/greedy", greedy_credit), "66.1", "GRM-RFT"),
        row("RFT without general data", part("no-general"), "63.3", "GRM-RFT"),
        row("GRM", get("grm/greedy", greedy_credit), "69.9"),
        row("GRM without rejective sampling", get("general/greedy", greedy_credit), "68.7", "GRM"),
        row("GRM without principles", part("no-principles"), "67.5", "GRM"),
        row("GRM, Voting@8", get("grm/8/voting", voting_credit(8)), "70.6"),
        row("GRM without principles, Voting@8", get("ablations/no-principles/voting", voting_credit(8)), "68.0", "GRM, Voting@8"),
        ceiling(seeds)]
    write("ablations", finish(specs))


def kl(seeds):
    """App. C.1: the KL coefficient, and whether one domain falls behind the others. The paper reports a tendency, no numbers."""
    names = {"0": "kl/0/greedy", "0.02": "grm/greedy", "0.08": "kl/0.08/greedy", "0.3": "kl/0.3/greedy"}
    specs = [row(f"beta {beta}", over_seeds(seeds, name, greedy_credit), "collapse on some subsets" if beta == "0" else "",
                 None if beta == "0.02" else "beta 0.02", gain=-1 if beta == "0" else None) for beta, name in names.items()]
    write("kl", finish([*specs, ceiling(seeds)]))


def heldout_safety(seeds):
    """A domain held out of training (safety): the GRM and the meta RM. The paper's nearest: Reward Bench without MATH data, Table 15."""
    get = functools.partial(over_seeds, seeds, keep=in_domain("safety"))
    specs = [row("base, greedy", get("base/greedy", greedy_credit)),
             row("GRM, greedy", get("grm/greedy", greedy_credit), "86.0"),
             row("GRM without safety, greedy", get("heldout/greedy", greedy_credit), "83.0", "GRM, greedy"),
             row("GRM, Voting@32", get("heldout/reference", voting_credit(32))),
             row("GRM, guided @32", get("heldout/reference", voting_credit(32, "guided")), "", "GRM, Voting@32"),
             row("GRM without safety, Voting@32", get("heldout/voting", voting_credit(32)), "", "GRM, Voting@32"),
             row("GRM and meta RM without safety, guided @32", get("heldout/voting", voting_credit(32, "guided")), "",
                 "GRM without safety, Voting@32"),
             ceiling(seeds, in_domain("safety"))]
    write("heldout_safety", finish(specs))


# ----- why guidance gains little here -----

def margin(scores):
    """How clearly a judgment prefers its first choice: highest minus second highest score."""
    first, second = sorted(scores, reverse=True)[:2]
    return first - second


def guidance(seeds):
    """What the judgments are, and the judge's own margin beside the meta RM as a guide."""
    rows = []
    for seed in seeds:
        record = load(seed, "grm/voting")
        if not record:
            continue
        samples = evaluation.graded(record["rows"])
        parsed = [(s["scores"], z, r["rewards"]) for r in samples for s, z in zip(r["samples"], r["meta_logits"], strict=True)
                  if s["scores"]]
        labels = [is_correct(scores, rewards) for scores, _, rewards in parsed]
        tied = [not y and scores[rewards.index(max(rewards))] == max(scores)
                for (scores, _, rewards), y in zip(parsed, labels, strict=True)]
        by_margin = [{**r, "meta_logits": [s["scores"] and margin(s["scores"]) for s in r["samples"]]} for r in samples]
        rows.append({"seed": seed, "judgments": len(parsed), "correct": evaluation.mean(labels), "tied": evaluation.mean(tied),
                     "wrong": 1 - evaluation.mean(labels) - evaluation.mean(tied),
                     "auc_meta_rm": roc_auc([z for _, z, _ in parsed], labels),
                     "auc_margin": roc_auc([margin(scores) for scores, _, _ in parsed], labels),
                     **{f"{name}@{k}": evaluation.mean(item_credit(r, k, method) for r in used) for k in (8, 32)
                        for name, method, used in (("vote", "vote", samples), ("guided", "guided", samples),
                                                   ("by_margin", "guided", by_margin), ("random", "random", samples))},
                     "commit": record["commit"]})
    write("guidance", rows)


def meta_rm_tries(seeds):
    """The meta RMs that were tried, on the first seed."""
    rows = []
    for name, what in [*((f"tries/{name}", what) for name, (_, what) in TRIES.items()),
                       ("grm/meta_rm", "6,000 items, two epochs of 16: the meta RM of the tables")]:
        record = load(seeds[0], name)
        if record:
            held = record["report"]["held_out"]
            rows.append({"run": what, "updates": record["updates"], **{f"auc_{source}": held[source]["auc"] for source in ("grm", "rft")},
                         "seed": seeds[0], "commit": record["commit"]})
    write("meta_rm_tries", rows)


def meta_rm(seeds):
    """Held-out reports of the meta RMs."""
    reports = [(seed, kind, load(seed, f"{kind}/meta_rm")) for seed in seeds for kind in ("grm", "heldout")]
    write("meta_rm", [{"seed": seed, "trained": kind, "part": part, **numbers, "judgments": record["report"]["judgments"],
                       "unparsed": record["report"]["unparsed"], "commit": record["commit"]}
                      for seed, kind, record in reports if record for part, numbers in record["report"]["held_out"].items()])


def domains(seeds):
    """Every measure of eval.py by domain, and voting by domain."""
    rows = []
    for folder, label in {**JUDGES, "undamaged": "undamaged judge"}.items():
        for seed in seeds:
            record = load(seed, f"{folder}/greedy")
            if record:
                rows += [{**found, "seed": seed, "commit": record["commit"]}
                         for found in evaluation.main_table({label: record["rows"]})]
    voted = [("base/32/voting", "base", "vote", k) for k in (1, 8, 32)] + [("grm/voting", "GRM", "vote", k) for k in (1, 8, 32)]
    for folder, label, method, k in [*voted, ("grm/voting", "GRM", "guided", 32)]:
        for seed in seeds:
            record = load(seed, folder)
            samples = record["rows"] if record else []
            for domain, part in ({"all": samples} | evaluation.by_domain(samples) if samples else {}).items():
                values = [item_credit(r, k, method) for r in evaluation.graded(part)]
                low, high = evaluation.bootstrap_ci(values)
                rows.append({"run": f"{label}, {method} @{k}", "domain": domain, "items": len(values), "seed": seed,
                             "accuracy": evaluation.mean(values), "low": low, "high": high, "commit": record["commit"]})
    write("domains", rows)


def rl_training(seeds):
    """The course of RL training."""
    rows = []
    for kind in ("grm", "general", "straight"):
        for seed in seeds:
            record = load(seed, f"{kind}/rl")
            columns = record["training"] if record else {}
            rows += [{"run": kind, "seed": seed, **dict(zip(columns, values, strict=True)), "commit": record["commit"]}
                     for values in zip(*columns.values(), strict=True)]
    if rows:
        evaluation.write_csv(Path("results/rl_training.csv"), rows)


TABLES = [training, scaling, k_meta, methods, ablations, kl, heldout_safety, guidance, meta_rm_tries, meta_rm, domains, rl_training]


def make_tables(seeds, names=None):
    """Write the tables, or those named, to results/ from the records in results/runs."""
    load.cache_clear()
    over_seeds.cache_clear()
    for table in TABLES:
        if names is None or table.__name__ in names:
            table(tuple(seeds))
