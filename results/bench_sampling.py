"""Sampling: plumbing/generation.py against transformers' generate() and continuous batching.

    python -m results.bench_sampling                                  # 4 prompts, k = 8 and 32
    python -m results.bench_sampling --prompts 32 --k 8               # more, on a GPU
    python -m results.bench_sampling --peers copies static --peer_rows 0  # ways to keep the cache
    python -m results.bench_sampling --model toy_world/medium --prompts 16 --prompt_tokens 72 \
        --shared_tokens 12 --new_tokens 32                            # the toy model

Every contestant draws k completions of exactly --new_tokens tokens (no end token) at temperature 1,
from prompts that share their first tokens, as judgments do: with the full template and SmolLM2's
tokenizer a toy item is 616 shared tokens and some 130 of its own; the default keeps that proportion
in 620 tokens. Lengths decide the time, so tokens are random. The library's two compute every row by
itself, so on a CPU they are timed on one batch of --peer_rows rows, whose seconds are scaled to the
rows of each k (128 rows at once need much memory there). On a GPU, where few rows cost as much as
many, they are timed at each k. Peak memory is that of the measured batch.
"""
import json
import random
from types import SimpleNamespace

from plumbing import decoding, generation
from results.side_by_side import ON_GPU, load, make_parser, measure, report, timed

# Times as fast as generate(), by (prompts, k): what a user would otherwise take. For a GPU set
# before measuring; for a CPU what was reached once and is to be kept.
TARGETS = {(4, 8): 4, (4, 32): 4, (32, 8): 3.5} if ON_GPU else {(4, 8): 6.7, (4, 32): 12.4}


def prompts_of(args, vocabulary):
    rng = random.Random(0)
    preamble = [rng.randrange(5, vocabulary) for _ in range(args.shared_tokens)]
    own = args.prompt_tokens - args.shared_tokens
    return [preamble + [rng.randrange(5, vocabulary) for _ in range(own)]
            for _ in range(args.prompts)]


def run(args, what):
    import torch
    model, tokenizer = load(args, torch.bfloat16 if what.get("bf16") else None)
    model.generation_config.eos_token_id = None  # nobody stops early: equal work
    pad = tokenizer.pad_token_id
    prompts = prompts_of(args, model.config.vocab_size)[:what["prompts"]]

    def ours(prompts, new_tokens):
        rows = [(p, f"0/{i}/{j}") for i, p in enumerate(prompts) for j in range(what["k"])]
        no_end = SimpleNamespace(eos_token_id=None, pad_token_id=pad)
        done = generation.generate(model, no_end, [p for p, _ in rows], 1.0, new_tokens,
                                   [s for _, s in rows])
        return [r.ids for r in done]

    def generate(prompts, new_tokens):
        ids = torch.tensor(prompts, device=model.device)
        done = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0,
            top_p=1.0, max_new_tokens=new_tokens, num_return_sequences=what["k"], pad_token_id=pad)
        return done[:, len(prompts[0]):]

    def continuous(prompts, new_tokens):
        from transformers import ContinuousBatchingConfig, GenerationConfig
        config = GenerationConfig(max_new_tokens=new_tokens, do_sample=True, temperature=1.0,
                                  top_k=0, top_p=1.0, eos_token_id=-1, pad_token_id=pad)
        # its own default fills 80 % of the memory with cache
        pages = len(prompts) * what["k"] * ((len(prompts[0]) + new_tokens) // 64 + 2)
        sizes = ContinuousBatchingConfig(page_size=64, num_blocks=pages,
                                         max_batch_tokens=max(1024, len(prompts[0])))
        done = model.generate_batch([p for p in prompts for _ in range(what["k"])],
                                    generation_config=config, continuous_batching_config=sizes)
        return [r.generated_tokens for r in done.values()]

    if what["name"] in decoding.ROWS:  # ours, with keys and values kept in another way
        generation.kind_of_rows = lambda model: what["name"]
    contestants = {"ours": ours, "generate": generate, "continuous batching": continuous,
                   **dict.fromkeys(decoding.ROWS, ours)}
    contestant = contestants[what["name"]]
    kept = []
    result = timed(lambda: kept.extend(contestant(prompts, args.new_tokens)))
    assert [len(ids) for ids in kept] == [args.new_tokens] * len(prompts) * what["k"], "unequal"
    print(json.dumps(result))


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--k", type=int, nargs="+", default=[8, 32], help="samples per prompt")
    parser.add_argument("--prompts", type=int, default=4, help="distinct prompts")
    parser.add_argument("--prompt_tokens", type=int, default=620, help="tokens of each prompt")
    parser.add_argument("--shared_tokens", type=int, default=490,
                        help="first tokens that all prompts share")
    parser.add_argument("--new_tokens", type=int, default=64 if ON_GPU else 48,
                        help="tokens of each completion")
    parser.add_argument("--peer_rows", type=int, default=0 if ON_GPU else 32,
                        help="batch of the library's two (0: that of each k)")
    parser.add_argument("--peers", nargs="*", default=["generate", "continuous batching"],
                        help="against whom; copies, static or parts: ours in that way")
    parser.add_argument("--bf16", action="store_true",
                        help="ours also in bf16: another precision, so no ratio is made of it")
    parser.add_argument("--peer_repeats", type=int, help="fewer rounds for the slow ones")
    args = parser.parse_args()
    if args.contestant:
        return run(args, json.loads(args.contestant))
    ours = {"name": "ours", "prompts": args.prompts}
    contestants = {f"ours{' bf16' * bf16} k={k}": {**ours, "k": k, "bf16": bf16}
                   for bf16 in (False, True)[:1 + args.bf16] for k in args.k}
    timed_at = {k: max(1, args.peer_rows // args.prompts) if args.peer_rows else k for k in args.k}
    for peer in args.peers:
        for k in sorted(set(timed_at.values())):
            contestants[f"{peer} k={k}"] = {"name": peer, "k": k, "prompts": args.prompts,
                                            "repeats": args.peer_repeats or args.repeats}
    rows = measure(args, contestants)
    if args.peer_rows:
        print("the library's seconds are taken as proportional to the samples")
    seconds = {name: row[args.clock] for name, row in rows.items()}
    ratios = {f"{peer}/ours k={k}":
              seconds[f"{peer} k={timed_at[k]}"] * k / timed_at[k] / seconds[f"ours k={k}"]
              for k in args.k for peer in args.peers}
    report(args, "sampling", rows, ratios,
           {f"generate/ours k={k}": target for (prompts, k), target in TARGETS.items()
            if prompts == args.prompts and k in args.k})


if __name__ == "__main__":
    main()
