"""Plumbing: the rules of the paper's five benchmarks (§5, App. D) and the tables of their results; eval.py measures.

    rewardbench       mean of four sections; in a section the subsets weigh by REWARDBENCH of data.py, not by their size
    ppe_preference    accuracy over all pairs (votes for a tie are dropped by data.py)
    ppe_correctness   mean of five sets
    rmb               mean of {helpfulness, harmlessness} x {pairwise, best-of-N}, each over all its rows
    realmistake       single responses: ROC-AUC over all items; stands apart from Overall

Accuracy benchmarks thus differ in nothing but the weights of their items, `item_weights`: one sum gives section, subset
and benchmark averages and their intervals.
"""
import hashlib
import io
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from eval import (
    BENCHMARKS,
    auc_ci,
    average_rank,
    bootstrap_ci,
    draw_curves,
    item_credits,
    mean,
    overall,
    report,
    single_scores,
    write_csv,
)
from infer_scale import TIES, default_k_meta
from plumbing.data import PPE, REALMISTAKE, REWARDBENCH
from plumbing.runs import UserError, git_commit, read_json, read_rows, write_json, write_text

BENCHES = {"rewardbench": "Reward Bench", "ppe_preference": "PPE Preference", "ppe_correctness": "PPE Correctness", "rmb": "RMB",
           "realmistake": "ReaLMistake (ROC-AUC)"}
SECTIONS = {"rewardbench": list(REWARDBENCH), "ppe_preference": ["ppe_preference"], "ppe_correctness": list(PPE),
            "rmb": [f"{goal}-{form}" for goal in ("helpfulness", "harmlessness") for form in ("bon", "pairwise")],
            "realmistake": list(REALMISTAKE)}
# Rows of each whole set; of RMB at least so many (three large files were missing from the copy that was counted).
ROWS = {"rewardbench": 2985, "ppe_preference": 16038, "ppe_correctness": 2555, "rmb": 18329, "realmistake": 900}


# ----- which sets: --bench and --revision -----

def parse_benches(text, revision=None):
    """{name: what load_examples takes} of "rewardbench,rmb:PATH,ppe@REV"; "ppe" is both of its halves."""
    chosen = {}
    for word in text.split(","):
        name, _, path = word.partition(":")
        name = name.partition("@")[0]
        if name == "ppe" and path:
            raise UserError(f"--bench {word}: ppe is two sets; give ppe_preference:PATH,ppe_correctness:PATH")
        if path and not Path(path).exists():  # said now, not after the benchmarks before it
            raise UserError(f"--bench {word}: {path} does not exist")
        for full in ("ppe_preference", "ppe_correctness") if name == "ppe" else (name,):
            if full not in BENCHES:
                raise UserError(f"--bench {word}: choose from {', '.join(BENCHES)} (or ppe), NAME:PATH or NAME@REVISION")
            if full in chosen:
                raise UserError(f"--bench names {full} twice; give each benchmark once")
            chosen[full] = full + word[len(name):]
    if revision:
        if len(chosen) > 1 or not set(chosen.values()) <= set(BENCHES):
            raise UserError("--revision is one commit of one benchmark on the hub; for several give NAME@REVISION each")
        chosen = {name: f"{name}@{revision}" for name in chosen}
    return chosen


def bench_of(rows):
    """The benchmark that rows of samples.jsonl belong to, told by their ids; None for other data."""
    names = {row["id"].partition("/")[0] for row in rows}
    return next(iter(names)) if len(names) == 1 and names <= set(BENCHES) else None


# ----- the averages -----

def item_weights(name, items):
    """(N,) weights, sum 1, so that a benchmark's score is sum(weight * credit) over its N items (rows of samples.jsonl).

    Every section present counts the same. Within one, items count the same; in rewardbench a subset's items share the
    subset's weight, over the subsets present. Choice: a section that is not there is left out and the run is partial
    (the benchmark's own code counts it as 0).
    """
    if name == "rewardbench" and any(r.get("subset") not in REWARDBENCH.get(r["domain"], ()) for r in items):
        raise UserError("rewardbench: a row of samples.jsonl has no 'subset' of its section; judge again with --overwrite")
    sections, subsets = Counter(r["domain"] for r in items), Counter((r["domain"], r.get("subset")) for r in items)
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
    """{"sections": {section: places in items}, "subsets": {"section/subset": ...}}, sorted by name."""
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
        missing += [s for section, subsets in REWARDBENCH.items() for s in subsets if (section, s) not in seen]
    if missing:
        reasons.append(f"without {', '.join(missing[:3])}" + (f" and {len(missing) - 3} more" if len(missing) > 3 else ""))
    # Ids number the rows of a set. A hundredth is allowed for what data.py drops (ties at the end, two equal texts).
    numbers = {int(r["id"].split("/")[1].partition("#")[0]) for r in rows}
    count = len(numbers) if name in ("rewardbench", "realmistake") else 1 + max(numbers)
    if count < 0.99 * ROWS[name]:
        reasons.append(f"{count} of {ROWS[name]} rows")
    return reasons


def protocol(name, rows, settings, k, method, ties):
    """One line that says how a score came about; scores compare where these lines agree."""
    spec = settings.get("data") or name
    source = "local files" if ":" in spec else spec.partition("@")[2] or (
        "commits pinned in data.py" if name == "ppe_correctness" else "no revision given")
    facts = [[r["id"], r["rewards"], r.get("cluster"), r["response_lengths"]] for r in rows]
    prompt = "pairs with the best" if any("of" in r for r in rows) else "one list"
    order = "one random order per item" if method == "first" else "a random order per judgment"
    unparsed = "loses all its comparisons" if name == "realmistake" else "is wrong"
    how = {"first": "one judgment", "vote": f"Voting@{k}",
           "guided": f"Voting@{k} guided by a meta RM, k_meta {default_k_meta(k)}"}
    return "; ".join([
        BENCHES[name], f"revision: {source}", f"{len(rows)} rows {hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}",
        f"template {settings.get('template')}", f"rating {settings.get('rating')}",
        *(["without principles"] if settings.get("no_principles") else []),
        *(["with reference"] if settings.get("use_reference") else []),
        f"temperature {settings.get('temperature')}", f"max_new_tokens {settings.get('max_new_tokens')}", f"k {k}, {how[method]}",
        f"order: {order}, seed {settings.get('seed')}", f"best-of-N: {prompt}", f"ties: {ties}", f"unparsed: {unparsed}",
        *(["scores clamped to 1-10"] if settings.get("rating") != "best" else [])])


# ----- results -----

def bench_result(run, rows, settings, k=1, method="first", ties="expected", seconds=None):
    """One benchmark's result as a JSON object: headline `score` with its interval, sections, subsets, pooled, the three tie
    rules and `lenient`, parse rate, biases, costs, protocol.

    rows: a whole samples.jsonl.  settings: the flags that made it.  method: "first" judgment of each item, "vote" or "guided".
    `credits` {item: (credit, weight, cluster)} of accuracy benchmarks is for paired differences and is not written.
    Choice: ReaLMistake's headline is the ROC-AUC over all its items (the paper names no average).
    """
    name, measures, reasons = bench_of(rows), report(rows), Counter(s["reason"] for r in rows for s in r["samples"])
    if method == "first":
        rows = [{**r, "samples": r["samples"][:1]} for r in rows]
    items, way = list({r.get("of", r["id"]): r for r in rows}.values()), "vote" if method == "first" else method
    weights, clusters = np.array(item_weights(name, items)), np.array([r.get("cluster") or r["id"] for r in items])
    if name == "realmistake":
        singles, labels = np.array([single_scores(r, k, way) for r in items]), np.array([r["rewards"][0] for r in items])
        parsed = np.flatnonzero(np.isfinite(singles).all(1))
        rules = {"lenient": auc_ci(singles[parsed], labels[parsed])[0] if len(parsed) else None}  # the unparsed left out

        def measure(chosen):
            return auc_ci(singles[chosen], labels[chosen], clusters[chosen])
    else:
        credits = {rule: np.array(list(item_credits(rows, k, way, rule).values())) for rule in (*TIES, "lenient")}
        rules = {rule: float(c @ weights) for rule, c in credits.items()} | {"pooled": float(credits[ties].mean())}
        rules["credits"] = {r.get("of", r["id"]): v for r, v in zip(items, zip(credits[ties], weights, clusters), strict=True)}

        def measure(chosen):
            c, w = credits[ties][chosen], weights[chosen]
            return float(c @ w / w.sum()), *bootstrap_ci(c, clusters=clusters[chosen], weights=w)
    score, low, high = measure(range(len(items)))
    parts = {group: {part: dict(zip(("score", "low", "high", "items"), (*measure(chosen), len(chosen)), strict=True))
                     for part, chosen in found.items()} for group, found in parts_of(items).items()}
    means = [p["score"] for p in parts["sections"].values()]
    measures = {key: v if v is None or v == v else None for key, v in measures.items() if key in COLUMNS or "_bias_" in key}
    return {"run": run, "benchmark": name, "method": method, "k": k, "ties": ties, "items": len(items),
            "partial": partial(name, rows, settings), "score": score, "low": low, "high": high,
            "mean_of_sections": None if None in means else mean(means), **measures, **rules, "judgments": dict(reasons),
            "seconds_per_judgment": seconds, "model": settings.get("served_model") or settings.get("model"),
            "commit": git_commit(), "protocol": protocol(name, rows, settings, k, method, ties), **parts}


def folder_results(run, folder, ties):
    """Results of a folder: of each samples.jsonl in it or one level below (one judgment, or Voting@k for the k of
    Table 3 and all samples), else of the result files there; `folder` may be such a file."""
    def named(method, k):
        return run + {"first": "", "vote": f", Voting@{k}", "guided": f", guided @{k}"}[method]
    folder, found = Path(folder), []
    for path in [folder / "samples.jsonl"] if (folder / "samples.jsonl").exists() else sorted(folder.glob("*/samples.jsonl")):
        rows, settings = read_rows(path), read_json(path.parent / "config.json")["args"]
        if bench_of(rows) is None:
            raise UserError(f"{path} is not of one of the benchmarks {', '.join(BENCHES)}; compare it with others of its kind")
        timed = [m for m in read_rows(path.parent / "metrics.jsonl") if "judgments" in m]
        seconds = sum(m["seconds"] for m in timed) / sum(m["judgments"] for m in timed) if timed else None
        k_max, guided = min(len(r["samples"]) for r in rows), all("meta_logits" in r for r in rows)
        ks = [k for k in sorted({1, 8, 32, k_max}) if k <= k_max]
        ways = [("vote", k) for k in ks] + [("guided", k) for k in ks if guided and k > 1] if k_max > 2 else [("first", 1)]
        found += [bench_result(named(m, k), rows, settings, k, m, ties, seconds) for m, k in ways]
    if found:
        return found
    files = [folder] if folder.is_file() else sorted(folder.glob("results.json")) or sorted(
        [*folder.glob("result.json"), *folder.glob("*/result.json")])
    for results in map(read_json, files):
        found += [{**{k: v for k, v in r.items() if not k.startswith("difference")}, "run": named(r["method"], r["k"])}
                  for r in (results if isinstance(results, list) else [results])]
    return found


# ----- tables over results (dicts that `bench_result` makes) -----

COLUMNS = {"difference": "paired difference to the first run", "expected": "ties 1/t", "shuffle": "ties shuffled (paper)",
           "strict": "ties wrong", "lenient": "lenient", "pooled": "pooled", "mean_of_sections": "mean of sections",
           "parse_rate": "parsed", "tie_rate": "tied", "position_bias": "position bias", "length_bias": "length bias",
           "swap_consistency": "swap consistency", "tokens": "tokens", "seconds_per_judgment": "seconds"}


def percent(result, key="score"):
    if result.get(key) is None:
        return "-"
    if key != "score":
        return f"{100 * result[key]:.1f}"
    return f"{100 * result[key]:.1f} ({100 * result['low']:.1f}-{100 * result['high']:.1f}){'*' if result.get('partial') else ''}"


def markdown(header, rows):
    return "\n".join(["| " + " | ".join(map(str, row)) + " |" for row in [header, ["---"] * len(header), *rows]]) + "\n"


def tables(results, summary):
    """The comparison as Markdown: benchmarks by run, sections, measures beside the score, protocols.

    results: list of results.  summary: {run: {"overall", "rank"}}, None where it is not defined.
    """
    runs = list(dict.fromkeys(r["run"] for r in results))
    names = [n for n in BENCHES if any(r["benchmark"] == n for r in results)]
    at = {(r["run"], r["benchmark"]): r for r in results}
    text = ["# Benchmarks\n\nPercent, 95 % bootstrap intervals over items (over prompts where they repeat). Overall: mean of the "
            "four accuracies, shown where all four are whole. Average rank: over those of the four that all runs have whole. "
            "Parsed, tied, biases, swap consistency and tokens are of single judgments.\n\n",
            markdown(["run", *(BENCHES[n] for n in names), "Overall", "average rank"], [
                [run, *(percent(at.get((run, n), {})) for n in names), percent(summary[run], "overall"),
                 "-" if summary[run]["rank"] is None else f"{summary[run]['rank']:.2f}"] for run in runs])]
    if any(r["partial"] for r in results):
        text.append("\n\\* partial: " + "; ".join(dict.fromkeys(
            f"{r['benchmark']} {', '.join(r['partial'])}" for r in results if r["partial"])) + "\n")
    for name in names:
        mine = [r for r in results if r["benchmark"] == name]
        sections = [s for s in SECTIONS[name] if any(s in r["sections"] for r in mine)]
        measures = [c for c in COLUMNS if any(r.get(c) is not None for r in mine)]
        text.append(f"\n## {BENCHES[name]}\n\n" + markdown(["run", "items", *sections], [
            [r["run"], r["items"], *(percent(r["sections"].get(s, {})) for s in sections)] for r in mine]) + "\n" + markdown(
            ["run", *(COLUMNS[c] for c in measures)], [[r["run"], *(show(r, c) for c in measures)] for r in mine]))
    lines = [f"{r['run']}: {r['protocol']}; model {r['model']}; commit {r['commit']}" for r in results]
    return "".join(text) + "\n## Protocols\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"


def show(result, key):
    value = result.get(key)
    if value is None or isinstance(value, str):
        return value or "-"
    if key in ("tokens", "seconds_per_judgment"):
        return f"{value:.3g}"
    if key + "_low" in result:  # points, with their interval; a bias or a difference is there if it excludes 0
        return f"{100 * value:+.1f} ({100 * result[key + '_low']:+.1f} to {100 * result[key + '_high']:+.1f})"
    return f"{100 * value:.1f}"


def flat_rows(results, summary):
    """Rows of benchmarks.csv: per run and benchmark the whole (part "all"), its sections and its subsets."""
    rows = []
    for r in results:
        flat = {k: v for k, v in r.items() if not isinstance(v, (dict, list))}
        rows.append({"run": r["run"], "benchmark": r["benchmark"], "part": "all", **flat, **summary[r["run"]],
                     "partial": "; ".join(r["partial"])})
        rows += [{"run": r["run"], "benchmark": r["benchmark"], "part": part, **values}
                 for group in ("sections", "subsets") for part, values in r[group].items()]
    return rows


def draw_benches(results, path):
    """One panel per benchmark, one point with its interval per run; a hollow point is partial."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    runs = list(dict.fromkeys(r["run"] for r in results))
    names = [n for n in BENCHES if any(r["benchmark"] == n and r["score"] is not None for r in results)]
    if not names:
        return
    size = (1.5 + 2.6 * len(names), 1.2 + 0.35 * len(runs))
    figure, panels = plt.subplots(1, len(names), figsize=size, sharey=True, squeeze=False)
    for name, axes in zip(names, panels[0], strict=True):
        for r in results:
            if r["benchmark"] == name and r["score"] is not None:
                place = runs.index(r["run"])
                axes.plot([100 * r["low"], 100 * r["high"]], [place, place], color="tab:blue")
                axes.plot(100 * r["score"], place, "o", ms=5, color="tab:blue", mfc="white" if r["partial"] else None)
        axes.set_title(BENCHES[name], fontsize=9)
        axes.grid(alpha=0.25)
        axes.set_xlabel("%", fontsize=8)
    panels[0][0].set_yticks(range(len(runs)), runs, fontsize=8)
    panels[0][0].set_ylim(len(runs) - 0.5, -0.5)
    figure.text(0.01, 0.01, f"commit {results[0]['commit']}  |  95 % bootstrap intervals over items; hollow: partial run",
                fontsize=6.5, color="0.35")
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150)
    plt.close(figure)
    path.write_bytes(buffer.getvalue())


def compare_benches(results, output):
    """Writes benchmarks.md, benchmarks.csv, results.json and the figures; returns the results with their paired differences."""
    table = {r["run"]: {} for r in results}
    for r in results:
        if r["benchmark"] in table[r["run"]]:
            raise UserError(f"--runs: {r['benchmark']} of {r['run']} is given twice; give the runs different names")
        table[r["run"]][r["benchmark"]] = r
    common = [b for b in BENCHMARKS if all(b in found and not found[b]["partial"] for found in table.values())]
    ranks = average_rank({run: {b: found[b]["score"] for b in common} for run, found in table.items()}) if common else {}
    first = next(iter(table.values()))
    for r in results:  # paired by item, against the first run, with its weights
        ours, base = r.get("credits", {}), first.get(r["benchmark"], {}).get("credits", {})
        items = [i for i in base if i in ours]
        if items and r is not first[r["benchmark"]]:
            gains = np.array([ours[i][0] - base[i][0] for i in items])
            weights = np.array([base[i][1] for i in items])
            low, high = bootstrap_ci(gains, clusters=[base[i][2] for i in items], weights=weights)
            r |= {"difference": float(gains @ weights / weights.sum()), "difference_low": low, "difference_high": high}
    results = [{k: v for k, v in r.items() if k != "credits"} for r in results]
    summary = {}
    for run, found in table.items():
        whole = {b: found[b]["score"] for b in BENCHMARKS if b in found and not found[b]["partial"]}
        summary[run] = {"overall": overall(whole) if len(whole) == len(BENCHMARKS) else None,
                        "rank": ranks[run] if ranks and len(table) > 1 else None}
    text = tables(results, summary)
    write_text(output / "benchmarks.md", text)
    write_csv(output / "benchmarks.csv", flat_rows(results, summary))
    write_json(output / "results.json", results)
    draw_benches(results, output / "benchmarks.png")
    points = [{"run": f"{r['run'].split(', ')[0]}: {r['benchmark']}", "method": r["method"], "k": r["k"], "accuracy": r["score"],
               "low": r["low"], "high": r["high"]} for r in results if r["method"] != "first" and r["score"] is not None]
    if points:
        draw_curves(points, {}, output / "curve.png", f"commit {git_commit()}  |  95 % bootstrap intervals over items")
    made = ["benchmarks.md", "benchmarks.csv", "results.json", "benchmarks.png"] + ["curve.png"] * bool(points)
    print(f"{text}\nin {output}: {', '.join(made)}")
    return results
