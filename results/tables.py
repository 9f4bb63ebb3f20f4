"""The tables of results/README.md and the claims of README.md, from the records alone (records.py).

rows.txt names the rows. A row is one judge measured one way: one number per test item and seed. Its
interval is the 95 % bootstrap over items of their means over seeds. Its difference to another row
is paired by item, on the seeds that both have; the verdict compares its sign with the paper's.
"""
import functools
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eval import (
    auc_ci,
    bootstrap_ci,
    credit,
    graded,
    item_credit,
    mean,
    paired_ci,
    roc_auc,
    single_scores,
)
from plumbing.figures import write_csv
from plumbing.runs import ROOT, read_json, write_text
from results.demo import summary_lines
from results.records import load
from toy_world.world import DOMAINS

UNTRAINED = re.compile(r"(base|undamaged)/.*")  # judges that are the same for every training seed
EQUAL = 0.2  # points, our choice: up to here the paper's two numbers count as equal


# ----- results: one number per item and seed -----

class Result(NamedTuple):
    values: dict     # {seed: {item: number}}; for a ROC-AUC {item: scores, one per block}
    domains: dict    # {item: domain}
    labels: dict     # {item: first reward}, the truth of a single response
    commits: set
    untrained: bool


def measure(row, what):
    """What one row of samples.jsonl contributes.

    greedy, tokens: of its first judgment; #3: credit of judgment 3.  score, score@8: the score of a
    single response, by one judgment or per block of 8.  vote@8, guided@32/4 (k_meta 4; else half),
    random@8, oracle@8: mean credit over the disjoint blocks of k.  margin@8: as guided, but by the
    highest minus the second highest score of a judgment, which needs no training.
    """
    kind, k, k_meta = re.fullmatch(r"([a-z]+|#)@?(\d+)?/?(\d+)?", what).groups()
    if kind == "tokens":
        return row["samples"][0]["tokens"]
    if kind == "score":
        return tuple(single_scores(row, int(k)) if k else single_scores(row)[:1])
    if kind in ("greedy", "#"):
        return credit(row["samples"][int(k or 0)]["scores"], row["rewards"])
    if kind == "margin":
        best = [sorted(s["scores"] or [], reverse=True) for s in row["samples"]]
        row, kind = {**row, "meta_logits": [b[0] - b[1] if b else None for b in best]}, "guided"
    return item_credit(row, int(k), kind, k_meta and int(k_meta))


def chooser(items, seeds):
    """row -> whether it counts. items: n>1, n=1, n>2 (or the pairs made of such an item), a domain
    (n > 1), "all DOMAIN" (any n), or "DOMAIN of RUN": what that run judged of it."""
    domain, _, run = items.removeprefix("all ").partition(" of ")
    known = run and result(seeds, run, "greedy", domain).domains
    rules = {"n>1": lambda r: r["n"] > 1, "n=1": lambda r: r["n"] == 1,
             "n>2": lambda r: r["n"] > 2 or "of" in r}
    return rules.get(items, lambda r: r["domain"] == domain and (not run or r["id"] in known)
                     and (r["n"] > 1 or items.startswith("all ")))


@functools.cache
def result(seeds, run, what="greedy", items="n>1"):
    """The Result of a run on record, or None. The pairs of one best-of-N item (`of`) are one item:
    its credit is their product, all must be won. "RUN, seed 0" is the run of that seed only."""
    values, domains, labels, commits = {}, {}, {}, set()
    run, _, only = run.partition(", seed ")
    seeds = tuple(s for s in seeds if only in ("", str(s)))
    for seed in seeds:
        record = load(seed, run)
        counts = record and chooser(items, seeds)
        rows = [r for r in record["rows"] if r["rewards"] and counts(r)] if record else []
        parts = defaultdict(list)
        for r in rows:
            parts[r.get("of", r["id"])].append(measure(r, what))
            domains[r.get("of", r["id"])] = r["domain"]
            labels[r["id"]] = r["rewards"][0]
        if rows:
            values[seed] = {i: v[0] if len(v) == 1 else math.prod(v) for i, v in parts.items()}
            commits.add(record["commit"])
    untrained = bool(UNTRAINED.fullmatch(run))
    return Result(values, domains, labels, commits, untrained) if values else None


def item_means(found, domain=None):
    """{item: mean over those of the seeds that have it}."""
    columns = list(found.values.values())
    return {i: mean(c[i] for c in columns if i in c)
            for i in dict.fromkeys(i for c in columns for i in c)
            if domain in (None, found.domains[i])}


def scores_of(found, items, seeds=None):
    """(labels (N,), scores (N, seeds x blocks)) of single responses."""
    scores = [[x for s in seeds or found.values for x in found.values[s][i]] for i in items]
    return np.array([found.labels[i] for i in items]), np.array(scores, dtype=float)


def estimate(found, auc, draws=1000):
    """(number, low, high) over all seeds; without draws only the number counts."""
    if auc:
        labels, scores = scores_of(found, found.labels)
        return auc_ci(scores, labels, draws=draws)
    values = list(item_means(found).values())
    return mean(values), *(bootstrap_ci(values) if draws else ())


def by_seed(found, auc):
    """The number of each seed by itself."""
    if not auc:
        return [mean(values.values()) for values in found.values.values()]
    labels, _ = scores_of(found, found.labels)
    return [auc_ci(scores_of(found, found.labels, [s])[1], labels, draws=0)[0]
            for s in found.values]


# ----- rows: paired difference and verdict -----

def matched(a, b):
    """Two results on the seeds that both have, so that no seed's luck stands on one side only. A
    judge that was never trained is compared with all seeds of the other."""
    common = [seed for seed in a.values if seed in b.values]
    if a.untrained or b.untrained or not common:
        return a, b
    return tuple(r._replace(values={seed: r.values[seed] for seed in common}) for r in (a, b))


def difference(a, b, auc):
    """(low, high) of b - a, the two means over seeds, on the same items."""
    if not auc:
        x, y = item_means(a), item_means(b)
        common = [i for i in x if i in y]
        return paired_ci([x[i] for i in common], [y[i] for i in common])
    common = [i for i in a.labels if i in b.labels]
    (labels, x), (_, y) = scores_of(a, common), scores_of(b, common)
    if len(set(labels)) < 2:  # no area under a curve, however often items are drawn
        return math.nan, math.nan
    rng, gains = np.random.default_rng(0), []
    while len(gains) < 1000:
        drawn = rng.integers(len(labels), size=len(labels))
        if 0 < labels[drawn].sum() < len(labels):
            before, after = (mean(roc_auc(c[drawn], labels[drawn]) for c in s.T) for s in (x, y))
            gains.append(after - before)
    return tuple(map(float, np.quantile(gains, [0.025, 0.975])))


def verdict(gain, ends, each):
    """agrees, differs or unclear; "" where the paper does not compare, or one of them did not run.

    gain: the paper's difference, points.  ends: our interval.  each: our difference of every seed.
    unclear: the interval holds 0, the seeds differ in sign, or there is one seed only (intervals
    resample items, and two trainings differ by more). Equal in the paper: 0 in the interval agrees.
    """
    if gain is None or ends is None:
        return ""
    if len(each) < 2:
        return "unclear"
    holds_zero = ends[0] <= 0 <= ends[1]
    if round(abs(gain), 2) <= EQUAL:
        return "agrees" if holds_zero else "differs"
    if holds_zero or min(each) < 0 < max(each):
        return "unclear"
    return "agrees" if (ends[0] > 0) == (gain > 0) else "differs"


def number(paper):
    """The paper's number; of two with "/" between, their mean; None of a text."""
    try:
        return mean(float(x) for x in paper.split("/"))
    except ValueError:
        return None


def finish(seeds, specs, flops=False):
    """Rows of one table, as its CSV file holds them. The number is called accuracy, auc (ROC-AUC of
    single responses) or tokens; fractions but for tokens.  flops: with the cost of an item."""
    specs = [(s + [""] * 6)[:6] for s in specs]  # label, run, measure, paper, against, gain
    papers, found, rows = {}, {}, []
    for label, run, what, paper, *_ in specs:
        kind, _, items = what.partition(" [")
        papers[label] = number(paper)
        found[label] = result(seeds, run, kind, items.rstrip("]") or "n>1")
    for label, run, what, paper, against, gain in specs:
        value = {"tokens": "tokens", "score": "auc"}.get(re.match("[a-z]*", what)[0], "accuracy")
        auc, ours, theirs = value == "auc", found[label], found.get(against)
        row = {"row": label, "measure": what, value: "not run"} | dict.fromkeys(
            ("low", "high", "seeds", "items"), "")
        ends, each = None, []
        if ours:
            row[value], row["low"], row["high"] = estimate(ours, auc)
            scale = 1 if value == "tokens" else 100
            row["seeds"] = " ".join(f"{scale * x:.1f}" for x in by_seed(ours, auc))
            row["items"] = len(ours.labels) if auc else len(item_means(ours))
        row |= {"against": against} | dict.fromkeys(
            ("difference_low", "difference_high", "difference_seeds", "from", "to"), "")
        if ours and theirs:
            pair = matched(theirs, ours)
            before, after = (by_seed(r, auc) for r in pair)
            count = max(len(before), len(after))  # of an untrained judge one number serves all
            before, after = (x if len(x) == count else [mean(x)] * count for x in (before, after))
            each = [y - x for x, y in zip(before, after, strict=True)]
            row["difference_low"], row["difference_high"] = ends = difference(*pair, auc)
            row["difference_seeds"] = " ".join(map(str, max((r.values for r in pair), key=len)))
            row["from"], row["to"] = (estimate(r, auc, 0)[0] for r in pair)
        if not gain and None not in (papers[label], papers.get(against)):
            gain = papers[label] - papers[against]
        gain = float(str(gain).removeprefix("gain ")) if gain != "" else None
        row |= {"paper": paper, "verdict": verdict(gain, ends, each)}
        if value == "accuracy" and ours:
            parts = {d: item_means(ours, d).values() for d in DOMAINS}
            row |= {d: mean(values) if values else "" for d, values in parts.items()}
        if flops and not what.startswith("guided"):  # what the meta RM reads costs as well
            row["mflops"] = flops_per_item([load(s, run) for s in seeds], what) / 1e6
        row["commit"] = " ".join(sorted(ours.commits)) if ours else ""
        rows.append(row)
    return rows


def flops_per_item(records, what):
    """2 x parameters x k x (prompt + generated tokens), mean over items; attention's left out."""
    k = int(what.split("@")[1]) if "@" in what else 1

    def tokens(row):
        return mean(s["prompt_tokens"] + s["tokens"] for s in row["samples"])
    return 2 * k * mean(r["parameters"] * mean(tokens(row) for row in graded(r["rows"]))
                        for r in records if r and r["parameters"])


def read_rows_file():
    """{table: its rows as lists of fields} of rows.txt."""
    tables = {}
    for line in (ROOT / "results" / "rows.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            name = line[1:].split("]")[0]
            tables[name] = []
        elif line and not line.startswith("#"):
            tables[name].append([field.strip() for field in line.split("|")])
    return tables


def make_tables(seeds, names=None):
    """{name: rows} of the tables, or of those named; also written to results/NAME.csv."""
    load.cache_clear()
    result.cache_clear()
    made = {}
    for name, specs in read_rows_file().items():
        if names is None or name in names:
            made[name] = finish(tuple(seeds), specs, flops=name == "compute")
            write_csv(Path("results") / f"{name}.csv", made[name])
            print(f"wrote results/{name}.csv", flush=True)
    return made


# ----- README.md and results/README.md -----

VALUES = {"accuracy": "accuracy, %", "auc": "ROC-AUC, %", "tokens": "tokens"}  # column: heading
MORE = {"kl": {d: d for d in DOMAINS}, "compute": {"mflops": "MFLOPs an item"}}
CLAIMS = [  # what the paper claims, and the rows that put it to the test
    ("greedy: base < RFT", "training", ["GRM-RFT, greedy"]),
    ("greedy: RFT < GRM", "training", ["GRM, greedy"]),
    ("votes: 1 < 8 < 32", "scaling", ["vote @8", "vote @32 against vote @8"]),
    ("the meta RM improves 32 votes", "scaling", ["guided @32"]),
    ("RFT is worse without hints", "ablations", ["RFT without hinted sampling (1)"]),
    ("... without non-hinted judgments", "ablations", ["RFT without non-hinted sampling (2)"]),
    ("... without general data", "ablations", ["RFT without general data"]),
    ("RFT and RL are worse without principles", "ablations", ["GRM without principles"]),
    ("Bradley-Terry is worse than the GRM", "methods", ["Bradley-Terry (BTRM)"]),
    ("lists are as good as pairs", "list_or_pairs", ["GRM, pairs"]),
    ("a reference answer helps", "reference", ["GRM, reference shown"])]


def fill_readmes(tables):
    """Write what stands between <!-- claims -->, <!-- demo --> or <!-- table NAME --> and the end.

    demo: of results/demo.json, the summary.json of a whole demo.
    """
    demo = ["```", *summary_lines(read_json(ROOT / "results" / "demo.json")), "```"]
    lines = {"claims": claim_lines(tables), "demo": demo} | {
        f"table {name}": table_lines(name, rows) for name, rows in tables.items()}
    fill(lines)


def fill(blocks):
    """Write the lines of every block between its markers, where a README has them."""
    for path in (Path("README.md"), Path("results/README.md")):
        text = path.read_text(encoding="utf-8")
        for name, block in blocks.items():
            mark = f"<!-- {name} -->"
            whole = "\n".join([mark, *block, "<!-- end -->"])
            text = re.sub(f"{mark}.*?<!-- end -->", lambda _, w=whole: w, text, flags=re.S)
        write_text(path, text)


def markdown(head, rows):
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def percent(value, sign="", scale=100):
    return f"{scale * value:{sign}.1f}" if isinstance(value, float) else value


def end(value, scale):
    """An end of a difference's interval; with two decimals if one does not tell it from 0."""
    return f"{scale * value:+.2f}" if abs(scale * value) < 0.05 else percent(value, "+", scale)


def interval(row, scale=100):
    ends = row["difference_low"], row["difference_high"]
    return " to ".join(end(x, scale) for x in ends) if ends[0] != "" else ""


def claim_lines(tables):
    """The paper's numbers, ours on the seeds that both runs have, and our paired difference."""
    lines = []
    for claim, table, labels in CLAIMS:
        named = {r["row"]: r for r in tables[table]}
        rows = [named[label] for label in labels]
        first = named[rows[0]["against"]]
        ours = [rows[0]["from"], *[r["to"] for r in rows]]
        seeds = dict.fromkeys(str(len(r["difference_seeds"].split())) for r in rows)
        papers = [r["paper"] for r in (first, *rows)]
        lines.append([
            claim, " -> ".join(papers) if "" not in papers else "not compared",
            "not run" if "" in ours else " -> ".join(map(percent, ours)),
            "; ".join(map(interval, rows)), ", ".join(seeds),
            "; ".join(dict.fromkeys(r["verdict"] for r in rows if r["verdict"]))])
    return markdown(["claim", "paper", "here", "difference, points", "seeds", "verdict"], lines)


def table_lines(name, rows):
    """The table in Markdown; rows without a run on record are named below it."""
    value, lines, more = next(v for v in VALUES if v in rows[0]), [], MORE.get(name, {})
    scale, unit = (1, "tokens") if value == "tokens" else (100, "points")
    # the others are in the CSV file and the figure
    rows = [r for r in rows if not re.search(r"(vote|random)@(2|4|16)$|(guided|random)@1$",
                                             r["measure"])]
    for r in rows:
        ends = [percent(r[end], "", scale) for end in ("low", "high")]
        compared = interval(r, scale)
        compared += f" ({r['against']})" if compared else ""
        if r["commit"]:
            lines.append([r["row"], percent(r[value], "", scale), " - ".join(filter(None, ends)),
                          r["seeds"], compared, r["paper"], r["verdict"],
                          *[f"{r[c]:,.0f}" if c == "mflops" and c in r else percent(r.get(c, ""))
                            for c in more]])
    missing = "; ".join(r["row"] for r in rows if not r["commit"])
    table = markdown(["", VALUES[value], "95 % interval", "per seed", f"difference, {unit}",
                      "paper", "verdict", *more.values()], lines) if lines else []
    return table + ([""] * bool(lines) + [f"Not run yet: {missing}."] if missing else [])
