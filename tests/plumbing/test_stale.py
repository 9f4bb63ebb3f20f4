"""Results are those of the weights and items that are there now: a run folder remembers both by
their content, and the same command with other ones is refused in one line."""
import shutil
from types import SimpleNamespace

import pytest
from conftest import ROOT, error_of

from plumbing.data import load_examples, tell_changes
from plumbing.runs import (
    HELD,
    UserError,
    changes,
    content,
    made_from,
    open_run,
    read_json,
    read_rows,
    save_model,
    write_json,
    write_rows,
)

SHORT = ["--max_new_tokens", 5]
TRAIN = ["--epochs", 0.1, "--batch_size", 4]


def item(number):
    return {"id": f"i{number}", "prompt": f"query {number}", "responses": ["good words", "bad"],
            "rewards": [1, 0], "reference": "good"}


def judgments(examples):
    return [{"id": e.id, "domain": "all", "rewards": e.rewards, "hinted": [], "non_hinted": [
        {"permutation": [0, 1], "text": "x", "completion_ids": [5, 4], "scores": scores,
         "reason": "ok", "correct": scores == [9, 1]} for scores in ([9, 1], [1, 9])]}
        for e in examples]


PROGRAMS = {  # program: its words; {data} and {model} are those that change
    "spct_rft": ["--data", "{data}", "--model", "{model}", "--general_only", "--general_data",
                 ROOT / "tests" / "fixtures" / "chats.jsonl", *TRAIN],
    "spct_rl": ["--data", "{data}", "--model", "{model}", "--steps", 1, "--prompts_per_step", 2,
                "--G", 2, "--micro_batch_size", 4],
    "meta_rm": ["--data", "{data}", "--model", "{tiny}", "--rft_judgments", "{judgments}",
                "--grm", "{model}", "--n_rft", 1, "--held_out", 0, *TRAIN],
    "infer_scale": ["--data", "{data}", "--model", "{model}", "--k", 2],
    "eval": ["--data", "{data}", "--model", "{model}"],
    "grm": ["--data", "{data}", "--model", "{model}"],
    "extras.baselines": ["btrm", "--data", "{data}#train", "--test_data", "{data}#test", "--model",
                         "{model}", *TRAIN],
    "extras.benchmarks": ["--bench", "ppe_preference:{bench}", "--model", "{model}"],
    "results.hostile": ["--data", "{data}", "--model", "{model}", "--table", "{table}"],
    "results.principles": ["--grm", "{model}", "--model", "{tiny}", "--limit", 2]}


@pytest.mark.parametrize("program", PROGRAMS)
def test_other_weights_or_items_under_the_same_name_are_refused(program, tiny, tiny_model, cli,
                                                                tmp_path, toy_tokenizer):
    data, model, bench = tmp_path / "items.jsonl", tmp_path / "model", tmp_path / "ppe.jsonl"
    rows = [item(i) for i in range(40 if program == "extras.baselines" else 4)]
    write_rows(data, rows)
    shutil.copy(ROOT / "tests" / "fixtures" / "ppe_preference.jsonl", bench)
    shutil.copytree(tiny, model)
    write_rows(tmp_path / "judgments.jsonl", judgments(load_examples(str(data))))
    words = [str(w).format(data=data, model=model, tiny=tiny, bench=bench,
                           judgments=tmp_path / "judgments.jsonl", table=tmp_path / "table.csv")
             for w in PROGRAMS[program]] + SHORT + ["--output", tmp_path / "run"]
    code, _, err = cli(program, *words)
    assert code == 0, err

    # 1. the labels were flipped, the ids are the same
    if program == "extras.benchmarks":
        flip = {"model_a": "model_b", "model_b": "model_a"}
        changed = [{**row, "winner": flip.get(row["winner"], "tie")} for row in read_rows(bench)]
        kept, file = bench.read_bytes(), bench
    else:
        changed = [{**row, "rewards": row["rewards"][::-1]} for row in rows]
        kept, file = data.read_bytes(), data
    if program != "results.principles":  # its items are always the toy's
        write_rows(file, changed)
        said = error_of(cli(program, *words))
        assert "the items" in said and str(file) in said
        assert "choose another --output" in said and "--overwrite" in said
        file.write_bytes(kept)
        if program in ("eval", "spct_rl"):
            assert cli(program, *words)[0] == 0, "the same is the same"

    # 2. the model was trained again, at the same path
    save_model(model, tiny_model(seed=1, initializer_range=0.1), toy_tokenizer)
    said = error_of(cli(program, *words))
    flag = "--grm" if "--grm" in PROGRAMS[program] else "--model"
    assert f"weights of {flag} {model}" in said and "--overwrite" in said
    assert "the items" not in said
    if program == "eval":
        said = cli("eval", "--runs", tmp_path / "run", "--output", tmp_path / "table")[1]
        assert said.count(f"{tmp_path}/run: the weights of --model {model} have changed since") == 1
        assert cli(program, *words, "--overwrite")[0] == 0
        assert cli(program, *words)[0] == 0
    if program == "meta_rm":  # files beside the items are remembered too
        shutil.copytree(tiny, model, dirs_exist_ok=True)
        write_rows(tmp_path / "judgments.jsonl", judgments(load_examples(str(data)))[::-1])
        assert f"--rft_judgments {tmp_path}/judgments.jsonl has" in error_of(cli(program, *words))


def test_a_moved_clone_goes_on_with_its_runs(tmp_path, monkeypatch):
    """The same content under another path is the same; config.json names no folder above."""
    def command(clone):
        return SimpleNamespace(model=str(tmp_path / clone / "base"), seed=0)
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "base").mkdir(parents=True)
    (first / "base" / "config.json").write_text("{}")
    monkeypatch.chdir(first)
    open_run(first / "run", command("first"))
    assert read_json(first / "run" / "config.json")["args"]["model"] == "base"
    open_run(first / "elsewhere", command("first"))
    for folder in ("run", "elsewhere"):
        (first / folder / "samples.jsonl").write_text("")
    config = read_json(first / "elsewhere" / "config.json")
    config["args"]["model"] = str(first / "base")  # as it was recorded once
    write_json(first / "elsewhere" / "config.json", config)
    HELD.clear()  # that program ended
    first.rename(second)
    monkeypatch.chdir(second)
    for folder in ("run", "elsewhere"):
        open_run(second / folder, command("second"))
        (second / "base" / "config.json").write_text("{ }")
        with pytest.raises(UserError, match="the weights of --model .* have changed since"):
            open_run(second / folder, command("second"))
        (second / "base" / "config.json").write_text("{}")
    shutil.copytree(second / "base", second / "other")
    (second / "other" / "config.json").write_text("[]")
    with pytest.raises(UserError, match="--model base there, other here"):
        open_run(second / "run", SimpleNamespace(model="other", seed=0))


def test_rft_again_with_fewer_items(tiny, cli, tmp_path):
    data, run = tmp_path / "items.jsonl", tmp_path / "run"
    write_rows(data, [item(i) for i in range(4)])
    words = ["spct_rft", "--data", data, "--model", tiny, "--output", run, *SHORT, *TRAIN,
             "--general_fraction", 0]
    assert "no judgment survived" in error_of(cli(*words))
    write_rows(run / "judgments.jsonl", judgments(load_examples(str(data))))  # as of a better model
    assert cli(*words)[0] == 0
    write_rows(data, [item(i) for i in range(3)])
    assert "the items of --data" in error_of(cli(*words))


def test_a_judge_read_again_is_the_one_that_judged(tiny, tiny_model, toy_tokenizer, cli, tmp_path,
                                                   capsys):
    """Token probabilities are of the weights that wrote the samples."""
    shutil.copytree(tiny, tmp_path / "model")
    voting = ["infer_scale", "--rating", "best", "--model", tmp_path / "model", "--limit", 4,
              "--k", 2, *SHORT, "--output", tmp_path / "voting"]
    assert cli(*voting)[0] == 0
    words = ["extras.baselines", "tokenprob", "--samples", tmp_path / "voting", "--output"]
    save_model(tmp_path / "model", tiny_model(seed=1), toy_tokenizer)
    assert "the weights of --model" in error_of(cli(*words, tmp_path / "read"))
    tell_changes(tmp_path / "voting")
    said = capsys.readouterr().out
    assert "the weights of --model" in said and "the items" not in said
    assert cli(*voting, "--overwrite")[0] == 0
    assert cli(*words, tmp_path / "read")[0] == 0


def test_content_of_small_and_large_files(tmp_path):
    """Every byte of a few blocks counts; of more the size and blocks everywhere do."""
    file, MIB = tmp_path / "m.safetensors", 2**20
    for size, places in ((3 * MIB + 5, [0, MIB, 2 * MIB - 1, 3 * MIB + 4]),
                         (32 * MIB, [0, 8 * MIB, 9 * MIB - 1, 24 * MIB])):
        found = set()
        for place in [None, *places]:
            data = bytearray(size)
            if place is not None:
                data[place] = 1
            file.write_bytes(data)
            found.add(content(tmp_path, blocks=4))
        assert len(found) == 5
    file.write_bytes(bytes(32 * MIB + 1))
    assert content(tmp_path, blocks=4) not in found


def test_a_model_of_the_hub_is_told_by_its_commit(tmp_path, monkeypatch):
    def cached(name, file):
        if (name, file) != ("owner/name", "config.json"):
            raise OSError("no such file")
        return str(tmp_path / "snapshots" / commit / file)
    monkeypatch.setattr("transformers.utils.cached_file", cached)
    args = SimpleNamespace(model="owner/name", sampler="served", served_model="served")
    for commit in ("c1", "c1", "c2"):
        made = made_from(args)
        assert made == {"model": commit}
    assert changes({"model": "c1"}, made, args) == [
        "the weights of --model owner/name have changed since"]
    assert not changes({}, made, args), "a run of before there was a record"
