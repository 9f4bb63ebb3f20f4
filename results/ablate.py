"""An ablation in one command: train the variant only, and compare it with the demo of `make demo`.

    python -m results.ablate no-hinted
    python -m results.ablate straight beta-0

Prints every command before it runs it; finished ones are not run again. The variant is trained and
judged by the demo's own commands, with the flags that reproduce.py has for it, in
runs/ablations/NAME: same base, seed, budget and test items. The difference is paired by item.
Beside it stand the paper's two numbers (rows.txt). docs/ablations.md says what to look at.
"""
import argparse
import os
import shlex
from pathlib import Path

from eval import graded, item_credits, mean, paired_ci, read_runs, single_judgments
from plumbing.runs import (
    ROOT,
    UserError,
    below_here,
    command_line,
    content,
    read_flags,
    read_json,
    write_json,
)
from results.demo import JUDGED, add_flags, commands, finished, run_stages, toy_base
from results.reproduce import ABLATIONS
from results.tables import number, read_rows_file

TRAINED = {"rft": "rft", "rl": "grm"}  # stage: the judge that it ends with
PAPER = ("ablations", "kl", "training")  # tables of rows.txt, in this order


def check_control(args):
    """Refuses a demo that is missing, or is not what this code and these flags would make."""
    demo = Path(args.demo)
    made, wanted, again = finished(demo), commands(args, demo), "run `make demo` first"
    for stage in (*TRAINED, "eval"):
        if stage not in made:
            raise UserError(f"{demo} holds no finished demo, stage {stage} is missing; {again}")
        if made[stage].get("base") != toy_base():
            raise UserError(f"{demo} was made from another base model than toy_world/medium is "
                            f"now; delete it and {again}")
        # all but the base's own evaluation, whose command names the clone's place
        differ = [line for line in made[stage]["commands"] if line not in wanted[stage]
                  and f"--output {shlex.quote(str(demo))}/{JUDGED['base']} " not in line]
        if differ:
            raise UserError(f"{demo} was made with other flags ({differ[0]}); give the same --seed,"
                            f" --limit, --rft and --rl here, or delete it and {again}")
    for run, model in (("rl", "rft"), ("eval_rft", "rft"), ("eval_grm", "rl")):
        told = read_json(demo / run / "config.json").get("made_from", {})
        if told.get("model") != content(demo / model / "model"):
            raise UserError(f"{demo}/{run} was made from other weights than {demo}/{model}/model "
                            f"has now; delete {demo} and {again}")


def variant(name, args, out):
    """{stage: its command lines}: the demo's, in another folder, and what is different."""
    ablation, lines, base = ABLATIONS[name], commands(args, out), ROOT / "toy_world" / "medium"
    start = shlex.quote(str(base if ablation.from_base else f"{args.demo}/rft/model"))
    out = shlex.quote(str(out))
    stages = {}
    for stage, flags in (("rft", ablation.rft), ("rl", ablation.rl)):
        if flags is None:
            continue
        [line] = lines[stage]
        if ablation.rft is None:
            line = line.replace(f"--model {out}/rft/model", f"--model {start}")
        judge = next(x for x in lines["eval"] if f"--output {out}/{JUDGED[TRAINED[stage]]} " in x)
        stages[stage] = [f"{line} {flags}".strip(), judge]
    return stages


def check_start(name, args, out):
    """Refuses a variant of RL that was made before from other weights than the demo's RFT has."""
    config, ablation = out / "rl" / "config.json", ABLATIONS[name]
    if ablation.rft is None and not ablation.from_base and config.exists():
        made_from = read_json(config).get("made_from", {}).get("model")
        if made_from != content(f"{args.demo}/rft/model"):
            raise UserError(f"{out} was made from another RFT model than {args.demo} has now; "
                            f"delete {out}")


def papers_numbers(ablation, stage):
    """What rows.txt has of this variant after this stage, and of what it is compared with."""
    after_rft = "/after_rft" * (stage == "rft" and ablation.rl is not None)
    for rows in map(read_rows_file().get, PAPER):
        papers = {row[0]: (row + [""] * 6)[3] for row in rows}
        for _, run, what, *more in rows:
            if (run, what) == (f"{ablation.run}{after_rft}/greedy", "greedy"):
                against = papers.get((more + ["", ""])[1], "")
                return more[0] if more else "", against
    return "", ""


def compare(name, stage, args, out):
    """The lines in print of one stage, and what difference.json holds of it."""
    folder = JUDGED[TRAINED[stage]]
    runs = read_runs([f"demo={args.demo}/{folder}", f"{name}={out}/{folder}"])
    credits = [item_credits(single_judgments(graded(rows))) for rows in runs.values()]
    if credits[0].keys() != credits[1].keys():
        raise UserError(f"{out}/{folder} has other test items than {args.demo}/{folder}; judge "
                        "them again with --overwrite")
    domains = {r["id"]: r["domain"] for r in runs["demo"]}
    before, after = ([c[i] for i in credits[0]] for c in credits)
    low, high = paired_ci(before, after)
    by_domain = {d: mean(b - a for i, a, b in zip(credits[0], before, after) if domains[i] == d)
                 for d in sorted(set(domains[i] for i in credits[0]))}
    theirs, control = papers_numbers(ABLATIONS[name], stage)
    told = [f"{name}, after {stage.upper()}, {len(before)} test items, seed {args.seed}: "
            "accuracy in %",
            f"  here   {100 * mean(before):.1f} -> {100 * mean(after):.1f}, difference "
            f"{100 * (mean(after) - mean(before)):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]",
            "         by domain: " + ", ".join(f"{d} {100 * v:+.1f}" for d, v in by_domain.items())]
    if None not in (number(theirs), number(control)):
        told.append(f"  paper  {control} -> {theirs}, difference "
                    f"{number(theirs) - number(control):+.1f} (27B, Overall)")
    else:
        told.append(f"  paper  {theirs or 'has no such number'}")
    return told, {"demo": mean(before), name: mean(after), "difference_low": low,
                  "difference_high": high, "by_domain": by_domain, "items": len(before),
                  "paper": theirs, "paper_control": control}


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", choices=ABLATIONS, metavar="NAME",
                        help=", ".join(ABLATIONS))
    parser.add_argument("--demo", default="runs/toy", help="folder of the demo to compare with")
    parser.add_argument("--output", default="runs/ablations", help="folder of all variants")
    add_flags(parser)
    args = read_flags(parser)
    args.demo = below_here(os.path.abspath(args.demo))  # as the demo's own commands name it
    check_control(args)
    told = []
    for name in args.names:
        out, found = Path(args.output) / name, {}
        stages = variant(name, args, out)
        check_start(name, args, out)
        run_stages(stages, out)
        for stage in stages:
            lines, found[stage] = compare(name, stage, args, out)
            told += ["", *lines]
        write_json(out / "difference.json", found)
        if "rl" in stages:
            told.append(f"  the course of RL: python -m results.watch demo={args.demo}/rl "
                        f"{name}={out}/rl")
    print("\n".join([*told, "", "95 % intervals over items, of one seed: two trainings can differ "
                     "by more"]))


if __name__ == "__main__":
    main()
