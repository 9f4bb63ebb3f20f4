r"""Judgments written for a model that does not write the format: what `spct_rft.py --format_only`
learns from where none of the model's own parses. Nothing of the paper is in here.

The form is ours, the verdict the model's: each response is shown first once, and the verdict is
drawn with the odds of "good" and "bad" that the model itself gives behind its words. No label is
looked at.
"""
import math
import os
import random
import re

import torch

from plumbing.generation import encode_chat, exceeds, fits, harmless, token_ids

QUALITIES = ["accuracy", "clarity", "detail", "tone"]
SAID = {"1-10": ("good 8", "bad 3"), "0-1": ("good 1", "bad 0"), "best": ("good", "bad")}


def head(shown, quality, principles=True):
    """A judgment up to its first verdict: a quality and the question's longest word as criteria."""
    question = shown.prompt[-1]["content"].split("\n\n")[0].lower()
    word = max(re.findall(r"[^\W\d_]{4,}", question) or ["answer"], key=len)
    criteria = f"Specific Criteria: {quality} 7, {word} 3\n" if principles else ""
    return f"{criteria}Analysis: The {quality} of {quote(shown.responses[0])} is"


def quote(text):
    words = " ".join(text.split()[:8])
    # Pitfall: behind a response's own <think> the parser would see no verdict.
    return '"' + re.sub(r"<(?=/?think>)", "< ", words) + '"'


def judgment(shown, quality, good, rating="1-10", principles=True):
    r"""The whole judgment of responses that are `good` (n bools).

    A verdict stands right behind the words it judges: with both scores at the very end it was not
    learned (results/LOG.md).

    >>> from plumbing.records import PreferenceExample
    >>> item = PreferenceExample("x", [{"role": "user", "content": "Name a fast animal."}],
    ...                          ["A cheetah.", "Dunno, a dog?"])
    >>> print(judgment(item, "tone", [True, False]))
    Specific Criteria: tone 7, animal 3
    Analysis: The tone of "A cheetah." is good 8; of "Dunno, a dog?" is bad 3
    Scores: \boxed{8, 3}
    """
    said = [SAID[rating][not g] for g in good]
    others = "".join(f"; of {quote(text)} is {verdict}"
                     for text, verdict in zip(shown.responses[1:], said[1:], strict=True))
    box = (str(good.index(True) + 1) if rating == "best" else
           ", ".join(verdict.split()[1] for verdict in said))
    return f"{head(shown, quality, principles)} {said[0]}{others}\nScores: \\boxed{{{box}}}"


@torch.no_grad()
def first_verdict(model, tokenizer, prompt_ids, start):
    """log p(" good") - log p(" bad") behind `start`, a judgment up to its first verdict: of the
    first tokens where the two words differ."""
    good, bad = (token_ids(tokenizer, harmless(tokenizer, start + word))
                 for word in (" good", " bad"))
    place = len(os.path.commonprefix([good, bad]))
    if place in (len(good), len(bad)):  # this tokenizer cannot tell them apart
        return 0.0
    ids = torch.tensor([prompt_ids + good[:place]], device=model.device)
    logits = model(ids, logits_to_keep=1).logits[0, -1].float()              # (V,)
    return float(logits[good[place]] - logits[bad[place]])


def own_verdict(model, tokenizer, shown, quality, rng, prompt_ids_of, principles=True):
    """Which response is good, n bools, drawn with the model's own odds; `rewards` are not read.

    z_i = log-odds of "good" for response i, shown first. Given that exactly one of n >= 2 responses
    is good, and each is by itself with odds exp(z_i), it is i with softmax(z)_i.
    """
    count = len(shown.responses)
    firsts = [shown.permuted([i] + [j for j in range(count) if j != i]) for i in range(count)]
    z = torch.tensor([first_verdict(model, tokenizer, prompt_ids_of(first),
                                    head(first, quality, principles)) for first in firsts])
    if count == 1:
        return [rng.random() < 1 / (1 + math.exp(-z[0].clamp(-50, 50)))]
    best = rng.choices(range(count), z.softmax(0).tolist())[0]
    return [i == best for i in range(count)]


def write_judgment(model, tokenizer, example, rating, args, prompt_of):
    """(permutation, text) of a judgment in the right form, whose verdict is the model's own; or
    None with --skip_bad where the prompt does not fit the model, else a UserError.

    Deviation: the paper names no such step; its sampler is DeepSeek-V2.5. From a model that does
    not write the format there is nothing to select. So this is a cold start before the cold start:
    one criterion is drawn by lot, the other is the question's longest word, and no label is looked
    at.
    prompt_of: (an example in displayed order, args) -> the judge's prompt (messages).
    """
    def prompt_ids_of(e):
        return encode_chat(tokenizer, prompt_of(e, args), thinking=args.thinking)
    ids = prompt_ids_of(example)
    if not fits(model, ids, args.max_new_tokens):
        if args.skip_bad:
            return None
        raise exceeds(model, ids, args.max_new_tokens, f"item {example.id}")
    rng = random.Random(f"{args.seed}/{example.id}")
    order = rng.sample(range(len(example.responses)), len(example.responses))
    shown, quality = example.permuted(order), rng.choice(QUALITIES)
    good = own_verdict(model, tokenizer, shown, quality, rng, prompt_ids_of,
                       not args.no_principles)
    return order, judgment(shown, quality, good, rating, not args.no_principles)


def add_written(rows, examples, model, tokenizer, args, prompt_of, rating_of, parse):
    """Adds "written" to rows of judgments.jsonl: one judgment where none of the model's own parses.

    rating_of, parse: grm.rating_of and grm.parse_judgment.  The others: see `write_judgment`.
    """
    for row, example in zip(rows, examples, strict=True):
        row["written"] = []
        if any(j["scores"] for j in row["non_hinted"]):
            continue
        rating = rating_of(example, args.rating)
        found = write_judgment(model, tokenizer, example, rating, args, prompt_of)
        if found:
            order, text = found
            shown, reason = parse(text, len(order), rating)
            row["written"] = [{
                "permutation": order, "completion_ids": [], "text": text, "reason": reason,
                "scores": shown and [shown[order.index(i)] for i in range(len(order))]}]


def parsed_fates(row):
    """{kind of judgment: [its fate]} of a row with "written": all that parsed is kept, whatever the
    scores."""
    return {kind: ["unparsed" if j["scores"] is None else "kept" for j in row[kind]]
            for kind in ("non_hinted", "written")}
