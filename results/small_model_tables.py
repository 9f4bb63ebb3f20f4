"""The record of a run of small_model.py; table and figure of all runs on record, from these alone.

    results/runs/small_model/NAME/STAGE.json.gz   what records.py keeps, with the orders of votes
    results/runs/small_model/NAME/about.json      where, when, and a few judgments as they were

The table has a row per measure and three columns per run: the number and its 95 % interval over
items (over prompts where they repeat). What stands behind guided votes is taken apart like this.
Over all test judgments, the meta logit of a judgment is split in two:

    place     the mean logit of the judgments that name the same place (shown first, or second)
    content   what is left of the logit

Guided votes are then counted once by each part alone. A gain that only place gives is one that a
blind rule could give. In a pair a judgment is right or wrong by the response that it names, so
content can say one thing: which response the meta RM takes for the better one.
"""
from collections import defaultdict
from operator import gt, lt, ne
from pathlib import Path

from eval import (
    bootstrap_ci,
    clusters_of,
    credit,
    item_credit,
    mean,
    paired_ci,
    report,
    roc_auc,
    verdict,
)
from infer_scale import vote
from plumbing.figures import (
    GUIDED,
    LOOKS,
    draw_panel,
    new_figure,
    print_table,
    save_figure,
    write_csv,
)
from plumbing.runs import ROOT, read_json, read_rows, write_json
from results.records import read_gz, record, rows_of, write_gz

RUNS = ROOT / "results" / "runs" / "small_model"
GREEDY = {"after the format warm-up": "eval_warmup", "GRM-RFT": "eval_rft", "GRM": "eval_rl"}
STAGES = ("warmup", "rft", "rl", "meta_rm", *GREEDY.values(), "voting_rft", "voting")
SHOWN = 3  # judgments kept as they were


# ----- the record of a run -----

def record_run(out, folder, validation, about):
    """Record the stages of the run in `out`; of RL the one with the best rate.

    validation: {rate: credit of one judgment on validation items}.  about: what else to keep.
    A stage's seconds are those of all its attempts.
    """
    rate, seconds, told = max(validation, key=validation.get), defaultdict(int), {}
    for attempt in read_rows(out / "stages.jsonl"):
        seconds[attempt["stage"]] += attempt["seconds"]
        told[attempt["stage"]] = attempt | {"seconds": seconds[attempt["stage"]]}
    for stage in STAGES:
        name = f"rl_{rate}" if stage == "rl" else stage
        peaks = [row["memory/peak_gb"] for row in read_rows(out / name / "metrics.jsonl")
                 if "memory/peak_gb" in row]
        peak = {"peak_gb": max(peaks)} if peaks else {}
        write_gz(folder / f"{stage}.json.gz",
                 told[name] | peak | record(out / name, orders=True, items=folder.parent))
    items = {r["id"]: r for r in read_rows(out / "test.jsonl")}
    before, after = (read_rows(out / GREEDY[judge] / "samples.jsonl")
                     for judge in ("GRM-RFT", "GRM"))
    about = about | {key: told[name].get(key) for key in ("where", "date")}  # of the last stage
    judgments = [
        {**{key: items[a["id"]][key] for key in ("id", "prompt", "responses", "rewards")},
         "permutation": a["samples"][0]["permutation"],
         "GRM-RFT": a["samples"][0]["text"], "GRM": b["samples"][0]["text"]}
        for a, b in zip(before[:SHOWN], after[:SHOWN], strict=True)]
    write_json(folder / "about.json",
               about | {"rate": rate, "validation": validation, "judgments": judgments})


def load_run(folder):
    """{stage: its record, with "rows" as in samples.jsonl}, and "about"."""
    found = {"about": read_json(folder / "about.json")}
    for path in sorted(folder.glob("*.json.gz")):
        stage = found[path.name.removesuffix(".json.gz")] = read_gz(path)
        if "items" in stage:
            stage["rows"] = list(rows_of(stage, folder.parent))
    return found


# ----- one judgment of a pair -----

def place(sample):
    """1 if it names the response shown first, 2 the second; 0 a tie or unparsed."""
    if not sample["scores"]:
        return 0
    first, second = (sample["scores"][i] for i in sample["permutation"])
    return 1 if first > second else 2 if second > first else 0


def even_credit(row, k):
    """Credit of k votes on a pair in which both response orders weigh the same, however often each
    was drawn, so that a preference for a place cancels.

    The mean over one order plus the mean over the other (here times both counts, which is exact);
    mean over the disjoint blocks of k. Where only one order has votes, they are all there is.
    """
    credits = []
    for start in range(0, len(row["samples"]) - k + 1, k):
        block = [s for s in row["samples"][start:start + k] if s["scores"]]
        first, second = ([s["scores"] for s in block if s["permutation"][0] == i] for i in (0, 1))
        votes = vote([s["scores"] for s in block])
        if first and second:
            votes = [len(second) * a + len(first) * b
                     for a, b in zip(vote(first), vote(second), strict=True)]
        credits.append(credit(votes, row["rewards"]))
    return mean(credits)


def parts_of_logits(rows):
    """(rows with the place's part of each meta logit, rows with the content's part)."""
    by_place = {p: [] for p in range(3)}
    for r in rows:
        for s, z in zip(r["samples"], r["meta_logits"], strict=True):
            if z is not None:
                by_place[place(s)].append(z)
    means = {p: mean(logits) for p, logits in by_place.items()}

    def with_part(content):
        return [{**r, "meta_logits": [
            z if z is None else content * z + (1 - 2 * content) * means[place(s)]
            for s, z in zip(r["samples"], r["meta_logits"], strict=True)]} for r in rows]
    return with_part(0), with_part(1)


def kept_half(row):
    """The judgments that guided voting keeps of all."""
    logits, samples = row["meta_logits"], row["samples"]
    usable = sorted((j for j, s in enumerate(samples) if s["scores"]), key=lambda j: -logits[j])
    return [samples[j] for j in usable[:len(samples) // 2]]


# ----- the table -----

def measures(run):
    """{row: (number, low, high)} of one run; an interval is None where there is none."""
    found = {}

    def put(name, values, rows, against=None):
        clusters = clusters_of(rows)
        ends = (paired_ci(against, values, clusters=clusters) if against else
                bootstrap_ci(values, clusters=clusters))
        found[name] = (mean(values) - (mean(against) if against else 0), *ends)
        return values

    greedy, voted = {}, {}  # values per item: greedy by judge, votes by judge and k
    for judge, stage in GREEDY.items():
        rows = run.get(stage, {}).get("rows", [])
        if rows:
            greedy[judge] = put(f"{judge}, greedy", [
                credit(r["samples"][0]["scores"], r["rewards"]) for r in rows], rows)
            told = report(rows)
            found[f"{judge}, same verdict in both orders"] = told["swap_consistency"], None, None
            found[f"{judge}, names the first"] = told["first_position"], None, None
    if "GRM" in greedy:
        put("GRM - GRM-RFT, greedy", greedy["GRM"], rows, greedy["GRM-RFT"])
        before, after = ([verdict(r["samples"][0]["scores"]) for r in run[GREEDY[judge]]["rows"]]
                         for judge in ("GRM-RFT", "GRM"))
        found |= {name: (sum(map(compared, a, b)), None, None) for name, compared, a, b in (
            ("greedy verdicts that RL changed", ne, before, after),
            ("greedy verdicts that RL made right", lt, greedy["GRM-RFT"], greedy["GRM"]),
            ("greedy verdicts that RL made wrong", gt, greedy["GRM-RFT"], greedy["GRM"]))}
    for judge, stage in (("GRM-RFT", "voting_rft"), ("GRM", "voting")):
        rows = run.get(stage, {}).get("rows", [])
        for k in (k for k in (1, 8, 32) if rows and k <= len(rows[0]["samples"])):
            votes = put(f"{judge}, vote @{k}", [item_credit(r, k) for r in rows], rows)
            voted[judge, k] = votes
            if judge == "GRM-RFT":
                continue
            if ("GRM-RFT", k) in voted:
                put(f"GRM - GRM-RFT, vote @{k}", votes, rows, voted["GRM-RFT", k])
            if k == 1:
                continue
            put(f"vote @{k} - vote @1", votes, rows, voted["GRM", 1])
            even = put(f"GRM, both orders @{k}", [even_credit(r, k) for r in rows], rows)
            put(f"both orders - vote @{k}", even, rows, votes)
            guided = put(f"GRM, guided @{k}", [item_credit(r, k, "guided") for r in rows], rows)
            put(f"GRM, random half @{k}", [item_credit(r, k, "random") for r in rows], rows)
            put(f"guided - vote @{k}", guided, rows, votes)
            put(f"guided - both orders @{k}", guided, rows, even)
            for part, parted in zip(("place", "content"), parts_of_logits(rows), strict=True):
                by_part = put(f"guided by {part} @{k}", [
                    item_credit(r, k, "guided") for r in parted], rows)
                put(f"guided by {part} - vote @{k}", by_part, rows, votes)
    if "voting" in run:
        found |= judgment_measures(run["voting"]["rows"])
    for key, label in (("all", "all"), ("grm", "the GRM's")):
        told = run["meta_rm"]["report"]["held_out"].get(key, {}) if "meta_rm" in run else {}
        if told.get("auc") is not None:
            found |= {f"{name}, held-out items, {label}": (told[value], None, None)
                      for name, value in (
                          ("meta RM, ROC-AUC", "auc"), ("judgments right", "positive"),
                          ("meta RM right at logit 0", "accuracy"))}
    if "rl" in run:
        rewards = run["rl"]["training"]["reward/mean"]
        found["RL reward, first 10 steps"] = mean(rewards[:10]), None, None
        found["RL reward, last 10 steps"] = mean(rewards[-10:]), None, None
    found |= {f"seconds, {stage}": (run[stage]["seconds"], None, None)
              for stage in STAGES if stage in run}
    return found | {row: tuple(numbers) for row, numbers in run["about"].get("rows", {}).items()}


def judgment_measures(rows):
    """What the GRM's votes are like, all of them and the half that guidance keeps; how well the
    meta logit tells right ones from wrong ones, among all and among those for one place."""
    found, halves = {}, {"all": [(r, s) for r in rows for s in r["samples"] if s["scores"]],
                         "kept": [(r, s) for r in rows for s in kept_half(r)]}
    for name, judged in halves.items():
        found[f"judgments, {name}: right"] = mean(
            credit(s["scores"], r["rewards"]) for r, s in judged)
        found[f"judgments, {name}: name the first"] = mean(place(s) == 1 for _, s in judged)
    for p, name in enumerate(("all", "for the first", "for the second")):
        told = [(z, credit(s["scores"], r["rewards"]) == 1) for r in rows
                for s, z in zip(r["samples"], r["meta_logits"], strict=True)
                if s["scores"] and p in (0, place(s))]
        found[f"meta RM, ROC-AUC, test items, {name}"] = (
            roc_auc(*zip(*told, strict=True)) if told else None)
    within = [roc_auc(*zip(*told, strict=True)) for r in rows if (told := [
        (z, credit(s["scores"], r["rewards"]) == 1)
        for s, z in zip(r["samples"], r["meta_logits"], strict=True) if s["scores"]])]
    within = [auc for auc in within if auc is not None]  # None where all are right, or all wrong
    found["meta RM, ROC-AUC, test items, within items"] = mean(within) if within else None
    return {name: (value, None, None) for name, value in found.items() if value is not None}


def make_tables(folder=RUNS, output=ROOT / "results"):
    """Table (small_model.csv) and figure (small_model.png) of the runs on record in `folder`."""
    runs = {path.parent.name: load_run(path.parent) for path in sorted(folder.glob("*/about.json"))}
    columns = {name: measures(run) for name, run in runs.items()}
    rows, longest = [], sorted(columns.values(), key=len, reverse=True)  # its rows are in order
    for name in dict.fromkeys(row for found in longest for row in found):
        rows.append({"row": name})
        for column, found in columns.items():
            number, low, high = found.get(name) or ("", None, None)
            rows[-1] |= {column: number, f"{column} low": low, f"{column} high": high}
    write_csv(Path(output) / "small_model.csv", rows)
    draw({name: run["voting"]["rows"] for name, run in runs.items() if "voting" in run},
         Path(output) / "small_model.png")
    print_table([{"row": r["row"], **{c: shown(r["row"], r[c]) for c in columns}} for r in rows],
                ["row", *columns])
    print(f"wrote {output}/small_model.csv and .png")


def shown(row, value):
    """Percent, but for counts and the reward."""
    if value == "" or row.startswith(("seconds", "greedy verdicts")):
        return value
    return f"{value:.2f}" if row.startswith("RL reward") else f"{100 * value:.1f}"


def draw(runs, path):
    """Accuracy against k, a panel per run: plain votes, both orders, guided, and a random half."""
    values = {"vote": item_credit, "even": even_credit,
              "guided": lambda r, k: item_credit(r, k, "guided"),
              "random": lambda r, k: item_credit(r, k, "random")}
    figure, panels = new_figure((5.5 * len(runs), 4.4), columns=len(runs))
    drawn, found = [], []
    for rows in runs.values():
        curves, last = [], {}
        for method, value in values.items():
            points = []
            for k in (k for k in (1, 2, 4, 8, 16, 32) if k <= len(rows[0]["samples"])):
                credits = [value(r, k) for r in rows]
                low, high = bootstrap_ci(credits, clusters=clusters_of(rows))
                points.append({"k": k, "accuracy": mean(credits), "low": low, "high": high})
            curves.append((LOOKS[method], LOOKS[method].name, points))
            last[method] = credits
        drawn.append(curves)
        verbs = []
        for other in ("vote", "even"):  # always these two, whatever the numbers are
            low, high = paired_ci(last[other], last["guided"], clusters=clusters_of(rows))
            verb = "above" if low > 0 else "below" if high < 0 else "not told apart from"
            verbs.append(f"{verb} {LOOKS[other].name}")
        found.append(f"k = {k}, guided: " + ",\n".join(verbs))
    ends = [p[end] for curves in drawn for *_, points in curves for p in points
            for end in ("low", "high")]
    for axes, name, curves, told in zip(panels, runs, drawn, found, strict=True):
        draw_panel(axes, curves, limits=(min(ends), max(ends)))
        axes.set_title(f"{name}, {told}", loc="left", fontsize=11)
    panels[0].set_ylabel("accuracy, %")
    save_figure(figure, path, "", ", ".join(f"{name}: {len(rows)}" for name, rows in runs.items())
                + f" test items; bands: 95 % intervals over prompts. {GUIDED}Both orders: weighing "
                "the same.")

