"""Plumbing: what programs print of a run, tables as text and CSV, and figures."""
import csv
import io
import math
import textwrap
from collections import Counter, defaultdict
from statistics import fmean, pstdev
from typing import NamedTuple

from plumbing.records import unread
from plumbing.runs import UserError, whole, write_text

PERCENT = {"accuracy", "low", "high", "lenient", "chance", "parse_rate", "tie_rate", "auc_single",
           "first_position", "first_expected", "swap_consistency", "longest", "longest_wins",
           "both_orders", "difference_low", "difference_high", "attack_wins"}


def print_item(example, judgments, votes, rewards, clamped, show_prompt):
    """One item and its judgments in print: y1, y2, ... are the responses in the original order.

    The judge numbers them in the order that it was shown; which is which stands above its words.
    votes: n numbers or None.  rewards: per judgment +1 or -1, or None where there is no truth.
    """
    def named(values):
        return ", ".join(f"y{i} {value}" for i, value in enumerate(values, 1))
    print(f"=== {example.id}: {example.prompt[-1]['content']}")
    for i, text in enumerate(example.responses):
        label = f" (label {example.rewards[i]:g})" if example.rewards else ""
        print(f"y{i + 1}{label}: {text}")
    for number, j in enumerate(judgments):
        if show_prompt:
            print(f"--- prompt of judgment {j.sample}\n{j.prompt}")
        places = ", ".join(f"Response {p} is y{i + 1}" for p, i in enumerate(j.permutation, 1))
        told = f"parse: {j.reason}{', clamped' * clamped[number]}"
        told += f"; {named(j.scores)}" if j.scores else ""
        if rewards:
            right = "correct" if rewards[number] > 0 else "not correct"
            told += f"; {right} (Eq. 10), reward {rewards[number]:+g} (Eq. 11)"
        print(f"--- judgment {j.sample}: {places}\n{j.text}\n--- {told}")
    valid = sum(j.scores is not None for j in judgments)
    print(f"--- votes, {valid} of {len(judgments)} judgments valid: "
          f"{named(votes) if votes else 'none'}\n")


def tell_unparsed(name, judgments, served=None):
    """A loud line and three outputs where (nearly) nothing parses: they show why, a count does not.

    judgments: dicts with "scores", "text" and mostly "reason".  served: the judge is on a server.
    """
    bad = [j for j in judgments if j["scores"] is None]
    if not bad or len(bad) < 0.9 * len(judgments):
        return
    reasons = Counter(j.get("reason", "unparsed") for j in bad)
    told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    print(f"WARNING: {name}: {len(bad)} of {len(judgments)} judgments did not parse ({told}); no "
          "figure of this judge means anything. It wrote:")
    for j in bad[:3]:
        text = j["text"]
        shown = text if len(text) <= 300 else f"{text[:150]} ... {text[-150:]}"
        print(f"  {j.get('reason', 'unparsed')}: {shown!r}")
    print("truncated: raise --max_new_tokens; of a thought without an end, --thinking off. no_box: "
          "the model does not know the format; " +
          ("serve one that does" if served else "spct_rft.py --format_only teaches it"))


def nothing_kept(report, judgments, format_only):
    """The UserError of an RFT that has nothing to train on. judgments: as sampled, dicts."""
    reasons = Counter(j["reason"] for j in judgments)
    if format_only:  # one is written for each item whose prompt fits
        advice = "no prompt fits the model: shorten the items, or lower --max_new_tokens"
    elif 2 * reasons["ok"] >= reasons.total():
        advice = "use a stronger --sampler or more items (--limit)"
    else:
        advice = ("this model hardly writes the format: run spct_rft.py --format_only with another "
                  "--output, and then this with its model as --model")
    return UserError(f"no judgment survived of {report['items']} items "
                     f"({dict(report['non_hinted'])}; parsing: {dict(reasons)}); {advice}")


def print_selection(report, kept):
    """selection.json in print: what was kept and rejected, then by domain."""
    print(f"{report['items']} items, {kept} judgments kept")
    for kind in filter(report.get, ("non_hinted", "hinted", "written")):
        total = sum(report[kind].values())
        print(f"  {kind:<11}" + "".join(f"  {fate} {count} ({100 * count / total:.0f}%)"
                                         for fate, count in sorted(report[kind].items())))
    if "written" in report:  # nothing was selected
        return
    for domain, counts in sorted(report["by_domain"].items()):
        print(f"  {domain:<11}  kept {counts['non_hinted/kept']} non-hinted, "
              f"{counts['hinted/kept']} hinted; too easy {counts['non_hinted/too_easy']}, "
              f"incorrect {counts['non_hinted/incorrect']}")


def was_clamped(text, scores, parse):
    """Whether 1-10 scores were moved to an end. A judge on another scale would hide behind that.

    parse: `grm.parse_scores`, which does not move them unless it is asked to.
    """
    return scores is not None and parse(text, len(scores))[1] == "out_of_range"


def clamped_share(rows, parse):
    """Share of the judgments in rows of samples.jsonl whose scores were outside 1-10."""
    found = [was_clamped(s.get("text", ""), s["scores"], parse) for r in rows for s in r["samples"]]
    return sum(found) / max(1, len(found))


def tell_judged(output, rows, parse, served):
    """What is wrong with the judgments of a run, if it is much."""
    tell_clamped(output, clamped_share(rows, parse))
    tell_unparsed(output, [s for row in rows for s in row["samples"]], served)


def tell_unlabelled(accelerator, examples):
    unlabelled = sum(e.rewards is None for e in examples)
    if unlabelled:
        accelerator.print(f"{unlabelled} of {len(examples)} items have no 'rewards': judged, not "
                          f"graded{unread(examples)}")


def tell_clamped(name, share):
    """A loud line if more than a few scores of a run were outside 1-10, which hides a bad judge."""
    if share > 0.01:
        print(f"WARNING: {name}: {100 * share:.1f} % of the judgments have a score outside 1-10, "
              "moved to its end: does this judge use another scale? Then its scores mean little")


def tell_few_items(accelerator, count, per_step, G):
    if G == 1:
        accelerator.print("warning: --G 1: alone in its group every judgment has advantage 0, so "
                          "rewards teach nothing; give at least 2")
    if count < per_step:
        accelerator.print(f"only {count} distinct items per step: some are drawn more than once; "
                          "more data, or a lower --prompts_per_step, would be better")


def tell_equal_rewards(accelerator, dead, steps):
    """dead: steps so far, in a row, in which every group had equal rewards."""
    if dead == min(5, steps):
        accelerator.print(f"\nin {dead} steps in a row every group had equal rewards, so there is "
                          "nothing to learn; look at reward/parse_rate, then try other data, a "
                          "larger --G or a higher --temperature")


def write_csv(path, rows):
    """Rows (dicts) as CSV, columns in the order of their first appearance."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()})
    write_text(path, text.getvalue())


def print_table(rows, columns):
    """Fractions (0..1) as percent, the rest as it is; "-" for None."""
    def show(row, c):
        value = row.get(c, "")
        if value is None or isinstance(value, str) or value != value:  # NaN is unlike itself
            return value if isinstance(value, str) and value else "-"
        if c in PERCENT:
            return f"{100 * value:.1f}"
        return f"{value:.1f}" if isinstance(value, float) else str(value)
    widths = [max(len(c), *(len(show(r, c)) for r in rows)) for c in columns]
    for line in [columns] + [[show(r, c) for c in columns] for r in rows]:
        cells = zip(line, widths, strict=True)
        print("  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(cells)))


# ----- figures -----

class Look(NamedTuple):
    """How one thing is drawn wherever it is drawn. Lines and markers tell it apart in grey too."""
    colour: str
    line: str
    marker: str
    name: str


LOOKS = {"base": Look("#b87a00", "--", "v", "base"),
         "RFT": Look("#7b3fa0", "-.", "^", "RFT"),
         "GRM": Look("black", "-", "D", "GRM"),
         "vote": Look("#0b5394", "-", "o", "votes"),
         "guided": Look("#e0561f", "-", "s", "guided"),
         "random": Look("#8a8a8a", "--", "x", "random half"),
         "even": Look("#1792a4", "-.", "P", "both orders"),
         "oracle": Look("#3a923a", ":", "*", "any is right")}
METHODS = ("vote", "guided", "random", "oracle")  # with a curve over k
GUIDED = "Guided: votes of the meta RM's best half. "


def new_figure(size, rows=1, columns=1, **options):
    """(figure, its panels from left to right and down). Letters can be read at half the size."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
    for axes in grid.flat:
        axes.grid(alpha=0.2)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=11)
        axes.xaxis.label.set_size(12)
        axes.yaxis.label.set_size(12)
    return figure, list(grid.flat)


def save_figure(figure, path, title, caption=""):
    """Write the PNG: the title above the panels, the caption below, both as wide as the panels."""
    import matplotlib.pyplot as plt
    width = int(11 * figure.get_size_inches()[0])  # letters of a line
    figure.suptitle(textwrap.fill(title, width), x=0.01, ha="left", fontsize=13)
    figure.tight_layout()
    figure.text(0.01, -0.01, textwrap.fill(caption, int(1.3 * width)), fontsize=10, color="0.35",
                va="top")
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight", format="png")
    plt.close(figure)


def apart(places, gap):
    """The places, moved so that any two lie at least `gap` apart: labels beside lines that meet.

    >>> apart([1.0, 5.0, 1.2], 1.0)
    [0.6, 5.0, 1.6]
    """
    groups = []  # [indices from low to high, their middle]; groups that touch become one
    for i in sorted(range(len(places)), key=lambda i: places[i]):
        groups.append([[i], places[i]])
        while len(groups) > 1:
            (lower, below), (upper, above) = groups[-2:]
            if above - below >= gap * (len(lower) + len(upper)) / 2:
                break
            members = lower + upper
            groups[-2:] = [[members, sum(places[j] for j in members) / len(members)]]
    moved = list(places)
    for members, middle in groups:
        for rank, i in enumerate(members):
            moved[i] = round(middle + gap * (rank - (len(members) - 1) / 2), 9)
    return moved


def label_ends(axes, labels, gap=0.06):
    """Names right of a panel. labels: [(height, text, colour)]; gap: in heights of the panel."""
    low, high = axes.get_ylim()
    places = apart([height for height, _, _ in labels], gap * (high - low))
    for (_, text, colour), place in zip(labels, places, strict=True):
        axes.annotate(text, (1, place), xycoords=("axes fraction", "data"), xytext=(6, -4),
                      textcoords="offset points", fontsize=11, color=colour, annotation_clip=False)


def draw_panel(axes, curves, marks=(), lines=(), limits=None):
    """Accuracy against k (log2 axis), each name at the end of its curve.

    curves: [(look, label, points)], points: dicts with k, accuracy and, for a band, low and high.
    marks: [(look, label, accuracy)] of greedy judges, left of k = 1.  lines: the same, of what
    would be a horizontal line.  limits: of the axis, where panels share it. All are fractions.
    """
    ticks = sorted({p["k"] for _, _, points in curves for p in points}) or [1]
    values = [p[end] for _, _, points in curves for p in points
              for end in ("accuracy", "low", "high") if end in p]
    values = [100 * v for v in limits or values + [v for _, _, v in (*marks, *lines)]]
    room = 0.06 * (max(values) - min(values)) or 1
    axes.set_ylim(min(values) - room, max(values) + room)
    labels = []
    for look, label, points in curves:
        k, height = [p["k"] for p in points], [100 * p["accuracy"] for p in points]
        axes.plot(k, height, look.line, marker=look.marker, ms=6, lw=2, color=look.colour)
        if "low" in points[0]:
            axes.fill_between(k, *([100 * p[end] for p in points] for end in ("low", "high")),
                              color=look.colour, alpha=0.12, lw=0)
        text = f"{label} {height[-1]:.1f}"
        if k[-1] == ticks[-1]:
            labels.append((height[-1], text, look.colour))
        else:  # it ends before the others
            axes.annotate(text, (k[-1], height[-1]), xytext=(8, -4), fontsize=11,
                          textcoords="offset points", color=look.colour)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.set_xlabel("judgments per item, k")

    # marks and their names stand left of k = 1; how much of the panel is that?
    letters = max((len(label) + 7 for _, label, _ in marks), default=0)
    inches = 0.55 * axes.figure.get_size_inches()[0] / axes.get_gridspec().ncols
    share = min(0.6, (0.1 + 0.09 * letters) / inches)
    right = max(3, ticks[-1] * 1.2)
    axes.set_xlim(ticks[0] / (right / ticks[0]) ** (share / (1 - share)), right)
    for look, label, v in lines:
        axes.plot([ticks[0], right], [100 * v] * 2, lw=1.2, ls=(0, (4, 3)), color=look.colour)
        labels.append((100 * v, f"{label} {100 * v:.1f}", look.colour))
    label_ends(axes, labels)
    low, high = axes.get_ylim()
    places = apart([100 * v for _, _, v in marks], 0.06 * (high - low))
    for (look, label, v), place in zip(marks, places, strict=True):
        axes.plot([ticks[0]], [100 * v], look.marker, ms=7, color=look.colour, zorder=3)
        axes.annotate(f"{label} {100 * v:.1f}", (ticks[0], place), xytext=(-9, -4), ha="right",
                      textcoords="offset points", fontsize=11, color=look.colour)


def look_of(name):
    """The look of a judge by its name; black for one that is none of the paper's."""
    return LOOKS.get(name.split(",")[0], LOOKS["GRM"])


def draw_curves(table, flat, path, caption, title=None, ceiling=None):
    """PNG of accuracy against k with 95 % intervals; without a title, it says what is found.

    table: rows of `eval.curve`.  flat: {name: accuracy} of greedy judges, and of "chance".
    ceiling: (name, accuracy) of a judge that the others cannot pass, one line.
    What lies far from the curves (a weak judge, the oracle) would crush them and is only told.
    """
    runs = sorted({row["run"] for row in table})
    curves = {}
    for run in runs:
        for method in METHODS:
            points = [r for r in table if (r["run"], r["method"]) == (run, method)]
            if points and not (method == "oracle" and len(runs) > 1):
                curves[run, method] = points

    # the range of the curves, widened to what lies within one such range of it
    inner = [p for (_, method), points in curves.items() if method != "oracle" for p in points]
    values = [p[end] for p in inner for end in ("low", "high")] or list(flat.values())
    span = max(max(values) - min(values), 0.02)
    low, high = min(values) - span, max(values) + span
    drawn = {key: points for key, points in curves.items()
             if all(low < p["accuracy"] < high for p in points)}
    marks = {name: v for name, v in flat.items() if low < v < high and name != "chance"}
    told = [f"{name} {100 * v:.1f}" for name, v in flat.items() if name not in marks]
    told += [f"{LOOKS[key[1]].name} {100 * points[-1]['accuracy']:.1f}"
             for key, points in curves.items() if key not in drawn]

    figure, [axes] = new_figure((7.5, 5))
    looks, several = {}, len(runs) > 1
    for run, method in drawn:  # of several runs each has its own line
        line = ["-", "--", ":", "-."][runs.index(run) % 4] if several else LOOKS[method].line
        looks[run, method] = LOOKS[method]._replace(line=line)
    draw_panel(
        axes, [(looks[key], LOOKS[key[1]].name + f" ({key[0]})" * several, points)
               for key, points in drawn.items()],
        [(look_of(name), name, v) for name, v in marks.items()],
        [(Look("0.3", "", "", ""), *ceiling)] if ceiling else [])
    axes.set_ylabel("accuracy, %")
    told = f"Not drawn: {', '.join(told)}. " if told else ""
    guided = GUIDED if any(method == "guided" for _, method in drawn) else ""
    save_figure(figure, path, title or found_in(table, flat), guided + told + caption)


def found_in(table, flat):
    """What the curves show, as a title. Up or down is said where the intervals lie apart."""
    curves = defaultdict(list)
    for row in table:
        curves[row["method"], row["run"]].append(row)
    plain = {run: rows for (method, run), rows in curves.items() if method == "vote"}
    if len(plain) != 1:
        told = [f"{run} {100 * rows[-1]['accuracy']:.1f} ({rows[-1]['k']} votes)"
                for run, rows in plain.items()]
        return "Accuracy, %: " + ", ".join(
            told or [f"{name} {100 * v:.1f}" for name, v in flat.items()])
    [(run, rows)] = plain.items()
    one, many = rows[0], rows[-1]
    told = (f"{many['k']} votes {verb(many['low'] - one['high'], many['high'] - one['low'])} "
            f"accuracy, {100 * one['accuracy']:.1f} to {100 * many['accuracy']:.1f} %")
    guided = curves["guided", run]
    return told + (f"; guided: {100 * guided[-1]['accuracy']:.1f} %" if guided else "")


def verb(low, high, words=("raise", "lower", "do not clearly change")):
    """The word for a difference whose interval is (low, high)."""
    return words[0] if low > 0 else words[1] if high < 0 else words[2]


PANELS = {"reward/mean": "reward, -1 to 1", "policy/kl": "KL, nats a token",
          "len/mean": "length, tokens", "reward/parse_rate": "parse rate, share",
          "reward/frac_zero_std": "groups of equal rewards, share",
          "policy/entropy": "entropy, nats a token"}


def draw_courses(groups, path, title=None):
    """PNG of the course of training. groups: {name: (look, [rows of metrics.jsonl of each run])}.

    Runs of one group are one line: the mean over runs and over a few steps (a tenth of the course),
    in a band of one standard deviation of what was averaged. Without RL's metrics: all there are.
    """
    rows = [row for _, runs in groups.values() for run in runs for row in run]
    seen = dict.fromkeys(k for row in rows for k, v in row.items() if isinstance(v, (int, float)))
    keys = [k for k in PANELS if k in seen] or [
        k for k in seen if k != "step" and k.split("/")[0] not in ("time", "memory", "seconds")]
    figure, panels = new_figure((10, 2.9 * math.ceil(len(keys) / 3)), math.ceil(len(keys) / 3),
                                min(3, len(keys)), sharex=True)
    spread = 0
    for number, (key, axes) in enumerate(zip(keys, panels)):
        labels = []
        for name, (look, runs) in groups.items():
            steps, means, stds, window = course(runs, key)
            spread = max(spread, window)
            if not steps:
                continue
            axes.plot(steps, means, look.line, lw=2, color=look.colour,
                      marker="o" if len(steps) == 1 else "")
            seen = [row[key] for run in runs for row in run
                    if isinstance(row.get(key), (int, float))]
            band = ([min(max(m + sign * s, min(seen)), max(seen)) for m, s in zip(means, stds)]
                    for sign in (-1, 1))  # a share's band ends at 0 and at 1
            axes.fill_between(steps, *band, color=look.colour, alpha=0.15, lw=0)
            labels.append((means[-1], name, look.colour))
        if len(groups) > 1 and (number % 3 == 2 or number == len(keys) - 1):
            label_ends(axes, labels, gap=0.11)
        axes.set_title(PANELS.get(key, key), loc="left", fontsize=11)
        if number >= len(keys) - 3:
            axes.set_xlabel("step")
    for axes in panels[len(keys):]:
        axes.remove()
    save_figure(figure, path, title or risen(groups, keys[0]),
                f"Line: mean over runs and {spread} steps around; band: one standard deviation.")


def course(runs, key):
    """(steps, means, standard deviations, steps in a mean) of one metric over some runs."""
    at = defaultdict(list)
    for row in (row for run in runs for row in run):
        if isinstance(row.get(key), (int, float)):
            at[row["step"]].append(row[key])
    steps, half = sorted(at), len(at) // 20
    pooled = [[v for s in steps[max(0, i - half):i + half + 1] for v in at[s]]
              for i in range(len(steps))]
    return steps, [fmean(p) for p in pooled], [pstdev(p) for p in pooled], 2 * half + 1


def risen(groups, key):
    """Title: the metric over the first and over the last tenth of the steps, by group."""
    told = []
    for name, (_, runs) in groups.items():
        values = [[r[key] for r in run if isinstance(r.get(key), (int, float))] for run in runs]
        parts = [(len(v) // 10 or 1, v) for v in values if v]
        if parts:
            ends = fmean(fmean(v[:n]) for n, v in parts), fmean(fmean(v[-n:]) for n, v in parts)
            told.append(f"{name} {ends[0]:.2f} to {ends[1]:.2f}")
    what = PANELS.get(key, key).split(",")[0]
    return f"{what.capitalize()}, first to last tenth of the steps: " + ", ".join(told)
