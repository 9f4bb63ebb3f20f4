"""What is made of results/*.csv alone: the figures, and the tables of README.md and results/README.md (no number in them is typed by hand)."""
import csv
import re
from pathlib import Path

import eval as evaluation
from plumbing.runs import write_text
from toy_world.world import DOMAINS

VALUES = {"accuracy": "accuracy, %", "auc": "ROC-AUC, %", "share": "share of the GRM's wrong judgments, %", "tokens": "tokens"}  # column: its heading
MORE = {  # columns of their own of some tables: heading, factor, decimals
    "compute": {"mflops": ("million FLOPs an item", 1, 0), "mflops_shared": ("with shared prompts", 1, 0)},
    "failures": {"count": ("judgments", 1, 0), "share_base": ("base, %", 100, 1), "share_rft": ("GRM-RFT, %", 100, 1),
                 "share_undamaged": ("undamaged, %", 100, 1)},
    "methods": {**{d: (d, 100, 1) for d in DOMAINS}, "updates": ("updates in training", None, 0)},  # None: a text
    "kl": {d: (d, 100, 1) for d in DOMAINS},  # the CSV files of all others have the domains too
}
PLAIN = {  # tables that compare no rows: all their columns
    "calibration": {"judge": ("judgments of", None, 0), "domain": ("domain", None, 0), "seeds": ("seeds", 1, 0), "judgments": ("parsed judgments per seed", 1, 0),
                    "correct": ("correct, %", 100, 1), "predicted": ("predicted, %", 100, 1), "error": ("calibration error, points", 100, 1),
                    "auc": ("ROC-AUC, %", 100, 1), "auc_within": ("ROC-AUC within items, %", 100, 1)},
    "meta_rm_tries": {"run": ("meta RM", None, 0), "updates": ("updates", 1, 0), "auc_grm": ("ROC-AUC, the GRM's judgments, %", 100, 1),
                      "auc_rft": ("RFT trajectories, %", 100, 1), "vote@8": ("Voting@8, %", 100, 1), "guided@8": ("guided @8, %", 100, 1),
                      "difference_low": ("difference, low", 100, 1), "difference_high": ("high", 100, 1)},
}


def read(name, folder=Path("results")):
    """Rows of results/NAME.csv; [] if there is none."""
    path = Path(folder) / f"{name}.csv"
    return list(csv.DictReader(open(path, encoding="utf-8"))) if path.exists() else []


def caption(rows):
    """The command, and the commits of all runs behind the rows."""
    return rows[0].get("command", "python -m results.reproduce --tables"), " ".join(dict.fromkeys(c for r in rows for c in r["commit"].split()))


# ----- README.md and results/README.md -----

CLAIMS = [  # what the paper claims, and the table and row that put it to the test
    ("RL lifts the fine-tuned judge, greedy", "training", "GRM, greedy"),
    ("... and its votes", "training", "GRM, Voting@8"),
    ("RL lifts a judge that saw general data only", "training", "general data only, then RL, greedy"),
    ("8 judgments beat 1", "scaling", "vote @8"),
    ("32 judgments beat 8", "scaling", "vote @32 against vote @8"),
    ("the meta RM improves 8 votes", "scaling", "guided @8"),
    ("the meta RM improves 32 votes", "scaling", "guided @32"),
    ("RFT without hinted trajectories is worse", "ablations", "RFT without hinted sampling (1)"),
    ("RFT without non-hinted trajectories is worse", "ablations", "RFT without non-hinted sampling (2)"),
    ("RFT without rejective sampling is worse", "ablations", "RFT without rejective sampling (1 and 2)"),
    ("RFT without general instruction data is worse", "ablations", "RFT without general data"),
    ("RFT and RL without rejective sampling are worse", "ablations", "GRM without rejective sampling"),
    ("RFT and RL without principles are worse", "ablations", "GRM without principles"),
    ("... its votes too", "ablations", "GRM without principles, Voting@8"),
    ("without the KL term RL is worse", "kl", "beta 0"),
    ("LLM-as-a-Judge is worse than the GRM", "methods", "LLM-as-a-Judge, greedy"),
    ("Bradley-Terry is worse", "methods", "Bradley-Terry (BTRM)"),
    ("CLoud is worse", "methods", "CLoud, greedy"),
    ("PairRM is worse", "methods", "PairRM"),
    ("token probabilities help LLM-as-a-Judge", "methods", "LLM-as-a-Judge, TokenProb@8"),
    ("CLoud gains from more critiques", "methods", "CLoud @8"),
    ("the GRM beats the base on single responses (ROC-AUC)", "single_responses", "GRM, greedy"),
    ("a list is judged as well as pairs", "list_or_pairs", "GRM, pairs"),
    ("a reference answer helps", "reference", "GRM, reference shown"),
    ("the GRM's principles help another judge", "principles", "base, the GRM's"),
    ("training data left out cost accuracy (here: a domain, on its items)", "heldout_safety", "GRM without safety, greedy"),
]


def fill_readme():
    """The tables between <!-- table NAME --> and <!-- end -->, from results/NAME.csv, and the list of claims from all of them."""
    kinds = (("<!-- (domains) -->", domain_lines), (r"<!-- table (\w+) -->", table_lines), ("<!-- (claims) -->", claim_lines))
    for path in ("README.md", "results/README.md"):
        text = Path(path).read_text(encoding="utf-8")
        for pattern, lines_of in kinds:
            def block(match, lines_of=lines_of):
                rows = read("training" if match[2] == "claims" else match[2])
                if not rows:
                    return f"{match[1]}\n(not run)\n<!-- end -->"
                command, commits = caption(rows)
                said = f"`{command}`" + ("" if match[2] == "claims" else f", commit {commits}") + "."
                return "\n".join([match[1], *lines_of(match[2], rows), "", said, "<!-- end -->"])
            text = re.sub(f"({pattern}).*?<!-- end -->", block, text, flags=re.S)
        write_text(path, text)


def claim_lines(*_):
    """One line per claim: the paper's two numbers, ours on the seeds that both runs have, our paired difference, the verdict."""
    lines = ["| the paper's claim | paper | here | difference here, points | seeds | verdict |", "|---|---|---|---|---|---|"]
    for claim, table, label in CLAIMS:
        rows = {r["row"]: r for r in read(table)}
        r = rows.get(label)
        if r is None:
            lines.append(f"| {claim} | | not run | | | not tested |")
            continue
        other, value = rows.get(r.get("against"), {}), next(v for v in VALUES if v in r)
        if not r.get("from"):
            other = {value: "not run"}
        here = "not run" if "not run" in (r[value], other.get(value)) else f"{percent(r['from'])} -> {percent(r['to'])}"
        ends = f"{100 * float(r['difference_low']):+.1f} to {100 * float(r['difference_high']):+.1f}" if r.get("difference_low") else ""
        paper = r["paper"] if " to " in r["paper"] else " -> ".join(x for x in (other.get("paper"), r["paper"]) if x)
        lines.append(f"| {claim} | {paper} | {here} | {ends} | {len(r['difference_seeds'].split()) or ''} | {r['verdict']} |")
    return lines


def percent(value):
    return f"{100 * float(value):.1f}"


def cells_of(r, columns):
    return [r[c] if factor is None else f"{factor * float(r[c]):,.{decimals}f}" if r[c] else "" for c, (_, factor, decimals) in columns.items()]


def table_lines(name, rows):
    if name in PLAIN:
        heads = [h for h, _, _ in PLAIN[name].values()]
        return ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"] + ["| " + " | ".join(cells_of(r, PLAIN[name])) + " |" for r in rows]
    value = next(v for v in VALUES if v in rows[0])
    scale, unit = (1, "tokens") if value == "tokens" else (100, "points")
    judged, more = ["verdict"] if "verdict" in rows[0] else [], MORE.get(name, {})
    heads = [VALUES[value], "95 % interval", "per seed", f"paired difference, {unit}", "paper", *judged, *[h for h, _, _ in more.values()]]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for r in rows:
        cells = [r["row"], "not run", "", "", ""]
        if r[value] != "not run":
            numbers = {c: scale * float(r[c]) for c in (value, "low", "high", "difference_low", "difference_high") if r.get(c)}
            cells[1:4] = [f"{numbers[value]:.1f}", f"{numbers['low']:.1f} - {numbers['high']:.1f}", r["seeds"]]
            if "difference_low" in numbers:
                cells[4] = f"{numbers['difference_low']:+.1f} to {numbers['difference_high']:+.1f}"
                seeds = r["difference_seeds"].split()
                fewer = len(seeds) < max(len(x["seeds"].split()) for x in rows if x["row"] in (r["row"], r["against"]))
                cells[4] += f" ({r['against']}{'; seed ' + ', '.join(seeds) if fewer else ''})"
        cells += [r["paper"], *[r[c] for c in judged], *cells_of(r, more)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def domain_lines(_, rows):
    """All domains of the first seed, one line per run."""
    rows = [r for r in rows if r["seed"] == rows[0]["seed"]]
    names = sorted({r["domain"] for r in rows})
    lines = [f"| seed {rows[0]['seed']} | " + " | ".join(names) + " | parse rate |", "|---" * (len(names) + 2) + "|"]
    for run in dict.fromkeys(r["run"] for r in rows):
        cells = {r["domain"]: r for r in rows if r["run"] == run}
        parsed = cells["all"].get("parse_rate")
        lines.append(f"| {run} | " + " | ".join(f"{percent(cells[d]['accuracy'])} ({percent(cells[d]['low'])}-{percent(cells[d]['high'])})"
                                                for d in names) + f" | {percent(parsed) if parsed else ''} |")
    return lines


# ----- figures -----

def draw(folder):
    """results/scaling.png, k_meta.png, compute.png and rl_training.png from the CSV files beside them alone."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    rows = read("scaling", folder)
    if rows:
        points = [{"run": "GRM", "method": r["method"], "k": int(r["k"]), **{c: float(r[c]) for c in ("accuracy", "low", "high")}}
                  for r in rows if r["method"]]
        flat = {r["row"]: float(r["accuracy"]) for r in read("training", folder)
                if r["row"].endswith(", greedy") and "general" not in r["row"] and "straight" not in r["row"] and r["low"]}
        flat |= {r["row"]: float(r["accuracy"]) for r in rows if r["row"].startswith("undamaged") and r["low"]}
        flat["chance"] = float(rows[0]["chance"])
        command, commits = caption(rows)
        evaluation.draw_curves(points, flat, folder / "scaling.png", f"{command}  |  commit {commits}\ntoy world, {rows[1]['items']} "
                               f"test items, seeds of the curves: {len(rows[1]['seeds'].split())}, 95 % intervals over items; above 99.9 is drawn at 99.9")
    rows = read("k_meta", folder)
    if rows:
        draw_k_meta(rows, folder / "k_meta.png")
    rows = read("compute", folder)
    if rows:
        draw_compute(rows, folder / "compute.png")
    rows = read("rl_training", folder)
    if rows:
        panels = {"reward/mean": "rule reward (-1..1)", "policy/kl": "KL to the model at step 0, nats per token",
                  "len/mean": "judgment length, tokens", "reward/parse_rate": "parse rate",
                  "reward/frac_zero_std": "share of groups with equal rewards", "policy/entropy": "entropy, nats per token"}
        colours = {"grm": "tab:blue", "general": "tab:orange", "straight": "tab:gray"}
        labels = {"grm": "from RFT (the paper)", "general": "from general data only", "straight": "from the base"}
        figure, axes = plt.subplots(2, 3, figsize=(11, 6))
        for axis, (key, title) in zip(axes.flat, panels.items(), strict=True):
            for kind in colours:
                for n, seed in enumerate(sorted({r["seed"] for r in rows if r["run"] == kind})):
                    line = [r for r in rows if r["run"] == kind and r["seed"] == seed]
                    axis.plot([int(r["step"]) for r in line], [float(r[key]) for r in line], lw=1, alpha=0.8,
                              color=colours[kind], label=labels[kind] if n == 0 else None)
            axis.set_title(title, fontsize=9)
            axis.grid(alpha=0.25)
        axes[0, 0].legend(fontsize=7)
        for axis in axes[1]:
            axis.set_xlabel("RL step (64 items x 4 judgments)")
        command, commits = caption(rows)
        figure.text(0.01, 0.01, f"{command}  |  commit {commits}  |  one line per seed, judgments sampled at temperature 1, toy world", fontsize=6.5, color="0.35")
        figure.tight_layout(rect=(0, 0.03, 1, 1))
        figure.savefig(folder / "rl_training.png", dpi=130)
        plt.close(figure)


def draw_k_meta(rows, path):
    """Accuracy against the number of judgments that vote: the best by meta logit, and as many at random."""
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(6.5, 4.2))
    kept = [r for r in rows if r["row"].startswith("k_meta")]
    x, y = [int(r["row"].split()[1]) for r in kept], [100 * float(r["accuracy"]) for r in kept]
    spread = [[a - 100 * float(r["low"]) for a, r in zip(y, kept, strict=True)], [100 * float(r["high"]) - a for a, r in zip(y, kept, strict=True)]]
    axes.errorbar(x, y, spread, fmt="o-", ms=4, lw=1.2, capsize=2, color="tab:blue", label="guided: the k_meta best of 32 by meta logit")
    axes.plot(x, [100 * float(r["random"]) for r in kept], "s--", ms=4, lw=1, color="0.5", label="control: k_meta of 32 at random")
    axes.axhline(100 * float(rows[0]["accuracy"]), lw=1, ls=(0, (4, 3)), color="tab:green", label="Voting@32, all judgments")
    axes.set_xscale("log", base=2)
    axes.set_xticks(x, [str(a) for a in x])
    axes.set_xlabel("k_meta, judgments that vote")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    command, commits = caption(rows)
    figure.text(0.01, 0.01, f"{command}  |  commit {commits}\ntoy world, GRM, {rows[0]['items']} test items, seeds: {len(rows[0]['seeds'].split())}, "
                "95 % intervals over items", fontsize=6.5, color="0.35")
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_compute(rows, path):
    """Accuracy against FLOPs per item, one line per size of the judge: voted with k judgments, and greedy as a square."""
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(7.5, 5))
    sizes = {r["size"]: "" for r in rows if r["size"] and r["mflops"]}
    for size, colour in (("small", "tab:green"), ("medium", "tab:blue"), ("large", "tab:red")):
        points = [r for r in rows if r["size"] == size and r["mflops"]]
        for voted, style in ((True, "o-"), (False, "s")):
            part = [r for r in points if (r["greedy"] == "0") == voted]
            if part:
                x, y = [float(r["mflops"]) for r in part], [100 * float(r["accuracy"]) for r in part]
                spread = [[y[i] - 100 * float(r["low"]) for i, r in enumerate(part)], [100 * float(r["high"]) - y[i] for i, r in enumerate(part)]]
                axes.errorbar(x, y, spread, fmt=style, ms=5, lw=1.2, capsize=2, color=colour, mfc=colour if voted else "white",
                              label=f"{size}, {'Voting@k' if voted else 'greedy'}")
                for r, a, b in zip(part, x, y, strict=True):
                    axes.annotate(r["k"] if voted else "", (a, b), xytext=(3, -10), textcoords="offset points", fontsize=7, color=colour)
    ceiling = [r for r in rows if r["row"].startswith("undamaged") and r["accuracy"] != "not run"]
    if ceiling:
        axes.axhline(100 * float(ceiling[0]["accuracy"]), lw=1, ls=(0, (4, 3)), color="0.5", label=ceiling[0]["row"])
    axes.set_xscale("log")
    axes.set_xlabel("million FLOPs per item = 2 x parameters x k x (prompt + generated tokens)")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    command, commits = caption(rows)
    figure.text(0.01, 0.01, f"{command}  |  commit {commits}\ntoy world, after RFT and RL, numbers: k, 95 % intervals over items; seeds: " + ", ".join(
        f"{size} {max(len(r['seeds'].split()) for r in rows if r['size'] == size and r['greedy'] == '0')}" for size in sizes),
                fontsize=6.5, color="0.35")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=130)
    plt.close(figure)
