"""Do principles help a judge, and whose? (paper: the preliminary experiment, Table 1, and the transfer of principles, Table 14)

    python -m results.principles --model toy_world/medium --grm runs/results/s0/grm/rl/model --output runs/results/s0/principles/base

Every item is judged greedily, once in each setting and always in the same response order. Principles and critique are one
generation (Eq. 9) unless the principles are given (Eq. 8):

    none                  without principles
    own                   the judge writes them itself: its normal judgment
    own, given            the same principles, given: what the other prompt changes by itself
    own, filtered         of 4 sampled judgments of the judge that are correct (Eq. 10), the principles of one, drawn uniformly; its
                          greedy ones where none is. An ORACLE: it uses the label of the test item, as the paper's filter does
    the GRM's             those that the GRM writes greedily
    the GRM's, filtered   the same filter on 4 samples of the GRM; an ORACLE too
    true                  the domain's three heaviest criteria with their true weights, which only a toy world knows (three, because
                          the toy's base never saw more given ones): how far principles alone can lift this judge

One line of samples.jsonl holds the judgments of an item in this order. report.json: how often the filters found something.
"""
import argparse
import random
import re
from pathlib import Path

from eval import bootstrap_ci, mean
from grm import TOY_BASE, is_correct, sample_judgments
from infer_scale import credit, sample_row
from plumbing import generation
from plumbing.data import load_examples
from plumbing.runs import command_line, in_chunks, open_run, read_flags, start_accelerator, write_json
from toy_world.world import DOMAINS

HERE = Path(__file__).resolve().parent.parent

SETTINGS = ("none", "own", "own, given", "own, filtered (oracle)", "the GRM's", "the GRM's, filtered (oracle)", "true")


def principles_in(text):
    """The principles that a judgment states, as a list for `build_prompt`; None if it states none.

    >>> principles_in("Specific Criteria: tone 60%, detail 40%.\\nAnalysis: ...")
    ['tone 60%, detail 40%.']
    """
    match = re.search(r"Specific Criteria: ([^\n]+)\n", text)
    return [match[1].strip()] if match else None


def filtered(judgments, example, fallback, seed):
    """(principles of one correct judgment, drawn uniformly, or the fallback; how many were correct)."""
    texts = [j.text for j in judgments if is_correct(j.scores, example.rewards) and principles_in(j.text)]
    if not texts:
        return fallback, 0
    return principles_in(random.Random(f"{seed}/{example.id}").choice(texts)), len(texts)


def judge_in_all_settings(judge, grm, chunk, args):
    """Rows of samples.jsonl.  judge, grm: (model, tokenizer)."""
    options = {"template": "compact", "max_new_tokens": args.max_new_tokens, "clamp": True}

    def greedy(judge, principles):
        return [j for [j] in sample_judgments(*judge, chunk, 1, 0.0, args.seed, principles=principles, **options)]

    def written(judgments):  # True: where a judgment states none, the judge writes them in the normal prompt again
        return {e.id: principles_in(j.text) or True for e, j in zip(chunk, judgments, strict=True)}

    def filter_own(judge, fallback):
        sampled = sample_judgments(*judge, chunk, args.k, args.temperature, f"{args.seed}/principles", **options)
        found = {e.id: filtered(js, e, fallback[e.id], args.seed) for e, js in zip(chunk, sampled, strict=True)}
        return {i: p for i, (p, _) in found.items()}, {i: count for i, (_, count) in found.items()}
    own = greedy(judge, True)
    by_self, by_grm = written(own), written(greedy(grm, True))
    kept, kept_count = filter_own(judge, by_self)
    grm_kept, grm_count = filter_own(grm, by_grm)
    heaviest = {d: sorted(weights.items(), key=lambda item: -item[1])[:3] for d, weights in DOMAINS.items()}
    true = {e.id: [", ".join(f"{name} {weight}%" for name, weight in heaviest[e.domain]) + "."] for e in chunk}
    judged = [greedy(judge, False), own, *[greedy(judge, p) for p in (by_self, kept, by_grm, grm_kept, true)]]
    return [{**sample_row(e, list(js)), "kept": [kept_count[e.id], grm_count[e.id]]}
            for e, js in zip(chunk, zip(*judged, strict=True), strict=True)]


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=TOY_BASE, help="the judge: folder of a toy model")
    parser.add_argument("--grm", default="runs/toy/rl/model", help="the GRM whose principles are lent to the judge")
    parser.add_argument("--output", default="runs/principles", help="run folder")
    parser.add_argument("--limit", type=int, default=600, help="test items before single responses are left out")
    parser.add_argument("--k", type=int, default=4, help="sampled judgments per item that the filter chooses from (paper: 4)")
    parser.add_argument("--temperature", type=float, default=0.5, help="of these judgments")
    parser.add_argument("--max_new_tokens", type=int, default=160, help="tokens per judgment")
    parser.add_argument("--seed", type=int, default=0, help="response orders, samples, choices")
    parser.add_argument("--overwrite", action="store_true", help="discard the run in --output")
    args = read_flags(parser)
    accelerator = start_accelerator()
    with accelerator.main_process_first():
        output = open_run(args.output, args, accelerator.num_processes, accelerator.is_main_process)
    examples = [e for e in load_examples("toy", "test", args.limit) if len(e.responses) > 1]
    judge = generation.load_model(args.model, accelerator.device)
    grm = judge if args.grm == args.model else generation.load_model(args.grm, accelerator.device)
    rows = in_chunks(output / "samples.jsonl", examples, lambda chunk: judge_in_all_settings(judge, grm, chunk, args), accelerator,
                     128, "judging")
    if accelerator.is_main_process:
        print(f"{len(rows)} items")
        for j, setting in enumerate(SETTINGS):
            values = [credit(r["samples"][j]["scores"], r["rewards"]) for r in rows]
            low, high = bootstrap_ci(values)
            print(f"  {setting:<28} {100 * mean(values):5.1f}  [{100 * low:.1f}, {100 * high:.1f}]")
        write_json(output / "report.json", {"settings": SETTINGS, "judge_found": mean(r["kept"][0] > 0 for r in rows),
                                            "grm_found": mean(r["kept"][1] > 0 for r in rows)})


if __name__ == "__main__":
    main()
