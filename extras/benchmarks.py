r"""The paper's five benchmarks (§5, App. D): judged, scored by their own rules, and tabulated.

    rewardbench       mean of four sections; in a section the subsets weigh by REWARDBENCH of
                      plumbing/sets.py, not by their size
    ppe_preference    accuracy over all pairs (votes for a tie are dropped when they are read)
    ppe_correctness   mean of five sets
    rmb               mean of {helpfulness, harmlessness} x {pairwise, best-of-N}
    realmistake       single responses: ROC-AUC over all items; stands apart from Overall

    python -m extras.benchmarks --bench rewardbench,ppe,rmb:path/to/checkout,realmistake \
        --model <hub id> --template full --output runs/bench          # judges greedily, tabulates
    python -m extras.benchmarks --runs grm=runs/bench other=runs/other/results.json --output table

Accuracy benchmarks differ in nothing but the weights of their items, `item_weights`: one sum gives
section, subset and benchmark averages and their intervals. What is right, and what a tie counts, is
decided in eval.py.
"""
import argparse
import hashlib
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from eval import (
    BENCHMARKS,
    TIES,
    auc_ci,
    bootstrap_ci,
    item_credits,
    mean,
    overall,
    report,
    single_scores,
)
from infer_scale import default_k_meta, judge_set
from plumbing import runs, served
from plumbing.data import load_examples, tell_changes
from plumbing.figures import draw_curves, look_of, new_figure, save_figure, write_csv
from plumbing.judge import JUDGE_HELP, add_judge_flags, default_judge, in_words, settle
from plumbing.runs import UserError, git_commit, read_json, read_rows, write_json
from plumbing.sets import PPE, REALMISTAKE, REWARDBENCH

NAMES = {"rewardbench": "Reward Bench", "ppe_preference": "PPE Preference",
         "ppe_correctness": "PPE Correctness", "rmb": "RMB", "realmistake": "ReaLMistake (ROC-AUC)"}
SECTIONS = {"rewardbench": list(REWARDBENCH), "ppe_preference": ["ppe_preference"],
            "ppe_correctness": list(PPE),
            "rmb": [f"{goal}-{form}" for goal in ("helpfulness", "harmlessness")
                    for form in ("bon", "pairwise")],
            "realmistake": list(REALMISTAKE)}
# Rows of each whole set; of RMB at least so many (the copy that was counted lacked three files).
ROWS = {"rewardbench": 2985, "ppe_preference": 16038, "ppe_correctness": 2555, "rmb": 18329,
        "realmistake": 900}


# ----- which sets: --bench and --revision -----

def parse_benches(text, revision=None):
    """{name: what load_examples takes} of "rewardbench,rmb:PATH,ppe@REV"; "ppe" is both halves."""
    chosen = {}
    for word in text.split(","):
        name, _, path = word.partition(":")
        name = name.partition("@")[0]
        if name == "ppe" and path:
            raise UserError(f"--bench {word}: ppe is two sets; give ppe_preference:PATH,"
                            "ppe_correctness:PATH")
        if path and not Path(path).exists():  # said now, not after the benchmarks before it
            raise UserError(f"--bench {word}: {path} does not exist")
        for full in ("ppe_preference", "ppe_correctness") if name == "ppe" else (name,):
            if full not in NAMES:
                raise UserError(f"--bench {word}: choose from {', '.join(NAMES)} (or ppe), "
                                "NAME:PATH or NAME@REVISION")
            if full in chosen:
                raise UserError(f"--bench names {full} twice; give each benchmark once")
            chosen[full] = full + word[len(name):]
    if revision:
        if len(chosen) > 1 or not set(chosen.values()) <= set(NAMES):
            raise UserError("--revision is one commit of one benchmark on the hub; for several "
                            "give NAME@REVISION each")
        chosen = {name: f"{name}@{revision}" for name in chosen}
    return chosen


def bench_of(rows):
    """The benchmark of the rows of a samples.jsonl, told by their ids; None for other data."""
    names = {row["id"].partition("/")[0] for row in rows}
    return next(iter(names)) if len(names) == 1 and names <= set(NAMES) else None


# ----- the averages -----

def item_weights(name, items):
    """(N,) weights, sum 1: a benchmark's score is sum(weight * credit) over its items.

    Every section present counts the same. Within one, items count the same; in rewardbench a
    subset's items share the subset's weight, over the subsets present.
    Choice: a section that is not there is left out and the run is partial (the benchmark's own code
    counts it as 0).
    items: N rows of samples.jsonl.
    """
    if name == "rewardbench" and any(
            r.get("subset") not in REWARDBENCH.get(r["domain"], ()) for r in items):
        raise UserError("rewardbench: a row of samples.jsonl has no 'subset' of its section; judge "
                        "again with --overwrite")
    sections = Counter(r["domain"] for r in items)
    subsets = Counter((r["domain"], r.get("subset")) for r in items)
    weights = []
    for row in items:
        section, subset = row["domain"], row.get("subset")
        share = 1 / sections[section]
        if name == "rewardbench":
            present = sum(REWARDBENCH[section][s] for of, s in subsets if of == section)
            share = REWARDBENCH[section][subset] / present / subsets[section, subset]
        weights.append(share / len(sections))
    return weights


def parts_of(items):
    """{"sections": {section: places in items}, "subsets": {"section/subset": ...}}, sorted."""
    parts = {"sections": defaultdict(list), "subsets": defaultdict(list)}
    for i, r in enumerate(items):
        parts["sections"][r["domain"]].append(i)
        if r.get("subset"):
            parts["subsets"][f"{r['domain']}/{r['subset']}"].append(i)
    return {group: dict(sorted(found.items())) for group, found in parts.items()}


def partial(name, rows, settings):
    """Why this is not the whole benchmark: a list of reasons, empty if it is."""
    reasons = [f"--{flag} {settings[flag]}" for flag in ("limit", "domain") if settings.get(flag)]
    seen = {(r["domain"], r.get("subset")) for r in rows}
    missing = [s for s in SECTIONS[name] if s not in {section for section, _ in seen}]
    if name == "rewardbench":
        missing += [s for section, subsets in REWARDBENCH.items() for s in subsets
                    if (section, s) not in seen]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        reasons.append(f"without {', '.join(missing[:3])}{more}")
    # Ids number the rows of a set. A hundredth is allowed for what the loader drops (ties at the
    # end, two equal texts).
    numbers = {int(r["id"].split("/")[1].partition("#")[0]) for r in rows}
    count = len(numbers) if name in ("rewardbench", "realmistake") else 1 + max(numbers)
    if count < 0.99 * ROWS[name]:
        reasons.append(f"{count} of {ROWS[name]} rows")
    return reasons


def protocol(name, rows, settings, k, method, ties):
    """One line that says how a score came about; scores compare where these lines agree."""
    spec = settings.get("data") or name
    source = "local files" if ":" in spec else spec.partition("@")[2] or (
        "commits pinned in sets.py" if name == "ppe_correctness" else "no revision given")
    facts = [[r["id"], r["rewards"], r.get("cluster"), r["response_lengths"]] for r in rows]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    order = "one random order per item" if method == "first" else "a random order per judgment"
    how = {"first": "one judgment", "vote": f"Voting@{k}",
           "guided": f"Voting@{k} guided by a meta RM, k_meta {default_k_meta(k)}"}
    said = [NAMES[name], f"revision: {source}", f"{len(rows)} rows {digest}",
            in_words("template", settings.get("template")), f"rating {settings.get('rating')}"]
    if settings.get("no_principles"):
        said.append("without principles")
    if settings.get("use_reference"):
        said.append("with reference")
    said += [f"temperature {settings.get('temperature')}",
             f"max_new_tokens {settings.get('max_new_tokens')}", f"k {k}, {how[method]}",
             f"order: {order}, seed {settings.get('seed')}",
             "best-of-N: " + ("pairs with the best" if any("of" in r for r in rows)
                              else "one list"),
             f"ties: {ties}", "unparsed: " + (
                 "loses all its comparisons" if name == "realmistake" else "is wrong")]
    if settings.get("rating") != "best":
        said.append("scores clamped to 1-10")
    return "; ".join(said)


# ----- results -----

def bench_result(run, rows, settings, k=1, method="first", ties="expected", seconds=None):
    """One benchmark's result as a JSON object.

    Headline `score` with its interval, sections, subsets, pooled, the tie rules and `lenient`,
    parse rate, biases, costs, protocol.
    rows: a whole samples.jsonl.  settings: the flags that made it.
    method: "first" judgment of each item, "vote" or "guided".
    `credits` {item: (credit, weight, cluster)} of accuracy benchmarks is for paired differences and
    is not written.
    Choice: ReaLMistake's headline is the ROC-AUC over all its items (the paper names no average).
    """
    name, reasons = bench_of(rows), Counter(s["reason"] for r in rows for s in r["samples"])
    measures = {key: None if value != value else value for key, value in report(rows).items()
                if key in COLUMNS or "_bias_" in key}  # None for nan
    if method == "first":
        rows = [{**r, "samples": r["samples"][:1]} for r in rows]
    way = "vote" if method == "first" else method
    items = list({r.get("of", r["id"]): r for r in rows}.values())
    weights = np.array(item_weights(name, items))
    clusters = np.array([r.get("cluster") or r["id"] for r in items])
    if name == "realmistake":
        singles = np.array([single_scores(r, k, way) for r in items])            # (N, blocks of k)
        labels = np.array([r["rewards"][0] for r in items])
        parsed = np.flatnonzero(np.isfinite(singles).all(1))
        # the unparsed left out
        rules = {"lenient": auc_ci(singles[parsed], labels[parsed])[0] if len(parsed) else None}

        def measure(chosen):
            return auc_ci(singles[chosen], labels[chosen], clusters[chosen])
    else:
        credits = {rule: np.array(list(item_credits(rows, k, way, rule).values()))
                   for rule in (*TIES, "lenient")}
        rules = {rule: float(c @ weights) for rule, c in credits.items()}
        rules["pooled"] = float(credits[ties].mean())
        rules["credits"] = {r.get("of", r["id"]): v for r, v in zip(
            items, zip(credits[ties], weights, clusters), strict=True)}

        def measure(chosen):
            c, w = credits[ties][chosen], weights[chosen]
            return float(c @ w / w.sum()), *bootstrap_ci(c, clusters=clusters[chosen], weights=w)
    score, low, high = measure(range(len(items)))
    parts = {group: {part: dict(zip(("score", "low", "high", "items"),
                                    (*measure(chosen), len(chosen)), strict=True))
                     for part, chosen in found.items()}
             for group, found in parts_of(items).items()}
    means = [p["score"] for p in parts["sections"].values()]
    return {"run": run, "benchmark": name, "method": method, "k": k, "ties": ties,
            "items": len(items), "partial": partial(name, rows, settings),
            "score": score, "low": low, "high": high,
            "mean_of_sections": None if None in means else mean(means), **measures, **rules,
            "judgments": dict(reasons), "seconds_per_judgment": seconds,
            "model": settings.get("served_model") or settings.get("model"), "commit": git_commit(),
            "protocol": protocol(name, rows, settings, k, method, ties), **parts}


FIELDS = ("id", "domain", "n", "rewards", "response_lengths", "samples")  # of samples.jsonl


def folder_results(run, folder, ties):
    """Results of a folder: of each samples.jsonl in it or one level below, else its result files.

    Of samples: one judgment, or Voting@k for the k of Table 3 and for all of them. `folder` may
    also be a result file.
    """
    def named(method, k):
        return run + {"first": "", "vote": f", Voting@{k}", "guided": f", guided @{k}"}[method]
    folder, found = Path(folder), []
    paths = [folder / "samples.jsonl"]
    for path in paths if paths[0].exists() else sorted(folder.glob("*/samples.jsonl")):
        rows = read_rows(path, fields=FIELDS)
        settings = read_json(path.parent / "config.json")["args"]
        tell_changes(path.parent)
        if bench_of(rows) is None:
            raise UserError(f"{path} is not of one of the benchmarks {', '.join(NAMES)}; compare "
                            "it with eval.py --runs")
        timed = [m for m in read_rows(path.parent / "metrics.jsonl") if "judgments" in m]
        seconds = timed and sum(m["seconds"] for m in timed) / sum(m["judgments"] for m in timed)
        k_max = min(len(r["samples"]) for r in rows)
        ks = [k for k in sorted({1, 8, 32, k_max}) if k <= k_max]
        ways = [("vote", k) for k in ks] if k_max > 2 else [("first", 1)]
        if k_max > 2 and all("meta_logits" in r for r in rows):
            ways += [("guided", k) for k in ks if k > 1]
        found += [bench_result(named(m, k), rows, settings, k, m, ties, seconds or None)
                  for m, k in ways]
    if found:
        return found
    files = [folder] if folder.is_file() else sorted(folder.glob("results.json")) or sorted(
        [*folder.glob("result.json"), *folder.glob("*/result.json")])
    if not files:
        raise UserError(f"--runs {run}={folder}: no samples.jsonl and no results.json in it; judge "
                        "with --bench or with infer_scale.py first")
    for results in map(read_json, files):
        for r in results if isinstance(results, list) else [results]:
            kept = {k: v for k, v in r.items() if not k.startswith("difference")}
            found.append({**kept, "run": named(r["method"], r["k"])})
    return found


def average_rank(table):
    """{run: mean of its ranks over the benchmarks}; 1 is the best, equal scores share (Table 2).

    table: {run: {benchmark: score}}, the same benchmarks for every run.
    >>> average_rank({"a": {"x": 0.9, "y": 0.5}, "b": {"x": 0.8, "y": 0.5}})
    {'a': 1.25, 'b': 1.75}
    """
    def rank(value, column):
        return 1 + sum(v > value for v in column) + (column.count(value) - 1) / 2
    names = next(iter(table.values()))
    columns = {name: [scores[name] for scores in table.values()] for name in names}
    return {run: mean(rank(scores[name], columns[name]) for name in columns)
            for run, scores in table.items()}


# ----- tables over results -----

COLUMNS = {"difference": "paired difference to the first run", "expected": "ties 1/t",
           "shuffle": "ties shuffled (paper)", "strict": "ties wrong", "lenient": "lenient",
           "pooled": "pooled", "mean_of_sections": "mean of sections", "parse_rate": "parsed",
           "tie_rate": "tied", "position_bias": "position bias", "length_bias": "length bias",
           "swap_consistency": "swap consistency", "tokens": "tokens",
           "seconds_per_judgment": "seconds"}


def percent(result, key="score"):
    if result.get(key) is None:
        return "-"
    if key != "score":
        return f"{100 * result[key]:.1f}"
    score, low, high = (100 * result[end] for end in ("score", "low", "high"))
    return f"{score:.1f} ({low:.1f}-{high:.1f}){'*' if result.get('partial') else ''}"


def show(result, key):
    value = result.get(key)
    if value is None or isinstance(value, str):
        return value or "-"
    if key in ("tokens", "seconds_per_judgment"):
        return f"{value:.3g}"
    if key + "_low" in result:  # points; a bias or a difference is there if its interval excludes 0
        low, high = result[key + "_low"], result[key + "_high"]
        return f"{100 * value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{100 * value:.1f}"


def markdown(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def tables(results, summary):
    """The comparison as Markdown: benchmarks by run, sections, measures beside them, protocols.

    results: made by `bench_result`.  summary: {run: {"overall", "rank"}}, None where not defined.
    """
    names = [n for n in NAMES if any(r["benchmark"] == n for r in results)]
    at = {(r["run"], r["benchmark"]): r for r in results}

    def rank(run):
        found = summary[run]["rank"]
        return "-" if found is None else f"{found:.2f}"
    text = ["# Benchmarks\n\nPercent, 95 % bootstrap intervals over items (over prompts where they "
            "repeat). Overall: mean of the four accuracies, shown where all four are whole. "
            "Average rank: over those of the four that all runs have whole. Parsed, tied, biases, "
            "swap consistency and tokens are of single judgments.\n\n",
            markdown(["run", *(NAMES[n] for n in names), "Overall", "average rank"], [
                [run, *(percent(at.get((run, n), {})) for n in names),
                 percent(summary[run], "overall"), rank(run)]
                for run in dict.fromkeys(r["run"] for r in results)])]
    partly = dict.fromkeys(f"{r['benchmark']} {', '.join(r['partial'])}" for r in results
                           if r["partial"])
    if partly:
        text.append("\n\\* partial: " + "; ".join(partly) + "\n")
    for name in names:
        mine = [r for r in results if r["benchmark"] == name]
        sections = [s for s in SECTIONS[name] if any(s in r["sections"] for r in mine)]
        measures = [c for c in COLUMNS if any(r.get(c) is not None for r in mine)]
        text += [f"\n## {NAMES[name]}\n\n",
                 markdown(["run", "items", *sections], [
                     [r["run"], r["items"], *(percent(r["sections"].get(s, {})) for s in sections)]
                     for r in mine]), "\n",
                 markdown(["run", *(COLUMNS[c] for c in measures)],
                          [[r["run"], *(show(r, c) for c in measures)] for r in mine])]
    text.append("\n## Protocols\n\n")
    text += [f"- {r['run']}: {r['protocol']}; model {r['model']}; commit {r['commit']}\n"
             for r in results]
    return "".join(text)


def flat_rows(results, summary):
    """Rows of benchmarks.csv: per run and benchmark the whole (part "all"), sections, subsets."""
    rows = []
    for r in results:
        ours = {"run": r["run"], "benchmark": r["benchmark"]}
        flat = {k: v for k, v in r.items() if not isinstance(v, (dict, list))}
        rows.append({**ours, "part": "all", **flat, **summary[r["run"]],
                     "partial": "; ".join(r["partial"])})
        rows += [{**ours, "part": part, **values} for group in ("sections", "subsets")
                 for part, values in r[group].items()]
    return rows


def draw_runs(results, path):
    """One panel per benchmark, one point with its interval per run; a hollow point is partial."""
    order = list(dict.fromkeys(r["run"] for r in results))
    scored = [r for r in results if r["score"] is not None]
    names = [n for n in NAMES if any(r["benchmark"] == n for r in scored)]
    if not names:
        return
    figure, panels = new_figure((2 + 2.8 * len(names), 1.8 + 0.4 * len(order)),
                                columns=len(names), sharey=True)
    told = []
    for name, axes in zip(names, panels, strict=True):
        mine = [r for r in scored if r["benchmark"] == name]
        for r in mine:
            place, colour = order.index(r["run"]), look_of(r["run"]).colour
            axes.plot([100 * r["low"], 100 * r["high"]], [place, place], lw=2, color=colour)
            axes.plot(100 * r["score"], place, "o", ms=7, color=colour,
                      mfc="white" if r["partial"] else None)
        best = max(mine, key=lambda r: r["score"])
        told.append(f"{NAMES[name]}: {best['run']} {100 * best['score']:.1f}")
        axes.set_title(NAMES[name], fontsize=12)
        axes.set_xlabel("%")
    panels[0].set_yticks(range(len(order)), order)
    panels[0].set_ylim(len(order) - 0.5, -0.5)
    save_figure(figure, path, "Highest: " + "; ".join(told), "95 % intervals over items; "
                f"hollow: partial run. Commit {results[0]['commit']}.")


def compare(results, output):
    """Writes benchmarks.md, benchmarks.csv, results.json and figures.

    Returns the results with their differences to the first run, paired by item.
    """
    table = {r["run"]: {} for r in results}
    for r in results:
        if r["benchmark"] in table[r["run"]]:
            raise UserError(f"--runs: {r['benchmark']} of {r['run']} is given twice; give the runs "
                            "different names")
        table[r["run"]][r["benchmark"]] = r
    first = next(iter(table.values()))
    for r in results:
        base = first.get(r["benchmark"])
        both = [i for i in base.get("credits", {}) if i in r.get("credits", {})] if base else []
        if both and r is not base:
            gains = np.array([r["credits"][i][0] - base["credits"][i][0] for i in both])
            _, weights, clusters = zip(*(base["credits"][i] for i in both), strict=True)
            low, high = bootstrap_ci(gains, clusters=clusters, weights=weights)
            r |= {"difference": float(np.average(gains, weights=weights)),
                  "difference_low": low, "difference_high": high}
    whole = {run: {b: found[b]["score"] for b in BENCHMARKS
                   if b in found and not found[b]["partial"]} for run, found in table.items()}
    common = [b for b in BENCHMARKS if all(b in found for found in whole.values())]
    ranks = {}
    if common and len(table) > 1:
        ranks = average_rank({run: {b: found[b] for b in common} for run, found in whole.items()})
    summary = {run: {"overall": overall(found) if len(found) == len(BENCHMARKS) else None,
                     "rank": ranks.get(run)} for run, found in whole.items()}
    results = [{k: v for k, v in r.items() if k != "credits"} for r in results]
    text, made = tables(results, summary), ["benchmarks.md", "benchmarks.csv", "results.json"]
    runs.write_text(output / "benchmarks.md", text)
    write_csv(output / "benchmarks.csv", flat_rows(results, summary))
    write_json(output / "results.json", results)
    draw_runs(results, output / "benchmarks.png")
    points = [{"run": f"{r['run'].split(', ')[0]}: {r['benchmark']}", "method": r["method"],
               "k": r["k"], "accuracy": r["score"], "low": r["low"], "high": r["high"]}
              for r in results if r["method"] != "first" and r["score"] is not None]
    if points:
        draw_curves(points, {}, output / "curve.png",
                    f"Bands: 95 % intervals over items. Commit {git_commit()}.")
    made += ["benchmarks.png"] + ["curve.png"] * bool(points)
    print(f"{text}\nin {output}: {', '.join(made)}")
    return results


# ----- the program -----

def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bench", help="rewardbench,ppe,rmb,realmistake or some of these (ppe is "
                        "ppe_preference,ppe_correctness), each NAME, NAME@REVISION or NAME:PATH; a "
                        "folder in --output each")
    parser.add_argument("--revision",
                        help="commit of the hub's data set, where --bench names only one set")
    parser.add_argument("--runs", nargs="+", metavar="NAME=FOLDER",
                        help="compare instead: runs of benchmarks by this program or by "
                        "infer_scale.py, result files, and folders of several (parts of one run "
                        "may share a NAME)")
    parser.add_argument("--ties", default="expected", choices=TIES,
                        help="tie at the top: 1/t, the paper's shuffle, or wrong")
    parser.add_argument("--model", help=JUDGE_HELP)
    parser.add_argument("--output", default="runs/benchmarks", help="folder of runs and tables")
    parser.add_argument("--bon", choices=["list", "pairs"],
                        help="items with n > 2: one list prompt (default, as the paper), or the "
                        "best response against each other one, all to be won (App. E.1.1)")
    parser.add_argument("--temperature", type=float, default=0.0,
                        help="0 is greedy (paper's default outside of voting)")
    parser.add_argument("--rating", choices=["1-10", "best"],
                        help="1-10 (the default), or best (of an LLM-as-a-Judge)")
    parser.add_argument("--domain", help="only this section; marked as partial")
    parser.add_argument("--limit", type=int,
                        help="so many items of each, evenly spaced; marked as partial")
    parser.add_argument("--seed", type=int, default=0, help="seed of orders and sampling")
    parser.add_argument("--chunk_size", type=int, default=256,
                        help="items per chunk (the unit of work and of resuming)")
    parser.add_argument("--overwrite", action="store_true", help="discard the runs in --output")
    add_judge_flags(parser)
    served.add_endpoint_flags(parser)
    args = served.check_endpoint(runs.read_flags(parser))
    if bool(args.bench) == bool(args.runs):
        raise UserError("give --bench (judge) or --runs (compare what was judged)")
    if args.revision and not args.bench:
        raise UserError("--revision goes with --bench")
    return args


@runs.command_line
def main():
    args = read_arguments()
    output = Path(args.output)

    # 1. compare what is there
    if args.runs:
        named = [word.rpartition("=") for word in args.runs]
        compare([r for name, _, folder in named
                 for r in folder_results(name or Path(folder).name, folder, args.ties)], output)
        return

    # 2. or judge: every item twice, in opposite response orders
    args.model = args.model or default_judge()
    settle(args, args.model)
    accelerator = runs.start_accelerator(args)
    own = {k: v for k, v in vars(args).items() if k not in ("bench", "revision", "runs", "ties")}
    for name, data in parse_benches(args.bench, args.revision).items():
        its = argparse.Namespace(**{**own, "data": data, "output": str(output / name)})
        examples = load_examples(data, "test", args.limit, skip_bad=args.skip_bad,
                                 domain=args.domain)
        judge_set(its, examples, 2, accelerator, orders="opposite")

    # 3. and tabulate
    if accelerator.is_main_process:
        for r in compare(folder_results(output.name, output, args.ties), output):
            write_json(output / r["benchmark"] / "result.json", r)


if __name__ == "__main__":
    main()
