"""Grades the exercises: a line per task with its points, what was missed, and the total.

    python -m exercises.check                           # the files in exercises/, as you fill them
    python -m exercises.check 3 5                       # only tasks 3 and 5
    python -m exercises.check --folder my_answers       # the files of another folder (same names)
    python -m exercises.check --solutions               # the solutions: all points
    python -m exercises.check 7 --samples practice.jsonl           # samples to practise on: 7, 13
    python -m exercises.check 12 --samples exercises/12_judgments.jsonl      # made this file

task_NN(t) below lists the parts of a task: (points, what is tested, a function of the student's
module t, what it must give). Answers are compared with the paper's own examples and with this
repository. What was missed is told with the line of the student's file, the call, what it gave and
what was expected. Exit code 0 if nothing was missed.
"""
import argparse
import contextlib
import functools
import importlib.util
import inspect
import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import torch

from eval import bootstrap_ci, item_credit, paired_ci, report
from grm import is_correct, parse_scores, rule_reward, unpermute
from infer_scale import meta_vote, vote
from meta_rm import roc_auc
from plumbing.runs import UserError, command_line, write_text
from spct_rl import group_advantages, grpo_loss
from toy_world import make_base, world

EXERCISES = Path(__file__).resolve().parent
MINUTE = 60                    # seconds that one file may take
HUNTS = ("05", "06", "11")     # to list what an untouched file misses would tell where its bugs are

FIG3 = [[1, 5], [5, 6], [4, 8], [7, 6]]


def task_01(t):
    rng = random.Random(1)
    lists = [([rng.randint(1, 4) for _ in range(n)], rng.sample(range(9), n))
             for n in (2, 3, 4, 5) for _ in range(20)]
    return [
        (1, "two responses, the second is best: 2-7, a tie, 6-1", lambda: [
            t.is_correct(s, [0, 1]) for s in ([2, 7], [7, 7], [6, 1])], [True, False, False]),
        (1, "lists: against every other one, whatever their order", lambda: [
            t.is_correct(s, r) for s, r in lists], [is_correct(s, r) for s, r in lists]),
        (1, "a single response: the score is the label", lambda: [
            t.is_correct([s], [r]) for s in (0, 1) for r in (0, 1)], [True, False, False, True]),
        (1, "unparsed is incorrect; rewards are +1 and -1", lambda: [
            t.rule_reward(s, [3, 8]) for s in (None, [1, 2], [2, 2])],
         [rule_reward(s, [3, 8]) for s in (None, [1, 2], [2, 2])]),
    ]


def task_02(t):
    rng = random.Random(2)
    pieces = [r"\boxed{7, 2}", r"\boxed{7,x}", r"\boxed{3}", r"\boxed{11, 2}", r"\boxed{ 1 ,10 }",
              "Scores: ", "8, 9", "}", ",", r"\boxed"]
    texts = ["".join(rng.choices(pieces, k=rng.randint(1, 5))) for _ in range(300)]
    return [
        (1, "forms seen in the paper", lambda: [t.parse(s, 2) for s in (
            r"Scores: \boxed{8, 9}", r"**Scores: \boxed{8, 8}**", "### Output: \\boxed{10, 7}\n")],
         [[8, 9], [8, 8], [10, 7]]),
        (1, "the last box counts, even if it cannot be read", lambda: [t.parse(s, 2) for s in (
            r"It says \boxed{9, 1}. Scores: \boxed{2, 6}", r"\boxed{9, 1} Scores: \boxed{2, 6, 7}",
            r"\boxed{9, 1} \boxed{2, ")], [[2, 6], None, None]),
        (1, "nothing is repaired", lambda: [t.parse(s, 2) for s in (
            "Scores: 8, 9", r"\boxed{8}", r"\boxed{8, 9.5}", r"\boxed{0, 9}", r"\boxed{8, 11}",
            r"\boxed{8, }", "")], [None] * 7),
        (1, "300 texts made of such pieces, as in grm.py", lambda: [t.parse(s, 2) for s in texts],
         [parse_scores(s, 2)[0] for s in texts]),
    ]


def task_03(t):
    rng = random.Random(3)
    rows = [[None if rng.random() < 0.3 else [rng.randint(1, 10) for _ in range(3)]
             for _ in range(8)] for _ in range(50)]
    rows.append([None] * 8)
    logits = [[None if s is None else rng.gauss(0, 1) for s in row] for row in rows]
    table_17 = [[8, 8], [5, 9], [7, 10]]
    return [
        (1, "Table 17: results 2 and 3 saw the reverse order; a list of three", lambda: [
            t.unshuffle(*a) for a in (([8, 8], [0, 1]), ([9, 5], [1, 0]), ([10, 7], [1, 0]),
                                      ([1, 2, 3], [2, 0, 1]))],
         table_17 + [unpermute([1, 2, 3], [2, 0, 1])]),
        (1, "Fig. 3 and Table 17; unparsed judgments do not vote", lambda: [t.vote(s) for s in (
            FIG3, table_17, [[1, 2], None], [None])], [[17, 25], [20, 27], [1, 2], None]),
        (1, "guided: Fig. 3 keeps the first and the third, Table 17 leaves out the tie", lambda: [
            t.guided_vote(FIG3, [2.0, -1.0, 1.0, -2.0], 2),
            t.guided_vote(table_17, [-15.7781, 1.3126, 1.6739], 2)], [[5, 13], [12, 19]]),
        (1, "51 items with unparsed judgments, at last none parsed, as in infer_scale.py", lambda: [
            (t.vote(s), t.guided_vote(s, z, 4)) for s, z in zip(rows, logits)],
         [(vote(s), meta_vote(s, z, 4)) for s, z in zip(rows, logits)]),
    ]


def task_04(t):
    rng = random.Random(4)
    rewards = [rng.choice([1.0, -1.0]) for _ in range(64)]
    return [
        (1, "1, -1, -1, -1 by hand", lambda: t.group_advantages([1.0, -1.0, -1.0, -1.0], 4),
         [1.7321, -0.5774, -0.5774, -0.5774]),
        (1, "equal rewards (also three times 0.1, whose mean is rounded), and a group of one, give "
         "exactly 0", lambda: [[a == 0.0 for a in t.group_advantages([r] * 3, G)]
                               for r in (1.0, -1.0, 0.1) for G in (1, 3)], [[True] * 3] * 6),
        (1, "16 groups of 4, each on its own, as in spct_rl.py", lambda: list(
            t.group_advantages(rewards, 4)),
         group_advantages(torch.tensor(rewards).view(16, 4)).flatten().tolist()),
        (1, "rewards that do not fill a group are an error", lambda: raises(
            ValueError, lambda: t.group_advantages([1.0] * 5, 4)), True),
    ]


def task_05(t):
    g = torch.Generator().manual_seed(5)
    logp, old, ref = (-torch.rand(4, 6, generator=g) for _ in range(3))                 # (B, T)
    A, lengths = torch.tensor([1.5, -0.5, 0.0, -1.0]), torch.tensor([6, 3, 1, 4])
    mask = torch.arange(6) < lengths[:, None]                                           # (B, T)
    logits, ids = torch.randn(2, 3, 5, generator=g), torch.randint(5, (2, 3), generator=g)
    heard = []

    def only_kl():  # no advantage, pi = 0.5, pi_ref = 0.25
        half, quarter = torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log()
        return float(t.grpo_loss(half, half, quarter, torch.zeros(1),
                                 torch.ones(1, 1, dtype=torch.bool), beta=1.0))

    def hinted():
        heard.clear()
        prompt, text = t.hinted_sample("Why?", ["Because.", "No."], 2,
                                       lambda p: heard.append(p) or "Scores: 1, 9")
        return prompt, heard[0].split("\n")[-1], text
    return [
        (1, "advantages", lambda: t.advantages(
            torch.tensor([[1.0, -1, -1, -1], [1, 1, 1, 1]])).tolist(),
         [[1.7321, -0.5774, -0.5774, -0.5774], [0.0] * 4]),
        (1, "completion mask", lambda: t.completion_mask(
            torch.tensor([[5, 6, 2, 2], [5, 6, 7, 8], [2, 5, 2, 2]]), 2).tolist(),
         [[True] * 3 + [False], [True] * 4, [True] + [False] * 3]),
        (1, "log-probabilities", lambda: t.token_logp(logits, ids, 0.5).tolist(),
         (logits * 2).log_softmax(-1).gather(-1, ids[..., None])[..., 0].tolist()),
        (1, "size of the KL term: pi 0.5, pi_ref 0.25", lambda: abs(only_kl()), math.log(2) - 0.5),
        (1, "direction of the KL term: leaving the reference costs something", lambda: (
            only_kl() > 0), True),
        (1, "hinted sample: (prompt to train on, last line that the judge saw, text)", hinted,
         ("User: Why?\nResponse 1: Because.\nResponse 2: No.", "The best response is: Response 2",
          "Scores: 1, 9")),
        (2, "the whole loss on random numbers, as in spct_rl.py", lambda: float(
            t.grpo_loss(logp, old, ref, A, mask, 0.3, 0.1)),
         float(grpo_loss(logp, old, ref, A, mask, 0.3, 0.1)[0].mean())),
    ]


def task_06(t):
    def one(hinted, shown, permutation, rewards):
        return {"id": "x", "hinted": hinted, "text": "...", "permutation": permutation,
                "shown": shown, "rewards": rewards}

    def labels(*judgments):
        return [label for _, _, label in t.training_rows(list(judgments))]
    rng = random.Random(6)
    rft = [(f"item-{i}", f"rft {j}", 1.0) for i in range(400) for j in range(3)]
    grm = [(f"item-{i}", f"grm {j}", 0.0) for i in range(0, 500, 2) for j in range(3)
           if rng.random() < 0.8]
    rng.shuffle(grm)

    def items(part):
        return {row[0] for row in part}

    def elsewhere():
        """The split of another process, where hash(str) differs."""
        program = ("import json, runpy, sys; rows = [tuple(row) for row in json.load(sys.stdin)]; "
                   "print(json.dumps(runpy.run_path(sys.argv[1])['split'](rows)))")
        done = subprocess.run([sys.executable, "-c", program, t.module.__file__], text=True,
                              input=json.dumps(rft), capture_output=True,
                              env=os.environ | {"PYTHONHASHSEED": "2504"})
        return done.stdout and json.loads(done.stdout.splitlines()[-1])

    def leak():
        train, held = zip(t.split(rft), t.split(grm))
        kept = [sorted(a + b) == sorted(rows) for a, b, rows in zip(train, held, (rft, grm))]
        both = items(train[0] + train[1]) & items(held[0] + held[1])
        half, other = t.split(rft, held_out=0.5)[1], t.split(rft, seed=1)[1]
        there = elsewhere()
        return (kept, len(both), 0.05 < len(items(held[0])) / 400 < 0.15,
                0.4 < len(items(half)) / 400 < 0.6, items(other) != items(held[0]),
                bool(there) and items(there[1]) == items(held[0]))
    return [
        (2, "what the meta RM may learn from", lambda: labels(
            one(False, [2, 7], [0, 1], [0, 1]), one(True, [7, 2], [0, 1], [0, 1]),
            one(False, None, [0, 1], [0, 1])), [1.0]),
        (2, "labels: Table 17 (a tie, then two that saw the reverse order), and two lists of three",
         lambda: labels(
            one(False, [8, 8], [0, 1], [0, 1]), one(False, [9, 5], [1, 0], [0, 1]),
            one(False, [10, 7], [1, 0], [0, 1]), one(False, [1, 2, 9], [2, 0, 1], [0, 1, 0]),
            one(False, [9, 1, 2], [2, 0, 1], [0, 1, 0])), [0.0, 1.0, 1.0, 1.0, 0.0]),
        (2, "split: (all rows kept, items on both sides, about a tenth held out, half with "
         "held_out=0.5, others with another seed, the same in another process)", leak,
         ([True, True], 0, True, True, True, True)),
    ]


@functools.cache
def guided_samples(count, seed, k=16):
    """Toy items with k judgments each: noisy ones on half of the items, mostly clean on the others.

    The meta logits are simulated: normal around 4 (correct) or 0, but one in twenty is high,
    whatever the judgment. So 0 is no border, as with a meta RM trained where most judgments were
    correct. They are so clear that a good rule is 2 points above every fixed number: not luck.
    """
    rng, rows = random.Random(f"exercise 7/{seed}"), []
    for number in range(count):
        item = world.make_item(rng, n=rng.choice([3, 4, 5]))
        clean = rng.choice([0.0, 0.9])
        scores = []
        for _ in range(k):
            order = rng.sample(range(len(item.responses)), len(item.responses))
            view = item.permuted(order)
            view.extra = {**item.extra, "shown_levels": [item.extra["levels"][i] for i in order]}
            text = make_base.judgment(rng, view, noisy=rng.random() >= clean, rating="1-10")
            scores.append(unpermute(parse_scores(text, len(order))[0], order))
        centre = [4 if is_correct(s, item.rewards) else 0 for s in scores]
        logits = [2 + abs(rng.gauss(0, 3)) if rng.random() < 0.05 else rng.gauss(c, 1)
                  for c in centre]
        rows.append({"id": f"{seed}-{number}", "rewards": item.rewards, "n": len(item.rewards),
                     "meta_logits": logits, "samples": [{"scores": s} for s in scores]})
    return rows


@functools.cache
def guided_credits(method, numbers):
    return [item_credit(row, 16, method, m)
            for row, m in zip(guided_samples(500, "grade"), numbers, strict=True)]


def task_07(t):
    rows = guided_samples(500, "grade")
    fixed = {m: guided_credits("guided", (m,) * 500) for m in (1, 2, 4, 8, 12, 16)}

    @functools.cache
    def rule():
        extremes = [[-9.0] * 16, [9.0] * 16, [0.0]]
        for logits in [row["meta_logits"] for row in rows] + extremes:
            m = t.k_meta(list(logits))
            if type(m) is not int or not 1 <= m <= len(logits):
                raise ValueError(f"{m!r} is not an integer from 1 to {len(logits)}, for logits "
                                 f"such as {logits[0]:.1f}")
        return tuple(t.k_meta(list(row["meta_logits"])) for row in rows)

    def above(method, numbers):
        theirs, mine = guided_credits(method, tuple(numbers)), guided_credits("guided", rule())
        low, high = (100 * end for end in paired_ci(theirs, mine))
        return low > 0 or f"{sum(mine) / 5:.1f} % right against {sum(theirs) / 5:.1f} %, interval "\
            f"{low:+.1f} to {high:+.1f}"
    return [
        (1, "an integer from 1 to k for every item", lambda: len(rule()), 500),
        (1, "above as many judgments drawn at random", lambda: above("random", rule()), True),
        (2, "above k/2", lambda: above("guided", [8] * 500), True),
        (2, "above every fixed number (list: those that are as good)", lambda: [
            m for m, theirs in fixed.items()
            if sum(theirs) >= sum(guided_credits("guided", rule()))], []),
    ]


def task_08(t):
    rng = random.Random(8)
    scores, labels = [rng.randint(1, 10) for _ in range(80)], [rng.randint(0, 1) for _ in range(80)]
    return [
        (1, "without ties: perfect, reversed, one pair of four wrong", lambda: [
            t.roc_auc([1, 2, 3, 4], y) for y in ([0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1])],
         [1.0, 0.0, 0.75]),
        (1, "ties count half", lambda: [
            t.roc_auc([9, 7, 7, 2], [1, 1, 0, 0]), t.roc_auc([5, 5, 5], [0, 1, 1])], [0.875, 0.5]),
        (1, "one class is missing", lambda: [
            t.roc_auc([1, 2], [1, 1]), t.roc_auc([1, 2], [0, 0])], [None, None]),
        (1, "80 scores 1-10, as in meta_rm.py", lambda: t.roc_auc(scores, labels),
         roc_auc(scores, labels)),
    ]


def task_09(t):
    rng = random.Random(9)
    values = [rng.random() for _ in range(100)]
    copies = [v for v in values for _ in range(20)]
    prompts = [f"prompt {i}" for i in range(100) for _ in range(20)]
    uneven = [0.5 + rng.random() / 2 for _ in range(40)] + [rng.random() / 5 for _ in range(360)]
    sizes = list(range(40)) + [f"large {i // 9}" for i in range(360)]

    many = 20_000  # draws, so that only the noise of the answer's 2,000 counts: about 0.002
    alone = bootstrap_ci(values, draws=many)
    large = bootstrap_ci(uneven, clusters=list(map(str, sizes)), draws=many)

    def near(interval, expected):  # at 90 % or 99 % an end of `alone` is 0.009 or more away
        return expected if max(abs(a - b) for a, b in zip(interval, expected)) < 0.006 else interval
    return [
        (1, "every value alone: as eval.py", lambda: near(t.bootstrap_interval(values), alone),
         alone),
        (2, "twenty copies of each value add nothing", lambda: near(
            t.bootstrap_interval(copies, prompts), alone), alone),
        (1, "a large cluster counts all its values", lambda: near(
            t.bootstrap_interval(uneven, sizes), large), large),
        (1, "same seed, same interval; no values, ValueError", lambda: [
            t.bootstrap_interval(values, seed=3) == t.bootstrap_interval(values, seed=3),
            raises(ValueError, lambda: t.bootstrap_interval([]))], [True, True]),
    ]


@functools.cache
def judged(likes, count, seed, copies=2, one_order=False):
    """Rows of samples.jsonl by a scripted judge: a score is quality plus likes[place] points."""
    rng, rows = random.Random(f"exercise 10/{seed}"), []
    for number in range(count):
        n = rng.choice([1, 2, 2, 3, 4])
        quality, order, samples = [rng.randint(1, 6) for _ in range(n)], rng.sample(range(n), n), []
        for _ in range(copies):
            scores = [quality[i] + likes[0] * (order[0] == i) + likes[1] * (order[-1] == i)
                      for i in range(n)]
            samples.append({"permutation": order, "reason": "ok", "tokens": 1,
                            "scores": None if rng.random() < 0.05 else scores})
            order = order if one_order else rng.sample(range(n), n)
        rewards = [int(i == quality.index(max(quality))) for i in range(n)]
        rows.append({"id": str(number), "domain": "all", "n": n, "rewards": rewards,
                     "response_lengths": [1] * n, "samples": samples})
    return rows


def firsts(wins, count):
    """Rows of two responses: the one shown first wins in `wins` of `count`."""
    orders = [[i % 2, 1 - i % 2] for i in range(count)]
    return [{"n": 2, "samples": [{"permutation": order, "scores": [
        9 if response == order[i >= wins] else 3 for response in range(2)]}]}
        for i, order in enumerate(orders)]


def task_10(t):
    fair, first, last = judged((0, 0), 500, 1), judged((2, 0), 500, 2), judged((0, 2), 500, 3)
    copied = judged((0, 0), 60, 6, 32, one_order=True)
    slight, few = firsts(1100, 2000), firsts(8, 12)  # 5 points, but certain; 17, but perhaps luck
    return [
        (1, "share and expected share, as in eval.py", lambda: [
            tuple(t.first_position(rows)) for rows in (fair, first)],
         [tuple(report(rows)[key] for key in ("first_position", "first_expected"))
          for rows in (fair, first)]),
        (1, "a judge that likes the first place, much or (55 in 100 of 2,000) slightly", lambda: [
            bool(t.is_biased(rows)) for rows in (first, slight)], [True, True]),
        (1, "a judge that likes the last place", lambda: bool(t.is_biased(last)), True),
        (1, "a fair judge, and one of which 8 verdicts of 12 say nothing yet", lambda: [
            bool(t.is_biased(rows)) for rows in (fair, few)], [False, False]),
        (1, "a fair judge, 60 items with 32 copies of the same judgment", lambda: bool(
            t.is_biased(copied)), False),
    ]


def task_11(t):
    def one(text, finished=True):
        return {"text": text, "finished": finished}
    nothing, both = [one("I cannot say."), one(r"Scores: \boxed{}")], r"Scores: \boxed{7, 2}"
    return [
        (2, "a judgment that was cut off has no scores, whatever it quotes", lambda: [
            t.scores_of(one(both, finished), 2) for finished in (False, True)], [None, [7, 2]]),
        (2, "one response: (no scores, an empty box, a score of 0) for a wrong and a right one",
         lambda: [[t.reward(j, [label]) for j in (*nothing, one(r"Score: \boxed{0}"))]
                  for label in (0, 1)], [[-1.0, -1.0, 1.0], [-1.0] * 3]),
        (2, "two responses: (no scores, an empty box, 7 and 2), the first one best, the second",
         lambda: [[t.reward(j, rewards) for j in (*nothing, one(both))]
                  for rewards in ([1, 0], [0, 1])], [[-1.0, -1.0, 1.0], [-1.0] * 3]),
    ]


@functools.cache
def reasoned(count, seed):
    """[(judgment of a toy pair, its reasons)]: true or false by construction, see task 12.

    Each of (principles, critique, weights) is false now and then, whatever the others are. The
    critique errs by a habit: it reads the response shown first a level too well.
    """
    rng, found = random.Random(f"exercise 12/{seed}"), []
    for number in range(count):
        item = world.make_item(rng, n=2)
        weights = item.extra["weights"]
        heaviest, lightest = max(weights, key=weights.get), min(weights, key=weights.get)
        named, levels = dict(weights), [dict(truth) for truth in item.extra["levels"]]
        principles, critique, weighed = (rng.random() < share for share in (0.6, 0.4, 0.6))
        if not principles:
            named[heaviest] -= 10
            named[rng.choice([name for name in world.CRITERIA if name not in weights])] = 10
        if not weighed:
            named[heaviest] -= 20
            named[lightest] += 20
        if not critique:
            levels[0] = {name: min(2, level + 1) for name, level in levels[0].items()}
            critique = all(levels[0][name] == item.extra["levels"][0][name] for name in named)
        text, scores = make_base.write_judgment(list(named.items()), levels, "1-10")
        found.append(({"id": f"{seed}-{number}", "query": item.prompt[0]["content"],
                       "responses": item.responses, "rewards": item.rewards, "weights": weights,
                       "levels": item.extra["levels"], "text": text, "scores": scores},
                      (principles, critique, weighed)))
    return found


def task_12(t):
    def one(number, criteria, first, second, scores):
        parts = [f"Specific Criteria: {criteria}.", f"Analysis: Response 1: {first}.",
                 f"Response 2: {second}.", f"Scores: \\boxed{{{str(scores)[1:-1]}}}"]
        return {"id": f"hand-{number}", "rewards": [1, 0], "scores": scores,
                "weights": {"accuracy": 60, "tone": 40}, "text": "\n".join(parts),
                "levels": [{"accuracy": 2, "tone": -1, "detail": 0},
                           {"accuracy": -1, "tone": 1, "detail": 1}]}
    first, second = "accuracy excellent, tone poor", "accuracy poor, tone good"
    hand = [
        one(0, "accuracy 60%, tone 40%", first, second, [8, 5]),
        one(1, "accuracy 50%, tone 40%, detail 10%", f"{first}, detail fair",
            f"{second}, detail good", [8, 6]),
        one(2, "accuracy 60%, tone 40%", first, "accuracy poor, tone poor", [8, 2]),
        one(3, "accuracy 80%, tone 20%", first, second, [10, 3]),
        one(4, "accuracy 70%, detail 30%", "accuracy excellent, detail fair",
            "accuracy poor, detail good", [10, 4]),
        one(5, "accuracy 60%, tone 40%", first, second, [7, 7])]
    true = [(True, True, True), (False, True, True), (True, False, True), (True, True, False),
            (False, True, False), (True, True, True)]
    unread = {**hand[0], "id": "unread", "scores": None}
    some = reasoned(300, "grade")

    def share(correct):
        rows = [(*reasons, all(reasons)) for judgment, reasons in some
                if is_correct(judgment["scores"], judgment["rewards"]) == correct]
        return [sum(column) / len(rows) for column in zip(*rows)]
    return [
        (2, "reasons by hand: all true; a criterion that does not count; the worse response "
            "misread; weights 20 off; tone not named; all true and a tie", lambda: [
                t.reasons(judgment) for judgment in hand], true),
        (1, "reasons of 300 judgments", lambda: [t.reasons(judgment) for judgment, _ in some],
         [reasons for _, reasons in some]),
        (1, "right for the wrong reason: of those by hand", lambda: t.right_for_the_wrong_reason(
            [*hand, unread]), ["hand-1", "hand-2", "hand-3", "hand-4"]),
        (2, "shares of 300 judgments and one without scores", lambda: t.shares(
            [*(judgment for judgment, _ in some), unread]), (share(True), share(False))),
    ]


@functools.cache
def judged_right(habit, told_apart, seed, count=400, k=32):
    """Rows of task 13: k judgments of each item, and the logits of a meta RM.

    habit: the judge errs on the same items again and again, and not now and then. told_apart: what
    the meta RM knows, right "judgments" or easy "items".
    """
    rng, rows = random.Random(f"exercise 13/{seed}/{habit}/{told_apart}"), []
    for number in range(count):
        p = 0.73 if not habit else 0.95 if number % 5 < 3 else 0.4
        right = [rng.random() < p for _ in range(k)]
        liked = right if told_apart == "judgments" else [p > 0.5] * k
        rows.append({"judge": "habit" if habit else "slips", "told_apart": told_apart,
                     "right": right, "logits": [rng.gauss(1.5 if x else -1.5, 1) for x in liked]})
    return rows


def task_13(t):
    return [
        (1, "majority: one, three, two, 32 judgments", lambda: [
            t.majority(p, k) for p, k in ((0.7, 1), (0.7, 3), (0.7, 2), (0.4, 32))],
         [0.7, 0.784, 0.7, 0.1284]),
        (1, "what votes is right more often", lambda: [
            t.let_through(*a) for a in ((0.5, 0.8, 0.2), (0.4, 0.9, 0.3), (0.7, 0.5, 0.5))],
         [0.8, 2 / 3, 0.7]),
        (1, "turning point", lambda: [
            t.turning_point(*a) for a in ((0.8, 0.2), (0.9, 0.3), (0.5, 0.5))], [0.2, 0.25, 0.5]),
        (1, "a judge that slips, with two meta RMs", lambda: [
            t.advice(judged_right(False, apart, "grade")) for apart in ("judgments", "items")],
         ["votes", "votes"]),
        (1, "a habit, and a meta RM that tells right judgments from wrong ones", lambda: t.advice(
            judged_right(True, "judgments", "grade")), "guided"),
        (1, "a habit, and a meta RM that only tells easy items from hard ones", lambda: t.advice(
            judged_right(True, "items", "grade")), "one"),
    ]


PRACTICE = {  # task: the lines that --samples writes
    7: lambda: guided_samples(500, "practice"),
    12: lambda: [judgment for judgment, _ in reasoned(48, "file")],
    13: lambda: [row for habit in (False, True) for told_apart in ("judgments", "items")
                 for row in judged_right(habit, told_apart, "practice", 100)],
}


# ----- grading -----

def raises(error, call):
    try:
        call()
    except error:
        return True
    return False


def agree(got, expected):
    """Equal, lists item by item, floats to 1e-4."""
    if isinstance(expected, (list, tuple)):
        return (isinstance(got, (list, tuple)) and len(got) == len(expected)
                and all(map(agree, got, expected)))
    if isinstance(expected, float):
        return got is not None and bool(abs(got - expected) < 1e-4)
    return got is None if expected is None else bool(got == expected)


class TooLong(BaseException):
    """Not an Exception, which an answer might catch."""


@contextlib.contextmanager
def limited(seconds):
    """TooLong after so many seconds, then every second: an answer may never end.

    Only where the system has alarms (not on Windows).
    """
    def late(*_):
        raise TooLong(f"took more than {seconds:.3g} seconds")
    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def load(path):
    spec = importlib.util.spec_from_file_location(f"exercise_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Watched:
    """A student's module that keeps the calls of its functions: [name, arguments, result].

    What raised an error has no third.
    """

    def __init__(self, module):
        self.module, self.calls = module, []

    def __getattr__(self, name):
        function = getattr(self.module, name)

        def call(*args, **kwargs):
            given = [repr(plain(a)) for a in args] + [f"{k}={a!r}" for k, a in kwargs.items()]
            self.calls.append([name, ", ".join(given)])
            result = function(*args, **kwargs)
            self.calls[-1].append(plain(result))
            return result
        return call

    def line(self, name):
        """Where the function is defined, as "line N: "; "" if it is not a function of Python."""
        code = getattr(inspect.unwrap(getattr(self.module, name)), "__code__", None)
        return f"line {code.co_firstlineno}: " if code else ""


def plain(value):
    """As it is to be printed: tensors as lists, numbers with four digits."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [*map(plain, value)] if isinstance(value, list) else tuple(map(plain, value))
    return round(float(value), 4) if isinstance(value, float) else value


def short(text, limit=1000):
    """The middle of long inputs is left out."""
    return text if len(text) <= limit else f"{text[:limit - 60]} ... {text[-50:]}"


def difference(calls, got, expected):
    """(calls, got, expected) of the first of several answers that is not as expected.

    Lists are followed as long as each element has calls of its own.
    """
    while (isinstance(expected, (list, tuple)) and isinstance(got, (list, tuple))
           and len(got) == len(expected) and len(calls) > 1 and not len(calls) % len(expected)):
        i = [agree(a, b) for a, b in zip(got, expected)].index(False)
        each = len(calls) // len(expected)
        calls, got, expected = calls[i * each:(i + 1) * each], got[i], expected[i]
    return calls, plain(got), plain(expected)


def line_of(error, path):
    """"line N: " where the student's file raised it; nothing if it did not."""
    lines = [n for frame, n in traceback.walk_tb(error.__traceback__)
             if frame.f_code.co_filename == str(path)]
    lines += [error.lineno] if isinstance(error, SyntaxError) else []
    return f"line {lines[-1]}: " if lines else ""


def grade(path):
    """(points, possible points, [(what was missed, why)]) of one file.

    It runs in a process of its own: an answer may end Python, or stay in one call of C, which no
    alarm interrupts. Where there is no fork (Windows) it runs in this one, because a process that
    does not start as a copy would import torch again.
    """
    possible = sum(worth for worth, *_ in task_of(path)(None))  # makes the data, for copies as well
    if "fork" not in multiprocessing.get_all_start_methods():
        return grade_here(path)
    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=send_grade, args=(path, there))
    child.start()
    there.close()  # so that the end of the child is the end of the pipe
    try:
        late = time.monotonic() + MINUTE + 2  # what an alarm interrupts has ended before
        while not here.poll(0.05) and child.is_alive() and time.monotonic() < late:
            pass  # the end of the pipe does not tell: what an answer began may hold it
        why = "ended Python" if time.monotonic() < late else f"took more than {MINUTE:.3g} seconds"
        found = here.recv() if here.poll() else None
        if isinstance(found, tuple) and len(found) == 3 and found[1] == possible >= found[0] >= 0:
            return found
    except EOFError:
        why = "ended Python"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)  # and what the answer began
        child.kill()
        child.join()
    return 0, possible, [(path.name, why)]


def send_grade(path, pipe):
    os.setsid()  # a group of its own, which the parent ends; the parent tells of Ctrl-C
    torch.set_num_threads(1)  # a copy of a process has none of its threads
    found = grade_here(path)
    sys.stdout.flush()  # what the answer printed; the parent kills what still runs
    pipe.send(found)


def task_of(path):
    return globals()[f"task_{path.stem[:2]}"]


def grade_here(path):
    """As `grade`, in this process.

    A file has a MINUTE altogether, of which each part gets an equal share of what is left.
    """
    task, path = task_of(path), path.absolute()
    possible = [worth for worth, *_ in task(None)]
    points, missed, end = 0, [], time.monotonic() + MINUTE

    def share(parts):
        return limited(max(0.01, (end - time.monotonic()) / parts))
    try:
        with share(len(possible) + 1):
            t = Watched(load(path))
    except FileNotFoundError:
        return 0, sum(possible), [(path.name, "no such file")]
    except (Exception, SystemExit, TooLong) as error:  # whatever a student's file may raise
        return 0, sum(possible), [(path.name, f"does not load: {line_of(error, path)}{error!r}")]
    for place, (worth, what, answer, expected) in enumerate(task(t)):
        t.calls.clear()
        try:
            with share(len(possible) - place):
                got = answer()
            if agree(got, expected):
                points += worth
                continue
            calls, got, expected = difference(t.calls, got, expected)
            why = f"gave {short(repr(got))}, expected {expected!r}"
            if calls:  # none if the answer is one that was kept
                name, given, *result = calls[-1]
                if result and [got] != result:
                    why = f"gave {short(repr(*result))}, from which follows {why[len('gave '):]}"
                why = f"{t.line(name)}{name}({short(given)}) {why}"
        except NotImplementedError:
            why = "not done yet"
        except (Exception, SystemExit, TooLong) as error:
            line, why = line_of(error, path), short(repr(error))
            if t.calls:
                name, given, *result = t.calls[-1]
                if result and not line and isinstance(error, Exception):  # raised by this file
                    line = t.line(name)
                    why = f"gave {short(repr(*result))}, which cannot be used here: {why}"
                else:
                    why = f"raised {why}"
                why = f"{name}({short(given)}) {why}"
            why = line + why
        missed.append((what, why))
    return points, sum(possible), missed


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tasks", type=int, nargs="*", help="numbers of the tasks; default all")
    parser.add_argument("--folder", help="where the answers are; default exercises/ itself")
    parser.add_argument("--solutions", action="store_true", help="grade the solutions instead")
    parser.add_argument("--samples",
                        help="write the samples of task 7, 12 or 13 to this .jsonl file instead")
    args = parser.parse_args()
    if args.samples is not None:
        if not args.samples.endswith(".jsonl"):
            raise UserError(f"--samples {args.samples!r}: name a new .jsonl file")
        if len(args.tasks) != 1 or args.tasks[0] not in PRACTICE:
            raise UserError("--samples needs the number of one task that has samples: "
                            f"{', '.join(map(str, PRACTICE))}")
        rows = PRACTICE[args.tasks[0]]()
        write_text(args.samples, "".join(json.dumps(row) + "\n" for row in rows))
        print(f"wrote {len(rows)} lines to {args.samples}")
        return
    names = [path.name for path in sorted(EXERCISES.glob("[0-9][0-9]_*.py"))
             if not args.tasks or int(path.name[:2]) in args.tasks]
    folder = EXERCISES / "solutions" if args.solutions else Path(args.folder or EXERCISES)
    if not names or not any((folder / name).exists() for name in names):
        raise UserError(f"no exercise {args.tasks or ''} in {folder}; files keep their names, e.g. "
                        f"{folder}/01_correct.py")
    if args.folder:  # of a class, one student's
        print(f"== {folder}")
    total = out_of = 0
    for name in names:
        points, possible, missed = grade(folder / name)
        total, out_of = total + points, out_of + possible
        hunt, said = name.startswith(HUNTS), ""
        if hunt and not points:
            missed = [(what, why) for what, why in missed if ", expected " not in why]
        if {why for _, why in missed} <= {"not done yet"} and not points:
            mine, shipped = ((place / name).read_bytes().splitlines()
                             for place in (folder, EXERCISES))
            said = ("changed, but no bug is mended yet" if hunt and mine != shipped
                    else "not done yet")
        print(f"{name[:-3]:<18} {points:2d} / {possible}   {said}".rstrip())
        for what, why in missed if not said else []:
            print(f"      {what}\n          {why}")
    print(f"{'total':<18} {total:2d} / {out_of}")
    sys.exit(total < out_of)


if __name__ == "__main__":
    main()
