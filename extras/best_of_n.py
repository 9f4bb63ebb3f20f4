r"""A trained GRM as a selector: a policy writes N responses, the one it scores highest is kept.

    python -m extras.best_of_n          # toy judge; responses of the toy world, which has no policy
    python -m extras.best_of_n --policy HuggingFaceTB/SmolLM2-135M-Instruct \
        --judge runs/qwen/rl/model --max_new_tokens 512 \
        --prompt "How do I boil an egg?" --n 8 --k 8

All N stand in one judgment; k > 1 sums k of them per response (Eq. 14). A judgment that does not
parse does not vote; where none parses nothing is chosen.
"""
import argparse
import math

from grm import score
from plumbing.generation import complete, load_model
from plumbing.judge import JUDGE_HELP, add_judge_flags, default_judge, judge_options, settle
from plumbing.runs import UserError, command_line, read_flags, share_threads
from toy_world import world


def write_responses(policy, tokenizer, prompt, n, max_new_tokens, temperature=1.0, seed=0):
    """n texts of the policy for one prompt (a list of messages)."""
    seeds = [f"{seed}/{i}" for i in range(n)]
    return [c.text for c in complete(policy, tokenizer, [prompt] * n, temperature, max_new_tokens,
                                     seeds)]


@command_line
def main():
    parser = argparse.ArgumentParser(description="Choose the best of N responses with a GRM.")
    parser.add_argument("--policy", help="model that answers")
    parser.add_argument("--judge", help=JUDGE_HELP)
    parser.add_argument("--prompt", help="what it answers")
    parser.add_argument("--n", type=int, default=4, help="responses that --policy writes")
    parser.add_argument("--k", type=int, default=8, help="judgments that vote")
    parser.add_argument("--answer_tokens", type=int, default=128, help="tokens per response")
    parser.add_argument("--seed", type=int, default=0, help="seed of answers and judgments")
    add_judge_flags(parser)
    args = read_flags(parser)
    args.judge = args.judge or default_judge()
    settle(args, args.judge)
    if (args.policy is None) != (args.prompt is None):
        raise UserError("give --policy and --prompt together, or neither of them")
    share_threads()

    # 1. a prompt and N responses
    item = next(e for e in world.items("test", 9, seed=args.seed) if len(e.responses) > 1)
    prompt, responses = item.prompt, item.responses
    if args.policy:
        prompt = [{"role": "user", "content": args.prompt}]
        responses = write_responses(*load_model(args.policy), prompt, args.n, args.answer_tokens,
                                    seed=args.seed)
    print(prompt[-1]["content"])

    # 2. k judgments of all of them, and the choice
    votes = score(*load_model(args.judge), prompt, responses, k=args.k, seed=args.seed,
                  skip_long=args.skip_bad, **judge_options(args))
    ranked = sorted(zip(votes, responses, strict=True), key=lambda pair: -pair[0])
    for total, text in ranked:
        print(f"{total:6.1f}  {text}")
    print("no judgment parsed, nothing is chosen" if math.isnan(votes[0]) else
          f"best of {len(responses)}: {ranked[0][1]}")


if __name__ == "__main__":
    main()
