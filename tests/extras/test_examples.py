"""A GRM as a best-of-N selector and as the reward of TRL's GRPOTrainer, with tiny models."""
import re
import sys

import pytest
import torch
from conftest import error_of

import grm
from extras import best_of_n, trl_reward
from plumbing import generation
from plumbing.judge import TOY_BASE

PLAYED = ["--prompt", "Hi", "--n", 5, "--answer_tokens", 6, "--k", 3]


def test_best_of_n_keeps_what_the_judge_scores_highest(cli):
    lines = cli("extras.best_of_n", "--judge", TOY_BASE, "--k", 2, "--seed", 1)[1].splitlines()
    totals = [float(line.split()[0]) for line in lines[1:-1]]
    assert len(totals) > 1 and totals == sorted(totals, reverse=True) and totals[0] > totals[-1]
    assert lines[-1] == f"best of {len(totals)}: {lines[1].split(maxsplit=1)[1]}"
    assert "together" in error_of(cli("extras.best_of_n", "--prompt", "Hi"))


@pytest.mark.parametrize("votes, said", [
    ([0.0, 0.0, 1.0, 0.0, 0.0], "best of 5: {2}"),
    ([float("nan")] * 5, "no judgment parsed, nothing is chosen")])
def test_best_of_n_of_a_policys_own_texts(votes, said, tiny, monkeypatch, cli):
    seen = []

    def played(model, tokenizer, prompt, responses, **options):
        seen.append((prompt[-1]["content"], responses, options["k"]))
        return votes
    monkeypatch.setattr(best_of_n, "score", played)
    lines = cli("extras.best_of_n", "--policy", tiny, *PLAYED)[1].splitlines()
    [(prompt, responses, k)] = seen
    assert (prompt, k) == ("Hi", 3) and len(set(responses)) > 1
    assert lines[-1] == said.format(*responses)


def test_without_trl_the_way_to_it_is_named(monkeypatch, cli):
    monkeypatch.setitem(sys.modules, "trl", None)
    said = error_of(cli("extras.trl_reward"))
    assert 'trl is missing or too old: pip install "trl>=1.16,<2"' in said


@pytest.fixture
def lists(monkeypatch):
    """The lists that the reward has judged; a completion's text is its points, "?" is unparsed."""
    seen = []

    def played(judge, tokenizer, chats, *rest, **options):
        found = []
        for [message] in chats:
            shown = re.findall(r"Response \d+\]\n(.*?)\n\[The End", message["content"])
            if shown not in seen[-1:]:
                seen.append(shown)
            found.append(generation.Completion([], [], True, text=f"\\boxed{{{', '.join(shown)}}}"))
        return found
    monkeypatch.setattr(grm, "complete", played)
    return seen


QUERY = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize("prompts, completions, lists_of", [
    ("aabb", "1234", ["12", "34"]),
    ("aaaa", "1234", ["12", "34"]),        # the same prompt twice in a batch
    ("abab", "1234", ["13", "24"]),        # interleaved
    ("aabbb", "12345", [*"12345"]),        # a group that is split over two devices
    ("abb", "123", [*"123"]),
    ("aabb", "12?4", ["12", "?4"]),        # a list that does not parse
    ([QUERY, QUERY], [[{"role": "assistant", "content": text}] for text in "12"], ["12"])])
def test_reward_lists_are_groups_wherever_they_stand(prompts, completions, lists_of, lists, capsys):
    reward = trl_reward.grm_reward(None, None, group=2, k=3, orders="original")
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    lost = next((group for group in lists_of if "?" in group), "")
    for _ in range(2):
        lists.clear()
        points = reward(prompts=list(prompts), completions=list(completions), extra=[0] * 4)
        assert points == [None if text in lost else float(text) for text in texts]
        assert lists == [list(group) for group in lists_of]
    assert capsys.readouterr().out.count("no whole groups of 2") == (len(lists_of[0]) == 1)


def test_reward_is_the_mean_of_the_judgments_that_parse(monkeypatch):
    def played(judge, tokenizer, chats, *rest, **options):
        texts = [r"\boxed{8, 4}", "lost", r"\boxed{8}", "cut"]
        return [generation.Completion([], [], text != "cut", text=text) for text in texts]
    monkeypatch.setattr(grm, "complete", played)
    reward = trl_reward.grm_reward(None, None, 2, k=4, orders="original")
    assert reward(prompts=["a", "a"], completions=["x", "y"]) == [8.0, 4.0]


def test_trl_trains_a_policy_on_the_reward_of_a_real_judge(tiny, tmp_path, monkeypatch, cli):
    pytest.importorskip("trl")
    given, trained = [], []
    load, grm_reward = generation.load_model, trl_reward.grm_reward

    def remembered(*args, **options):
        trained.append(load(*args, **options)[0])
        return trained[-1], load(*args)[1]

    def spied(*args, **options):
        reward = grm_reward(*args, **options)

        def wrapped(**columns):
            given.append(reward(**columns))
            return given[-1]
        return wrapped
    monkeypatch.setattr(trl_reward, "grm_reward", spied)
    monkeypatch.setattr(trl_reward, "load_model", remembered)
    # all of a group's texts differ, so a judge can tell them apart
    monkeypatch.setattr(grm, "parse_judgment", lambda text, n, *_: (
        [1 + len(text) % 9, *range(1, n)], "ok"))
    code, out, err = cli("extras.trl_reward", "--policy", tiny, "--output", tmp_path / "trl")
    assert code == 0, err
    assert [len(rewards) for rewards in given] == [8, 8] and len(set(given[0])) > 1
    means = [round(sum(rewards) / 8, 2) for rewards in given]
    assert out.splitlines()[-1] == f"mean points: {means}"
    before, after = load(tiny)[0].state_dict(), trained[0].state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
