"""Why the greedy verdicts of SmolLM2 are right so seldom: what is position, what is content.

    python -m results.smollm2_why            # after results.smollm2: -> results/smollm2_why.csv
    python -m results.smollm2_why --train    # and RFT again, on judgments balanced by place

Rewards come from the text of judgments only; this looks at one number before the text is drawn.
Behind the words of the response shown first, z = logit(" good") - logit(" bad"). With response A
first it is z_A, with B first z_B:

    bias    = (z_A + z_B) / 2       the same whichever response stands first
    content = (z_A - z_B) / 2       what the responses say; above 0 if A is thought better

With A first the greedy verdict has the sign of bias + content, with B first that of bias - content,
so content decides only where |content| > |bias|. The sign of content is the verdict of a judge
whose bias is 0. ("Bias" is a liking for the first place or for the word " good" there, which come
to the same.) Items of training stand beside items of test. Up to the verdict the words are those of
the warm-up with a quality by lot, or, "test, own words", those that the judge wrote greedily.

The second part tests the explanation. Rejection keeps what is correct, whatever made it so: where
the sampler prefers a place, so do the kept judgments. The control drops, by lot, judgments for the
place that has more of them, and trains on the rest with the flags of RFT.
"""
import argparse
import random
import re
from pathlib import Path

import torch

from eval import bootstrap_ci, clusters_of, paired_ci, report
from grm import build_prompt, encode_chat
from plumbing import generation
from plumbing.data import load_examples, opening_hash
from plumbing.figures import print_table, write_csv
from plumbing.format_warmup import QUALITIES, first_verdict, head
from plumbing.runs import (
    ROOT,
    UserError,
    append_jsonl,
    command_line,
    git_commit,
    read_flags,
    read_rows,
    share_threads,
    write_rows,
)
from results.smollm2 import TEMPLATE, both_orders, run_stage
from spct_rft import select

BALANCED = "GRM-RFT, places balanced"
PARTS = ("train", "test", "test, own words")
JUDGES = {  # folders of the model and of its greedy judgments
    "after the format warm-up": ("warmup", "eval_warmup"), "GRM-RFT": ("rft", "eval_rft"),
    BALANCED: ("rft_balanced", "eval_balanced"), "GRM (RL)": ("rl", "eval_rl")}


def by_lot(examples, seed):
    """{(id, response shown first): the judgment up to its first verdict}, the quality by lot."""
    return {(e.id, i): head(e.permuted([i, 1 - i]),
                            random.Random(f"{seed}/{e.id}").choice(QUALITIES))
            for e in examples for i in range(2)}


def own_words(samples):
    """The same of greedy judgments in both orders, as far as they have a first verdict."""
    found = {(r["id"], s["permutation"][0]): re.match(r".*? is(?= good | bad )", s["text"], re.S)
             for r in samples for s in r["samples"]}
    return {key: match[0] for key, match in found.items() if match}


def measure(model, tokenizer, examples, starts):
    """One row: how large bias and content are, and how often content alone, or one order's verdict,
    is right."""
    examples = [e for e in examples if all((e.id, i) in starts for i in range(2))]
    z = torch.zeros(len(examples), 2)                                        # (N, 2)
    for i, example in enumerate(examples):
        better = example.rewards.index(max(example.rewards))
        for side, first in enumerate((better, 1 - better)):
            shown = example.permuted([first, 1 - first])
            prompt = encode_chat(tokenizer, build_prompt(shown, TEMPLATE))
            z[i, side] = first_verdict(model, tokenizer, prompt, starts[example.id, first])
    bias, content = z.mean(1), (z[:, 0] - z[:, 1]) / 2                       # (N,)
    right = (content > 0).float()
    numbers = {"bias": bias, "bias_size": bias.abs(), "content_size": content.abs(),
               "content_decides": (content.abs() > bias.abs()).float(),
               "one_order": ((z[:, 0] > 0).float() + (z[:, 1] < 0).float()) / 2,
               "content_right": right}
    low, high = bootstrap_ci(right.tolist(), clusters=[opening_hash(e) for e in examples])
    return {"items": len(examples), "low": low, "high": high,
            **{name: float(values.mean()) for name, values in numbers.items()}}


def balanced(run, seed):
    """Kept judgments of RFT, as many for the response shown first as for the second, as chats in
    balanced.jsonl. Returns (kept, of which name the first, chats)."""
    examples = {e.id: e for e in load_examples(f"{run}/train.jsonl")}
    chats = {True: [], False: []}  # named the first
    for row in read_rows(run / "rft" / "judgments.jsonl"):
        judgments = row["non_hinted"] + row["hinted"]
        fates = sum(select(row["non_hinted"], row["hinted"]), [])
        for j, fate in zip(judgments, fates, strict=True):
            if fate == "kept":
                prompt = build_prompt(examples[row["id"]].permuted(j["permutation"]), TEMPLATE)
                first = j["scores"].index(max(j["scores"])) == j["permutation"][0]
                answer = {"role": "assistant", "content": j["text"]}
                chats[first].append({"messages": [*prompt, answer]})
    rng, size = random.Random(seed), min(map(len, chats.values()))
    write_rows(run / "balanced.jsonl", [chat for some in chats.values()
                                        for chat in rng.sample(some, size)])
    return sum(map(len, chats.values())), len(chats[True]), 2 * size


def train(run, count, seed):
    """RFT's own training on balanced.jsonl, in the place of general data, and its evaluation."""
    made = {s["stage"]: s["command"].split("nproc_per_node ")[-1].removeprefix("1 ")
            for s in read_rows(run / "stages.jsonl")}
    flags = re.search(r"--epochs.*", made["rft"])[0]
    judge = re.search(r"--template.*?--seed \d+", made["rft"])[0]
    if not (run / "rft_balanced" / "model").exists():
        items = min(count, len(read_rows(run / "train.jsonl")))
        run_stage("rft_balanced", f"spct_rft.py --model {run}/warmup/model "
                  f"--data {run}/train.jsonl {judge} --output {run}/rft_balanced --general_only "
                  f"--general_data {run}/balanced.jsonl --limit {items} "  # `count` chats
                  f"--general_fraction {1 - items / count} {flags}", run, 1)
    if not (run / "eval_balanced" / "table.csv").exists():
        command = made["eval_rft"].replace("rft/model", "rft_balanced/model")
        run_stage("eval_balanced", command.replace("eval_rft", "eval_balanced"), run, 1)


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", default="runs/smollm2", help="folder of results.smollm2")
    parser.add_argument("--train", action="store_true", help="also train the control")
    parser.add_argument("--items", type=int, default=100, help="pairs of each part")
    parser.add_argument("--seed", type=int, default=0, help="qualities, and what the control drops")
    parser.add_argument("--output", default=str(ROOT / "results"), help="folder of the table")
    args = read_flags(parser)
    run = Path(args.run)
    if not (run / "rl" / "model").exists():
        raise UserError(f"no {run}/rl/model; python -m results.smollm2 makes it")
    share_threads()
    kept, first, count = balanced(run, args.seed)
    print(f"{kept} kept judgments of RFT, {100 * first / kept:.1f} % of them for the response "
          f"shown first; balanced: {count}", flush=True)
    if args.train:
        train(run, count, args.seed)

    # one row per judge and part, kept in why.jsonl (delete it after another training)
    for label, (folder, judged) in JUDGES.items():
        for part in PARTS if (run / folder / "model").exists() else ():
            key = {"run": label, "part": part, "of_the_first": args.items, "seed": args.seed}
            if any(r.items() >= key.items() for r in read_rows(run / "why.jsonl")):
                continue
            model, tokenizer = generation.load_model(str(run / folder / "model"), "cpu",
                                                     torch.float32)
            examples = load_examples(f"{run}/{part.split(',')[0]}.jsonl", limit=args.items)
            starts = by_lot(examples, args.seed)
            if part == PARTS[2]:
                starts = own_words(read_rows(run / judged / "samples.jsonl"))
            found = measure(model, tokenizer, examples, starts)
            append_jsonl(run / "why.jsonl", [{**key, **found, "commit": git_commit()}])
    rows = [r for r in read_rows(run / "why.jsonl")
            if (r["of_the_first"], r["seed"]) == (args.items, args.seed)]
    rows.sort(key=lambda r: (list(JUDGES).index(r["run"]), PARTS.index(r["part"])))
    shares = {"GRM-RFT": {"judgments": kept, "for_the_first": first / kept},
              BALANCED: {"judgments": count, "for_the_first": 0.5}}
    for row in rows:
        row |= shares.get(row["run"], {})
        if row["part"] == PARTS[2]:  # of all test items
            judged, rft = (read_rows(run / JUDGES[judge][1] / "samples.jsonl")
                           for judge in (row["run"], "GRM-RFT"))
            both, clusters = list(map(both_orders, judged)), clusters_of(judged)
            row |= {"greedy_items": len(judged), "both_orders": sum(both) / len(both)}
            row["both_low"], row["both_high"] = bootstrap_ci(both, clusters=clusters)
            if row["run"] == BALANCED:  # the same items, paired
                row["difference_low"], row["difference_high"] = paired_ci(
                    list(map(both_orders, rft)), both, clusters=clusters)
            row |= {name: report(judged)[name]
                    for name in ("accuracy", "first_position", "swap_consistency")}
    write_csv(Path(args.output) / f"{run.name}_why.csv", rows)
    print_table([{k: f"{v:.2f}" if isinstance(v, float) else v for k, v in r.items()}
                 for r in rows],
                ["run", "items", "part", "bias", "bias_size", "content_size", "content_decides",
                 "one_order", "content_right", "low", "high"])


if __name__ == "__main__":
    main()
