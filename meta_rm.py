r"""The meta RM: a scalar model that tells good judgments from bad ones (paper §4).

Why: k judgments of one item are not equally good. Some name principles that do not matter, some
misread a response. Plain voting counts all of them. The meta RM reads each judgment and says how
likely it is to be correct, and only the better half votes (infer_scale.py). Telling whether a
judgment is right is easier than judging: the reasons are on the table.

It reads the query, the responses in the order that the judge saw, and the judgment (principles,
critique and scores), and gives one logit. It is trained with binary cross-entropy; the label of a
judgment is the correctness of its scores (Eq. 10). Its data are
  (1) the non-hinted judgments of the RFT stage, the rejected ones too: they are the negatives;
  (2) N_RFT = 3 judgments per item of the GRM that it will guide, so that it knows the mistakes of
      that judge and not only those of a weaker one.

Output:  model/ (AutoModelForSequenceClassification with one label; its logit is the meta reward),
         report.json (held-out accuracy, ROC-AUC and calibration, by source and by domain),
         metrics.jsonl.

    accelerate launch meta_rm.py                                # toy world -> runs/toy/meta_rm
    accelerate launch --num_processes 8 meta_rm.py --model Qwen/Qwen2.5-0.5B \
        --rft_judgments runs/qwen/rft/judgments.jsonl --grm runs/qwen/rl/model --data items.jsonl \
        --template full --lr 1e-5 --batch_size 512 --output runs/qwen/meta_rm

Where we differ from the paper:
  1. Epochs, class ratio and head are not stated there (`# Choice:`).
  2. The prompt is wrapped in the backbone's own chat template (paper: DeepSeek-V3's).
Read next: infer_scale.py.
"""
import argparse
import hashlib
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from grm import (
    encode_chat,
    is_correct,
    render_conversation,
    render_responses,
    sample_judgments,
)
from plumbing.data import DATA_HELP, load_examples, tell_other_items
from plumbing.figures import tell_unparsed
from plumbing.generation import fingerprint, left_pad, load_model
from plumbing.judge import TOY_BASE, add_judge_flags, judge_options, settle
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
from spct_rft import learning_rate

# ----- §4 and App. G: what the meta RM reads, and its logit -----

def meta_messages(shown, text):
    """The conversation and responses as the judge saw them; the judgment as the answer.

    Deviation: wrapped in the backbone's own chat template (paper: DeepSeek-V3's).
    Args:    shown: the example in displayed order.
             text: the judge's whole output. Choice: with its scores, as in the paper's cases.
    """
    user = (f"Score the responses.\n#### Conversation Context ####\n"
            f"{render_conversation(shown.prompt)}\n#### Responses to be Scored ####\n"
            f"{render_responses(shown.responses)}")
    return [{"role": "user", "content": user}, {"role": "assistant", "content": text}]


def meta_ids(tokenizer, shown, text):
    """(prompt ids, judgment ids with the end token) of one judgment."""
    user, assistant = meta_messages(shown, text)
    return encode_chat(tokenizer, [user], assistant["content"], own=True)


def meta_logits(model, pairs, pad_id):
    """One logit per judgment, before the sigmoid: (B,) fp32.

    Choice: a linear head on the last token of the judgment, as AutoModelForSequenceClassification
    has it (the released meta RM is loaded so). Where pad and end token are one, transformers takes
    the token before the end.
    pairs: B (prompt ids, judgment ids).
    """
    device = next(model.parameters()).device
    ids, mask = left_pad([p + c for p, c in pairs], pad_id, device)          # (B, L) each
    positions = (mask.cumsum(1) - 1).clamp(min=0)                            # (B, L)
    out = model(input_ids=ids, attention_mask=mask.long(), position_ids=positions)
    return out.logits[:, 0].float()                                          # (B,)


# ----- how well it separates correct from incorrect judgments -----

# The paper does not evaluate its meta RM by itself. We do, on items that it never saw: guidance can
# only help where good judgments get higher logits than bad ones *of the same item*.

def roc_auc(scores, labels):
    """Area under the ROC curve of scores for binary labels; None if one class is missing.

    It equals P(score of a positive > score of a negative) + P(equal) / 2, so it asks whether the
    order is right and not whether the numbers are.
    Source: paper App. E.1.2 uses it for single responses.
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
    """Calibration: per bin of predicted probability the count, mean prediction, share correct.

    Voting needs the order of the logits only. Whoever wants to say "do not trust this judgment"
    needs the probabilities, and they should come true as often as they say.
    """
    probability = 1 / (1 + np.exp(-np.asarray(logits, dtype=float)))
    labels, table = np.asarray(labels, dtype=float), []
    for b in range(bins):
        above = probability >= b / bins
        inside = above & ((probability < (b + 1) / bins) | (b == bins - 1))
        if inside.any():
            table.append({"from": b / bins, "to": (b + 1) / bins, "count": int(inside.sum()),
                          "predicted": float(probability[inside].mean()),
                          "correct": float(labels[inside].mean())})
    return table


def separation(rows):
    """Count, share correct, ROC-AUC and accuracy (at logit 0) of (logit, label, ...) rows.

    Compare the accuracy with the share: "always correct" has that much without reading a word.
    """
    logits, labels = [r[0] for r in rows], [r[1] for r in rows]
    right = sum((z > 0) == bool(y) for z, y in zip(logits, labels, strict=True))
    return {"count": len(rows), "positive": sum(labels) / len(rows),
            "auc": roc_auc(logits, labels), "accuracy": right / len(rows)}


@torch.no_grad()
def score_pairs(model, pairs, pad_id, token_budget=24_000):
    """Logits of all pairs, in order.

    Computed in batches of like length, because padding costs as much as text. The judgments of one
    item could share their prompt's computation. Measured on the toy, that is 1.6 times as fast
    here and not at all in training; the plain call is what a reader knows from transformers.
    """
    model.eval()
    order = sorted(range(len(pairs)), key=lambda r: sum(map(len, pairs[r])))
    logits, start = [0.0] * len(pairs), 0
    while start < len(order):
        end = start + 1
        while end < len(order):
            width = sum(map(len, pairs[order[end]]))  # the longest of the batch so far
            if width * (end - start + 1) > token_budget:
                break
            end += 1
        batch = order[start:end]
        for r, z in zip(batch, meta_logits(model, [pairs[r] for r in batch], pad_id).tolist(),
                        strict=True):
            logits[r] = z
        start = end
    return logits


def add_meta_logits(folder, output, examples, rows, accelerator, chunk_size):
    """Rows of samples.jsonl with a meta logit for every judgment.

    Adds "meta_logits" (None where a judgment did not parse, because it never votes) and "meta_rm",
    the fingerprint of the model in `folder`. The judgments themselves stay as they are.
    """
    name = fingerprint(folder)
    if all(row.get("meta_rm") == name for row in rows):
        return rows
    model, tokenizer = load_model(folder, accelerator.device,
                                  auto_class=AutoModelForSequenceClassification)
    by_id = {e.id: e for e in examples}

    def judge(chunk):
        places = [(row, s) for row in chunk for s in row["samples"] if s["scores"] is not None]
        pairs = [meta_ids(tokenizer, by_id[row["id"]].permuted(s["permutation"]), s["text"])
                 for row, s in places]
        logits = iter(score_pairs(model, pairs, tokenizer.pad_token_id))
        return [{"id": row["id"], "meta_logits": [
            None if s["scores"] is None else round(next(logits), 5) for s in row["samples"]]}
            for row in chunk]
    scored = in_chunks(Path(output) / f"meta-{name}.jsonl", rows, judge, accelerator, chunk_size,
                       "meta RM")
    return [{**row, "meta_logits": s["meta_logits"], "meta_rm": name}
            for row, s in zip(rows, scored, strict=True)]


# ----- the program -----

def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=TOY_BASE,
                        help="model that gets the scalar head (paper: Gemma-2-27B)")
    parser.add_argument("--rft_judgments", default="runs/toy/rft/judgments.jsonl",
                        help="of spct_rft.py; '' to leave them out")
    parser.add_argument("--grm", default="runs/toy/rl/model",
                        help="the judge to be guided; '' to leave its judgments out")
    parser.add_argument("--data", default="toy", help=DATA_HELP)
    parser.add_argument("--exclude_domain", help="hold one domain out (generalisation run)")
    parser.add_argument("--limit", type=int, default=5000,
                        help="items (those of spct_rft.py, or more)")
    parser.add_argument("--output", default="runs/toy/meta_rm", help="run folder")
    parser.add_argument("--seed", type=int, default=0, help="data order, sampling, head")
    parser.add_argument("--n_rft", type=int, default=3,
                        help="judgments of the GRM per item (paper: 3)")
    parser.add_argument("--temperature", type=float, default=0.5,
                        help="of the GRM's judgments (Choice: that of voting)")
    parser.add_argument("--held_out", type=float, default=0.1,
                        help="share of the items kept for the report")
    parser.add_argument("--epochs", type=float, default=1.0,
                        help="passes over the judgments (paper: not stated)")
    parser.add_argument("--batch_size", type=int, default=16,
                        help="judgments per update on all processes (paper: 512)")
    parser.add_argument("--micro_batch_size", type=int, default=16,
                        help="judgments per forward pass on one process")
    parser.add_argument("--lr", type=float, default=7e-4, help="peak learning rate (paper: 1e-5)")
    add_run_flags(parser, save_every=25)
    add_judge_flags(parser)
    args = read_flags(parser)
    for flag in ("rft_judgments", "grm"):
        value = getattr(args, flag)
        if value == parser.get_default(flag) and not Path(value).exists():
            print(f"no {value}: training without it; run spct_rft.py and spct_rl.py first for the "
                  "paper's recipe")
            setattr(args, flag, "")
    if not args.rft_judgments and not args.grm:
        raise UserError("nothing to learn from: give --rft_judgments (of spct_rft.py), --grm (a "
                        "judge), or both")
    if args.rft_judgments and not Path(args.rft_judgments).exists():
        raise UserError(f"--rft_judgments {args.rft_judgments} does not exist; run spct_rft.py "
                        "first")
    settle(args, args.grm, training=True)
    return args


@command_line
def main():
    args = read_arguments()
    accelerator = start_accelerator(args)

    # 1. judgments, and whether they are correct
    examples = load_examples(args.data, "train", args.limit, skip_bad=args.skip_bad,
                             exclude_domain=args.exclude_domain, labelled=True,
                             at_least=2 if args.rating == "best" else 1)
    run, by_id = start_run(args, accelerator, examples), {e.id: e for e in examples}
    judged = read_rft_judgments(args, by_id) + sample_from_grm(args, examples, accelerator, run)
    # Choice: unparsed judgments never vote, so they are not learned from.
    # Choice: the items that RFT found too easy stay in; positives would be scarce without them.
    parsed = [j for j in judged if j["scores"] is not None]
    labels = [float(is_correct(j["scores"], by_id[j["id"]].rewards)) for j in parsed]
    positive = sum(labels) / max(1, len(labels))
    if accelerator.is_main_process:
        tell_unparsed(run.folder, judged)
    accelerator.print(f"{len(judged)} judgments, {len(judged) - len(parsed)} unparsed left out, "
                      f"{100 * positive:.0f}% correct")
    if not 0 < positive < 1:
        raise UserError("all judgments have the same label, so there is nothing to tell apart; add "
                        "data or another --grm")
    held = choose_held_out({j["id"] for j in parsed}, args, accelerator)
    train = [r for r, j in enumerate(parsed) if j["id"] not in held]
    if not train:
        raise UserError(f"--held_out {args.held_out} leaves no judgment to train on; lower it or "
                        "add data")

    # 2. a model with a scalar head. It starts from a language model, which can read; only the head
    # is new.
    # Choice: AdamW, betas (0.9, 0.95), weight decay 0.01, one epoch, classes as they come.
    seed_everything(args.seed)
    model, tokenizer = load_model(args.model, accelerator.device, torch.float32,
                                  AutoModelForSequenceClassification, num_labels=1)
    pad_id = model.config.pad_token_id = tokenizer.pad_token_id
    pairs = [meta_ids(tokenizer, by_id[j["id"]].permuted(j["permutation"]), j["text"])
             for j in parsed]
    steps = max(1, round(args.epochs * len(train) / args.batch_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95),
                                  weight_decay=0.01)
    plain = model
    model, optimizer, step = run.prepare(model, optimizer, steps, "meta RM")

    # 3. binary cross-entropy: the logit becomes log-odds of "this judgment is correct". Guided
    # voting uses their order only.
    while step < steps:
        started = time.time()
        seed_everything(run.seed())
        drawn = batch_indices(step, args.batch_size, len(train), args.seed)
        batch, total = [train[i] for i in drawn], 0.0
        model.train()
        for part, sync in run.parts(model, run.mine(batch), args.micro_batch_size):
            with sync:
                logits = meta_logits(model, [pairs[r] for r in part], pad_id)        # (b,)
                target = torch.tensor([labels[r] for r in part], device=logits.device)  # (b,)
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    logits, target, reduction="sum") / args.batch_size
                # Pitfall: parts add up; DDP averages over processes, hence the factor.
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        loss = accelerator.reduce(total).item()
        lr = learning_rate(step, steps, args.lr)
        norm = run.update(model, lr, loss, [[pairs[r], labels[r]] for r in batch])
        step = run.log(shown=("loss",), loss=loss, grad_norm=norm, seconds=time.time() - started)

    # 4. save, and report on held-out items, beside the share of positives: "always correct" has
    # that accuracy without reading anything
    run.finish(tokenizer)
    if accelerator.is_main_process:
        report = {"judgments": len(judged), "unparsed": len(judged) - len(parsed),
                  "positive": positive, "train": len(train)}
        test = [r for r, j in enumerate(parsed) if j["id"] in held]
        if test:
            logits = score_pairs(plain, [pairs[r] for r in test], pad_id)
            report |= report_held_out([
                (z, int(labels[r]), parsed[r]["source"], by_id[parsed[r]["id"]].domain)
                for z, r in zip(logits, test, strict=True)])
        write_json(run.folder / "report.json", report)


def choose_held_out(ids, args, accelerator):
    """The items that are kept for the report; it is said where they are none, or too few.

    Pitfall: held out by item; judgments of one item on both sides would flatter the report.
    """
    if not args.held_out:
        accelerator.print("nothing is held out (--held_out 0), so there is no report of how good "
                          "it is")
        return set()
    lot = {i: held_out(i, args.seed) for i in ids}
    held = {i for i in lot if lot[i] < args.held_out}
    if not held:
        accelerator.print(f"--held_out {args.held_out} of {len(lot)} items is none; one is held "
                          "out, so the report will say next to nothing")
        held = {min(lot, key=lot.get)}
    return held


def held_out(item_id, seed):
    """A number in [0, 1) that depends on item and seed alone."""
    return int(hashlib.sha256(f"{seed}/{item_id}".encode()).hexdigest()[:8], 16) / 2**32


def read_rft_judgments(args, by_id):
    """The non-hinted judgments of the RFT stage: {"source", "id", "permutation", ...}.

    The hinted ones are left out: a judge that was told the answer makes other mistakes than one
    that was not, and at inference nobody tells it.
    """
    if not args.rft_judgments:
        return []
    found, rows = [], read_rows(args.rft_judgments, fields=("id", "non_hinted"))
    for row in rows:
        if row["id"] not in by_id:
            raise UserError(f"--rft_judgments {args.rft_judgments}: item {row['id']} is not in "
                            f"--data {args.data}; give the same --data, --limit and "
                            "--exclude_domain as to spct_rft.py")
        found += [{"source": "rft", "id": row["id"], **j} for j in row["non_hinted"]]
    # Pitfall: ids stay while texts and labels of a data file are changed.
    tell_other_items("--rft_judgments", args.rft_judgments, rows, by_id, args.data)
    return found


def sample_from_grm(args, examples, accelerator, run):
    """N_RFT judgments per item of the GRM that will be guided, in the same form.

    Pitfall: single responses are judged 0-1 here, as in training, so that Eq. 10 can label them.
    """
    if not args.grm:
        return []
    path = run.folder / "grm_judgments.jsonl"

    def judge(chunk):
        found = sample_judgments(model, tokenizer, chunk, args.n_rft, args.temperature,
                                 f"{args.seed}/meta", skip_long=args.skip_bad,
                                 **judge_options(args))
        return [{"id": e.id, "judgments": [
            {"permutation": j.permutation, "text": j.text, "scores": j.scores, "reason": j.reason}
            for j in js]}
            for e, js in zip(chunk, found, strict=True)]
    if not path.exists():
        model, tokenizer = load_model(args.grm, accelerator.device)
    rows = in_chunks(path, examples, judge, accelerator, 128, "sampling from the GRM")
    return [{"source": "grm", "id": row["id"], **j} for row in rows for j in row["judgments"]]


def report_held_out(rows):
    """Separation of (logit, label, source, domain) rows by source and domain, and calibration.

    By source, because the judgments that will be guided are the GRM's, and theirs are harder to
    tell apart than those of the RFT stage.
    """
    keys = sorted({key for row in rows for key in row[2:]} - {"all"})
    parts = {"all": rows} | {key: [row for row in rows if key in row[2:]] for key in keys}
    report = {"held_out": {name: separation(part) for name, part in parts.items()},
              "reliability": reliability([r[0] for r in rows], [r[1] for r in rows])}
    for name, s in report["held_out"].items():
        auc = "-" if s["auc"] is None else f"{s['auc']:.3f}"
        print(f"  held out, {name:<10} {s['count']:5d} judgments, {100 * s['positive']:.0f}% "
              f"correct: accuracy {s['accuracy']:.3f}, ROC-AUC {auc}")
    for b in report["reliability"]:
        print(f"  predicted {b['from']:.1f}-{b['to']:.1f}: {b['count']:5d} judgments, mean "
              f"{b['predicted']:.2f}, correct {b['correct']:.2f}")
    return report


if __name__ == "__main__":
    main()
