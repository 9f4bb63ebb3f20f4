r"""Why is a greedy judgment wrong? The paper's failure modes (App. F.2, by hand), decided here by the toy world's truth.

    python -m results.failures --samples runs/results/s0/grm/greedy --output runs/results/s0/failures/grm     # -> report.json

A judgment names criteria with weights, gives each response a verdict per criterion, and scores. A judgment that Eq. 10 calls
wrong is put into the first class that fits, where a value is the weighted sum of the levels of the named criteria, and "right"
means that the labelled best response has the highest value alone:

    unparsed          no scores, or no criteria that can be read
    wrong critique    its own verdicts do not give the best response the highest value, the true levels under its own weights do
    wrong weights     not even so, but the true levels under the true weights of the criteria that it named do
    wrong principles  not even so: a criterion that decides is not named
    tie               its own verdicts and weights are right, but rounded to integers the best response only shares the top
    wrong sum         its own verdicts and weights are right, and its scores do not follow from them

Ties of the values count as not right, so a judgment that cannot tell two responses apart is put down to what made them equal;
`ties` counts all wrong judgments, of whatever class, in which the best response shares the top. The paper's fourth class, labels
that contradict the truth, cannot occur here.
"""
import argparse
import re
from collections import Counter
from pathlib import Path

from grm import is_correct
from plumbing.runs import UserError, command_line, open_run, read_flags, read_rows, write_json
from toy_world.world import DOMAINS, VERDICTS, items

HERE = Path(__file__).resolve().parent.parent

CLASSES = ("wrong critique", "wrong weights", "wrong principles", "tie", "wrong sum", "unparsed")
LEVEL = {word: level for level, word in VERDICTS.items()}


def read_judgment(text, permutation):
    """({criterion: percent}, [{criterion: level} of each response, original order]) as the judge wrote them.

    >>> read_judgment("Specific Criteria: tone 60%, detail 40%.\\nAnalysis: Response 1: tone poor, detail good.\\n"
    ...               "Response 2: tone fair, detail fair.\\nScores: ...", [1, 0])
    ({'tone': 60, 'detail': 40}, [{'tone': 0, 'detail': 0}, {'tone': -1, 'detail': 1}])
    """
    named = re.search(r"Specific Criteria: ([^\n]*)", text)
    weights = {name: int(percent) for name, percent in re.findall(r"(\w+) (\d+)%", named[1] if named else "")}
    verdicts = [{} for _ in permutation]
    for place, told in re.findall(r"Response (\d+): ([^\n]*)", text):
        if 1 <= int(place) <= len(permutation):
            verdicts[permutation[int(place) - 1]] = {name: LEVEL[word] for name, word in re.findall(r"(\w+) (\w+)", told)
                                                     if word in LEVEL}
    return weights, verdicts


def right(weights, levels, best):
    """Whether response `best` alone has the highest value; not if a level is missing."""
    if any(name not in row for row in levels for name in weights):
        return False
    values = [sum(weight * row[name] for name, weight in weights.items()) for row in levels]
    return all(values[best] > v for i, v in enumerate(values) if i != best)


def classify(sample, item):
    """The class of one wrong judgment (a sample of samples.jsonl) of a toy item."""
    weights, verdicts = read_judgment(sample["text"], sample["permutation"])
    best, truth = item.rewards.index(max(item.rewards)), item.extra["levels"]
    if sample["scores"] is None or not weights or any(name not in truth[0] for name in weights):
        return "unparsed"
    if right(weights, verdicts, best):
        return "tie" if sample["scores"][best] == max(sample["scores"]) else "wrong sum"
    if right(weights, truth, best):
        return "wrong critique"
    return "wrong weights" if right({name: DOMAINS[item.domain].get(name, 0) for name in weights}, truth, best) else "wrong principles"


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", required=True, help="folder of an eval.py run on the toy world's test items")
    parser.add_argument("--output", default="runs/failures", help="run folder")
    parser.add_argument("--overwrite", action="store_true", help="discard the run in --output")
    args = read_flags(parser)
    rows = read_rows(Path(args.samples) / "samples.jsonl", fields=("id", "rewards", "n", "samples"))
    if not rows:
        raise UserError(f"{args.samples}/samples.jsonl does not exist; run eval.py first")
    output, known = open_run(args.output, args), {item.id: item for item in items("test", len(rows))}
    judged = [r for r in rows if r["n"] > 1]
    if any(r["id"] not in known or known[r["id"]].rewards != r["rewards"] for r in judged):
        raise UserError(f"{args.samples}: not the first test items of the toy world; only there is the truth known")
    wrong = [r for r in judged if not is_correct(r["samples"][0]["scores"], r["rewards"])]
    found = {r["id"]: classify(r["samples"][0], known[r["id"]]) for r in wrong}
    counts = Counter(found.values())
    ties = sum(bool(s) and s[r["rewards"].index(max(r["rewards"]))] == max(s) for r in wrong for s in [r["samples"][0]["scores"]])
    write_json(output / "report.json", {"judged": len(judged), "wrong": len(wrong), "ties": ties,
                                        "classes": {c: counts[c] for c in CLASSES}, "items": found})
    print(f"{len(judged)} judgments, {len(wrong)} wrong ({ties} ties): " + ", ".join(f"{c} {counts[c]}" for c in CLASSES))


if __name__ == "__main__":
    main()
