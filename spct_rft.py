r"""Rejective fine-tuning (RFT), the cold start of SPCT (paper §3.2).

A pretrained model does not know the task's form: write principles, criticise, box one integer per
response. RFT teaches that form, one for any number of responses, by the model's own successes: it
samples judgments on items whose best response is known, rejects those that got it wrong, and is
fine-tuned on the rest. Two kinds of judgments are sampled:

  non-hinted: N_RFT = 3 per item. Wrong ones (Eq. 10) are rejected. If all three are right, the item
              is too easy: it has nothing to teach, and it is rejected as a whole.
  hinted:     1 more per item, from a prompt that names the best response. Why: some items are never
              right in three tries, and without them only easy ones are learned. The risk: a judge
              that knows the answer may skip the reasons. The paper saw such shortcuts; they are one
              reason for the RL stage.

The kept judgments are mixed with general instruction data (85 %), so that the model stays a model
of language and does not learn to judge only.

Input:   a model, items with known best response, chats.
Output:  judgments.jsonl (all of them, wrong ones too: meta_rm.py learns from those; with
         --format_only also the written ones), selection.json (kept and rejected by reason),
         metrics.jsonl, model/ (loads in plain transformers).

    accelerate launch spct_rft.py                                # toy world -> runs/toy/rft
    accelerate launch spct_rft.py --no_hinted --output runs/toy/rft-no-hint      # Table 4
    accelerate launch spct_rft.py --format_only --output runs/toy/warmup   # docs/real_models.md
    accelerate launch --num_processes 8 spct_rft.py --model Qwen/Qwen2.5-0.5B \
        --sampler Qwen/Qwen2.5-7B-Instruct --data Skywork/Skywork-Reward-Preference-80K-v0.2 \
        --general_data smoltalk --template full --max_new_tokens 512 --lr 5e-6 \
        --output runs/qwen/rft

Where we differ from the paper:
  1. Sampling temperature, optimizer and schedule are not stated there (`# Choice:`).
  2. The hint is stripped from the training prompt; the paper does not say.
  3. The sampler is the model itself unless --sampler names another (paper: DeepSeek-V2.5).
  4. Learning rate and sizes are for a small model; the paper's stand in --help.
  5. `--format_only` is a warm-up of ours (plumbing/format_warmup.py).
Read next: spct_rl.py.
"""
import argparse
import math
import re
import time
from collections import Counter

import torch

from grm import (
    build_prompt,
    encode_chat,
    is_correct,
    parse_judgment,
    rating_of,
    sample_judgments,
)
from plumbing import served
from plumbing.data import DATA_HELP, general_data, load_chats, load_examples, try_chats
from plumbing.figures import nothing_kept, print_selection, tell_unparsed
from plumbing.format_warmup import add_written, parsed_fates
from plumbing.generation import end_token_ids, left_pad, load_model, load_tokenizer, right_pad
from plumbing.judge import TOY_BASE, add_judge_flags, judge_options, judge_settings, settle
from plumbing.runs import (
    UserError,
    add_run_flags,
    batch_indices,
    command_line,
    in_chunks,
    read_flags,
    read_rows,
    seed_everything,
    start_accelerator,
    start_run,
    write_json,
)

# ----- §3.2: which judgments are kept -----

# Rejection is the whole supervision of this stage. Nobody writes a good critique for the model to
# copy. It copies its own, and only the outcome decides which: Eq. 10 looks at the scores alone, so
# a judgment that is right for a wrong reason is kept too.
MENTIONS_HINT = re.compile(
    r"\bhints?\b|best response is:|told that|as (?:stated|given) (?:above|in the prompt)",
    re.IGNORECASE)


def select(non_hinted, hinted):
    """The fate of each judgment of one item: "kept", or the reason of its rejection.

    Source:  paper §3.2.
    Args:    lists of judgments, dicts with "correct" (Eq. 10) and "text".
    Returns: (fates of non_hinted, fates of hinted): kept, incorrect, too_easy, mentions_hint.
    Choice:  a too easy item drops its hinted judgment too. The paper rejects "the data point".
    Choice:  a hinted judgment that talks about the hint is rejected: the training prompt has none.

    >>> right, wrong = {"correct": True, "text": ""}, {"correct": False, "text": ""}
    >>> select([right, wrong, wrong], [right])
    (['kept', 'incorrect', 'incorrect'], ['kept'])
    >>> select([right, right, right], [right])
    (['too_easy', 'too_easy', 'too_easy'], ['too_easy'])
    """
    too_easy = bool(non_hinted) and all(j["correct"] for j in non_hinted)

    def fate(judgment, had_hint):
        if not judgment["correct"]:
            return "incorrect"
        if had_hint and MENTIONS_HINT.search(judgment["text"]):
            return "mentions_hint"
        return "too_easy" if too_easy else "kept"
    return [fate(j, False) for j in non_hinted], [fate(j, True) for j in hinted]


def fates_of(row):
    """(kind, judgment, its fate) of each judgment of a row of judgments.jsonl, in the row's order.

    A row of the format warm-up (--format_only) has fates of its own.
    """
    if "written" in row:
        found = parsed_fates(row)
    else:
        fates = select(row["non_hinted"], row["hinted"])
        found = dict(zip(("non_hinted", "hinted"), fates, strict=True))
    for kind, fates in found.items():
        for judgment, fate in zip(row[kind], fates, strict=True):
            yield kind, judgment, fate


def kept(row):
    return [judgment for _, judgment, fate in fates_of(row) if fate == "kept"]


def selection_report(rows):
    """Counts of fates: {"items", "non_hinted": {fate: count}, "hinted": ..., "by_domain": ...}."""
    report = {"items": len(rows), "non_hinted": Counter(), "hinted": Counter(), "by_domain": {}}
    for row in rows:
        domain = report["by_domain"].setdefault(row["domain"], Counter())
        for kind, _, fate in fates_of(row):
            report.setdefault(kind, Counter())[fate] += 1
            domain[f"{kind}/{fate}"] += 1
    return report


def training_prompt(shown, args):
    """The prompt that is trained on: that of the judge (messages), without a hint."""
    return build_prompt(shown, args.template, rating_of(shown, args.rating),
                        not args.no_principles, args.use_reference, hint=False)


# ----- supervised fine-tuning on judgment tokens -----

def sft_loss(model, rows, pad_id, device):
    """Sum of the negative log-likelihood of the rows' completion tokens, nats.

    The prompt carries no loss: the judge is to learn judging, not to write queries and responses.
    rows: b times (prompt_ids, completion_ids), laid out as [padding][prompt][completion][padding]:
    all completions begin at one place, so logits are made for them only (a vocabulary of 150,000
    times a long prompt would not fit).
    """
    completions, counted = right_pad([c for _, c in rows], pad_id, device)   # (b, T) each
    prompts, mask = left_pad([p for p, _ in rows], pad_id, device)           # (b, P) each
    mask = torch.cat([mask, counted], 1).long()                              # (b, P + T)
    logits = model(
        input_ids=torch.cat([prompts, completions], 1), attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=completions.shape[1] + 1).logits[:, :-1]              # (b, T, V)
    labels = completions.masked_fill(~counted, -100)                         # (b, T)
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")


def learning_rate(step, steps, peak):
    """Choice: linear warm-up over a twentieth, cosine to a tenth (the paper gives the peak)."""
    warmup = max(1, steps // 20)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)                      # 0..1
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


# ----- the program -----

def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=TOY_BASE,
                        help="model to fine-tune (paper: Gemma-2-27B base)")
    parser.add_argument("--sampler", help="model that writes the judgments; default --model "
                        "(paper: DeepSeek-V2.5)")
    parser.add_argument("--data", default="toy", help=DATA_HELP)
    parser.add_argument("--exclude_domain", help="hold one domain out (generalisation run)")
    parser.add_argument("--limit", type=int, default=1500,
                        help="items to sample on (paper: 186K kept judgments)")
    parser.add_argument("--output", default="runs/toy/rft", help="run folder")
    parser.add_argument("--seed", type=int, default=0, help="data order and sampling")
    # selection
    parser.add_argument("--n_rft", type=int, default=3,
                        help="non-hinted judgments per item (paper: 3)")
    parser.add_argument("--temperature", type=float, default=1.0,
                        help="of the sampling (paper: not stated)")
    parser.add_argument("--rating", choices=["train", "best"],
                        help="train (the default): 0-1 for n = 1, else 1-10; best: an "
                        "LLM-as-a-Judge")
    parser.add_argument("--no_hinted", action="store_true",
                        help="ablation of Table 4: without hinted sampling")
    parser.add_argument("--no_non_hinted", action="store_true",
                        help="ablation of Table 4: without non-hinted sampling (then nothing "
                        "counts as too easy)")
    parser.add_argument("--format_only", action="store_true",
                        help="warm-up of a model that hardly writes the format, no label looked "
                        "at: keep all that parses, write one judgment where nothing does")
    # general instruction data
    parser.add_argument("--general_data", help="chats: a .jsonl of {messages: [...]}, smoltalk, or "
                        "toy (default for the toy's items only)")
    parser.add_argument("--general_fraction", type=float, default=0.85,
                        help="share of all samples (paper: 1070K of 1256K)")
    parser.add_argument("--general_only", action="store_true",
                        help="ablation of Table 4: without rejective sampling (no judgments)")
    # training
    parser.add_argument("--epochs", type=float, default=2.0,
                        help="passes over the mixture (paper: 900 x 1024 / 1256K = 0.73)")
    parser.add_argument("--batch_size", type=int, default=128,
                        help="samples per update on all processes (paper: 1024)")
    parser.add_argument("--micro_batch_size", type=int, default=32,
                        help="samples per forward pass on one process")
    parser.add_argument("--lr", type=float, default=5e-4, help="peak learning rate (paper: 5e-6)")
    parser.add_argument("--gradient_checkpointing", action="store_true",
                        help="less memory, slower")
    add_run_flags(parser, save_every=50)
    add_judge_flags(parser)
    served.add_endpoint_flags(parser)
    args = served.check_endpoint(read_flags(parser), role="sampler")
    if args.general_fraction >= 1:
        raise UserError("--general_fraction must be at least 0 and below 1; --general_only trains "
                        "without judgments")
    if args.format_only and (args.general_only or args.sampler):
        raise UserError("--format_only learns from --model's own judgments; leave --general_only, "
                        "--sampler and --endpoint out")
    if args.no_hinted and args.no_non_hinted and not (args.general_only or args.format_only):
        raise UserError("--no_hinted with --no_non_hinted leaves no judgment; use --general_only")
    # The prompt is that of the judge that is asked: the sampler.
    settle(args, args.sampler, args.model, training=True)
    args.general_data = general_data(args, args.general_only or args.general_fraction > 0)
    return args


@command_line
def main():
    args = read_arguments()
    accelerator = start_accelerator(args)

    # 1. items with a known best response
    examples = load_examples(args.data, "train", args.limit, skip_bad=args.skip_bad,
                             exclude_domain=args.exclude_domain, labelled=not args.format_only,
                             at_least=2 if args.rating == "best" else 1)
    # what may fail after hours of sampling is tried now
    try_chats(load_tokenizer(args.model), args, args.general_fraction or args.general_only)
    run = start_run(args, accelerator, examples)

    # 2. sample judgments: N_RFT non-hinted ones, one hinted (§3.2). All are written down, because
    # the rejected ones are what the meta RM learns "incorrect" from.
    rows = [] if args.general_only else sample_all(examples, args, accelerator, run.folder)

    # 3. reject, strip the hint, and mix with general instruction data
    model, tokenizer = load_model(args.model, accelerator.device, torch.float32)
    # Pitfall: sampled ids are trained on as they are, where sampler and model share a tokenizer.
    # Deviation: where they do not, or the sampler is served, its text is tokenised once, and the
    # end token appended.
    same_tokenizer = not args.endpoint and (
        args.sampler in (None, args.model)
        or load_tokenizer(args.sampler).get_vocab() == tokenizer.get_vocab())
    # Pitfall: a sampler of the same vocabulary may end on another token, at which the trained model
    # would never stop.
    # Choice: such a judgment ends on the model's own end token, as the general chats do.
    ends, end = end_token_ids(model, tokenizer), tokenizer.eos_token_id
    by_id, samples = {e.id: e for e in examples}, []
    for row in rows:
        for judgment in kept(row):
            # Choice: the prompt is built anew without the hint, in the order that the judge saw.
            # A prompt with the hint would teach the judge to wait for one.
            shown = by_id[row["id"]].permuted(judgment["permutation"])
            prompt_ids, text_ids = encode_chat(tokenizer, training_prompt(shown, args),
                                               judgment["text"], own=True, thinking=args.thinking)
            sampled_ids = judgment["completion_ids"] if same_tokenizer else []
            *ids, last = sampled_ids or text_ids
            samples.append((prompt_ids, [*ids, last if last in ends else end]))
    if not args.general_only:
        report_selection(rows, len(samples), same_tokenizer, run)
    count = len(samples)
    # Choice: general data alone are as many samples as a mixture with one judgment per item.
    own = len(examples) if args.general_only else count * args.general_fraction
    general = round(own / (1 - args.general_fraction))
    if general:
        for chat in load_chats(args.general_data, general, args.seed):
            samples.append(encode_chat(tokenizer, chat[:-1], chat[-1]["content"]))

    # 4. fine-tune on the tokens of judgments and answers only
    steps = max(1, round(args.epochs * len(samples) / args.batch_size))
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    # Choice: AdamW, betas (0.9, 0.95), no weight decay, gradient norm at most 1.0.
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95),
                                  weight_decay=0.0)
    accelerator.print(f"fine-tuning {args.model} on {accelerator.device}: {count} judgments + "
                      f"{general} general chats, {steps} updates of {args.batch_size} samples on "
                      f"{accelerator.num_processes} processes")
    model, optimizer, step = run.prepare(model, optimizer, steps, "RFT")
    model.train()
    while step < steps:
        started = time.time()
        seed_everything(run.seed())
        drawn = batch_indices(step, args.batch_size, len(samples), args.seed)
        batch = sorted((samples[i] for i in drawn), key=lambda s: len(s[0]) + len(s[1]))
        tokens, total = sum(len(c) for _, c in batch), 0.0  # of all processes, known to each
        for part, sync in run.parts(model, run.mine(batch), args.micro_batch_size):
            with sync:
                # Choice: mean over all completion tokens of the update.
                loss = sft_loss(model, part, tokenizer.pad_token_id, accelerator.device) / tokens
                # Pitfall: parts add up; DDP averages over processes, hence the factor.
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        loss = accelerator.reduce(total).item()
        lr = learning_rate(step, steps, args.lr)
        norm = run.update(model, lr, loss, batch)
        step = run.log(shown=("loss",), loss=loss, lr=lr, grad_norm=norm, tokens=tokens,
                       seconds=time.time() - started)

    # 5. save
    run.finish(tokenizer, judge_settings(args))


def sample_all(examples, args, accelerator, folder):
    """Rows of judgments.jsonl: the judgments of each item, and whether they are correct.

    Choice: temperature 1.0, the model's own distribution; three greedy judgments would be one.
    """
    path = folder / "judgments.jsonl"
    if path.exists():
        return read_rows(path)
    model, tokenizer = served.load_judge(args, args.sampler or args.model, accelerator.device)
    options = {**judge_options(args), "temperature": args.temperature, "seed": args.seed,
               "skip_long": args.skip_bad}

    def record(j, example):
        return {"permutation": j.permutation, "completion_ids": j.completion_ids, "text": j.text,
                "scores": j.scores, "reason": j.reason,
                "correct": None if args.format_only else is_correct(j.scores, example.rewards)}

    def explore(chunk):
        non_hinted = hinted = [[] for _ in chunk]
        if not args.no_non_hinted:
            non_hinted = sample_judgments(model, tokenizer, chunk, args.n_rft, **options)
        if not (args.no_hinted or args.format_only):  # random numbers and an order of its own
            hinted = sample_judgments(model, tokenizer, chunk, 1, hint=True,
                                      first_sample=args.n_rft, **options)
        rows = [{"id": e.id, "domain": e.domain, "rewards": e.rewards,
                 "non_hinted": [record(j, e) for j in js], "hinted": [record(j, e) for j in hs]}
                for e, js, hs in zip(chunk, non_hinted, hinted, strict=True)]
        if args.format_only:
            add_written(rows, chunk, model, tokenizer, args, training_prompt, rating_of,
                        parse_judgment)
        return rows
    return in_chunks(path, examples, explore, accelerator, 128, "sampling judgments")


def report_selection(rows, kept, same_tokenizer, run):
    """selection.json and its printed form. Raises UserError if nothing is left."""
    report, on_main = selection_report(rows), run.accelerator.is_main_process
    judgments = [j for row in rows for j in row["non_hinted"] + row["hinted"]]
    if on_main and not run.args.format_only:
        tell_unparsed(run.folder, judgments, served=run.args.endpoint)
    if not kept:
        raise nothing_kept(report, judgments, run.args.format_only)
    if on_main:
        write_json(run.folder / "selection.json",
                   {**report, "kept": kept, "same_tokenizer": same_tokenizer})
        print_selection(report, kept)


if __name__ == "__main__":
    main()
