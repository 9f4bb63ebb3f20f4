r"""Inference-time scaling: k parallel judgments per item, voting by sum, and voting guided by a meta RM (paper §4).

    S*_i = sum_{j=1..k} S_{i,j}        (Eq. 14; every judgment j has its own principles and its own response order)

The meta RM (meta_rm.py) gives each judgment one logit; guided voting sums only the k_meta = k/2 judgments with the
highest logits. All k, all controls and all intervals come from one file of samples; nothing is sampled twice.

    python infer_scale.py                                              # toy world, k = 32, runs/toy/voting
    accelerate launch infer_scale.py --model runs/toy/rl/model --meta_rm runs/toy/meta_rm/model
    accelerate launch --num_processes 8 infer_scale.py --model <hub id> --data items.jsonl --k 32

Output: samples.jsonl (one line per item: every judgment's text, order, scores, reason, tokens, and the meta logits),
metrics.jsonl (seconds). Read next: eval.py, which draws the curves with their intervals from samples.jsonl.
"""
import argparse
import math
import random
import time
from collections import defaultdict
from pathlib import Path

from grm import TOY_BASE, add_judge_flags, judge_options, sample_judgments, sum_scores
from plumbing import served
from plumbing.data import DATA_HELP, load_examples
from plumbing.records import as_pairs
from plumbing.runs import (
    UserError,
    command_line,
    in_chunks,
    log_metrics,
    open_run,
    read_flags,
    read_rows,
    start_accelerator,
    write_rows,
)

# ----- §4: voting (Eq. 14) and its guided form -----

def vote(sample_scores, valid=None):
    """Votes of n responses: the sum of their scores over the valid judgments.

    Source: paper §4, Eq. 14.
    Args:    sample_scores: (k, n) points, original order; None where a judgment did not parse, which never votes.
             valid: (k,) bool, to leave out more of them.
    Returns: list of n numbers in [v, 10v] for v valid judgments, or None if there is none.

    >>> vote([[1, 5], [5, 6], [4, 8], [7, 6]])      # Fig. 3 of the paper
    [17, 25]
    """
    return sum_scores([s for j, s in enumerate(sample_scores) if valid is None or valid[j]])


def meta_vote(sample_scores, meta_logits, k_meta, valid=None):
    """Votes of the k_meta valid judgments with the highest meta logits (§4, meta RM guided voting).

    Args:    meta_logits: (k,) raw logits; None where a judgment did not parse.  k_meta >= 1.
    Choice:  equal logits keep the order of sampling; with fewer than k_meta valid judgments all of them vote.

    >>> meta_vote([[1, 5], [5, 6], [4, 8], [7, 6]], [2.0, -1.0, 1.0, -2.0], k_meta=2)   # Fig. 3: keeps 1 and 3
    [5, 13]
    """
    if k_meta < 1:
        raise ValueError("k_meta must be at least 1")
    usable = [j for j, s in enumerate(sample_scores) if s is not None and (valid is None or valid[j])]
    top = sorted(usable, key=lambda j: -meta_logits[j])[:k_meta]
    return vote([sample_scores[j] for j in top])


def default_k_meta(k):
    """Paper: k_meta = k/2. Choice: rounded down, but at least 1, so that guided voting at k = 1 is Voting@1."""
    return max(1, k // 2)


def pick_best(votes, rng):
    """Index of the best response, a tie broken at random (paper, App. D: shuffle, then argmax).

    >>> pick_best([3, 9, 1], random.Random(0))
    1
    """
    return rng.choice([i for i, v in enumerate(votes) if v == max(votes)])


TIES = ("expected", "shuffle", "strict")


def credit(votes, rewards, ties="expected", key=""):
    """How right the votes are, 0..1. An item without a valid judgment is wrong (0).

    ties, when t > 1 responses share the first place: "shuffle", the paper's rule (App. D), drawn from the text `key`;
    "strict", a tie is wrong, as in Eq. 10. Choice: "expected", the default, is the expectation 1/t of "shuffle" (less noise).
    >>> credit([20, 27], [0, 1]), credit([8, 8], [0, 1]), credit([8, 8], [0, 1], "strict"), credit(None, [0, 1])
    (1.0, 0.5, 0.0, 0.0)
    """
    best = rewards.index(max(rewards))
    if votes is None or votes[best] < max(votes):
        return 0.0
    if ties == "shuffle":
        return float(pick_best(votes, random.Random(key)) == best)
    t = votes.count(votes[best])
    return {"expected": 1 / t, "strict": float(t == 1)}[ties]


# ----- from one sample file to every k and every control -----

def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else float("nan")


def block_credits(row, k, method="vote", k_meta=None, subsets=8, ties="expected"):
    """Credit of one row in each of the disjoint blocks of k among its samples (what is left over at the end is not used).

    row: one line of samples.jsonl.  method: vote (Eq. 14); guided (top k_meta by meta logit); random (the matched control:
    k_meta valid judgments drawn blindly, mean over `subsets` draws); oracle (the best credit of any judgment alone).
    """
    scores = [s["scores"] for s in row["samples"]]
    if not 1 <= k <= len(scores):
        raise ValueError(f"k = {k}, but item {row['id']} has {len(scores)} samples")
    k_meta = k_meta or default_k_meta(k)
    values = []
    for start in range(0, len(scores) - k + 1, k):
        block, rule = scores[start:start + k], (row["rewards"], ties, f"{row['id']}/{start}")
        if method == "vote":
            values.append(credit(vote(block), *rule))
        elif method == "guided":
            values.append(credit(meta_vote(block, row["meta_logits"][start:start + k], k_meta), *rule))
        elif method == "random":
            rng = random.Random(f"{row['id']}/{start}/{k}/{k_meta}")
            usable = [s for s in block if s is not None]
            draws = [credit(vote(rng.sample(usable, min(k_meta, len(usable)))), *rule) for _ in range(subsets)]
            values.append(sum(draws) / len(draws))
        elif method == "oracle":
            values.append(max(credit(s, *rule) for s in block))
        else:
            raise ValueError(f"method {method!r}: choose vote, guided, random or oracle")
    return values


def item_credit(row, k, method="vote", k_meta=None, subsets=8):
    """One row's accuracy at k: the mean of `block_credits`."""
    return mean(block_credits(row, k, method, k_meta, subsets))


def item_credits(rows, k=1, method="vote", ties="expected", k_meta=None):
    """{item: credit, mean over the blocks of k}. Rows that are the pairs of one best-of-N item (`of`) must all be won.

    ties: a rule of `credit`, or "lenient": 1/t, and an item without a valid judgment counts as a random pick.
    """
    parts = defaultdict(list)
    for r in rows:
        values = block_credits(r, k, method, k_meta, ties="expected" if ties == "lenient" else ties)
        if ties == "lenient":
            values = [v if any(s["scores"] for s in r["samples"][b * k:b * k + k]) else 1 / r["n"] for b, v in enumerate(values)]
        parts[r.get("of", r["id"])].append(values)
    return {item: mean(math.prod(block) for block in zip(*pairs, strict=True)) for item, pairs in parts.items()}


def chance(rows):
    """Accuracy of random picks: 1/n per item (of pairs that must all be won: their product), averaged over the items."""
    return mean(item_credits([{**r, "samples": [{"scores": None}]} for r in rows], ties="lenient").values())


def powers_of_two(k):
    """1, 2, 4, ... up to k, and k itself."""
    return sorted({2 ** i for i in range(k.bit_length()) if 2 ** i <= k} | {k})


def sample_row(example, judgments):
    """One line of samples.jsonl: everything that a vote, a control or an interval needs later."""
    return {"id": example.id, "domain": example.domain, "rewards": example.rewards, "n": len(example.responses),
            "cluster": example.extra.get("cluster"), **{k: example.extra[k] for k in ("subset", "of") if example.extra.get(k)},
            "response_lengths": [len(r) for r in example.responses],
            "samples": [{"permutation": j.permutation, "scores": j.scores, "reason": j.reason, "text": j.text,
                         "prompt_tokens": j.token_counts()[0], "tokens": j.token_counts()[1]} for j in judgments],
            "votes": vote([j.scores for j in judgments])}


def judge_set(args, output, examples, k, accelerator, load, orders="random"):
    """(items, rows of output/samples.jsonl): k judgments of every item, made unless they are there; a killed run continues.

    args: the flags of infer_scale.py or eval.py.  load: () -> (model, tokenizer), called only if there is something to judge.
    """
    with accelerator.main_process_first():
        output = open_run(output, args, accelerator.num_processes, accelerator.is_main_process)
    if args.rating == "best":
        examples = [e for e in examples if len(e.responses) > 1]
    if not examples:
        raise UserError(f"{args.data}: only single responses, of which a judge cannot select the best (Eq. 3); use --rating 1-10")
    if args.bon == "pairs":
        examples = as_pairs(examples)
    if not (output / "samples.jsonl").exists():
        model, tokenizer = load()

        def judge(chunk):
            started = time.time()
            judged = sample_judgments(model, tokenizer, chunk, k, args.temperature, args.seed, rating=args.rating, clamp=True,
                                      orders=orders, skip_long=args.skip_bad, **judge_options(args))
            log_metrics(output, stage="judging", seconds=time.time() - started, items=len(chunk), judgments=k * len(chunk))
            return [sample_row(e, j) for e, j in zip(chunk, judged, strict=True)]
        in_chunks(output / "samples.jsonl", examples, judge, accelerator, args.chunk_size, "judging")
    rows = read_rows(output / "samples.jsonl", fields=("id", "samples"))
    if [r["id"] for r in rows] != [e.id for e in examples]:
        raise UserError(f"{output}/samples.jsonl has other items than {args.data} has now; add --overwrite to judge again")
    return examples, rows


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=None, help="the judge; default runs/toy/rl/model, or the toy base model")
    parser.add_argument("--data", default="toy", help=DATA_HELP)
    parser.add_argument("--split", default="test", help="split of the data set")
    parser.add_argument("--domain", help="only this domain")
    parser.add_argument("--output", default="runs/toy/voting", help="run folder")
    parser.add_argument("--k", type=int, default=32, help="judgments per item (paper: up to 32)")
    parser.add_argument("--temperature", type=float, default=0.5, help="paper: 0.5 for all voting")
    parser.add_argument("--rating", default="1-10", help="1-10; best for an LLM-as-a-Judge (votes become majority, Eq. 13)")
    parser.add_argument("--meta_rm", help="folder of the meta RM; adds meta logits to samples.jsonl, samples stay as they are")
    parser.add_argument("--k_meta", type=int, help="judgments kept in the last row of the printed table; default k/2 (paper)")
    parser.add_argument("--bon", choices=["list", "pairs"], help="items with n > 2: one list prompt (default, as the paper), or "
                        "the best response against each other one, all to be won (App. E.1.1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    parser.add_argument("--limit", type=int, help="so many items: the first, or of a named set evenly spaced ones")
    parser.add_argument("--chunk_size", type=int, default=64, help="items per chunk (the unit of work and of resuming)")
    parser.add_argument("--overwrite", action="store_true", help="discard the run in --output")
    add_judge_flags(parser)
    served.add_endpoint_flags(parser)
    args = served.check_endpoint(read_flags(parser))
    if args.k_meta and args.k_meta > args.k:
        raise UserError(f"--k_meta {args.k_meta} is above --k {args.k}: it is the number of judgments kept of these")
    if args.model is None:
        trained = Path("runs/toy/rl/model")
        args.model = str(trained) if trained.exists() else TOY_BASE
        print(f"judge: {args.model}" + ("" if trained.exists() else " (run spct_rl.py first for the trained GRM)"))

    # 1. k judgments of every item
    accelerator, output = start_accelerator(), Path(args.output)
    examples = load_examples(args.data, args.split, args.limit, skip_bad=args.skip_bad, domain=args.domain)
    examples, rows = judge_set(args, output, examples, args.k, accelerator,
                               lambda: served.load_judge(args, args.model, accelerator.device))

    # 2. meta logits of every parsed judgment
    if args.meta_rm:
        from meta_rm import add_meta_logits
        started, before = time.time(), rows
        rows = add_meta_logits(args.meta_rm, output, examples, rows, accelerator, args.chunk_size)
        if accelerator.is_main_process and rows is not before:
            write_rows(output / "samples.jsonl", rows)
            log_metrics(output, stage="meta_rm", seconds=time.time() - started, items=len(rows))

    # 3. accuracy for every k, from the same samples (eval.py adds intervals and the oracle)
    graded = [r for r in rows if r["rewards"] and r["n"] > 1]
    if accelerator.is_main_process and graded:
        guided = all("meta_logits" in r for r in graded)
        parsed = mean(s["scores"] is not None for r in rows for s in r["samples"])
        print(f"{len(item_credits(graded))} items with n >= 2, parse rate {parsed:.3f}, chance {chance(graded):.3f}")
        print("    k   voting" + ("   guided   random" if guided else ""))
        for k in powers_of_two(args.k):
            methods = ["vote", "guided", "random"] if guided else ["vote"]
            k_meta = args.k_meta if k == args.k else None
            print(f"{k:5d}" + "".join(f"{mean(item_credits(graded, k, m, k_meta=k_meta).values()):9.3f}" for m in methods))


if __name__ == "__main__":
    main()
