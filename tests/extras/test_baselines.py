"""Baselines: Eqs. 4, 5, 12 and token probabilities by hand; every method from end to end, tiny."""
import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, error_of
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from eval import item_credit
from extras import baselines
from grm import Judgment, PreferenceExample, build_prompt, encode_chat
from infer_scale import sample_row
from plumbing import generation, runs
from plumbing.runs import (
    UserError,
    read_json,
    read_rows,
    start_accelerator,
    write_json,
    write_rows,
)
from toy_world import world

ROW = {"id", "domain", "rewards", "n", "cluster", "response_lengths", "samples", "votes"}
SMALL = ["--limit", 8, "--test_limit", 6, "--max_new_tokens", 8, "--batch_size", 4, "--epochs", 1]
PROGRAM = "extras.baselines"


def item(*responses, best=0, id="x"):
    rewards = [int(i == best) for i in range(len(responses))]
    return PreferenceExample(id, [{"role": "user", "content": "What of chess ?"}], list(responses),
                             rewards)


def toy_items(count, n=None, seed=5):
    return world.items("train", count, seed, n=n)


def judgment(order, text, scores, sample=0, tokens=0):
    return Judgment(sample, order, [1, 2], [3] * tokens, text, scores, "ok" if scores else "no_box",
                    [], 2, tokens)


# ----- Eqs. 4 and 5 by hand -----

def test_pair_choice_is_eq_5():
    assert [baselines.pair_choice(s) for s in (0.25, -0.7, 0.0, 40.0, -1e-9)] == [1, 2, 1, 1, 2]


@pytest.mark.parametrize("S, signs, margins", [
    # Eq. 4: -log sigmoid(2.0 - 0.5) - log sigmoid(-1.0 - 3.0)
    ([[2.0, 0.5], [-1.0, 3.0]], [[1.0, -1.0], [1.0, -1.0]], [1.5, -4.0]),
    # Eq. 5: y_1 better at S = 0.25, y_2 better at S = 0.25 and at S = -0.7
    ([[0.25], [0.25], [-0.7]], [[1.0], [-1.0], [-1.0]], [0.25, -0.25, 0.7])])
def test_preference_loss_is_bradley_terry_and_binary_cross_entropy(S, signs, margins):
    loss = baselines.preference_loss(torch.tensor(S), torch.tensor(signs)).item()
    assert loss == pytest.approx(sum(math.log(1 + math.exp(-m)) for m in margins))


@pytest.mark.parametrize("S, n, result", [
    ({(0, 1): 0.3}, 2, ([1, 0], "ok")),
    ({(1, 0): 0.3}, 2, ([0, 1], "ok")),
    ({(2, 0): 1.0, (2, 1): 1.0, (0, 1): 5.0}, 3, ([0, 0, 1], "ok")),
    ({(0, 1): 1.0, (1, 2): 1.0, (2, 0): 1.0}, 3, (None, "no_winner")),  # a circle
    ({(0, 1): 9.0, (0, 2): 9.0, (0, 3): -0.1, (1, 2): 1.0, (1, 3): 1.0, (2, 3): 1.0}, 4,
     (None, "no_winner"))])
def test_the_winner_beats_every_other_response(S, n, result):
    assert baselines.round_robin(S, n) == result


# ----- what the models read -----

def test_bradley_terry_rows_pair_the_best_with_each_other():
    assert baselines.bradley_terry_rows(["a", "b", "c"], [0, 2, 1]) == [
        [("b", 1.0), ("a", -1.0)], [("b", 1.0), ("c", -1.0)]]


def test_pair_rows_show_both_orders_and_name_the_better(toy_tokenizer):
    rows = baselines.pair_rows(toy_tokenizer, item("focused .", "rude .", "kind .", best=2))
    for [((prompt, completion), sign)], expected, other in zip(
            rows, [1, -1, 1, -1], ["focused", "focused", "rude", "rude"], strict=True):
        text = toy_tokenizer.decode(prompt)
        assert completion == [toy_tokenizer.eos_token_id] and sign == expected
        assert (text.index("kind") < text.index(other)) == (sign > 0)


@pytest.mark.parametrize("name", ["chatml", "gemma", "mistral"])
def test_the_response_is_the_assistants_turn(name, byte_tokenizer):
    tokenizer = byte_tokenizer(name)
    e = item("Yes.", "No. " + tokenizer.eos_token)
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"},
             {"role": "user", "content": "C"}]
    e.prompt = [{"role": "system", "content": "Be brief."}, *turns]
    first, second = baselines.response_ids(tokenizer, e)
    chat = [{"role": "user", "content": "Be brief.\nA"}, *turns[1:]]
    if name == "chatml":  # its template has a system turn
        chat = e.prompt
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(first[0]) == prompt
    assert tokenizer.decode(first[1]) == "Yes." + tokenizer.eos_token
    assert first[0] == second[0]
    assert second[1].count(tokenizer.eos_token_id) == 1, "a response cannot end its turn early"
    if tokenizer.bos_token_id is not None:
        assert first[0].count(tokenizer.bos_token_id) == 1


# ----- training: learns its items, continues after a kill, loads in plain transformers -----

def train_args(tiny, **changed):
    return argparse.Namespace(**{"model": tiny, "seed": 0, "epochs": 2, "batch_size": 6,
                                 "micro_batch_size": 6, "lr": 1e-3, "save_every": 99, **changed})


@pytest.mark.parametrize("method, epochs", [("btrm", 12), ("pairrm", 25)])
def test_a_scalar_head_learns_its_training_items(method, epochs, tiny, tmp_path):
    args = train_args(tiny, epochs=epochs, batch_size=8, micro_batch_size=8, lr=3e-3)
    items = toy_items(10, n=2) + toy_items(2, n=3, seed=6)
    rows = getattr(baselines, method)(args, start_accelerator(), tmp_path, items, items)
    assert [r["id"] for r in rows] == [e.id for e in items] and all(set(r) == ROW for r in rows)
    assert sum(item_credit(r, 1) for r in rows) / len(rows) > 0.9
    losses = [r["loss"] for r in read_rows(tmp_path / "metrics.jsonl")]  # mean over the rows, nats
    assert losses[0] == pytest.approx(math.log(2), abs=0.35) and losses[-1] < 0.4

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokenizer = generation.AutoTokenizer.from_pretrained(tmp_path / "model")

    def plain(prompt, completion):
        return model(input_ids=torch.tensor([prompt + completion])).logits.item()
    for e, row in zip(items, rows, strict=True):
        if method == "btrm":
            [sample], read = row["samples"], baselines.response_ids(tokenizer, e)
            assert sample["scores"] == pytest.approx([plain(*s) for s in read], abs=1e-3)
            assert sample["prompt_tokens"] == sum(len(p) + len(c) for p, c in read)
            continue
        one, two = row["samples"]
        assert one["permutation"] == two["permutation"][::-1]
        for sample in (one, two):
            order = sample["permutation"]
            games = {(i, j): plain(*baselines.meta_ids(tokenizer, e.permuted([i, j]), ""))
                     for place, i in enumerate(order) for j in order[place + 1:]}
            expected = baselines.round_robin(games, row["n"])
            assert (sample["scores"], sample["reason"]) == expected


def test_micro_batches_do_not_change_the_update(tiny, tmp_path):
    losses = []
    for micro in (2, 6):
        folder = tmp_path / str(micro)
        baselines.btrm(train_args(tiny, micro_batch_size=micro), start_accelerator(), folder,
                       toy_items(6, n=2), toy_items(2, n=2))
        losses.append([(r["loss"], r["grad_norm"]) for r in read_rows(folder / "metrics.jsonl")])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-4)
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-3)


@pytest.mark.parametrize("method", ["btrm", "cloud"])
def test_a_killed_run_continues_to_the_same_files(method, tiny, tmp_path, cli, monkeypatch):
    def train(name):
        return cli(PROGRAM, method, "--model", tiny, *SMALL, "--k", 2, "--general_fraction", 0.5,
                   "--save_every", 2, "--output", tmp_path / name)[0]
    assert train("straight") == 0
    log, stops = runs.log_metrics, {"left": 1 if method == "btrm" else 2}

    def dies(folder, accelerator=None, **metrics):
        log(folder, accelerator, **metrics)
        if metrics["step"] == 3 and stops["left"]:  # one update after the last saved state
            stops["left"] -= 1
            raise KeyboardInterrupt
    monkeypatch.setattr(runs, "log_metrics", dies)
    codes = [train("killed") for _ in range(stops["left"] + 1)]
    assert codes == [130] * (len(codes) - 1) + [0]
    files = ["samples.jsonl", "model/model.safetensors"]
    if method == "cloud":
        files += ["greedy/samples.jsonl", "critic/model/model.safetensors"]
    for name in files:
        whole, resumed = ((tmp_path / run / name).read_bytes() for run in ("straight", "killed"))
        assert whole == resumed, name
    steps = [r["step"] for r in read_rows(tmp_path / "killed" / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1)), "metrics of an undone update are dropped"


# ----- CLoud -----

def test_cloud_averages_k_rewards(monkeypatch, toy_tokenizer, tmp_path):
    """Eq. 12 by hand: critique j of response i is a number, which the stub of the head reads."""
    written = {"x/0": ["3", "5"], "x/1": ["1", "9"], "one/0": ["2", "4"]}
    words = {"x/0": "focused", "x/1": "rude", "one/0": "kind"}

    def critics(model, tokenizer, views, k, temperature, seed, **options):
        assert options["rating"] == "1-10" and temperature == (0.5 if k == 2 else 0.0)
        return [[judgment([0], written[v.id][j], None, j, j + 1) for j in range(k)] for v in views]

    def head(model, pairs, pad_id):
        for prompt, completion in pairs:
            text = toy_tokenizer.decode(prompt)
            [view] = [v for v, word in words.items() if word in text]  # one response alone
            assert toy_tokenizer.decode(completion[:1]) in written[view]
            assert completion[1:] == [toy_tokenizer.eos_token_id]
        return [float(toy_tokenizer.decode(completion[:1])) for _, completion in pairs]
    monkeypatch.setattr(baselines, "sample_judgments", critics)
    monkeypatch.setattr(baselines, "score_pairs", head)
    monkeypatch.setattr(baselines, "train_scalar", lambda *args: (None, toy_tokenizer))
    monkeypatch.setattr(generation, "load_model", lambda *args, **options: (None, toy_tokenizer))
    (tmp_path / "critic" / "model").mkdir(parents=True)
    args = argparse.Namespace(k=2, temperature=0.5, seed=0, template="compact", max_new_tokens=8,
                              no_principles=False, use_reference=False, rating=None, thinking=None)
    test = [item("A focused reply", "A rude reply", best=1), item("A kind reply", id="one")]
    rows = baselines.cloud(args, start_accelerator(), tmp_path, [], test)
    assert [s["scores"] for s in rows[0]["samples"]] == [[3, 1], [5, 9]]
    assert [v / 2 for v in rows[0]["votes"]] == [4, 5], "Eq. 12: the means"
    assert item_credit(rows[0], 2) == 1.0 and item_credit(rows[0], 1) == 0.5
    assert rows[1]["votes"] == [6] and rows[1]["n"] == 1, "a single response has a score"
    assert [s["text"] for s in rows[0]["samples"]] == ["3\n\n1", "5\n\n9"]
    assert [s["tokens"] for s in rows[0]["samples"]] == [2, 4]
    greedy = read_rows(tmp_path / "greedy" / "samples.jsonl")
    assert [s["scores"] for s in greedy[0]["samples"]] == [[3, 1]]


def test_cloud_trains_its_critic_without_rejection(tiny, tmp_path, cli, monkeypatch, toy_tokenizer):
    trained, train = {}, baselines.train

    def spy(folder, args, accelerator, model, tokenizer, rows, loss_of, label, **options):
        trained[label] = rows
        return train(folder, args, accelerator, model, tokenizer, rows, loss_of, label, **options)
    monkeypatch.setattr(baselines, "train", spy)
    assert cli(PROGRAM, "cloud", "--model", tiny, *SMALL, "--limit", 20, "--k", 2,
               "--general_fraction", 0.5, "--output", tmp_path)[0] == 0
    items = [e for e in toy_items(20, seed=0) if len(e.responses) > 1]
    assert len(items) < 20, "one is a single response: no baseline learns from it"
    critiques, heads = (read_rows(tmp_path / f"{name}.jsonl")
                        for name in ("critiques", "head_critiques"))
    ids = [f"{e.id}/{i}" for e in items for i in range(len(e.responses))]
    assert [r["id"] for r in critiques] == ids
    rows = trained["CLoud's critic"]
    assert rows[:len(ids)] == [(r["prompt_ids"], r["completion_ids"]) for r in critiques]
    assert len(rows) == 2 * len(ids)  # as many general chats
    texts, expected = iter(r["text"] for r in heads), []
    for e in items:  # every response with its own critique
        own = [baselines.meta_ids(toy_tokenizer, e.permuted([i]), next(texts))
               for i in range(len(e.responses))]
        best = e.rewards.index(1)
        expected += [[(own[best], 1.0), (other, -1.0)] for j, other in enumerate(own) if j != best]
    assert trained["CLoud's scalar head"] == expected
    rows = read_rows(tmp_path / "samples.jsonl")
    assert len(rows) == 6 and all(set(r) == ROW and len(r["samples"]) == 2 for r in rows)
    assert all(len(s["scores"]) == r["n"] for r in rows for s in r["samples"])


# ----- LLM-as-a-Judge and its token probabilities -----

def judged(folder, tiny, examples, verdicts, rating="best"):
    """A judge's run folder by hand. verdicts: per item [(permutation, number chosen or None)]."""
    rows = []
    for e, samples in zip(examples, verdicts, strict=True):
        judgments = []
        for j, (order, chosen) in enumerate(samples):
            text, scores = "Analysis: Response 1: tone good.", None
            if chosen:
                text += f" \\boxed{{1, 2}} Scores: \\boxed{{{chosen}}}"
                scores = [int(order[chosen - 1] == i) for i in range(len(order))]
            judgments.append(judgment(order, text, scores, j))
        rows.append({**sample_row(e, judgments), "meta_logits": [0.0] * len(samples)})
    write_rows(folder / "samples.jsonl", rows)
    write_json(folder / "config.json", {"args": {
        "rating": rating, "data": "toy", "split": "test", "limit": 6, "domain": None, "model": tiny,
        "template": "compact", "no_principles": False, "use_reference": False}})
    return rows


def test_token_probabilities_are_those_of_the_judge(tiny, toy_tokenizer, tmp_path, cli):
    examples = [e for e in world.items("test", 6) if len(e.responses) > 1]
    verdicts = [[(list(range(n))[::-1], 2), (list(range(n)), None), ([*range(1, n), 0], 1)]
                for n in (len(e.responses) for e in examples)]
    before = judged(tmp_path / "voting", tiny, examples, verdicts)
    assert cli(PROGRAM, "tokenprob", "--samples", tmp_path / "voting",
               "--output", tmp_path / "tp")[0] == 0
    rows = read_rows(tmp_path / "tp" / "samples.jsonl")
    model = AutoModelForCausalLM.from_pretrained(tiny).eval()
    numbers = toy_tokenizer.convert_tokens_to_ids([str(i) for i in range(1, 6)])
    assert len(rows) > 3 and max(r["n"] for r in rows) > 2
    for e, old, row in zip(examples, before, rows, strict=True):
        assert set(row) == ROW
        for s, was in zip(row["samples"], old["samples"], strict=True):
            assert s["permutation"] == was["permutation"]
            if "boxed" not in s["text"]:
                assert s["scores"] is None and s["reason"] == "no_box"
                continue
            prompt = build_prompt(e.permuted(s["permutation"]), "compact", "best")
            text = s["text"][:s["text"].rindex("{") + 1]
            prompt_ids, text_ids = encode_chat(toy_tokenizer, prompt, text)
            logits = model(input_ids=torch.tensor([prompt_ids + text_ids[:-1]])).logits[0, -1]
            shown = logits[numbers[:row["n"]]].softmax(-1).tolist()
            assert [s["scores"][i] for i in s["permutation"]] == pytest.approx(shown, abs=1e-4)
        one, two = (s["scores"] for s in row["samples"] if s["scores"])
        assert row["votes"] == pytest.approx([a + b for a, b in zip(one, two, strict=True)])


def test_the_answers_place_where_a_tokenizer_joins_brace_and_digit(monkeypatch, byte_tokenizer):
    def joined(tokenizer, messages, text, *_):  # "{1" is one token, as of byte-pair encodings
        tokens = text.replace("{1", "A").replace("{2", "B").replace("{3", "C")
        return [9], [ord(c) for c in tokens] + [0]
    with monkeypatch.context() as patch:
        patch.setattr(baselines, "encode_chat", joined)
        place = baselines.answer_place(None, None, "x{", 3)
        assert place == ([9, ord("x")], [ord("A"), ord("B"), ord("C")])
    tokenizer, chat = byte_tokenizer("chatml"), [{"role": "user", "content": "?"}]
    ids, first = baselines.answer_place(tokenizer, chat, "\\boxed{", 9)
    assert tokenizer.decode(ids).endswith("\\boxed{") and tokenizer.decode(first) == "123456789"
    with pytest.raises(UserError, match="1 to 10"):  # "1" and "10" begin alike
        baselines.answer_place(tokenizer, chat, "\\boxed{", 10)


def test_judge_runs_the_recipe_with_rating_best_then_tokenprob(tiny, tmp_path, cli, monkeypatch):
    commands, failing = [], set()

    def in_process(words):
        name = Path(words[1]).stem
        commands.append(name)
        return SimpleNamespace(returncode=2 if name in failing else cli(name, *words[2:])[0])
    monkeypatch.setattr(subprocess, "run", in_process)
    for module in (runs, sys.modules["eval"]):  # which asks git by a command, too
        monkeypatch.setattr(module, "git_commit", lambda: "x")
    output = tmp_path / "judge"
    flags = ["judge", "--model", tiny, "--limit", 8, "--test_limit", 6, "--k", 3, "--output",
             output, "--max_new_tokens", 6, "--rl", "--limit 8 --steps 1 --prompts_per_step 2",
             "--rft", "--general_only --epochs 0.1 --batch_size 4"]
    failing.add("spct_rl")
    assert cli(PROGRAM, *flags)[0] == 2 and commands == ["spct_rft", "spct_rl"], "stops there"
    failing.clear()
    assert cli(PROGRAM, *flags)[0] == 0
    assert commands[2:] == ["spct_rl", "eval", "infer_scale"], "trained models are kept"
    for stage, model in (("rft", tiny), ("rl", "rft"), ("eval", "rl"), ("voting", "rl")):
        its = json.loads((output / stage / "config.json").read_text())["args"]
        assert its["rating"] == "best" and its["seed"] == 0 and its["max_new_tokens"] == 6
        assert its["model"] == (model if model == tiny else str(output / model / "model"))
    rows = read_rows(output / "voting" / "samples.jsonl")
    assert rows and all(r["n"] > 1 and len(r["samples"]) == 3 for r in rows)
    assert cli(PROGRAM, "tokenprob", "--samples", output / "voting",
               "--output", tmp_path / "tp")[0] == 0
    found = read_rows(tmp_path / "tp" / "samples.jsonl")
    assert [r["id"] for r in found] == [r["id"] for r in rows]


# ----- the command line -----

def test_btrm_and_pairrm_from_the_command_line_then_eval(tiny, tmp_path, cli):
    flags = ["--model", tiny, *SMALL, "--test_limit", 20]
    done = subprocess.run([sys.executable, "-m", PROGRAM, "btrm", *map(str, flags), "--output",
                           str(tmp_path / "btrm")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout and "wrote" in done.stdout
    assert cli(PROGRAM, "pairrm", *flags, "--output", tmp_path / "pairrm")[0] == 0
    single, pairs = (read_rows(tmp_path / name / "samples.jsonl") for name in ("btrm", "pairrm"))
    assert len(single) == 20
    assert {r["n"] for r in single} > {r["n"] for r in pairs}, "PairRM cannot score one response"
    assert all(len(r["samples"][0]["scores"]) == r["n"] for r in single)
    folders = [f"{name}={tmp_path / name}" for name in ("btrm", "pairrm")]
    code, table, _ = cli("eval", "--runs", *folders, "--output", tmp_path / "tables")
    assert code == 0 and "btrm" in table and "pairrm" in table


@pytest.mark.parametrize("flags, said", [
    (["btrm", "--data", "{same}"], "some test items are training items"),
    (["pairrm", "--data", "{one}"], "n >= 2"),
    (["btrm", "--test_data", "{one}"], "n >= 2"),
    (["btrm", "--data", "{blind}"], "no 'rewards'"),
    (["btrm", "--k", "0"], "--k"),
    (["cloud", "--general_fraction", "1"], "--general_fraction"),
    (["cloud", "--general_data", "{nowhere}"], "--general_data"),
    (["btrm", "--model", "/no/such/model"], "does not exist"),
    (["btrm", "--lr", "1e9", "--limit", "8", "--epochs", "9", "--batch_size", "4"], "lower --lr"),
    (["tokenprob", "--samples", "{nowhere}"], "no samples.jsonl"),
    (["tokenprob", "--samples", "{scores}"], "--rating best")])
def test_mistakes_are_one_line(flags, said, tiny, tmp_path, cli):
    def lines(name, **fields):
        row = {"responses": ["a", "b"], "rewards": [0, 1], **fields}
        write_rows(tmp_path / f"{name}.jsonl", [
            {"id": f"i{i}", "prompt": f"query {i}", **row} for i in range(3)])
        return tmp_path / f"{name}.jsonl"
    names = {"same": lines("same"), "one": lines("one", responses=["a"], rewards=[1]),
             "blind": lines("blind", rewards=None), "nowhere": tmp_path / "nowhere",
             "scores": tmp_path / "scores"}
    judged(tmp_path / "scores", tiny, [], [], rating="1-10")
    words = [f.format(**names) for f in flags]
    words += [] if "--model" in words else ["--model", tiny]
    assert said in error_of(cli(PROGRAM, *words, "--output", tmp_path / "out"))
    assert not (tmp_path / "out" / "critiques.jsonl").exists()  # nothing was sampled


def test_a_domain_is_held_out_of_the_rows_that_a_scalar_learns_from(tmp_path, cli):
    code, _, err = cli("extras.baselines", "btrm", "--exclude_domain", "safety", "--limit", 12,
                       "--test_limit", 6, "--epochs", 1, "--output", tmp_path / "btrm")
    assert code == 0 and "safety" in (tmp_path / "btrm" / "samples.jsonl").read_text(), err
    told = read_json(tmp_path / "btrm" / "config.json")
    assert told["args"]["exclude_domain"] == "safety"
    refused = cli("extras.baselines", "judge", "--exclude_domain", "safety", "--output", tmp_path)
    assert "belongs into --rft and --rl" in error_of(refused)
