"""`make demo`: RFT -> RL -> meta RM -> voting -> evaluation on the toy world, then one table, one figure, summary.json.

Prints every command before it runs it; each is a line that you can run yourself. Finished stages are not run again.
"""
import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import eval as evaluation
from infer_scale import credit, item_credit
from plumbing.runs import command_line, read_json, read_rows, write_json

HERE = Path(__file__).resolve().parent.parent


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", default="runs/toy", help="folder of all stages")
    parser.add_argument("--seed", type=int, default=0, help="seed of all stages")
    parser.add_argument("--limit", type=int, default=500, help="test items")
    parser.add_argument("--k", type=int, default=32, help="judgments per test item")
    parser.add_argument("--rft", default="", help="more flags for spct_rft.py, in one quoted text")
    parser.add_argument("--rl", default="", help="more flags for spct_rl.py")
    parser.add_argument("--meta", default="", help="more flags for meta_rm.py")
    args = parser.parse_args()
    out, base = Path(args.output), str(HERE / "toy_world" / "medium")
    test = f"--seed {args.seed} --limit {args.limit}"
    commands = {
        "rft": [f"spct_rft.py --output {out}/rft --seed {args.seed} {args.rft}"],
        "rl": [f"spct_rl.py --model {out}/rft/model --output {out}/rl --seed {args.seed} {args.rl}"],
        "meta_rm": [f"meta_rm.py --trajectories {out}/rft/trajectories.jsonl --grm {out}/rl/model --output {out}/meta_rm "
                    f"--seed {args.seed} {args.meta}"],
        "sample": [f"infer_scale.py --model {out}/rl/model --meta_rm {out}/meta_rm/model --output {out}/voting "
                   f"--k {args.k} {test}"],
        "eval": [f"eval.py --model {model} --output {out}/eval_{name} {test}"
                 for name, model in (("base", base), ("rft", f"{out}/rft/model"), ("grm", f"{out}/rl/model"))],
    }
    timings = out / "seconds.json"
    done = read_json(timings) if timings.exists() else {}
    for stage, lines in commands.items():
        if stage in done and done[stage]["commands"] == lines:
            print(f"{stage}: done before ({done[stage]['seconds']:.0f} s)")
            continue
        started = time.time()
        for line in lines:
            print(f"\n$ accelerate launch {line}", flush=True)
            # the same program that `accelerate launch` starts for one process, without its start-up notice
            code = subprocess.run([sys.executable, str(HERE / line.split()[0]), *line.split()[1:]]).returncode
            if code:
                sys.exit(code)
        done[stage] = {"seconds": round(time.time() - started, 1), "commands": lines}
        write_json(timings, done)
    summary = summarise(out, args.seed, {stage: done[stage]["seconds"] for stage in commands})
    write_json(out / "summary.json", summary)
    print_summary(summary, out)


def summarise(out, seed, seconds):
    """The numbers of summary.json, from the sample files alone; accuracies as fractions, intervals 95 %, paired by item."""
    rows = {name: read_rows(out / folder / "samples.jsonl") for name, folder in
            (("base", "eval_base"), ("rft", "eval_rft"), ("grm", "eval_grm"), ("voting", "voting"))}
    greedy = {name: [credit(r["samples"][0]["scores"], r["rewards"]) for r in evaluation.graded(rows[name])]
              for name in ("base", "rft", "grm")}
    votes = evaluation.graded(rows["voting"])
    k_max = len(votes[0]["samples"])

    def credits(k, method):
        return [item_credit(r, k, method) for r in votes]

    summary = {"n_test": len(votes), "seed": seed, "commit": evaluation.git_commit(), "seconds": seconds}
    for name, values in greedy.items():
        summary[name] = {"greedy": evaluation.mean(values), "greedy_ci": evaluation.bootstrap_ci(values),
                         "parse_rate": evaluation.report(rows[name])["parse_rate"]}
    ks = [k for k in (1, 8, 32) if k <= k_max]
    summary["voting"] = {str(k): evaluation.mean(credits(k, "vote")) for k in ks}
    summary["guided"] = {str(k): evaluation.mean(credits(k, "guided")) for k in ks if k > 1}
    summary["random_subset"] = {str(k): evaluation.mean(credits(k, "random")) for k in ks[-1:]}
    last = ks[-1]
    summary["paired"] = {
        "rft-base": evaluation.paired_ci(greedy["base"], greedy["rft"]),
        "grm-rft": evaluation.paired_ci(greedy["rft"], greedy["grm"]),
        f"voting{last}-voting1": evaluation.paired_ci(credits(1, "vote"), credits(last, "vote")),
        f"guided{last}-voting{last}": evaluation.paired_ci(credits(last, "vote"), credits(last, "guided")),
        f"guided{last}-random{last}": evaluation.paired_ci(credits(last, "random"), credits(last, "guided"))}
    return summary


def summary_lines(summary):
    """What the demo prints before the curves."""
    lines = [f"toy world, {summary['n_test']} test items, seed {summary['seed']}: accuracy in %; paper: 27B, Overall"]

    def add(label, value, interval, paper):
        lines.append(f"  {label:<23}{100 * value:5.1f}  {interval:<14}{paper}")
    for name, paper in (("base", "-"), ("rft", "68.8"), ("grm", "69.9")):
        low, high = summary[name]["greedy_ci"]
        add(f"{name:<4} greedy", summary[name]["greedy"], f"[{100 * low:.1f}, {100 * high:.1f}]", f"paper {paper}")
    for method, label, paper in (("voting", "Voting@", {"1": "67.9", "8": "70.6", "32": "71.0"}),
                                 ("guided", "guided by meta RM @", {"8": "72.0", "32": "72.8"})):
        for k, value in summary[method].items():
            add(label + k, value, "", f"paper {paper[k]}")
    for k, value in summary["random_subset"].items():
        add(f"random {int(k) // 2} of {k}", value, "", "(control)")
    lines.append("paired differences, 95 % intervals in points:")
    lines += [f"  {name:<20} [{100 * low:+.1f}, {100 * high:+.1f}]" for name, (low, high) in summary["paired"].items()]
    return [*lines, "seconds: " + ", ".join(f"{k} {v:.0f}" for k, v in summary["seconds"].items())]


def print_summary(summary, out):
    print("\n" + "\n".join(summary_lines(summary)) + "\n", flush=True)
    os.execv(sys.executable, [sys.executable, str(HERE / "eval.py"), "--runs", f"base={out}/eval_base", f"RFT={out}/eval_rft",
                              f"GRM={out}/eval_grm", f"voting={out}/voting", "--output", str(out / "tables")])


if __name__ == "__main__":
    main()
