r"""Rule-based online RL, the second stage of SPCT (paper §3.2 and App. C.1): GRPO with a reward of +1 or -1.

Every step: draw Q items; sample a group of G = 4 judgments of each from the current policy; reward each by rule
(Eq. 11: +1 iff the labelled best response gets strictly the highest score); compare it with its group; one update of

  J = E 1/G sum_i 1/|o_i| sum_t { min[rho A, clip(rho, 1-eps, 1+eps) A] - beta * KL[pi || pi_ref] }             (Eq. 15)

There is no format reward: a judgment that does not parse earns -1, and the KL term to the frozen RFT model keeps the format.

    python spct_rl.py                     # toy world, 3 minutes on 2 cores: runs/toy/rft/model -> runs/toy/rl/model
    accelerate launch spct_rl.py --beta 0.0                                     # ablation of App. C.1: no KL term
    accelerate launch --num_processes 8 spct_rl.py --model runs/qwen/rft/model --data items.jsonl --template full \
        --lr 4e-7 --beta 0.08 --prompts_per_step 128 --steps 900 --output runs/qwen/rl          # the paper's numbers

Output: metrics.jsonl (one line per update; README explains the names), samples.jsonl (a few judgments of each step, from
prompt to reward), model/ (loads in plain transformers). Killed runs continue with the same command.

Where we differ from the paper: what it does not state (clip, optimizer, temperature, unit of "batch size 512", which we
read as rollouts) is marked `# Choice:`; sizes and learning rate are for a small model. Read next: meta_rm.py.
"""
import argparse
import time
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

import torch
from tqdm import tqdm

from grm import (
    TOY_BASE,
    add_judge_flags,
    build_prompt,
    encode_chat,
    is_correct,
    judge_options,
    rating_of,
    rule_reward,
    sample_judgments,
)
from plumbing import generation
from plumbing.data import DATA_HELP, load_examples
from plumbing.runs import (
    UserError,
    append_jsonl,
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
)

# ----- App. C.1: advantages and the loss of Eq. 15 -----

def group_advantages(rule_rewards, G, std=True, ddof=0):
    """Advantages (Q*G,) of rewards (Q*G,), group after group: A_i = (r_i - mean(r)) / std(r) within each group.

    Source: paper App. C.1, Eq. 15 (GRPO). std=False leaves the division out (Dr. GRPO).
    Choice: population std (ddof 0). Equal rewards, and a group of one, give exactly 0: then only the KL term acts.
    Raises: ValueError if the rewards do not fill whole groups.
    """
    if len(rule_rewards) % G:
        raise ValueError(f"{len(rule_rewards)} rewards do not fill groups of {G}")
    r = rule_rewards.view(-1, G)                                             # (Q, G)
    centred = r - r.mean(1, keepdim=True)                                    # (Q, G)
    spread = (centred.pow(2).sum(1, keepdim=True) / max(G - ddof, 1)).sqrt()  # (Q, 1)
    advantages = torch.where(spread > 1e-6, centred / spread.clamp(min=1e-6) if std else centred, 0.0)
    return advantages.flatten()                                              # (Q*G,)


def grpo_loss(logp, logp_old, logp_ref, advantages, mask, beta, clip_eps, kl="k3", length_norm="sequence",
              rows=None, tokens=None, constant=None):
    """-J of Eq. 15 for B completions padded to T tokens, and statistics (sums over the mask, to be added up and divided).

    Args:    logp, logp_old, logp_ref: (B, T) nats, of the policy, of the policy that sampled, of the frozen reference; all
                 of the tempered distribution that was sampled from.  advantages: (B,).  mask: (B, T) bool.
             kl: "k3" (the paper's, as GRPO's), "k2", or "k1" (its gradient is zero in expectation: for comparison only).
             length_norm: "sequence" = 1/|o_i|, then the mean over completions (the paper); "token" = mean over all tokens
                 (DAPO); "constant" = divide by `constant` tokens per completion (Dr. GRPO, with std=False above).
             rows, tokens: completions and tokens of the whole update where this call holds only a part of it.
    Returns: (loss, stats). The losses of all parts add up to the loss of the whole update.
    """
    lengths = mask.sum(1)                                                    # (B,) tokens
    rows = rows or len(mask)
    # ratio rho = pi / pi_old: 1 at the first update after sampling. Choice: log-ratios are bounded at 10 nats, here and in the KL
    # term (no gradient beyond), so that exp() stays finite; the share is logged.
    ratio = (logp - logp_old).clamp(-10, 10).exp()                           # (B, T)
    A = advantages[:, None]                                                  # (B, 1)
    policy = torch.minimum(ratio * A, ratio.clamp(1 - clip_eps, 1 + clip_eps) * A)                   # (B, T)
    # k3 = pi_ref/pi - log(pi_ref/pi) - 1 >= 0. Pitfall: as a loss its gradient is that of KL(pi_ref || pi).
    d = (logp_ref - logp).clamp(-10, 10)                                     # (B, T) nats
    penalty = {"k3": d.exp() - d - 1, "k2": d.pow(2) / 2, "k1": -d}[kl]      # (B, T) nats
    objective = (policy - beta * penalty) * mask                             # (B, T)
    if length_norm == "sequence":
        loss = -(objective.sum(1) / lengths.clamp(min=1)).sum() / rows
    elif length_norm == "token":
        loss = -objective.sum() / max(1, lengths.sum() if tokens is None else tokens)
    elif length_norm == "constant":
        loss = -objective.sum() / (rows * constant)
    else:
        raise ValueError(f"length_norm {length_norm!r}: choose sequence, token or constant")
    with torch.no_grad():
        outside = ((ratio < 1 - clip_eps) & (A < 0)) | ((ratio > 1 + clip_eps) & (A > 0))
        stats = {"tokens": lengths.sum(), "kl": ((d.exp() - d - 1) * mask).sum(), "clipped": (outside & mask).sum(),
                 "bounded": ((((logp_ref - logp).abs() > 10) | ((logp - logp_old).abs() > 10)) & mask).sum()}
    return loss, stats


def too_easy(judgments, example):
    """The paper's filter of the RL data: every one of three judgments of a weaker judge is correct (Eq. 10)."""
    return all(is_correct(j.scores, example.rewards) for j in judgments)


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="runs/toy/rft/model", help="policy and reference: the RFT model (paper, Fig. 5)")
    parser.add_argument("--data", default="toy", help=f"paper: 237K items; {DATA_HELP}")
    parser.add_argument("--exclude_domain", help="hold one domain out (generalisation run)")
    parser.add_argument("--limit", type=int, help="only the first items")
    parser.add_argument("--output", default="runs/toy/rl", help="run folder")
    parser.add_argument("--seed", type=int, default=0, help="data order and sampling")
    parser.add_argument("--easy_filter", help="drop items that this judge gets right 3 times of 3 (paper: DeepSeek-V2-Lite-Chat)")
    # rollouts
    parser.add_argument("--steps", type=int, default=60, help="rollout steps (paper: 900)")
    parser.add_argument("--prompts_per_step", type=int, default=64, help="Q on all processes (paper: 512 rollouts = 128 x 4)")
    parser.add_argument("--G", type=int, default=4, help="group size (paper: 4)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of rollouts and log-probs (paper: not stated)")
    parser.add_argument("--rating", default="train", choices=["train", "1-10", "best"],
                        help="train: 0-1 for n = 1, else 1-10; best: an LLM-as-a-Judge on items with n >= 2")
    # objective
    parser.add_argument("--beta", type=float, default=0.02, help="KL coefficient (paper: 0.08 for 27B, 0.002 for 16B)")
    parser.add_argument("--clip_eps", type=float, default=0.2, help="clip range of the ratio (paper: not stated)")
    parser.add_argument("--updates_per_rollout", type=int, default=1, help="gradient updates on one batch of rollouts (GRPO: 1)")
    parser.add_argument("--kl", default="k3", choices=["k1", "k2", "k3"], help="KL estimator inside the loss (paper: k3)")
    parser.add_argument("--no_std", action="store_true", help="do not divide advantages by the group's std (Dr. GRPO)")
    parser.add_argument("--ddof", type=int, default=0, choices=[0, 1], help="0: population std; 1: sample std")
    parser.add_argument("--length_norm", default="sequence", choices=["sequence", "token", "constant"],
                        help="sequence: paper; token: DAPO; constant: Dr. GRPO (by --max_new_tokens)")
    parser.add_argument("--format_reward", type=float, default=0.0, help="added to the reward if it parses (paper: none)")
    parser.add_argument("--mask_truncated", action="store_true", help="no loss on judgments cut off by --max_new_tokens")
    # optimisation
    parser.add_argument("--lr", type=float, default=3e-4, help="peak learning rate (paper: 4e-7)")
    parser.add_argument("--micro_batch_size", type=int, default=32, help="completions per forward pass on one process")
    parser.add_argument("--gradient_checkpointing", action="store_true", help="less memory, slower; prompts not shared")
    parser.add_argument("--save_every", type=int, default=10, help="steps between saves of the training state")
    parser.add_argument("--log_with", help="tracker of accelerate, e.g. tensorboard or wandb")
    parser.add_argument("--overwrite", action="store_true", help="discard the run in --output")
    add_judge_flags(parser)
    args = read_flags(parser)
    if args.temperature <= 0:
        raise UserError("--temperature must be above 0: RL explores by sampling")
    if args.model == "runs/toy/rft/model" and not Path(args.model).exists():
        args.model = TOY_BASE
        print("no runs/toy/rft/model: RL straight from the base model; run spct_rft.py first for the paper's recipe")

    # 1. processes: each owns whole groups
    accelerator = start_accelerator(log_with=args.log_with, output=args.output)
    if args.prompts_per_step % accelerator.num_processes:
        raise UserError(f"--prompts_per_step {args.prompts_per_step} does not divide by {accelerator.num_processes} processes")
    if args.micro_batch_size % args.G:
        raise UserError(f"--micro_batch_size {args.micro_batch_size} does not divide by --G {args.G}: a group stays together")

    # 2. data
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
    if args.easy_filter:
        judge, judge_tokenizer = generation.load_model(args.easy_filter, accelerator.device)

        def try_three(chunk):
            judged = sample_judgments(judge, judge_tokenizer, chunk, 3, args.temperature, args.seed, rating=args.rating,
                                      skip_long=args.skip_bad, **judge_options(args))
            return [{"id": e.id, "too_easy": too_easy(j, e)} for e, j in zip(chunk, judged, strict=True)]
        fate = {r["id"]: r["too_easy"] for r in in_chunks(output / "easy.jsonl", examples, try_three, accelerator, 256, "filter")}
        examples = [e for e in examples if not fate[e.id]]
        accelerator.print(f"easy filter: {sum(fate.values())} of {len(fate)} items dropped")
        if not examples:
            raise UserError("--easy_filter: every item is too easy; use a weaker judge or harder data")

    # 3. policy, and the frozen reference
    model, tokenizer = generation.load_model(args.model, accelerator.device, torch.float32)
    # a group needs G judgments, so an item that does not fit is no item of RL
    long = dict.fromkeys(e.id for e in examples if not generation.fits(model, encode_chat(tokenizer, build_prompt(
        e, args.template, rating_of(e, args.rating), not args.no_principles, args.use_reference)), args.max_new_tokens))
    if long:
        share = f"{len(long)} of {len(examples)} items"
        if not args.skip_bad:
            raise UserError(f"the prompts of {share} (first: {next(iter(long))}) and {args.max_new_tokens} new tokens exceed the "
                            f"model's {model.config.max_position_embeddings}; shorten or drop them, lower --max_new_tokens, use "
                            "--template compact, or pass --skip_bad")
        accelerator.print(f"{share} dropped: their prompts do not fit the model")
        examples = [e for e in examples if e.id not in long]
        if not examples:
            raise UserError("no item is left; lower --max_new_tokens, or use --template compact")
    # Pitfall: the reference is the RFT model, never refreshed, in the policy's precision, so that KL is 0 at step 1.
    reference, _ = generation.load_model(args.model, accelerator.device, torch.float32)
    reference_logp = generation.TokenLogp(reference.requires_grad_(False), tokenizer.pad_token_id)
    if args.gradient_checkpointing:
        model.activation_checkpointing_enable()
    # Choice: AdamW, betas (0.9, 0.95), no weight decay, gradient norm 1.0, 5 warm-up steps, linear decay to a tenth all along.
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0)
    state, step = load_state(output / "state.pt"), 0
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    policy_logp, optimizer = accelerator.prepare(generation.TokenLogp(model, tokenizer.pad_token_id), optimizer)
    trim_metrics(output, step, accelerator)
    Q = args.prompts_per_step // accelerator.num_processes                  # items per step on this process
    rows_per_update = args.prompts_per_step * args.G
    accelerator.print(f"RL from {args.model} on {accelerator.device}: {accelerator.num_processes} processes x {Q} items x "
                      f"{args.G} judgments = {rows_per_update} rollouts per step, {len(examples)} items, {args.steps} steps")
    bar = tqdm(total=args.steps, initial=step, desc="RL", unit="step", disable=not accelerator.is_local_main_process)

    while step < args.steps:
        # 4. sample a group of G judgments per item from the current policy
        started = time.time()
        seed_everything(args.seed * 1_000_003 + step)
        drawn = [examples[i] for i in batch_indices(step, args.prompts_per_step, len(examples), args.seed)]
        mine = drawn[accelerator.process_index::accelerator.num_processes]
        with accelerator.autocast():  # the precision of the update, so that the ratio is 1
            # Choice: one response order per group, so that its members answer the same prompt q of Eq. 15.
            groups = sample_judgments(model, tokenizer, mine, args.G, args.temperature, f"{args.seed}/step{step}",
                                      rating=args.rating, orders="shared", **judge_options(args))
        sampled = time.time()

        # 5. reward by rule, compare within the group
        rule_rewards = torch.tensor([rule_reward(j.scores, e.rewards) for e, g in zip(mine, groups, strict=True) for j in g])
        parsed = torch.tensor([float(j.scores is not None) for g in groups for j in g])                    # (Q*G,)
        advantages = group_advantages(rule_rewards + args.format_reward * parsed, args.G, not args.no_std, args.ddof)

        # 6. one update (or a few) on these rollouts, in parts of whole groups of like length
        order = sorted(range(len(groups)),
                       key=lambda q: len(groups[q][0].prompt_ids) + max(len(j.completion_ids) for j in groups[q]))
        per_part = args.micro_batch_size // args.G
        parts = [order[i:i + per_part] for i in range(0, len(order), per_part)]
        kept = [j.reason != "truncated" or not args.mask_truncated for g in groups for j in g]
        tokens = sum(len(j.completion_ids) for (g, j), k in zip(((g, j) for g in groups for j in g), kept, strict=True) if k)
        tokens = accelerator.reduce(torch.tensor(float(tokens), device=accelerator.device)).item()          # of the whole update
        references = {}
        totals = defaultdict(float)
        for _ in range(args.updates_per_rollout):
            for number, part in enumerate(parts):
                rows = [(q, g) for q in part for g in range(args.G)]
                prompts = [groups[q][0].prompt_ids for q in part]
                completions = [groups[q][g].completion_ids for q, g in rows]
                if number not in references:  # once per rollout: the reference never changes
                    with torch.no_grad(), accelerator.autocast():
                        references[number] = reference_logp(prompts, completions, args.temperature)[0]
                sync = nullcontext() if number + 1 == len(parts) else accelerator.no_sync(policy_logp)
                with sync:
                    policy_logp.train()
                    logp, entropy, mask = policy_logp(prompts, completions, args.temperature)               # (B, T) each
                    logp_old = torch.zeros_like(mask, dtype=torch.float32)                                  # (B, T)
                    for r, (q, g) in enumerate(rows):  # as recorded by the sampler: no second forward pass
                        logp_old[r, :len(groups[q][g].logp)] = torch.tensor(groups[q][g].logp)
                    mask = mask & torch.tensor([kept[q * args.G + g] for q, g in rows], device=mask.device)[:, None]
                    A = advantages[[q * args.G + g for q, g in rows]].to(mask.device)                       # (B,)
                    loss, stats = grpo_loss(logp, logp_old, references[number], A, mask, args.beta, args.clip_eps, args.kl,
                                            args.length_norm, rows_per_update, tokens, args.max_new_tokens)
                    # Pitfall: losses of parts add up; DDP averages over processes, hence the factor.
                    accelerator.backward(loss * accelerator.num_processes)
                totals["loss"] += loss.detach()
                totals["entropy"] += (entropy * mask).sum()
                totals["ratio_error"] += ((logp - logp_old).detach().abs() * mask).sum()
                for name, value in stats.items():
                    totals[name] += value
            norm = accelerator.clip_grad_norm_(policy_logp.parameters(), 1.0)
            check_update(step, float(totals["loss"]), float(norm), [
                {"id": e.id, "prompt_ids": j.prompt_ids, "completion_ids": j.completion_ids, "logp": j.logp, "scores": j.scores}
                for e, g in zip(mine, groups, strict=True) for j in g], output, accelerator)
            for group in optimizer.param_groups:
                group["lr"] = args.lr * min(1.0, (step + 1) / 5) * (1 - 0.9 * step / args.steps)
            optimizer.step()
            optimizer.zero_grad()
        step += 1

        # 7. log: sums over all processes and parts, then means
        sums = {"loss": totals["loss"] / args.updates_per_rollout, "tokens": totals["tokens"], "kl": totals["kl"],
                "clipped": totals["clipped"], "bounded": totals["bounded"], "entropy": totals["entropy"],
                "ratio_error": totals["ratio_error"], "reward": rule_rewards.sum(), "parsed": parsed.sum(),
                "dead": (advantages.view(-1, args.G) == 0).all(1).sum(),
                "length": sum(len(j.completion_ids) for g in groups for j in g),
                "truncated": sum(j.reason == "truncated" for g in groups for j in g)}
        names = sorted(sums)  # Pitfall: the same order on every process
        packed = torch.tensor([float(sums[n]) for n in names], dtype=torch.float64, device=accelerator.device)
        total = dict(zip(names, accelerator.reduce(packed).tolist(), strict=True))
        per_token = max(1.0, total["tokens"])
        metrics = {
            "step": step, "reward/mean": total["reward"] / rows_per_update,
            "reward/parse_rate": total["parsed"] / rows_per_update,
            "reward/frac_zero_std": total["dead"] / args.prompts_per_step, "policy/loss": total["loss"],
            "policy/kl": total["kl"] / per_token, "policy/clip_frac": total["clipped"] / per_token,
            "policy/bounded_frac": total["bounded"] / per_token, "policy/entropy": total["entropy"] / per_token,
            "policy/ratio_error": total["ratio_error"] / per_token, "len/mean": total["length"] / rows_per_update,
            "len/truncated_frac": total["truncated"] / rows_per_update, "opt/grad_norm": float(norm),
            "opt/lr": optimizer.param_groups[0]["lr"],
            "time/sample_s": sampled - started, "time/update_s": time.time() - sampled}
        bar.update()
        bar.set_postfix(reward=f"{metrics['reward/mean']:.2f}", kl=f"{metrics['policy/kl']:.3f}",
                        length=f"{metrics['len/mean']:.0f}")
        if accelerator.is_main_process:
            log_metrics(output, accelerator, **metrics)
            append_jsonl(output / "samples.jsonl", [
                {"step": step, "id": mine[0].id, "prompt": tokenizer.decode(groups[0][g].prompt_ids), "text": groups[0][g].text,
                 "scores": groups[0][g].scores, "reason": groups[0][g].reason, "rewards": mine[0].rewards,
                 "rule_reward": float(rule_rewards[g]), "advantage": float(advantages[g])} for g in range(args.G)])
            if step % args.save_every == 0 or step == args.steps:
                save_state(output / "state.pt", model=model.state_dict(), optimizer=optimizer.state_dict(), step=step)
    bar.close()

    # 8. save
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        save_model(output / "model", model, tokenizer)
        rewards = [r["reward/mean"] for r in read_rows(output / "metrics.jsonl")]
        tenth = max(1, len(rewards) // 10)
        print(f"wrote {output}/model; mean reward {sum(rewards[:tenth]) / tenth:.2f} over the first {tenth} steps, "
              f"{sum(rewards[-tenth:]) / tenth:.2f} over the last {tenth}")


if __name__ == "__main__":
    main()
