"""A GRM as a best-of-N selector and as the reward of TRL's GRPOTrainer, with tiny models."""
import sys

import pytest
import torch
from conftest import error_of

import grm
from extras import best_of_n, trl_reward
from plumbing import generation

PLAYED = ["--prompt", "Hi", "--n", 5, "--answer_tokens", 6, "--k", 3]


def test_best_of_n_keeps_what_the_judge_scores_highest(cli):
    lines = cli("extras.best_of_n", "--k", 2, "--seed", 1)[1].splitlines()
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


def test_reward_judges_each_group_as_one_list(monkeypatch):
    seen = []

    def played(model, tokenizer, prompt, responses, k, **options):
        seen.append((prompt, responses))
        if prompt == "b":
            return [float("nan")] * len(responses)
        return [k * (i + 1.5) for i in range(len(responses))]
    monkeypatch.setattr(trl_reward, "score", played)
    reward = trl_reward.grm_reward(None, None, k=4)
    points = reward(prompts=["a", "a", "b", "b"], completions=["1", "2", "3", "4"], extra=[0] * 4)
    assert points == [1.5, 2.5, 0.0, 0.0] and seen == [("a", ["1", "2"]), ("b", ["3", "4"])]
    chats = [[{"role": "assistant", "content": text}] for text in ("1", "2")]
    query = [{"role": "user", "content": "a"}]
    assert reward(prompts=[query] * 2, completions=chats) == [1.5, 2.5]
    assert seen[-1] == (query, ["1", "2"])


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
