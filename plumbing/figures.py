"""Plumbing: tables as text and CSV, and the figure of accuracy against k."""
import csv
import io
from collections import Counter

from plumbing.records import unread
from plumbing.runs import UserError, write_text

# One colour per method in all figures, and what a reader calls it.
METHODS = {"vote": ("tab:blue", "votes of all k"),
           "guided": ("tab:red", "votes of the meta RM's best half"),
           "random": ("tab:gray", "votes of a random half"),
           "oracle": ("tab:green", "any of k is right")}
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


def draw_curves(table, flat, path, caption, title=None, ceiling=None):
    """PNG of accuracy against k (log2 axis, 95 % intervals), the name of a curve at its end.

    table: rows of `eval.curve`.  flat: {name: accuracy} of greedy judges, markers at k = 1, and of
    "chance".  ceiling: (name, accuracy) of a judge that the others cannot pass, one line.
    What lies far from the curves (a weak judge, the oracle) would crush them and is only told.
    """
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    runs = sorted({row["run"] for row in table})
    curves = {}
    for run in runs:
        for method in METHODS:
            points = [r for r in table if (r["run"], r["method"]) == (run, method)]
            if points and not (method == "oracle" and len(runs) > 1):
                curves[run, method] = points

    # 1. the range of the curves, widened to what lies within one such range of it
    inner = [p for (_, method), points in curves.items() if method != "oracle" for p in points]
    values = [p[end] for p in inner for end in ("low", "high")] or list(flat.values())
    span = max(max(values) - min(values), 0.02)
    low, high = min(values) - span, max(values) + span
    drawn = {key: points for key, points in curves.items()
             if all(low < p["accuracy"] < high for p in points)}
    marks = {name: v for name, v in flat.items() if low < v < high and name != "chance"}
    values += [p["accuracy"] for points in drawn.values() for p in points] + [*marks.values()]
    values += [ceiling[1]] if ceiling else []
    low, high = 100 * min(values), 100 * max(values)
    low, high = low - 0.06 * (high - low), min(high + 0.06 * (high - low), 100.5)
    gap = 0.045 * (high - low)
    told = [f"{name} {100 * v:.1f}" for name, v in flat.items() if name not in marks]
    told += [f"{METHODS[key[1]][1]} {100 * points[-1]['accuracy']:.1f}"
             for key, points in curves.items() if key not in drawn]

    # 2. curves and the ceiling, their names right of the axes; greedy judges left of k = 1
    figure, axes = plt.subplots(figsize=(8.5, 4.8))
    labels = []
    for (run, method), points in drawn.items():
        (colour, name), k = METHODS[method], [p["k"] for p in points]
        ends = [[100 * p[end] for p in points] for end in ("accuracy", "low", "high")]
        axes.plot(k, ends[0], ["-", "--", ":", "-."][runs.index(run) % 4], marker="o", ms=4,
                  lw=1.8, color=colour)
        axes.fill_between(k, *ends[1:], color=colour, alpha=0.12, lw=0)
        name += f" ({run})" if len(runs) > 1 else ""
        labels.append((ends[0][-1], f"{name} {ends[0][-1]:.1f}", colour))
    if ceiling:
        axes.axhline(100 * ceiling[1], lw=1, ls=(0, (4, 3)), color="0.3")
        labels.append((100 * ceiling[1], f"{ceiling[0]} {100 * ceiling[1]:.1f}", "0.3"))
    places = apart([height for height, _, _ in labels], gap)
    for (_, text, colour), place in zip(labels, places, strict=True):
        axes.annotate(text, (1, place), xycoords=("axes fraction", "data"), xytext=(6, -3),
                      textcoords="offset points", fontsize=9, color=colour, annotation_clip=False)
    ticks = sorted({row["k"] for row in table}) or [1]
    places = apart([100 * v for v in marks.values()], gap)
    for (name, v), place in zip(marks.items(), places, strict=True):
        axes.plot([ticks[0]], [100 * v], "D", ms=6, color="black", zorder=3)
        axes.annotate(f"{name} {100 * v:.1f}", (ticks[0], place), xytext=(-8, -3), ha="right",
                      textcoords="offset points", fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(t) for t in ticks])
    room = max((len(name) + 5 for name in marks), default=0)  # letters left of k = 1
    axes.set_xlim(ticks[0] / 2 ** (0.3 + 0.08 * room), max(3, ticks[-1] * 1.2))
    axes.set_ylim(low, high if high > low else low + 1)
    axes.set_xlabel("judgments per item, k")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title or "", loc="left", fontsize=11)
    if told:
        axes.text(0.99, 0.02, "not drawn: " + ", ".join(told), transform=axes.transAxes,
                  ha="right", fontsize=8, color="0.35")
    figure.text(0.01, -0.02, caption, fontsize=7, color="0.35", va="top")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150, bbox_inches="tight")
    plt.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
