r"""Rejective fine-tuning (RFT), the cold start of SPCT (paper §3.2).

The judge samples judgments (the paper also calls them trajectories) on items whose best response is known; rules reject the
wrong and the too easy ones; the judge is fine-tuned on what is left, mixed with general instruction data:

  non-hinted: N_RFT = 3 trajectories per item. Incorrect ones (Eq. 10) are rejected; if all three are correct, the item is
              too easy and is rejected as a whole.
  hinted:     one more trajectory per item from a prompt that names the best response; rejected only if incorrect.

    python spct_rft.py                                                  # toy world, 2 minutes on 2 cores -> runs/toy/rft
    accelerate launch --num_processes 8 spct_rft.py --model Qwen/Qwen2.5-0.5B --sampler Qwen/Qwen2.5-7B-Instruct \
        --data Skywork/Skywork-Reward-Preference-80K-v0.2 --general_data chats.jsonl --template full --output runs/qwen/rft

Output: trajectories.jsonl (all of them, wrong ones included: meta_rm.py learns from those), selection.json (kept and
rejected by reason), metrics.jsonl, model/ (loads in plain transformers).

Where we differ from the paper: sampling temperature, optimizer and schedule are not stated there (`# Choice:`); the
hint is stripped from the training prompt; learning rate and sizes are for a small model (the paper's stand in --help).
Read next: spct_rl.py.
"""
import argparse
import math
import re
import time
from collections import Counter
from contextlib import nullcontext

import torch
from tqdm import tqdm

from grm import TOY_BASE, add_judge_flags, build_prompt, encode_chat, is_correct, judge_options, rating_of, sample_judgments
from plumbing import generation, served
from plumbing.data import DATA_HELP, load_chats, load_examples
from plumbing.runs import (
    UserError,
    batch_indices,
    check_update,
    command_line,
    in_chunks,
    load_state,
    log_metrics,
    open_run,
    read_flags,
    read_rows,
    save_model,
    save_state,
    seed_everything,
    start_accelerator,
    trim_metrics,
    write_json,
)

MENTIONS_HINT = re.compile(r"\bhints?\b|best response is:|told that|as (?:stated|given) (?:above|in the prompt)", re.IGNORECASE)


# ----- §3.2: which trajectories are kept -----

def select(non_hinted, hinted, easy_hinted="drop"):
    """The fate of each trajectory of one item: "kept" or the reason of its rejection.

    Source: paper §3.2. Args: lists of trajectories, dicts with "correct" (Eq. 10) and "text".
    Returns: (fates of non_hinted, fates of hinted): "kept", "incorrect", "too_easy", "mentions_hint".
    Choice:  an item that is too easy drops its hinted trajectory too (easy_hinted="keep" for the other reading).
    Choice:  a hinted trajectory that talks about the hint is rejected, since the training prompt has none.
    """
    too_easy = len(non_hinted) > 0 and all(t["correct"] for t in non_hinted)
    fates = ["incorrect" if not t["correct"] else "too_easy" if too_easy else "kept" for t in non_hinted]
    hinted_fates = ["incorrect" if not t["correct"] else "mentions_hint" if MENTIONS_HINT.search(t["text"])
                    else "too_easy" if too_easy and easy_hinted == "drop" else "kept" for t in hinted]
    return fates, hinted_fates


def selection_report(rows, easy_hinted):
    """Counts of fates: {"non_hinted": {fate: count}, "hinted": ..., "by_domain": {domain: {...}}, "items": ...}."""
    report = {"items": len(rows), "non_hinted": Counter(), "hinted": Counter(), "by_domain": {}}
    for row in rows:
        fates = dict(zip(("non_hinted", "hinted"), select(row["non_hinted"], row["hinted"], easy_hinted), strict=True))
        for kind, names in fates.items():
            report[kind].update(names)
            report["by_domain"].setdefault(row["domain"], Counter()).update(f"{kind}/{name}" for name in names)
    return report


# ----- supervised fine-tuning on judgment tokens -----

def sft_loss(model, rows, pad_id, device):
    """Sum over the rows of the negative log-likelihood of their completion tokens, in nats (prompt tokens carry no loss).

    rows: [(prompt_ids, completion_ids)]; b rows, laid out as [padding][prompt][completion][padding], so that all completions
    begin at the same place and logits are made for them only (a vocabulary of 150,000 times a long prompt would not fit).
    """
    T = max(len(c) for _, c in rows)
    completions = torch.tensor([c + [pad_id] * (T - len(c)) for _, c in rows], device=device)                      # (b, T)
    # Pitfall: the mask comes from lengths, never from token values; pad may be the end token.
    counted = torch.tensor([[True] * len(c) + [False] * (T - len(c)) for _, c in rows], device=device)             # (b, T)
    prompts, mask = generation.left_pad([p for p, _ in rows], pad_id, device)                                         # (b, P) each
    mask = torch.cat([mask, counted.to(mask.dtype)], 1)                                                            # (b, P + T)
    logits = model(input_ids=torch.cat([prompts, completions], 1), attention_mask=mask, logits_to_keep=T + 1,
                   position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits[:, :-1]                                  # (b, T, V)
    labels = completions.masked_fill(~counted, -100)                                                               # (b, T)
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")


# [repeated in: meta_rm.py]
def learning_rate(step, steps, peak, warmup):
    """Choice: linear warm-up, then cosine down to a tenth of the peak (the paper states the peak only)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=TOY_BASE, help="model to fine-tune (paper: Gemma-2-27B base)")
    parser.add_argument("--sampler", help="model that writes the trajectories; default --model (paper: DeepSeek-V2.5)")
    parser.add_argument("--data", default="toy", help=DATA_HELP)
    parser.add_argument("--exclude_domain", help="hold one domain out (generalisation run)")
    parser.add_argument("--limit", type=int, default=1500, help="items to sample on (paper: 186K kept trajectories)")
    parser.add_argument("--output", default="runs/toy/rft", help="run folder")
    parser.add_argument("--seed", type=int, default=0, help="data order and sampling")
    # selection
    parser.add_argument("--n_rft", type=int, default=3, help="non-hinted trajectories per item (paper: 3)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of sampling trajectories (paper: not stated)")
    parser.add_argument("--rating", default="train", choices=["train", "1-10", "best"],
                        help="train: 0-1 for n = 1, else 1-10; best: an LLM-as-a-Judge on items with n >= 2")
    parser.add_argument("--no_hinted", action="store_true", help="ablation of Table 4: without hinted sampling")
    parser.add_argument("--no_non_hinted", action="store_true",
                        help="ablation of Table 4: without non-hinted sampling (then nothing counts as too easy)")
    parser.add_argument("--hinted_only_failed", action="store_true", help="hint only where no non-hinted one was correct")
    parser.add_argument("--easy_hinted", default="drop", choices=["drop", "keep"], help="hinted trajectory of a too easy item")
    # general instruction data
    parser.add_argument("--general_data", default="toy", help="chats: toy, a .jsonl of {messages: [...]}, or smoltalk")
    parser.add_argument("--general_fraction", type=float, default=0.85, help="share of all samples (paper: 1070K of 1256K)")
    parser.add_argument("--general_only", action="store_true", help="ablation of Table 4: without rejective sampling (1 and 2)")
    # training
    parser.add_argument("--epochs", type=float, default=2.0, help="passes over the mixture (paper: 900 x 1024 / 1256K = 0.73)")
    parser.add_argument("--batch_size", type=int, default=128, help="samples per update on all processes (paper: 1024)")
    parser.add_argument("--micro_batch_size", type=int, default=32, help="samples per forward pass on one process")
    parser.add_argument("--lr", type=float, default=5e-4, help="peak learning rate (paper: 5e-6)")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="less memory, slower")
    parser.add_argument("--save_every", type=int, default=50, help="updates between saves of the training state")
    parser.add_argument("--log_with", help="tracker of accelerate, e.g. tensorboard or wandb")
    parser.add_argument("--overwrite", action="store_true", help="discard the run in --output")
    add_judge_flags(parser)
    served.add_endpoint_flags(parser)
    args = served.check_endpoint(read_flags(parser), role="sampler")
    if args.general_fraction >= 1:
        raise UserError("--general_fraction must be at least 0 and below 1; --general_only trains without judgments")
    if args.no_hinted and args.no_non_hinted and not args.general_only:
        raise UserError("--no_hinted with --no_non_hinted leaves no trajectory; use --general_only")

    # 1. data
    accelerator = start_accelerator(log_with=args.log_with, output=args.output)
    if args.batch_size % accelerator.num_processes:
        raise UserError(f"--batch_size {args.batch_size} does not divide by {accelerator.num_processes} processes; change it")
    examples = load_examples(args.data, "train", args.limit, skip_bad=args.skip_bad, exclude_domain=args.exclude_domain)
    if args.rating == "best":
        examples = [e for e in examples if len(e.responses) > 1]
        if not examples:
            raise UserError("--rating best needs items with n >= 2 responses, and there is none")
    unlabelled = next((e for e in examples if e.rewards is None), None)
    if unlabelled:
        raise UserError(f"item {unlabelled.id} has no 'rewards'; training needs the ground truth of every item")
    with accelerator.main_process_first():
        output = open_run(args.output, args, accelerator.num_processes, accelerator.is_main_process)
    accelerator.init_trackers("spct")  # those of --log_with
    by_id = {e.id: e for e in examples}

    # 2. sample trajectories: N_RFT non-hinted, one hinted (§3.2)
    if not (output / "trajectories.jsonl").exists() and not args.general_only:
        model, tokenizer = served.load_judge(args, args.sampler or args.model, accelerator.device)
        options = {**judge_options(args), "temperature": args.temperature, "seed": args.seed, "rating": args.rating,
                   "skip_long": args.skip_bad}

        def explore(chunk):
            none = [[] for _ in chunk]
            plain = none if args.no_non_hinted else sample_judgments(model, tokenizer, chunk, args.n_rft, **options)
            # first_sample: the hinted trajectory has its own random numbers and response order
            hinted = none if args.no_hinted else sample_judgments(model, tokenizer, chunk, 1, hint=True,
                                                                  first_sample=args.n_rft, **options)
            return [{"id": e.id, "domain": e.domain, "rewards": e.rewards,
                     "non_hinted": [trajectory(j, e) for j in p], "hinted": [trajectory(j, e) for j in h]}
                    for e, p, h in zip(chunk, plain, hinted, strict=True)]
        in_chunks(output / "trajectories.jsonl", examples, explore, accelerator, 128, "sampling trajectories")

    # 3. reject, and mix with general instruction data
    model, tokenizer = generation.load_model(args.model, accelerator.device, torch.float32)
    # Pitfall: sampled ids are trained on as they are, where sampler and model share a tokenizer.
    # Deviation: where they do not, or the sampler is served, its text is tokenised once and the end token appended.
    same_tokenizer = not args.endpoint and (args.sampler in (None, args.model) or
                                            generation.load_tokenizer(args.sampler).get_vocab() == tokenizer.get_vocab())
    samples, rows = [], []
    if not args.general_only:
        rows = read_rows(output / "trajectories.jsonl")
        for row in rows:
            if args.hinted_only_failed and any(t["correct"] for t in row["non_hinted"]):
                row["hinted"] = []
        report = selection_report(rows, args.easy_hinted)
        for row in rows:
            fates = select(row["non_hinted"], row["hinted"], args.easy_hinted)
            kept = [t for t, fate in zip(row["non_hinted"] + row["hinted"], fates[0] + fates[1], strict=True) if fate == "kept"]
            for t in kept:
                shown = by_id[row["id"]].permuted(t["permutation"])
                # Choice: the hint is stripped: the prompt is built anew without it, in the order that the sampler saw.
                prompt = build_prompt(shown, args.template, rating_of(shown, args.rating), not args.no_principles,
                                      args.use_reference, hint=False)
                prompt_ids, text_ids = encode_chat(tokenizer, prompt, t["text"])
                samples.append((prompt_ids, t["completion_ids"] if same_tokenizer else text_ids))
        if not samples:
            reasons = Counter(t["reason"] for row in rows for t in row["non_hinted"] + row["hinted"])
            raise UserError(f"no trajectory survived of {len(rows)} items ({dict(report['non_hinted'])}; parsing: "
                            f"{dict(reasons)}); use a stronger --sampler or more items (--limit)")
        if accelerator.is_main_process:
            write_json(output / "selection.json", {**report, "kept": len(samples), "same_tokenizer": same_tokenizer})
            print_selection(report, len(samples))
    judgments = len(samples)
    # Choice: general data alone are as many samples as a mixture with one trajectory per item.
    general = round((judgments * args.general_fraction if samples else args.limit) / (1 - args.general_fraction))
    for chat in load_chats(args.general_data, general, args.seed) if general else []:
        samples.append(encode_chat(tokenizer, chat[:-1], chat[-1]["content"]))

    # 4. fine-tune on judgment (and answer) tokens only
    steps = max(1, round(args.epochs * len(samples) / args.batch_size))
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0)
    state, step = load_state(output / "state.pt"), 0
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    trim_metrics(output, step, accelerator)
    accelerator.print(f"fine-tuning {args.model} on {accelerator.device}: {judgments} judgments + {general} general chats, "
                      f"{steps} updates of {args.batch_size} samples on {accelerator.num_processes} processes")
    bar = tqdm(total=steps, initial=step, desc="RFT", unit="update", disable=not accelerator.is_local_main_process)
    while step < steps:
        started = time.time()
        seed_everything(args.seed * 1_000_003 + step)
        batch = sorted((samples[i] for i in batch_indices(step, args.batch_size, len(samples), args.seed)),
                       key=lambda s: len(s[0]) + len(s[1]))  # like lengths together: less padding
        tokens = sum(len(c) for _, c in batch)                              # over all processes, known to each of them
        mine = batch[accelerator.process_index::accelerator.num_processes]
        parts = [mine[i:i + args.micro_batch_size] for i in range(0, len(mine), args.micro_batch_size)]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, args.lr, max(1, steps // 20))
        total = torch.zeros((), device=accelerator.device)
        for number, part in enumerate(parts):
            with nullcontext() if number + 1 == len(parts) else accelerator.no_sync(model):  # DDP: one exchange per update
                # Choice: mean over all judgment tokens of the update; DDP averages over processes, hence the factor
                loss = sft_loss(model, part, tokenizer.pad_token_id, accelerator.device) / tokens * accelerator.num_processes
                accelerator.backward(loss)
            total += loss.detach() / accelerator.num_processes
        norm = accelerator.clip_grad_norm_(model.parameters(), 1.0)
        loss = accelerator.reduce(total).item()
        check_update(step, loss, float(norm), batch, output, accelerator)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}")
        if accelerator.is_main_process:
            log_metrics(output, accelerator, step=step, loss=loss, lr=optimizer.param_groups[0]["lr"], grad_norm=float(norm),
                        tokens=tokens, seconds=time.time() - started)
            if step % args.save_every == 0 or step == steps:
                save_state(output / "state.pt", model=accelerator.unwrap_model(model).state_dict(),
                           optimizer=optimizer.state_dict(), step=step)
    bar.close()

    # 5. save
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        save_model(output / "model", accelerator.unwrap_model(model), tokenizer)
        print(f"wrote {output}/model")


def trajectory(judgment, example):
    return {"permutation": judgment.permutation, "completion_ids": judgment.completion_ids, "text": judgment.text,
            "scores": judgment.scores, "reason": judgment.reason, "correct": is_correct(judgment.scores, example.rewards)}


def print_selection(report, kept):
    print(f"{report['items']} items, {kept} trajectories kept")
    for kind in ("non_hinted", "hinted"):
        total = sum(report[kind].values())
        print(f"  {kind:<11}" + "".join(f"  {fate} {count} ({100 * count / total:.0f}%)"
                                         for fate, count in sorted(report[kind].items())))
    for domain, counts in sorted(report["by_domain"].items()):
        print(f"  {domain:<11}  kept {counts['non_hinted/kept']} non-hinted, {counts['hinted/kept']} hinted; "
              f"too easy {counts['non_hinted/too_easy']}, incorrect {counts['non_hinted/incorrect']}")


if __name__ == "__main__":
    main()
