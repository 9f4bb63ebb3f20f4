"""Do principles help a judge, and whose? (paper: the preliminary experiment, Tables 1 and 14)

    python -m results.principles --model toy_world/medium --grm runs/toy/rl/model

Every test item is judged greedily once in each setting, always in the same response order. Line i
of samples.jsonl holds the judgments of item i in the order of SETTINGS. Principles and critique are
one generation (Eq. 9) unless the principles are given in the prompt (Eq. 8).
"""
import argparse
import random
import re

from eval import bootstrap_ci, credit, mean
from grm import is_correct, sample_judgments
from infer_scale import sample_row
from plumbing import generation
from plumbing.data import load_examples
from plumbing.judge import TOY_BASE
from plumbing.runs import command_line, in_chunks, open_run, read_flags, start_accelerator

SETTINGS = (
    "none",                   # without principles
    "own",                    # the judge writes them itself: its normal judgment
    "own, given",             # the same ones, given: what the other prompt changes by itself
    "own, filtered (oracle)",  # those of one of its 4 sampled judgments that are correct (Eq. 10);
                              # an oracle, since it reads the test label, as the paper's filter does
    "the GRM's",              # those that the GRM writes greedily
    "the GRM's, filtered (oracle)",
    "true")                   # the query's three heaviest criteria with their true weights


def principles_in(text):
    """The principles that a judgment states, as a list for `build_prompt`; None if it states none.

    >>> principles_in("Specific Criteria: tone 60%, detail 40%.\\nAnalysis: ...")
    ['tone 60%, detail 40%.']
    """
    match = re.search(r"Specific Criteria: ([^\n]+)\n", text)
    return [match[1].strip()] if match else None


def filtered(judgments, example, fallback, seed):
    """Principles of one correct judgment, drawn by lot; the fallback if none is correct."""
    texts = [j.text for j in judgments
             if is_correct(j.scores, example.rewards) and principles_in(j.text)]
    rng = random.Random(f"{seed}/{example.id}")
    return principles_in(rng.choice(texts)) if texts else fallback


def judge_in_all_settings(judge, grm, chunk, args):
    """Rows of samples.jsonl.  judge, grm: (model, tokenizer)."""
    options = {"template": "compact", "max_new_tokens": args.max_new_tokens, "clamp": True}

    def greedy(judge, principles):
        return [j for [j] in sample_judgments(*judge, chunk, 1, 0.0, args.seed,
                                              principles=principles, **options)]

    def written(judgments):  # True: where a judgment states none, the judge may write them again
        return {e.id: principles_in(j.text) or True for e, j in zip(chunk, judgments, strict=True)}

    def chosen(judge, fallback):
        sampled = sample_judgments(*judge, chunk, args.k, args.temperature,
                                   f"{args.seed}/principles", **options)
        return {e.id: filtered(js, e, fallback[e.id], args.seed)
                for e, js in zip(chunk, sampled, strict=True)}
    own = greedy(judge, True)
    by_self, by_grm = written(own), written(greedy(grm, True))
    true = {}
    for e in chunk:
        heaviest = sorted(e.extra["weights"].items(), key=lambda item: -item[1])[:3]
        true[e.id] = [", ".join(f"{name} {weight}%" for name, weight in heaviest) + "."]
    given = (by_self, chosen(judge, by_self), by_grm, chosen(grm, by_grm), true)
    judged = [greedy(judge, False), own, *[greedy(judge, p) for p in given]]
    return [sample_row(e, list(js)) for e, js in zip(chunk, zip(*judged, strict=True), strict=True)]


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=TOY_BASE, help="the judge: folder of a toy model")
    parser.add_argument("--grm", default="runs/toy/rl/model", help="the GRM that lends principles")
    parser.add_argument("--output", default="runs/principles", help="run folder")
    parser.add_argument("--limit", type=int, default=600, help="test items, n = 1 included")
    parser.add_argument("--k", type=int, default=4, help="samples to choose from (paper: 4)")
    parser.add_argument("--temperature", type=float, default=0.5, help="of these samples")
    parser.add_argument("--max_new_tokens", type=int, default=160, help="tokens per judgment")
    parser.add_argument("--seed", type=int, default=0, help="response orders, samples, choices")
    parser.add_argument("--overwrite", action="store_true", help="discard the run in --output")
    args = read_flags(parser)
    accelerator = start_accelerator(args)
    examples = [e for e in load_examples("toy", "test", args.limit) if len(e.responses) > 1]
    output = open_run(args.output, args, accelerator, examples)
    judge, grm = (generation.load_model(m, accelerator.device) for m in (args.model, args.grm))
    rows = in_chunks(output / "samples.jsonl", examples,
                     lambda chunk: judge_in_all_settings(judge, grm, chunk, args), accelerator, 128,
                     "judging")
    if accelerator.is_main_process:
        for j, setting in enumerate(SETTINGS):
            values = [credit(r["samples"][j]["scores"], r["rewards"]) for r in rows]
            low, high = bootstrap_ci(values)
            print(f"{setting:<30} {100 * mean(values):5.1f}  [{100 * low:.1f}, {100 * high:.1f}]")


if __name__ == "__main__":
    main()
