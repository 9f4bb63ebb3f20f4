"""§3.2, rejective fine-tuning: which judgments are kept, and what exactly is trained on.

The judgments are written by `Judge`, who knows the truth and errs by plan; the models that learn
are tiny and random. `python tests/paper/test_sec32_rft.py --flags` is spct_rft.py with that judge:
what a test starts as processes of their own.
"""
import json
import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from conftest import ROOT, ddp_at_the_end, error_of, finished, make_tiny_model, started
from played import PYTHONPATH, TORCHRUN, moved, near, plain_steps, save_tiny, untimed, weights

import spct_rft
from grm import build_prompt, encode_chat
from plumbing import generation, runs
from plumbing.data import load_examples
from plumbing.generation import load_model
from plumbing.runs import read_json, read_rows
from spct_rft import learning_rate, select, selection_report, sft_loss

# ----- the rejection rules, by hand -----

RIGHT, WRONG = {"correct": True, "text": "fine"}, {"correct": False, "text": "fine"}
TALKS = {"correct": True, "text": "Response 2 wins, as the hint says."}
FATES = {"k": "kept", "i": "incorrect", "e": "too_easy", "m": "mentions_hint"}


@pytest.mark.parametrize("non_hinted, hinted, fates, hinted_fate", [
    ("WWW", RIGHT, "iii", "k"), ("WWW", WRONG, "iii", "i"),
    ("RWW", RIGHT, "kii", "k"), ("WRR", WRONG, "ikk", "i"),
    ("RRR", RIGHT, "eee", "e"), ("RRR", WRONG, "eee", "i"),
    ("RWR", TALKS, "kik", "m"), ("RRR", TALKS, "eee", "m"),
    ("R", RIGHT, "e", "e"),      # N_RFT = 1
    ("", RIGHT, "", "k"),        # --no_non_hinted: nothing says that the item is easy
    ("RWW", None, "kii", ""),    # --no_hinted
])
def test_select_by_hand(non_hinted, hinted, fates, hinted_fate):
    plain = [RIGHT if letter == "R" else WRONG for letter in non_hinted]
    assert select(plain, [hinted] if hinted else []) == (
        [FATES[f] for f in fates], [FATES[f] for f in hinted_fate])


@pytest.mark.parametrize("talks, texts", [
    (True, ["According to the hint, response 1 is better.", "The best response is: Response 2",
            "We are told that 1 wins.", "As stated above, response 1 is best.", "HINT",
            "as given in the prompt"]),
    (False, ["Whinting is a word.", "The first response is the best one.",
             "Response 1: accuracy good."]),
])
def test_judgments_that_talk_about_the_hint(talks, texts):
    for text in texts:
        judgment = {"correct": True, "text": text}
        assert select([WRONG], [judgment])[1] == ["mentions_hint" if talks else "kept"], text
        assert select([judgment, WRONG], [])[0] == ["kept", "incorrect"]  # they cannot quote it


def test_report_counts_by_fate_and_domain():
    rows = [{"domain": "chat", "non_hinted": [RIGHT, WRONG, RIGHT], "hinted": [RIGHT]},
            {"domain": "chat", "non_hinted": [RIGHT, RIGHT, RIGHT], "hinted": [RIGHT]},
            {"domain": "math", "non_hinted": [WRONG, WRONG, WRONG], "hinted": [TALKS]}]
    assert selection_report(rows) == {
        "items": 3, "non_hinted": {"kept": 2, "incorrect": 4, "too_easy": 3},
        "hinted": {"kept": 1, "too_easy": 1, "mentions_hint": 1},
        "by_domain": {
            "chat": {"non_hinted/kept": 2, "non_hinted/incorrect": 1, "non_hinted/too_easy": 3,
                     "hinted/kept": 1, "hinted/too_easy": 1},
            "math": {"non_hinted/incorrect": 3, "hinted/mentions_hint": 1}}}


def test_learning_rate_warms_up_over_a_twentieth_and_falls_to_a_tenth():
    rates = [learning_rate(step, 100, 1.0) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and max(rates) == 1.0
    assert all(a >= b for a, b in zip(rates[4:], rates[5:])) and 0.1 <= rates[-1] < 0.11
    assert learning_rate(0, 1, 1.0) == 1.0


# ----- the loss: completion tokens only -----

@pytest.mark.parametrize("pad", [0, 4])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_c01_c03_loss_is_on_completion_tokens_only(architecture, pad, tiny_model):
    """C01: the end token (4) is learned also where it pads.  C03: padding changes nothing."""
    model = tiny_model(architecture, initializer_range=0.15)
    rows = [([70, 71, 72], [80, 4]), ([73], [81, 82, 83, 84, 4]),
            ([74, 4, 75, 76, 77, 78], [85, 4])]
    loss = sft_loss(model, rows, pad, "cpu")
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected = 0
    for prompt, completion in rows:
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1:-1]  # (T, V)
        ids = torch.tensor(completion)[:, None]
        expected = expected - logits.log_softmax(-1).gather(1, ids).sum()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert all(torch.allclose(found[n], p.grad, atol=1e-5) for n, p in model.named_parameters()
               if p.grad is not None)
    parts = sum(sft_loss(model, [row], pad, "cpu").item() for row in rows)
    assert parts == pytest.approx(loss.item(), rel=1e-6)


# ----- a judge that knows the truth and errs by plan -----

COUNT = 24  # items, of all sizes from n = 1 to 5


def has(ids, part):
    return any(ids[i:i + len(part)] == part for i in range(len(ids)))


class Judge:
    """In place of generation.generate: right, wrong, cut off, or talking about the hint, by item
    number and sample index (None: the hinted one).

    The displayed order is read from the prompt. Every judgment begins with <unk>, which decoding
    drops: its ids do not come back from its text.
    """
    def __init__(self, limit=COUNT, plan=None, n_rft=3):
        self.items = {e.id: e for e in load_examples("toy", "train", limit)}
        self.plan, self.n_rft, self.calls = plan or self.planned, n_rft, []

    @staticmethod
    def planned(number, sample):
        if sample is None:
            return "talks" if number % 5 == 0 else "wrong" if number % 3 == 0 else "right"
        return "right" if number % 8 >> sample & 1 else "cut" if number % 7 == 1 else "wrong"

    def fates(self, item):
        """(non-hinted fates, hinted fates) that the plan leads to."""
        number = int(item.split("-")[-1])
        verdicts = [self.plan(number, j) for j in range(self.n_rft)]
        right = "too_easy" if set(verdicts) == {"right"} else "kept"
        fate = defaultdict(lambda: "incorrect", right=right, talks="mentions_hint")
        return [fate[v] for v in verdicts], [fate[self.plan(number, None)]]

    def __call__(self, model, tokenizer, prompts, temperature, max_new_tokens, seeds, **_):
        self.calls.append((prompts, seeds))
        return [self.write(tokenizer, *one) for one in zip(prompts, seeds, strict=True)]

    def write(self, tokenizer, prompt, seed):
        def encode(text):
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        def place(text):
            ids = encode(text)
            return next(i for i in range(len(prompt)) if prompt[i:i + len(ids)] == ids)
        _, item, sample = seed.split("/")
        example, n = self.items[item], len(self.items[item].responses)
        shown = example.permuted(sorted(range(n), key=lambda i: place(example.responses[i])))
        best, hinted = shown.rewards.index(max(shown.rewards)), int(sample) == self.n_rft
        hint = (f"The best response is: Response {best + 1}" if n > 1 else
                f"The response is {'correct' if shown.rewards[0] else 'not correct'}.")
        assert has(prompt, encode(hint)) == hinted  # there, and right, when it should be
        verdict = self.plan(int(item.split("-")[-1]), None if hinted else int(sample))
        low, high = (2, 9) if n > 1 else (1 - shown.rewards[0], shown.rewards[0])
        if verdict == "wrong":
            low, high = high, low
        points = ", ".join(str(high if i == best else low) for i in range(n))
        said = "The best response is: Response 1" if verdict == "talks" else "Response 1: good."
        text = f"Specific Criteria: tone 100%.\nAnalysis: {said}\nScores: \\boxed{{{points}}}"
        ids = [tokenizer.unk_token_id if tokenizer.unk_token_id is not None
               else tokenizer.pad_token_id]
        ids += encode(text) + [tokenizer.eos_token_id] * (verdict != "cut")
        return generation.Completion(ids, [-0.5] * len(ids), verdict != "cut")


@pytest.fixture(scope="module")
def base(tmp_path_factory, toy_tokenizer):
    return save_tiny(tmp_path_factory.mktemp("base"), toy_tokenizer)


def play(monkeypatch, judge=None, sgd=False):
    """The judge in the sampler's place. Returns what happened: "judge", "rows" (of every part of
    every update), "models", "chats" (how many were asked for), "samples" (how many there are to
    train on, at each update)."""
    seen = defaultdict(list, judge=judge or Judge())
    chats, indices = spct_rft.load_chats, runs.batch_indices

    def loss(model, rows, pad_id, device):
        seen["rows"] += rows
        return sft_loss(model, rows, pad_id, device)

    def remembered(*args, **options):
        seen["models"].append(load_model(*args, **options))
        return seen["models"][-1]

    def order(step, batch_size, count, seed):
        seen["samples"].append(count)
        return indices(step, batch_size, count, seed)

    def chatted(name, count, seed):
        seen["chats"].append(count)
        return chats(name, count, seed)
    monkeypatch.setattr(generation, "generate", seen["judge"])
    monkeypatch.setattr(spct_rft, "load_model", remembered)
    monkeypatch.setattr(spct_rft, "sft_loss", loss)
    monkeypatch.setattr(spct_rft, "load_chats", chatted)
    monkeypatch.setattr(spct_rft, "batch_indices", order)
    if sgd:
        plain_steps(monkeypatch)
    return seen


def command(model, output, *flags):
    return ["--model", model, "--output", output, "--data", "toy", "--limit", COUNT,
            "--batch_size", 8, "--micro_batch_size", 4, "--general_fraction", 0, "--epochs", 0.1,
            "--lr", 0.01, *flags]


@pytest.fixture
def train(cli, base, tmp_path, monkeypatch):
    """train(*flags, judge=None, name="out", sgd=False) -> (metrics, what `play` saw, folder)."""
    def run(*flags, judge=None, name="out", sgd=False):
        with monkeypatch.context() as patch:
            seen = play(patch, judge, sgd)
            code, _, err = cli("spct_rft", *command(base, tmp_path / name, *flags))
        assert code == 0, err
        return read_rows(tmp_path / name / "metrics.jsonl"), seen, tmp_path / name
    return run


@pytest.fixture
def refused(cli, base, tmp_path, monkeypatch):
    """refused(*flags, judge=None) -> the one line that a user's mistake ends in."""
    def run(*flags, judge=None, name="out"):
        with monkeypatch.context() as patch:
            play(patch, judge)
            return error_of(cli("spct_rft", *command(base, tmp_path / name, *flags)))
    return run


# ----- what is trained on -----

def test_c17_c24_sampled_ids_are_trained_on_and_the_hint_is_not_in_the_prompt(train, toy_tokenizer):
    """C17: decoding and encoding gives other ids.  C24: the hint is for sampling only."""
    _, seen, folder = train("--epochs", 1.3)
    judge, kept = seen["judge"], set()
    for row in read_rows(folder / "judgments.jsonl"):
        fates = sum(judge.fates(row["id"]), [])
        for j, fate in zip(row["non_hinted"] + row["hinted"], fates, strict=True):
            assert j["correct"] == (fate in ("kept", "too_easy", "mentions_hint"))
            if fate == "kept":
                shown = judge.items[row["id"]].permuted(j["permutation"])
                rating = "0-1" if len(shown.responses) == 1 else "1-10"
                prompt = encode_chat(toy_tokenizer, build_prompt(shown, "compact", rating))
                kept.add((tuple(prompt), tuple(j["completion_ids"])))
    trained = {(tuple(p), tuple(c)) for p, c in seen["rows"]}
    assert trained == kept and len(kept) > COUNT
    ends = {(c[0], c[-1]) for _, c in trained}
    assert ends == {(toy_tokenizer.unk_token_id, toy_tokenizer.eos_token_id)}
    hints = [toy_tokenizer(text, add_special_tokens=False)["input_ids"] for text in (
        "The best response is: Response", "The response is correct.",
        "The response is not correct.")]
    asked = [prompt for prompts, _ in judge.calls for prompt in prompts]
    assert sum(any(has(prompt, hint) for hint in hints) for prompt in asked) == COUNT
    assert not any(has(list(prompt), hint) for prompt, _ in trained for hint in hints)
    numbers = Counter(seed.split("/")[2] for _, seeds in judge.calls for seed in seeds)
    assert numbers == dict.fromkeys("0123", COUNT)  # the hinted one has random numbers of its own


def test_c21_truncated_judgments_are_incorrect(train):
    """C21: what the length limit cut off is wrong, whatever it says."""
    judge = Judge(plan=lambda number, sample: "right" if sample in (2, None) else "cut")
    _, _, folder = train(judge=judge)
    fates = read_json(folder / "selection.json")["non_hinted"]
    assert fates == {"incorrect": 2 * COUNT, "kept": COUNT}
    rows = read_rows(folder / "judgments.jsonl")
    assert {j["reason"] for row in rows for j in row["non_hinted"][:2]} == {"truncated"}


@pytest.mark.parametrize("flags", [[], ["--no_hinted"], ["--no_non_hinted"],
                                   ["--n_rft", 2, "--no_hinted"]])
def test_selection_of_each_ablation(flags, train):
    judge = Judge(n_rft=2 if "--n_rft" in flags else 3)
    _, seen, folder = train(*flags, judge=judge)
    fates = [judge.fates(item) for item in judge.items]
    if "--no_hinted" in flags:
        fates = [(plain, []) for plain, _ in fates]
    if "--no_non_hinted" in flags:  # then nothing says that an item is too easy
        fates = [([], ["kept" if f == "too_easy" else f for f in hinted]) for _, hinted in fates]
    report = read_json(folder / "selection.json")
    plain, hinted = (Counter(f for pair in fates for f in pair[i]) for i in (0, 1))
    assert report["non_hinted"] == plain and report["hinted"] == hinted
    assert report["items"] == COUNT and report["same_tokenizer"] is True
    assert report["kept"] == plain["kept"] + hinted["kept"] == seen["samples"][0] > 4


@pytest.mark.parametrize("same", [True, False])
def test_c17_text_of_another_tokenizer_gets_an_end_token(same, train, tmp_path, byte_tokenizer,
                                                         toy_tokenizer):
    """C17: only where sampler and model do not share a tokenizer is the text tokenised."""
    tokenizer = toy_tokenizer if same else byte_tokenizer("chatml")
    other = save_tiny(tmp_path / "other", tokenizer, max_position_embeddings=4096, seed=5)
    _, seen, folder = train("--sampler", other, "--epochs", 1.3)
    assert read_json(folder / "selection.json")["same_tokenizer"] is same
    kind = "completion_ids" if same else "text"
    judged = [j for row in read_rows(folder / "judgments.jsonl")
              for j in row["non_hinted"] + row["hinted"] if j["correct"]]
    expected = {tuple(j[kind] if same else [
        *toy_tokenizer(j[kind], add_special_tokens=False)["input_ids"], toy_tokenizer.eos_token_id])
        for j in judged}
    trained = {tuple(c) for _, c in seen["rows"]}
    assert trained <= expected and len(trained) > 3
    assert {c[0] == toy_tokenizer.unk_token_id for c in trained} == {same}
    assert seen["models"][0][0].config.max_position_embeddings == 512  # the other one only samples


@pytest.mark.parametrize("theirs, config", [("<|im_end|>", "<|endoftext|>"),
                                            ("<|endoftext|>", "<|im_end|>")])
def test_c02_what_is_trained_on_ends_where_the_saved_model_stops(theirs, config, cli, tmp_path,
                                                                 monkeypatch, byte_tokenizer):
    """C02: a sampler with the same vocabulary and another end token; a config that knows another
    end than the tokenizer, which ends the chats."""
    folders = []
    for name, end in (("base", "<|endoftext|>"), ("sampler", theirs)):
        tokenizer = byte_tokenizer("chatml")
        tokenizer.eos_token = end
        model = make_tiny_model("llama", len(tokenizer), max_position_embeddings=4096)
        model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(config)
        runs.save_model(tmp_path / name, model, tokenizer)
        folders.append(tmp_path / name)
    with monkeypatch.context() as patch:
        seen = play(patch)
        code, _, err = cli("spct_rft", *command(folders[0], tmp_path / "out", "--sampler",
                                                folders[1], "--general_fraction", 0.5))
    assert code == 0, err
    assert read_json(tmp_path / "out" / "selection.json")["same_tokenizer"] is True
    stops = read_json(tmp_path / "out" / "model" / "generation_config.json")["eos_token_id"]
    ends = {c[-1] for _, c in seen["rows"]}
    assert ends <= set([stops] if isinstance(stops, int) else stops)


@pytest.mark.parametrize("fraction", [0, 0.5, 0.85])
def test_general_fraction_is_the_share_of_all_samples(fraction, train):
    _, seen, folder = train("--general_fraction", fraction)
    kept, general = read_json(folder / "selection.json")["kept"], sum(seen["chats"])
    assert general / (kept + general) == pytest.approx(fraction, abs=0.005)
    assert seen["samples"][0] == kept + general


def test_general_data_of_the_user_is_trained_on_its_answers(train, tmp_path, toy_tokenizer):
    chat = [{"role": "user", "content": "Say in reverse : sun moon"},
            {"role": "assistant", "content": "moon sun ."}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    _, seen, _ = train("--general_data", tmp_path / "chats.jsonl", "--general_fraction", 0.5)
    question, answer = (toy_tokenizer(text)["input_ids"] for text in (
        "<|user|>Say in reverse : sun moon<|assistant|>", "moon sun .<|end|>"))
    assert (question, answer) in seen["rows"]


def test_general_only_samples_no_judgment(train):
    rows, seen, folder = train("--general_only", "--epochs", 1)
    assert not seen["judge"].calls and seen["chats"] == [COUNT] and len(rows) == COUNT // 8
    assert not (folder / "judgments.jsonl").exists() and not (folder / "selection.json").exists()
    assert set(seen["samples"]) == {COUNT}


def test_the_toys_sentences_and_rate_are_for_the_toy(refused, base, cli, tmp_path, monkeypatch):
    """One's own data once trained on 85 % toy sentences, as many as --limit said, at the toy's rate
    of 5e-4."""
    (tmp_path / "own.jsonl").write_text("".join(
        json.dumps({**ITEM, "id": str(i)}) + "\n" for i in range(4)))
    mixed = ["--data", tmp_path / "own.jsonl", "--general_fraction", 0.5]
    for flags in (mixed, [*mixed, "--general_fraction", 0, "--general_only"]):
        line = refused(*flags)
        assert "--general_data" in line and "--general_fraction 0" in line
    assert "--general_data" in error_of(cli("extras.baselines", "cloud", *mixed, "--output",
                                            tmp_path / "cloud"))
    monkeypatch.setattr(runs, "TOY_SIZE", 1000)
    with monkeypatch.context() as patch:
        seen = play(patch)
        code, out, _ = cli("spct_rft", *command(base, tmp_path / "out", *mixed,
                           "--general_only", "--general_data", "toy", "--limit", 1500))
    assert code == 0 and seen["chats"] == [8] and "--lr 0.01" in out


def test_c13_every_weight_is_trained_and_the_judgments_become_likelier(base, train):
    """C13: a trainer with an empty optimizer had healthy curves."""
    rows, seen, folder = train("--epochs", 4)
    before, after = weights(base), weights(folder / "model")
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[k], v) for k, v in after.items())
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    first = seen["rows"][:8]  # the loss of an update is the mean over its tokens
    assert rows[0]["tokens"] == sum(len(c) for _, c in first)
    loss = sft_loss(load_model(base)[0], first, 0, "cpu").item() / rows[0]["tokens"]
    assert rows[0]["loss"] == pytest.approx(loss, rel=1e-5)


def test_gradient_checkpointing_trains_the_same(train):
    plain, checkpointed = (untimed(train(*flags, name=str(len(flags)), sgd=True)[0])
                           for flags in ([], ["--gradient_checkpointing"]))
    assert all(a == pytest.approx(b, rel=1e-5) for a, b in zip(plain, checkpointed, strict=True))


def test_the_format_warm_up_keeps_what_parses_whatever_it_says(train):
    """Wrong, right and too easy alike, none hinted; one is written where none parses."""
    judge = Judge(plan=lambda number, sample: ("cut", "wrong", "right")[number % 3])
    _, seen, folder = train("--format_only", "--epochs", 1.5, judge=judge)
    report = read_json(folder / "selection.json")
    assert report["non_hinted"] == {"kept": 2 * COUNT, "unparsed": COUNT}
    assert report["written"] == {"kept": COUNT // 3}
    assert seen["samples"][0] == report["kept"] == 2 * COUNT + COUNT // 3
    assert {len(prompts) for prompts, _ in judge.calls} == {3 * COUNT}  # no hinted ones
    rows = read_rows(folder / "judgments.jsonl")
    assert all(j["correct"] is None for row in rows for j in row["non_hinted"])
    assert all(j["reason"] == "ok" for row in rows for j in row["written"])
    ends = {c[-1] for _, c in seen["rows"]}
    assert len(ends) == 1 and {len(c) > 5 for _, c in seen["rows"]} == {True}


# ----- mistakes -----

ITEM = {"id": "a", "prompt": "Hi", "responses": ["x", "y"], "rewards": [1, 0]}


@pytest.mark.parametrize("flags, word", [
    (["--general_data", "none.jsonl", "--general_fraction", 0.5], "none.jsonl"),
    (["--model", "no/such/model", "--sampler", ROOT / "toy_world" / "medium"], "no/such/model"),
    (["--data", "unlabelled.jsonl"], "item b"),
    (["--data", "single.jsonl", "--rating", "best"], "2 responses"),
    (["--thinking", "off"], "enable_thinking"),
])
def test_mistakes_end_in_one_line(flags, word, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, row in (("unlabelled", {**ITEM, "id": "b", "rewards": None}),
                      ("single", {**ITEM, "responses": ["x"], "rewards": [1]})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    assert word in refused(*flags)
    # nothing was sampled, and mended data may go to the same --output
    assert not (tmp_path / "out" / "config.json").exists()


def test_nothing_kept_says_why(refused):
    line = refused(judge=Judge(plan=lambda number, sample: "wrong"))
    assert f"no judgment survived of {COUNT} items" in line and "--limit" in line
    assert "'incorrect': 72" in line and "parsing: {'ok': 96}" in line
    line = refused(judge=Judge(plan=lambda number, sample: "cut"), name="cut")
    assert "'truncated': 96" in line and "--format_only" in line and "--limit" not in line


# ----- two processes (tests/kill.py kills and continues every program) -----

def test_c08_c22_c27_two_processes_equal_one(base, train, tmp_path):
    """C08: parts of unequal lengths add up.  C22: metrics are those of both.  C27: DDP averages the
    gradients. Two chunks of judgments, one per process; no DDP model outlives its group."""
    flags = ["--limit", 140, "--batch_size", 32, "--micro_batch_size", 6, "--epochs", 0.4,
             "--lr", 0.5]
    two = started([*TORCHRUN, "--standalone", "--nproc_per_node", "2", __file__],
                  *command(base, tmp_path / "two", *flags), DUMP=str(tmp_path), LIMIT="140",
                  PYTHONPATH=PYTHONPATH)
    one, _, _ = train(*flags, judge=Judge(140), name="one", sgd=True)
    code, out = finished(two, 300)
    assert code == 0, out
    assert read_json(tmp_path / "two" / "config.json")["processes"] == 2 and len(one) == 3
    files = [(tmp_path / name / "judgments.jsonl").read_bytes() for name in ("one", "two")]
    first, second = (torch.load(tmp_path / f"{r}.pt") for r in (0, 1))
    assert files[0] == files[1] and first["calls"] == second["calls"] == 2
    assert first["ddp"] == second["ddp"] == [0]
    metrics = untimed(read_rows(tmp_path / "two" / "metrics.jsonl"))
    for a, b in zip(untimed(one), metrics, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    whole, shared = (weights(tmp_path / name / "model") for name in ("one", "two"))
    assert near(first["model"], second["model"]) and near(first["model"], shared)
    assert near(whole, shared, 1e-5)
    assert moved(whole, weights(base)) > 0.01


def main():
    """spct_rft.py with the judge. DUMP: where each process writes what it holds."""
    monkeypatch = pytest.MonkeyPatch()
    seen = play(monkeypatch, Judge(int(os.environ["LIMIT"])), sgd=True)
    left = ddp_at_the_end(monkeypatch)
    spct_rft.main()
    torch.save({"model": seen["models"][-1][0].state_dict(), "ddp": left,
                "calls": len(seen["judge"].calls)},
               Path(os.environ["DUMP"]) / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
