"""Share of the machine's limits that sampling reaches: FLOP/s and bytes/s of prefill and decode
against measured matmul and copy rates.

    python -m results.bench_limits

Work is counted, not measured: 2 FLOP per weight and token (the vocabulary projection on sampled
tokens only) and 4 per key element seen; bytes of weights and of the keys and values that must be
read, each once per token: shared prompts once for all their rows. The tighter limit is the larger
of FLOP / (matmul rate) and bytes / (read rate); the share is that time over the time taken. matmul:
1024 x 1024; copy: 256 MB, bytes read plus bytes written.
"""
import json
import random
from types import SimpleNamespace

from plumbing import generation
from plumbing.runs import peak_gb
from results.side_by_side import clocks, load, make_parser, measure, report


def best_rate(work, amount, which, rounds=15):
    """amount per second, best of `rounds`: what the machine can do when nobody disturbs it."""
    seconds = []
    for _ in range(rounds):
        start = clocks()[which]
        work()
        seconds.append(clocks()[which] - start)
    return amount / min(seconds)


def run(args, what):
    import torch
    model, tokenizer = load(args)
    which, kind = ("wall", "cpu").index(args.clock), {"device": model.device, "dtype": model.dtype}
    a, big = torch.randn(1024, 1024, **kind), torch.randn(args.copy_mb * 2**18, device=model.device)
    out, target = torch.empty_like(a), torch.empty_like(big)
    flops = best_rate(lambda: torch.mm(a, a, out=out), 2 * 1024**3, which)
    bytes_ = best_rate(lambda: target.copy_(big), 2 * big.nbytes, which)

    config, k, length = model.config, what["k"], args.prompt_tokens
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers, kv = config.num_hidden_layers, getattr(config, "num_key_value_heads", heads) * width
    vocabulary = model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        body -= vocabulary
    rng = random.Random(0)
    prompts = [[rng.randrange(5, config.vocab_size) for _ in range(length)]
               for _ in range(args.prompts)]
    rows = [(p, f"0/{i}/{j}") for i, p in enumerate(prompts) for j in range(k)]
    size, b = model.dtype.itemsize, len(rows)
    end = SimpleNamespace(eos_token_id=None, pad_token_id=tokenizer.pad_token_id)
    model.generation_config.eos_token_id = None

    def seconds(new_tokens):
        start = clocks()[which]
        generation.generate(model, end, [p for p, _ in rows], 1.0, new_tokens, [s for _, s in rows])
        return clocks()[which] - start
    prefill = min(seconds(1) for _ in range(2))
    decode = (seconds(args.new_tokens) - prefill) / (args.new_tokens - 1)    # a token of all rows
    seen = length + args.new_tokens / 2                                      # keys a row sees
    weights, keys = (body + vocabulary) * size, 4 * layers * heads * width
    held = args.prompts * length + b * args.new_tokens / 2                   # keys in memory
    work = {  # (FLOP, bytes)
        "prefill": (2 * args.prompts * (body * length + vocabulary)
                    + keys * args.prompts * length * length / 2, weights),
        "decode": (2 * (body + vocabulary) * b + keys * b * seen,
                   weights + 2 * layers * kv * size * held)}
    row = {"matmul GFLOP/s": flops / 1e9, "copy GB/s": bytes_ / 1e9, "rows": b}
    for name, time in (("prefill", prefill), ("decode", decode)):
        f, n = work[name]
        row |= {f"{name} s": time, f"{name} GFLOP/s": f / time / 1e9,
                f"{name} GB/s": n / time / 1e9,
                f"{name} share": max(f / flops, n / bytes_) / time}
    print(json.dumps({**row, "peak_gb": peak_gb()}))


def main():
    parser = make_parser(__doc__)
    parser.add_argument("--k", type=int, nargs="+", default=[1, 8, 32], help="samples per prompt")
    parser.add_argument("--prompts", type=int, default=4, help="distinct prompts")
    parser.add_argument("--prompt_tokens", type=int, default=620, help="tokens of each prompt")
    parser.add_argument("--new_tokens", type=int, default=16, help="tokens of each completion")
    parser.add_argument("--copy_mb", type=int, default=256, help="size of the copied block")
    args = parser.parse_args()
    if args.contestant:
        return run(args, json.loads(args.contestant))
    rows = measure(args, {f"k={k}": {"k": k} for k in args.k})
    ratios = {f"{part} share k={k}": rows[f"k={k}"][f"{part} share"]
              for k in args.k for part in ("prefill", "decode")}
    report(args, "limits", rows, ratios, {f"decode share k={k}": 0.5 for k in args.k})


if __name__ == "__main__":
    main()
