"""Task 12: right for the wrong reason.

Paper §3.2 (Eqs. 10, 11), App. F.2. 6 points.

The reward looks at scores only. A judgment with wrong reasons may be right by luck, and is then
rewarded like a true one. Where the truth is known, it can be counted. Each line of
12_judgments.jsonl is one judgment of two responses, in the order shown ("Response 1" is
responses[0]): "id", "query", "responses", "rewards" (Eq. 10), the truth: "weights" {criterion that
counts: percent}, "levels" (per response {criterion: -2..2}), what the judge wrote: "text", and its
"scores". `read` below reads a text. Three questions, after three of the four faults of App. F.2
(improper principles, incorrect critiques, imbalanced weights):

  principles  does every criterion that it names count?
  critique    is every verdict that it writes the true level of that response?
  weights     is no criterion that counts weighed more than 10 points off? (Not named: weight 0.)

Guess first: of the correct judgments in the file, how many have all three right?
"""
import re

VERDICTS = {"terrible": -2, "poor": -1, "fair": 0, "good": 1, "excellent": 2}


def read(text):
    """(named {criterion: percent}, per response {criterion: level}), as the judge wrote them."""
    first, *lines, _ = text.split("\n")
    named = {name: int(percent) for name, percent in re.findall(r"([\w-]+) (\d+)%", first)}
    said = [re.findall(r"([\w-]+) (\w+)[,.]", line.rpartition(": ")[2]) for line in lines]
    return named, [{name: VERDICTS[word] for name, word in pairs} for pairs in said]


def reasons(judgment):
    """(principles, critique, weights): three times True or False."""
    raise NotImplementedError


def right_for_the_wrong_reason(judgments):
    """Ids of the judgments that Eq. 11 rewards although one of their reasons is false, in order.

    A judgment whose "scores" are None was not read: it is never correct.
    """
    raise NotImplementedError


def shares(judgments):
    """([p, c, w, all] of the correct judgments, the same of the incorrect ones): shares, 0 to 1.

    Of so many of them the principles, the critique, the weights, all three are true. The incorrect
    ones show what to expect by chance. Judgments that were not read are left out.
    """
    raise NotImplementedError
