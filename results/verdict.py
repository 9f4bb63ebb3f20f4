r"""Which form of judgment lets a small model learn the verdict? Its scores alone are trained, on the true label.

    python results/verdict.py --model runs/smollm2/base --data runs/smollm2 --form end        # then single, behind

Three forms; nothing is sampled, and only the tokens of the scores carry a loss:
    single   one response in the prompt, one score                     Scores: \boxed{8}
    end      two responses, both scores at the end                     Scores: \boxed{8, 3}
    behind   two responses, each score behind the words that it judges: what results/smollm2.py does, there with a word
             ("is good 8") before the score as well                    Analysis: "..." 8; "..." 3

Measured is the first score: 50 % and, once all probability is on 8 and 3, ln 2 = 0.693 nats are chance. A diagnosis beside the recipe: training and validation
items are those that results/smollm2.py split, validation in both orders. Writes this form's rows of results/verdict.csv.
"""
import argparse
import csv
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "results")]

import torch  # noqa: E402

import sampler  # noqa: E402
from data import load_examples  # noqa: E402
from eval import bootstrap_ci, print_table, write_csv  # noqa: E402
from grm import build_prompt, encode_chat  # noqa: E402
from runs import batch_indices, command_line, git_commit, read_flags, seed_everything, start_accelerator  # noqa: E402
from smollm2 import TEMPLATE  # noqa: E402
from spct_rft import learning_rate  # noqa: E402

HIGH, LOW = "8", "3"


def encode(tokenizer, shown, form):
    """(ids up to the last score, places of the scores in them) of one pair; "single" judges its first response."""
    scores = [HIGH if r == max(shown.rewards) else LOW for r in shown.rewards]
    if form == "single":
        shown, scores = replace(shown, responses=shown.responses[:1], rewards=[int(scores[0] == HIGH)]), scores[:1]
    before = ["Scores: \\boxed{", ", "]
    if form == "behind":
        before = ['Analysis: "', '; "']
        before = [start + " ".join(text.split()[:8]) + '" ' for start, text in zip(before, shown.responses, strict=True)]
    ids, places = list(encode_chat(tokenizer, build_prompt(shown, TEMPLATE, rating="1-10"))), []
    for text, score in zip(before, scores, strict=False):
        ids += tokenizer(text, add_special_tokens=False)["input_ids"]
        places.append(len(ids))
        ids += tokenizer(score, add_special_tokens=False)["input_ids"]
    return ids, places


def score_logits(model, rows, pad_id, device):
    """(logits before every score (N, V), the score tokens (N,), which of them are the first of their judgment (N,))."""
    ids, mask = sampler.left_pad([ids for ids, _ in rows], pad_id, device)                                         # (B, L) each
    at = [(b, ids.shape[1] - len(row) + place, place == places[0]) for b, (row, places) in enumerate(rows) for place in places]
    b, place, first = (torch.tensor(x, device=device) for x in zip(*at, strict=True))                              # (N,) each
    hidden = model.base_model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).last_hidden_state
    return model.lm_head(hidden[b, place - 1]).float(), ids[b, place], first


def measure(logits, scores, first, low_id, high_id):
    """(negative log-likelihoods in nats, 1 or 0 where the right one of 8 and 3 is likelier) of the first scores, as lists."""
    logits, scores = logits[first], scores[first]
    right = (logits[:, high_id] > logits[:, low_id]) == (scores == high_id)
    return torch.nn.functional.cross_entropy(logits, scores, reduction="none").tolist(), right.float().tolist()


def mean(recent, i):
    return sum(sum(part[i]) for part in recent) / sum(len(part[i]) for part in recent)


def others(path, form):
    """The rows of the other forms in an earlier table."""
    if not Path(path).exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["form"] != form]


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True, help="folder of the model (runs/smollm2/base: the instruct model as it is)")
    parser.add_argument("--data", required=True, help="folder with train.jsonl and validation.jsonl (runs/smollm2)")
    parser.add_argument("--form", required=True, choices=["single", "end", "behind"], help="form of the judgment")
    parser.add_argument("--updates", type=int, default=100, help="updates")
    parser.add_argument("--batch_size", type=int, default=8, help="items per update")
    parser.add_argument("--lr", type=float, default=2e-4, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed")
    parser.add_argument("--output", default="results/verdict.csv", help="table; the rows of other forms in it are kept")
    args = read_flags(parser)
    accelerator = start_accelerator()
    seed_everything(args.seed)
    model, tokenizer = sampler.load_model(args.model, accelerator.device, torch.float32)
    high_id, low_id = (tokenizer(x, add_special_tokens=False)["input_ids"][0] for x in (HIGH, LOW))
    train, held_out = (load_examples(f"{args.data}/{name}.jsonl") for name in ("train", "validation"))
    train, held_out = ([e for e in examples if len(e.responses) == 2] for examples in (train, held_out))
    device, pad_id, rng = accelerator.device, tokenizer.pad_token_id, random.Random(args.seed)
    validation = [encode(tokenizer, e.permuted(order), args.form) for e in held_out for order in ([0, 1], [1, 0])]
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0)
    model.train()
    started, recent, rows = time.time(), [], []
    for step in range(args.updates):
        batch = [train[i].permuted(rng.sample([0, 1], 2)) for i in batch_indices(step, args.batch_size, len(train), args.seed)]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.updates, args.lr, max(1, args.updates // 20))
        with accelerator.autocast():
            logits, scores, first = score_logits(model, [encode(tokenizer, e, args.form) for e in batch], pad_id, device)
        torch.nn.functional.cross_entropy(logits, scores).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(measure(logits.detach(), scores, first, low_id, high_id))
        if (step + 1) % 25 == 0:
            with torch.no_grad(), accelerator.autocast():
                measured = [measure(*score_logits(model, validation[i:i + 16], pad_id, device), low_id, high_id)
                            for i in range(0, len(validation), 16)]
            nats, right = ([x for part in measured for x in part[i]] for i in (0, 1))
            low, high = bootstrap_ci(right, clusters=[e.extra.get("cluster", e.id) for e in held_out for _ in range(2)])
            rows.append({"form": args.form, "updates": step + 1, "train_nats": mean(recent, 0), "train_accuracy": mean(recent, 1),
                         "nats": sum(nats) / len(nats), "accuracy": sum(right) / len(right), "low": low, "high": high,
                         "judgments": len(right), "lr": args.lr, "batch_size": args.batch_size, "seed": args.seed,
                         "seconds": round(time.time() - started), "commit": git_commit()})
            recent = []
            print_table(rows[-1:], list(rows[-1])[:9])
            write_csv(args.output, others(args.output, args.form) + rows)


if __name__ == "__main__":
    main()
