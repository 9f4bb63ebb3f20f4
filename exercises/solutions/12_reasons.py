"""Task 12: three comparisons with the truth; scores decide only who is counted where."""
import re

VERDICTS = {"terrible": -2, "poor": -1, "fair": 0, "good": 1, "excellent": 2}


def read(text):
    first, *lines, _ = text.split("\n")
    named = {name: int(percent) for name, percent in re.findall(r"([\w-]+) (\d+)%", first)}
    said = [re.findall(r"([\w-]+) (\w+)[,.]", line.rpartition(": ")[2]) for line in lines]
    return named, [{name: VERDICTS[word] for name, word in pairs} for pairs in said]


def reasons(judgment):
    named, said = read(judgment["text"])
    weights = judgment["weights"]
    principles = all(name in weights for name in named)
    critique = all(level == truth[name] for levels, truth in zip(said, judgment["levels"])
                   for name, level in levels.items())
    weighed = all(abs(named.get(name, 0) - weight) <= 10 for name, weight in weights.items())
    return principles, critique, weighed


def is_correct(judgment):
    scores, best = judgment["scores"], judgment["rewards"].index(max(judgment["rewards"]))
    return scores is not None and all(
        scores[best] > s for i, s in enumerate(scores) if i != best)


def right_for_the_wrong_reason(judgments):
    return [j["id"] for j in judgments if is_correct(j) and not all(reasons(j))]


def shares(judgments):
    def share(correct):
        rows = [reasons(j) for j in judgments if j["scores"] and is_correct(j) == correct]
        return [sum(column) / len(rows) for column in zip(*((*row, all(row)) for row in rows))]
    return share(True), share(False)
