"""The toy world: disjoint splits, unique truth, readable text; the shipped base model: loads, and is worth training."""
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from grm import build_prompt, encode_chat, is_correct, parse_scores, sample_judgments
from toy_world import world as toy

ROOT = Path(__file__).resolve().parent.parent


def text_of(item):
    return item.prompt[0]["content"], *item.responses


def test_splits_are_disjoint_and_seeded():
    splits = {name: {text_of(i) for i in toy.items(name, 300)} for name in ("train", "validation", "test")}
    assert all(len(s) == 300 for s in splits.values())
    assert not splits["train"] & splits["test"] and not splits["train"] & splits["validation"]
    assert [i.id for i in toy.items("test", 5)] == [i.id for i in toy.items("test", 5)]
    assert not {text_of(i) for i in toy.items("train", 300, seed=1)} & splits["test"]


def test_truth_is_the_argmax_of_hidden_utility():
    for item in toy.items("test", 300):
        values = [toy.utility(levels, item.domain) for levels in item.extra["levels"]]
        if len(values) == 1:
            assert item.rewards == [int(values[0] > 0)]
        else:
            assert item.rewards == [int(v == max(values)) for v in values] and sum(item.rewards) == 1
        for levels, text in zip(item.extra["levels"], item.responses):  # the text carries exactly these levels
            found = dict.fromkeys(toy.CRITERIA, 0)
            for word in text.split():
                if word in toy.CUES:
                    found[toy.CUES[word][0]] += toy.CUES[word][1]
            assert found == levels


def test_a_domain_can_be_held_out():
    assert {i.domain for i in toy.items("train", 100, exclude_domain="safety")} == {"chat", "chat-hard", "reasoning"}
    assert {i.domain for i in toy.items("test", 20, domain="safety")} == {"safety"}


def test_a_clean_judgment_is_mostly_right_and_a_noisy_one_mostly_not_much_better_than_chance():
    rng, right = random.Random(0), {True: 0, False: 0}
    items = [i for i in toy.items("validation", 300) if len(i.responses) > 1]
    for noisy in right:
        for item in items:
            view = toy.shown(rng, item)
            scores, reason = parse_scores(toy.judgment(rng, view, noisy, "1-10"), len(item.responses))
            assert reason == "ok"
            right[noisy] += is_correct(scores, view.rewards) / len(items)
    assert right[False] > 0.9 and 0.3 < right[True] < 0.6


@pytest.fixture(scope="module")
def base():
    return (AutoModelForCausalLM.from_pretrained(ROOT / "toy_world" / "medium").eval(),
            AutoTokenizer.from_pretrained(ROOT / "toy_world" / "medium"))


def test_the_shipped_models_load_in_plain_transformers_and_are_small(base):
    model, tokenizer = base
    assert sum(p.numel() for p in model.parameters()) < 1_000_000
    assert tokenizer.chat_template
    undamaged = AutoModelForCausalLM.from_pretrained(ROOT / "toy_world" / "medium-undamaged")
    assert undamaged.config.vocab_size == model.config.vocab_size


def test_every_prompt_variant_is_in_the_shipped_vocabulary(base):
    _, tokenizer = base
    for item in toy.items("test", 60):
        n = len(item.responses)
        for rating in ["1-10", "0-1"] if n == 1 else ["1-10", "best"]:
            for principles in (True, False, ["tone 50%, detail 50%."]):
                for hint in (False, True):
                    ids = encode_chat(tokenizer, build_prompt(item, "compact", rating, principles, True, hint))
                    assert tokenizer.unk_token_id not in ids
    for question, answer in (c for c in map(lambda chat: (chat[0]["content"], chat[1]["content"]), toy.general_chats(200))):
        assert tokenizer.unk_token_id not in tokenizer(question + " " + answer)["input_ids"]


def test_judgments_of_the_base_survive_decoding_and_encoding(base):
    model, tokenizer = base
    judged = sample_judgments(model, tokenizer, toy.items("test", 8), 2, 1.0, template="compact", max_new_tokens=120)
    finished = [j for js in judged for j in js if j.reason == "ok"]
    assert len(finished) >= 14
    assert all(tokenizer(j.text)["input_ids"] + [tokenizer.eos_token_id] == j.completion_ids for j in finished)


def test_the_base_is_above_chance_and_below_the_undamaged_judge(base):
    model, tokenizer = base
    items = [i for i in toy.items("validation", 150) if len(i.responses) > 1]
    chance = sum(1 / len(i.responses) for i in items) / len(items)

    def accuracy(m):
        judged = sample_judgments(m, tokenizer, items, 1, 0.0, template="compact", max_new_tokens=120)
        return sum(is_correct(j[0].scores, i.rewards) for i, j in zip(items, judged)) / len(items)
    weak, strong = accuracy(model), accuracy(AutoModelForCausalLM.from_pretrained(ROOT / "toy_world" / "medium-undamaged").eval())
    assert chance < weak + 0.05 < strong - 0.2


def test_write_and_training_resume(tmp_path):
    out = tmp_path / "items.jsonl"
    subprocess.run([sys.executable, "toy.py", "--write", str(out), "--limit", "12"], cwd=ROOT, check=True)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 12 and rows[0]["prompt"][0]["role"] == "user"
    command = [sys.executable, "toy.py", "--size", "small", "--steps", "2", "--damage_steps", "1", "--output"]
    subprocess.run([*command, str(tmp_path / "a")], cwd=ROOT, check=True)
    assert (tmp_path / "a" / "small" / "model.safetensors").exists() and (tmp_path / "a" / "small-undamaged").exists()
