r"""Eq. 7: the scores {S_i} = f_extract(C), read from the last \boxed{} of a judgment."""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grm import parse_judgment, parse_scores, unpermute

REASONS = ("ok", "no_box", "wrong_count", "not_a_number", "out_of_range")


@pytest.mark.parametrize("text, scores", [
    (r"Scores: \boxed{8, 9}", [8, 9]),            # App. G
    (r"**Scores: \boxed{8, 8}**", [8, 8]),        # Table 17
    (r"### Output: \boxed{10, 7}", [10, 7]),
    (r"Scores: \\boxed{8, 9}", [8, 9]),
    ("Scores: \\boxed {8,\n 9 }", [8, 9]),
    ("Scores: $\\boxed{1,10}$.\n\nThanks [1, 2] {3, 4}", [1, 10]),
    (r"The answer says \boxed{1, 10}, I say \boxed{9, 2}", [9, 2]),  # a quote is no verdict
])
def test_outputs_of_the_paper_and_their_kin_parse(text, scores):
    assert parse_scores(text, 2) == (scores, "ok")


@pytest.mark.parametrize("reason, n, texts", [
    ("no_box", 2, ["", "Scores: 8, 9", "Scores: [8, 9]", r"Scores: \boxed{8, 9"]),
    ("wrong_count", 2, [r"\boxed{8}", r"\boxed{8, 9, 7}", r"\boxed{}"]),
    ("wrong_count", 1, [r"\boxed{8, 9}"]),
    ("not_a_number", 1, [r"\boxed{}"]),
    ("not_a_number", 2, [r"\boxed{x, x}", r"\boxed{8.5, 9}", r"\boxed{8/10, 9/10}", 
                         r"\boxed{8, }", r"\boxed{٨, ٩}", r"\boxed{8 9, 1}",
                         r"\boxed{nan, inf}", r"\boxed{1e1, 2}"]),
    ("out_of_range", 2, [r"\boxed{0, 9}", r"\boxed{11, 9}", r"\boxed{-3, 9}"]),
])
def test_c24_what_does_not_parse_is_none_with_its_reason(reason, n, texts):
    """C24: a failure to parse mapped to a real score (0, 0.5, a random one) would be a verdict."""
    assert [parse_scores(text, n) for text in texts] == [(None, reason)] * len(texts)


@pytest.mark.parametrize("last", [r"\boxed{9}", r"\boxed{a, b}", r"\boxed{0, 99}",
                                  r"\boxed{\textbf{9}, 2}", r"\boxed{{9, 2}}"])
def test_only_the_last_box_counts_even_if_it_does_not_parse(last):
    quoted = r"The response claims \boxed{1, 10}. My verdict: "
    assert parse_scores(quoted + last, 2)[0] is None


@pytest.mark.parametrize("text, found", [
    (r"<think>I say \boxed{9, 2}, wait.</think> \boxed{2, 9}", ([2, 9], "ok")),
    (r"<think>hm</think>Scores: \boxed{2, 9}", ([2, 9], "ok")),
    (r"<think>I say \boxed{9, 2}.</think> Hm.", (None, "no_box")),
    (r"I say \boxed{9, 2}.</think> Hm.", (None, "no_box")),   # the prompt opened the thought
    (r"<think>I say \boxed{9, 2}.", (None, "no_box")),        # it never came to an end
    (r"<think>a</think>\boxed{2, 9}<think>\boxed{9, 2}", ([2, 9], "ok")),
])
def test_a_box_inside_a_thought_is_no_verdict(text, found):
    assert parse_scores(text, 2) == found
    if found[0]:
        assert parse_judgment(text.replace("2, 9", "2"), 2, "best") == ([0, 1], "ok")


@pytest.mark.parametrize("text, found", [
    (r"\boxed{-3, 99}", ([1, 10], "ok")), (r"\boxed{5, 7}", ([5, 7], "ok")),
    (r"\boxed{5}", (None, "wrong_count")), (r"\boxed{x, 5}", (None, "not_a_number")),
])
def test_clamping_moves_to_the_ends_and_repairs_nothing_else(text, found):
    assert parse_scores(text, 2, clamp=True) == found


@pytest.mark.parametrize("rating, n, text, found", [
    ("0-1", 1, r"\boxed{1}", ([1], "ok")), ("0-1", 1, r"\boxed{0}", ([0], "ok")),
    ("0-1", 1, r"\boxed{2}", (None, "out_of_range")),
    ("1-10", 1, r"\boxed{0}", (None, "out_of_range")),
    ("best", 3, r"\boxed{3}", ([0, 0, 1], "ok")),        # Eq. 6: the number of the best response
    ("best", 3, r"\boxed{4}", (None, "out_of_range")),
    ("best", 3, r"\boxed{0}", (None, "out_of_range")),
    ("best", 3, r"\boxed{1, 2, 3}", (None, "wrong_count")),
])
def test_ratings_and_their_ranges(rating, n, text, found):
    assert parse_judgment(text, n, rating) == found


@given(st.lists(st.sampled_from(["\\boxed{", "\\boxed", "}", "{", "8", "9", "10", "0", "-1", ", ",
                                 ",", "x", "\\", " ", "\n", "٣"]) | st.text(max_size=5),
                max_size=14).map("".join),
       st.integers(1, 5), st.sampled_from(["1-10", "0-1", "best"]), st.booleans())
def test_parser_never_crashes_and_never_leaves_the_range(text, n, rating, clamp):
    n = 1 if rating == "0-1" else max(2, n) if rating == "best" else n
    scores, reason = parse_judgment(text, n, rating, clamp)
    assert reason in REASONS and (scores is None) == (reason != "ok")
    if scores is not None:
        lo, hi = (1, 10) if rating == "1-10" else (0, 1)
        assert len(scores) == n and all(type(s) is int and lo <= s <= hi for s in scores)


@given(st.lists(st.integers(1, 10), min_size=1, max_size=6),
       st.text(max_size=60).filter(lambda t: "boxed" not in t))
def test_what_is_written_in_the_format_is_read_back(scores, text):
    box = "\\boxed{" + ", ".join(map(str, scores)) + "}"
    assert parse_scores(f"{text}\nScores: {box}\n{text}", len(scores)) == (scores, "ok")


def test_parsing_hostile_text_takes_no_time():
    for text in ("\\boxed{" * 50_000, "\\boxed" + " " * 100_000, "\\boxed{" + "1," * 50_000 + "}",
                 "\\boxed{" + "9" * 100_000 + "}"):
        assert parse_scores(text, 2)[0] is None


def test_table_17_shown_scores_are_mapped_back():
    """The paper's case: judgments 2 and 3 saw the two responses in reversed order."""
    shown = [(r"**Scores: \boxed{8, 8}**", [0, 1]), (r"\boxed{9, 5}", [1, 0]),
             (r"\boxed{10, 7}", [1, 0])]
    scores = [unpermute(parse_scores(text, 2)[0], order) for text, order in shown]
    assert scores == [[8, 8], [5, 9], [7, 10]]
