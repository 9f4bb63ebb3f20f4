"""spct_rft.py: which trajectories are kept (§3.2), what is trained on, and runs that are killed or shared by two processes.

The judgments are written by `Judge`, who knows the truth and errs by plan; the models that learn are tiny and random.
`python tests/test_rft.py --flags` is spct_rft.py with that judge: what the tests start as processes of their own.
"""
import json
import os
import signal
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from conftest import ddp_at_the_end, finished, make_tiny_model, started

import spct_rft
from grm import build_prompt, encode_chat
from plumbing import generation, runs
from plumbing.data import load_examples
from plumbing.runs import read_json, read_rows
from spct_rft import learning_rate, select, selection_report, sft_loss

# ----- select: the rejection rules, by hand -----

RIGHT, WRONG = {"correct": True, "text": "fine"}, {"correct": False, "text": "fine"}
TALKS = {"correct": True, "text": "Response 2 wins, as the hint says."}


@pytest.mark.parametrize("non_hinted, hinted, fates, hinted_fates", [
    ("WWW", [RIGHT], "i i i", "kept"),
    ("WWW", [WRONG], "i i i", "incorrect"),
    ("RWW", [RIGHT], "k i i", "kept"),
    ("WRR", [WRONG], "i k k", "incorrect"),
    ("RRR", [RIGHT], "e e e", "too_easy"),
    ("RRR", [WRONG], "e e e", "incorrect"),
    ("RWR", [TALKS], "k i k", "mentions_hint"),
    ("RRR", [TALKS], "e e e", "mentions_hint"),
    ("R", [RIGHT], "e", "too_easy"),     # N_RFT = 1
    ("", [RIGHT], "", "kept"),           # --no_non_hinted: nothing says that the item is easy
    ("RWW", [], "k i i", ""),            # --no_hinted
])
def test_select_by_hand(non_hinted, hinted, fates, hinted_fates):
    names = {"k": "kept", "i": "incorrect", "e": "too_easy"}
    plain = [RIGHT if letter == "R" else WRONG for letter in non_hinted]
    assert select(plain, hinted) == ([names[f] for f in fates.split()], hinted_fates.split())
    _, kept = select(plain, hinted, easy_hinted="keep")
    assert kept == ["kept" if fate == "too_easy" else fate for fate in hinted_fates.split()]


@pytest.mark.parametrize("text, talks", [
    ("According to the hint, response 1 is better.", True), ("The best response is: Response 2", True),
    ("We are told that 1 wins.", True),
    ("As stated above, response 1 is best.", True), ("HINT", True), ("as given in the prompt", True),
    ("Whinting is a word.", False), ("The first response is the best one.", False), ("Response 1: accuracy good.", False),
])
def test_trajectories_that_talk_about_the_hint(text, talks):
    assert select([WRONG], [{"correct": True, "text": text}])[1] == ["mentions_hint" if talks else "kept"]
    assert select([{"correct": True, "text": text}, WRONG], [])[0] == ["kept", "incorrect"]  # others cannot quote it


def test_report_counts_by_fate_and_domain():
    rows = [{"domain": "chat", "non_hinted": [RIGHT, WRONG, RIGHT], "hinted": [RIGHT]},
            {"domain": "chat", "non_hinted": [RIGHT, RIGHT, RIGHT], "hinted": [RIGHT]},
            {"domain": "math", "non_hinted": [WRONG, WRONG, WRONG], "hinted": [TALKS]}]
    report = selection_report(rows, "drop")
    assert report["items"] == 3
    assert report["non_hinted"] == {"kept": 2, "incorrect": 4, "too_easy": 3}
    assert report["hinted"] == {"kept": 1, "too_easy": 1, "mentions_hint": 1}
    assert report["by_domain"] == {
        "chat": {"non_hinted/kept": 2, "non_hinted/incorrect": 1, "non_hinted/too_easy": 3, "hinted/kept": 1,
                 "hinted/too_easy": 1},
        "math": {"non_hinted/incorrect": 3, "hinted/mentions_hint": 1}}
    assert selection_report(rows, "keep")["hinted"] == {"kept": 2, "mentions_hint": 1}


def test_learning_rate_warms_up_and_falls_to_a_tenth():
    rates = [learning_rate(step, 100, 1.0, 5) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and max(rates) == 1.0
    assert all(a >= b for a, b in zip(rates[4:], rates[5:])) and 0.1 <= rates[-1] < 0.11
    assert learning_rate(0, 1, 1.0, 1) == 1.0


# ----- the loss: completion tokens only -----

@pytest.mark.parametrize("pad", [0, 4])  # 4: the end token also pads (TRL #4970)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_c01_loss_is_on_completion_tokens_only(architecture, pad, tiny_model):
    model = tiny_model(architecture, initializer_range=0.15)
    rows = [([70, 71, 72], [80, 4]), ([73], [81, 82, 83, 84, 4]), ([74, 4, 75, 76, 77, 78], [85, 4])]
    loss = sft_loss(model, rows, pad, "cpu")
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected = 0
    for prompt, completion in rows:
        logp = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1:-1].log_softmax(-1)  # (T, V)
        expected = expected - logp.gather(1, torch.tensor(completion)[:, None]).sum()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert all(torch.allclose(found[n], p.grad, atol=1e-5) for n, p in model.named_parameters() if p.grad is not None)
    parts = [sft_loss(model, rows[i:i + 1], pad, "cpu").item() for i in range(3)]
    assert sum(parts) == pytest.approx(loss.item(), rel=1e-6)


# ----- a judge that knows the truth and errs by plan -----

COUNT = 24  # items, of all sizes from n = 1 to 5


def has(ids, part):
    return any(ids[i:i + len(part)] == part for i in range(len(ids)))


class Judge:
    """In place of generation.generate: right, wrong, cut off, or talking about the hint, by item number and sample index.

    The displayed order is read from the prompt. Every judgment begins with <unk>, which decoding drops: its ids do not
    come back from its text.
    """
    def __init__(self, limit=COUNT, plan=None, n_rft=3):
        self.items = {e.id: e for e in load_examples("toy", "train", limit)}
        self.plan, self.n_rft, self.calls = plan or self.planned, n_rft, []

    @staticmethod
    def planned(number, sample):
        """Verdict of a sample of item `number`; sample None is the hinted one."""
        if sample is None:
            return "talks" if number % 5 == 0 else "wrong" if number % 3 == 0 else "right"
        return "right" if number % 8 >> sample & 1 else "cut" if number % 7 == 1 else "wrong"

    def fates(self, item):
        """(non-hinted fates, hinted fates) that the plan leads to."""
        number = int(item.split("-")[-1])
        verdicts, hinted = [self.plan(number, j) for j in range(self.n_rft)], self.plan(number, None)
        easy = all(v == "right" for v in verdicts)
        return (["incorrect" if v != "right" else "too_easy" if easy else "kept" for v in verdicts],
                [{"right": "too_easy" if easy else "kept", "talks": "mentions_hint"}.get(hinted, "incorrect")])

    def __call__(self, model, tokenizer, prompts, temperature, max_new_tokens, seeds, **_):
        self.calls.append((prompts, seeds))
        return [self.write(tokenizer, prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)]

    def write(self, tokenizer, prompt, seed):
        item, sample = seed.split("/")[1:]
        example, number, sample = self.items[item], int(item.split("-")[-1]), int(sample)

        def encode(text):
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        def place(text):
            ids = encode(text)
            return next(i for i in range(len(prompt)) if prompt[i:i + len(ids)] == ids)
        shown = example.permuted(sorted(range(len(example.responses)), key=lambda i: place(example.responses[i])))
        hint = f"The best response is: Response {shown.rewards.index(max(shown.rewards)) + 1}" if len(shown.responses) > 1 else \
            f"The response is {'correct' if shown.rewards[0] else 'not correct'}."
        assert has(prompt, encode(hint)) == (sample == self.n_rft)  # there, and right, when it should be
        verdict = self.plan(number, None if sample == self.n_rft else sample)
        good = [int(r == max(shown.rewards)) for r in shown.rewards] if len(shown.rewards) > 1 else shown.rewards
        points = [g if len(good) == 1 else 2 + 7 * g for g in good]
        if verdict == "wrong":
            points = [1 - p if len(points) == 1 else 11 - p for p in points]
        said = "The best response is: Response 1" if verdict == "talks" else "Analysis: Response 1: tone good."
        ids = [tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.pad_token_id]
        ids += encode(f"Specific Criteria: tone 100%.\n{said}\nScores: \\boxed{{{', '.join(map(str, points))}}}")
        ended = verdict != "cut"
        return generation.Row(ids + [tokenizer.eos_token_id] * ended, [-0.5] * (len(ids) + ended), ended)


def save_tiny(folder, tokenizer, **options):
    size, ends = len(tokenizer), (tokenizer.eos_token_id, tokenizer.pad_token_id)
    make_tiny_model("llama", size, *ends, **{"initializer_range": 0.2, **options}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory, toy_tokenizer):
    return save_tiny(tmp_path_factory.mktemp("base"), toy_tokenizer)


def play(monkeypatch, judge=None, sgd=False):
    """The judge in the sampler's place. Returns what happened: "rows" (of every part of every update), "models", "chats" (how
    many were asked for), "samples" (how many there are to train on, at each update)."""
    seen, load, chats, indices = defaultdict(list), generation.load_model, spct_rft.load_chats, runs.batch_indices
    seen["judge"] = judge or Judge()

    def loss(model, rows, pad_id, device):
        seen["rows"] += rows
        return sft_loss(model, rows, pad_id, device)

    def remembered(*args, **options):
        model, tokenizer = load(*args, **options)
        seen["models"].append(model)
        return model, tokenizer

    def order(step, batch_size, count, seed):
        seen["samples"].append(count)
        return indices(step, batch_size, count, seed)

    def chatted(name, count, seed):
        seen["chats"].append(count)
        return chats(name, count, seed)
    monkeypatch.setattr(generation, "generate", seen["judge"])
    monkeypatch.setattr(generation, "load_model", remembered)
    monkeypatch.setattr(spct_rft, "sft_loss", loss)
    monkeypatch.setattr(spct_rft, "load_chats", chatted)
    monkeypatch.setattr(spct_rft, "batch_indices", order)
    if sgd:  # AdamW blows up rounding differences of tiny gradients
        monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, lr, **_: torch.optim.SGD(parameters, lr))
    return seen


def command(model, output, *flags):
    return [str(word) for word in (
        "spct_rft.py", "--model", model, "--output", output, "--data", "toy", "--limit", COUNT, "--batch_size", 8,
        "--micro_batch_size", 4, "--general_fraction", 0, "--epochs", 0.1, "--lr", 0.01, *flags)]


def train(monkeypatch, model, output, *flags):
    """spct_rft.py in this process; its metrics."""
    monkeypatch.setattr(sys, "argv", command(model, output, *flags))
    spct_rft.main()
    return read_rows(Path(output) / "metrics.jsonl")


def refused(monkeypatch, capsys, model, output, *flags):
    """The one line that spct_rft.py ends with at a user's mistake (exit code 2)."""
    monkeypatch.setattr(sys, "argv", command(model, output, *flags))
    with pytest.raises(SystemExit) as stop:
        spct_rft.main()
    err = [line for line in capsys.readouterr().err.splitlines() if "%|" not in line and line.strip()]
    assert stop.value.code == 2 and len(err) == 1 and err[0].startswith("error: "), err
    return err[0]


def weights(folder):
    return generation.load_model(str(folder))[0].state_dict()


def untimed(rows):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def counted(fates):
    """selection.json's two counters from a list of (non-hinted fates, hinted fates)."""
    return Counter(f for plain, _ in fates for f in plain), Counter(f for _, hinted in fates for f in hinted)


# ----- what is trained on -----

def test_c17_c24_sampled_ids_are_trained_on_and_the_hint_is_not_in_the_prompt(base, tmp_path, monkeypatch, toy_tokenizer):
    # TRL #5224: decoding and encoding gives other ids.   Paper §3.2: the hint is for sampling only.
    seen = play(monkeypatch)
    train(monkeypatch, base, tmp_path / "out", "--epochs", 1.3)
    judge, kept = seen["judge"], set()
    for row in read_rows(tmp_path / "out" / "trajectories.jsonl"):
        fates = sum(judge.fates(row["id"]), [])
        for t, fate in zip(row["non_hinted"] + row["hinted"], fates, strict=True):
            assert t["correct"] == (fate in ("kept", "too_easy", "mentions_hint"))
            if fate == "kept":
                shown = judge.items[row["id"]].permuted(t["permutation"])
                prompt = build_prompt(shown, "compact", "0-1" if len(shown.responses) == 1 else "1-10")
                kept.add((tuple(encode_chat(toy_tokenizer, prompt)), tuple(t["completion_ids"])))
    trained = {(tuple(p), tuple(c)) for p, c in seen["rows"]}
    assert trained == kept and len(kept) > COUNT
    assert all(c[0] == toy_tokenizer.unk_token_id and c[-1] == toy_tokenizer.eos_token_id for _, c in trained)
    hints = [toy_tokenizer(text, add_special_tokens=False)["input_ids"]
             for text in ("The best response is: Response", "The response is correct.", "The response is not correct.")]
    asked = [prompt for prompts, _ in judge.calls for prompt in prompts]
    assert sum(any(has(prompt, hint) for hint in hints) for prompt in asked) == COUNT  # once per item, in sampling
    assert not any(has(list(prompt), hint) for prompt, _ in trained for hint in hints)
    numbers = [seed.split("/")[2] for _, seeds in judge.calls for seed in seeds]
    assert Counter(numbers) == {"0": COUNT, "1": COUNT, "2": COUNT, "3": COUNT}


def test_c21_truncated_trajectories_are_incorrect(base, tmp_path, monkeypatch):
    play(monkeypatch, Judge(plan=lambda number, sample: "right" if sample in (2, None) else "cut"))
    train(monkeypatch, base, tmp_path / "out")
    assert read_json(tmp_path / "out" / "selection.json")["non_hinted"] == {"incorrect": 2 * COUNT, "kept": COUNT}
    rows = read_rows(tmp_path / "out" / "trajectories.jsonl")
    assert {t["reason"] for row in rows for t in row["non_hinted"][:2]} == {"truncated"}


@pytest.mark.parametrize("flags", [[], ["--no_hinted"], ["--no_non_hinted"], ["--easy_hinted", "keep"], ["--hinted_only_failed"],
                                   ["--n_rft", 2, "--no_hinted"]])
def test_selection_of_each_ablation(flags, base, tmp_path, monkeypatch):
    seen = play(monkeypatch, judge := Judge(n_rft=2 if "--n_rft" in flags else 3))
    train(monkeypatch, base, tmp_path / "out", *flags)
    fates = []
    for item in judge.items:
        plain, hinted = judge.fates(item)
        if "--no_non_hinted" in flags:
            plain, hinted = [], ["kept" if f == "too_easy" else f for f in hinted]
        if "--easy_hinted" in flags:
            hinted = ["kept" if f == "too_easy" else f for f in hinted]
        if "--no_hinted" in flags or "--hinted_only_failed" in flags and set(plain) != {"incorrect"}:
            hinted = []
        fates.append((plain, hinted))
    report, (plain, hinted) = read_json(tmp_path / "out" / "selection.json"), counted(fates)
    assert report["non_hinted"] == plain and report["hinted"] == hinted and report["items"] == COUNT
    assert report["kept"] == plain["kept"] + hinted["kept"] == seen["samples"][0] > 4
    by_domain = Counter()
    for counts in report["by_domain"].values():
        by_domain.update(counts)
    assert by_domain == {**{f"non_hinted/{f}": c for f, c in plain.items()}, **{f"hinted/{f}": c for f, c in hinted.items()}}


def test_c17_text_of_another_tokenizer_gets_an_end_token(base, tmp_path, byte_tokenizer, monkeypatch, toy_tokenizer):
    other = save_tiny(tmp_path / "other", byte_tokenizer("chatml"), max_position_embeddings=4096)
    seen = play(monkeypatch)
    train(monkeypatch, base, tmp_path / "out", "--sampler", other, "--epochs", 1.3)
    report, rows = read_json(tmp_path / "out" / "selection.json"), read_rows(tmp_path / "out" / "trajectories.jsonl")
    assert report["same_tokenizer"] is False
    expected = {tuple(toy_tokenizer(t["text"], add_special_tokens=False)["input_ids"] + [toy_tokenizer.eos_token_id])
                for row in rows for t in row["non_hinted"] + row["hinted"] if t["correct"]}
    trained = {tuple(c) for _, c in seen["rows"]}
    assert trained <= expected and len(trained) > 3
    assert all(toy_tokenizer.decode(c, skip_special_tokens=True).endswith("}") for c in trained)
    assert len(seen["models"]) == 2 and seen["models"][0].config.max_position_embeddings == 4096


def test_same_tokenizer_in_another_folder_keeps_the_ids(base, tmp_path, monkeypatch, toy_tokenizer):
    twin = save_tiny(tmp_path / "twin", toy_tokenizer, seed=5)
    seen = play(monkeypatch)
    train(monkeypatch, base, tmp_path / "out", "--sampler", twin)
    assert read_json(tmp_path / "out" / "selection.json")["same_tokenizer"] is True
    assert all(c[0] == toy_tokenizer.unk_token_id for _, c in seen["rows"])


def test_a_gguf_file_as_sampler(base, tmp_path, monkeypatch, toy_tokenizer):
    """Its tokenizer is read from the file, and compared; the library's readers are replaced by those of a folder."""
    twin, asked = save_tiny(tmp_path / "twin", toy_tokenizer, seed=5), []
    for reader in (generation.AutoTokenizer, generation.AutoModelForCausalLM):
        def read(pretrained_model_name_or_path, gguf_file=None, read=reader.from_pretrained, **options):
            asked.append((str(pretrained_model_name_or_path), gguf_file))
            return read(twin if gguf_file else pretrained_model_name_or_path, **options)
        monkeypatch.setattr(reader, "from_pretrained", read)
    (tmp_path / "judge.gguf").write_bytes(b"GGUF")
    play(monkeypatch)
    train(monkeypatch, base, tmp_path / "out", "--sampler", tmp_path / "judge.gguf")
    assert read_json(tmp_path / "out" / "selection.json")["same_tokenizer"] is True
    assert asked.count((str(tmp_path), "judge.gguf")) == 3 and {g for _, g in asked} == {None, "judge.gguf"}


def test_general_fraction_is_the_share_of_all_samples(base, tmp_path, monkeypatch):
    for fraction in (0, 0.5, 0.85):
        seen = play(monkeypatch)
        train(monkeypatch, base, tmp_path / str(fraction), "--general_fraction", fraction)
        kept = read_json(tmp_path / str(fraction) / "selection.json")["kept"]
        general = sum(seen["chats"])
        assert general / (kept + general) == pytest.approx(fraction, abs=0.005)
        assert seen["samples"][0] == kept + general


def test_general_data_of_the_user_is_trained_on_its_answers(base, tmp_path, monkeypatch, toy_tokenizer):
    chats = [[{"role": "user", "content": "Say in reverse : sun moon"}, {"role": "assistant", "content": "moon sun ."}]]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": chats[0]}) + "\n", encoding="utf-8")
    seen = play(monkeypatch)
    train(monkeypatch, base, tmp_path / "out", "--general_data", tmp_path / "chats.jsonl", "--general_fraction", 0.5)
    question, answer = (toy_tokenizer(text)["input_ids"]
                        for text in ("<|user|>Say in reverse : sun moon<|assistant|>", "moon sun .<|end|>"))
    assert (question, answer) in seen["rows"]


def test_general_only_samples_no_trajectory(base, tmp_path, monkeypatch):
    seen = play(monkeypatch)
    rows = train(monkeypatch, base, tmp_path / "out", "--general_only", "--epochs", 1)
    assert not seen["judge"].calls and seen["chats"] == [COUNT] and len(rows) == COUNT // 8
    assert not (tmp_path / "out" / "trajectories.jsonl").exists() and not (tmp_path / "out" / "selection.json").exists()
    assert set(seen["samples"]) == {COUNT}


def test_c13_every_weight_is_trained_and_the_judgments_become_likelier(base, tmp_path, monkeypatch):
    play(monkeypatch)
    rows = train(monkeypatch, base, tmp_path / "out", "--epochs", 4)
    before, after = weights(base), weights(tmp_path / "out" / "model")
    assert before.keys() == after.keys() and all(not torch.equal(before[k], v) for k, v in after.items())
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


def test_loss_of_an_update_is_the_mean_over_its_tokens(base, tmp_path, monkeypatch):
    seen = play(monkeypatch)
    [first, *_] = train(monkeypatch, base, tmp_path / "out")
    rows = seen["rows"][:8]
    model, tokenizer = generation.load_model(base)
    assert first["tokens"] == sum(len(c) for _, c in rows)
    assert first["loss"] == pytest.approx(sft_loss(model, rows, 0, "cpu").item() / first["tokens"], rel=1e-5)


def test_gradient_checkpointing_trains_the_same(base, tmp_path, monkeypatch):
    play(monkeypatch, sgd=True)
    plain = train(monkeypatch, base, tmp_path / "plain")
    checkpointed = train(monkeypatch, base, tmp_path / "checkpointed", "--gradient_checkpointing")
    assert all(a == pytest.approx(b, rel=1e-5) for a, b in zip(untimed(plain), untimed(checkpointed), strict=True))


# ----- mistakes -----

ITEM = {"id": "a", "prompt": "Hi", "responses": ["x", "y"], "rewards": [1, 0]}


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("flags, word", [
    (["--data", "none.jsonl"], "none.jsonl"), (["--model", "no/such/model"], "no/such/model"),
    (["--batch_size", 0], "--batch_size"),
    (["--general_fraction", 1], "--general_only"), (["--no_hinted", "--no_non_hinted"], "--general_only"),
    (["--general_data", "none.jsonl", "--general_fraction", 0.5], "none.jsonl"),
])
def test_wrong_flags(flags, word, base, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    play(monkeypatch)
    assert word in refused(monkeypatch, capsys, base, tmp_path / "out", *flags)


def test_wrong_data(base, tmp_path, monkeypatch, capsys):
    unlabelled = jsonl(tmp_path / "unlabelled.jsonl", ITEM, {**ITEM, "id": "b", "rewards": None})
    assert "item b has no 'rewards'" in refused(monkeypatch, capsys, base, tmp_path / "1", "--data", unlabelled)
    single = jsonl(tmp_path / "single.jsonl", {**ITEM, "responses": ["x"], "rewards": [1]})
    assert "best" in refused(monkeypatch, capsys, base, tmp_path / "2", "--data", single, "--rating", "best")
    play(monkeypatch, Judge(plan=lambda number, sample: "wrong"))
    line = refused(monkeypatch, capsys, base, tmp_path / "3")
    assert f"no trajectory survived of {COUNT} items" in line and "parsing: {'ok': " in line and "--limit" in line
    assert not (tmp_path / "1").exists() and not (tmp_path / "2").exists()  # mended data may go to the same --output


def test_other_folders_are_left_alone(base, tmp_path, monkeypatch, capsys):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine", encoding="utf-8")
    assert "not a run folder" in refused(monkeypatch, capsys, base, foreign)
    assert [p.name for p in foreign.iterdir()] == ["thesis.tex"]
    play(monkeypatch)
    rows = train(monkeypatch, base, tmp_path / "run")
    line = refused(monkeypatch, capsys, base, tmp_path / "run", "--n_rft", 4)
    assert "--n_rft 3 there, 4 here" in line and "--overwrite" in line and "--lr" not in line
    judge = play(monkeypatch)["judge"]
    assert train(monkeypatch, base, tmp_path / "run", "--save_every", 7) == rows and not judge.calls  # finished: nothing again


# ----- killed and continued, and two processes -----

def test_stopped_sampling_continues_with_the_chunk_in_the_making(base, tmp_path, monkeypatch, capsys):
    play(monkeypatch, whole := Judge(140))
    flags = ["--limit", 140]
    train(monkeypatch, base, tmp_path / "whole", *flags)
    play(monkeypatch, judge := Judge(140))

    def stopped(*args, **options):
        if len(judge.calls) == 3:  # within the second of two chunks, between non-hinted and hinted
            raise KeyboardInterrupt
        return judge(*args, **options)
    monkeypatch.setattr(generation, "generate", stopped)
    monkeypatch.setattr(sys, "argv", command(base, tmp_path / "stopped", *flags))
    with pytest.raises(SystemExit) as stop:
        spct_rft.main()
    assert stop.value.code == 130 and "same command continues" in capsys.readouterr().err
    assert not (tmp_path / "stopped" / "trajectories.jsonl").exists()
    play(monkeypatch, judge := Judge(140))
    train(monkeypatch, base, tmp_path / "stopped", *flags)
    assert [len(seeds) for _, seeds in judge.calls] == [len(seeds) for _, seeds in whole.calls][2:] and len(judge.calls) == 2
    files = [(tmp_path / name / "trajectories.jsonl").read_bytes() for name in ("whole", "stopped")]
    assert files[0] == files[1]
    a, b = (weights(tmp_path / name / "model") for name in ("whole", "stopped"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_c23_killed_and_continued_equals_uninterrupted_bitwise(base, tmp_path, monkeypatch):
    flags = ["--save_every", 3, "--general_fraction", 0.5, "--epochs", 0.6]
    killed = started([__file__], *command(base, tmp_path / "killed", *flags)[1:], DIE_AT="4")
    play(monkeypatch)
    whole = train(monkeypatch, base, tmp_path / "whole", *flags)
    assert len(whole) == 6
    code, out = finished(killed)
    assert code == -signal.SIGKILL, out
    assert [r["step"] for r in read_rows(tmp_path / "killed" / "metrics.jsonl")] == [1, 2, 3, 4]
    assert not (tmp_path / "killed" / "model").exists()
    with open(tmp_path / "killed" / "metrics.jsonl", "a", encoding="utf-8") as file:  # a kill can tear the last line
        file.write('{"step": 5, "lo')
    rows = train(monkeypatch, base, tmp_path / "killed", *flags)
    assert untimed(rows) == untimed(whole)
    a, b = weights(tmp_path / "whole" / "model"), weights(tmp_path / "killed" / "model")
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], v) for k, v in weights(base).items())


def test_c08_c22_c27_two_processes_equal_one(base, tmp_path, monkeypatch):
    # two chunks of trajectories, one per process
    flags = ["--limit", 140, "--batch_size", 32, "--micro_batch_size", 6, "--epochs", 0.4, "--lr", 0.5]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two = started(torchrun, __file__, *command(base, tmp_path / "two", *flags)[1:], DUMP=str(tmp_path), LIMIT="140")
    play(monkeypatch, Judge(140), sgd=True)
    one = train(monkeypatch, base, tmp_path / "one", *flags)
    code, out = finished(two)
    assert code == 0, out
    assert read_json(tmp_path / "two" / "config.json")["processes"] == 2 and len(one) == 3
    files = [(tmp_path / name / "trajectories.jsonl").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1] and [read_json(tmp_path / f"{r}.json") for r in (0, 1)] == [{"calls": 2, "ddp": [0]}] * 2
    for a, b in zip(untimed(one), untimed(read_rows(tmp_path / "two" / "metrics.jsonl")), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    first, second = (torch.load(tmp_path / f"{r}.pt") for r in (0, 1))
    whole, shared = (weights(tmp_path / name / "model") for name in ("one", "two"))
    assert all(torch.equal(first[k], second[k]) and torch.equal(first[k], shared[k]) for k in shared)
    assert all(torch.allclose(whole[k], shared[k], atol=1e-5) for k in whole)
    assert max((whole[k] - v).abs().max() for k, v in weights(base).items()) > 0.01


def main():
    """spct_rft.py with the judge. DIE_AT: kill -9 at this update.  DUMP: where each process writes what it holds."""
    die_at, dump = int(os.environ.get("DIE_AT", 0)), os.environ.get("DUMP")
    log_metrics = spct_rft.log_metrics

    def logged(output, accelerator=None, **metrics):
        log_metrics(output, accelerator, **metrics)
        if metrics["step"] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(spct_rft, "log_metrics", logged)
    seen, left = play(monkeypatch, Judge(int(os.environ.get("LIMIT", COUNT))), sgd=bool(dump)), ddp_at_the_end(monkeypatch)
    spct_rft.main()
    if dump:
        rank = os.environ["RANK"]
        torch.save(seen["models"][-1].state_dict(), Path(dump) / f"{rank}.pt")
        (Path(dump) / f"{rank}.json").write_text(json.dumps({"calls": len(seen["judge"].calls), "ddp": left}), encoding="utf-8")


if __name__ == "__main__":
    main()
