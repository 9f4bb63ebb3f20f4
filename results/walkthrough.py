r"""docs/walkthrough.md: one item through the whole paper, written from the run folder of a demo.

    python -m results.walkthrough --run runs/toy --output docs

Numbers come from functions of the six files or from records of the run; they are put into the
sentences of walkthrough_page.txt. Only `rl_step` repeats what spct_rl.py does in its main(). Items,
groups and judgments are chosen by rules that stand on the page.
"""
import argparse
import shlex
import string
import sys
from pathlib import Path

import torch

from eval import credit, graded, item_credits, mean, paired_ci, report, verdict
from grm import (
    BOX,
    build_prompt,
    is_correct,
    parse_scores,
    rule_reward,
    sample_judgments,
    unpermute,
)
from infer_scale import default_k_meta, meta_vote, vote
from meta_rm import roc_auc
from plumbing.data import load_examples
from plumbing.figures import LOOKS, label_ends, new_figure, save_figure
from plumbing.generation import CompletionLogits, load_model
from plumbing.judge import TOY_BASE, judge_options
from plumbing.runs import (
    ROOT,
    UserError,
    command_line,
    git_commit,
    read_flags,
    read_json,
    read_rows,
    share_threads,
    write_text,
)
from results.principles import principles_in
from spct_rft import fates_of
from spct_rl import CLIP_EPS, group_advantages, grpo_loss, make_parts, token_logp

JUDGES = {"base": "eval_base", "RFT": "eval_rft", "GRM": "eval_grm"}
ENDS = (("one score for two responses", r"\boxed{8}"), ("no box", "8, 3"),
        ("a word in the box", r"\boxed{8, three}"), ("a score above 10", r"\boxed{11, 3}"),
        ("a tie", r"\boxed{7, 7}"))


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", default="runs/toy", help="folder of a finished results.demo")
    parser.add_argument("--output", default="docs", help="folder of the page and its two figures")
    args = read_flags(parser)
    share_threads()
    run, output, commit = Path(args.run), Path(args.output), git_commit()
    for part in ("rft/model", "rft/judgments.jsonl", "rft/selection.json", "rl/config.json",
                 "meta_rm/report.json", *(
                     f"{f}/samples.jsonl" for f in ("voting", *JUDGES.values()))):
        if not (run / part).exists():
            raise UserError(f"--run {run}: no {part} in it; python -m results.demo --output {run} "
                            "makes all of it")

    # 1. the records of the run; the pair of the page, and the one that shows the habit
    rows = read_rows(run / "voting" / "samples.jsonl")
    judged = {name: read_rows(run / folder / "samples.jsonl") for name, folder in JUDGES.items()}
    orders = {name: {r["id"]: r["samples"] for r in found} for name, found in judged.items()}
    pairs = [r for r in graded(rows) if r["n"] == 2 and "meta_logits" in r
             and all(r["id"] in found for found in orders.values())]
    if not pairs:
        raise UserError(f"--run {run}: voting/samples.jsonl has no pair with meta logits; use more "
                        "items (--limit)")

    def facts(r):
        return {"first_is_wrong": not is_correct(r["samples"][0]["scores"], r["rewards"]),
                "votes_are_right": credit(r["votes"], r["rewards"]) == 1,
                "base_follows_the_place": names_the_first(orders["base"][r["id"]])}
    row = max(pairs, key=lambda r: sum(facts(r).values()))  # the first of the best
    habit = max([row, *pairs], key=lambda r: names_the_first(orders["base"][r["id"]])
                - names_the_first(orders["GRM"][r["id"]]))
    settings = argparse.Namespace(**read_json(run / "voting" / "config.json")["args"])
    examples = {e.id: e for e in load_examples(settings.data, settings.split, settings.limit)}
    asked = judge_options(settings)
    prompt = {k: v for k, v in asked.items() if k not in ("max_new_tokens", "thinking")}
    shown = examples[row["id"]].permuted(row["samples"][0]["permutation"])
    [turn] = build_prompt(shown, **prompt)
    if turn["content"].strip() not in row["prompt"]:
        raise UserError(f"--run {run}: item {row['id']} has other texts there than in this code; "
                        "run results.demo again, with another --output")

    # 2. what is not on record: a group of the RFT model, an update on it, votes of the base
    step = rl_step(run, examples[row["id"]])
    [by_base] = sample_judgments(*load_model(TOY_BASE, "cpu"), [examples[habit["id"]]],
                                 len(habit["samples"]), settings.temperature, settings.seed,
                                 clamp=True, **asked)

    # 3. the page and its figures
    page = {name: "yes" if holds else "no" for name, holds in facts(row).items()} | {
        "command": shlex.join(["python", "-m", "results.walkthrough", *sys.argv[1:]]),
        "commit": commit, "seed": settings.seed, "prompt": turn["content"].strip(),
        **about_item(examples[row["id"]], row), **about_rft(run), **about_step(step),
        **about_votes(row, rows), **about_meta_rm(run),
        **about_habit(habit, examples[habit["id"]], orders, judged, by_base)}
    text = (ROOT / "results" / "walkthrough_page.txt").read_text(encoding="utf-8")
    write_text(output / "walkthrough.md", string.Template(text).substitute(page))
    draw_tokens(step, output / "walkthrough_tokens.png")
    draw_votes(row, output / "walkthrough_votes.png")
    print(f"wrote {output}/walkthrough.md and two figures beside it; its item is {row['id']}")


def names_the_first(samples):
    """Whether the judgments, in two opposite orders, name the response shown first each time."""
    return all(verdict(s["scores"]) == s["permutation"][0] for s in samples)


def rl_step(run, example):
    """A group of the RFT model and one update on it, as spct_rl.py makes them: what it saw."""
    args = argparse.Namespace(**read_json(run / "rl" / "config.json")["args"])
    model, tokenizer = load_model(str(run / "rft" / "model"), "cpu", torch.float32)
    for draw in range(32):  # the first group whose rewards differ, or the last one
        [group] = sample_judgments(model, tokenizer, [example], args.G, args.temperature,
                                   f"{args.seed}/step{draw}", orders="shared",
                                   **judge_options(args))
        rewards = torch.tensor([[rule_reward(j.scores, example.rewards) for j in group]])  # (1, G)
        advantages = group_advantages(rewards)                                             # (1, G)
        if advantages.any():
            break
    policy = CompletionLogits(model, tokenizer.pad_token_id)
    [part] = make_parts([group], advantages, args, policy.pack, model.device)
    args.lr /= 5  # RL warms up over 5 steps, and this is the first one
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95),
                                  weight_decay=0.0)

    def loss_of(ref=None):
        logp, mask = policy(part["batch"], lambda logits, ids: (
            token_logp(logits, ids, args.temperature),))                         # (G, T) each
        ref = logp.detach() if ref is None else ref
        return logp, mask, *grpo_loss(logp, part["logp_old"], ref, part["advantages"], mask,
                                      args.beta, CLIP_EPS)
    before, mask, losses, stats = loss_of()
    losses.mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        after, _, losses_after, stats_after = loss_of(before)
    return {"args": args, "group": group, "draw": draw + 1, "rewards": rewards[0],
            "advantages": advantages[0], "logp_old": part["logp_old"], "before": before.detach(),
            "after": after, "mask": mask, "losses": losses.detach(), "losses_after": losses_after,
            "stats": stats, "stats_after": stats_after,
            "words": [[tokenizer.decode([t]) for t in j.completion_ids] for j in group]}


# ----- values of the page -----

def table(heads, rows):
    """A Markdown table."""
    rows = [[str(cell).replace("|", "\\|").replace("\n", "<br>") for cell in r] for r in rows]
    return "\n".join(f"| {' | '.join(r)} |" for r in [heads, ["---"] * len(heads), *rows])


def named(scores):
    return ", ".join(f"y{i} {s}" for i, s in enumerate(scores, 1)) if scores else "none"


def best(scores):
    place = verdict(scores)
    return "nobody" if place is None else f"y{place + 1}"


def correct(scores, rewards):
    return "correct" if is_correct(scores, rewards) else "not correct"


def cells(text):
    """A judgment in two cells: its principles, and the rest."""
    return [*(principles_in(text) or ["none"]), text.partition("Analysis: ")[2] or text]


def listed(example):
    return "\n".join(f"- **y{i}** (label {r:g}): {text}" for i, (text, r) in enumerate(
        zip(example.responses, example.rewards, strict=True), 1))


def about_item(example, row):
    first, rewards, ends = row["samples"][0], row["rewards"], []
    for end, text in [("its own", first["text"])] + [
            (end, BOX.sub(lambda _, box=box: box, first["text"])) for end, box in ENDS]:
        shown, reason = parse_scores(text, row["n"])
        scores = unpermute(shown, first["permutation"]) if shown else None
        ends.append([end, f"`{text.splitlines()[-1]}`", reason, named(scores),
                     correct(scores, rewards), f"{rule_reward(scores, rewards):+g}"])
    return {
        "item": example.id, "domain": example.domain, "query": example.prompt[-1]["content"],
        "responses": listed(example), "k": len(row["samples"]), "best": verdict(rewards) + 1,
        "five_judgments": table(
            ["judgment", "order shown", "principles", "critique and scores, as shown", "scores",
             "best"],
            [[j, ", ".join(f"y{i + 1}" for i in s["permutation"]), *cells(s["text"]),
              named(s["scores"]), best(s["scores"])] for j, s in enumerate(row["samples"][:5])]),
        "ends": table(["end", "last line", "reason", "scores", "Eq. 10", "reward"], ends)}


def about_rft(run):
    pairs = [r for r in read_rows(run / "rft" / "judgments.jsonl") if len(r["rewards"]) == 2]
    row = max(pairs, key=lambda r: len({(kind, fate) for kind, _, fate in fates_of(r)}))
    counts = read_json(run / "rft" / "selection.json")
    return {
        "rft_item": row["id"], "rft_best": verdict(row["rewards"]) + 1,
        "rft_items": f"{counts['items']:,}", "rft_kept": f"{counts['kept']:,}",
        "rft_hinted": f"{counts['hinted'].get('kept', 0):,}",
        "rft_fates": table(
            ["prompt", "principles", "critique and scores, as shown", "scores", "Eq. 10", "fate"],
            [["hinted" if kind == "hinted" else "plain", *cells(j["text"]), named(j["scores"]),
              "correct" if j["correct"] else "not correct", fate.replace("_", " ")]
             for kind, j, fate in fates_of(row)])}


def about_meta_rm(run):
    told = read_json(run / "meta_rm" / "report.json")
    return {"meta_judgments": f"{told['train']:,}",
            "meta_auc": f"{told['held_out']['all']['auc']:.2f}"}


def about_step(step):
    args, A, words = step["args"], step["advantages"], step["words"]
    before, after, mask = step["before"], step["after"], step["mask"]            # (G, T)
    moved, whole = after - before, [(logp * mask).sum(1) for logp in (before, after)]
    farthest = (moved.abs() * mask).flatten().argsort(descending=True, stable=True)[:8].tolist()
    most = [divmod(place, mask.shape[1]) for place in farthest]
    i, t = most[0]
    one = [step[name][i:i + 1, t:t + 1] for name in ("after", "logp_old", "before", "mask")]
    one_loss, one_stats = grpo_loss(*one[:3], A[i:i + 1], one[3], args.beta, CLIP_EPS)
    tokens = int(step["stats"]["tokens"])
    return {
        "G": args.G, "draw": step["draw"], "lr": f"{args.lr:g}", "beta": args.beta,
        "steps": args.steps, "per_step": args.prompts_per_step, "clip_eps": CLIP_EPS,
        "tokens": tokens,
        "clipped": int(step["stats_after"]["clipped"]),
        "reward_mean": f"{step['rewards'].mean():+.3f}",
        "reward_std": f"{step['rewards'].std(correction=0):.3f}",
        "loss_before": f"{step['losses'].mean():z.4f}",
        "loss_after": f"{step['losses_after'].mean():z.4f}",
        "kl_before": f"{step['stats']['kl'] / tokens:.4f}",
        "kl_after": f"{step['stats_after']['kl'] / tokens:.4f}",
        "one_after": f"{after[i, t]:.3f}", "one_before": f"{before[i, t]:.3f}",
        "one_rho": f"{(one[0] - one[1]).exp().item():.3f}", "one_kl": f"{one_stats['kl']:.3f}",
        "one_loss": f"{one_loss.item():.3f}", "one_A": f"{A[i]:+.3f}",
        "group": table(
            ["judgment", "principles", "scores", "reward", "advantage", "loss", "log p before",
             "log p after"],
            [[g, cells(j.text)[0], named(j.scores), f"{step['rewards'][g]:+g}", f"{A[g]:+.3f}",
              f"{step['losses'][g]:+.3f}", *(f"{logp[g]:.2f}" for logp in whole)]
             for g, j in enumerate(step["group"])]),
        "moved": table(
            ["token", "of judgment", "place", "advantage", "log p before", "log p after", "moved"],
            [[f"`{words[g][t]}`", g, t, f"{A[g]:+.3f}", f"{before[g, t]:.3f}",
              f"{after[g, t]:.3f}", f"{moved[g, t]:+.3f}"] for g, t in most])}


def about_votes(row, rows):
    samples, logits, rewards = row["samples"], row["meta_logits"], row["rewards"]
    scores, k = [s["scores"] for s in samples], len(samples)
    picked = sorted((j for j in range(k) if scores[j]), key=lambda j: -logits[j])
    labels, kept = [is_correct(scores[j], rewards) for j in picked], default_k_meta(k)
    auc = roc_auc([logits[j] for j in picked], labels)
    votes = []
    for first in [2 ** i for i in range(k.bit_length())]:
        found = vote(scores[:first])
        guided = meta_vote(scores[:first], logits, default_k_meta(first))
        votes.append([first, named(found), best(found), default_k_meta(first), named(guided),
                      best(guided)])
    accuracy = {method: item_credits(graded(rows), k, method).values()
                for method in ("vote", "guided", "random")}
    ends = paired_ci(*(list(accuracy[method]) for method in ("vote", "guided")))
    return {
        "kept": kept, "kept_correct": sum(labels[:kept]), "parsed": len(labels),
        "all_correct": sum(labels), "items": len(accuracy["vote"]),
        "guided_difference": "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in (
            mean(accuracy["guided"]) - mean(accuracy["vote"]), *ends))),
        "auc": "not defined, as all are alike" if auc is None else f"{auc:.2f}",
        "votes": table(["k", "votes", "best", "k_meta", "guided votes", "best"], votes),
        "picks": table(
            ["logit", "judgment", "principles", "critique and scores, as shown", "Eq. 10"],
            [[f"{logits[j]:+.2f}", j, *cells(samples[j]["text"]), correct(scores[j], rewards)]
             for j in dict.fromkeys(picked[:3] + picked[-3:])]),
        "guidance": table(["who votes", "accuracy, %"], [
            [LOOKS[method].name, f"{100 * mean(values):.1f}"]
            for method, values in accuracy.items()])}


def about_habit(row, example, orders, judged, by_base):
    votes, habits = [], []
    for name, found in (("base", [(j.permutation, j.scores) for j in by_base]),
                        ("GRM", [(s["permutation"], s["scores"]) for s in row["samples"]])):
        for saw, places in (("y1 first", [0]), ("y2 first", [1]), ("all", [0, 1])):
            chosen = [scores for order, scores in found if order[0] in places]
            votes.append([name, saw, len(chosen), named(vote(chosen)), best(vote(chosen))])
    for name, found in judged.items():
        r = report(found)
        habits.append([name, f"{100 * r['accuracy']:.1f}", f"{100 * r['swap_consistency']:.1f}", *(
            f"{100 * r[f'{kind}_bias']:+.1f} [{100 * r[f'{kind}_bias_low']:+.1f}, "
            f"{100 * r[f'{kind}_bias_high']:+.1f}]" for kind in ("position", "length"))])
    return {
        "habit_item": row["id"], "habit_responses": listed(example),
        "both_orders": table(
            ["judge", "shown first", "principles", "critique and scores, as shown", "scores",
             "best"],
            [[name, f"y{s['permutation'][0] + 1}", *cells(s["text"]), named(s["scores"]),
              best(s["scores"])] for name in JUDGES for s in orders[name][row["id"]]]),
        "votes_by_order": table(["judge", "saw", "judgments", "votes", "best"], votes),
        "habits": table(["judge", "accuracy, %", "same verdict in both orders, %",
                         "bias to the first place", "bias to the longest"], habits)}


# ----- the figures -----

def draw_tokens(step, path):
    """How far each token's log-probability moved, in a judgment with A > 0 and one with A < 0."""
    figure, grid = subplots(sharey=True)
    A, moved, lengths = step["advantages"], step["after"] - step["before"], step["mask"].sum(1)
    for axes, g in zip(grid, (int(A.argmax()), int(A.argmin()))):
        values = moved[g, :lengths[g]].tolist()
        axes.bar(range(len(values)), values,
                 color=[LOOKS["vote"].colour if v > 0 else "0.6" for v in values])
        axes.set_xticks(range(len(values)), [w.replace("$", r"\$") for w in step["words"][g]],
                        rotation=60, ha="right", rotation_mode="anchor", fontsize=10)
        axes.set_ylabel("log p moved, nats")
        axes.set_title(
            f"Judgment {g}, advantage {A[g]:+.2f}: one update makes it "
            f"{'more' if sum(values) > 0 else 'less'} likely, {sum(values):+.1f} nats in all",
            loc="left", fontsize=12)
    save_figure(figure, path, "")


def draw_votes(row, path):
    """The lead of the best response: in each judgment alone, and in the votes against k."""
    scores, logits, truth = [s["scores"] for s in row["samples"]], row["meta_logits"], verdict(
        row["rewards"])
    ks, half = range(1, len(scores) + 1), default_k_meta(len(scores))
    parsed = sorted((j for j, s in enumerate(scores) if s), key=lambda j: -logits[j])

    def lead(votes):  # points before the other response
        return votes[truth] - votes[1 - truth] if votes else 0
    figure, (single, summed) = subplots()
    single.bar(range(len(scores)), [lead(s) for s in scores],
               color=[LOOKS["guided"].colour if j in parsed[:half] else "0.75"
                      for j in range(len(scores))])
    single.set_title(f"Alone: {sum(lead(s) > 0 for s in scores)} of {len(scores)} judgments are "
                     "correct (bars up); in colour: the meta RM's half", loc="left", fontsize=12)
    ties = [j for j in parsed if not lead(scores[j])]
    single.plot(ties, [0] * len(ties), "o", ms=4, color="0.4")
    single.set_xlabel("judgment (a dot is a tie)" if ties else "judgment")
    leads = {"vote": [lead(vote(scores[:k])) for k in ks],
             "guided": [lead(meta_vote(scores[:k], logits, default_k_meta(k))) for k in ks]}
    for (method, values), style in zip(leads.items(), ("-", "--")):
        summed.plot(ks, values, style, lw=2, color=LOOKS[method].colour)
    label_ends(summed, [(values[-1], f"{LOOKS[method].name} {values[-1]:+d}", LOOKS[method].colour)
                        for method, values in leads.items()], gap=0.1)
    found = [f"{LOOKS[method].name} {right_from(values)}" for method, values in leads.items()]
    summed.set_title("Together: " + ", ".join(found), loc="left", fontsize=12)
    summed.set_xlabel("judgments, k")
    for axes in (single, summed):
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel("lead of the best, points")
    save_figure(figure, path, "")


def right_from(leads):
    """From which k on the best response leads.  leads: its lead for k = 1, 2, ..."""
    k = next((k for k in range(len(leads)) if min(leads[k:]) > 0), None)
    return "do not end right" if k is None else f"are right from k = {k + 1} on"


def subplots(**options):
    figure, panels = new_figure((8.5, 6), rows=2, **options)
    for axes in panels:
        axes.axhline(0, lw=0.8, color="0.2")
    return figure, panels


if __name__ == "__main__":
    main()
