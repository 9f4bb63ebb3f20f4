"""What a judgment of the toy world says, and whether it is true: its reasons, not its scores.

A judgment names criteria with weights, and a verdict per response and criterion; its item knows the
query's true weights and the true levels of every response. So right scores can be told from right
reasons. In a record a judgment has five characters: what is true of it (as the bits of one digit),
and four numbers.
"""
import re
from itertools import combinations
from typing import NamedTuple

from toy_world.make_base import write_judgment
from toy_world.world import VERDICTS

LEVELS = {word: level for level, word in VERDICTS.items()}
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ+/"
WIDTH, UNREAD = 5, "-"


class Truth(NamedTuple):
    only: bool     # no criterion of weight 0 is named
    most: bool     # the named ones have at least two thirds of the query's weight
    weighs: bool   # both, and every stated weight is within rounding of the true one
    reads: bool    # every verdict is the true level of the response in that place
    implies: bool  # the scores follow from criteria, weights and verdicts, to the point
    agrees: bool   # the same responses are at the top of the scores that follow
    named: int     # number of criteria
    wrong: int     # verdicts that are not the true level, or are not there
    swapped: int   # (criterion, two responses) whose order is not the true one: better, same, worse
    placed: int    # 1/50 of the stated weight that lies where the truth has it


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
    judgment leaves out the lightest of three criteria at most. It weighs as the truth does if also
    each stated weight is less than 10 points from the true share among those named, because
    weights are written in tens. Without naming enough, one criterion alone would be weighed well.
    """
    found = read_judgment(text, len(permutation))
    if found is None or scores is None:
        return None
    criteria, verdicts = found
    weights = {name: w / sum(item.extra["weights"].values())
               for name, w in item.extra["weights"].items()}
    whole = max(1, sum(percent for _, percent in criteria))
    stated = {name: sum(p for other, p in criteria if other == name) / whole
              for name, _ in criteria}
    known = sum(weights.get(name, 0) for name in stated)
    only, most = all(weights.get(name) for name in stated), known > 0.66
    levels = [item.extra["levels"][i] for i in permutation]
    pairs = [(told.get(name), true.get(name, 0)) for name in stated
             for told, true in zip(verdicts, levels, strict=True)]
    swapped = sum(order(a, c) != order(b, d) for start in range(0, len(pairs), len(levels))
                  for (a, b), (c, d) in combinations(pairs[start:start + len(levels)], 2))
    complete, shown = all(told is not None for told, _ in pairs), [scores[i] for i in permutation]
    implied = write_judgment(criteria, verdicts, "1-10")[1] if complete else [None]
    return Truth(
        only, most, only and most and all(
            abs(share - weights[name] / known) < 0.0999 for name, share in stated.items()),
        all(told == true for told, true in pairs), implied == shown,
        complete and tops(implied) == tops(shown),
        len(stated), sum(told != true for told, true in pairs), swapped,
        round(50 * sum(min(share, weights.get(name, 0)) for name, share in stated.items())))


def order(a, b):
    """1, 0 or -1: a is better, the same, worse; None if one is not told."""
    return None if None in (a, b) else (a > b) - (a < b)


def tops(scores):
    return [s == max(scores) for s in scores]


# ----- in a record -----

def write_truth(truth):
    """WIDTH characters.

    >>> read_truth(write_truth(Truth(True, False, True, False, False, True, 3, 7, 2, 50))).wrong
    7
    """
    if truth is None:
        return WIDTH * UNREAD
    bits = sum(2 ** i for i, true in enumerate(truth[:6]) if true)
    return DIGITS[bits] + "".join(DIGITS[min(x, 63)] for x in truth[6:])


def read_truth(text):
    if text[0] == UNREAD:
        return None
    bits, *numbers = map(DIGITS.index, text)
    return Truth(*(bool(bits >> i & 1) for i in range(6)), *numbers)
