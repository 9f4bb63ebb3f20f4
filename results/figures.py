"""The figures of results/, from the tables and records: scaling.png, compute.png, fig4.png (beside
the paper's), rl_training.png, reasons.png, guidance.png. plumbing/figures.py has the looks that all
figures share.
"""
from pathlib import Path

import numpy as np

from plumbing.figures import (
    GUIDED,
    LOOKS,
    PANELS,
    draw_courses,
    draw_curves,
    draw_panel,
    label_ends,
    new_figure,
    save_figure,
    verb,
    write_csv,
)
from results.records import load, seeds_on_record
from results.tables import number

SIZES = {"small": "16B", "medium": "27B", "large": "671B"}  # and what the paper has in its place
SHADES = {"small": ("#4d8fc4", ":"), "medium": (LOOKS["vote"].colour, "-"),
          "large": ("#06213d", "--")}
STARTS = {"grm": ("RL from RFT", LOOKS["GRM"]),
          "general": ("RL from general data", LOOKS["oracle"]),
          "straight": ("RL from the base", LOOKS["base"])}

JUDGES = {"base": LOOKS["base"], "GRM-RFT": LOOKS["RFT"], "GRM": LOOKS["GRM"],
          "undamaged judge": LOOKS["oracle"]}


def draw(tables, folder=Path("results")):
    """All figures.  tables: of `tables.make_tables`."""
    scaling, compute = ({r["row"]: r for r in tables[name] if r["items"]}
                        for name in ("scaling", "compute"))
    if "vote @32" in scaling:
        draw_scaling(scaling, folder / "scaling.png")
    if "medium, Voting@32" in compute:
        draw_compute(compute, folder / "compute.png")
        draw_fig4(compute, scaling, folder / "fig4.png")
    draw_training(folder / "rl_training.png")


def curve_of(rows, prefix):
    """[{k, accuracy, low, high}] of the rows whose names are `prefix` and a k."""
    return [{**r, "k": int(name.removeprefix(prefix))} for name, r in rows.items()
            if name.removeprefix(prefix).isdigit()]


def paper_curve(rows, prefix):
    """[{k, accuracy}] that the paper has beside `curve_of`."""
    return [{"k": r["k"], "accuracy": number(r["paper"]) / 100} for r in curve_of(rows, prefix)
            if r["paper"]]


def draw_scaling(rows, path):
    """Votes, guided votes and the random control against k."""
    votes, guided = rows["vote @32"], rows["guided @32"]
    ceiling = rows.get("undamaged judge, greedy")
    told, helps = (verb(r["difference_low"], r["difference_high"], words) for r, words in (
        (votes, ("raise", "lower", "do not clearly change")),
        (guided, ("adds to that", "takes from that", "does not clearly change that"))))
    draw_curves(
        [{**r, "run": "GRM", "method": method} for method in ("vote", "guided", "random")
         for r in curve_of(rows, f"{method} @")], {"GRM, greedy": rows["greedy"]["accuracy"]}, path,
        f"Toy world, {votes['items']:,} test items, mean of {len(votes['seeds'].split())} seeds; "
        "bands: 95 % intervals over items.",
        f"32 votes {told} the GRM's accuracy, {100 * rows['vote @1']['accuracy']:.1f} to "
        f"{100 * votes['accuracy']:.1f} %; guidance by the meta RM {helps}",
        ceiling and ("undamaged judge, greedy", ceiling["accuracy"]))


def draw_compute(rows, path):
    """Accuracy against FLOPs per item, a line per size of the judge."""
    figure, [axes] = new_figure((8, 5))
    large, told, labels = rows.get("large, greedy"), [], []
    for size, (shade, line) in SHADES.items():
        greedy, votes = rows.get(f"{size}, greedy"), curve_of(rows, f"{size}, Voting@")
        if not (greedy and votes):
            continue
        for points, style in (([greedy], "D"), (votes, "o")):
            x, y = [r["mflops"] for r in points], [100 * r["accuracy"] for r in points]
            ends = [[abs(100 * r[end] - a) for r, a in zip(points, y)] for end in ("low", "high")]
            axes.errorbar(x, y, ends, fmt=style, ls=line, ms=6, lw=2, capsize=2, elinewidth=1,
                          color=shade)
        labels.append((y[-1], f"{size}, {votes[-1]['k']} votes {y[-1]:.1f}", shade))
        if large and size != "large":
            enough = next((r for r in votes if r["accuracy"] >= large["accuracy"]), None)
            told.append(f"{size} does not reach that with {votes[-1]['k']} votes" if not enough else
                        f"{size} reaches that with {enough['k']} vote{'s' * (enough['k'] > 1)}, "
                        f"{enough['mflops'] / large['mflops']:.1f} of its FLOPs")
    axes.set_xscale("log")
    axes.set_xlabel("million FLOPs per item")
    axes.set_ylabel("accuracy, %")
    label_ends(axes, labels)
    one, many = rows["medium, Voting@1"], rows["medium, Voting@32"]
    title = (f"Greedy, the large judge has {100 * large['accuracy']:.1f} %: " + ", ".join(told)
             if large else f"32 votes of medium cost {many['mflops'] / one['mflops']:.0f} times as "
             f"much as one, and {100 * (many['accuracy'] - one['accuracy']):+.1f} points")
    save_figure(figure, path, title, "Diamonds: greedy; then 1, 2, 4, ... votes. Toy "
                "world; means over seeds, 95 % intervals over items.")


def draw_fig4(compute, scaling, path):
    """The paper's Fig. 4 and ours: votes and guidance of one judge against greedy judges.

    The paper's numbers are those of rows.txt; of 16B and of k = 4 it has the figure only.
    """
    figure, panels = new_figure((11, 4.8), columns=2)
    sides = (("paper, Reward Bench", dict(SIZES), paper_curve(compute, "medium, guided @"),
              lambda size: paper_curve(compute, f"{size}, Voting@"),
              lambda size: number(compute[f"{size}, greedy"]["paper"]) / 100),
             ("here, toy world", {s: s for s in SIZES}, curve_of(scaling, "guided @"),
              lambda size: curve_of(compute, f"{size}, Voting@"),
              lambda size: compute[f"{size}, greedy"]["accuracy"]))
    for axes, (title, names, guided, votes, greedy) in zip(panels, sides):
        small = LOOKS["vote"]._replace(colour=SHADES["small"][0], line=SHADES["small"][1])
        sizes = [size for size in SIZES if f"{size}, greedy" in compute]
        draw_panel(axes, [(LOOKS["guided"], f"{names['medium']}, guided", guided)] + [
            (small if size == "small" else LOOKS["vote"], f"{names[size]}, votes", votes(size))
            for size in sizes if size != "large"],
            [(LOOKS["GRM"], names[size], greedy(size)) for size in sizes if size != "large"],
            [(LOOKS["GRM"], f"{names[size]}, greedy", greedy(size)) for size in sizes
             if size == "large"])
        best = max(votes("medium"), key=lambda p: p["k"])
        other = "large" if "large" in sizes else "medium"
        gain = best["accuracy"] - greedy(other)
        axes.set_title(f"{title}:\n{best['k']} votes of {names['medium']} are "
                       f"{100 * abs(gain):.1f} points {'above' if gain > 0 else 'below'} "
                       f"{names[other]}, greedy", loc="left", fontsize=12)
    panels[0].set_ylabel("accuracy, %")
    small_told = "16B and " if "small" in sizes else ""
    save_figure(figure, path, "", f"Diamonds{' and dashed line' * (other == 'large')}: greedy. "
                f"{GUIDED}Bands: 95 % intervals over items; the paper has none; its {small_told}"
                "k = 4 is read off its figure. The two axes differ in range.")


def draw_training(path):
    """The course of RL over all seeds; its numbers in a CSV file beside it."""
    rows, groups = [], {}
    for run, (name, look) in STARTS.items():
        for seed in seeds_on_record():
            course = (load(seed, f"{run}/rl") or {}).get("training", {})
            columns = {c: course[c] for c in ("step", *PANELS) if course}
            made = [dict(zip(columns, values)) for values in zip(*columns.values())]
            rows += [{"run": run, "seed": seed, **row} for row in made]
            if made:
                groups.setdefault(name, (look, []))[1].append(made)
    write_csv(path.with_suffix(".csv"), rows)
    if groups:
        draw_courses(groups, path)


def draw_reasons(rows, measures, path):
    """Shares of judgments with true reasons, and what the meta RM's choice changes (reasons.py)."""
    figure, panels = new_figure((14.5, 5.2), columns=2)
    named = {r["row"]: r for r in rows}
    measures = [m for m in measures if m != "all three"]  # next to none: a table shows it
    shares = measures.index("weight placed")
    for j, (judge, look) in enumerate(JUDGES.items()):
        for side, shift, fill in (("correct", 0, look.colour), ("incorrect", 0.08, "white")):
            for axes, label in zip(panels, (f"{judge}, sampled, {side}",
                                            f"{judge}, {side}, votes - left out"), strict=True):
                row = named.get(label, {})
                drawn = [i for i, m in enumerate(measures) if row.get(m) is not None]
                draw_points(axes, [i + 0.2 * (j - 1.7) + shift for i in drawn], [
                    [row[measures[i] + end] for end in ("", " low", " high")] for i in drawn],
                    look, fill, judge if not shift else None)
    sides = ("of the judgments, %", "judgments that vote - left out, points")
    for axes, title in zip(panels, sides, strict=True):
        axes.set_xticks(range(len(measures)), [m.replace(" ", "\n") for m in measures])
        axes.set_ylabel(title)
        axes.axvline(shares - 0.5, color="0.5", lw=1, ls=":")
    panels[1].axhline(0, color="0.3", lw=1)
    panels[0].legend(fontsize=9, frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    before, after = (named.get(f"{judge}, sampled, correct") for judge in ("base", "GRM"))
    told = "; ".join(f"{m} {100 * before[m]:.0f} to {100 * after[m]:.0f} %" for m in (
        "names what counts", "verdicts right")) if before and after else ""
    save_figure(figure, path, told and f"Correct judgments, from the base to the GRM: {told}",
                "Filled: correct judgments; hollow: incorrect ones. Before the dotted line: shares "
                "of judgments; behind it: means over them. Right panel: on the same items and "
                "seeds. Toy world; 95 % intervals over items.")


def draw_guidance(rows, best, path):
    """The gain of guidance against what predicts it best, and against k_meta (guidance.py).

    best: {"predictor": its name, "all@32", "toy@32": its rank correlations with the gain}
    """
    predictor = best["predictor"]
    figure, (left, right) = new_figure((13, 5.6), columns=2)
    numbers = {}  # of the judges; "e" after it: even votes
    labels, colours = [], [look.colour for look in LOOKS.values()]
    for r in rows:
        name, even, _ = r["point"].partition(", even")
        i = numbers.setdefault(name, len(numbers) + 1)
        look = LOOKS["even" if even else "guided"]._replace(colour=colours[(i - 1) % len(colours)])
        for k, fill in ((8, "white"), (32, look.colour)):
            draw_points(left, [100 * r[predictor]],
                        [[r[f"{end}@{k}"] for end in ("gain", "low", "high")]], look, fill)
        left.annotate(f"{i}e" if even else str(i), (100 * r[predictor], 100 * r["gain@32"]),
                      xytext=(6, -13 if even else 4), textcoords="offset points", fontsize=11,
                      color=look.colour)
        swept = {int(c.split()[1]): 100 * (v - r["vote@32"]) for c, v in r.items()
                 if c.startswith("k_meta ")}
        if swept:
            right.plot(list(swept), list(swept.values()), "o-", ms=3, color=look.colour)
            right.plot([r["best k_meta"]], [swept[r["best k_meta"]]], "*", ms=12,
                       color=look.colour)
            labels.append((list(swept.values())[-1], f"{i} {name}", look.colour))
    left.set_yscale("symlog", linthresh=4)  # most gains lie near 0
    left.set_yticks([-4, -2, 0, 2, 4, 10, 20], ["-4", "-2", "0", "2", "4", "10", "20"])
    left.set_xlabel(f"{predictor}, %")
    left.set_ylabel("guided - plain votes, points")
    right.set_xlabel("k_meta: judgments of 32 that vote")
    right.set_ylabel("gain over all 32 votes, points")
    right.axvline(16, color="0.5", lw=1, ls=":")
    for axes in (left, right):
        axes.axhline(0, color="0.3", lw=1)
    label_ends(right, labels)
    gains = [100 * r["gain@32"] for r in rows]
    save_figure(figure, path, f"At k = 32 guidance changes accuracy by {min(gains):+.1f} to "
                f"{max(gains):+.1f} points; rank correlation with {predictor}: "
                f"{best['all@32']:.2f}, on the toy alone {best['toy@32']:.2f}",
                "A number is a judge and its meta RM; e: every response first equally often. "
                "Filled: k = 32; hollow: k = 8. Left: a logarithmic scale beyond 4 points. "
                "Star: the best k_meta; dotted: the paper's k/2. "
                "95 % intervals over items.")


def draw_points(axes, x, points, look, fill, label=None):
    """Fractions (value, low, high) as percent, with their intervals."""
    if points:
        value, low, high = (100 * np.array(column) for column in zip(*points, strict=True))
        axes.errorbar(x, value, [value - low, high - value], fmt=look.marker, ms=7, capsize=2,
                      lw=1.2, color=look.colour, mfc=fill, label=label)
