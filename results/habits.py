"""How large each habit is in a judge of the toy world, and how much it knows before its verdicts.

    python -m results.habits base=runs/toy/eval_base RFT=runs/toy/eval_rft GRM=runs/toy/eval_grm \\
        GRM=runs/toy/voting                        # -> results/habits.csv

A greedy run gives one row, a run of infer_scale.py one for its single judgments, one for all of its
votes and, with meta logits, one for the guided votes. Several runs under one name are seeds: the
row is their mean. Test items with two responses only, but for "first in lists". A clear verdict
names one response:

    first     share of verdicts for the response shown first, mean of two shares: where it is truly
              best, and where it is not. So truth weighs nothing: 50 % is no habit, 100 % nothing
              else. Of guided votes: that of the judgments that vote. Empty for all votes, whose
              judgments are those of the row above
    first by seed, both orders
              the same for each run; share of pairs with the same verdict in both orders
    longest   as first, for the longest response
    right, longest best / longest worse
              accuracy on either side: what the habit gives, and what it takes
    first in lists
              share of verdicts for the response shown first, of n > 2; a fair judge's in brackets

and, for the judges of eval.py runs, content before the verdict. The true criteria are written for
the judge, and it fills in the level of every criterion in both orders. With response A first, m_A =
weighted sum of its expected levels for the first minus those for the second; with B first m_B:

    bias      (m_A + m_B) / 2, levels: for the first place, whatever stands there
    content   (m_A - m_B) / 2, levels: for A; right if it is above 0 for the better response
    right with true criteria    the sign of m_A and of m_B themselves: one order
"""
import argparse
from pathlib import Path

import torch

from eval import credit, is_longest, mean, report, verdict
from grm import build_prompt, encode_chat
from infer_scale import default_k_meta, meta_vote, vote
from plumbing import generation
from plumbing.data import load_examples
from plumbing.figures import print_table, write_csv
from plumbing.runs import (
    ROOT,
    UserError,
    command_line,
    read_flags,
    read_json,
    read_rows,
    share_threads,
)
from results.small_model_tables import kept_half
from results.tables import fill, markdown
from toy_world.world import VERDICTS


def balanced(named, best):
    """Mean of the share of `named` where `best` is true, and where it is not.

    named, best: one bool per clear verdict: the verdict is for the response, the response is best.
    """
    return mean(mean(n for n, b in zip(named, best, strict=True) if b == side)
                for side in (True, False))


def habits_in(judged):
    """Measures of [(row, votes, index of the response shown first or None)], pairs only."""
    clear = [(row, verdict(votes), first) for row, votes, first in judged
             if verdict(votes) is not None]
    best = [row["rewards"].index(max(row["rewards"])) for row, _, _ in clear]
    lengths = [row["response_lengths"] for row, _, _ in clear]
    differ = [i for i, two in enumerate(lengths) if two[0] != two[1]]
    found = {"items": len({row["id"] for row, _, _ in judged}),
             "accuracy": mean(credit(votes, row["rewards"]) for row, votes, _ in judged),
             "clear": len(clear) / len(judged)}
    if judged[0][2] is not None:
        found["first"] = balanced([v == first for _, v, first in clear],
                                  [b == first for b, (_, _, first) in zip(best, clear)])
    found["longest"] = balanced([is_longest(clear[i][0], clear[i][1]) for i in differ],
                                [bool(is_longest(clear[i][0], best[i])) for i in differ])
    for label, side in (("longest best", 1), ("longest worse", 0)):
        found[f"right, {label}"] = mean(
            credit(votes, row["rewards"]) for row, votes, _ in judged
            if len(set(row["response_lengths"])) == 2
            and is_longest(row, row["rewards"].index(max(row["rewards"]))) == side)
    return found


def rows_of(label, folder):
    """{how: row} of the table from one run's samples."""
    judged = read_rows(Path(folder) / "samples.jsonl")
    pairs = [r for r in judged if r.get("n") == 2 and r["rewards"]]
    if not pairs:
        raise UserError(f"{label}={folder} has no judged pairs; give a run of eval.py or "
                        "infer_scale.py with more items (--limit)")
    k = len(pairs[0]["samples"])
    config = Path(folder) / "config.json"
    if not config.exists() or "temperature" not in read_json(config).get("args", {}):
        raise UserError(f"{label}={folder}: no config.json of eval.py or infer_scale.py there")
    greedy = read_json(config)["args"]["temperature"] == 0
    single = [(r, s["scores"], s["permutation"][0]) for r in pairs for s in r["samples"]]
    found = {"greedy" if greedy else "single": habits_in(single)}
    if greedy:
        found["greedy"]["both orders"] = report(pairs)["swap_consistency"]
        if lists := [r for r in judged if r.get("n", 0) > 2 and r["rewards"]]:
            found["greedy"]["first in lists"] = [report(lists)[key] for key in (
                "first_position", "first_expected")]
    else:
        scores = [[s["scores"] for s in r["samples"]] for r in pairs]
        found[f"vote@{k}"] = habits_in([(r, vote(s), None) for r, s in zip(pairs, scores)])
        if "meta_logits" in pairs[0]:
            voting = [(r, s["scores"], s["permutation"][0]) for r in pairs for s in kept_half(r)]
            found[f"guided@{k}"] = habits_in(
                [(r, meta_vote(s, r["meta_logits"], default_k_meta(k)), None)
                 for r, s in zip(pairs, scores)]) | {"first": habits_in(voting)["first"]}
    return {how: {"judge": label, "how": how, **row} for how, row in found.items()}


def mean_row(rows):
    """One row of those of several seeds: means, and `first` of each."""
    table = {}
    if len({(r["items"], len(r)) for r in rows}) > 1:
        raise UserError(f"the runs of {rows[0]['judge']} did not judge the same items; give them "
                        "different names")
    for column, value in rows[0].items():
        values = [r[column] for r in rows]
        if isinstance(value, list):  # a share, and the share that chance would have
            a, b = (mean(v[i] for v in values) for i in (0, 1))
            table[column] = f"{a:.3f} ({b:.3f})"
        else:
            table[column] = value if len(set(values)) == 1 else mean(values)
        if column == "first":
            table["first by seed"] = " ".join(f"{v:.3f}" for v in values)
    return table


@torch.no_grad()
def margins(model, tokenizer, example):
    """(m_0, m_1): weighted expected levels of the first minus the second response, with response 0
    and with response 1 shown first."""
    # a verdict is one token, with "," behind it, or "." behind the last
    levels = torch.tensor(list(VERDICTS), dtype=torch.float)
    ids = {mark: [tokenizer.convert_tokens_to_ids(word + mark) for word in VERDICTS.values()]
           for mark in ",."}
    weights = example.extra["weights"]
    stated = ", ".join(f"{name} {weight}%" for name, weight in weights.items())
    start = tokenizer(f"Specific Criteria: {stated}.\nAnalysis:")["input_ids"]
    known = torch.tensor([encode_chat(tokenizer, build_prompt(example.permuted(order), "compact"))
                          + start for order in ([0, 1], [1, 0])])                       # (2, L)
    margin = torch.zeros(2)
    for place, sign in ((1, 1), (2, -1)):
        words = f"Response {place}:"
        for i, (name, weight) in enumerate(weights.items(), 1):
            told = torch.tensor(tokenizer(f"{words} {name}")["input_ids"]).expand(2, -1)
            known, words = torch.cat([known, told], 1), ""
            logits = model(input_ids=known).logits[:, -1]                               # (2, V)
            logits = logits[:, ids["." if i == len(weights) else ","]]                  # (2, 5)
            margin += sign * weight / 100 * (logits.softmax(-1) @ levels)
            chosen = torch.tensor(ids["." if i == len(weights) else ","])[logits.argmax(-1)]
            known = torch.cat([known, chosen[:, None]], 1)
    return margin.tolist()


def content_of(folder, count):
    """Measures before the verdict, of the judge that a run of eval.py judged with."""
    args = read_json(Path(folder) / "config.json")["args"]
    if args["data"] != "toy":
        raise UserError(f"{folder} did not judge the toy's items, so their true criteria are "
                        "unknown; give --items 0")
    model, tokenizer = generation.load_model(args["model"], "cpu", torch.float32)
    words = {tokenizer.convert_tokens_to_ids(word + mark) for word in VERDICTS.values()
             for mark in ",."}
    if len(words - {None, tokenizer.unk_token_id}) < 2 * len(VERDICTS):
        raise UserError(f"{args['model']} does not have the toy's words; give --items 0")
    pairs = [e for e in load_examples("toy", args["split"], args["limit"])
             if len(e.responses) == 2][:count]
    bias, content, one_order = [], [], []
    for example in pairs:
        better = example.rewards.index(1)
        m = margins(model, tokenizer, example)
        ours, others = m[better], m[1 - better]
        bias.append((ours + others) / 2)
        content.append((ours - others) / 2)
        one_order.append(((ours > 0) + (others < 0)) / 2)
    return {"bias": mean(bias), "content": mean(content),
            "content right": mean(c > 0 for c in content),
            "right with true criteria": mean(one_order)}


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER",
                        help="runs of eval.py and infer_scale.py")
    parser.add_argument("--items", type=int, default=200, help="pairs for content; 0: without it")
    parser.add_argument("--output", default=str(ROOT / "results"), help="folder of the table")
    args = read_flags(parser)
    share_threads()
    by_name = {}
    for label, _, folder in (run.partition("=") for run in args.runs):
        if not (Path(folder) / "samples.jsonl").exists():
            raise UserError(f"{label}={folder}: no samples.jsonl there; give NAME=FOLDER of a run")
        rows = rows_of(label, folder)
        if "greedy" in rows and args.items:
            rows["greedy"] |= content_of(folder, args.items)
        for how, row in rows.items():
            by_name.setdefault((label, how), []).append(row)
    table = [mean_row(rows) for rows in by_name.values()]
    write_csv(Path(args.output) / "habits.csv", table)
    columns = list(dict.fromkeys(k for r in table for k in r))
    rows = [{k: f"{v:.3f}" if isinstance(v, float) else str(v) for k, v in r.items()}
            for r in table]
    print_table(rows, columns)
    if Path(args.output).resolve() == ROOT / "results":
        fill({"table habits": markdown(columns, [[r.get(c, "") for c in columns] for r in rows])})


if __name__ == "__main__":
    main()
