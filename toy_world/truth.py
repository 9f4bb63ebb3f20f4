"""What a judgment of the toy world says, and whether it is true: its reasons, not its scores.

A judgment names criteria with weights, and a verdict per response and criterion; its item knows the
query's true weights and the true levels of every response. So right scores can be told from right
reasons. A judgment keeps three characters in a record: what is true of it (TRUE, as the bits of one
digit), how many criteria it names, and how many of its verdicts are wrong.
"""
import re
from typing import NamedTuple

from toy_world.make_base import write_judgment
from toy_world.world import VERDICTS

LEVELS = {word: level for level, word in VERDICTS.items()}
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+/"
UNREAD = "-"


class Truth(NamedTuple):
    only: bool     # no criterion of weight 0 is named
    most: bool     # the named ones have at least two thirds of the query's weight
    reads: bool    # every verdict is the true level of the response in that place
    weighs: bool   # every stated weight is within rounding of the true one
    implies: bool  # the scores follow from criteria, weights and verdicts, to the point
    agrees: bool   # the same responses are at the top of the scores that follow
    named: int     # number of criteria
    wrong: int     # verdicts that are not the true level, or are not there


def read_judgment(text, n):
    """(criteria [(name, percent)], verdicts [{name: level} per place]); None without criteria.

    >>> read_judgment("Specific Criteria: tone 100%.\\nAnalysis: Response 1: tone poor.", 1)
    ([('tone', 100)], [{'tone': -1}])
    """
    head = re.search(r"Specific Criteria: ([^.\n]*)\.", text)
    parts = [re.fullmatch(r"(\S+) (\d+)%", part) for part in head[1].split(", ")] if head else []
    if not parts or None in parts:
        return None
    verdicts = []
    for place in range(1, n + 1):
        line = re.search(rf"Response {place}: ([^.\n]*)\.", text)
        told = [part.split(" ") for part in line[1].split(", ")] if line else []
        verdicts.append({t[0]: LEVELS[t[1]] for t in told if len(t) == 2 and t[1] in LEVELS})
    return [(part[1], int(part[2])) for part in parts], verdicts


def truth_of(text, item, permutation, scores):
    """The Truth of a judgment; None where no criteria can be read, or it has no scores.

    item: with its levels and weights (toy_world/world.py).  scores: points, original order.
    Choice: it names what counts if nothing else is named and two thirds of the weight are: a clean
    judgment leaves out the lightest of three criteria at most. It weighs as the truth does if each
    stated weight is less than 10 points from the true share among those named, because weights
    are written in tens.
    """
    found = read_judgment(text, len(permutation))
    if found is None or scores is None:
        return None
    criteria, verdicts = found
    weights, names = item.extra["weights"], dict.fromkeys(name for name, _ in criteria)
    known, stated = sum(weights.get(name, 0) for name in names), sum(p for _, p in criteria)
    levels = [item.extra["levels"][i] for i in permutation]
    wrong = sum(told.get(name) is None or told[name] != true.get(name, 0)
                for told, true in zip(verdicts, levels, strict=True) for name in names)
    close = all(abs(sum(p for other, p in criteria if other == name) / max(1, stated)
                    - weights.get(name, 0) / max(1, known)) < 0.1 for name in names)
    shown = [scores[i] for i in permutation]
    whole = all(name in told for told in verdicts for name in names)
    implied = write_judgment(criteria, verdicts, "1-10")[1] if whole else [None]
    return Truth(
        only=all(weights.get(name) for name in names), most=3 * known >= 2 * sum(weights.values()),
        reads=not wrong, weighs=close and known > 0, implies=implied == shown,
        agrees=whole and tops(implied) == tops(shown), named=len(names), wrong=wrong)


def tops(scores):
    return [s == max(scores) for s in scores]


# ----- in a record -----

def write_truth(truth):
    """Three characters.

    >>> read_truth(write_truth(Truth(True, False, True, False, False, True, 3, 7))).wrong
    7
    """
    if truth is None:
        return 3 * UNREAD
    bits = sum(2 ** i for i, true in enumerate(truth[:6]) if true)
    return DIGITS[bits] + "".join(DIGITS[min(x, 63)] for x in truth[6:])


def read_truth(text):
    if text[0] == UNREAD:
        return None
    bits, named, wrong = map(DIGITS.index, text)
    return Truth(*(bool(bits >> i & 1) for i in range(6)), named, wrong)
