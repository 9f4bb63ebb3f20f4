r"""Inference-time scaling: k parallel judgments per item, and votes (paper §4).

One judgment can miss a criterion or misread a response. Another one, with other principles and
another order of the responses, misses something else. Summing their scores averages the slips, and
it makes finer rewards: one judgment says 7 or 8, a sum of 32 has 9 * 32 + 1 possible values. So a
judge gets better by sampling more, without training and all in parallel:

    S*_i = sum_{j=1..k} S_{i,j}                                                    (Eq. 14)

The meta RM (meta_rm.py) gives each judgment one logit. Guided voting sums only the k_meta = k/2
judgments with the highest logits, so that bad judgments do not vote at all.

Input:   a judge, items, optionally a meta RM.
Output:  samples.jsonl: one line per item with the prompt as it was sent (of the first judgment),
         every judgment's text, order, scores, reason, token counts, the votes and the meta logits.
         All k, all controls and all intervals are computed from it later; nothing is sampled twice.
         metrics.jsonl (seconds).

    accelerate launch infer_scale.py --limit 500        # toy world, k = 32 -> runs/toy/voting
    accelerate launch infer_scale.py --limit 500 --meta_rm runs/toy/meta_rm/model   # + meta logits
    accelerate launch --num_processes 8 infer_scale.py --model runs/qwen/rl/model \
        --data items.jsonl --template full --max_new_tokens 512 --k 32 --output runs/qwen/voting

Where we differ from the paper:
  1. Judgments that do not parse do not vote, and none is sampled in their place.
  2. The meta RM sees judgments of n = 1 items too (`# Choice:` below).
Read next: eval.py, which grades what this file writes.
"""
import argparse
import shlex
import time
from pathlib import Path

from grm import parse_scores, sample_judgments, sum_scores
from meta_rm import add_meta_logits
from plumbing import served
from plumbing.data import DATA_HELP, load_examples
from plumbing.figures import tell_judged, tell_unlabelled
from plumbing.generation import fingerprint
from plumbing.judge import JUDGE_HELP, add_judge_flags, default_judge, judge_options, settle
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
    Args:    sample_scores: (k, n) points, original order; None where a judgment did not parse.
             valid: (k,) bool, to leave out more of them.
    Returns: n numbers, in [v, 10v] for v valid 1-10 judgments, or None if there is none.
    Choice:  an unparsed judgment does not vote, and none is sampled in its place.

    >>> vote([[1, 5], [5, 6], [4, 8], [7, 6]])      # Fig. 3 of the paper
    [17, 25]
    """
    return sum_scores([s for j, s in enumerate(sample_scores) if valid is None or valid[j]])


def meta_vote(sample_scores, meta_logits, k_meta, valid=None):
    """Votes of the k_meta valid judgments with the highest meta logits.

    Source: paper §4, meta RM guided voting.
    Args:   meta_logits: (k,) before the sigmoid; None where a judgment did not parse.
    Choice: equal logits keep the order of sampling; with fewer than k_meta valid judgments all of
            them vote.

    >>> meta_vote([[1, 5], [5, 6], [4, 8], [7, 6]], [2.0, -1.0, 1.0, -2.0], k_meta=2)   # Fig. 3
    [5, 13]
    """
    if k_meta < 1:
        raise ValueError("k_meta must be at least 1")
    usable = [j for j, s in enumerate(sample_scores)
              if s is not None and (valid is None or valid[j])]
    best_first = sorted(usable, key=lambda j: -meta_logits[j])
    return vote([sample_scores[j] for j in best_first[:k_meta]])


def default_k_meta(k):
    """Paper: k/2. Fewer judgments vote, so each must be better; more would let bad ones in.

    Choice: rounded down, at least 1, so that guided voting at k = 1 is Voting@1.
    """
    return max(1, k // 2)


# ----- k judgments of every item, in one file -----

def sample_row(example, judgments):
    """One line of samples.jsonl: all that a vote, a control or an interval needs later.

    The prompt is that of the first judgment, as it was sent; the others differ in the order only.
    """
    kept = {"subset": example.extra.get("subset"), "of": example.of, "prompt": judgments[0].prompt}
    return {"id": example.id, "domain": example.domain, "rewards": example.rewards,
            "n": len(example.responses), "cluster": example.extra.get("cluster"),
            **{name: value for name, value in kept.items() if value},
            "response_lengths": [len(r) for r in example.responses],
            "samples": [{"permutation": j.permutation, "scores": j.scores, "reason": j.reason,
                         "text": j.text, "prompt_tokens": j.prompt_tokens, "tokens": j.tokens}
                        for j in judgments],
            "votes": vote([j.scores for j in judgments])}


def judge_set(args, examples, k, accelerator, orders="random"):
    """(items, rows of samples.jsonl in --output): k judgments of every item.

    They are made unless they are there; a killed run continues. eval.py judges with it too.
    """
    output = open_run(args.output, args, accelerator, examples)
    if args.rating == "best":
        examples = [e for e in examples if len(e.responses) > 1]
        if not examples:
            raise UserError(f"{args.data}: only single responses, of which a judge cannot select "
                            "the best (Eq. 3); use --rating 1-10")
    if args.bon == "pairs":
        examples = as_pairs(examples)
    tell_unlabelled(accelerator, examples)
    path = output / "samples.jsonl"

    def judge(chunk):
        started = time.time()
        judged = sample_judgments(model, tokenizer, chunk, k, args.temperature, args.seed,
                                  orders=orders, clamp=True, skip_long=args.skip_bad,
                                  **judge_options(args))
        log_metrics(output, stage="judging", seconds=time.time() - started, items=len(chunk),
                    judgments=k * len(chunk))
        return [sample_row(e, j) for e, j in zip(chunk, judged, strict=True)]
    if not path.exists():
        model, tokenizer = served.load_judge(args, args.model, accelerator.device)
        in_chunks(path, examples, judge, accelerator, args.chunk_size, "judging")
    rows = read_rows(path, fields=("id", "samples"))
    if [r["id"] for r in rows] != [e.id for e in examples]:
        raise UserError(f"{path} is damaged: it has other items than {args.data}; add --overwrite "
                        "to judge again")
    if accelerator.is_main_process:
        tell_judged(output, rows, parse_scores, served=args.endpoint)
    return examples, rows


# ----- the program -----

def add_set_flags(parser, chunk_size):
    """The flags of a program that judges a set of items: this one and eval.py."""
    parser.add_argument("--data", default="toy", help=DATA_HELP)
    parser.add_argument("--split", default="test", help="split of the data set")
    parser.add_argument("--domain", help="only this domain")
    parser.add_argument("--rating", choices=["1-10", "best"],
                        help="1-10 (the default), or best (of an LLM-as-a-Judge; votes are a "
                        "majority, Eq. 13)")
    parser.add_argument("--bon", choices=["list", "pairs"],
                        help="items with n > 2: one list prompt (default, as the paper), or the "
                        "best response against each other one, all to be won (App. E.1.1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of orders and sampling")
    parser.add_argument("--limit", type=int,
                        help="so many items: the first, or of a named set evenly spaced ones")
    parser.add_argument("--chunk_size", type=int, default=chunk_size,
                        help="items per chunk (the unit of work and of resuming)")
    parser.add_argument("--overwrite", action="store_true", help="discard the run in --output")
    add_judge_flags(parser)
    served.add_endpoint_flags(parser)


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help=JUDGE_HELP)
    parser.add_argument("--output", default="runs/toy/voting", help="run folder")
    parser.add_argument("--k", type=int, default=32, help="judgments per item (paper: up to 32)")
    parser.add_argument("--temperature", type=float, default=0.5, help="paper: 0.5 for all voting")
    parser.add_argument("--meta_rm", help="folder of the meta RM; adds meta logits to the samples")
    add_set_flags(parser, chunk_size=64)
    args = served.check_endpoint(read_flags(parser))
    if args.meta_rm:
        fingerprint(args.meta_rm)  # a wrong folder is told now, not after the judging
    args.model = args.model or default_judge()
    settle(args, args.model)
    return args


@command_line
def main():
    args = read_arguments()
    accelerator, output = start_accelerator(args), Path(args.output)

    # 1. k judgments of every item
    examples = load_examples(args.data, args.split, args.limit, skip_bad=args.skip_bad,
                             domain=args.domain)
    examples, rows = judge_set(args, examples, args.k, accelerator)

    # 2. a meta logit for every judgment that parsed
    # Choice: of n = 1 items too, though the meta RM has learned from their 0-1 judgments only.
    if args.meta_rm:
        started, before = time.time(), rows
        rows = add_meta_logits(args.meta_rm, output, examples, rows, accelerator, args.chunk_size)
        if accelerator.is_main_process and rows is not before:
            write_rows(output / "samples.jsonl", rows)
            log_metrics(output, stage="meta_rm", seconds=time.time() - started, items=len(rows))

    # 3. what was written, and what grades it
    if accelerator.is_main_process:
        judgments = [s for row in rows for s in row["samples"]]
        parsed = sum(s["scores"] is not None for s in judgments)
        print(f"wrote {output}/samples.jsonl: {len(rows)} items, {len(judgments)} judgments, "
              f"{100 * parsed / len(judgments):.1f} % parsed")
        if any(row["rewards"] and row["n"] > 1 for row in rows):
            print(f"grade them: python eval.py --runs {shlex.quote(f'{output.name}={output}')} "
              f"--output {shlex.quote(f'{output}/graded')}")


if __name__ == "__main__":
    main()
