"""Grades the exercises: a line per task with its points, what was missed, and the total.

    python -m exercises.check                           # the files in exercises/, as you fill them
    python -m exercises.check 3 5                       # only tasks 3 and 5
    python -m exercises.check --folder my_answers       # the files of another folder (same names)
    python -m exercises.check --solutions               # the solutions: all points
    python -m exercises.check --samples practice.jsonl  # writes the practice samples of task 7

task_NN(t) below lists the parts of a task: (points, what is tested, a function of the student's
module t, what it must give). Answers are compared with the paper's own examples and with this
repository. Exit code 0 if nothing was missed.
"""
import argparse
import contextlib
import functools
import importlib.util
import json
import math
import random
import signal
import sys
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
              "Scores: ", "8, 9", "}", ","]
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
        (1, "50 items with unparsed judgments, as in infer_scale.py", lambda: [
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

    def leak():
        train, held = zip(t.split(rft), t.split(grm))
        kept = [sorted(a + b) == sorted(rows) for a, b, rows in zip(train, held, (rft, grm))]
        both = {r[0] for part in train for r in part} & {r[0] for part in held for r in part}
        return kept, len(both), 0.05 < len({r[0] for r in held[0]}) / 400 < 0.15
    return [
        (2, "what the meta RM may learn from", lambda: labels(
            one(False, [2, 7], [0, 1], [0, 1]), one(True, [7, 2], [0, 1], [0, 1]),
            one(False, None, [0, 1], [0, 1])), [1.0]),
        (2, "labels: Table 17 (a tie, then two that saw the reverse order), and two lists of three",
         lambda: labels(
            one(False, [8, 8], [0, 1], [0, 1]), one(False, [9, 5], [1, 0], [0, 1]),
            one(False, [10, 7], [1, 0], [0, 1]), one(False, [1, 2, 9], [2, 0, 1], [0, 1, 0]),
            one(False, [9, 1, 2], [2, 0, 1], [0, 1, 0])), [0.0, 1.0, 1.0, 1.0, 0.0]),
        (2, "split: (all rows kept, items on both sides, about a tenth held out)", leak,
         ([True, True], 0, True)),
    ]


@functools.cache
def guided_samples(count, seed, k=16):
    """Toy items with k judgments each: noisy ones on half of the items, mostly clean on the others.

    The meta logits are simulated: normal around +2 (correct) or -2, but one in ten is high whatever
    the judgment.
    """
    rng, rows = random.Random(f"exercise 7/{seed}"), []
    for number in range(count):
        item = world.make_item(rng, n=rng.choice([3, 4, 5]))
        clean = rng.choice([0.0, 0.9])
        scores = []
        for _ in range(k):
            order = rng.sample(range(len(item.responses)), len(item.responses))
            view = item.permuted(order)
            view.extra = {"shown_levels": [item.extra["levels"][i] for i in order]}
            text = make_base.judgment(rng, view, noisy=rng.random() >= clean, rating="1-10")
            scores.append(unpermute(parse_scores(text, len(order))[0], order))
        centre = [2 if is_correct(s, item.rewards) else -2 for s in scores]
        logits = [abs(rng.gauss(0, 3)) if rng.random() < 0.1 else rng.gauss(c, 2) for c in centre]
        rows.append({"id": f"{seed}-{number}", "rewards": item.rewards, "n": len(item.rewards),
                     "meta_logits": logits, "samples": [{"scores": s} for s in scores]})
    return rows


def task_07(t):
    rows = guided_samples(500, "grade")

    @functools.cache
    def rule():
        extremes = [[-9.0] * 16, [9.0] * 16, [0.0]]
        for logits in [row["meta_logits"] for row in rows] + extremes:
            m = t.k_meta(list(logits))
            if type(m) is not int or not 1 <= m <= len(logits):
                raise ValueError(f"{m!r} is not an integer from 1 to {len(logits)}, for logits "
                                 f"such as {logits[0]:.1f}")
        return [t.k_meta(list(row["meta_logits"])) for row in rows]

    def accuracy(method, numbers):
        return [item_credit(row, 16, method, m) for row, m in zip(rows, numbers)]

    def lead(method, numbers):  # lower end of the paired interval
        return paired_ci(accuracy(method, numbers), accuracy("guided", rule()))[0]
    return [
        (1, "an integer from 1 to k for every item", lambda: len(rule()), 500),
        (1, "above as many judgments drawn at random", lambda: lead("random", rule()) > 0, True),
        (2, "above k/2", lambda: lead("guided", [8] * 500) > 0, True),
        (2, "above every fixed number (list: those that are as good)", lambda: [
            m for m in (1, 2, 4, 8, 12, 16)
            if sum(accuracy("guided", [m] * 500)) >= sum(accuracy("guided", rule()))], []),
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
    uneven = [1.0] * 40 + [0.0] * 360
    sizes = list(range(40)) + [f"large {i // 9}" for i in range(360)]

    def near(interval, expected, tolerance):
        return all(abs(a - b) < tolerance for a, b in zip(interval, expected))
    return [
        (1, "every value alone: as eval.py", lambda: near(
            t.bootstrap_interval(values), bootstrap_ci(values), 0.02), True),
        (2, "twenty copies of each value add nothing", lambda: near(
            t.bootstrap_interval(copies, prompts), bootstrap_ci(values), 0.02), True),
        (1, "a large cluster counts all its values", lambda: near(
            t.bootstrap_interval(uneven, sizes),
            bootstrap_ci(uneven, clusters=list(map(str, sizes))), 0.02), True),
        (1, "same seed, same interval; no values, ValueError", lambda: [
            t.bootstrap_interval(values, seed=3) == t.bootstrap_interval(values, seed=3),
            raises(ValueError, lambda: t.bootstrap_interval([]))], [True, True]),
    ]


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


def task_10(t):
    fair, first, last = judged((0, 0), 500, 1), judged((2, 0), 500, 2), judged((0, 2), 500, 3)
    copied = judged((0, 0), 60, 6, 32, one_order=True)
    return [
        (1, "share and expected share, as in eval.py", lambda: [
            tuple(t.first_position(rows)) for rows in (fair, first)],
         [tuple(report(rows)[key] for key in ("first_position", "first_expected"))
          for rows in (fair, first)]),
        (1, "a judge that likes the first place", lambda: bool(t.is_biased(first)), True),
        (1, "a judge that likes the last place", lambda: bool(t.is_biased(last)), True),
        (1, "a fair judge", lambda: bool(t.is_biased(fair)), False),
        (1, "a fair judge, 60 items with 32 copies of the same judgment", lambda: bool(
            t.is_biased(copied)), False),
    ]


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
def limited(seconds=60):
    """TooLong after so many seconds, then every second: an answer may never end.

    Only where the system has alarms (not on Windows).
    """
    def late(*_):
        raise TooLong(f"took more than {seconds} seconds")
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


def grade(path):
    """(points, possible points, [(what was missed, why)]) of one file."""
    task = globals()[f"task_{path.stem[:2]}"]
    points, possible, missed = 0, sum(worth for worth, *_ in task(None)), []
    try:
        with limited():
            module = load(path)
    except FileNotFoundError:
        return 0, possible, [(path.name, "no such file")]
    except (Exception, SystemExit, TooLong) as error:  # whatever a student's file may raise
        return 0, possible, [(path.name, f"does not load: {error!r}")]
    for worth, what, answer, expected in task(module):
        try:
            with limited():
                got = answer()
            why = None if agree(got, expected) else f"got {got!r}, expected {expected!r}"
        except NotImplementedError:
            why = "not done yet"
        except (Exception, SystemExit, TooLong) as error:
            why = repr(error)
        points += worth if why is None else 0
        missed += [(what, why)] if why else []
    return points, possible, missed


@command_line
def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tasks", type=int, nargs="*", help="numbers of the tasks; default all")
    parser.add_argument("--folder", default=str(EXERCISES),
                        help="where the answers are; default exercises/ itself")
    parser.add_argument("--solutions", action="store_true", help="grade the solutions instead")
    parser.add_argument("--samples",
                        help="write the practice samples of task 7 to this .jsonl file instead")
    args = parser.parse_args()
    if args.samples:
        rows = guided_samples(500, "practice")
        write_text(args.samples, "".join(json.dumps(row) + "\n" for row in rows))
        print(f"wrote 500 items with 16 judgments each to {args.samples}")
        return
    names = [path.name for path in sorted(EXERCISES.glob("[0-9][0-9]_*.py"))
             if not args.tasks or int(path.name[:2]) in args.tasks]
    folder = EXERCISES / "solutions" if args.solutions else Path(args.folder)
    if not names or not any((folder / name).exists() for name in names):
        raise UserError(f"no exercise {args.tasks or ''} in {folder}; files keep their names, e.g. "
                        f"{folder}/01_correct.py")
    total = out_of = 0
    for name in names:
        points, possible, missed = grade(folder / name)
        total, out_of = total + points, out_of + possible
        untouched = {why for _, why in missed} == {"not done yet"} and not points
        print(f"{name[:-3]:<18} {points:2d} / {possible}" + "   not done yet" * untouched)
        for what, why in missed if not untouched else []:
            print(f"      {what}: {why if len(why) <= 200 else why[:197] + '...'}")
    print(f"{'total':<18} {total:2d} / {out_of}")
    sys.exit(total < out_of)


if __name__ == "__main__":
    main()
