"""`make demo`: RFT -> RL -> meta RM -> votes -> evaluation on the toy world, then the table.

Prints every command before it runs it; each is a line that you can run yourself. Finished stages
are not run again. Writes summary.json and, by eval.py, the tables and the figure.
"""
import argparse
import csv
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from eval import bootstrap_ci, credit, graded, item_credit, mean, paired_ci, report
from plumbing.runs import (
    ROOT,
    UserError,
    command_line,
    content,
    git_commit,
    read_flags,
    read_json,
    read_rows,
    write_json,
)

JUDGED = {"base": "eval_base", "rft": "eval_rft", "grm": "eval_grm"}
PAPER = {"base": "-", "rft": "68.8", "grm": "69.9", "guided": {"8": "72.0", "32": "72.8"},
         "voting": {"1": "67.9", "8": "70.6", "32": "71.0"}}
TABLES = {"base": ("training", "base, greedy"), "rft": ("training", "GRM-RFT, greedy"),
          "grm": ("training", "GRM, greedy"), "voting": ("scaling", "vote @"),
          "guided": ("scaling", "guided @"), "random": ("scaling", "random @")}


def commands(args, out):
    """{stage: its command lines}, to be pasted into a shell."""
    out, base = (shlex.quote(str(path)) for path in (out, ROOT / "toy_world" / "medium"))
    models = {"base": base, "rft": f"{out}/rft/model",
              "grm": f"{out}/rl/model"}
    seed, test = f"--seed {args.seed}", f"--seed {args.seed} --limit {args.limit}"
    return {
        "rft": [f"spct_rft.py --output {out}/rft {seed} {args.rft}"],
        "rl": [f"spct_rl.py --model {out}/rft/model --output {out}/rl {seed} {args.rl}"],
        "meta_rm": [f"meta_rm.py --rft_judgments {out}/rft/judgments.jsonl --grm {out}/rl/model "
                    f"--output {out}/meta_rm {seed} {args.meta}"],
        "sample": [f"infer_scale.py --model {out}/rl/model --meta_rm {out}/meta_rm/model "
                   f"--output {out}/voting --k {args.k} {test}"],
        "eval": [f"eval.py --model {models[name]} --output {out}/{folder} {test}"
                 for name, folder in JUDGED.items()]}


def add_flags(parser):
    """What the commands of all stages are made of."""
    parser.add_argument("--seed", type=int, default=0, help="seed of all stages")
    parser.add_argument("--limit", type=int, default=500, help="test items")
    parser.add_argument("--k", type=int, default=32, help="judgments per test item")
    parser.add_argument("--rft", default="",
                        help='more flags of spct_rft.py, in one quoted text: --rft="--epochs 1"')
    parser.add_argument("--rl", default="", help="more flags of spct_rl.py")
    parser.add_argument("--meta", default="", help="more flags of meta_rm.py")


def finished(out):
    """{stage: {seconds, commands, base}} of the stages that are done in the folder."""
    return read_json(out / "seconds.json") if (out / "seconds.json").exists() else {}


def toy_base():
    """The base model that demos start from, told by its content."""
    return content(ROOT / "toy_world" / "medium")


def run_stages(stages, out):
    """Run the commands of each stage that is not done, and of all behind it; {stage: seconds}."""
    done, base = finished(out), toy_base()
    for stage, lines in stages.items():
        if stage in done and done[stage]["commands"] == lines and done[stage].get("base") == base:
            print(f"{stage}: done before ({done[stage]['seconds']:.0f} s)")
            continue
        for later in list(stages)[list(stages).index(stage):]:  # made from what is replaced now
            done.pop(later, None)
        write_json(out / "seconds.json", done)  # before anything of it can be lost
        started = time.time()
        for line in lines:
            print(f"\n$ accelerate launch {line}", flush=True)
            # What `accelerate launch` starts for one process, without its notice.
            script, *flags = shlex.split(line)
            code = subprocess.run([sys.executable, str(ROOT / script), *flags]).returncode
            if code:
                sys.exit(code)
        done[stage] = {"seconds": round(time.time() - started, 1), "commands": lines, "base": base}
        write_json(out / "seconds.json", done)
    return {stage: done[stage]["seconds"] for stage in stages}


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="runs/toy", help="folder of all stages")
    add_flags(parser)
    args = read_flags(parser)
    if args.k < 2:
        raise UserError("--k must be at least 2: one judgment cannot vote")
    out = Path(args.output)
    seconds = run_stages(commands(args, out), out)
    summary = summarise(out, args.seed, seconds)
    write_json(out / "summary.json", summary)
    print("\n" + "\n".join(summary_lines(summary)) + "\n", flush=True)
    runs = [f"base={out}/eval_base", f"RFT={out}/eval_rft", f"GRM={out}/eval_grm",
            f"voting={out}/voting"]
    os.execv(sys.executable, [sys.executable, str(ROOT / "eval.py"), "--runs", *runs,
                              "--output", str(out / "tables")])


def summarise(out, seed, seconds):
    """summary.json, from the sample files alone: fractions, 95 % intervals, paired by item."""
    rows = {name: read_rows(out / folder / "samples.jsonl") for name, folder in JUDGED.items()}
    greedy = {name: [credit(r["samples"][0]["scores"], r["rewards"]) for r in graded(judged)]
              for name, judged in rows.items()}
    voted = graded(read_rows(out / "voting" / "samples.jsonl"))
    last = len(voted[0]["samples"])
    ks = sorted({1, last} | {k for k in (8, 32) if k < last})

    def credits(k, method):
        return [item_credit(r, k, method) for r in voted]
    vote, guided, random = (credits(last, m) for m in ("vote", "guided", "random"))
    judges = {name: {"greedy": mean(values), "greedy_ci": bootstrap_ci(values),
                     "parse_rate": report(rows[name])["parse_rate"]}
              for name, values in greedy.items()}
    return {
        "n_test": len(voted), "seed": seed, "commit": git_commit(), "seconds": seconds, **judges,
        "voting": {str(k): mean(credits(k, "vote")) for k in ks},
        "guided": {str(k): mean(credits(k, "guided")) for k in ks if k > 1},
        "random_subset": {str(last): mean(random)},
        "paired": {"rft-base": paired_ci(greedy["base"], greedy["rft"]),
                   "grm-rft": paired_ci(greedy["rft"], greedy["grm"]),
                   f"voting{last}-voting1": paired_ci(credits(1, "vote"), vote),
                   f"guided{last}-voting{last}": paired_ci(vote, guided),
                   f"guided{last}-random{last}": paired_ci(random, guided)}}


def over_seeds(name, k=""):
    """Lowest and highest seed of a row of results/*.csv; "" if it is not there."""
    table, row = TABLES[name]
    path = ROOT / "results" / f"{table}.csv"
    for found in csv.DictReader(path.read_text("utf-8").splitlines()) if path.exists() else ():
        if found.get("row") == row + k and found.get("seeds"):
            low, high = (f(map(float, found["seeds"].split())) for f in (min, max))
            return f"  seeds {low:.1f}" + f"-{high:.1f}" * (low < high)
    return ""


def summary_lines(summary):
    """What the demo prints before the curves."""
    lines = [f"toy world, {summary['n_test']} test items, seed {summary['seed']}: accuracy in %; "
             "paper: 27B, Overall; seeds: three, 2,026 items"]

    def add(label, value, paper, seeds, interval=""):
        lines.append(f"  {label:<23}{100 * value:5.1f}  {interval:<14}{paper:<10}{seeds}".rstrip())
    for name in JUDGED:
        low, high = summary[name]["greedy_ci"]
        add(f"{name:<4} greedy", summary[name]["greedy"], f"paper {PAPER[name]}", over_seeds(name),
            f"[{100 * low:.1f}, {100 * high:.1f}]")
    for method, label in (("voting", "Voting@"), ("guided", "guided by meta RM @")):
        for k, value in summary[method].items():
            add(label + k, value, f"paper {PAPER[method].get(k, '-')}", over_seeds(method, k))
    for k, value in summary["random_subset"].items():
        add(f"random {int(k) // 2} of {k}", value, "(control)", over_seeds("random", k))
    lines.append("paired differences, 95 % intervals in points:")
    for name, (low, high) in summary["paired"].items():
        lines.append(f"  {name:<20} [{100 * low:+.1f}, {100 * high:+.1f}]")
    seconds = ", ".join(f"{stage} {value:.0f}" for stage, value in summary["seconds"].items())
    return [*lines, f"seconds: {seconds}"]


if __name__ == "__main__":
    main()
