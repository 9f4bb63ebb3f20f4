r"""The meta RM: a scalar model that tells good judgments from bad ones, so that only the good ones vote (paper §4).

It reads the query, the responses in the order that the judge saw, and the judgment (principles, critique and scores), and
gives one logit. It is trained with binary cross-entropy; the label of a judgment is the correctness of its scores (Eq. 10).
Its data are (1) the raw non-hinted trajectories of the RFT stage, the rejected ones included, and (2) N_RFT = 3 judgments
per item of the GRM that it will guide, so that it knows that judge's own mistakes.

    python meta_rm.py                                            # toy world, 2 minutes on 2 cores -> runs/toy/meta_rm
    accelerate launch --num_processes 8 meta_rm.py --model Qwen/Qwen2.5-0.5B --trajectories runs/qwen/rft/trajectories.jsonl \
        --grm runs/qwen/rl/model --data items.jsonl --template full --lr 1e-5 --batch_size 512 --output runs/qwen/meta_rm

Output: model/ (AutoModelForSequenceClassification with one label; its logit is the meta reward), report.json (balance,
held-out accuracy, ROC-AUC and calibration, by source and by domain), metrics.jsonl.
Where we differ from the paper: epochs, class ratio and head are not stated there (`# Choice:`). Read next: infer_scale.py.
"""
import argparse
import hashlib
import math
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification

from grm import TOY_BASE, add_judge_flags, clean, encode_chat, is_correct, judge_options, sample_judgments
from plumbing import generation
from plumbing.data import load_examples
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

# ----- §4 and App. G: what the meta RM reads -----

def meta_messages(shown, text):
    """The meta RM's prompt: the request, the conversation and the responses as the judge saw them; the judgment as the answer.

    Deviation: wrapped in the backbone's own chat template (paper: DeepSeek-V3's).
    shown: the example in displayed order.  text: the judge's whole output (Choice: with its scores, as the paper's cases).
    """
    conversation = "\n".join(f"{m['role'].capitalize()}: {clean(m['content'])}" for m in shown.prompt)
    responses = "\n".join(f"[The Begin of Response {i}]\n{clean(r)}\n[The End of Response {i}]"
                          for i, r in enumerate(shown.responses, 1))
    return [{"role": "user", "content": f"Score the responses.\n#### Conversation Context ####\n{conversation}\n"
             f"#### Responses to be Scored ####\n{responses}"}, {"role": "assistant", "content": text}]


def meta_ids(tokenizer, shown, text):
    """(prompt ids, judgment ids with the end token) of one judgment."""
    user, assistant = meta_messages(shown, text)
    return encode_chat(tokenizer, [user], assistant["content"])


class MetaLogit(torch.nn.Module):
    """One logit per judgment: the model's scalar head on the last token of the assistant's turn.

    Judgments of the same prompt share its computation; plain transformers gives the same logits row by row (tested).
    Choice: a linear head on the last token (AutoModelForSequenceClassification), as the released meta RM is loaded.
    """
    def __init__(self, model, pad_id):
        super().__init__()
        self.model, self.pad_id = model, pad_id

    def forward(self, pairs):
        """pairs: B (prompt ids, judgment ids). Returns (B,) logits in fp32."""
        prompts = sorted({tuple(p) for p, _ in pairs})
        place = {p: i for i, p in enumerate(prompts)}
        # one more (unused) token, so that position len(c) holds the state of the judgment's last token
        states = generation.completion_states(self.model, [list(p) for p in prompts], [c + [self.pad_id] for _, c in pairs],
                                           [place[tuple(p)] for p, _ in pairs], self.pad_id)           # (B, T + 1, D)
        # Pitfall: where pad and end token are one, transformers takes the token before the end; so does this.
        ends = torch.tensor([len(c) - (c[-1] == self.pad_id) for _, c in pairs], device=states.device)
        return self.model.score(states[torch.arange(len(pairs), device=states.device), ends])[:, 0].float()  # (B,)


# ----- how well it separates correct from incorrect judgments -----

def roc_auc(scores, labels):
    """Area under the ROC curve of scores for binary labels, ties counted 1/2; None if one class is missing.

    Equals P(score of a positive > score of a negative) + P(equal) / 2 (paper: App. E.1.2 uses it for single responses).
    >>> roc_auc([9, 7, 7, 2], [1, 1, 0, 0])
    0.875
    """
    positive = np.array([s for s, y in zip(scores, labels, strict=True) if y], dtype=float)
    negative = np.sort([s for s, y in zip(scores, labels, strict=True) if not y])
    if not len(positive) or not len(negative):
        return None
    below = np.searchsorted(negative, positive, side="left")
    below_or_equal = np.searchsorted(negative, positive, side="right")
    return float((below + below_or_equal).sum() / (2 * len(positive) * len(negative)))


def reliability(logits, labels, bins=5):
    """Calibration table: per bin of predicted probability the number of judgments, mean prediction, share correct."""
    probability = 1 / (1 + np.exp(-np.asarray(logits, dtype=float)))
    labels = np.asarray(labels, dtype=float)
    table = []
    for b in range(bins):
        inside = (probability >= b / bins) & ((probability < (b + 1) / bins) | (b == bins - 1))
        if inside.any():
            table.append({"from": b / bins, "to": (b + 1) / bins, "count": int(inside.sum()),
                          "predicted": float(probability[inside].mean()), "correct": float(labels[inside].mean())})
    return table


def separation(rows):
    """Count, share of correct ones, ROC-AUC and accuracy (at logit 0) of (logit, label, ...) rows."""
    logits, labels = [r[0] for r in rows], [r[1] for r in rows]
    return {"count": len(rows), "positive": sum(labels) / len(rows), "auc": roc_auc(logits, labels),
            "accuracy": sum((z > 0) == bool(y) for z, y in zip(logits, labels, strict=True)) / len(rows)}


# [repeated in: spct_rft.py]
def learning_rate(step, steps, peak, warmup):
    """Choice: linear warm-up, then cosine down to a tenth of the peak (the paper states the peak only)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


@torch.no_grad()
def score_pairs(module, pairs, token_budget=24_000, progress=False):
    """Logits of all pairs, in order; batches of like length, judgments of one prompt together."""
    module.eval()
    order = sorted(range(len(pairs)), key=lambda r: (len(pairs[r][0]), pairs[r][0], len(pairs[r][1])))
    logits, start = [0.0] * len(pairs), 0
    bar = tqdm(total=len(order), desc="meta RM", unit="judgment", disable=not progress)
    while start < len(order):
        end, width = start, 0
        while end < len(order):
            width = max(width, sum(map(len, pairs[order[end]])))
            if end > start and width * (end - start + 1) > token_budget:
                break
            end += 1
        for r, z in zip(order[start:end], module([pairs[r] for r in order[start:end]]).tolist(), strict=True):
            logits[r] = z
        bar.update(end - start)
        start = end
    bar.close()
    return logits


def fingerprint(folder):
    """Names the weights of a meta RM, so that logits of another one are never taken for its own."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise UserError(f"meta RM {folder}: no .safetensors in it; run meta_rm.py and give its model folder as --meta_rm")
    digests = [hashlib.file_digest(open(f, "rb"), "sha256").hexdigest() for f in files]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:12]


def add_meta_logits(folder, output, examples, rows, accelerator, chunk_size):
    """Rows of samples.jsonl with "meta_logits" (None where a judgment did not parse) and "meta_rm", its fingerprint."""
    name = fingerprint(folder)
    if all(row.get("meta_rm") == name for row in rows):
        return rows
    model, tokenizer = generation.load_model(folder, accelerator.device, auto_class=AutoModelForSequenceClassification)
    module, by_id = MetaLogit(model, tokenizer.pad_token_id), {e.id: e for e in examples}

    def judge(chunk):
        pairs, places = [], []
        for r, row in enumerate(chunk):
            for j, s in enumerate(row["samples"]):
                if s["scores"] is not None:
                    pairs.append(meta_ids(tokenizer, by_id[row["id"]].permuted(s["permutation"]), s["text"]))
                    places.append((r, j))
        logits = [[None] * len(row["samples"]) for row in chunk]
        for (r, j), z in zip(places, score_pairs(module, pairs), strict=True):
            logits[r][j] = round(z, 5)
        return [{"id": row["id"], "meta_logits": z} for row, z in zip(chunk, logits, strict=True)]
    scored = in_chunks(Path(output) / f"meta-{name}.jsonl", rows, judge, accelerator, chunk_size, "meta RM")
    return [{**row, "meta_logits": s["meta_logits"], "meta_rm": name} for row, s in zip(rows, scored, strict=True)]


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=TOY_BASE, help="model that gets the scalar head (paper: Gemma-2-27B)")
    parser.add_argument("--trajectories", default="runs/toy/rft/trajectories.jsonl", help="of spct_rft.py; '' to leave them out")
    parser.add_argument("--grm", default="runs/toy/rl/model", help="the judge to be guided; '' to leave its judgments out")
    parser.add_argument("--data", default="toy", help="the items that spct_rft.py was run on")
    parser.add_argument("--exclude_domain", help="hold one domain out (generalisation run)")
    parser.add_argument("--limit", type=int, default=1500, help="items (those of spct_rft.py, or more)")
    parser.add_argument("--output", default="runs/toy/meta_rm", help="run folder")
    parser.add_argument("--seed", type=int, default=0, help="data order, sampling, head")
    parser.add_argument("--n_rft", type=int, default=3, help="judgments of the GRM per item (paper: 3)")
    parser.add_argument("--temperature", type=float, default=0.5, help="of the GRM's judgments (Choice: that of voting)")
    parser.add_argument("--held_out", type=float, default=0.1, help="share of the items kept for the report")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over the judgments (paper: not stated)")
    parser.add_argument("--batch_size", type=int, default=16, help="judgments per update on all processes (paper: 512)")
    parser.add_argument("--micro_batch_size", type=int, default=16, help="judgments per forward pass on one process")
    parser.add_argument("--lr", type=float, default=7e-4, help="peak learning rate (paper: 1e-5)")
    parser.add_argument("--save_every", type=int, default=25, help="updates between saves of the training state")
    parser.add_argument("--log_with", help="tracker of accelerate, e.g. tensorboard or wandb")
    parser.add_argument("--overwrite", action="store_true", help="discard the run in --output")
    add_judge_flags(parser)
    args = read_flags(parser)
    for flag in ("trajectories", "grm"):
        if getattr(args, flag) == parser.get_default(flag) and not Path(getattr(args, flag)).exists():
            print(f"no {getattr(args, flag)}: training without it; run spct_rft.py and spct_rl.py first for the paper's recipe")
            setattr(args, flag, "")
    if not args.trajectories and not args.grm:
        raise UserError("nothing to learn from: give --trajectories (of spct_rft.py), --grm (a judge), or both")
    if args.trajectories and not Path(args.trajectories).exists():
        raise UserError(f"--trajectories {args.trajectories} does not exist; run spct_rft.py first")

    # 1. data: judgments and whether they are correct
    accelerator = start_accelerator(log_with=args.log_with, output=args.output)
    if args.batch_size % accelerator.num_processes:
        raise UserError(f"--batch_size {args.batch_size} does not divide by {accelerator.num_processes} processes; change it")
    examples = load_examples(args.data, "train", args.limit, skip_bad=args.skip_bad, exclude_domain=args.exclude_domain)
    unlabelled = next((e for e in examples if e.rewards is None), None)
    if unlabelled:
        raise UserError(f"item {unlabelled.id} has no 'rewards'; training needs the ground truth of every item")
    with accelerator.main_process_first():
        output = open_run(args.output, args, accelerator.num_processes, accelerator.is_main_process)
    accelerator.init_trackers("spct")  # those of --log_with
    by_id = {e.id: e for e in examples}
    judged = []  # (source, id, permutation, text, scores)
    for row in read_rows(args.trajectories, fields=("id", "non_hinted")) if args.trajectories else []:
        if row["id"] not in by_id:
            raise UserError(f"--trajectories {args.trajectories}: item {row['id']} is not in --data {args.data}; give the same "
                            "--data, --limit and --exclude_domain as to spct_rft.py")
        judged += [("rft", row["id"], t["permutation"], t["text"], t["scores"]) for t in row["non_hinted"]]
    if args.grm:
        if not (output / "grm_judgments.jsonl").exists():
            grm, grm_tokenizer = generation.load_model(args.grm, accelerator.device)

            def judge(chunk):
                found = sample_judgments(grm, grm_tokenizer, chunk, args.n_rft, args.temperature, f"{args.seed}/meta",
                                         rating="train", skip_long=args.skip_bad, **judge_options(args))
                return [{"id": e.id, "judgments": [[j.permutation, j.text, j.scores] for j in js]}
                        for e, js in zip(chunk, found, strict=True)]
            in_chunks(output / "grm_judgments.jsonl", examples, judge, accelerator, 128, "sampling from the GRM")
        for row in read_rows(output / "grm_judgments.jsonl"):
            judged += [("grm", row["id"], *j) for j in row["judgments"]]
    # Pitfall: single responses are judged 0-1 here, as in training, for Eq. 10 to label them; 1-10 judgments of single
    # responses (ReaLMistake) are unlike anything that the meta RM learned from.
    # Choice: the items that RFT found too easy stay in, positives would be scarce without them.
    parsed = [j for j in judged if j[4] is not None]  # Choice: unparsed judgments never vote, so they are not learned from
    labels = [float(is_correct(scores, by_id[i].rewards)) for _, i, _, _, scores in parsed]
    # Pitfall: held out by item, so that no item has judgments on both sides.
    held = {i for i in by_id if int(hashlib.sha256(f"{args.seed}/{i}".encode()).hexdigest()[:8], 16) / 2**32 < args.held_out}
    positive = sum(labels) / max(1, len(labels))
    accelerator.print(f"{len(judged)} judgments, {len(judged) - len(parsed)} unparsed left out, {100 * positive:.0f}% correct")
    if not 0 < positive < 1:
        raise UserError("all judgments have the same label, so there is nothing to tell apart; add data or another --grm")

    # 2. model with a scalar head
    seed_everything(args.seed)
    model, tokenizer = generation.load_model(args.model, accelerator.device, torch.float32, AutoModelForSequenceClassification,
                                          num_labels=1)
    model.config.pad_token_id = tokenizer.pad_token_id
    pairs = [meta_ids(tokenizer, by_id[i].permuted(order), text) for _, i, order, text, _ in parsed]
    train = [r for r, j in enumerate(parsed) if j[1] not in held]
    if not train:
        raise UserError(f"--held_out {args.held_out} leaves no judgment to train on; lower it or add data")
    steps = max(1, round(args.epochs * len(train) / args.batch_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.01)
    state, step = load_state(output / "state.pt"), 0
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    module, optimizer = accelerator.prepare(MetaLogit(model, tokenizer.pad_token_id), optimizer)
    trim_metrics(output, step, accelerator)

    # 3. binary cross-entropy
    bar = tqdm(total=steps, initial=step, desc="meta RM", unit="update", disable=not accelerator.is_local_main_process)
    while step < steps:
        started = time.time()
        seed_everything(args.seed * 1_000_003 + step)
        batch = [train[i] for i in batch_indices(step, args.batch_size, len(train), args.seed)]
        mine = batch[accelerator.process_index::accelerator.num_processes]
        parts = [mine[i:i + args.micro_batch_size] for i in range(0, len(mine), args.micro_batch_size)]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, args.lr, max(1, steps // 20))
        total = torch.zeros((), device=accelerator.device)
        module.train()
        for number, part in enumerate(parts):
            with nullcontext() if number + 1 == len(parts) else accelerator.no_sync(module):
                logits = module([pairs[r] for r in part])                                          # (b,)
                target = torch.tensor([labels[r] for r in part], device=logits.device)             # (b,) 1.0 = correct (Eq. 10)
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum") / args.batch_size
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        norm = accelerator.clip_grad_norm_(module.parameters(), 1.0)
        loss = accelerator.reduce(total).item()
        check_update(step, loss, float(norm), [[pairs[r], labels[r]] for r in batch], output, accelerator)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}")
        if accelerator.is_main_process:
            log_metrics(output, accelerator, step=step, loss=loss, grad_norm=float(norm), seconds=time.time() - started)
            if step % args.save_every == 0 or step == steps:
                save_state(output / "state.pt", model=model.state_dict(), optimizer=optimizer.state_dict(), step=step)
    bar.close()

    # 4. save, and report on held-out items
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        save_model(output / "model", model, tokenizer)
        test = [r for r, j in enumerate(parsed) if j[1] in held]
        report = {"judgments": len(judged), "unparsed": len(judged) - len(parsed), "positive": positive, "train": len(train)}
        if test:
            logits = score_pairs(MetaLogit(model, tokenizer.pad_token_id), [pairs[r] for r in test])
            result = [(z, int(labels[r]), parsed[r][0], by_id[parsed[r][1]].domain) for z, r in zip(logits, test, strict=True)]
            keys = sorted({k for x in result for k in x[2:]} - {"all"})  # "all": also the domain of items without one
            report["held_out"] = {"all": separation(result)} | {
                key: separation([x for x in result if key in x[2:]]) for key in keys}
            report["reliability"] = reliability(logits, [x[1] for x in result])
            for name, s in report["held_out"].items():
                auc = "-" if s["auc"] is None else f"{s['auc']:.3f}"
                print(f"  held out, {name:<10} {s['count']:5d} judgments, {100 * s['positive']:.0f}% correct: "
                      f"accuracy {s['accuracy']:.3f}, ROC-AUC {auc}")
            for b in report["reliability"]:
                print(f"  predicted {b['from']:.1f}-{b['to']:.1f}: {b['count']:5d} judgments, mean {b['predicted']:.2f}, "
                      f"correct {b['correct']:.2f}")
        write_json(output / "report.json", report)
        print(f"wrote {output}/model")


if __name__ == "__main__":
    main()
