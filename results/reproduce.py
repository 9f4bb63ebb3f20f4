"""The runs behind every table of results/, on the toy world: three seeds, resumable, two at a time.

    python -m results.reproduce                          # hours on 2 cores; finished runs stay
    python -m results.reproduce --seeds 0 --only grm     # one part of one seed
    python -m results.reproduce --tables                 # run nothing: tables and figures again

A finished run leaves command, commit and seconds in its .finished file, and a record in
results/runs (records.py). Tables and figures are made of the records alone, in a fresh clone too.
"""
import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from plumbing.runs import ROOT, command_line, git_commit, read_flags
from results import guidance, reasons
from results.figures import draw
from results.records import RUNS, record_finished, seeds_on_record
from results.tables import fill_readmes, make_tables

BASE, UNDAMAGED = "toy_world/medium", "toy_world/medium-undamaged"
SIZES = {"small": 32, "large": 8}  # the other sizes of the toy judge: judgments per item


class Ablation(NamedTuple):
    """What differs from the recipe. Flags None: not trained; RL without RFT is the recipe's, or
    starts from the base."""
    run: str  # folder of a seed, and in rows.txt, which has the paper's numbers
    rft: str | None = None
    rl: str | None = None
    from_base: bool = False


ABLATIONS = {
    "no-hinted": Ablation("ablations/no-hinted", "--no_hinted"),
    "no-non-hinted": Ablation("ablations/no-non-hinted", "--no_non_hinted"),
    "no-general": Ablation("ablations/no-general", "--general_fraction 0"),
    "no-principles": Ablation("ablations/no-principles", "--no_principles", "--no_principles"),
    "general-only": Ablation("general", "--general_only", ""),
    "straight": Ablation("straight", rl="", from_base=True),
    **{f"beta-{beta}": Ablation(f"kl/{beta}", rl=f"--beta {beta}")
       for beta in ("0", "0.08", "0.3")},
    "beta-0.3-corrected": Ablation("kl/0.3-corrected", rl="--beta 0.3 --kl corrected")}


def plan(seed):
    """[(part, command)] of one seed, in the order of need; --only selects by the part."""
    s, todo = f"{RUNS}/s{seed}", []
    grm, meta_rm = f"{s}/grm/rl/model", f"{s}/grm/meta_rm/model"

    def run(part, folder, program, seeded=True):
        todo.append((part, f"{program} --output {s}/{folder}" + f" --seed {seed}" * seeded))

    def rft(part, folder, flags=""):
        run(part, f"{folder}/rft", f"spct_rft.py {flags}")

    def rl(part, folder, start=None, flags=""):
        start = start or f"{s}/{folder}/rft/model"
        run(part, f"{folder}/rl", f"spct_rl.py --model {start} {flags}")

    def greedy(part, folder, model, flags=""):  # every seed has the same response orders
        run(part, f"{folder}/greedy", f"eval.py --model {model} {flags}", seeded=False)

    def votes(part, folder, model, k=8, flags=""):
        run(part, folder, f"infer_scale.py --model {model} --k {k} {flags}")

    # Tables 2 to 4, Fig. 4: RFT, RL and the meta RM; the three judges and their guided votes
    rft("grm", "grm")
    rl("grm", "grm")
    run("grm", "grm/meta_rm", f"meta_rm.py --rft_judgments {s}/grm/rft/judgments.jsonl --grm {grm}")
    for folder, model, flags in (("grm", grm, ""), ("base", BASE, "--limit 1000"),
                                 ("grm/after_rft", f"{s}/grm/rft/model", "--limit 1000")):
        greedy("grm", folder, model)
        votes("grm", f"{folder}/voting", model, 32, f"--meta_rm {meta_rm} {flags}")
    if seed == 0:
        greedy("grm", "undamaged", UNDAMAGED)
        votes("grm", "undamaged/voting", UNDAMAGED)
    # Table 4: general data only, and RL after it; RL straight from the base
    rft("general", "general", ABLATIONS["general-only"].rft)
    rl("general", "general")
    rl("general", "straight", BASE)
    for folder, model in (("general/after_rft", "general/rft"), ("general", "general/rl"),
                          ("straight", "straight/rl")):
        greedy("general", folder, f"{s}/{model}/model")
    # Table 4: RFT without one of its parts, and the whole recipe without principles
    for folder, flags, rl_flags, _ in ABLATIONS.values():
        if not folder.startswith("ablations/"):
            continue
        rft("ablations", folder, flags)
        if rl_flags:
            rl("ablations", folder, flags=rl_flags)
        model = f"{s}/{folder}/{'rl' if rl_flags else 'rft'}/model"
        greedy("ablations", folder, model, rl_flags or "")
    # Table 2: the other methods
    for method in ("btrm", "pairrm", "judge", "cloud"):
        run("methods", method, f"-m extras.baselines {method}")
    run("methods", "judge/tokenprob", f"-m extras.baselines tokenprob --samples {s}/judge/voting")
    # Tables 11 and 12: n > 2 as pairs, a reference answer; two of the judges are the same each seed
    for judge, model in [("grm", grm)] + [("base", BASE), ("undamaged", UNDAMAGED)] * (seed == 0):
        greedy("smaller", f"bon/{judge}", model, "--bon pairs")
        greedy("smaller", f"reference/{judge}", model, "--use_reference")
    # Tables 1 and 14: principles given and lent
    for judge, model in (("base", BASE), ("rft", f"{s}/grm/rft/model"), ("grm", grm)):
        run("smaller", f"principles/{judge}",
            f"-m results.principles --model {model} --grm {grm}")
    # App. C.1: the KL coefficient and its gradient (the GRM itself has 0.02, k3)
    for folder, _, flags, _ in ABLATIONS.values():
        if folder.startswith("kl/"):
            rl("kl", folder, f"{s}/grm/rft/model", flags)
            greedy("kl", folder, f"{s}/{folder}/rl/model")
    # Table 15: a domain that neither RFT nor RL saw
    rft("heldout", "heldout", "--exclude_domain safety")
    rl("heldout", "heldout", flags="--exclude_domain safety")
    greedy("heldout", "heldout", f"{s}/heldout/rl/model")
    run("heldout", "heldout/btrm", "-m extras.baselines btrm --exclude_domain safety")
    # Not in the paper: when guidance pays. A shorter RL, meta RMs of other data
    rl("guidance", "guidance/rl-10", f"{s}/grm/rft/model", "--steps 10")
    votes("guidance", "guidance/rl-10/voting", f"{s}/guidance/rl-10/rl/model", 32,
          f"--limit 400 --meta_rm {meta_rm}")
    for name, flags in (("meta-2000", "--limit 1500 --epochs 0.25"),
                        ("meta-8000", "--limit 1500")):
        run("guidance", f"guidance/{name}/meta_rm", "meta_rm.py --rft_judgments "
            f"{s}/grm/rft/judgments.jsonl --grm {grm} {flags}")
        votes("guidance", f"guidance/{name}/voting", grm, 32,
              f"--limit 400 --meta_rm {s}/guidance/{name}/meta_rm/model")
    # Fig. 4 at equal compute, for the sizes that toy_world/make_base.py has made
    for size, k in SIZES.items():
        if Path(f"toy_world/{size}").exists():
            rft("sizes", f"sizes/{size}", f"--model toy_world/{size}")
            rl("sizes", f"sizes/{size}")
            greedy("sizes", f"sizes/{size}", f"{s}/sizes/{size}/rl/model")
            votes("sizes", f"sizes/{size}/voting", f"{s}/sizes/{size}/rl/model", k)
    return todo


def run_seed(seed, only):
    """The commands of one seed that are not finished; a failure ends this seed: its exit code."""
    for part, command in plan(seed):
        words = command.split()
        output = Path(words[words.index("--output") + 1])
        if only and part not in only or (output / ".finished").exists():
            continue
        started, log = time.time(), output.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:
            code = subprocess.run([sys.executable, *words], stdout=file, stderr=file).returncode
        if code:
            print(f"seed {seed}: exit code {code} of {command}; see {log}", flush=True)
            return code
        seconds = f"{time.time() - started:.1f} s"
        (output / ".finished").write_text(f"{' '.join(words)}\n{git_commit()}\n{seconds}\n")
        record_finished(seed)
        print(f"seed {seed}: {seconds}, {' '.join(words)}", flush=True)


@command_line
def main():
    os.chdir(ROOT)
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to run")
    parts = dict.fromkeys(part for part, _ in plan(0))
    parser.add_argument("--only", nargs="+", choices=parts, metavar="PART",
                        help="only these parts: " + " ".join(parts))
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time, a thread each")
    parser.add_argument("--tables", action="store_true", help="run nothing; tables and figures")
    args = read_flags(parser)
    codes = []
    if not args.tables:
        os.environ.setdefault("SPCT_THREADS", "1")
        with ThreadPoolExecutor(args.jobs) as pool:
            codes = list(pool.map(lambda seed: run_seed(seed, args.only), args.seeds))
    for seed in args.seeds:
        record_finished(seed)
    tables = make_tables(seeds_on_record())  # also those of other machines and days
    draw(tables)
    fill_readmes(tables)
    reasons.make(seeds_on_record())
    guidance.make(seeds_on_record())
    if any(codes):
        sys.exit(1)


if __name__ == "__main__":
    main()
