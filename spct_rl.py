r"""Rule-based online RL, the second stage of SPCT (paper §3.2 and App. C.1): GRPO on a +1/-1 rule.

Why RL after fine-tuning? RFT imitates judgments that were right once, some of them by a shortcut
(§3.2). RL lets the judge try for itself and tells it one thing only: did the best response win? So
principles that lead to right scores become more likely, whatever they say.

Every step: draw Q items; sample a group of G = 4 judgments of each from the current policy; reward
each by rule (Eq. 11: +1 iff the best response gets strictly the highest score); compare it with
its group; one step up the gradient of

  J = E 1/G sum_i 1/|o_i| sum_t { min[rho A, clip(rho, 1-eps, 1+eps) A] - beta KL[pi || pi_ref] }
                                                                                         (Eq. 15)

Input:   a judge (the RFT model), items with known best response.
Output:  metrics.jsonl (one line per step; docs/metrics.md explains the names), samples.jsonl (a
         group of each step, from prompt to reward), model/ (loads in plain transformers). A killed
         run continues with the same command.

    accelerate launch spct_rl.py          # toy world, minutes: runs/toy/rft/model -> runs/toy/rl
    accelerate launch spct_rl.py --beta 0.0 --output runs/toy/rl-no-kl     # ablation of App. C.1
    accelerate launch --num_processes 8 spct_rl.py --model runs/qwen/rft/model --data items.jsonl \
        --template full --max_new_tokens 512 --lr 4e-7 --beta 0.08 --prompts_per_step 128 \
        --steps 900 --output runs/qwen/rl                              # the paper's numbers

Where we differ from the paper:
  1. "Batch size 512" is read as 512 judgments, 128 items times G (the unit is not stated).
  2. Clip range, optimizer, schedule and temperature are not stated; each is marked `# Choice:`.
  3. Learning rate and sizes are for a small model; the paper's stand in --help.
Read next: meta_rm.py.
"""
import argparse
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from grm import is_correct, rule_reward, sample_judgments
from plumbing.data import DATA_HELP, load_examples
from plumbing.figures import tell_equal_rewards, tell_few_items
from plumbing.generation import CompletionLogits, drop_long, groups_by_length, load_model
from plumbing.judge import (
    TOY_BASE,
    add_judge_flags,
    judge_options,
    judge_settings,
    own_settings,
    settle,
)
from plumbing.runs import (
    UserError,
    add_run_flags,
    batch_indices,
    command_line,
    in_chunks,
    name_draws,
    read_flags,
    read_rows,
    seed_everything,
    start_accelerator,
    start_run,
    sum_over_processes,
)
from spct_rft import training_prompt

CLIP_EPS = 0.2  # Choice: GRPO's usual clip range. With one update per step it never binds.


# ----- App. C.1: log pi(o_t), the advantage, and the loss of Eq. 15 -----

def token_logp(logits, ids, temperature):
    """log pi(o_t | q, o_<t) of N tokens, in nats: (N,).

    Args: logits (N, V) at the places that predict the tokens, that is one place before each: the
          prompt's last token predicts the first (CompletionLogits, plumbing/generation.py).
          ids (N,).
    Pitfall: pi is the *tempered* distribution, the one that the sampler drew from. Without the
    division by the temperature the ratio rho would not be 1 before the first update.
    """
    logp = (logits / temperature).log_softmax(-1)                            # (N, V)
    return logp.gather(-1, ids[:, None])[:, 0]                               # (N,)


def token_entropy(logits, temperature):
    """Entropy (N,) of the same distributions, nats. A measure to watch, not part of the loss."""
    with torch.no_grad():
        logp = (logits / temperature).log_softmax(-1)                        # (N, V)
        return -(logp.exp() * logp).sum(-1)                                  # (N,)


# Why a group mean instead of a critic? A critic is a second model that has to learn how hard each
# item is. Four judgments of the same item say that directly: their mean reward. What is better
# than its group is made more likely, what is worse less likely. Dividing by the std lets a rare
# success among failures count more than one among successes. G = 4 is the paper's balance of cost
# and effect.
def group_advantages(rewards, std=True, ddof=0):
    """Advantages (Q, G) of rewards (Q, G): A_i = (r_i - mean(r)) / std(r) within each group.

    Source: paper App. C.1, Eq. 15 (GRPO). std=False leaves the division out (Dr. GRPO).
    Choice: population std (ddof 0). Equal rewards, and a group of one, give exactly 0: then only
            the KL term acts.

    >>> group_advantages(torch.tensor([[1., -1., -1., -1.], [1., 1., 1., 1.]])).round(decimals=2)
    tensor([[ 1.7300, -0.5800, -0.5800, -0.5800],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    G = rewards.shape[1]
    centred = rewards - rewards.mean(1, keepdim=True)                        # (Q, G)
    spread = (centred.pow(2).sum(1, keepdim=True) / max(G - ddof, 1)).sqrt()  # (Q, 1)
    scaled = centred / spread.clamp(min=1e-6) if std else centred            # (Q, G)
    return torch.where(spread > 1e-6, scaled, 0.0)                           # (Q, G)


def grpo_loss(logp, logp_old, logp_ref, advantages, mask, beta, clip_eps, kl="k3",
              length_norm="sequence", length=None):
    """The loss of B completions padded to T tokens; its mean over an update is -J of Eq. 15.

    Args:    logp, logp_old, logp_ref: (B, T) nats, of the policy, of the policy that sampled, and
                 of the frozen reference; all at the sampling temperature.
             advantages: (B,).  mask: (B, T) bool, the completion with its end token.
             kl: "k3", the paper's. "corrected": DeepSeek-V3.2's. For comparison: "k2", and "k1",
                 whose gradient is zero on average.
             length_norm: "sequence": 1/|o_i| (the paper). "token": `length` is the mean length of
                 the update's completions, so that every token weighs the same (DAPO). "constant":
                 `length` is a constant (Dr. GRPO, with std=False above).
    Returns: (losses (B,), stats). stats: sums over the mask, to be added up over parts.
    """
    lengths = mask.sum(1)                                                    # (B,) tokens
    # rho = pi / pi_old: how much more likely is the token now than when it was sampled? It is 1 at
    # the first update after sampling.
    # Choice: log-ratios are bounded at 10 nats, here and in the KL term, so that exp() is finite. A
    # token beyond that has no gradient; stats["bounded"] counts them.
    ratio = (logp - logp_old).clamp(-10, 10).exp()                           # (B, T)
    A = advantages[:, None]                                                  # (B, 1)
    # The clip takes away the reason to move a token further than eps from where it was sampled. The
    # minimum keeps the reason to come back.
    clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps)                        # (B, T)
    policy = torch.minimum(ratio * A, clipped * A)                           # (B, T)

    # Why a KL term instead of a format reward? The reference (the RFT model) writes the format; a
    # policy that stays near it keeps the format, and keeps from collapsing on some domains.
    # k3 = pi_ref/pi - log(pi_ref/pi) - 1 >= 0. Its mean is KL(pi || pi_ref). Pitfall: its gradient
    # as a loss is that of KL(pi_ref || pi). Times pi/pi_old, value and gradient are both right.
    d = (logp_ref - logp).clamp(-10, 10)                                     # (B, T) nats
    k3 = d.exp() - d - 1                                                     # (B, T) nats
    penalty = {"k3": k3, "corrected": ratio * k3, "k2": d.pow(2) / 2, "k1": -d}[kl]  # (B, T)

    objective = ((policy - beta * penalty) * mask).sum(1)                    # (B,)
    # 1/|o_i|: every judgment weighs the same, however long it is.
    if length_norm == "sequence":
        length = lengths.clamp(min=1)                                        # (B,)
    elif length_norm not in ("token", "constant"):
        raise ValueError(f"length_norm {length_norm!r}: choose sequence, token or constant")
    losses = -objective / length                                             # (B,)

    with torch.no_grad():
        binds = ((ratio < 1 - clip_eps) & (A < 0)) | ((ratio > 1 + clip_eps) & (A > 0))  # (B, T)
        far = ((logp_ref - logp).abs() > 10) | ((logp - logp_old).abs() > 10)            # (B, T)
        stats = {"tokens": lengths.sum(), "kl": (k3 * mask).sum(), "clipped": (binds & mask).sum(),
                 "bounded": (far & mask).sum(),
                 "ratio_error": ((logp - logp_old).abs() * mask).sum()}
    return losses, stats


def too_easy(judgments, example):
    """The paper's filter of the RL data: all three judgments of a weaker judge are correct.

    Why: a group that is always right has advantage 0 everywhere. It costs and teaches nothing.
    """
    return all(is_correct(j.scores, example.rewards) for j in judgments)


# ----- the program -----

def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="runs/toy/rft/model",
                        help="policy to start from, and reference (paper: the RFT model)")
    parser.add_argument("--data", default="toy", help=DATA_HELP)
    parser.add_argument("--exclude_domain", help="hold one domain out (generalisation run)")
    parser.add_argument("--limit", type=int, help="items to draw from (paper: 237K)")
    parser.add_argument("--output", default="runs/toy/rl", help="run folder")
    parser.add_argument("--seed", type=int, default=0, help="data order and sampling")
    # rollouts
    parser.add_argument("--prompts_per_step", type=int, default=64,
                        help="items per step on all processes (paper: 512 / G)")
    parser.add_argument("--G", type=int, default=4, help="judgments per item (paper: 4)")
    parser.add_argument("--steps", type=int, default=40, help="steps (paper: 900)")
    parser.add_argument("--temperature", type=float, default=1.0,
                        help="of the rollouts (paper: not stated)")
    parser.add_argument("--rating", choices=["train", "best"],
                        help="train (the default): 0-1 for n = 1, else 1-10; best: an "
                        "LLM-as-a-Judge")
    parser.add_argument("--easy_filter", metavar="MODEL",
                        help="drop items that this judge gets right 3 times of 3 (paper: "
                        "DeepSeek-V2-Lite-Chat)")
    # objective
    parser.add_argument("--beta", type=float, default=0.02,
                        help="KL coefficient (paper: 0.08 for 27B, 0.002 for 16B)")
    parser.add_argument("--kl", default="k3", choices=["k3", "corrected", "k2", "k1"],
                        help="KL estimator inside the loss (paper: k3)")
    parser.add_argument("--no_std", action="store_true",
                        help="do not divide advantages by the group's std (Dr. GRPO)")
    parser.add_argument("--length_norm", default="sequence",
                        choices=["sequence", "token", "constant"],
                        help="sequence: paper; token: DAPO; constant: Dr. GRPO (--max_new_tokens)")
    parser.add_argument("--mask_truncated", action="store_true",
                        help="no loss on judgments cut off by --max_new_tokens")
    parser.add_argument("--updates_per_rollout", type=int, default=1,
                        help="updates on one batch of rollouts (GRPO: 1)")
    # optimisation
    parser.add_argument("--lr", type=float, default=3e-4, help="peak learning rate (paper: 4e-7)")
    parser.add_argument("--micro_batch_size", type=int,
                        help="judgments per forward pass on one process (default: 32 on a CPU; on "
                        "a GPU as many groups as have 8,192 tokens)")
    parser.add_argument("--gradient_checkpointing", action="store_true",
                        help="less memory, slower; prompts not shared")
    add_run_flags(parser, save_every=10)
    add_judge_flags(parser)
    args = read_flags(parser)
    if args.temperature <= 0:
        raise UserError("--temperature must be above 0: RL explores by sampling")
    if args.micro_batch_size and args.micro_batch_size % args.G:
        raise UserError(f"--micro_batch_size {args.micro_batch_size} does not divide by --G "
                        f"{args.G}: a group stays together")
    if args.model == parser.get_default("model") and not Path(args.model).exists():
        args.model = TOY_BASE
        print("no runs/toy/rft/model: RL straight from the base model; run spct_rft.py first for "
              "the paper's recipe")
    settle(args, args.model, training=True)
    return args


@command_line
def main():
    args = read_arguments()
    accelerator = start_accelerator(args)

    # 1. items with a known best response
    examples = load_examples(args.data, "train", args.limit, skip_bad=args.skip_bad,
                             exclude_domain=args.exclude_domain, labelled=True,
                             at_least=2 if args.rating == "best" else 1)
    run = start_run(args, accelerator, examples)
    if args.easy_filter:
        examples = drop_easy(examples, args, accelerator, run.folder)

    # 2. the policy, and the frozen reference
    # Pitfall: the reference is the RFT model, never refreshed and in the policy's precision, so
    # that the KL is 0 at step 1.
    model, tokenizer = load_model(args.model, accelerator.device, torch.float32)
    reference, _ = load_model(args.model, accelerator.device, torch.float32)
    # a group needs G judgments, so an item whose prompt does not fit the model is no item of RL
    examples = drop_long(examples, training_prompt, model, tokenizer, args, accelerator)
    reference = CompletionLogits(reference.requires_grad_(False), tokenizer.pad_token_id)
    policy = CompletionLogits(model, tokenizer.pad_token_id)
    pack = policy.pack  # before DDP wraps it
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    # Choice: AdamW, betas (0.9, 0.95), no weight decay, gradient norm at most 1.0.
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95),
                                  weight_decay=0.0)
    Q = args.prompts_per_step // accelerator.num_processes  # items per step on this process
    rollouts = args.prompts_per_step * args.G               # judgments per step, all processes
    accelerator.print(f"RL from {args.model} on {accelerator.device}: "
                      f"{accelerator.num_processes} processes x {Q} items x {args.G} judgments = "
                      f"{rollouts} rollouts per step, {len(examples)} items, {args.steps} steps")
    tell_few_items(accelerator, len(examples), args.prompts_per_step, args.G)

    def logp_and_entropy(logits, ids):  # what is wanted of the logits, a chunk of tokens at a time
        return token_logp(logits, ids, args.temperature), token_entropy(logits, args.temperature)
    policy, optimizer, step = run.prepare(policy, optimizer, args.steps, "RL", inner=model)
    dead = 0  # steps in a row that taught nothing

    while step < args.steps:
        # 3. sample a group of G judgments per item from the current policy
        started = time.time()
        seed_everything(run.seed())
        drawn = batch_indices(step, args.prompts_per_step, len(examples), args.seed)
        drawn = name_draws([examples[i] for i in drawn])
        mine = run.mine(drawn)                              # Q items; a process owns whole groups
        with accelerator.autocast():  # the precision of the update, so that rho is 1
            # Choice: one response order per group; its members answer the same prompt q.
            groups = sample_judgments(
                model, tokenizer, mine, args.G, args.temperature, f"{args.seed}/step{step}",
                orders="shared", **judge_options(args))
        sampled = time.time()

        # 4. reward by rule (Eq. 11), compare within the group
        rewards = torch.tensor([[rule_reward(j.scores, e.rewards) for j in group]
                                for e, group in zip(mine, groups, strict=True)])     # (Q, G)
        advantages = group_advantages(rewards, std=not args.no_std)                  # (Q, G)

        # 5. micro-batches: whole groups of like length, made once for all updates
        parts = make_parts(groups, advantages, args, pack, accelerator.device)
        for part in parts:  # the reference never changes: once per rollout
            with torch.no_grad(), accelerator.autocast():
                part["logp_ref"], _, mask = reference(part["batch"], logp_and_entropy)  # (B, T)
            part["mask"] = mask & part["counted"][:, None]                           # (B, T)
        length = args.max_new_tokens
        if args.length_norm == "token":  # all tokens of the update weigh alike, on all processes
            tokens = accelerator.reduce(sum(part["mask"].sum() for part in parts))
            length = tokens.clamp(min=1) / rollouts

        # 6. one update (or a few): the loss is the mean of -J over all rollouts
        totals = defaultdict(float)
        for _ in range(args.updates_per_rollout):
            policy.train()
            total = 0.0
            for [part], sync in run.parts(policy, parts, 1):
                with sync:
                    logp, entropy, _ = policy(part["batch"], logp_and_entropy)       # (B, T)
                    losses, stats = grpo_loss(
                        logp, part["logp_old"], part["logp_ref"], part["advantages"],
                        part["mask"], args.beta, CLIP_EPS, args.kl, args.length_norm, length)
                    loss = losses.sum() / rollouts
                    # Pitfall: parts add up; DDP averages over processes, hence the factor.
                    accelerator.backward(loss * accelerator.num_processes)
                total += loss.detach()
                stats["entropy"] = (entropy * part["mask"]).sum()
                for name, value in stats.items():
                    totals[name] += value
            totals["loss"] += total
            # Choice: linear decay to a tenth of --lr, times a warm-up over the first 5 steps.
            lr = args.lr * min(1.0, (step + 1) / 5) * (1 - 0.9 * step / args.steps)
            norm = run.update(policy, lr, float(total), [
                {"id": e.id, "prompt_ids": j.prompt_ids, "completion_ids": j.completion_ids,
                 "logp": j.logp, "scores": j.scores}
                for e, group in zip(mine, groups, strict=True) for j in group])
        totals["loss"] /= args.updates_per_rollout

        # 7. log: sums over all parts and processes, then means
        judgments = [j for group in groups for j in group]
        totals |= {"reward": rewards.sum(), "dead": (advantages == 0).all(1).sum(),
                   "parsed": sum(j.scores is not None for j in judgments),
                   "length": sum(len(j.completion_ids) for j in judgments),
                   "truncated": sum(j.reason == "truncated" for j in judgments)}
        total = sum_over_processes(totals, accelerator)
        step = run.log(
            shown=("reward/mean", "policy/kl", "len/mean"),
            samples=shown_group(mine[0], groups[0], rewards[0], advantages[0]),
            **step_metrics(total, rollouts, args.prompts_per_step),
            **{"opt/grad_norm": norm, "opt/lr": lr, "time/sample_s": sampled - started,
               "time/update_s": time.time() - sampled})

        dead = (dead + 1) * (total["dead"] == args.prompts_per_step)
        tell_equal_rewards(accelerator, dead, args.steps)

    # 8. save, and say whether the reward rose
    run.finish(tokenizer, judge_settings(args))
    if accelerator.is_main_process:
        rewards = [row["reward/mean"] for row in read_rows(run.folder / "metrics.jsonl")]
        tenth = max(1, len(rewards) // 10)
        print(f"mean reward {sum(rewards[:tenth]) / tenth:.2f} over the first {tenth} steps, "
              f"{sum(rewards[-tenth:]) / tenth:.2f} over the last {tenth}")


def drop_easy(examples, args, accelerator, folder):
    """§3.2: the items that --easy_filter does not get right three times of three."""
    judge, tokenizer = load_model(args.easy_filter, accelerator.device)

    def judge_three_times(chunk):
        judged = sample_judgments(judge, tokenizer, chunk, 3, args.temperature, args.seed,
                                  skip_long=args.skip_bad,
                                  **{**judge_options(args), **own_settings(args.easy_filter)})
        return [{"id": e.id, "too_easy": too_easy(j, e)}
                for e, j in zip(chunk, judged, strict=True)]
    rows = in_chunks(folder / "easy.jsonl", examples, judge_three_times, accelerator, 256, "filter")
    easy = {row["id"] for row in rows if row["too_easy"]}
    accelerator.print(f"easy filter: {len(easy)} of {len(rows)} items dropped")
    if len(easy) == len(rows):
        raise UserError("--easy_filter: every item is too easy; use a weaker judge or harder data")
    return [e for e in examples if e.id not in easy]


def make_parts(groups, advantages, args, pack, device):
    """Micro-batches of whole groups, sorted by length so that little is padding: a list of dicts.

    Each holds B = groups x G judgments: batch (their tokens, by CompletionLogits.pack), logp_old
    (B, T) as the sampler recorded it (so there is no second forward pass), advantages (B,), counted
    (B,) bool. Everything the update needs is on the device before it begins.
    """
    parts = []
    for chosen in groups_by_length(groups, args.micro_batch_size, device):
        judgments = [j for q in chosen for j in groups[q]]
        logp_old = pad_sequence([torch.tensor(j.logp) for j in judgments], batch_first=True)
        counted = torch.tensor([j.reason != "truncated" or not args.mask_truncated
                                for j in judgments])
        parts.append({"batch": pack([groups[q][0].prompt_ids for q in chosen],
                                    [j.completion_ids for j in judgments]),
                      "logp_old": logp_old.to(device), "counted": counted.to(device),
                      "advantages": advantages[chosen].flatten().to(device)})
    return parts


def step_metrics(total, rollouts, items):
    """Sums of one step -> means per judgment, per group or per token; see docs/metrics.md."""
    tokens = max(1.0, total["tokens"])
    return {"reward/mean": total["reward"] / rollouts,
            "reward/parse_rate": total["parsed"] / rollouts,
            "reward/frac_zero_std": total["dead"] / items,
            "policy/loss": total["loss"], "policy/kl": total["kl"] / tokens,
            "policy/clip_frac": total["clipped"] / tokens,
            "policy/bounded_frac": total["bounded"] / tokens,
            "policy/entropy": total["entropy"] / tokens,
            "policy/ratio_error": total["ratio_error"] / tokens,
            "len/mean": total["length"] / rollouts,
            "len/truncated_frac": total["truncated"] / rollouts}


def shown_group(example, group, rewards, advantages):
    """Rows of samples.jsonl: one group, from prompt to reward; scores in the original order."""
    return [{"id": example.id, "prompt": j.prompt, "text": j.text,
             "permutation": j.permutation, "scores": j.scores, "reason": j.reason,
             "rewards": example.rewards,
             "rule_reward": float(r), "advantage": float(a)}
            for j, r, a in zip(group, rewards, advantages, strict=True)]


if __name__ == "__main__":
    main()
