"""What is made of results/*.csv alone: the figures, and the tables of README.md (no number is typed by hand)."""
import csv
import re
from pathlib import Path

import eval as evaluation
from runs import write_text
from toy import DOMAINS

BY_DOMAIN = ("methods", "kl")  # tables of the README that show the domains too; the CSV files all do
VALUES = {"accuracy": "accuracy, %", "auc": "ROC-AUC, %", "share": "share, %", "tokens": "tokens"}  # column: its heading


def read(name, folder=Path("results")):
    """Rows of results/NAME.csv; [] if there is none."""
    path = Path(folder) / f"{name}.csv"
    return list(csv.DictReader(open(path, encoding="utf-8"))) if path.exists() else []


def caption(rows):
    """The command, and the commits of all runs behind the rows."""
    return rows[0].get("command", "python results/reproduce.py --tables"), " ".join(dict.fromkeys(c for r in rows for c in r["commit"].split()))


# ----- README.md -----

def fill_readme():
    """Tables of README.md between <!-- table NAME --> and <!-- end -->, from results/NAME.csv."""
    text = Path("README.md").read_text(encoding="utf-8")
    for pattern, lines_of in (("<!-- (domains) -->", domain_lines), (r"<!-- table (\w+) -->", table_lines)):
        def block(match, lines_of=lines_of):
            rows = read(match[2])
            if not rows:
                return match[0]
            command, commits = caption(rows)
            return "\n".join([match[1], *lines_of(match[2], rows), "", f"`{command}`, commit {commits}.", "<!-- end -->"])
        text = re.sub(f"({pattern}).*?<!-- end -->", block, text, flags=re.S)
    write_text("README.md", text)


def percent(value):
    return f"{100 * float(value):.1f}"


def table_lines(name, rows):
    value = next(v for v in VALUES if v in rows[0])
    scale, unit = (1, "tokens") if value == "tokens" else (100, "points")
    judged, domains = ["verdict"] if "verdict" in rows[0] else [], list(DOMAINS) if name in BY_DOMAIN else []
    heads = [VALUES[value], "95 % interval", "per seed", f"paired difference, {unit}", "paper", *judged, *domains]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for r in rows:
        cells = [r["row"], "not run", "", "", ""]
        if r[value] != "not run":
            numbers = {c: scale * float(r[c]) for c in (value, "low", "high", "difference_low", "difference_high") if r.get(c)}
            cells[1:4] = [f"{numbers[value]:.1f}", f"{numbers['low']:.1f} - {numbers['high']:.1f}", r["seeds"]]
            if "difference_low" in numbers:
                cells[4] = f"{numbers['difference_low']:+.1f} to {numbers['difference_high']:+.1f}"
                cells[4] += f" ({r['against']})" if r.get("against") else ""
        cells += [r["paper"], *[r[c] for c in judged], *[percent(r[d]) if r[d] else "" for d in domains]]
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
    """results/scaling.png and results/rl_training.png from the CSV files beside them alone."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    rows = read("scaling", folder)
    if rows:
        points = [{"run": "GRM", "method": r["method"], "k": int(r["k"]), **{c: float(r[c]) for c in ("accuracy", "low", "high")}}
                  for r in rows if r["method"]]
        flat = {r["row"].replace(", greedy", ""): float(r["accuracy"]) for r in read("training", folder)
                if r["row"].endswith(", greedy") and "general" not in r["row"] and "straight" not in r["row"] and r["low"]}
        flat["chance"] = float(rows[0]["chance"])
        command, commits = caption(rows)
        evaluation.draw_curves(points, flat, folder / "scaling.png", f"{command}  |  commit {commits}  |  toy world, {rows[1]['items']} "
                               f"test items, seeds of the curves: {len(rows[1]['seeds'].split())}, 95 % intervals over items")
    rows = read("rl_training", folder)
    if rows:
        panels = {"reward/mean": "rule reward (-1..1)", "policy/kl": "KL to the RFT model, nats per token",
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
        axes[1, 1].set_xlabel("RL step (64 items x 4 judgments)")
        command, commits = caption(rows)
        figure.text(0.01, 0.01, f"{command}  |  commit {commits}  |  one line per seed, toy world", fontsize=6.5, color="0.35")
        figure.tight_layout(rect=(0, 0.03, 1, 1))
        figure.savefig(folder / "rl_training.png", dpi=130)
        plt.close(figure)
