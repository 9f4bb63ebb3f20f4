"""The runs behind the tables of README.md and results/README.md, on the toy world: three seeds (more of some parts are on record), resumable, two at a time.

    python -m results.reproduce                    # all seeds; hours on 2 cores; a finished command is never run again
    python -m results.reproduce --seeds 0 --only grm
    python -m results.reproduce --tables           # run nothing: tables and figures again from the records; works in a fresh clone

A finished run leaves its command, commit and seconds in its .finished file and a compact record in results/runs (compact.py).
Tables go to results/*.csv (tables.py), figures and the tables of README.md are made of those (figures.py).
"""
import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from plumbing.runs import command_line, git_commit
from results.compact import record_finished, seeds_on_record
from results.figures import draw, fill_readme
from results.tables import GUIDES, TRIES, make_tables

HERE = Path(__file__).resolve().parent.parent
os.chdir(HERE)

BASE, UNDAMAGED = "toy_world/medium", "toy_world/medium-undamaged"
R = "runs/results"
META = "--limit 6000 --epochs 2"  # 2,500 updates: with 126 its held-out ROC-AUC was 0.62, with these 0.82 to 0.93
SIZES = {"small": 32, "large": 8}  # size of toy_base beside the medium one: judgments per item


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
        # judges that are right less often, guided by the same meta RM
        *[(f"guided: {label}", f"infer_scale.py --model {model} --output {s}/{folder}/voting --k 32 --seed {seed} --meta_rm {meta}")
          for label, model, folder in (("base", BASE, "base/32"), ("rft", f"{s}/grm/rft/model", "grm/after_rft/32"))],
        greedy("undamaged", UNDAMAGED), voting("undamaged", UNDAMAGED, 8),
        ("btrm: train", f"baselines.py btrm --output {s}/btrm --seed {seed}"),
        ("pairrm: train", f"baselines.py pairrm --output {s}/pairrm --seed {seed}"),
        ("judge: train", f"baselines.py judge --output {s}/judge --seed {seed}"),
        ("judge: tokenprob", f"baselines.py tokenprob --samples {s}/judge/voting --output {s}/judge/tokenprob --seed {seed}"),
        ("cloud: train", f"baselines.py cloud --output {s}/cloud --seed {seed}"),
        *[(f"{'guides' if name in GUIDES else 'tries'}: {name}", f"{learn} --output {s}/tries/{name} {flags.format(grm=grm)}")
          for name, (flags, _) in TRIES.items()],
        # two of the tries as guides of eight judgments, each in a run of its own
        *[(f"guides: voting with {name}", f"infer_scale.py --model {grm} --output {s}/tries/{name}/voting --k 8 --seed {seed} "
                                    f"--meta_rm {s}/tries/{name}/model") for name in GUIDES],
        # Table 4: what RFT is without one of its parts, and the whole recipe without principles
        *[line for name, flags in (("no-hinted", "--no_hinted"), ("no-non-hinted", "--no_non_hinted"),
                                   ("no-general", "--general_fraction 0"))
          for line in (rft(f"ablations/{name}", flags), greedy(f"ablations/{name}", f"{s}/ablations/{name}/rft/model"),
                       voting(f"ablations/{name}", f"{s}/ablations/{name}/rft/model", 8))],
        voting("general/after_rft", f"{s}/general/rft/model", 8), voting("general", f"{s}/general/rl/model", 8),
        rft("ablations/no-principles", "--no_principles"),
        rl("ablations/no-principles", f"{s}/ablations/no-principles/rft/model", "--no_principles"),
        greedy("ablations/no-principles", f"{s}/ablations/no-principles/rl/model", "--no_principles"),
        voting("ablations/no-principles", f"{s}/ablations/no-principles/rl/model", 8, "--no_principles"),
        # App. C.1: the KL coefficient (the GRM itself has 0.02)
        *[line for beta in ("0", "0.01", "0.08", "0.3")
          for line in (rl(f"kl/{beta}", f"{s}/grm/rft/model", f"--beta {beta}"),
                       greedy(f"kl/{beta}", f"{s}/kl/{beta}/rl/model"))],
        rft("heldout", "--exclude_domain safety"), rl("heldout", f"{s}/heldout/rft/model", "--exclude_domain safety"),
        greedy("heldout", f"{s}/heldout/rl/model"),
        ("heldout: meta_rm", f"meta_rm.py --trajectories {s}/heldout/rft/trajectories.jsonl --grm {s}/heldout/rl/model "
                             f"--exclude_domain safety --output {s}/heldout/meta_rm --seed {seed} {META}"),
        voting("heldout", f"{s}/heldout/rl/model", 32, f"--meta_rm {s}/heldout/meta_rm/model --domain safety"),
        ("heldout: voting-guided-by-all", f"infer_scale.py --model {grm} --output {s}/heldout/reference --k 32 --seed {seed} "
                                          f"--meta_rm {meta} --domain safety"),
        # Tables 11 and 12: items with n > 2 as pairs; a reference in the prompt (greedy: the same for every seed but for the GRM)
        *[greedy(f"{part}/{judge}", model, flags) for part, flags in (("bon", "--bon pairs"), ("reference", "--use_reference"))
          for judge, model in [("grm", grm)] + [("base", BASE), ("undamaged", UNDAMAGED)] * (seed == 0)],
        # Tables 1 and 14, App. F.2: principles given and lent; why greedy judgments are wrong
        *[(f"principles: {judge}", f"results/principles.py --model {model} --grm {grm} --output {s}/principles/{judge} --seed {seed}")
          for judge, model in (("base", BASE), ("rft", f"{s}/grm/rft/model"), ("grm", grm))],
        *[(f"failures: {judge}", f"results/failures.py --samples {s}/{run}/greedy --output {s}/failures/{judge}")
          for judge, run in (("base", "base"), ("rft", "grm/after_rft"), ("grm", "grm"), ("undamaged", "undamaged"))],
        # Fig. 4 at equal compute: the other sizes, where toy.py has made them
        *[line for size, k in SIZES.items() if Path(f"toy_world/{size}").exists()
          for line in (rft(f"sizes/{size}", f"--model toy_world/{size}"), rl(f"sizes/{size}", f"{s}/sizes/{size}/rft/model"),
                       greedy(f"sizes/{size}", f"{s}/sizes/{size}/rl/model"), voting(f"sizes/{size}", f"{s}/sizes/{size}/rl/model", k))],
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
        record_finished(seed)
        print(f"seed {seed}, {name}: {time.time() - started:.0f} s", flush=True)


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to run")
    parser.add_argument("--only", nargs="+", help="only these parts, e.g. grm base meta kl heldout principles sizes")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time, one torch thread each")
    parser.add_argument("--tables", action="store_true", help="run nothing; make the tables and figures")
    args = parser.parse_args()
    if not args.tables:
        for size in SIZES:
            if not Path(f"toy_world/{size}").exists():
                print(f"sizes: without toy_world/{size}; python toy.py --size {size} makes it")
        os.environ.setdefault("SPCT_THREADS", "1")
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda seed: run_seed(seed, args.only), args.seeds))
    for seed in args.seeds:
        record_finished(seed)
    make_tables(seeds_on_record())  # also those of other machines and days
    draw(Path("results"))
    fill_readme()


if __name__ == "__main__":
    main()
