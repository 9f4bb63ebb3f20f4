"""results/failures.py and results/principles.py: constructed judgments, one for each class; which principles are kept."""
import random
import sys

import pytest
from conftest import ROOT

sys.path.insert(1, str(ROOT / "results"))
from grm import Judgment, PreferenceExample, build_prompt, sample_judgments, unpermute
from results import failures, principles
from toy_world import world as toy


def item(domain, *levels):
    """A toy item of these levels; the last response is the best."""
    rows = [dict.fromkeys(toy.CRITERIA, 0) | row for row in levels]
    values = [toy.utility(row, domain) for row in rows]
    assert values.index(max(values)) == len(rows) - 1 and values.count(max(values)) == 1
    return PreferenceExample("x", [{"role": "user", "content": "?"}], ["text"] * len(rows), [0] * (len(rows) - 1) + [1], domain,
                             extra={"levels": rows})


def sample(item, criteria, verdicts=None, scores=None, order=None):
    """What a judge writes: these criteria, the true verdicts unless told otherwise, scores that follow unless told otherwise."""
    order = order or list(range(len(item.responses)))[::-1]
    told = verdicts or item.extra["levels"]
    text, follow = toy.write_judgment(criteria, [told[i] for i in order], "1-10")
    return {"text": text, "permutation": order, "scores": unpermute(follow, order) if scores is None else scores}


CHAT = [("tone", 40), ("relevance", 30), ("detail", 20), ("accuracy", 10)]
PLAIN = item("chat", {"tone": -1}, {"tone": 1})


@pytest.mark.parametrize("expected, case", [
    # the verdict on tone is turned round, with the true one the judge's own weights would have been right
    ("wrong critique", (PLAIN, sample(PLAIN, CHAT, [{**PLAIN.extra["levels"][0], "tone": 2}, PLAIN.extra["levels"][1]]))),
    # both criteria that decide are named and judged rightly, and the light one outweighs the heavy one
    ("wrong weights", (it := item("chat", {"detail": 2, "tone": -1}, {"detail": -1, "tone": 1}), sample(it, [("tone", 10), ("detail", 90)]))),
    # what decides is not named: the responses look alike, or the worse one looks better
    ("wrong principles", (PLAIN, sample(PLAIN, [("detail", 100)]))),
    ("wrong principles", (it := item("chat", {"detail": 1, "tone": -1}, {"detail": -1, "tone": 1}), sample(it, [("detail", 100)]))),
    # 5.5 + 3.5 x value: the difference is lost between two integers
    ("tie", (it := item("chat", {"accuracy": 0}, {"accuracy": 1}), sample(it, [("accuracy", 10), ("tone", 90)]))),
    ("wrong sum", (PLAIN, sample(PLAIN, CHAT, scores=[9, 3]))),
    ("unparsed", (PLAIN, {**sample(PLAIN, CHAT), "scores": None})),
    ("unparsed", (PLAIN, {**sample(PLAIN, CHAT), "text": "Scores: \\boxed{9, 3}"})),
])
def test_every_class_of_failure(expected, case):
    example, judged = case
    assert failures.classify(judged, example) == expected


def test_verdicts_are_read_in_the_original_order_of_the_responses():
    rng = random.Random(0)
    for example in toy.items("test", 60):
        order = rng.sample(range(len(example.responses)), len(example.responses))
        judged = sample(example, CHAT, order=order)
        weights, verdicts = failures.read_judgment(judged["text"], order)
        assert weights == dict(CHAT)
        assert verdicts == [{name: row[name] for name, _ in CHAT} for row in example.extra["levels"]]


def test_a_verdict_that_is_missing_makes_no_judgment_right():
    judged = sample(PLAIN, CHAT, scores=[3, 3])
    judged["text"] = judged["text"].replace("Response 2: tone", "Response 2: nothing")
    assert failures.classify(judged, PLAIN) == "wrong critique"


# ----- principles -----

def judged(text, scores):
    return Judgment(0, [0, 1], [], [], text, scores, "ok", [])


def test_the_filter_keeps_the_principles_of_correct_judgments_only():
    right, wrong = "Specific Criteria: tone 100%.\nAnalysis: ...", "Specific Criteria: detail 100%.\nAnalysis: ..."
    example = PreferenceExample("x", [], ["a", "b"], [0, 1])
    found = principles.filtered([judged(wrong, [9, 1]), judged(right, [1, 9]), judged(wrong, [5, 5]), judged("none", [1, 9])], example, ["own"], 0)
    assert found == (["tone 100%."], 1)
    assert principles.filtered([judged(wrong, [9, 1])] * 4, example, ["own"], 0) == (["own"], 0)


def test_principles_are_given_item_by_item(tiny_model, toy_tokenizer):
    """A dict of principles judges each item with its own: the prompts, and so the judgments, are those of one call per item."""
    model, examples = tiny_model(), [e for e in toy.items("test", 6) if len(e.responses) > 1]
    given = {e.id: [f"tone {10 * (i + 1)}%, detail 10%."] for i, e in enumerate(examples)}
    options = {"template": "compact", "max_new_tokens": 5, "orders": "original"}
    together = sample_judgments(model, toy_tokenizer, examples, 1, 0.0, principles=given, **options)
    for example, [j] in zip(examples, together):
        [[alone]] = sample_judgments(model, toy_tokenizer, [example], 1, 0.0, principles=given[example.id], **options)
        assert j.prompt_ids == alone.prompt_ids and j.completion_ids == alone.completion_ids
        assert given[example.id][0] in build_prompt(example, "compact", principles=given[example.id])[0]["content"]
    assert principles.principles_in(toy.judgment(random.Random(0), toy.shown(random.Random(0), examples[0]), False, "1-10"))
