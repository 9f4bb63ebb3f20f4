r"""How good is a reward model? Accuracy with intervals, biases, and the curves over k (paper §5).

A reward model is good if it prefers what people, or checkers, prefer. So accuracy is the share of
items whose best response gets the highest reward. One number hides much: where do ties come from,
does the judge like a place or a length, how many judgments did not parse, would another test set
of the same kind say the same? Each has its own column.

Every rule of accuracy and ties is in this file, because such rules move numbers by many points:
  - Accuracy without voting is that of one judgment per item, in one random response order.
  - An item without a valid judgment is wrong (column `lenient`: a random pick instead).
  - A tie of t responses at the top counts 1/t, the expectation of the paper's rule: shuffle, then
    take the first of the best (App. D).
  - Items with n = 1 are scored 1-10 and enter ROC-AUC only, never accuracy.
  - Voting@k is the mean over the disjoint blocks of k among an item's samples.
  - Intervals: 95 % bootstrap over items, over prompts where prompts repeat. Comparisons are paired
    by item: both judges on the same items, so that hard items cancel.

    python eval.py --model toy_world/medium --output runs/base               # judge, print a table
    python eval.py --runs base=runs/base voting=runs/toy/voting --output runs/graded

The first form judges a test set greedily (the paper's default), each item in two opposite orders.
The second compares what earlier runs wrote: tables, paired differences, curves over k and their
controls. The paper's benchmarks, with rules of their own: python -m extras.benchmarks --help.
"""
import argparse
import math
import random
from collections import defaultdict
from pathlib import Path

import numpy as np

from grm import parse_scores
from infer_scale import add_set_flags, default_k_meta, judge_set, meta_vote, vote
from meta_rm import roc_auc
from plumbing import served
from plumbing.data import load_examples, tell_changes
from plumbing.figures import clamped_share, draw_curves, print_table, tell_clamped, write_csv
from plumbing.judge import JUDGE_HELP, default_judge, settle
from plumbing.runs import (
    UserError,
    command_line,
    git_commit,
    read_flags,
    read_rows,
    start_accelerator,
    write_json,
)

# ----- accuracy of one vote: ties, and what did not parse -----

TIES = ("expected", "shuffle", "strict")


def pick_best(scores, rng):
    """Index of the best response, a tie broken at random (paper, App. D: shuffle, then argmax).

    >>> pick_best([3, 9, 1], random.Random(0))
    1
    """
    return rng.choice([i for i, s in enumerate(scores) if s == max(scores)])


def credit(votes, rewards, ties="expected", key=""):
    """How right the votes are, 0..1. An item without a valid judgment (None) is wrong: 0.

    ties: what t > 1 responses that share the first place count. "shuffle": the paper's rule, drawn
    from the text `key`. "strict": a tie is wrong, as in Eq. 10. Choice: "expected", 1/t, the
    expectation of "shuffle" without its noise.
    >>> credit([20, 27], [0, 1]), credit([8, 8], [0, 1]), credit([8, 8], [0, 1], "strict")
    (1.0, 0.5, 0.0)
    """
    best = rewards.index(max(rewards))
    if votes is None or votes[best] < max(votes):
        return 0.0
    if ties == "shuffle":
        return float(pick_best(votes, random.Random(key)) == best)
    t = votes.count(votes[best])
    return {"expected": 1 / t, "strict": float(t == 1)}[ties]


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


# ----- from one file of samples to every k and every control -----

def block_credits(row, k, method="vote", k_meta=None, subsets=8, ties="expected"):
    """Credit of one row of samples.jsonl in each disjoint block of k among its samples.

    What is left over at the end is not used. method:
      "vote"    all k judgments (Eq. 14)
      "guided"  the k_meta with the highest meta logits (§4)
      "random"  the matched control: k_meta drawn blindly, mean over `subsets` draws. Guided voting
                must beat this one, because fewer votes alone change the accuracy.
      "oracle"  the best credit of any judgment alone: what picking *one* of k perfectly would give
    """
    scores = [s["scores"] for s in row["samples"]]
    if not 1 <= k <= len(scores):
        raise ValueError(f"k = {k}, but item {row['id']} has {len(scores)} samples")
    k_meta = k_meta or default_k_meta(k)
    values = []
    for start in range(0, len(scores) - k + 1, k):
        block, rule = scores[start:start + k], (row["rewards"], ties, f"{row['id']}/{start}")
        if method == "vote":
            values.append(credit(vote(block), *rule))
        elif method == "guided":
            logits = row["meta_logits"][start:start + k]
            values.append(credit(meta_vote(block, logits, k_meta), *rule))
        elif method == "random":
            rng = random.Random(f"{row['id']}/{start}/{k}/{k_meta}")
            usable = [s for s in block if s is not None]
            draws = [rng.sample(usable, min(k_meta, len(usable))) for _ in range(subsets)]
            values.append(mean(credit(vote(draw), *rule) for draw in draws))
        elif method == "oracle":
            values.append(max(credit(s, *rule) for s in block))
        else:
            raise ValueError(f"method {method!r}: choose vote, guided, random or oracle")
    return values


def item_credit(row, k, method="vote", k_meta=None, subsets=8):
    """One row's accuracy at k: the mean of `block_credits`."""
    return mean(block_credits(row, k, method, k_meta, subsets))


def item_credits(rows, k=1, method="vote", ties="expected", k_meta=None):
    """{item: credit, mean over the blocks of k}.

    Rows that are the pairs of one best-of-N item (`of`) must all be won.
    ties: a rule of `credit`; or "lenient": 1/t, and an item without a valid judgment counts as a
    random pick.
    """
    parts = defaultdict(list)
    for r in rows:
        rule = "expected" if ties == "lenient" else ties
        values = block_credits(r, k, method, k_meta, ties=rule)
        if ties == "lenient":
            for b in range(len(values)):
                if not any(s["scores"] for s in r["samples"][b * k:b * k + k]):
                    values[b] = 1 / r["n"]
        parts[r.get("of", r["id"])].append(values)
    return {item: mean(math.prod(block) for block in zip(*pairs, strict=True))
            for item, pairs in parts.items()}


def chance(rows):
    """Accuracy of random picks, averaged over the items: 1/n, or the product over pairs."""
    blank = [{**r, "samples": [{"scores": None}]} for r in rows]
    return mean(item_credits(blank, ties="lenient").values())


def powers_of_two(k):
    """1, 2, 4, ... up to k, and k itself: each step of a curve doubles the compute."""
    return sorted({2 ** i for i in range(k.bit_length()) if 2 ** i <= k} | {k})


def single_scores(row, k=1, method="vote"):
    """Score of a single response (n = 1) in each block of k, for ROC-AUC.

    Choice: Eq. 14 divided by the number of valid judgments, because ROC-AUC compares items with
    each other. An item without any loses all its comparisons.
    """
    found = []
    for start in range(0, len(row["samples"]) - k + 1, k):
        valid = [j for j in range(start, start + k) if row["samples"][j]["scores"]]
        if method == "guided":
            best_first = sorted(valid, key=lambda j: -row["meta_logits"][j])
            valid = best_first[:default_k_meta(k)]
        loses = float("-inf") if row["rewards"][0] else float("inf")
        found.append(mean(row["samples"][j]["scores"][0] for j in valid) if valid else loses)
    return found


# ----- intervals and averages -----

# A difference of two points on 500 items can be luck. The bootstrap asks: had the test set been
# drawn again from items like these, how far would the mean have moved?
def bootstrap_ci(values, level=0.95, seed=0, clusters=None, draws=2000, weights=None):
    """(low, high): percentile bootstrap interval of the mean of `values`.

    Args: values: (N,) one number per item.
          clusters: (N,) labels, drawn as a whole, e.g. the prompt where prompts repeat.
          weights: (N,) of a weighted mean, e.g. of a benchmark's sections.
    """
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        raise ValueError("bootstrap_ci needs at least one value")
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    labels = (np.arange(len(values)) if clusters is None
              else np.unique(clusters, return_inverse=True)[1])
    sums = np.bincount(labels, weights=weights * values)                     # (C,) per cluster
    counts = np.bincount(labels, weights=weights)                            # (C,)
    rng, means = np.random.default_rng(seed), []
    for start in range(0, draws, 200):
        picked = rng.integers(len(sums), size=(min(200, draws - start), len(sums)))  # (draws, C)
        means.append(sums[picked].sum(1) / counts[picked].sum(1))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def paired_ci(a, b, level=0.95, seed=0, clusters=None):
    """(low, high) of mean(b - a) over the same items in the same order; above 0: b is better."""
    if len(a) != len(b):
        raise ValueError(f"paired_ci needs the same items: {len(a)} against {len(b)}")
    gains = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    return bootstrap_ci(gains, level, seed, clusters)


def auc_ci(scores, labels, clusters=None, draws=200, seed=0):
    """(ROC-AUC, mean over the blocks; low, high); Nones where a class is missing.

    Args: scores (N, blocks); labels (N,), 1 = no error: a higher score is better.
    """
    columns, labels = np.asarray(scores, dtype=float).T, np.asarray(labels)
    groups = (np.arange(len(labels)) if clusters is None
              else np.unique(clusters, return_inverse=True)[1])
    ends = np.cumsum(np.bincount(groups))[:-1]
    members = np.split(np.argsort(groups, kind="stable"), ends)
    rng, values = np.random.default_rng(seed), []
    for draw in range(draws + 1):  # draw 0 is the sample itself
        picked = rng.integers(len(members), size=len(members)) if draw else range(len(members))
        chosen = np.concatenate([members[g] for g in picked])
        if 0 < labels[chosen].sum() < len(chosen):
            values.append(mean(roc_auc(column[chosen], labels[chosen]) for column in columns))
        elif draw == 0:
            return None, None, None
    return values[0], *map(float, np.quantile(values, [0.025, 0.975]))


BENCHMARKS = ("rewardbench", "ppe_preference", "ppe_correctness", "rmb")


def overall(benchmarks):
    """The paper's Overall: the mean of Reward Bench, PPE Preference, PPE Correctness and RMB.

    >>> scores = {"rewardbench": 86.0, "ppe_preference": 64.7, "ppe_correctness": 59.8, "rmb": 69.0}
    >>> round(overall(scores), 3)
    69.875
    """
    missing = [name for name in BENCHMARKS if name not in benchmarks]
    if missing:
        raise ValueError(f"Overall needs all four benchmarks; {missing[0]} is missing")
    return sum(benchmarks[name] for name in BENCHMARKS) / len(BENCHMARKS)


# ----- one run: accuracy, parse rate, ties, and two biases -----

def graded(rows):
    """Items that accuracy is defined on: n >= 2 with known rewards."""
    return [r for r in rows if r["n"] > 1 and r["rewards"]]


def single_judgments(rows):
    """The graded rows with their sample 0 only: one judgment in one random response order.

    The second order of a greedy judge is for the biases. Two orders together would be a vote.
    """
    return [{**r, "samples": r["samples"][:1]} for r in graded(rows)]


def verdict(scores):
    """Index of the only best response; None where there is none (unparsed, or tied at the top).

    Biases are counted on clear verdicts only: a tie likes nobody.
    """
    return scores.index(max(scores)) if scores and scores.count(max(scores)) == 1 else None


def is_longest(row, i):
    return int(row["response_lengths"][i] == max(row["response_lengths"]))


def clusters_of(rows):
    """Labels for the cluster bootstrap, in the order of `item_credits`; None if no prompt repeats.
    """
    found = {r.get("of", r["id"]): r.get("cluster") for r in rows}
    if set(found.values()) <= {None}:
        return None
    return [i if c is None else c for i, c in found.items()]


def by_domain(rows):
    groups = defaultdict(list)
    for row in rows:
        groups[row["domain"]].append(row)
    return dict(sorted(groups.items()))


def report(rows):
    """Measures of single judgments; docs/metrics.md explains each.

    Accuracy, lenient, ties and AUC are those of sample 0 of each item; parse rate, places, lengths
    and tokens are over all samples of the run. Position bias: share of clear verdicts for the first
    place, minus 1/n. Length bias: the same for the longest response, minus how often it is truly
    best. A bias is real if its interval leaves 0 out.
    """
    items, alone = graded(rows), single_judgments(rows)
    samples = [s for r in rows for s in r["samples"]]
    credits = list(item_credits(alone).values())
    nothing = (float("nan"), float("nan"))
    low, high = bootstrap_ci(credits, clusters=clusters_of(alone)) if credits else nothing
    clear = [(r, s, verdict(s["scores"])) for r in items for s in r["samples"]
             if verdict(s["scores"]) is not None]
    # Position bias, asked twice. A judge that always likes the first place has 50 % accuracy on
    # pairs and looks harmless: so count whom it names first, and whether its verdict survives when
    # the same item is shown in the opposite order.
    pairs = [(r["samples"][0], r["samples"][1]) for r in items if len(r["samples"]) > 1
             and r["samples"][0]["permutation"] == r["samples"][1]["permutation"][::-1]]
    consistent = [verdict(a["scores"]) is not None and verdict(a["scores"]) == verdict(b["scores"])
                  for a, b in pairs]
    # Length bias: the longest response may really be better, so the truth is subtracted, not 1/n.
    biases = {"position": [(s["permutation"][0] == best) - 1 / r["n"] for r, s, best in clear],
              "length": [is_longest(r, best) - is_longest(r, r["rewards"].index(max(r["rewards"])))
                         for r, _, best in clear]}
    found = {}
    for kind, excess in biases.items():
        labels = [r.get("of", r["id"]) if r.get("cluster") is None else r["cluster"]
                  for r, _, _ in clear]
        ends = bootstrap_ci(excess, clusters=labels) if clear else nothing
        found |= {f"{kind}_bias": mean(excess), f"{kind}_bias_low": ends[0],
                  f"{kind}_bias_high": ends[1]}
    longest = [r["response_lengths"].index(max(r["response_lengths"])) for r in items]
    singles = [r for r in rows if r["n"] == 1 and r["rewards"]]
    return {
        "items": len(credits), "accuracy": mean(credits), "low": low, "high": high,
        "lenient": mean(item_credits(alone, ties="lenient").values()), "chance": chance(alone),
        "parse_rate": mean(s["scores"] is not None for s in samples),
        "clamped": clamped_share(rows, parse_scores),
        "tie_rate": mean(s["scores"] is not None and verdict(s["scores"]) is None
                         for r in alone for s in r["samples"]),
        "first_position": mean(s["permutation"][0] == best for _, s, best in clear),
        "first_expected": mean(1 / r["n"] for r, _, _ in clear),
        "swap_consistency": mean(consistent),
        "longest": mean(is_longest(r, best) for r, _, best in clear),
        "longest_wins": mean(r["rewards"][i] == max(r["rewards"])
                             for r, i in zip(items, longest, strict=True)),
        "auc_single": roc_auc([single_scores(r)[0] for r in singles],
                              [r["rewards"][0] for r in singles]),
        "tokens": mean(s["tokens"] for s in samples), **found,
    }


def curve(rows, label, k_meta=None):
    """Rows (run, method, k, k_meta, accuracy, low, high, tokens per item, items) for every k.

    tokens: what the judge wrote for one item, k judgments. What the meta RM reads is not in it.
    k_meta: judgments that vote at the largest k instead of half of them (Table 7).
    """
    items = graded(rows)
    if not items:
        raise UserError(f"{label}: no item with n >= 2 and rewards, so there is no accuracy")
    k_max = min(len(r["samples"]) for r in items)
    guided = all("meta_logits" in r for r in items)
    if guided and k_meta and k_meta > k_max:  # all would vote, under the name of guided voting
        raise UserError(f"--k_meta {k_meta}: {label} has {k_max} judgments of an item; lower it")
    tokens = mean(s["tokens"] for r in items for s in r["samples"])
    table = []
    for method in ["vote", *(["guided", "random"] if guided else []), "oracle"]:
        for k in powers_of_two(k_max):
            chosen = ""
            if method in ("guided", "random"):
                chosen = k_meta if k_meta and k == k_max else default_k_meta(k)
            values = list(item_credits(items, k, method, k_meta=chosen or None).values())
            low, high = bootstrap_ci(values, clusters=clusters_of(items))
            table.append({"run": label, "method": method, "k": k, "k_meta": chosen,
                          "accuracy": mean(values), "low": low, "high": high,
                          "tokens": tokens * k * len(items) / len(values), "items": len(values)})
    return table


SHORT = ["run", "domain", "items", "accuracy", "low", "high", "chance", "parse_rate", "tie_rate",
         "first_position", "first_expected", "swap_consistency", "auc_single", "tokens"]


def main_table(runs):
    """Per run and domain: `report`, "all" first.

    By domain, because a mean can hide a collapse on one of them (the paper saw that with a KL
    coefficient that was too small, App. C.1).
    """
    return [{"run": name, "domain": domain, **report(part)} for name, rows in runs.items()
            for domain, part in {"all": rows, **by_domain(rows)}.items() if graded(part)]


# ----- the program -----

def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help=JUDGE_HELP)
    parser.add_argument("--output", default="runs/toy/eval", help="run folder")
    parser.add_argument("--temperature", type=float, default=0.0,
                        help="0 is greedy (paper's default outside of voting)")
    parser.add_argument("--runs", nargs="+", metavar="NAME=FOLDER",
                        help="compare runs of eval.py and infer_scale.py instead of judging")
    parser.add_argument("--k_meta", type=int,
                        help="of --runs: judgments that vote at the largest k (paper: k/2)")
    add_set_flags(parser, chunk_size=256)
    args = served.check_endpoint(read_flags(parser))
    if not args.runs:
        args.model = args.model or default_judge()
        settle(args, args.model)
    return args


@command_line
def main():
    args = read_arguments()
    if args.runs:
        return compare(read_runs(args.runs), Path(args.output), args.k_meta)

    # 1. two judgments of every item, in opposite response orders; accuracy is that of the first
    accelerator, output = start_accelerator(args), Path(args.output)
    examples = load_examples(args.data, args.split, args.limit, skip_bad=args.skip_bad,
                             domain=args.domain)
    if not any(len(e.responses) > 1 and e.rewards for e in examples):
        raise UserError(f"{args.data}: no item with n >= 2 and rewards; python grm.py --data "
                        "scores unlabelled items")
    _, rows = judge_set(args, examples, 2, accelerator, orders="opposite")

    # 2. the table
    if accelerator.is_main_process:
        table = main_table({output.name: rows})
        print_table(table, SHORT)
        if args.limit:
            print(f"partial run: --limit {args.limit}")
        write_csv(output / "table.csv", table)
        write_json(output / "summary.json", {
            "model": args.model, "data": args.data, "temperature": args.temperature,
            "partial": bool(args.limit), "commit": git_commit(), **table[0]})


def read_runs(words):
    """{name: rows of samples.jsonl} of NAME=FOLDER (or FOLDER: its own name)."""
    runs = {}
    for word in words:
        name, _, folder = word.rpartition("=")
        path = Path(folder) / "samples.jsonl"
        if not path.exists():
            raise UserError(f"--runs {word}: {path} does not exist; run eval.py or infer_scale.py "
                            "first (folders of benchmarks: python -m extras.benchmarks --runs)")
        tell_changes(folder)
        name = name or Path(folder).name
        if name in runs:
            raise UserError(f"--runs {word}: another run has the name {name}; give it one of its "
                            "own, NAME=FOLDER")
        runs[name] = read_rows(path, fields=(
            "id", "domain", "n", "rewards", "response_lengths", "samples"))
        first = next(iter(runs))
        theirs = {r["id"]: r for r in graded(runs[first])}
        for r in graded(runs[name]):  # an id alone may stand for other texts
            for key in ("rewards", "response_lengths", "cluster"):
                if theirs.get(r["id"], r).get(key) != r.get(key):
                    raise UserError(f"--runs: item {r['id']} has other {key} in {name} than in "
                                    f"{first}; judge the same items again with --overwrite")
    return runs


def is_voted(rows):
    """Whether the samples are for votes, not the two opposite orders that this program judges."""
    pairs = [r["samples"] for r in rows if len(r["samples"]) == 2]
    return len(rows[0]["samples"]) > 1 and not (len(pairs) == len(rows) and all(
        a["permutation"] == b["permutation"][::-1] for a, b in pairs))


def compare(runs, output, k_meta=None):
    """Tables (text and CSV), differences paired by item against the first run, and the figure."""
    # 1. one row per run
    table = main_table(runs)
    if not table:
        raise UserError("--runs: no item with n >= 2 and rewards in them; judge again with "
                        "--overwrite if a file was damaged")
    print_table([row for row in table if row["domain"] == "all"], SHORT[:1] + SHORT[2:])
    for name, rows in runs.items():
        tell_clamped(name, clamped_share(rows, parse_scores))
    write_csv(output / "table.csv", table)

    # 2. differences on the same items. Two intervals that overlap may still hide a clear
    # difference: items are hard for both judges alike, and pairing takes that away.
    first, *others = runs
    for name in others:
        k = min(len(runs[n][0]["samples"]) for n in (first, name))
        measured = {"single judgments": [item_credits(single_judgments(runs[n]))
                                         for n in (first, name)]}
        if k > 1 and is_voted(runs[first]) and is_voted(runs[name]):
            measured[f"Voting@{k}"] = [item_credits(graded(runs[n]), k) for n in (first, name)]
        for what, (a, b) in measured.items():
            common = [i for i in a if i in b]
            if not common:
                print(f"{name} - {first}: no item in both")
                break
            shared = [r for r in graded(runs[first]) if r.get("of", r["id"]) in b]
            columns = [[credits[i] for i in common] for credits in (a, b)]
            gain = 100 * (mean(columns[1]) - mean(columns[0]))
            low, high = paired_ci(*columns, clusters=clusters_of(shared))
            print(f"{name} - {first}, {what}: {gain:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] "
                  f"points on {len(common)} items")

    # 3. curves over k, and the figure; one marker for a judge that was not sampled again and again
    points = [row for name, rows in runs.items() if is_voted(rows)
              for row in curve(rows, name, k_meta)]
    flat = {r["run"]: r["accuracy"] for r in table
            if r["domain"] == "all" and not is_voted(runs[r["run"]])}
    if points:
        print()
        print_table(points, ["run", "method", "k", "k_meta", "accuracy", "low", "high", "tokens"])
        write_csv(output / "curve.csv", points)
        flat["chance"] = table[0]["chance"]
    draw_curves(points, flat, output / "curve.png",
                f"{table[0]['items']} items; bands: 95 % intervals over items. Commit "
                f"{git_commit()}.")
    curves = f", {output}/curve.csv" if points else ""
    print(f"\nwrote {output}/table.csv{curves} and {output}/curve.png")


if __name__ == "__main__":
    main()
