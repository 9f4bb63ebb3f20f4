"""The prompt travels with the model: a judge is asked as it was trained, or as a flag says."""
import json
import shutil

import pytest
from conftest import ROOT, error_of

import grm
from plumbing import generation
from plumbing.generation import Completion
from plumbing.judge import TOY_BASE
from plumbing.runs import UserError, read_json, write_rows

TEMPLATE = ("Judge well. {principles_task} score.\n{conversation}\n{reference}{responses}\n"
            "{given_principles}{hint}{output_format}")
ITEM = {"prompt": "Which ?", "responses": ["good", "bad"], "rewards": [1, 0], "reference": "good"}
CHATS = ["--general_data", ROOT / "tests" / "fixtures" / "chats.jsonl"]
SHORT = ["--max_new_tokens", 12]
TRAIN = ["--epochs", 0.1, "--batch_size", 4]
MINE = {"template": TEMPLATE, "rating": "train", "principles": False, "use_reference": True}
COMPACT = {"template": "compact", "rating": "train", "principles": True, "use_reference": False}


@pytest.fixture
def asked(monkeypatch):
    """The prompts that judges are asked (a list that fills); their judgments are right or wrong by
    turns."""
    prompts, build, count = [], grm.build_prompt, [0]

    def built(*args, **options):
        prompts.append(build(*args, **options)[0]["content"])
        return [{"role": "user", "content": prompts[-1]}]

    def generate(model, tokenizer, prompts, temperature, max_new_tokens, seeds, **_):
        rows = []
        for prompt in map(tokenizer.decode, prompts):
            count[0] += 1
            points = "9, 1" if count[0] % 3 else "1, 9"
            text = "Scores: \\boxed{" + points[:points.index(",") * ("x }" in prompt) or 9] + "}"
            ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            rows.append(Completion(ids, [-1.0] * len(ids), True))
        return rows
    monkeypatch.setattr(grm, "build_prompt", built)
    monkeypatch.setattr(generation, "generate", generate)
    return prompts


@pytest.fixture
def data(tmp_path):
    write_rows(tmp_path / "items.jsonl", [{**ITEM, "id": f"i{i}"} for i in range(4)])
    return tmp_path / "items.jsonl"


def test_every_program_asks_a_judge_as_it_was_trained(tiny, data, asked, cli, tmp_path):
    template = tmp_path / "mine.txt"
    template.write_text(TEMPLATE)

    def run(program, *words, code=0):
        asked.clear()
        found, out, err = cli(program, *words)
        assert found == code, err
        return out

    def as_trained():
        assert asked and all(p.startswith("Judge well. First analyse the responses, then score.")
                             and "#### Reference Answer" in p and "Criteria: <" not in p
                             for p in asked)
        asked.clear()
    own = ["--template", template, "--no_principles", "--use_reference"]
    run("spct_rft", "--data", data, "--model", tiny, *own, *SHORT, *TRAIN, "--general_only", *CHATS,
        "--output", tmp_path / "rft")
    template.unlink()  # its text has travelled
    rft, rl = tmp_path / "rft" / "model", tmp_path / "rl" / "model"
    assert read_json(rft / "judge.json") == MINE

    steps = ["--steps", 1, "--prompts_per_step", 2, "--G", 2, "--micro_batch_size", 4]
    run("spct_rl", "--data", data, "--model", rft, *SHORT, *steps, "--output", tmp_path / "rl")
    as_trained()
    assert read_json(rl / "judge.json") == MINE
    run("spct_rl", "--data", data, "--model", tiny, "--easy_filter", rft, "--steps", 1, *SHORT,
        *steps, "--output", tmp_path / "filtered")  # a filter is asked in its own way
    assert {p[:5] for p in asked} == {"Judge", "Score"}
    judged = ["--data", data, "--model", rl, *SHORT, "--output"]
    for program, words in (
            ("infer_scale", [*judged, tmp_path / "voting", "--k", 2]),
            ("eval", [*judged, tmp_path / "greedy"]), ("grm", [*judged, tmp_path / "grm"]),
            ("results.hostile", [*judged, tmp_path / "hostile", "--table", tmp_path / "t.csv"]),
            ("spct_rft", ["--data", data, "--model", tiny, "--sampler", rl, *SHORT, *TRAIN,
                          "--general_fraction", 0, "--no_hinted", "--output", tmp_path / "again"]),
            ("meta_rm", ["--data", data, "--model", tiny, "--rft_judgments", "", "--grm", rl,
                         "--held_out", 0, *SHORT, *TRAIN, "--output", tmp_path / "meta"])):
        assert "trained with" not in run(program, *words)
        as_trained()
    assert not (tmp_path / "meta" / "model" / "judge.json").exists()
    assert read_json(tmp_path / "again" / "model" / "judge.json") == MINE
    judge = generation.load_model(str(rl))
    assert grm.score(*judge, "Which ?", ["good", "bad"], use_reference=False)
    [prompt] = asked
    assert prompt.startswith("Judge well. First analyse") and "Reference" not in prompt
    run("extras.best_of_n", "--judge", rl, "--k", 2, "--no_reference")
    assert all(p.startswith("Judge well. First analyse") for p in asked)

    # A flag wins, and a contradiction is told in one line. What was used is on record.
    out = run("eval", *judged, tmp_path / "other", "--template", "compact", "--principles")
    assert all(p.startswith("Score each") and "Reference" in p and "specific" in p for p in asked)
    [said] = [line for line in out.splitlines() if "trained with" in line]
    assert str(rl) in said and "template compact" in said and "principles" in said
    assert "reference" not in said
    config = read_json(tmp_path / "other" / "config.json")["args"]
    assert (config["template"], config["no_principles"], config["use_reference"],
            config["rating"]) == ("compact", False, True, "1-10")
    run("eval", *judged, tmp_path / "other", "--template", "compact", "--principles",
        "--use_reference", "--rating", "1-10")  # the same run
    assert "--template" in error_of(cli("eval", *judged, tmp_path / "other", "--principles"))


def test_a_judge_that_selects_is_asked_to_select(tiny, data, asked, cli, tmp_path):
    shutil.copytree(tiny, tmp_path / "judge")
    (tmp_path / "judge" / "judge.json").write_text(json.dumps({**COMPACT, "rating": "best"}))
    write_rows(data, [{**ITEM, "id": "one", "responses": ["good"], "rewards": [1]},
                      *({**ITEM, "id": f"i{i}"} for i in range(3))])
    words = ["--data", data, *SHORT, "--output"]
    for program, more in (("eval", ["--model", tmp_path / "judge"]),
                          ("meta_rm", ["--model", tiny, "--rft_judgments", "", "--held_out", 0,
                                       "--grm", tmp_path / "judge", *TRAIN])):
        asked.clear()
        cli(program, *words, tmp_path / program, *more)
        assert asked and all(p.startswith("Select the best") for p in asked)
        assert read_json(tmp_path / program / "config.json")["args"]["rating"] == "best"


@pytest.mark.parametrize("text", ['{"template": 3}', "[]", "{", '{"colour": "red"}'])
def test_a_damaged_judge_json_is_one_line(text, tiny, data, cli, tmp_path):
    shutil.copytree(tiny, tmp_path / "judge")
    (tmp_path / "judge" / "judge.json").write_text(text)
    said = error_of(cli("eval", "--data", data, "--model", tmp_path / "judge",
                        "--output", tmp_path / "out"))
    assert "judge.json" in said and not (tmp_path / "out").exists()


def test_without_a_word_of_its_own_a_judge_is_asked_in_few(tiny_model, toy_tokenizer, asked):
    """`compact` everywhere: score() took `full`, the programs `compact`."""
    assert sorted(grm.score(tiny_model(), toy_tokenizer, "Which ?", ["good", "bad"])) == [1, 9]
    assert asked[0].startswith("Score each response")
    for base in ("medium", "medium-undamaged"):
        assert read_json(ROOT / "toy_world" / base / "judge.json") == COMPACT


def test_score_says_why_it_has_no_score_and_speaks_python(tiny_model, toy_tokenizer):
    model, words = tiny_model(initializer_range=0.1), ("Which ?", ["good", "bad"])
    with pytest.warns(UserWarning) as told:
        rewards = grm.score(model, toy_tokenizer, *words, k=3, max_new_tokens=5)
    assert all(r != r for r in rewards) and len(told) == 1 and told[0].filename == __file__
    said = str(told[0].message)
    assert "none of 3 judgments parsed" in said and "truncated" in said
    first = grm.sample_judgments(model, toy_tokenizer, [grm.example_from_dict(
        {"id": f"score/{words[0]}", "prompt": words[0], "responses": words[1]})], 1, 0.5,
        template="compact", max_new_tokens=5)[0][0].text
    assert repr(first[:40])[1:-1] in said
    for options, fix in ((dict(use_reference=True), "use_reference=False"),
                         (dict(max_new_tokens=5000),
                          "use template='compact', or pass skip_long=True"),
                         (dict(template="nowhere"), "nowhere")):
        with pytest.raises(ValueError, match=fix) as error:
            grm.score(model, toy_tokenizer, "Which way ?", ["good", "bad"], **options)
        assert "--" not in str(error.value) and "Which way" not in str(error.value)


@pytest.mark.parametrize("options, said", [
    (dict(k=0), "k"), (dict(k=-1), "k"), (dict(k=2.5), "k"), (dict(max_new_tokens=0), "max_new"),
    (dict(temperature=float("nan")), "temperature"), (dict(temperature=-1), "temperature"),
    (dict(temperature="hot"), "temperature"), (dict(orders="rnd"), "orders"),
    (dict(clamp=False), "clamp"), (dict(principles="accuracy 50%"), "principles"),
    (dict(principles=["accuracy", 1]), "principles"), (dict(thinking="yes"), "thinking")])
def test_wrong_options_of_score_are_told_by_name(options, said, toy_tokenizer, tiny_model, asked):
    with pytest.raises(UserError, match=rf"^{said}\w*[ =:]") as error:
        grm.score(tiny_model(), toy_tokenizer, "Which ?", ["good", "bad"], **options)
    assert "\n" not in str(error.value) and "--" not in str(error.value)


def test_score_of_a_models_name_says_how_it_is_loaded(toy_tokenizer):
    with pytest.raises(UserError, match="load_model"):
        grm.score(TOY_BASE, toy_tokenizer, "Which ?", ["good", "bad"])


def test_half_a_surrogate_pair_is_judged(tiny_model, toy_tokenizer, asked):
    words = "Which \ud800 ?", ["good", "bad \ud83d"]
    assert sorted(grm.score(tiny_model(), toy_tokenizer, *words, k=3, mean=True)) != []
    assert grm.example_from_dict({"id": "a\ud800", "prompt": "q", "responses": ["x"]}).id.encode()


def test_the_toys_judge_that_is_trained_furthest_is_asked_unless_another_is_named(
        tiny, data, asked, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = {"grm": ["--data", data], "eval": ["--data", data], "infer_scale": [
        "--data", data, "--k", 1], "extras.best_of_n": ["--k", 1]}

    def judge_of(program, *more):
        code, out, err = cli(program, *words[program], *SHORT, *more)
        assert code == 0, err
        return [line.split()[1] for line in out.splitlines() if line.startswith("judge: ")]
    assert judge_of("grm") == [TOY_BASE]
    shutil.copytree(tiny, "runs/toy/rft/model")
    assert judge_of("grm") == ["runs/toy/rft/model"]
    shutil.copytree(tiny, "runs/toy/rl/model")
    for program in words:
        assert judge_of(program) == ["runs/toy/rl/model"]
    assert read_json("runs/toy/eval/config.json")["args"]["model"] == "runs/toy/rl/model"
    assert read_json("runs/toy/eval/summary.json")["model"] == "runs/toy/rl/model"
    assert judge_of("grm", "--model", tiny) == []
    assert "judge: " not in cli("eval", "--runs", "runs/toy/eval", "--output", "runs/t")[1]
