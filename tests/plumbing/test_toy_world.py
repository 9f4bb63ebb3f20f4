"""The toy world: disjoint splits, known truth; a base that is worth training, and can be made."""
import hashlib
import random
from collections import Counter

import pytest
from conftest import ROOT, error_of
from transformers import AutoModelForCausalLM

from grm import build_prompt, encode_chat, is_correct, parse_scores, sample_judgments
from plumbing.records import read_jsonl
from toy_world import make_base, world


def text_of(item):
    return item.prompt[0]["content"], *item.responses


def test_splits_are_disjoint_and_seeded():
    """By the hash of an item's text, so whatever the seed, no item can be of two splits."""
    places = {"train": set(range(7)), "validation": {7}, "test": {8, 9}}
    for split, allowed in places.items():
        for seed in (0, 1):
            texts = [" | ".join(text_of(i)) for i in world.items(split, 100, seed)]
            digests = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
            assert {int(digest[:8], 16) % 10 for digest in digests} == allowed
            assert len(set(texts)) == 100
    assert world.items("test", 5) == world.items("test", 5) != world.items("test", 5, seed=1)


def test_a_held_out_domain_changes_no_other_item():
    everything = world.items("test", 100)
    for given in ({"exclude_domain": "safety"}, {"domain": "safety"}):
        found = world.items("test", 20, **given)
        assert found == [i for i in everything
                         if (i.domain == "safety") == ("domain" in given)][:len(found)]


def test_truth_is_the_argmax_of_hidden_utility():
    for item in world.items("test", 300):
        weights = item.extra["weights"]
        assert sum(weights.values()) == 100 and weights in world.DOMAINS[item.domain].values()
        values = [world.utility(levels, weights) for levels in item.extra["levels"]]
        if len(values) == 1:
            assert item.rewards == [int(values[0] > 0)]
        else:
            assert item.rewards == [int(v == max(values)) for v in values]
            assert sum(item.rewards) == 1
        for levels, text in zip(item.extra["levels"], item.responses, strict=True):
            assert world.read_levels(text.split()) == levels  # the text carries exactly these


def test_a_clean_judgment_is_mostly_right_and_a_noisy_one_mostly_not():
    rng, right = random.Random(0), Counter()
    items = [i for i in world.items("validation", 300) if len(i.responses) > 1]
    for noisy in (False, True):
        for item in items:
            view = make_base.shown(rng, item)
            text = make_base.judgment(rng, view, noisy, "1-10")
            scores, reason = parse_scores(text, len(item.responses))
            assert reason == "ok"
            right[noisy] += is_correct(scores, view.rewards) / len(items)
    assert right[False] > 0.95 and 0.3 < right[True] < 0.6


def test_noisy_judgments_share_habits_and_clean_ones_have_none():
    """On pairs whose truth is as often first as second, longest as often as not."""
    rng, pairs = random.Random(0), world.items("validation", 300, n=2)
    liked = {}
    for noisy in (False, True):
        found = []
        for item in pairs:
            for order in ([0, 1], [1, 0]):
                view = item.permuted(order)
                view.extra = {**item.extra,
                              "shown_levels": [item.extra["levels"][i] for i in order]}
                scores, _ = parse_scores(make_base.judgment(rng, view, noisy, "1-10"), 2)
                found.append((scores[0] > scores[1]) - (scores[0] < scores[1]))
        liked[noisy] = sum(found) / len(found)
    assert abs(liked[False]) < 0.02 and liked[True] > 0.3


@pytest.mark.parametrize("noisy", [False, True])
def test_a_judge_that_is_told_the_best_response_follows_right_or_wrong(noisy):
    rng = random.Random(1)
    for item in world.items("validation", 60):
        view, n = make_base.shown(rng, item), len(item.responses)
        best = rng.randrange(n)
        view.rewards = [int(i == best) for i in range(n)] if n > 1 else [rng.randrange(2)]
        text = make_base.judgment(rng, view, noisy, "0-1" if n == 1 else "1-10", told=True)
        scores, _ = parse_scores(text, n, lo=0)
        assert scores == view.rewards if n == 1 else is_correct(scores, view.rewards)


def test_a_reference_answer_holds_the_cues_of_the_best_response():
    for item in world.items("validation", 60):
        if max(item.rewards):
            best = world.read_levels(item.responses[item.rewards.index(1)].split())
            assert world.read_levels(item.reference.split()) == best


@pytest.fixture(scope="module")
def base():
    return AutoModelForCausalLM.from_pretrained(ROOT / "toy_world" / "medium").eval()


@pytest.fixture(scope="module")
def undamaged():
    return AutoModelForCausalLM.from_pretrained(ROOT / "toy_world" / "medium-undamaged").eval()


def test_every_prompt_variant_is_in_the_shipped_vocabulary(toy_tokenizer):
    def known(ids):
        return toy_tokenizer.unk_token_id not in ids
    for item in world.items("test", 60):
        for rating in ["1-10", "0-1" if len(item.responses) == 1 else "best"]:
            for principles in (True, False, ["tone 50%, detail 50%."]):
                for hint in (False, True):
                    prompt = build_prompt(item, "compact", rating, principles, True, hint)
                    assert known(encode_chat(toy_tokenizer, prompt))
    for question, answer in world.general_chats(200):
        assert known(toy_tokenizer(question["content"] + " " + answer["content"])["input_ids"])


def test_judgments_of_the_base_survive_decoding_and_encoding(base, toy_tokenizer):
    """So that text served or stored is tokenised to the ids that were sampled."""
    judged = sample_judgments(base, toy_tokenizer, world.items("test", 8), 2, 1.0,
                              template="compact", max_new_tokens=120)
    finished = [j for js in judged for j in js if j.reason == "ok"]
    assert len(finished) >= 14
    for j in finished:
        ids = toy_tokenizer(j.text)["input_ids"]
        assert ids + [toy_tokenizer.eos_token_id] == j.completion_ids


def test_the_base_is_above_chance_and_below_the_undamaged_judge(base, undamaged, toy_tokenizer):
    items = [i for i in world.items("validation", 150) if len(i.responses) > 1]
    chance = sum(1 / len(i.responses) for i in items) / len(items)

    def accuracy(model):
        judged = sample_judgments(model, toy_tokenizer, items, 1, 0.0, template="compact",
                                  max_new_tokens=120)
        return sum(is_correct(j.scores, i.rewards)
                   for i, [j] in zip(items, judged, strict=True)) / len(items)
    assert sum(p.numel() for p in base.parameters()) < 1_000_000
    assert chance < accuracy(base) + 0.05 < accuracy(undamaged) - 0.2


def test_items_are_written_as_records(cli, tmp_path):
    out = tmp_path / "items.jsonl"
    assert cli("toy_world.make_base", "--write", out, "--limit", 12)[0] == 0
    assert read_jsonl(out) == world.items("test", 12)


def test_making_a_base_resumes(cli, tmp_path):
    command = ["toy_world.make_base", "--size", "small", "--steps", 2, "--damage_steps", 1,
               "--output", tmp_path]
    code, out, _ = cli(*command)
    assert code == 0 and "pretraining: step 2/2" in out and "damage: step 1/1" in out
    weights = [(tmp_path / name / "model.safetensors").read_bytes()
               for name in ("small", "small-undamaged")]
    code, out, _ = cli(*command)  # from the saved states: no step is left
    assert code == 0 and "step" not in out and weights[0] != weights[1]
    assert weights == [(tmp_path / name / "model.safetensors").read_bytes()
                       for name in ("small", "small-undamaged")]
    for other in (["--seed", 1], ["--steps", 3]):  # not the finished state of another base
        said = error_of(cli(*command, *other))
        assert "clean.pt is of another base" in said and "take another --output" in said
    (tmp_path / ".small" / "clean.pt").unlink()  # pretrained again: the damage is of the old one
    assert "damaged.pt is of another base" in error_of(cli(*command, "--steps", 3))
