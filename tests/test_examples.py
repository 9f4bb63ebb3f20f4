"""The examples: a GRM as a best-of-N selector and as the reward of TRL's GRPOTrainer, with tiny models."""
import re
import sys

import pytest
import torch
from conftest import ROOT, make_tiny_model

sys.path.insert(0, str(ROOT / "examples"))
import grm  # noqa: E402
from extras import (
    best_of_n,  # noqa: E402
    trl_reward,  # noqa: E402
)
from plumbing import generation  # noqa: E402
from plumbing.runs import save_model  # noqa: E402


@pytest.fixture(scope="module")
def policy(tmp_path_factory, toy_tokenizer):
    folder = tmp_path_factory.mktemp("policy") / "model"
    save_model(folder, make_tiny_model("llama", len(toy_tokenizer), toy_tokenizer.eos_token_id, toy_tokenizer.pad_token_id), toy_tokenizer)
    return str(folder)


def run(monkeypatch, capsys, module, *words):
    monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, words)])
    module.main()
    return capsys.readouterr().out.splitlines()


def test_best_of_n_keeps_what_the_judge_scores_highest(monkeypatch, capsys):
    lines = run(monkeypatch, capsys, best_of_n, "--k", 2, "--seed", 1)
    totals = [float(line.split()[0]) for line in lines[1:-1]]
    assert len(totals) > 1 and totals == sorted(totals, reverse=True) and totals[0] > totals[-1]
    assert re.fullmatch(rf"best of {len(totals)}: (.*)", lines[-1])[1] == lines[1].split(maxsplit=1)[1]


def test_best_of_n_of_a_policys_own_texts(policy, monkeypatch, capsys):
    seen = []

    def played(model, tokenizer, prompt, responses, **options):
        seen.append((prompt, responses, options["k"]))
        return [float(i == 2) for i in range(len(responses))]
    monkeypatch.setattr(best_of_n, "score", played)
    lines = run(monkeypatch, capsys, best_of_n, "--policy", policy, "--prompt", "Hi", "--n", 5, "--answer_tokens", 6, "--k", 3)
    [(prompt, responses, k)] = seen
    assert prompt[-1]["content"] == "Hi" and len(set(responses)) > 1 and k == 3 and lines[-1] == f"best of 5: {responses[2]}"
    monkeypatch.setattr(best_of_n, "score", lambda *_, **__: [float("nan")] * 5)  # no judgment parsed
    assert "nothing is chosen" in run(monkeypatch, capsys, best_of_n, "--policy", policy, "--prompt", "Hi", "--n", 5)[-1]


def test_without_trl_the_way_to_it_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.setattr(sys, "argv", ["trl_reward.py"])
    with pytest.raises(SystemExit) as stop:
        trl_reward.main()
    assert stop.value.code == 2 and 'trl is missing or too old: pip install "trl>=1.16,<2"' in capsys.readouterr().err


def test_reward_judges_each_group_as_one_list(monkeypatch):
    seen = []

    def played(model, tokenizer, prompt, responses, k, **options):
        seen.append((prompt, responses))
        return [float("nan")] * len(responses) if prompt == "b" else [k * (i + 1.5) for i in range(len(responses))]
    monkeypatch.setattr(trl_reward, "score", played)
    reward = trl_reward.grm_reward(None, None, k=4)
    assert reward(prompts=["a", "a", "b", "b"], completions=["1", "2", "3", "4"], extra=[0] * 4) == [1.5, 2.5, 0.0, 0.0]
    assert seen == [("a", ["1", "2"]), ("b", ["3", "4"])]
    chats = [[{"role": "assistant", "content": text}] for text in ("1", "2")]
    assert reward(prompts=[[{"role": "user", "content": "a"}]] * 2, completions=chats) == [1.5, 2.5] and seen[-1][1] == ["1", "2"]


def test_trl_trains_a_policy_on_the_reward_of_a_real_judge(policy, tmp_path, monkeypatch, capsys):
    pytest.importorskip("trl")
    given, trained, load = [], [], generation.load_model

    def remembered(*args, **options):
        trained.append(load(*args, **options)[0])
        return trained[-1], load(*args)[1]

    def spied(*args, **options):
        reward = grm_reward(*args, **options)

        def wrapped(**columns):  # all of a group's texts differ, so a judge can tell them apart
            given.append(reward(**columns))
            return given[-1]
        return wrapped
    grm_reward = trl_reward.grm_reward
    monkeypatch.setattr(trl_reward, "grm_reward", spied)
    monkeypatch.setattr(trl_reward, "load_model", remembered)
    monkeypatch.setattr(grm, "parse_judgment", lambda text, n, *_: ([1 + len(text) % 9, *range(1, n)], "ok"))
    lines = run(monkeypatch, capsys, trl_reward, "--policy", policy, "--output", tmp_path / "trl")
    assert len(given) == 2 and all(len(rewards) == 8 for rewards in given) and len(set(given[0])) > 1
    means = [round(sum(rewards) / 8, 2) for rewards in given]
    assert lines[-1] == f"mean points: {means}"
    before, after = load(policy)[0].state_dict(), trained[0].state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
