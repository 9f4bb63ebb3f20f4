"""The runs behind the tables of the README, on the toy world: three seeds, resumable, two at a time.

    python results/reproduce.py                    # all seeds; hours on 2 cores; a finished command is never run again
    python results/reproduce.py --seeds 0 --only grm
    python results/reproduce.py --tables           # only the tables and figures, from whatever is finished

Tables go to results/*.csv with command and commit; a run's own command stands in its .finished file.
"""
import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))
os.chdir(HERE)
import eval as evaluation  # noqa: E402
from grm import is_correct  # noqa: E402
from infer_scale import credit, item_credit, powers_of_two  # noqa: E402
from runs import command_line, git_commit, read_json, read_rows, write_text  # noqa: E402
from toy import DOMAINS  # noqa: E402

BASE, UNDAMAGED = "toy_base/medium", "toy_base/medium-undamaged"
R = "runs/results"
META = "--limit 6000 --epochs 2"  # 2,500 updates: with 126 it told good judgments from bad ones hardly better than chance
TRIES = {  # name: (flags, what is different); the meta RM of the tables was found by these
    "first": ("--batch_size 64 --lr 1e-3", "126 updates of 64"),
    "from-grm": ("--batch_size 64 --lr 1e-3 --model {grm}", "starts from the GRM"),
    "from-undamaged": ("--batch_size 64 --lr 1e-3 --model toy_base/medium-undamaged", "starts from the undamaged judge"),
    "items-6000": ("--batch_size 64 --lr 5e-4 --limit 6000", "four times the items, half the rate"),
    "epochs-4": ("--batch_size 64 --lr 1e-3 --epochs 4", "four epochs"),
}
BY_DOMAIN = ("methods", "kl")  # tables of the README that show the domains too; the CSV files all do


def plan(seed):
    """[(name, command)] of one seed, in the order of need; the word before ':' of a name is what --only selects."""
    s = f"{R}/s{seed}"

    def rft(name, flags=""):
        return (f"{name.split('/')[0]}: rft", f"spct_rft.py --output {s}/{name}/rft --seed {seed} {flags}")

    def rl(name, start, flags=""):
        return (f"{name.split('/')[0]}: rl", f"spct_rl.py --model {start} --output {s}/{name}/rl --seed {seed} {flags}")

    def greedy(name, model, flags=""):
        return (f"{name.split('/')[0]}: greedy", f"eval.py --model {model} --output {s}/{name}/greedy {flags}")

    def voting(name, model, k, flags=""):
        return (f"{name.split('/')[0]}: voting",
                f"infer_scale.py --model {model} --output {s}/{name}/voting --k {k} --seed {seed} {flags}")

    grm, meta = f"{s}/grm/rl/model", f"{s}/grm/meta_rm/model"
    learn = f"meta_rm.py --trajectories {s}/grm/rft/trajectories.jsonl --grm {grm} --seed {seed}"
    return [
        rft("grm"), rl("grm", f"{s}/grm/rft/model"),
        greedy("base", BASE), greedy("grm/after_rft", f"{s}/grm/rft/model"), greedy("grm", grm),
        voting("grm/8", grm, 8), voting("grm/after_rft", f"{s}/grm/rft/model", 8), voting("base", BASE, 8),
        rft("general", "--general_only"), greedy("general/after_rft", f"{s}/general/rft/model"),
        rl("general", f"{s}/general/rft/model"), greedy("general", f"{s}/general/rl/model"),
        rl("straight", BASE), greedy("straight", f"{s}/straight/rl/model"),
        ("meta: meta_rm", f"{learn} --output {s}/grm/meta_rm {META}"),
        ("meta: voting", f"infer_scale.py --model {grm} --output {s}/grm/voting --k 32 --seed {seed} --meta_rm {meta}"),
        greedy("undamaged", UNDAMAGED), voting("undamaged", UNDAMAGED, 8), voting("base/32", BASE, 32),
        ("btrm: train", f"baselines.py btrm --output {s}/btrm --seed {seed}"),
        ("pairrm: train", f"baselines.py pairrm --output {s}/pairrm --seed {seed}"),
        ("judge: train", f"baselines.py judge --output {s}/judge --seed {seed}"),
        ("judge: tokenprob", f"baselines.py tokenprob --samples {s}/judge/voting --output {s}/judge/tokenprob --seed {seed}"),
        ("cloud: train", f"baselines.py cloud --output {s}/cloud --seed {seed}"),
        *[(f"tries: {name}", f"{learn} --output {s}/tries/{name} --micro_batch_size 32 {flags.format(grm=grm)}")
          for name, (flags, _) in TRIES.items()],
        # Table 4: what RFT is without one of its parts, and the whole recipe without principles
        *[line for name, flags in (("no-hinted", "--no_hinted"), ("no-non-hinted", "--no_non_hinted"),
                                   ("no-general", "--general_fraction 0"))
          for line in (rft(f"ablations/{name}", flags), greedy(f"ablations/{name}", f"{s}/ablations/{name}/rft/model"))],
        rft("ablations/no-principles", "--no_principles"),
        rl("ablations/no-principles", f"{s}/ablations/no-principles/rft/model", "--no_principles"),
        greedy("ablations/no-principles", f"{s}/ablations/no-principles/rl/model", "--no_principles"),
        voting("ablations/no-principles", f"{s}/ablations/no-principles/rl/model", 8, "--no_principles"),
        # App. C.1: the KL coefficient (the GRM itself has 0.02)
        *[line for beta in ("0", "0.08", "0.3")
          for line in (rl(f"kl/{beta}", f"{s}/grm/rft/model", f"--beta {beta}"),
                       greedy(f"kl/{beta}", f"{s}/kl/{beta}/rl/model"))],
        rft("heldout", "--exclude_domain safety"), rl("heldout", f"{s}/heldout/rft/model", "--exclude_domain safety"),
        greedy("heldout", f"{s}/heldout/rl/model"),
        ("heldout: meta_rm", f"meta_rm.py --trajectories {s}/heldout/rft/trajectories.jsonl --grm {s}/heldout/rl/model "
                             f"--exclude_domain safety --output {s}/heldout/meta_rm --seed {seed} {META}"),
        voting("heldout", f"{s}/heldout/rl/model", 32, f"--meta_rm {s}/heldout/meta_rm/model --domain safety"),
        ("heldout: voting-guided-by-all", f"infer_scale.py --model {grm} --output {s}/heldout/reference --k 32 --seed {seed} "
                                          f"--meta_rm {meta} --domain safety"),
    ]


def run_seed(seed, only):
    for name, command in plan(seed):
        if only and name.split(":")[0] not in only:
            continue
        words = command.split()
        output = Path(words[words.index("--output") + 1])
        if (output / ".finished").exists():
            continue
        started = time.time()
        log = output.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            code = subprocess.run([sys.executable, *words], stdout=file, stderr=subprocess.STDOUT).returncode
        if code:
            print(f"seed {seed}, {name}: exit code {code}, see {log}", flush=True)
            return
        (output / ".finished").write_text(f"{command}\n{git_commit()}\n{time.time() - started:.1f} s\n")
        print(f"seed {seed}, {name}: {time.time() - started:.0f} s", flush=True)


# ----- tables -----

def finished(seed, name):
    folder = Path(f"{R}/s{seed}/{name}")
    return folder if (folder / "samples.jsonl").exists() else None  # that file appears only when it is whole


def over_seeds(seeds, name, credit_of, domain=None):
    """{item id: mean credit over seeds}, the accuracy of each seed and of each domain, of the finished runs; None if none is."""
    per_seed, domain_of = [], {}
    for seed in seeds:
        folder = finished(seed, name)
        if folder:
            rows = evaluation.graded(read_rows(folder / "samples.jsonl"))
            per_seed.append({r["id"]: credit_of(r) for r in rows if domain in (None, r["domain"])})
            domain_of |= {r["id"]: r["domain"] for r in rows}
    if not per_seed:
        return None
    items = {i: evaluation.mean(c[i] for c in per_seed) for i in per_seed[0]}
    return {"items": items, "seeds": [evaluation.mean(c.values()) for c in per_seed],
            "domains": {d: evaluation.mean(items[i] for i in items if domain_of[i] == d) for d in DOMAINS if domain in (None, d)}}


def greedy_credit(row):
    return credit(row["samples"][0]["scores"], row["rewards"])


def voting_credit(k, method="vote", k_meta=None):
    return lambda row: item_credit(row, k, method, k_meta)


def table_row(label, result, paper="", reference=None, **more):
    """One row: mean, interval over items, spread over seeds, and the paired difference to a reference row."""
    if result is None:
        return {"row": label, "accuracy": "not run", "paper": paper}
    # fractions; print_table and the README show percent
    values = list(result["items"].values())
    low, high = evaluation.bootstrap_ci(values)
    row = {"row": label, "accuracy": evaluation.mean(values), "low": low, "high": high,
           "seeds": " ".join(f"{100 * a:.1f}" for a in result["seeds"]), "items": len(values), "paper": paper,
           **result["domains"], **more}
    if reference is not None:
        common = [i for i in reference["items"] if i in result["items"]]
        low, high = evaluation.paired_ci([reference["items"][i] for i in common], [result["items"][i] for i in common])
        row |= {"difference_low": low, "difference_high": high}
    return row


def write_table(name, rows, command="python results/reproduce.py"):
    if sum(row.get("accuracy") == "not run" for row in rows) > len(rows) / 2:
        return  # too little of it has been run to show
    for row in rows:
        row |= {"command": command, "commit": git_commit()}
    evaluation.write_csv(Path("results") / f"{name}.csv", rows)
    print(f"\n{name}")
    evaluation.print_table(rows, [c for c in dict.fromkeys(key for row in rows for key in row) if c not in ("command", "commit", *DOMAINS)])


def tables(seeds):
    def get(name, credit_of):
        return over_seeds(seeds, name, credit_of)

    # training (Table 2 and 4 in miniature): base < RFT < GRM, greedy and Voting@8
    base, rft, grm = (get(n, greedy_credit) for n in ("base/greedy", "grm/after_rft/greedy", "grm/greedy"))
    base8, rft8, grm8 = (get(n, voting_credit(8)) for n in ("base/voting", "grm/after_rft/voting", "grm/8/voting"))
    write_table("training", [
        table_row("base, greedy", base),
        table_row("GRM-RFT, greedy", rft, "68.8", base),
        table_row("GRM, greedy", grm, "69.9", rft),
        table_row("general data only, greedy", get("general/after_rft/greedy", greedy_credit), "66.1", base),
        table_row("general data only, then RL, greedy", get("general/greedy", greedy_credit), "68.7",
                  get("general/after_rft/greedy", greedy_credit)),
        table_row("RL straight from the base, greedy", get("straight/greedy", greedy_credit), "", base),
        table_row("undamaged judge, greedy", get("undamaged/greedy", greedy_credit), "", grm),
        table_row("base, Voting@8", base8),
        table_row("GRM-RFT, Voting@8", rft8, "69.3", base8),
        table_row("GRM, Voting@8", grm8, "70.6", rft8),
        table_row("undamaged judge, Voting@8", get("undamaged/voting", voting_credit(8)), "", grm8)])

    # scaling (Table 3): k, guided, controls
    paper = {("vote", 1): "67.9", ("vote", 8): "70.6", ("vote", 32): "71.0", ("guided", 8): "72.0", ("guided", 32): "72.8"}
    if get("grm/voting", voting_credit(1)):
        chance = evaluation.mean(1 / r["n"] for r in evaluation.graded(read_rows(f"{R}/s{seeds[0]}/grm/voting/samples.jsonl")))
        rows, before = [table_row("greedy", grm, "69.9", method="", k="", chance=chance)], {}
        for method in ("vote", "guided", "random", "oracle"):
            for k in powers_of_two(32):
                result = get("grm/voting", voting_credit(k, method))
                reference = get("grm/voting", voting_credit(k)) if method != "vote" else before.get("vote")
                rows.append(table_row(f"{method} @{k}", result, paper.get((method, k), ""), reference, method=method, k=k))
                before[method] = result
        rows.append(table_row("guided @32 against random 16 of 32", get("grm/voting", voting_credit(32, "guided")), "",
                              get("grm/voting", voting_credit(32, "random"))))
        write_table("scaling", rows)
        # k_meta (Table 7)
        paper = {1: "71.5", 8: "72.7", 16: "72.8"}
        all32 = get("grm/voting", voting_credit(32))
        write_table("k_meta", [table_row("none (Voting@32)", all32, "71.0")] + [
            table_row(f"k_meta {m}", get("grm/voting", voting_credit(32, "guided", m)), paper.get(m, ""), all32,
                      random=evaluation.mean(get("grm/voting", voting_credit(32, "random", m))["items"].values()))
            for m in (1, 2, 4, 8, 16, 24)])

    # Table 2 in miniature
    judge = "judge/"
    rows = [table_row("LLM-as-a-Judge, greedy", get(judge + "eval", greedy_credit), "67.8"),
            table_row("Bradley-Terry (BTRM)", get("btrm", greedy_credit), "68.6"),
            table_row("CLoud, one critique", get("cloud", voting_credit(1)), "68.7"),
            table_row("PairRM", get("pairrm", greedy_credit), "69.0"),
            table_row("GRM-RFT, greedy", rft, "68.8"), table_row("GRM, greedy", grm, "69.9"),
            table_row("LLM-as-a-Judge, Voting@8", get(judge + "voting", voting_credit(8)), "67.6"),
            table_row("LLM-as-a-Judge, TokenProb@8", get(judge + "tokenprob", voting_credit(8)), "68.1"),
            table_row("CLoud @8", get("cloud", voting_credit(8)), "68.8"),
            table_row("GRM, Voting@8", grm8, "70.6"), table_row("GRM, Voting@32", get("grm/voting", voting_credit(32)), "71.0"),
            table_row("GRM, guided @32", get("grm/voting", voting_credit(32, "guided")), "72.8")]
    write_table("methods", rows)

    # Table 4: RFT without one of its parts (greedy, before RL), and the whole recipe without principles
    nothing = get("general/after_rft/greedy", greedy_credit)
    ablation = {name: get(f"ablations/{name}/greedy", greedy_credit) for name in ("no-hinted", "no-non-hinted", "no-general",
                                                                                 "no-principles")}
    write_table("ablations", [
        table_row("GRM-RFT", rft, "68.8"), table_row("RFT without hinted sampling (1)", ablation["no-hinted"], "68.0", rft),
        table_row("RFT without non-hinted sampling (2)", ablation["no-non-hinted"], "67.4", rft),
        table_row("RFT without rejective sampling (1 and 2)", nothing, "66.1", rft),
        table_row("RFT without general data", ablation["no-general"], "63.3", rft),
        table_row("GRM", grm, "69.9"), table_row("GRM without rejective sampling", get("general/greedy", greedy_credit), "68.7", grm),
        table_row("GRM without principles", ablation["no-principles"], "67.5", grm),
        table_row("GRM, Voting@8", grm8, "70.6"),
        table_row("GRM without principles, Voting@8", get("ablations/no-principles/voting", voting_credit(8)), "68.0", grm8)])

    # App. C.1: the KL coefficient, and whether one domain falls behind the others
    betas = {"0": "kl/0/greedy", "0.02": "grm/greedy", "0.08": "kl/0.08/greedy", "0.3": "kl/0.3/greedy"}
    write_table("kl", [table_row(f"beta {beta}", get(name, greedy_credit), "", None if beta == "0.02" else grm)
                       for beta, name in betas.items()])

    # a domain held out of training (safety): the GRM and the meta RM
    def safety(name, credit_of):
        return over_seeds(seeds, name, credit_of, "safety")
    rows = [table_row("base, greedy", safety("base/greedy", greedy_credit)),
            table_row("GRM, greedy", safety("grm/greedy", greedy_credit)),
            table_row("GRM without safety, greedy", safety("heldout/greedy", greedy_credit)),
            table_row("GRM, Voting@32", safety("heldout/reference", voting_credit(32))),
            table_row("GRM, guided @32", safety("heldout/reference", voting_credit(32, "guided"))),
            table_row("GRM without safety, Voting@32", safety("heldout/voting", voting_credit(32))),
            table_row("GRM and meta RM without safety, guided @32", safety("heldout/voting", voting_credit(32, "guided")), "",
                      safety("heldout/voting", voting_credit(32)))]
    write_table("heldout_safety", rows)


def margin(scores):
    """How clearly a judgment prefers its first choice: highest minus second highest score."""
    first, second = sorted(scores, reverse=True)[:2]
    return first - second


def guidance(seeds):
    """Why guidance gains little here: what the judgments are, and the judge's own margin beside the meta RM as a guide."""
    rows = []
    for seed in seeds:
        samples = finished(seed, "grm/voting") and evaluation.graded(read_rows(finished(seed, "grm/voting") / "samples.jsonl"))
        if not samples or "meta_logits" not in samples[0]:
            continue
        parsed = [(s["scores"], z, r["rewards"]) for r in samples for s, z in zip(r["samples"], r["meta_logits"], strict=True)
                  if s["scores"]]
        labels = [is_correct(scores, rewards) for scores, _, rewards in parsed]
        tied = [not y and scores[rewards.index(max(rewards))] == max(scores)
                for (scores, _, rewards), y in zip(parsed, labels, strict=True)]
        by_margin = [{**r, "meta_logits": [s["scores"] and margin(s["scores"]) for s in r["samples"]]} for r in samples]
        rows.append({"seed": seed, "judgments": len(parsed), "correct": evaluation.mean(labels), "tied": evaluation.mean(tied),
                     "wrong": 1 - evaluation.mean(labels) - evaluation.mean(tied),
                     "auc_meta_rm": evaluation.roc_auc([z for _, z, _ in parsed], labels),
                     "auc_margin": evaluation.roc_auc([margin(scores) for scores, _, _ in parsed], labels),
                     **{f"{name}@{k}": evaluation.mean(item_credit(r, k, method) for r in used) for k in (8, 32)
                        for name, method, used in (("vote", "vote", samples), ("guided", "guided", samples),
                                                   ("by_margin", "guided", by_margin), ("random", "random", samples))}})
    if rows:
        write_table("guidance", rows)
    rows = []
    for name, what in [*((f"tries/{name}", what) for name, (_, what) in TRIES.items()),
                       ("grm/meta_rm", "6,000 items, two epochs of 16: the meta RM of the tables")]:
        path = Path(f"{R}/s{seeds[0]}/{name}")
        if (path / "report.json").exists():
            held = read_json(path / "report.json")["held_out"]
            rows.append({"run": what, "updates": read_rows(path / "metrics.jsonl")[-1]["step"],
                         **{f"auc_{source}": held[source]["auc"] for source in ("grm", "rft")}, "seed": seeds[0]})
    if rows:
        write_table("meta_rm_tries", rows)


def more_tables(seeds):
    """By domain, the meta RM's held-out report, and the course of RL training; then the figures."""
    rows = []
    names = {"base/greedy": "base", "grm/after_rft/greedy": "GRM-RFT", "grm/greedy": "GRM", "undamaged/greedy": "undamaged judge"}
    for folder, label in names.items():
        for seed in seeds:
            if finished(seed, folder):
                rows += [{**row, "seed": seed} for row in
                         evaluation.main_table({label: read_rows(finished(seed, folder) / "samples.jsonl")})]
    voted = [("base/32/voting", "base", "vote", k) for k in (1, 8, 32)] + [("grm/voting", "GRM", "vote", k) for k in (1, 8, 32)]
    for folder, label, method, k in [*voted, ("grm/voting", "GRM", "guided", 32)]:
        for seed in seeds:
            samples = read_rows(finished(seed, folder) / "samples.jsonl") if finished(seed, folder) else []
            if not samples or method == "guided" and "meta_logits" not in samples[0]:
                continue
            for domain, part in {"all": samples, **evaluation.by_domain(samples)}.items():
                values = [item_credit(r, k, method) for r in evaluation.graded(part)]
                low, high = evaluation.bootstrap_ci(values)
                rows.append({"run": f"{label}, {method} @{k}", "domain": domain, "items": len(values), "seed": seed,
                             "accuracy": evaluation.mean(values), "low": low, "high": high})
    if rows:
        write_table("domains", rows)
    reports = [(seed, kind, read_json(f"{R}/s{seed}/{kind}/meta_rm/report.json")) for seed in seeds for kind in ("grm", "heldout")
               if Path(f"{R}/s{seed}/{kind}/meta_rm/report.json").exists()]
    if reports:
        write_table("meta_rm", [{"seed": seed, "trained": kind, "part": part, **numbers, "judgments": report["judgments"],
                                 "unparsed": report["unparsed"]}
                                for seed, kind, report in reports for part, numbers in report["held_out"].items()])
    steps = [{"run": kind, "seed": seed, **row} for kind in ("grm", "general", "straight") for seed in seeds
             for row in read_rows(f"{R}/s{seed}/{kind}/rl/metrics.jsonl")]
    if steps:
        evaluation.write_csv("results/rl_training.csv", [row | {"commit": git_commit()} for row in steps])
    draw(Path("results"))
    fill_readme()


def fill_readme():
    """Tables of README.md between <!-- table NAME --> and <!-- end -->, from results/NAME.csv: no number is typed by hand."""
    import csv
    import re

    def percent(value):
        return f"{100 * float(value):.1f}"

    def table(match):
        path = Path("results") / f"{match[1]}.csv"
        if not path.exists():
            return match[0]
        rows = list(csv.DictReader(open(path, encoding="utf-8")))
        domains = list(DOMAINS) if match[1] in BY_DOMAIN else []
        lines = ["| | accuracy, % | 95 % interval | per seed | paired difference, points | paper |" + "".join(f" {d} |" for d in domains),
                 "|---" * (6 + len(domains)) + "|"]
        for r in rows:
            if r["accuracy"] == "not run":
                lines.append(f"| {r['row']} | not run | | | | {r['paper']} |" + " |" * len(domains))
                continue
            gain = f"{100 * float(r['difference_low']):+.1f} to {100 * float(r['difference_high']):+.1f}" if r.get("difference_low") else ""
            lines.append(f"| {r['row']} | {percent(r['accuracy'])} | {percent(r['low'])} - {percent(r['high'])} | {r['seeds']} | {gain} "
                         f"| {r['paper']} |" + "".join(f" {percent(r[d])} |" for d in domains))
        return f"<!-- table {match[1]} -->\n" + "\n".join(lines) + f"\n\n`{rows[0]['command']}`, commit {rows[0]['commit']}.\n<!-- end -->"
    def domains(match):
        path = Path("results/domains.csv")
        if not path.exists():
            return match[0]
        rows = list(csv.DictReader(open(path, encoding="utf-8")))
        rows = [r for r in rows if r["seed"] == rows[0]["seed"]]
        names = sorted({r["domain"] for r in rows})
        lines = [f"| seed {rows[0]['seed']} | " + " | ".join(names) + " | parse rate |", "|---" * (len(names) + 2) + "|"]
        for run in dict.fromkeys(r["run"] for r in rows):
            cells = {r["domain"]: r for r in rows if r["run"] == run}
            parsed = cells["all"].get("parse_rate")
            lines.append(f"| {run} | " + " | ".join(f"{percent(cells[d]['accuracy'])} ({percent(cells[d]['low'])}-{percent(cells[d]['high'])})"
                                                    for d in names) + f" | {percent(parsed) if parsed else ''} |")
        return "<!-- domains -->\n" + "\n".join(lines) + f"\n\n`{rows[0]['command']}`, commit {rows[0]['commit']}.\n<!-- end -->"
    text = Path("README.md").read_text(encoding="utf-8")
    text = re.sub(r"<!-- domains -->.*?<!-- end -->", domains, text, flags=re.S)
    write_text("README.md", re.sub(r"<!-- table (\w+) -->.*?<!-- end -->", table, text, flags=re.S))


def draw(folder):
    """results/scaling.png and results/rl_training.png from the CSV files beside them alone."""
    import csv

    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    if (folder / "scaling.csv").exists():
        rows = list(csv.DictReader(open(folder / "scaling.csv", encoding="utf-8")))
        points = [{"run": "GRM", "method": r["method"], "k": int(r["k"]), **{c: float(r[c]) for c in ("accuracy", "low", "high")}}
                  for r in rows if r["method"]]
        flat = {}
        for r in csv.DictReader(open(folder / "training.csv", encoding="utf-8")):
            if r["row"].endswith(", greedy") and "general" not in r["row"] and "straight" not in r["row"] and r["low"]:
                flat[r["row"].replace(", greedy", "")] = float(r["accuracy"])
        flat["chance"] = float(rows[0]["chance"])
        evaluation.draw_curves(points, flat, folder / "scaling.png", f"{rows[0]['command']}  |  commit {rows[0]['commit']}  |  toy "
                               f"world, {rows[1]['items']} test items, seeds of the curves: {len(rows[1]['seeds'].split())}, 95 % intervals over items")
    if (folder / "rl_training.csv").exists():
        rows = list(csv.DictReader(open(folder / "rl_training.csv", encoding="utf-8")))
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
        figure.text(0.01, 0.01, f"python results/reproduce.py  |  commit {rows[0]['commit']}  |  one line per seed, toy world",
                    fontsize=6.5, color="0.35")
        figure.tight_layout(rect=(0, 0.03, 1, 1))
        figure.savefig(folder / "rl_training.png", dpi=130)


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to run")
    parser.add_argument("--only", nargs="+", help="only these parts, e.g. grm base general straight btrm heldout")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time, one torch thread each")
    parser.add_argument("--tables", action="store_true", help="run nothing; make the tables and figures")
    args = parser.parse_args()
    if not args.tables:
        os.environ.setdefault("SPCT_THREADS", "1")
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda seed: run_seed(seed, args.only), args.seeds))
    tables(args.seeds)
    guidance(args.seeds)
    more_tables(args.seeds)


if __name__ == "__main__":
    main()
