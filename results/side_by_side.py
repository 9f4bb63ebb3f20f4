"""Shared by bench_*.py: contestants in turns, a process each; at the end one line of JSON.

A fresh process per measurement makes the peak memory that of the contestant alone; the median of
several rounds counts. Two clocks are read: the wall, and the process's CPU seconds (all threads).
On a machine that others use too, only the second one compares.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from plumbing.runs import ROOT, default_device, git_commit, peak_gb


def make_parser(doc, repeats=3):
    parser = argparse.ArgumentParser(description=doc,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub id, folder or .gguf file (default: random weights in "
                        "the shape of SmolLM2-135M, made once; speed needs no others)")
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds; the median counts")
    parser.add_argument("--threads", type=int, default=0, help="torch threads (0: all cores)")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall",
                        help="what ratios are made of: seconds on the wall, or of the CPU")
    parser.add_argument("--output", help="also write rows, ratios, command and commit to this file")
    parser.add_argument("--contestant", help="internal: run this one, described as JSON")
    return parser


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


ON_GPU = default_device() == "cuda"


def random_model():
    """Folder of a random model in the shape of SmolLM2-135M, with a word for each of its tokens."""
    folder = ROOT / "runs" / "bench" / "smollm2-shape"
    if not (folder / "config.json").exists():
        import torch
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        from plumbing import runs
        words = ["<unk>", "<pad>", "<end>", *(f"w{i}" for i in range(49149))]
        plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
        plain.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=plain, unk_token="<unk>", pad_token="<pad>", eos_token="<end>")
        tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        torch.manual_seed(0)
        runs.save_model(folder, LlamaForCausalLM(LlamaConfig(
            hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, vocab_size=len(words), tie_word_embeddings=True,
            max_position_embeddings=8192, bos_token_id=None, eos_token_id=2, pad_token_id=1)),
            tokenizer)
    return str(folder)


def load(args, dtype=None):
    """(model, tokenizer), with the threads set."""
    import torch

    from plumbing import generation
    torch.set_num_threads(args.threads or cores())
    torch.manual_seed(0)
    args.model = args.model or random_model()
    return generation.load_model(args.model, dtype=dtype)


def clocks():
    """(wall, CPU) seconds since some moment; waits for the GPU."""
    import torch
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def timed(work):
    """What one measurement prints: seconds, CPU seconds, peak memory of this process so far, GB.

    On a GPU the work is done once before: the first calls of a process set its libraries up.
    """
    if ON_GPU:
        work()
    start = clocks()
    work()
    wall, cpu = (end - begin for begin, end in zip(start, clocks(), strict=True))
    return {"wall": wall, "cpu": cpu, "peak_gb": peak_gb()}


def measure(args, contestants):
    """{name: medians over --repeats rounds} of contestants {name: description}.

    A description may hold "repeats": fewer rounds for a slow contestant.
    """
    found = {name: [] for name in contestants}
    if not args.model:
        random_model()
    program = ["-m", f"results.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
    for round_ in range(args.repeats):
        for name, what in contestants.items():
            if round_ < what.get("repeats", args.repeats):
                command = [sys.executable, *program, "--contestant", json.dumps(what)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    killed = done.returncode == -9
                    sys.exit(f"{name} failed: "
                             f"{'killed; not enough memory?' if killed else done.stderr[-2000:]}")
                row = json.loads(done.stdout.strip().splitlines()[-1])
                found[name].append(row)
                print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
    return {name: {k: statistics.median(r[k] for r in rows) for k in rows[0]}
            for name, rows in found.items()}


def report(args, name, rows, ratios, targets):
    """Print the table and, last, the JSON line; write both to --output."""
    import torch
    import transformers
    for row, values in rows.items():
        print(f"{row:<28}" + "  ".join(f"{k} {v:.4g}" for k, v in values.items()))
    environment = {
        "device": torch.cuda.get_device_name() if default_device() == "cuda" else "cpu",
        "cores": cores(), "threads": args.threads or cores(), "clock": args.clock,
        "repeats": args.repeats, "load": round(os.getloadavg()[0], 1), "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": Path(args.model or random_model()).name}
    line = {"name": name, "ratios": {k: round(v, 3) for k, v in ratios.items()},
            "targets": targets, "environment": environment}
    if args.output:
        words = ["python", "-m", f"results.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
        words = [Path(w).name if w in (args.model, args.output) else w for w in words]
        whole = {**line, "rows": rows, "command": " ".join(words), "commit": git_commit()}
        Path(args.output).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(line))
