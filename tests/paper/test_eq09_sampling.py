"""Eq. 9: k judgments of an item, each with its own order of the responses, and `score` on top.

What a response quotes is never the verdict: tests/plumbing/test_hostile.py.
"""
import json
import math
import re
from collections import Counter

import pytest
from conftest import error_of

import grm
from grm import PreferenceExample, rule_reward, sample_judgments
from plumbing import generation
from plumbing.judge import TOY_BASE
from plumbing.runs import UserError, read_rows

POINTS = {"alpha": 2, "beta": 9, "gamma": 5, "delta": 7}


@pytest.fixture
def scripted(byte_tokenizer, monkeypatch):
    """scripted(write=None, finished=True) -> (tokenizer, calls): a judge that reads the prompt.

    It gives every word of POINTS its points, in displayed order, or what `write(shown)` says.
    """
    def install(write=None, finished=True):
        tokenizer, calls = byte_tokenizer("chatml"), []

        def generate(model, tokenizer, prompts, temperature, max_new_tokens, seeds, **options):
            calls.append((temperature, max_new_tokens, seeds))
            rows = []
            for prompt in map(tokenizer.decode, prompts):
                shown = re.findall(r"\[The Begin of Response[ \d]*\]\n(.*)\n\[The End", prompt)
                verdict = write(shown) if write else ", ".join(str(POINTS[w]) for w in shown)
                ids = tokenizer(f"Analysis: fine.\nScores: \\boxed{{{verdict}}}",
                                add_special_tokens=False)["input_ids"]
                ids += [tokenizer.eos_token_id] * finished
                rows.append(generation.Completion(ids, [-0.5] * len(ids), finished))
            return rows
        monkeypatch.setattr(generation, "generate", generate)
        return tokenizer, calls
    return install


def item(id="x", words=("alpha", "beta", "gamma"), **fields):
    return PreferenceExample(id, [{"role": "user", "content": "Which ?"}], list(words), **fields)


def orders(judgments):
    return {tuple(j.permutation) for j in judgments}


def test_every_sample_has_its_own_order_and_scores_come_back_in_the_original_one(scripted):
    """C24: the order is drawn per sample, and scores are mapped back to it."""
    tokenizer, calls = scripted()
    items = [item("x"), item("y", ["delta", "alpha"]), item("z", ["beta"])]
    results = sample_judgments(None, tokenizer, items, 24, temperature=0.7, seed=3,
                               max_new_tokens=99)
    for one, judgments in zip(items, results, strict=True):
        assert [j.sample for j in judgments] == list(range(24))
        for j in judgments:
            assert sorted(j.permutation) == list(range(len(one.responses))) and j.reason == "ok"
            assert j.scores == [POINTS[w] for w in one.responses]
            prompt = tokenizer.decode(j.prompt_ids)
            assert j.prompt == prompt  # as it was sent
            places = [prompt.index(f"\n{one.responses[i]}\n") for i in j.permutation]
            assert places == sorted(places)
            assert j.text.endswith("}") and j.completion_ids[-1] == tokenizer.eos_token_id
            assert len(j.logp) == len(j.completion_ids)
    drawn = Counter(tuple(j.permutation) for j in results[0])
    assert len(drawn) >= 5 and max(drawn.values()) <= 12 and len(orders(results[1])) == 2
    [(temperature, max_new_tokens, seeds)] = calls
    assert (temperature, max_new_tokens) == (0.7, 99) and len(set(seeds)) == 72
    assert (seeds[0], seeds[1], seeds[24]) == ("3/x/0", "3/x/1", "3/y/0")


def test_orders_and_seeds_depend_on_seed_id_and_sample_only(scripted):
    tokenizer, calls = scripted()
    items = [item(str(i)) for i in range(5)]

    def sampled(items, k, **options):
        return sample_judgments(None, tokenizer, items, k, **options)
    whole = sampled(items, 8, seed=1)
    alone = [sampled([one], 8, seed=1)[0] for one in items[::-1]][::-1]
    parts = [a + b for a, b in zip(sampled(items, 3, seed=1),
                                   sampled(items, 5, seed=1, first_sample=3), strict=True)]
    assert whole == alone == parts
    assert set(Counter(seed for *_, seeds in calls for seed in seeds).values()) == {3}
    drawn = [[j.permutation for j in judgments] for judgments in whole]
    assert [[j.permutation for j in js] for js in sampled(items, 8, seed=2)] != drawn
    assert len({str(permutations) for permutations in drawn}) == 5  # items share no order


def test_opposite_shared_and_original_orders(scripted):
    tokenizer, _ = scripted()
    [pairs] = sample_judgments(None, tokenizer, [item()], 24, orders="opposite")
    assert all(a.permutation == b.permutation[::-1]
               for a, b in zip(pairs[::2], pairs[1::2], strict=True)) and len(orders(pairs)) > 2
    [fixed] = sample_judgments(None, tokenizer, [item()], 4, orders="original")
    assert orders(fixed) == {(0, 1, 2)}
    groups = sample_judgments(None, tokenizer, [item(str(i)) for i in range(12)], 4,
                              orders="shared")
    # the members of a GRPO group answer one and the same prompt
    assert all(len({tuple(j.prompt_ids) for j in group}) == 1 for group in groups)
    assert len({tuple(group[0].permutation) for group in groups}) > 2
    assert all(j.scores == [2, 9, 5] for js in [pairs, fixed, *groups] for j in js)


def test_hint_names_the_best_response_where_it_is_shown(scripted):
    tokenizer, _ = scripted()
    best = item(rewards=[0, 1, 0])
    for hint in (True, False):
        for j in sample_judgments(None, tokenizer, [best], 12, hint=hint)[0]:
            prompt, place = tokenizer.decode(j.prompt_ids), j.permutation.index(1) + 1
            assert (f"The best response is: Response {place}\n" in prompt) == hint
            assert f"[The Begin of Response {place}]\nbeta\n" in prompt
            assert hint or "The best response" not in prompt


@pytest.mark.parametrize("written, finished, reason", [
    ("9, 5, 2", False, "truncated"),          # C21: cut off, whatever it quotes
    ("1, 2", True, "wrong_count"), ("x, y, z", True, "not_a_number"),
    ("0, 5, 11", True, "out_of_range"),
])
def test_c21_what_has_no_scores_has_a_reason_and_earns_minus_one(written, finished, reason,
                                                                 scripted):
    """C21: a judgment cut off by the length limit is invalid even if it holds a box."""
    tokenizer, _ = scripted(lambda shown: written, finished)
    [[j]] = sample_judgments(None, tokenizer, [item()], 1, orders="original")
    assert "\\boxed{" in j.text and (j.scores, j.reason) == (None, reason)
    assert rule_reward(j.scores, [1, 0, 0]) == -1.0


def test_ratings(scripted):
    def chosen(shown):
        return "1" if len(shown) == 1 else str(shown.index("beta") + 1)
    tokenizer, _ = scripted(chosen)
    [[single]] = sample_judgments(None, tokenizer, [item(words=["beta"])], 1, rating="train")
    assert single.scores == [1] and "0 or 1" in tokenizer.decode(single.prompt_ids)
    [best] = sample_judgments(None, tokenizer, [item()], 6, rating="best")
    assert all(j.scores == [0, 1, 0] for j in best)
    tokenizer, _ = scripted()
    [[many]] = sample_judgments(None, tokenizer, [item()], 1, rating="train")
    assert many.scores == [2, 9, 5] and "from 1 to 10" in tokenizer.decode(many.prompt_ids)


def test_score_is_the_sum_of_k_judgments(scripted):
    tokenizer, calls = scripted()
    assert grm.score(None, tokenizer, "Which ?", ["alpha", "beta"]) == [2, 9]
    assert grm.score(None, tokenizer, [{"role": "user", "content": "Which ?"}], ["gamma"]) == [5]
    assert grm.score(None, tokenizer, "Which ?", list(POINTS), k=4) == [8, 36, 20, 28]
    assert [temperature for temperature, *_ in calls] == [0.0, 0.0, 0.5]  # greedy unless it votes
    for bad in ([], "alpha", [1, 2]):  # a lone text is not a list of letters
        with pytest.raises(UserError):
            grm.score(None, tokenizer, "Which ?", bad)
    tokenizer, _ = scripted(lambda shown: "99, -5")  # clamped, as the released model's card does
    assert sorted(grm.score(None, tokenizer, "Which ?", ["a", "b"])) == [1, 10]
    tokenizer, _ = scripted(finished=False)
    assert all(map(math.isnan, grm.score(None, tokenizer, "Which ?", ["alpha", "beta"], k=3)))


# ----- the command -----

ITEM = {"id": "a", "prompt": "Hi", "responses": ["x", "y"], "rewards": [0, 1]}


def items_file(folder, *rows):
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_judges_a_file_and_continues(cli, tiny, tmp_path):
    data = items_file(tmp_path, ITEM, {**ITEM, "id": "b"})
    words = ["--data", data, "--model", tiny, "--max_new_tokens", 5, "--output", tmp_path / "out"]
    code, out, err = cli("grm", *words)
    assert code == 0 and "=== a" in out and "=== b" in out and "votes, 0 of 1" in out, err
    rows = read_rows(tmp_path / "out" / "judgments.jsonl")
    assert [row["id"] for row in rows] == ["a", "b"]
    for row in rows:
        [judgment] = row["judgments"]
        assert sorted(judgment["permutation"]) == [0, 1] and judgment["reason"] != "ok"
    code, out, _ = cli("grm", *words)  # judged items are not judged again
    assert code == 0 and "===" not in out
    assert read_rows(tmp_path / "out" / "judgments.jsonl") == rows


def test_what_is_printed_says_which_response_is_which_and_why_it_earns_what(cli, toy_tokenizer):
    """y1, y2 are the responses as they were given, wherever the judge saw them."""
    base = ["--model", TOY_BASE, "--k", 4, "--temperature", 1, "--show_prompt"]
    code, out, err = cli("grm", *base)
    assert code == 0, err
    example, head = grm.example_from_dict(grm.DEMO), out.split("--- prompt")[0].splitlines()
    assert head[-2:] == [f"y{i} (label {r:g}): {text}" for i, r, text in zip(
        (1, 2), example.rewards, example.responses)]
    total, orders = [0, 0], set()
    *parts, last = re.split(r"^--- prompt of ", out, flags=re.M)[1:]
    last, votes = last.split("\n--- votes, ")
    for number, part in enumerate([*parts, last]):
        title, prompt, place, text, told = re.fullmatch(
            r"(.*?)\n(.*)\n--- (judgment.*?)\n(.*)\n--- (.*)\n?", part, re.S).groups()
        shown = [int(i) - 1 for i in re.findall(r"Response \d is y(\d)", place)]
        chat = grm.build_prompt(example.permuted(shown), "compact")
        assert title == f"judgment {number}" and prompt == toy_tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True)
        points, reason = grm.parse_scores(text, 2)
        assert reason == "ok"
        scores = grm.unpermute(points, shown)
        right = scores[0] > scores[1]
        assert told.strip() == (f"parse: ok; y1 {scores[0]}, y2 {scores[1]}; "
                        + ("correct (Eq. 10), reward +1 (Eq. 11)" if right else
                           "not correct (Eq. 10), reward -1 (Eq. 11)"))
        total = [t + s for t, s in zip(total, scores)]
        orders.add(tuple(shown))
    assert number == 3 and len(orders) == 2
    assert votes.strip() == f"4 of 4 judgments valid: y1 {total[0]}, y2 {total[1]}"
    single = cli("grm", *base[:2], "--prompt", "Hi", "--response", "x")[1]
    assert "y1: x\n" in single and "Eq." not in single and "prompt of" not in single


@pytest.mark.parametrize("words, named", [
    (["--prompt", "Hi"], "--response"), (["--response", "x"], "--prompt"),
    (["--max_new_tokens", "0"], "--max_new_tokens"), (["--data", "none.jsonl"], "none.jsonl"),
    (["--data", "items.jsonl"], "line 2: field 'responses'"),
])
def test_mistakes_end_in_one_line(words, named, cli, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    items_file(tmp_path, ITEM, {**ITEM, "id": "b", "responses": []})
    assert named in error_of(cli("grm", "--model", tiny, *words))
