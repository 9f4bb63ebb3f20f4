"""The format warm-up of a model that does not write the format: no label is looked at."""
import random
from collections import Counter

import pytest
from conftest import FindsBGood, animals, error_of

from grm import parse_judgment
from plumbing.format_warmup import judgment, own_verdict
from plumbing.records import example_from_dict
from plumbing.runs import read_json, read_rows, write_rows


@pytest.mark.parametrize("principles", [True, False])
@pytest.mark.parametrize("rating, n", [("1-10", 2), ("1-10", 3), ("0-1", 1), ("best", 2)])
def test_written_judgments_parse_and_say_what_they_are_told(rating, n, principles):
    thinks = {"id": "t", "prompt": "Hi", "responses": ["<think>a</think> b", "c <think>"][:n]}
    for row in [*animals(8, n), *([thinks] if n < 3 else [])]:
        for best in range(n):
            for good in ([i == best for i in range(n)], *([[False]] * (n == 1))):
                text = judgment(example_from_dict(row), "tone", good, rating, principles)
                scores, reason = parse_judgment(text, n, rating)
                assert reason == "ok" and text.count("Specific Criteria") == principles
                assert scores == [1 - good.count(False)] if n == 1 else (
                    [s == max(scores) for s in scores] == good)


def test_the_verdict_is_the_models_own_and_not_the_labels(byte_tokenizer):
    tokenizer = byte_tokenizer("chatml")

    def verdict(model, shown):
        return own_verdict(model, tokenizer, shown, "tone", random.Random(0), lambda e: [1])
    for row in animals(4):
        for order in ([0, 1], [1, 0]):
            for rewards in ([0, 1], [1, 0], None):
                shown = example_from_dict({**row, "rewards": rewards}).permuted(order)
                good = verdict(FindsBGood(tokenizer, 40.0), shown)
                assert good == [r.endswith("b.") for r in shown.responses]
    single = example_from_dict(animals(1, 1)[0])
    assert verdict(FindsBGood(tokenizer, -40.0), single) == [True]  # a single one: by its own odds
    assert verdict(FindsBGood(tokenizer, 40.0), single) == [False]


def test_what_is_quoted_is_text_for_the_model_that_is_asked(byte_tokenizer):
    """A control token in a response was one in the judgment behind which the verdict is drawn."""
    tokenizer = byte_tokenizer("chatml")
    [row] = animals(1, 1)
    shown = example_from_dict({**row, "responses": ["<|im_end|> <|im_<|im_end|>end|> animal 0 a."]})
    asked = []

    class Spy(FindsBGood):
        def __call__(self, ids, **options):
            asked.extend(ids[0].tolist())
            return super().__call__(ids, **options)
    own_verdict(Spy(tokenizer, 1.0), tokenizer, shown, "tone", random.Random(0), lambda e: [1])
    assert len(asked) > 50 and not {*asked} & {*tokenizer.all_special_ids} - {1}


def test_a_model_that_never_writes_the_format_learns_it(cli, tiny, tmp_path):
    """One command on data without labels. The judge is random, so nothing of its own parses."""
    rows = [{**row, "rewards": None, "prompt": "How ?", "responses": ["good", "bad"]}
            for row in animals(8)]
    write_rows(tmp_path / "items.jsonl", rows)
    common = ["--data", tmp_path / "items.jsonl", "--max_new_tokens", 48]
    warm = ["spct_rft", "--model", tiny, *common, "--general_fraction", 0, "--format_only",
            "--n_rft", 1, "--batch_size", 8, "--micro_batch_size", 8, "--lr", 0.01, "--epochs", 45,
            "--output", tmp_path / "warmup"]
    code, out, err = cli(*warm)
    assert code == 0, err
    assert "--format_only" not in out + err  # no advice to do what is being done
    report = read_json(tmp_path / "warmup" / "selection.json")
    assert report["non_hinted"] == {"unparsed": 8} and report["written"] == {"kept": 8}
    reasons = {}
    for model in (tiny, tmp_path / "warmup" / "model"):
        folder = tmp_path / f"grm{len(reasons)}"
        assert cli("grm", "--model", model, *common, "--output", folder)[0] == 0
        reasons[str(model)] = Counter(r["judgments"][0]["reason"]
                                      for r in read_rows(folder / "judgments.jsonl"))
    before, after = reasons.values()
    assert before["ok"] == 0 and after["ok"] >= 6, reasons
    # a sampler that writes the format needs no warm-up
    assert "--format_only" in error_of(cli(*warm, "--sampler", tiny))
    write_rows(tmp_path / "long.jsonl", [*rows[:3], {**rows[3], "prompt": "How ? " * 600}])
    long = [*warm, "--data", tmp_path / "long.jsonl", "--no_non_hinted", "--epochs", 1, "--output",
            tmp_path / "long"]
    assert f"item {rows[3]['id']}" in error_of(cli(*long))
    assert cli(*long, "--skip_bad")[0] == 0
    assert read_json(tmp_path / "long" / "selection.json")["written"] == {"kept": 3}
    write_rows(tmp_path / "long.jsonl", [{**rows[0], "prompt": "How ? " * 600}])
    line = error_of(cli(*long, "--skip_bad", "--overwrite"))
    assert "no prompt fits" in line and "--sampler" not in line and "--format_only" not in line
