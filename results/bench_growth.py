"""Growth of sampling's time and peak memory with samples per prompt and prompt length.

    python -m results.bench_growth
"""
import json
import random
from types import SimpleNamespace

from plumbing import generation
from results.side_by_side import load, make_parser, measure, report, timed


def run(args, what):
    model, tokenizer = load(args)
    model.generation_config.eos_token_id = None
    rng = random.Random(0)
    vocabulary = model.config.vocab_size
    prompts = [[rng.randrange(5, vocabulary) for _ in range(what["length"])]
               for _ in range(args.prompts)]
    rows = [(p, f"0/{i}/{j}") for i, p in enumerate(prompts) for j in range(what["k"])]
    no_end = SimpleNamespace(eos_token_id=None, pad_token_id=tokenizer.pad_token_id)
    print(json.dumps(timed(lambda: generation.generate(
        model, no_end, [p for p, _ in rows], 1.0, args.new_tokens, [s for _, s in rows]))))


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64],
                        help="samples per prompt, at --length")
    parser.add_argument("--lengths", type=int, nargs="*", default=[128, 256, 512, 1024, 2048],
                        help="prompt tokens, at k = 8")
    parser.add_argument("--length", type=int, default=620, help="prompt tokens, where k grows")
    parser.add_argument("--prompts", type=int, default=1, help="distinct prompts")
    parser.add_argument("--new_tokens", type=int, default=48, help="tokens of each completion")
    args = parser.parse_args()
    if args.contestant:
        return run(args, json.loads(args.contestant))
    contestants = {f"k={k}": {"k": k, "length": args.length} for k in args.k}
    contestants.update({f"length={n}": {"k": 8, "length": n} for n in args.lengths})
    rows = measure(args, contestants)
    ratios = {}
    for name, values in (("k", args.k), ("length", args.lengths)):
        for v in values[1:]:
            now, first = rows[f"{name}={v}"], rows[f"{name}={values[0]}"]
            ratios[f"time {name}={v}/{values[0]}"] = now[args.clock] / first[args.clock]
            ratios[f"peak {name}={v}/{values[0]}"] = now["peak_gb"] / first["peak_gb"]
    report(args, "growth", rows, ratios, {"time k=32/1 at most": 5})


if __name__ == "__main__":
    main()
