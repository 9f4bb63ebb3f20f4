"""The course of training runs in one figure, and early judgments beside late ones.

    python -m results.watch runs/toy/rl
    python -m results.watch "0.02=runs/toy/rl" "0=runs/ablations/beta-0/rl" --output runs/watch.png

Runs that are given one name, NAME=FOLDER, are seeds of one thing: one line, and the spread around
it. A run may still be at work. The figure's numbers are in a CSV file beside it. The judgments are
those that spct_rl.py keeps in samples.jsonl: one group of every step, of the first item drawn.
"""
import argparse
import textwrap
from itertools import zip_longest
from pathlib import Path

from plumbing.figures import LOOKS, Look, draw_courses, write_csv
from plumbing.runs import UserError, command_line, read_flags, read_rows

WIDTH = 58  # letters of a column in print
OTHERS = [Look(colour, line, "", "") for colour, line in (  # runs that have no name of the paper's
    ("#c2548c", "--"), ("#6b8e23", ":"), ("#7a4b2a", "-."), ("#4a6fa5", (0, (1, 1))))]


def read_groups(words):
    """{name: (look, [rows of metrics.jsonl of each run])} of NAME=FOLDER, or FOLDER."""
    named = {}
    for word in words:
        name, _, folder = word.rpartition("=")
        rows = [r for r in read_rows(Path(folder) / "metrics.jsonl")
                if isinstance(r, dict) and "step" in r]
        if not rows:
            raise UserError(f"{folder} has no metrics.jsonl with steps; give the folder of a "
                            "training run, runs/toy/rl for example")
        named.setdefault(name or folder, []).append(rows)
    return {name: (LOOKS.get(name, OTHERS[i % len(OTHERS)]), runs)
            for i, (name, runs) in enumerate(named.items())}


def early_and_late(rows):
    """Two groups of judgments from the rows of samples.jsonl: of one item, where one was drawn both
    in the first and in the last third of the steps; else the first and the last, if possible of
    items with several responses."""
    groups = {}
    for row in rows:
        if isinstance(row, dict) and {"advantage", "permutation", "rule_reward"} <= row.keys():
            groups.setdefault((row["step"], row["id"]), []).append(row)
    steps = [step for step, _ in groups]
    if len(set(steps)) < 2:
        return list(groups.values())[:1]
    third = (max(steps) - min(steps)) / 3
    early = {i: step for step, i in reversed(groups) if step <= min(steps) + third}
    late = {i: step for step, i in groups if step >= max(steps) - third}
    twice = [i for i in early if i in late]
    lists = [key for key in groups if len(groups[key][0]["rewards"]) > 1]
    keys = [(early[twice[0]], twice[0]), (late[twice[0]], twice[0])] if twice else (
        lists if len(lists) > 1 else list(groups))
    return [groups[keys[0]], groups[keys[-1]]]


def told(row):
    """One judgment in print: its reward and advantage, then what it wrote."""
    shown = ", ".join(str(i + 1) for i in row["permutation"])
    yield (f"reward {row['rule_reward']:+g}, advantage {row['advantage']:+.2f}; scores "
           f"{row['scores'] or row['reason']}; shown in the order {shown}")
    yield from row["text"].strip().splitlines()


def column(lines):
    return [part for line in lines for part in textwrap.wrap(line, WIDTH) or [""]]


def side_by_side(*texts):
    """Columns of print from as many lists of lines."""
    for cells in zip_longest(*map(column, texts), fillvalue=""):
        print(" | ".join(cell.ljust(WIDTH) for cell in cells).rstrip())


def print_judgments(folder, show_prompt):
    groups = early_and_late(read_rows(Path(folder) / "samples.jsonl"))
    if not groups:
        print(f"\n{folder} keeps no judgments (spct_rl.py does)")
        return
    print(f"\n=== {folder}: " + ", and ".join(
        f"item {g[0]['id']} at step {g[0]['step']}, labels {g[0]['rewards']}" for g in groups)
        + " (scores are in the order of the labels)")
    if show_prompt:
        side_by_side(*(g[0]["prompt"].splitlines() for g in groups))
    for rows in zip(*groups):
        print("-" * (WIDTH * len(rows)))
        side_by_side(*map(told, rows))


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="[NAME=]FOLDER", help="folders of runs")
    parser.add_argument("--output", default="runs/watch.png", help="the figure; a CSV file beside")
    parser.add_argument("--show_prompt", action="store_true", help="what the judge was asked, too")
    args = read_flags(parser)
    groups, path = read_groups(args.runs), Path(args.output).with_suffix(".png")
    write_csv(path.with_suffix(".csv"), [
        {"run": name, "number": number, **row} for name, (_, runs) in groups.items()
        for number, run in enumerate(runs) for row in run])
    draw_courses(groups, path)
    for word in args.runs:
        print_judgments(word.rpartition("=")[2], args.show_prompt)
    print(f"\nwrote {path} and {path.with_suffix('.csv')}")


if __name__ == "__main__":
    main()
