r"""Judgments written for a model that does not write the format: what `spct_rft.py --format_only`
learns from where none of the model's own parses. Nothing of the paper is in here.

The form is ours, the verdict the model's: behind the words that it judges it is drawn with the
probabilities that the model itself gives "good" and "bad". No label is looked at.
"""
import math
import os
import random
import re

import torch

from plumbing.generation import encode_chat

QUALITIES = ["accuracy", "clarity", "detail", "tone"]
SAID = {"1-10": ("good 8", "bad 3"), "0-1": ("good 1", "bad 0"), "best": ("good", "bad")}


def head(shown, quality, principles=True):
    """A judgment up to its first verdict: a quality and the question's longest word as criteria."""
    question = shown.prompt[-1]["content"].split("\n\n")[0].lower()
    word = max(re.findall(r"[^\W\d_]{4,}", question) or ["answer"], key=len)
    criteria = f"Specific Criteria: {quality} 7, {word} 3\n" if principles else ""
    return f"{criteria}Analysis: The {quality} of {quote(shown.responses[0])} is"


def quote(text):
    return '"' + " ".join(text.split()[:8]) + '"'


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
    """log p(" good") - log p(" bad") behind `start`, a judgment up to its first verdict, where the
    tokens of the two words part."""
    good, bad = (tokenizer(start + word, add_special_tokens=False)["input_ids"]
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


def write_judgment(model, tokenizer, example, seed, prompt_of, rating, principles, thinking=None):
    """(permutation, text) of a judgment in the right form, whose verdict is the model's own.

    Deviation: the paper's RFT samples from DeepSeek-V2.5, which writes the format. A model that
    does not gives nothing to select. This is a cold start before the cold start: the criterion is
    drawn by lot, and no label is looked at.
    prompt_of: an example in displayed order -> the judge's prompt (messages).
    """
    rng = random.Random(f"{seed}/{example.id}")
    order = rng.sample(range(len(example.responses)), len(example.responses))
    shown, quality = example.permuted(order), rng.choice(QUALITIES)
    good = own_verdict(model, tokenizer, shown, quality, rng, lambda e: encode_chat(
        tokenizer, prompt_of(e), thinking=thinking), principles)
    return order, judgment(shown, quality, good, rating, principles)
