"""Why the greedy verdicts of SmolLM2 are right so seldom: how much of a verdict is position, how much is content.

    python -m results.smollm2_why                        # after results/smollm2.py: runs/smollm2 -> results/smollm2_why.csv
    python -m results.smollm2_why --train                # and RFT once more, on as many kept judgments for the one place as for the other

Nothing of the first part is a score: rewards come from the text of judgments only. It looks at one number before the text is drawn.
Behind the words of the response shown first, z = logit(" good") - logit(" bad"). With response A first it is z_A, with B first z_B:

    bias    = (z_A + z_B) / 2       the same whichever response stands first
    content = (z_A - z_B) / 2       what the responses say; above 0 if A is thought better

With A first the greedy verdict has the sign of bias + content, with B first that of bias - content, so content decides only where
|content| > |bias|. The sign of content is the verdict of a judge whose bias is 0. ("Bias" is a preference for the first place or
for the word " good" there, which come to the same.) Items of training beside items of test: a model that has learned its training
items by heart differs from one that has learned nothing. Up to the verdict the words are those of the warm-up with a quality by
lot, and in a third part, "test, own words", those that the judge wrote greedily.

The second part tests the explanation. Rejection keeps what is correct, whatever made it so: where the sampler prefers a place, so do the
kept judgments. The control drops, by lot, judgments for the place that has more of them, and trains on the rest with the flags of RFT.
"""
import argparse
import random
import re
from pathlib import Path

import torch

from eval import bootstrap_ci, clusters_of, paired_ci, report, write_csv
from grm import build_prompt
from infer_scale import credit
from plumbing import generation
from plumbing.data import load_examples, opening_hash
from plumbing.runs import UserError, append_jsonl, command_line, git_commit, read_flags, read_rows, share_threads, write_rows
from results.smollm2 import QUALITIES, TEMPLATE, first_verdict, head, run_stage
from spct_rft import select

HERE = Path(__file__).resolve().parent.parent

BALANCED = "GRM-RFT, places balanced"
PARTS = ("train", "test", "test, own words")
JUDGES = {"after the format warm-up": ("warmup", "eval_warmup"), "GRM-RFT": ("rft", "eval_rft"), BALANCED: ("rft_balanced", "eval_balanced"),
          "GRM (RL)": ("rl", "eval_rl")}  # folders of the model and of its greedy judgments


def by_lot(examples, seed):
    """{(id, index of the response shown first): the judgment up to its first verdict}, the quality drawn by lot."""
    return {(e.id, i): head(e.permuted([i, 1 - i]), random.Random(f"{seed}/{e.id}").choice(QUALITIES)) for e in examples for i in range(2)}


def own_words(samples):
    """The same of greedy judgments in both orders, as far as they have a first verdict."""
    found = {(r["id"], s["permutation"][0]): re.match(r".*? is(?= good | bad )", s["text"], re.S) for r in samples for s in r["samples"]}
    return {key: match[0] for key, match in found.items() if match}


def measure(model, tokenizer, examples, starts):
    """One row: of pairs, how far bias and content go, and how often content alone, or the verdict of one order, is right."""
    examples = [e for e in examples if all((e.id, i) in starts for i in range(2))]
    z = torch.zeros(len(examples), 2)                                                                                    # (N, 2)
    for i, example in enumerate(examples):
        better = example.rewards.index(max(example.rewards))
        for side, first in enumerate((better, 1 - better)):
            z[i, side] = first_verdict(model, tokenizer, example.permuted([first, 1 - first]), starts[example.id, first])
    bias, content = z.mean(1), (z[:, 0] - z[:, 1]) / 2                                                                   # (N,)
    one_order = ((z[:, 0] > 0).float() + (z[:, 1] < 0).float()) / 2                                                      # (N,)
    right = (content > 0).float()
    row = {"items": len(examples), "bias": bias.mean(), "bias_size": bias.abs().mean(), "content_size": content.abs().mean(),
           "content_decides": (content.abs() > bias.abs()).float().mean(), "one_order": one_order.mean(), "content_right": right.mean()}
    row["low"], row["high"] = bootstrap_ci(right.tolist(), clusters=[opening_hash(e) for e in examples])
    return {key: float(value) if torch.is_tensor(value) else value for key, value in row.items()}


def balanced(run, seed):
    """Kept judgments of RFT, as many that name the response shown first as the one shown second -> balanced.jsonl, chats.
    Returns (kept, of which name the first, chats)."""
    examples = {e.id: e for e in load_examples(f"{run}/train.jsonl")}
    chats = {True: [], False: []}  # named the first
    for row in read_rows(run / "rft" / "trajectories.jsonl"):
        fates = select(row["non_hinted"], row["hinted"])
        for t, fate in zip(row["non_hinted"] + row["hinted"], fates[0] + fates[1], strict=True):
            if fate == "kept":
                prompt = build_prompt(examples[row["id"]].permuted(t["permutation"]), TEMPLATE)
                named = t["scores"].index(max(t["scores"]))
                chats[named == t["permutation"][0]].append({"messages": [*prompt, {"role": "assistant", "content": t["text"]}]})
    rng, size = random.Random(seed), min(map(len, chats.values()))
    write_rows(run / "balanced.jsonl", [chat for some in chats.values() for chat in rng.sample(some, size)])
    return sum(map(len, chats.values())), len(chats[True]), 2 * size


def train(run, count, seed):
    """RFT's own training on balanced.jsonl, in the place of general data, and its greedy evaluation; both as in results/smollm2.py."""
    made = {s["stage"]: re.sub(r"^torchrun --\S+ \d+ ", "", s["command"]) for s in read_rows(run / "stages.jsonl")}
    flags = re.search(r"--epochs.*", made["rft"])[0]
    judge = re.search(r"--template.*?--seed \d+", made["rft"])[0]
    for stage, done, command in (
            ("rft_balanced", "rft_balanced/model", f"spct_rft.py --model {run}/warmup/model --data {run}/train.jsonl {judge} --output {run}/rft_balanced "
             f"--general_only --general_data {run}/balanced.jsonl --limit {count} --general_fraction 0 {flags}"),
            ("eval_balanced", "eval_balanced/table.csv", made["eval_rft"].replace("rft/model", "rft_balanced/model").replace("eval_rft", "eval_balanced"))):
        if not (run / done).exists():
            run_stage(stage, command, run, 1)


def markdown(rows):
    """Lines of the table in README.md, from the rows of the CSV."""
    def percent(value):
        return "" if value in (None, "") else f"{100 * float(value):.1f}"
    lines = ["| judge | pairs | of | bias, nats | its size | size of content | content decides, % | right in one order, % | content right, % | 95 % interval |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for r in rows:
        lines.append(f"| {r['run']} | {r['items']} | {r['part']} | {float(r['bias']):+.2f} | {float(r['bias_size']):.2f} | {float(r['content_size']):.2f} | {percent(r['content_decides'])} | "
                     f"{percent(r['one_order'])} | {percent(r['content_right'])} | {percent(r['low'])} - {percent(r['high'])} |")
    return lines


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", default="runs/smollm2", help="folder of results/smollm2.py with its models")
    parser.add_argument("--train", action="store_true", help="also train the control")
    parser.add_argument("--items", type=int, default=100, help="pairs of each part")
    parser.add_argument("--seed", type=int, default=0, help="seed of the quality that a judgment is about, and of what the control drops")
    parser.add_argument("--output", default=str(HERE / "results"), help="folder of the table")
    args = read_flags(parser)
    run = Path(args.run)
    if not (run / "rl" / "model").exists():
        raise UserError(f"no {run}/rl/model; python -m results.smollm2 makes it")
    share_threads()
    kept, first, count = balanced(run, args.seed)
    print(f"{kept} kept judgments of RFT, {100 * first / kept:.1f} % of them for the response shown first; balanced: {count}", flush=True)
    if args.train:
        train(run, count, args.seed)
    for label, (folder, judged) in JUDGES.items():
        for part in PARTS if (run / folder / "model").exists() else ():
            key = {"run": label, "part": part, "of_the_first": args.items, "seed": args.seed}  # delete why.jsonl after another training
            if not any(r.items() >= key.items() for r in read_rows(run / "why.jsonl")):
                model, tokenizer = generation.load_model(str(run / folder / "model"), "cpu", torch.float32)
                examples = load_examples(f"{run}/{part.split(',')[0]}.jsonl", limit=args.items)
                starts = own_words(read_rows(run / judged / "samples.jsonl")) if part == PARTS[2] else by_lot(examples, args.seed)
                append_jsonl(run / "why.jsonl", [{**key, **measure(model, tokenizer, examples, starts), "commit": git_commit()}])
    rows = [r for r in read_rows(run / "why.jsonl") if (r["of_the_first"], r["seed"]) == (args.items, args.seed)]
    rows.sort(key=lambda r: (list(JUDGES).index(r["run"]), PARTS.index(r["part"])))
    for row in rows:
        row |= {"GRM-RFT": {"judgments": kept, "for_the_first": first / kept}, BALANCED: {"judgments": count, "for_the_first": 0.5}}.get(row["run"], {})
        judged, rft = (read_rows(run / JUDGES[judge][1] / "samples.jsonl") for judge in (row["run"], "GRM-RFT"))
        if judged and row["part"] == PARTS[2]:  # of all test items
            both, both_rft = ([sum(credit(s["scores"], r["rewards"]) for s in r["samples"]) / 2 for r in some] for some in (judged, rft))
            row |= {"greedy_items": len(judged), "both_orders": sum(both) / len(both)}
            row["both_low"], row["both_high"] = bootstrap_ci(both, clusters=clusters_of(judged))
            if row["run"] == BALANCED:  # the same items, paired
                row["difference_low"], row["difference_high"] = paired_ci(both_rft, both, clusters=clusters_of(judged))
            row |= {name: report(judged)[name] for name in ("accuracy", "first_position", "swap_consistency")}
    write_csv(Path(args.output) / f"{run.name}_why.csv", rows)
    print("\n".join(markdown(rows)))


if __name__ == "__main__":
    main()
