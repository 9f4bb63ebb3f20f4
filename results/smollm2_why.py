"""Why the greedy verdicts of SmolLM2 are right so seldom: how much of a verdict is position, how much is content.

    python results/smollm2_why.py                        # after results/smollm2.py: runs/smollm2 -> results/smollm2_why.csv

Nothing here is a score: rewards come from the text of judgments only. It looks at one number before the text is drawn. Behind the
words of the response shown first, z = logit(" good") - logit(" bad"). With response A first it is z_A, with B first it is z_B:

    bias    = (z_A + z_B) / 2       the same whichever response stands first
    content = (z_A - z_B) / 2       what the responses say; above 0 if A is thought better

The greedy verdict of one order follows bias + content, so content decides only where |content| > |bias|. The sign of content is
the verdict of a judge without a preference for a place. On items of training and of test: one that has learned its training items
by heart differs from one that has learned nothing.
"""
import argparse
import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(HERE), str(HERE / "results")]

import torch  # noqa: E402

import sampler  # noqa: E402
from data import load_examples, opening_hash  # noqa: E402
from eval import bootstrap_ci, print_table, write_csv  # noqa: E402
from runs import UserError, command_line, git_commit, read_flags, share_threads  # noqa: E402
from smollm2 import QUALITIES, first_verdict  # noqa: E402


def measure(model, tokenizer, examples, seed):
    """One row: of pairs, how far bias and content go, and how often content alone, or the verdict of one order, is right."""
    z = torch.zeros(len(examples), 2)                                                                                    # (N, 2)
    for i, example in enumerate(examples):
        quality = random.Random(f"{seed}/{example.id}").choice(QUALITIES)
        better = example.rewards.index(max(example.rewards))
        for side, order in enumerate(([better, 1 - better], [1 - better, better])):
            z[i, side] = first_verdict(model, tokenizer, example.permuted(order), quality)
    bias, content = z.mean(1), (z[:, 0] - z[:, 1]) / 2                                                                   # (N,)
    one_order = ((z[:, 0] > 0).float() + (z[:, 1] < 0).float()) / 2                                                      # (N,)
    right = (content > 0).float()
    row = {"items": len(examples), "bias": bias.mean(), "bias_size": bias.abs().mean(), "content_size": content.abs().mean(),
           "content_decides": (content.abs() > bias.abs()).float().mean(), "one_order": one_order.mean(), "content_right": right.mean()}
    row["low"], row["high"] = bootstrap_ci(right.tolist(), clusters=[opening_hash(e) for e in examples])
    return {key: float(value) if torch.is_tensor(value) else value for key, value in row.items()}


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", default="runs/smollm2", help="folder of results/smollm2.py with its models")
    parser.add_argument("--items", type=int, default=100, help="pairs of each part")
    parser.add_argument("--seed", type=int, default=0, help="seed of the quality that a judgment is about")
    parser.add_argument("--output", default=str(HERE / "results"), help="folder of the table")
    args = read_flags(parser)
    run = Path(args.run)
    share_threads()
    rows = []
    for label, folder in (("after the format warm-up", "warmup"), ("GRM-RFT", "rft"), ("GRM (RL)", "rl")):
        if not (run / folder / "model").exists():
            raise UserError(f"no {run / folder / 'model'}; python results/smollm2.py makes it")
        model, tokenizer = sampler.load_model(str(run / folder / "model"), "cpu", torch.float32)
        for part in ("train", "test"):
            examples = load_examples(f"{run}/{part}.jsonl", limit=args.items)
            rows.append({"run": label, "part": part, **measure(model, tokenizer, examples, args.seed)})
            print(rows[-1], flush=True)
    write_csv(Path(args.output) / f"{run.name}_why.csv", [{**r, "seed": args.seed, "commit": git_commit()} for r in rows])
    print_table(rows, ["run", "part", "items", "bias", "content_size", "content_decides", "one_order", "content_right", "low", "high"])


if __name__ == "__main__":
    main()
