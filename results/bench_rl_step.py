"""One step of rule-based RL: spct_rl.py against TRL's GRPOTrainer, all sizes and settings alike.

    python -m results.bench_rl_step  # needs trl

Prompts x 4 completions of exactly --new_tokens tokens (no end token), temperature 1, beta 0.08, one
AdamW update, no gradient checkpointing; fp32 on a CPU, bf16 autocast on a GPU. The prompts are
compact ones cut to --prompt_tokens. Seconds are those between the ends of two steps, the first step
being a warm-up; peak memory is that of the whole process, models and optimizer included.
"""
import json
import os
import sys
import tempfile
from pathlib import Path

from grm import PreferenceExample, build_prompt, encode_chat
from plumbing import generation, runs
from results.side_by_side import ON_GPU, clocks, load, make_parser, measure, report


def make_items(args, tokenizer):
    """Items whose compact prompt has just below --prompt_tokens tokens, and the prompts."""
    items, prompts = [], []
    for i in range(args.prompts):
        for words in range(args.prompt_tokens, -1, -1):
            answers = [" ".join([name] * words) for name in ("north", "south")]
            question = [{"role": "user", "content": f"Question {i} ?"}]
            item = PreferenceExample(f"i{i}", question, answers, rewards=[0, 1])
            messages = build_prompt(item, template="compact")
            if len(encode_chat(tokenizer, messages)) <= args.prompt_tokens:
                break
        items.append({"id": item.id, "prompt": question, "responses": answers, "rewards": [0, 1]})
        prompts.append(messages)
    return items, prompts


def ours(args, items, folder, record):
    import spct_rl
    generation.end_token_ids = lambda model, tokenizer: [-1]  # nobody stops early: equal work
    real = runs.log_metrics
    runs.log_metrics = lambda *a, **metrics: (record(), real(*a, **metrics))
    (folder / "items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    sys.argv = ["spct_rl.py", *(
        f"--model {args.model} --data {folder}/items.jsonl --output {folder}/run "
        f"--prompts_per_step {args.prompts} --G {args.G} --steps {args.steps} --beta 0.08 "
        f"--max_new_tokens {args.new_tokens} --template compact --lr 1e-6 --save_every 1000"
        ).split()]
    spct_rl.main()
    lengths = [row["len/mean"] for row in runs.read_rows(folder / "run" / "metrics.jsonl")]
    assert set(lengths) == {args.new_tokens}, f"unequal work: {lengths}"


def trl(args, prompts, folder, record, model, tokenizer):
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Record(TrainerCallback):
        def on_step_end(self, *a, **k):
            record()

    def reward(completions, **k):
        return [(-1.0) ** i for i in range(len(completions))]
    settings = GRPOConfig(
        output_dir=str(folder / "trl"), max_steps=args.steps, num_generations=args.G,
        per_device_train_batch_size=args.prompts * args.G, max_completion_length=args.new_tokens,
        temperature=1.0, beta=0.08, loss_type="grpo", learning_rate=1e-6, bf16=ON_GPU, seed=0,
        gradient_checkpointing=False, save_strategy="no", report_to="none", logging_steps=1,
        generation_kwargs={"min_new_tokens": args.new_tokens}, dataloader_num_workers=0)
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=settings, processing_class=tokenizer,
        callbacks=[Record()], train_dataset=Dataset.from_list([{"prompt": p} for p in prompts]))
    trainer.train()
    key = "completions/mean_length"
    lengths = [row[key] for row in trainer.state.log_history if key in row]
    assert set(lengths) == {args.new_tokens}, f"unequal work: {lengths}"


def run(args, what):
    import torch
    model, tokenizer = load(args)
    os.environ["SPCT_THREADS"] = str(torch.get_num_threads())
    items, prompts = make_items(args, tokenizer)
    ends = []
    with tempfile.TemporaryDirectory() as folder:
        if args.model.endswith(".gguf"):  # TRL loads its reference model by name: a folder
            args.model = f"{folder}/model"
            runs.save_model(args.model, model, tokenizer)
            model, tokenizer = load(args)
        if what["name"] == "ours":
            del model  # spct_rl.py loads its own
            ours(args, items, Path(folder), lambda: ends.append(clocks()))
        else:
            trl(args, prompts, Path(folder), lambda: ends.append(clocks()), model, tokenizer)
    assert len(ends) == args.steps
    print()
    wall, cpu = ((last - first) / (args.steps - 1) for first, last in zip(ends[0], ends[-1]))
    print(json.dumps({"wall": wall, "cpu": cpu, "peak_gb": runs.peak_gb()}))


def main():
    parser = make_parser(__doc__)
    prompts, tokens, new = (16, 355, 96) if ON_GPU else (2, 297, 48)
    parser.add_argument("--prompts", type=int, default=prompts, help="distinct prompts")
    parser.add_argument("--G", type=int, default=4, help="completions per prompt")
    parser.add_argument("--prompt_tokens", type=int, default=tokens,
                        help="tokens of each prompt")
    parser.add_argument("--new_tokens", type=int, default=new,
                        help="tokens of each completion")
    parser.add_argument("--steps", type=int, default=3, help="steps, the first not counted")
    args = parser.parse_args()
    if args.contestant:
        return run(args, json.loads(args.contestant))
    rows = measure(args, {"ours": {"name": "ours"}, "TRL": {"name": "trl"}})
    for row in rows.values():
        row["new tokens/s"] = args.prompts * args.G * args.new_tokens / row[args.clock]
    ratios = {"seconds TRL/ours": rows["TRL"][args.clock] / rows["ours"][args.clock],
              "peak memory ours/TRL": rows["ours"]["peak_gb"] / rows["TRL"]["peak_gb"]}
    report(args, "rl_step", rows, ratios,
           {"seconds TRL/ours": 2.5 if ON_GPU else 2.6,
            "peak memory ours/TRL at most": 0.55 if ON_GPU else 0.51})


if __name__ == "__main__":
    main()
