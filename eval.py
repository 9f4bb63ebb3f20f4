r"""How good is a reward model? Accuracy with intervals, biases, and the curves of inference-time scaling (paper §5).

Judges a test set greedily (the paper's default, temperature 0), each item in two opposite response orders, or compares
what earlier runs wrote, samples or results of benchmarks:

    python eval.py --model toy_world/medium --output runs/toy/eval_base      # judge greedily, print the table
    python eval.py --runs base=runs/toy/eval_base grm=runs/toy/eval_rl voting=runs/toy/voting --output runs/toy/tables
    python eval.py --bench rewardbench,ppe,rmb:path/to/checkout,realmistake --model <hub id> --template full --output runs/grm
    python eval.py --runs grm=runs/grm other=runs/other/results.json --output runs/table

Rules, stated because they move numbers:
  - accuracy without voting is that of one judgment per item, in one random response order;
  - an item without a valid judgment is wrong (`lenient`: a random pick instead);
  - a tie of t responses at the top counts 1/t, the expectation of the paper's shuffle-then-argmax (`credit`, infer_scale.py);
  - n = 1 items are scored 1-10 and enter ROC-AUC only;
  - Voting@k is the mean over the disjoint blocks of k among an item's samples;
  - intervals: 95 % bootstrap over items (over prompts where prompts repeat); comparisons are paired by item.
The rules of each benchmark are in benches.py.
"""
import argparse
import csv
import functools
import io
from collections import defaultdict
from pathlib import Path

import numpy as np

from grm import TOY_BASE, add_judge_flags
from infer_scale import TIES, chance, default_k_meta, item_credits, judge_set, mean, pick_best, powers_of_two  # noqa: F401
from meta_rm import roc_auc
from plumbing import served
from plumbing.data import DATA_HELP, load_examples
from plumbing.runs import UserError, command_line, git_commit, read_flags, read_rows, start_accelerator, write_json, write_text

BENCHMARKS = ("rewardbench", "ppe_preference", "ppe_correctness", "rmb")


# ----- metrics -----

def bootstrap_ci(values, level=0.95, seed=0, clusters=None, draws=2000, weights=None):
    """(low, high): percentile bootstrap interval of the mean of `values`, resampling whole clusters where given.

    Args: values: (N,) one number per item.  clusters: (N,) labels, e.g. the prompt where prompts repeat.
          weights: (N,) of a weighted mean, e.g. of a benchmark's sections.
    """
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        raise ValueError("bootstrap_ci needs at least one value")
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=float)
    labels = np.arange(len(values)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    sums, counts = np.bincount(labels, weights=weights * values), np.bincount(labels, weights=weights)  # (C,) per cluster
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, draws, 200):
        picked = rng.integers(len(sums), size=(min(200, draws - start), len(sums)))                # (draws, C)
        means.append(sums[picked].sum(1) / counts[picked].sum(1))
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def paired_ci(a, b, level=0.95, seed=0, clusters=None):
    """(low, high) of mean(b - a) over the same items in the same order; above 0 means that b is better."""
    if len(a) != len(b):
        raise ValueError(f"paired_ci needs the same items: {len(a)} against {len(b)}")
    return bootstrap_ci(np.asarray(b, dtype=float) - np.asarray(a, dtype=float), level, seed, clusters)


def overall(benchmarks):
    """The paper's Overall: the mean of Reward Bench, PPE Preference, PPE Correctness and RMB (ReaLMistake stands apart).

    >>> round(overall({"rewardbench": 86.0, "ppe_preference": 64.7, "ppe_correctness": 59.8, "rmb": 69.0}), 3)
    69.875
    """
    missing = [name for name in BENCHMARKS if name not in benchmarks]
    if missing:
        raise ValueError(f"Overall needs all four benchmarks; {missing[0]} is missing")
    return sum(benchmarks[name] for name in BENCHMARKS) / len(BENCHMARKS)


def average_rank(table):
    """{run: mean of its ranks over the benchmarks}; 1 is the best, equal scores share the mean of their ranks (Table 2).

    table: {run: {benchmark: score}}, the same benchmarks for every run.
    >>> average_rank({"a": {"x": 0.9, "y": 0.5}, "b": {"x": 0.8, "y": 0.5}})
    {'a': 1.25, 'b': 1.75}
    """
    def rank(value, column):
        return 1 + sum(v > value for v in column) + (column.count(value) - 1) / 2
    columns = {name: [scores[name] for scores in table.values()] for name in next(iter(table.values()))}
    return {run: mean(rank(scores[name], columns[name]) for name in columns) for run, scores in table.items()}


# ----- one run: accuracy, parse rate, ties, position -----

def graded(rows):
    """Items that accuracy is defined on: n >= 2 with known rewards."""
    return [r for r in rows if r["n"] > 1 and r["rewards"]]


def single_judgments(rows):
    """The graded rows with their sample 0 only: one judgment in one random response order."""
    return [{**r, "samples": r["samples"][:1]} for r in graded(rows)]


def verdict(scores):
    """Index of the only best response, or None where the verdict is not clear (unparsed, or tied at the top)."""
    return scores.index(max(scores)) if scores and scores.count(max(scores)) == 1 else None


def report(rows):
    """Measures of single judgments. Accuracy, lenient, ties and AUC are those of sample 0 of each item; parse rate, position,
    length and tokens are over all samples of the run.

    first_position: share of clear verdicts for the response shown first, to compare with first_expected, the mean of 1/n.
    swap_consistency: share of items whose first two samples, where they saw opposite orders, both clearly name one response.
    longest: share of clear verdicts for the longest response, beside longest_wins, the accuracy of always picking it.
    position_bias, length_bias: how much more often a clear verdict names the first (the longest) response than chance (the
    truth) would, on the same items; a bias is there where the interval _low.._high leaves 0 out.
    auc_single: ROC-AUC of n = 1 items by `single_scores`, so an unparsed one loses all its comparisons.
    """
    alone = single_judgments(rows)
    credits, singles = list(item_credits(alone).values()), [r for r in rows if r["n"] == 1 and r["rewards"]]
    clear = [(r, s, verdict(s["scores"])) for r in graded(rows) for s in r["samples"] if verdict(s["scores"]) is not None]
    swapped = []
    for r in graded(rows):
        pair = r["samples"][:2]
        if len(pair) == 2 and pair[0]["permutation"] == pair[1]["permutation"][::-1]:
            swapped.append(verdict(pair[0]["scores"]) is not None and verdict(pair[0]["scores"]) == verdict(pair[1]["scores"]))
    samples = [s for r in rows for s in r["samples"]]
    low, high = bootstrap_ci(credits, clusters=clusters_of(alone)) if credits else (float("nan"), float("nan"))
    biases = {"position": [(s["permutation"][0] == best) - 1 / r["n"] for r, s, best in clear],
              "length": [is_longest(r, best) - is_longest(r, r["rewards"].index(max(r["rewards"]))) for r, _, best in clear]}
    found = {}
    for kind, excess in biases.items():
        labels = [r.get("cluster") or r.get("of", r["id"]) for r, _, _ in clear]
        ends = bootstrap_ci(excess, clusters=labels) if clear else (float("nan"), float("nan"))
        found |= {f"{kind}_bias": mean(excess), f"{kind}_bias_low": ends[0], f"{kind}_bias_high": ends[1]}
    longest = [r["response_lengths"].index(max(r["response_lengths"])) for r in graded(rows)]
    return {
        "items": len(credits), "accuracy": mean(credits), "low": low, "high": high,
        "lenient": mean(item_credits(alone, ties="lenient").values()), "chance": chance(alone),
        "parse_rate": mean(s["scores"] is not None for s in samples),
        "tie_rate": mean(s["scores"] is not None and verdict(s["scores"]) is None for r in alone for s in r["samples"]),
        "first_position": mean(s["permutation"][0] == best for _, s, best in clear),
        "first_expected": mean(1 / r["n"] for r, _, _ in clear),
        "swap_consistency": mean(swapped),
        "longest": mean(is_longest(r, best) for r, _, best in clear),
        "longest_wins": mean(r["rewards"][i] == max(r["rewards"]) for r, i in zip(graded(rows), longest, strict=True)),
        "auc_single": roc_auc([single_scores(r)[0] for r in singles], [r["rewards"][0] for r in singles]),
        "tokens": mean(s["tokens"] for s in samples), **found,
    }


def is_longest(row, i):
    return int(row["response_lengths"][i] == max(row["response_lengths"]))


def clusters_of(rows):
    """Labels of the items of `item_credits` for the cluster bootstrap, or None where every prompt stands alone."""
    found = {r.get("of", r["id"]): r.get("cluster") for r in rows}
    return None if set(found.values()) <= {None} else [i if c is None else c for i, c in found.items()]


def by_domain(rows):
    groups = defaultdict(list)
    for row in rows:
        groups[row["domain"]].append(row)
    return dict(sorted(groups.items()))


# ----- curves over k, from one sample file -----

def curve(rows, label):
    """Rows (run, method, k, k_meta, accuracy, low, high, tokens per item, items) for every k in one file of samples."""
    items = graded(rows)
    if not items:
        raise UserError(f"{label}: no item with n >= 2 and rewards, so there is no accuracy")
    k_max = min(len(r["samples"]) for r in items)
    methods = ["vote"] + (["guided", "random"] if all("meta_logits" in r for r in items) else []) + ["oracle"]
    tokens = mean(s["tokens"] for r in items for s in r["samples"])
    table = []
    for method in methods:
        for k in powers_of_two(k_max):
            values = list(item_credits(items, k, method).values())
            low, high = bootstrap_ci(values, clusters=clusters_of(items))
            k_meta = default_k_meta(k) if method in ("guided", "random") else ""
            table.append({"run": label, "method": method, "k": k, "k_meta": k_meta, "accuracy": mean(values), "low": low,
                          "high": high, "tokens": tokens * k * len(items) / len(values), "items": len(values)})
    return table


# ----- one benchmark (§5, App. D); its sections, weights and what makes it whole are in benches.py -----

def single_scores(row, k=1, method="vote"):
    """Score of a single response (n = 1) in each block of k.

    Choice: Eq. 14 divided by the number of valid judgments, because ROC-AUC compares items with each other; an item without
    any loses all its comparisons.
    """
    found = []
    for start in range(0, len(row["samples"]) - k + 1, k):
        valid = [j for j in range(start, start + k) if row["samples"][j]["scores"]]
        if method == "guided":
            valid = sorted(valid, key=lambda j: -row["meta_logits"][j])[:default_k_meta(k)]
        found.append(mean(row["samples"][j]["scores"][0] for j in valid) if valid else
                     float("-inf") if row["rewards"][0] else float("inf"))
    return found


def auc_ci(scores, labels, clusters=None, draws=200, seed=0):
    """(ROC-AUC, mean over the blocks; low, high), bootstrap over items or clusters; Nones where a class is missing.

    Args: scores (N, blocks); labels (N,), 1 = no error: a higher score is better.
    """
    columns, labels = np.asarray(scores, dtype=float).T, np.asarray(labels)
    groups = np.arange(len(labels)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    rng, values = np.random.default_rng(seed), []
    for draw in range(draws + 1):  # draw 0 is the sample itself
        picked = range(len(members)) if draw == 0 else rng.integers(len(members), size=len(members))
        chosen = np.concatenate([members[g] for g in picked])
        if 0 < labels[chosen].sum() < len(chosen):
            values.append(mean(roc_auc(column[chosen], labels[chosen]) for column in columns))
        elif draw == 0:
            return None, None, None
    return values[0], *map(float, np.quantile(values, [0.025, 0.975]))


COLOURS = {"vote": "tab:blue", "guided": "tab:red", "random": "tab:gray", "oracle": "tab:green"}
NAMES = {"vote": "Voting@k", "guided": "guided by the meta RM, k/2 of k", "random": "random k/2 of k",
         "oracle": "oracle: any of k is right"}


def draw_curves(table, flat, path, caption):
    """PNG of accuracy against k (log2 axis, 95 % intervals), with the greedy judges and chance as horizontal lines.

    The accuracy axis is logit, so that errors near 0 can be told apart. What is below 1 or above 99.9 % is drawn there.
    """
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(7.5, 6))
    labels = sorted({row["run"] for row in table})

    def inside(values):  # fractions, kept off the two ends of a logit axis
        return np.clip(np.asarray(values, dtype=float), 0.01, 0.999)
    for number, label in enumerate(labels):
        for method in NAMES:
            points = [r for r in table if r["run"] == label and r["method"] == method]
            if points and not (method == "oracle" and len(labels) > 1):
                k, style = [p["k"] for p in points], ["-", "--", ":", "-."][number % 4]
                axes.plot(k, inside([p["accuracy"] for p in points]), style, marker="o", ms=4, color=COLOURS[method],
                          label=NAMES[method] + (f" ({label})" if len(labels) > 1 else ""))
                axes.fill_between(k, inside([p["low"] for p in points]), inside([p["high"] for p in points]),
                                  color=COLOURS[method], alpha=0.12, lw=0)
    greys = ["0.0", "0.2", "0.35", "0.45", "0.55"]
    for (name, value), grey in zip(flat.items(), greys * 9, strict=False):
        axes.axhline(inside(value), lw=1, ls=(0, (4, 3)), color=grey)
        axes.annotate(f"{name} {100 * value:.1f}", (1.0, inside(value)), xycoords=("axes fraction", "data"),
                      xytext=(4, -3), textcoords="offset points", fontsize=8, color=grey)
    axes.set_xscale("log", base=2)
    ticks = sorted({row["k"] for row in table})
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.set_xlabel("judgments sampled per item, k")
    axes.set_yscale("logit")
    shown = [y for y in (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98, 99, 99.5, 99.9)
             if axes.get_ylim()[0] <= y / 100 <= axes.get_ylim()[1]]
    axes.set_yticks([y / 100 for y in shown], [f"{y:g}" for y in shown])
    axes.set_yticks([], minor=True)
    axes.set_ylabel("accuracy, % (logit axis)")
    axes.grid(alpha=0.25)
    if table:
        axes.legend(fontsize=8, loc="best")
    figure.text(0.01, 0.01, caption, fontsize=6.5, color="0.35")
    figure.tight_layout(rect=(0, 0.05, 0.92, 1))
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150)
    plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def write_csv(path, rows):
    """Rows (dicts) as CSV, columns in the order of their first appearance."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_text(path, text.getvalue())


def print_table(rows, columns):
    """Fractions (0..1) as percent, the rest as it is; "-" for None."""
    percent = {"accuracy", "low", "high", "lenient", "chance", "parse_rate", "tie_rate", "first_position", "first_expected",
               "swap_consistency", "longest", "longest_wins", "auc_single", "both_orders",
               "difference_low", "difference_high", "random", "attack_wins"}

    def show(row, c):
        value = row.get(c, "")
        if value is None or isinstance(value, str):
            return value or "-"
        return f"{100 * value:.1f}" if c in percent else f"{value:.1f}" if isinstance(value, float) else str(value)
    widths = [max(len(c), *(len(show(r, c)) for r in rows)) for c in columns]
    for line in [columns] + [[show(r, c) for c in columns] for r in rows]:
        print("  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))))


SHORT = ["run", "domain", "items", "accuracy", "low", "high", "chance", "parse_rate", "tie_rate", "first_position",
         "first_expected", "swap_consistency", "auc_single", "tokens"]


def main_table(runs):
    """Per run and domain: `report`, "all" first."""
    return [{"run": name, "domain": domain, **report(part)} for name, rows in runs.items()
            for domain, part in {"all": rows, **by_domain(rows)}.items() if graded(part)]


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=TOY_BASE, help="judge to evaluate: hub id, folder or .gguf file")
    parser.add_argument("--data", default="toy", help=DATA_HELP)
    parser.add_argument("--bench", help="instead of --data: rewardbench,ppe,rmb,realmistake or some of these (ppe is "
                        "ppe_preference,ppe_correctness), each NAME, NAME@REVISION or NAME:PATH; a folder in --output each")
    parser.add_argument("--revision", help="commit of the hub's data set, where --bench names only one set")
    parser.add_argument("--split", default="test", help="split of the data set")
    parser.add_argument("--domain", help="only this domain")
    parser.add_argument("--output", default="runs/toy/eval", help="run folder; of --runs: folder of the tables and figure")
    parser.add_argument("--runs", nargs="+", metavar="NAME=FOLDER", help="compare runs of eval.py and infer_scale.py instead; of "
                        "benchmarks also result files, and folders of several (parts of one run may share a NAME)")
    parser.add_argument("--ties", default="expected", choices=TIES, help="tie at the top in a benchmark: 1/t, the paper's "
                        "shuffle, or wrong (other data: always 1/t)")
    parser.add_argument("--bon", choices=["list", "pairs"], help="items with n > 2: one list prompt (default, as the paper), or "
                        "the best response against each other one, all to be won (App. E.1.1)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (paper's default outside of voting)")
    parser.add_argument("--rating", default="1-10", help="1-10, or best for an LLM-as-a-Judge")
    parser.add_argument("--seed", type=int, default=0, help="seed of the response orders (and of sampling)")
    parser.add_argument("--limit", type=int, help="so many items: the first, of a named set evenly spaced; marked as partial")
    parser.add_argument("--chunk_size", type=int, default=256, help="items per chunk (the unit of work and of resuming)")
    parser.add_argument("--overwrite", action="store_true", help="discard the run in --output")
    add_judge_flags(parser)
    served.add_endpoint_flags(parser)
    args = served.check_endpoint(read_flags(parser))
    if args.revision and not args.bench:
        raise UserError("--revision goes with --bench; with --data give NAME@REVISION")
    if args.runs:  # compare what is there
        return compare_folders(args.runs, Path(args.output), args.ties)

    # 1. two judgments of every item, in opposite response orders
    accelerator = start_accelerator()
    load = functools.cache(lambda: served.load_judge(args, args.model, accelerator.device))  # once for all benchmarks

    def judge_both_ways(args, output):
        examples = load_examples(args.data, args.split, args.limit, skip_bad=args.skip_bad, domain=args.domain)
        return judge_set(args, output, examples, 2, accelerator, load, orders="opposite")[1]
    if args.bench:  # imported here, because benches.py measures with the functions above
        from extras.benches import compare_benches, folder_results, parse_benches
        for name, data in parse_benches(args.bench, args.revision).items():
            its = argparse.Namespace(**{**vars(args), "data": data, "bench": None, "revision": None})
            judge_both_ways(its, Path(args.output) / name)
        if accelerator.is_main_process:
            for r in compare_benches(folder_results(Path(args.output).name, args.output, args.ties), Path(args.output)):
                write_json(Path(args.output) / r["benchmark"] / "result.json", r)
        return
    output = Path(args.output)
    rows = judge_both_ways(args, output)

    # 2. the table
    if accelerator.is_main_process:
        if not graded(rows):
            raise UserError(f"{args.data}: no item with n >= 2 and rewards; python grm.py --data scores items without truth")
        table = main_table({output.name: rows})
        print_table(table, SHORT)
        if args.limit:
            print(f"partial run: --limit {args.limit}")
        write_csv(output / "table.csv", table)
        write_json(output / "summary.json", {"model": args.model, "data": args.data, "temperature": args.temperature,
                                             "partial": bool(args.limit), "commit": git_commit(), **table[0]})


def compare_folders(words, output, ties):
    """--runs NAME=FOLDER ...: benchmarks and result files go to benches.py, other sample files to `compare`."""
    from extras.benches import bench_of, compare_benches, folder_results
    named, runs = [(name, Path(folder)) for name, _, folder in (word.rpartition("=") for word in words)], {}
    named = [(name or folder.name, folder) for name, folder in named]
    for name, folder in named:
        if (folder / "samples.jsonl").exists():
            runs[name] = read_rows(folder / "samples.jsonl", fields=(
                "id", "domain", "n", "rewards", "response_lengths", "samples"))
        elif not folder.is_file() and not any(folder.glob("**/result*.json")) and not any(folder.glob("*/samples.jsonl")):
            raise UserError(f"--runs {name}={folder}: {folder}/samples.jsonl does not exist; run eval.py or infer_scale.py first")
    if len(runs) < len(named) or any(bench_of(rows) for rows in runs.values()):
        return compare_benches([r for name, folder in named for r in folder_results(name, folder, ties)], output)
    compare(runs, output, " ".join(["eval.py --runs", *words]))


def compare(runs, output, command):
    """Tables (text and CSV), differences paired by item against the first run, and the figure."""
    table = main_table(runs)
    if not table:
        raise UserError("--runs: no item with n >= 2 and rewards in them; judge again with --overwrite if a file was damaged")
    print_table([row for row in table if row["domain"] == "all"], SHORT[:1] + SHORT[2:])
    write_csv(output / "table.csv", table)
    first, *others = runs
    for name in others:
        credits = [item_credits(single_judgments(runs[n])) for n in (first, name)]
        common = [i for i in credits[0] if i in credits[1]]
        if not common:
            print(f"{name} - {first}: no item in both")
            continue
        shared = [r for r in graded(runs[first]) if r.get("of", r["id"]) in credits[1]]
        k = min(len(runs[n][0]["samples"]) for n in (first, name))  # 2 of a greedy judge: its two orders
        compared = {"single judgments": credits}
        if k > 2:
            compared[f"Voting@{k}"] = [item_credits(graded(runs[n]), k) for n in (first, name)]
        for what, pair in compared.items():
            columns = [[c[i] for i in common] for c in pair]
            gain, (low, high) = mean(columns[1]) - mean(columns[0]), paired_ci(*columns, clusters=clusters_of(shared))
            ends = f"[{100 * low:+.1f}, {100 * high:+.1f}]"
            print(f"{name} - {first}, {what}: {100 * gain:+.1f} {ends} points on {len(common)} items")
    points = [row for name, rows in runs.items() if len(rows[0]["samples"]) > 2 for row in curve(rows, name)]
    flat = {r["run"]: r["accuracy"] for r in table if r["domain"] == "all" and len(runs[r["run"]][0]["samples"]) <= 2}
    if points:
        print()
        print_table(points, ["run", "method", "k", "k_meta", "accuracy", "low", "high", "tokens"])
        write_csv(output / "curve.csv", points)
        flat["chance"] = table[0]["chance"]
    commit = git_commit()
    draw_curves(points, flat, output / "curve.png", f"{command[:170]}\ncommit {commit}  |  {table[0]['items']} items, "
                "95 % bootstrap intervals over items")
    print(f"\nwrote {output}/table.csv" + (f", {output}/curve.csv" if points else "") + f" and {output}/curve.png")


if __name__ == "__main__":
    main()
