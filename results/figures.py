"""The figures of results/: scaling.png, compute.png, rl_training.png, from the tables and records.

One colour per method in all figures: votes blue, guided red, random control gray.
"""
from pathlib import Path

from plumbing.figures import draw_curves, write_csv
from results.records import load, seeds_on_record

PANELS = {"reward/mean": "reward, -1 to 1", "policy/kl": "KL to the start, nats a token",
          "len/mean": "length of a judgment, tokens", "reward/parse_rate": "share that parses",
          "reward/frac_zero_std": "groups of one reward, share",
          "policy/entropy": "entropy, nats a token"}
STARTS = {"grm": ("from RFT, as the paper", "tab:blue"),
          "general": ("from general data only", "tab:orange"),
          "straight": ("from the base", "tab:gray")}


def draw(tables, folder=Path("results")):
    """All figures.  tables: of `tables.make_tables`."""
    import matplotlib
    matplotlib.use("Agg")
    draw_scaling(tables["scaling"], folder / "scaling.png")
    draw_compute(tables["compute"], folder / "compute.png")
    draw_training(folder / "rl_training.png")


def draw_scaling(rows, path):
    """Votes, guided votes and the random control against k; the title says what was found."""
    named = {r["row"]: r for r in rows if r["items"]}
    curves = [{**r, "run": "GRM", "method": method, "k": int(k)} for r in named.values()
              for method, _, k in [r["measure"].partition("@")]
              if method in ("vote", "guided", "random") and " against " not in r["row"]
              and not r["row"].startswith("undamaged")]
    if not curves:
        return
    guided = named["guided @32"]
    found = ("helps" if guided["difference_low"] > 0 else
             "hurts" if guided["difference_high"] < 0 else "is not seen to help")
    one, many = (f"{100 * named[f'vote @{k}']['accuracy']:.1f}" for k in (1, 32))
    draw_curves(
        curves, {"greedy": named["greedy"]["accuracy"]}, path,
        f"toy world, {guided['items']:,} test items, mean of {len(guided['seeds'].split())} seeds; "
        "bands: 95 % intervals over items",
        f"Votes lift the GRM from {one} to {many} %; guidance by the meta RM {found} at k = 32",
        ("ceiling: undamaged judge", named["undamaged judge, greedy"]["accuracy"]))


def draw_compute(rows, path):
    """Accuracy against FLOPs per item, a line per size of the judge; the squares are greedy."""
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(7.5, 4.8))
    for size, shade in (("small", "#9ecae1"), ("medium", "tab:blue"), ("large", "#08306b")):
        points = [r for r in rows if r["row"].startswith(size) and r["items"]]
        for part, style in ((points[:1], "s"), (points[1:], "o-")):
            x, y = [r["mflops"] for r in part], [100 * r["accuracy"] for r in part]
            ends = [[abs(100 * r[end] - a) for r, a in zip(part, y)] for end in ("low", "high")]
            axes.errorbar(x, y, ends, fmt=style, ms=5, lw=1.5, capsize=2, color=shade)
        for r in points[1:]:
            axes.annotate(r["measure"].split("@")[1], (r["mflops"], 100 * r["accuracy"]),
                          xytext=(3, -11), textcoords="offset points", fontsize=7, color=shade)
        if points:
            axes.annotate(size, (points[0]["mflops"], 100 * points[0]["accuracy"]), ha="right",
                          xytext=(-9, -3), textcoords="offset points", color=shade)
    axes.set_xscale("log")
    axes.margins(x=0.12)  # room for the names of the sizes
    axes.set_xlabel("million FLOPs per item")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Three sizes of the judge: votes of k judgments (small numbers: k), greedy "
                   "(squares)", loc="left", fontsize=10)
    save(figure, path)


def draw_training(path):
    """The course of RL, a line per seed; its numbers in a CSV file beside it."""
    import matplotlib.pyplot as plt
    rows = []
    for run in STARTS:
        for seed in seeds_on_record():
            course = (load(seed, f"{run}/rl") or {}).get("training", {})
            columns = {c: course[c] for c in ("step", *PANELS) if course}
            rows += [{"run": run, "seed": seed, **dict(zip(columns, values))}
                     for values in zip(*columns.values())]
    write_csv(path.with_suffix(".csv"), rows)
    figure, grid = plt.subplots(2, 3, figsize=(11, 5.5))
    for axes, (key, title) in zip(grid.flat, PANELS.items()):
        for run, (label, colour) in STARTS.items():
            for seed in dict.fromkeys(r["seed"] for r in rows if r["run"] == run):
                line = [r for r in rows if (r["run"], r["seed"]) == (run, seed)]
                axes.plot([r["step"] for r in line], [r[key] for r in line], lw=1, alpha=0.8,
                          color=colour, label=label)
                label = None
        axes.set_title(title, loc="left", fontsize=9)
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].legend(fontsize=8, frameon=False)
    for axes in grid[1]:
        axes.set_xlabel("RL step (64 items x 4 judgments)")
    save(figure, path)


def save(figure, path):
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    figure.clear()
