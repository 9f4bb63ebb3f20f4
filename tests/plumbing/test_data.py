"""plumbing/data.py and sets.py: every set against a small invented file in its own columns."""
import csv
import gzip
import json
import shutil
from collections import Counter

import datasets
import pytest
from conftest import ROOT

from grm import build_prompt
from plumbing import data, sets
from plumbing.data import load_chats, load_examples
from plumbing.records import read_jsonl
from plumbing.runs import UserError
from plumbing.sets import SETS

FIXTURES = ROOT / "tests" / "fixtures"
SPLIT = {name: "test" if isinstance(splits, str) else "train"
         for name, (_, splits, _) in SETS.items()}
FIELDS = {  # what each set cannot do without
    "skywork": ["chosen", "rejected"], "ultrafeedback_binarized": ["chosen", "rejected"],
    "hh-rlhf": ["chosen", "rejected"], "pairs": ["chosen", "rejected"],
    "helpsteer2": ["prompt", "response_1", "response_2", "preference_strength"],
    "helpsteer3": ["context", "response1", "response2", "overall_preference"],
    "ultrafeedback": ["instruction", "completions"],
    "offsetbias": ["instruction", "output_1", "output_2", "label"],
    "math": ["problem", "response", "is_correct"],
    "rewardbench": ["prompt", "chosen", "rejected", "subset"],
    "rewardbench2": ["prompt", "chosen", "rejected", "subset"],
    "ppe_preference": ["prompt", "response_1", "response_2", "winner"],
    "ppe_correctness": ["prompt", "scores", "sampled_conflict_pairs", "response_1"],
    "rmb": ["conversation_input", "bon_best", "loser_list"],
    "realmistake": ["input", "llm_response", "label"],
}


def local(name, part=""):
    """The name of a set's fixture, as --data takes it."""
    file = FIXTURES / f"{name}.jsonl"
    return f"{name}:{file if file.exists() else FIXTURES / name}{part}"


def load(name, **options):
    return load_examples(local(name), **{"split": SPLIT[name], **options})


def short(examples):
    return [(e.responses, e.rewards) for e in examples]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def fixture(name):
    """(rows of a set's first file, its path below the fixtures)."""
    found = [*FIXTURES.glob(f"{name}.jsonl"), *sorted((FIXTURES / name).rglob("*.json*"))]
    file = next(f for f in found if f.name != "config.json")
    text = file.read_text(encoding="utf-8")
    whole = text.startswith("[")
    rows = json.loads(text) if whole else [json.loads(line) for line in text.split("\n") if line]
    return rows, str(file.relative_to(FIXTURES))


def refuses(problem, name, *arguments, **options):
    with pytest.raises(UserError, match=problem) as error:
        load_examples(str(name), *arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# ----- all sets -----

@pytest.mark.parametrize("name", SETS)
def test_items_can_be_used(name):
    examples = load(name)
    ids = [e.id for e in examples]
    assert len(set(ids)) == len(ids) and all(i.startswith(name + "/") for i in ids)
    for e in examples:
        n = len(e.responses)
        assert len(e.rewards) == n
        assert e.rewards.count(max(e.rewards)) == 1 if n > 1 else e.rewards[0] in (0, 1)
        assert e.prompt[-1]["role"] == "user"
        assert all(set(m) == {"role", "content"} for m in e.prompt)
        assert e.extra["cluster"] and "split" not in e.extra
        assert e.responses[0] in build_prompt(e)[0]["content"]
        if SPLIT[name] == "test":
            assert e.extra["section"] == e.domain and "subset" in e.extra


@pytest.mark.parametrize("name", SETS)
def test_a_malformed_row_is_named(name, tmp_path):
    rows, file = fixture(name)
    path = tmp_path / (file.removesuffix("l") + "l")
    for field in FIELDS[name]:
        for bad in ("missing", None, 1.5):
            row = dict(rows[0])
            del row[field]
            if bad != "missing":
                row[field] = bad
            write(path, [rows[0], row])
            # Without bon_best a row of RMB reads as a pair.
            said = "chosen" if (field, bad) == ("bon_best", "missing") else field
            problem = "must be" if bad == 1.5 else "is missing"
            message = refuses(rf"^{name}, .*line 2: field '{said}' {problem}",
                              f"{name}:{tmp_path}", SPLIT[name])
            assert str(path) in message


def test_skip_bad_counts_malformed_rows(tmp_path, capsys):
    row = fixture("rewardbench")[0][0]
    path = write(tmp_path / "rows.jsonl", [row, {"prompt": "no answers"}, [1], row])
    with open(path, "ab") as file:
        file.write(b'{"torn\n\xff\n')
    refuses("line 2: field 'subset' is missing", f"rewardbench:{path}", "test")
    kept = load_examples(f"rewardbench:{path}", "test", skip_bad=True)
    assert [e.id for e in kept] == ["rewardbench/0", "rewardbench/3"]  # the place in the file
    assert "4 malformed rows skipped" in capsys.readouterr().out


@pytest.mark.parametrize("name, kept, dropped", [
    ("skywork", 2, 1), ("helpsteer2", 2, 1), ("helpsteer3", 2, 1), ("ultrafeedback", 1, 2),
    ("ultrafeedback_binarized", 1, 1), ("hh-rlhf", 2, 1), ("rewardbench2", 1, 2),
    ("ppe_preference", 2, 2)])
def test_ties_are_dropped_and_counted(name, kept, dropped, capsys):
    assert len(load(name)) == kept
    assert f": {kept} items; {dropped} dropped" in capsys.readouterr().out


# ----- the traps of each set -----

@pytest.mark.parametrize("name, expected", [
    ("helpsteer2", [(["A leaf.", "A stone."], [0, 1]), (["Ash.", "Grey names are many."], [1, 0])]),
    ("helpsteer3", [(["Iron.", "Wood."], [1, 0]), (["xs.reverse", "xs[::-1]"], [0, 1])]),
    # the mean of the ratings; the response with an N/A among them is left out
    ("ultrafeedback", [(["A tower.", "A tower whose lamp warns ships.", "Ships like it."],
                        [3.0, 4.75, 1.5])]),
    ("ultrafeedback_binarized", [(["Would you like tea?", "Drink."], [1, 0])]),
    ("offsetbias", [(["Colours are a matter of light, and there are many.", "Green."], [0, 1]),
                    (["Down.", "Up, up and away."], [1, 0])]),  # its labels count from 1
    ("math", [(["It is \\boxed{42}."], [1]), (["It is \\boxed{48}."], [0])]),
    ("rewardbench2", [(["Eight.", "Six.", "Ten.", "Four."], [1, 0, 0, 0])]),
    ("ppe_preference", [(["first of q1", "second of q1"], [1, 0]),
                        (["first of q2", "second of q2"], [0, 1])]),
    # pairs [0, 1], [2, 3], [3, 1]; then [0, 2]; then [3, 0]
    ("ppe_correctness", [(["g1 answer at place 0", "g1 answer at place 1"], [1, 0]),
                         (["g1 answer at place 2", "g1 answer at place 3"], [0, 1]),
                         (["g1 answer at place 3", "g1 answer at place 1"], [1, 0]),
                         (["m1 answer at place 0", "m1 answer at place 2"], [0, 1]),
                         (["m2 answer at place 3", "m2 answer at place 0"], [1, 0])])])
def test_which_response_is_better(name, expected):
    assert short(load(name)) == expected


@pytest.mark.parametrize("name, prompt", [
    ("ultrafeedback_binarized", [user("Offer me a drink.")]),  # not repeated
    ("skywork", [user("Name a river in an invented land.")]),  # the shared prefix
    ("rmb", [user("My plant is dry."), assistant("Water it."), user("How often?")])])
def test_prompts(name, prompt):
    assert prompt in [e.prompt for e in load(name)]


def test_skywork_prompt_is_the_shared_prefix():
    first, multi_turn = load("skywork")
    assert short([first]) == [(["The Ulm flows through Tarn.", "No."], [1, 0])]
    assert [m["role"] for m in multi_turn.prompt] == ["user", "assistant", "user"]
    assert short([multi_turn]) == [(["A bigger omelette.", "Eggs are oval."], [1, 0])]
    left = load("skywork", exclude_domain=first.domain)
    assert first.domain == "magpie_ultra" and [e.domain for e in left] == ["offset_bias"]


def test_helpsteer2_turns_strength_and_split():
    second_better, first_better = load("helpsteer2")
    assert (second_better.preference_strength, first_better.preference_strength) == (3, 1)
    hinted = build_prompt(second_better, hint=True)[0]["content"]
    assert "(much better than the other)" in hinted
    held_out, = load("helpsteer2", split="validation")  # its own `split` comes before the hash
    assert held_out.prompt == [user("Is water wet?"), assistant("Some say so."),
                               user("What do you say?")]
    assert held_out.rewards == [1, 0] and held_out.preference_strength == 2


def test_hh_rlhf_turns():
    alike, multi_turn = load("hh-rlhf")
    assert alike.prompt == [user("How do I fold a shirt?")]
    assert alike.responses == ["Lay it flat first.", "Lay off."], "the common beginning is theirs"
    assert multi_turn.prompt == [user("Hi there, you"), assistant("Hi! What can I do?"),
                                 user("Tell a joke")]
    assert multi_turn.responses == ["A snail walks into a bar, slowly.", "No."]


def test_pairs_in_every_form_of_prompt(tmp_path):
    explicit, implicit, explicit_chat, implicit_chat, system = load("pairs")
    assert explicit.prompt == [user("The sky is")]
    assert explicit.responses == [" blue.", " made of tin."]
    assert implicit.prompt == [user("Snow is")]
    assert implicit.responses == ["black as seldom.", "blue as never."]
    assert explicit_chat.prompt == [user("What colour is grass?")]
    assert implicit_chat.prompt == [user("What colour is coal?")]
    assert implicit_chat.responses == ["Black.", "Coal."]
    assert [m["role"] for m in system.prompt] == ["system", "user"]
    human = {"role": "Human", "content": "a"}
    row = {key: [human, {"role": "gpt", "content": key}] for key in ("chosen", "rejected")}
    path = write(tmp_path / "roles.jsonl", [row])
    assert load_examples(f"pairs:{path}")[0].prompt == [user("a")]


def system(text):
    return {"role": "system", "content": text}


CAT = {"chosen": "The word is chat.", "rejected": "The word is chien."}
YES = {"chosen": [user("Sky?"), assistant("Blue.")], "rejected": [user("Sky?"), assistant("Tin.")]}
TALK = {"chosen": [assistant("Blue.")], "rejected": [assistant("Tin.")]}


@pytest.mark.parametrize("row, prompt", [
    ({"instruction": "Translate 'cat'.", "input": "", **CAT}, [user("Translate 'cat'.")]),
    ({"instruction": "Translate.", "input": "cat", **CAT}, [user("Translate.\n\ncat")]),
    ({"question": "What is 'cat'?", "system": "", **CAT}, [user("What is 'cat'?")]),
    ({"system": "Be brief.", "input": "cat?", **CAT}, [system("Be brief."), user("cat?")]),
    ({"prompt": "Q: cat?\nA:", "question": "cat?", **CAT}, [user("Q: cat?\nA:")]),
    # message lists: what only another column has is kept, what they repeat is not
    ({"prompt": [system("Be brief."), user("Sky?")], **YES}, [system("Be brief."), user("Sky?")]),
    ({"system": "Be brief.", "question": "Sky?", **YES}, [system("Be brief."), user("Sky?")]),
    ({"prompt": [system("Be brief.")], **YES}, [system("Be brief."), user("Sky?")]),
    ({"system": "Be brief.", "instruction": "Sky?", **TALK}, [system("Be brief."), user("Sky?")]),
    ({"prompt": [user("Hi"), assistant("Hi!"), user("Sky?")], **YES},
     [user("Hi"), assistant("Hi!"), user("Sky?")]),
    # message lists as JSON text
    ({key: json.dumps(value) for key, value in YES.items()}, [user("Sky?")]),
    ({"prompt": json.dumps([system("s"), user("Sky?")]), **TALK}, [system("s"), user("Sky?")]),
])
def test_columns_of_a_pair_that_hold_its_prompt(row, prompt, tmp_path):
    path = write(tmp_path / "rows.jsonl", [row])
    example, = load_examples(f"pairs:{path}")
    assert example.prompt == prompt
    assert example.responses == (
        ["The word is chat.", "The word is chien."] if "word" in str(row) else ["Blue.", "Tin."])


@pytest.mark.parametrize("row, kept", [
    ({"status": "tie"}, 0), ({"status": "swapped", "rating": [9, 8]}, 1),
    ({"chosen-rating": 4, "rejected-rating": 4.0}, 0), ({"chosen-rating": 4}, 1),
    ({"score_chosen": 2, "score_rejected": 8}, 0), ({"score_chosen": 8, "score_rejected": 2}, 1),
    ({"chosen_score": "7.5", "rejected_score": "8"}, 0),
    ({"rating_chosen": 5, "rating_rejected": 1}, 1),
    ({"chosen_reward": -1.0, "rejected_reward": float("nan")}, 1),
    ({"chosen_length": 10, "rejected_length": 90}, 1),
    ({"winner": "rejected"}, 0), ({"winner": "chosen"}, 1), ({"preference": "Rejected"}, 0),
    ({"preference": 0.5}, 0), ({"preference": "0.5"}, 0), ({"preference": 1}, 1),
    ({"scores": [1, 2]}, 0), ({"scores": "[2, 2]"}, 0), ({"scores": [2, 1]}, 1),
    ({"scores": [1, 2], "order": ["rejected", "chosen"]}, 1), ({"scores": [1, 2, 3]}, 1),
    ({"label": 0}, 1), ({"margin": -1}, 1)])
def test_a_pair_that_other_columns_contradict_is_no_win(row, kept, tmp_path):
    sure = {"prompt": "p", "chosen": "a", "rejected": "b"}
    path = write(tmp_path / "rows.jsonl", [{**sure, **row}, sure])
    assert len(load_examples(f"pairs:{path}")) == 1 + kept


def test_a_missing_field_is_told_with_those_that_were_found(tmp_path):
    row = records(1)[0]
    for name, text, found in (
            ("a.json", json.dumps({"train": [row], "test": [row]}), "'train', 'test'"),
            ("a.csv", "prompt;responses\na;b\n", "'prompt;responses'"),
            ("pairs:b.csv", "prompt,Chosen,Rejected\na,b,c\n", "'prompt', 'Chosen', 'Rejected'")):
        kind, _, file = name.rpartition(":")
        (tmp_path / file).write_text(text)
        refuses(f"is missing.* has {found}", f"{kind}:{tmp_path / file}".removeprefix(":"))
    (tmp_path / "a.json").write_text(json.dumps({"data": [row]}))
    assert [e.id for e in load_examples(str(tmp_path / "a.json"))] == ["r0"]


@pytest.mark.parametrize("name, file, row, problem", [
    ("pairs", "x", {"chosen": "Yes.", "rejected": "No."}, "field 'prompt' is missing"),
    ("pairs", "x", CAT, "field 'prompt' is missing"),  # a common beginning is no prompt
    ("pairs", "x", {"prompt": "a", "question": "b", **CAT}, "'prompt' and 'question' hold two"),
    ("pairs", "x", {"question": "a", "input": "b", **CAT}, "'question' and 'input' hold two"),
    ("pairs", "x", {"question": "a", "context": "b", **CAT}, "'question' and 'context' hold two"),
    ("pairs", "x", {"question": "a", "history": [["q", "a"]], **CAT}, "field 'history' must be"),
    ("pairs", "x", {"prompt": "a", "system": 3, **CAT}, "field 'system' must be str"),
    ("pairs", "x", {"prompt": "Grass?", **YES}, "field 'prompt' .* is not in the messages"),
    ("pairs", "x", {"system": "s", "chosen": [system("t"), *YES["chosen"]],
                    "rejected": [system("t"), *YES["rejected"]]}, "is not in the messages"),
    ("pairs", "x", {key: str(value) for key, value in YES.items()}, "field 'chosen' must be"),
    ("pairs", "x", {"chosen": [user("a"), assistant("b")], "rejected": "c"},
     "field 'rejected' must be a text or"),
    ("pairs", "x", {"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("c")]},
     "must differ from"),
    ("pairs", "x", {"chosen": [user("a"), user("b")], "rejected": [user("a"), user("c")]},
     "must differ from"),
    ("pairs", "x", {"chosen": [assistant("b")], "rejected": [assistant("c")]},
     "field 'prompt' must be a text"),
    ("pairs", "x", {"chosen": [], "rejected": []}, "field 'chosen' must be"),
    ("pairs", "x", {"prompt": "p", "chosen": [{"role": "user"}], "rejected": [assistant("c")]},
     "field 'chosen' must be"),
    ("offsetbias", "x", {"label": 0}, "line 1: field 'label' must be 1 or 2"),
    ("rewardbench", "x", {"subset": "prior"}, "field 'subset' is 'prior'"),
    ("ppe_correctness", "GPQA", {"sampled_conflict_pairs": [[1, 4]]}, "pairs of places 0..3"),
    ("ppe_correctness", "GPQA", {"sampled_conflict_pairs": [[-1, 0]]}, "pairs of places 0..3"),
    ("ppe_correctness", "GPQA", {"sampled_conflict_pairs": [3]}, "pairs of places 0..3"),
    ("ppe_correctness", "GPQA", {"scores": [True, None, False, True]},
     "field 'scores' must hold true or false"),
    ("ppe_correctness", "x", {}, "must be named after one of GPQA, IFEval, MATH"),
    ("rmb", "x", {"category_path": None}, "field 'category_path' or the file's folder must say"),
])
def test_rows_that_no_loader_should_guess(name, file, row, problem, tmp_path):
    row = row if name == "pairs" else {**fixture(name)[0][0], **row}
    refuses(problem, f"{name}:{write(tmp_path / f'{file}.jsonl', [row])}", SPLIT[name])


def test_rewardbench_sections_and_weights():
    examples = load("rewardbench")
    assert [(e.domain, e.extra["weight"]) for e in examples] == [
        ("chat", 100), ("chat-hard", 92), ("safety", 250), ("reasoning", 984), ("reasoning", 164)]
    assert [e.extra["source_id"] for e in examples] == [0, 0, 7, 8, 9], "theirs repeat, ours do not"
    sums = {section: sum(weights.values()) for section, weights in sets.REWARDBENCH.items()}
    assert sums == {"chat": 358, "chat-hard": 456, "safety": 740, "reasoning": 1968}
    assert sum(sums.values()) - 984 + 447 == 2985, "items of the split `filtered`"


def test_ppe_correctness_sections_clusters_and_references():
    examples = load("ppe_correctness")
    assert [e.extra["section"] for e in examples] == ["GPQA"] * 3 + ["MATH"] * 2
    clusters = [e.extra["cluster"] for e in examples]
    assert len(set(clusters[:3])) == 1 and len(set(clusters)) == 3
    ids = [e.id for e in load("ppe_correctness", domain="MATH")]
    assert ids == ["ppe_correctness/1", "ppe_correctness/2"]
    # App. E.1.3: every set holds its ground truth in other columns
    assert [e.reference for e in examples] == ["(C) 3 blips"] * 3 + ["\\boxed{4}", "\\boxed{5}"]
    ifeval = {"instruction_id_list": ["words:at_most", "case:lower"],
              "kwargs": [{"num_words": 9, "letter": None}, {}]}
    mmlu = {"options": ["2", "3"], "answer": "B", "answer_index": 1}
    for row, reference in [(mmlu, "(B) 3"), ({**mmlu, "options": ["2"]}, None),
                           ({"code": "def f(): pass", "test_list": []}, "def f(): pass"),
                           (ifeval, "words:at_most num_words=9\ncase:lower")]:
        assert sets.ppe_reference(row) == reference


def test_rmb_pairs_and_lists(tmp_path):
    found = {e.extra["section"]: e for e in load("rmb")}  # a checkout: config.json lies beside it
    assert {section: e.extra["subset"] for section, e in found.items()} == {
        "helpfulness-pairwise": "Advice", "helpfulness-bon": "Advice",
        "harmlessness-pairwise": "S1", "harmlessness-bon": "multi"}
    bon = found["helpfulness-bon"]
    assert short([bon]) == [(["Once a week.", "Never.", "Hourly.", "Plants are green."],
                             [1, 0, 0, 0])]
    assert bon.extra["cluster"] == found["helpfulness-pairwise"].extra["cluster"]
    assert found["harmlessness-bon"].rewards == [1, 0, 0]
    row = {**fixture("rmb")[0][0], "category_path": None}
    path = write(tmp_path / "Helpfulness" / "S3.jsonl", [row])  # the folder says it
    assert load_examples(f"rmb:{path}", "test")[0].domain == "helpfulness-bon"


def test_realmistake_right_is_one(tmp_path):
    examples = load("realmistake")
    assert [e.rewards for e in examples] == [[1], [1], [0]], "`label` and `error_label` alike"
    assert [(e.domain, e.extra["subset"]) for e in examples] == [
        ("answerability_classification", "llama2"), ("math_word_problem_generation", "gpt4"),
        ("math_word_problem_generation", "gpt4")]
    # its own archive names the files after the models; example.jsonl would count twice
    rows = fixture("realmistake")[0]
    for file in ("answerability_classification/gpt-4-0613.jsonl", "example.jsonl",
                 "answerability_classification/Llama-2-70b-chat-hf.jsonl"):
        write(tmp_path / "data" / file, rows)
    examples = load_examples(f"realmistake:{tmp_path}", "test")
    assert Counter(e.extra["subset"] for e in examples) == dict.fromkeys(("gpt4", "llama2"),
                                                                         len(rows))
    assert {e.domain for e in examples} == {"answerability_classification"}


# ----- splits, limits, domains, labels -----

def records(count, prompt="question {}"):
    return [{"id": f"r{i}", "prompt": prompt.format(i), "responses": ["a", "b"], "rewards": [1, 0],
             "domain": f"d{i % 2}"} for i in range(count)]


def test_part_of_a_file_is_decided_by_the_prompt(tmp_path):
    again = [{**row, "id": row["id"] + "again"} for row in records(600, "  question\n{} ")]
    path = write(tmp_path / "rows.jsonl", records(600) + again)
    parts = {part: load_examples(f"{path}#{part}") for part in ("train", "validation", "test")}
    for found in parts.values():  # equal prompts lie in one split
        texts = Counter(" ".join(e.prompt[0]["content"].split()) for e in found)
        assert set(texts.values()) == {2} and len(found) > 20
    assert sum(map(len, parts.values())) == 1200 == len(load_examples(str(path)))
    # Conversations that open alike stay together: one item's prompt may quote the other's response.
    long = write(tmp_path / "long.jsonl", [{**row, "prompt": [
        user(row["prompt"]), assistant("a"), user("And?")]} for row in records(6)])
    hashes = [[data.opening_hash(e) for e in load_examples(str(p), limit=6)] for p in (path, long)]
    assert hashes[0] == hashes[1] and len(set(hashes[0])) == 6
    # The same on every machine and in every version, because models already trained must not meet
    # their test items: sha256sum of "question 0" ..., modulo 100.
    assert {part: len(found) // 2 for part, found in parts.items()} == {
        "train": 541, "validation": 29, "test": 30}
    assert [data.hash_split(e) for e in load_examples(str(path), limit=6)] == [
        "validation", "train", "train", "train", "validation", "test"]


def hh(count, word):
    return [{key: f"\n\nHuman: {word} {i}\n\nAssistant: {key}" for key in ("chosen", "rejected")}
            for i in range(count)]


def test_own_splits_are_used_and_missing_ones_cut_from_train(tmp_path):
    write(tmp_path / "helpful" / "train.jsonl", hh(200, "train"))
    test = write(tmp_path / "helpful" / "test.jsonl", hh(30, "test"))
    words = {split: Counter(e.prompt[0]["content"].split()[0]
                            for e in load_examples(f"hh-rlhf:{tmp_path}", split))
             for split in ("train", "validation", "test")}
    assert words["test"] == {"test": 30}
    assert 0 < words["validation"]["train"] < 25
    assert words["train"] + words["validation"] == {"train": 200}
    refuses("has no rows for the split 'train', only for test", f"hh-rlhf:{test}")
    one = write(tmp_path / "train.jsonl", hh(400, "question"))  # one file: cut by the hash
    found = [e.id for split in words for e in load_examples(f"hh-rlhf:{one}", split)]
    assert len(found) == len(set(found)) == 400


def test_own_pairs_are_used_as_they_are(tmp_path):
    assert len(load("pairs", split="test")) == 5
    path = write(tmp_path / "rows.jsonl", [
        {"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(90)])
    parts = [load_examples(f"pairs:{path}#{part}") for part in ("train", "validation", "test")]
    assert sum(map(len, parts)) == 90 and len(parts[0]) > 60


def test_own_pairs_have_ids_of_their_texts_and_the_columns_of_records(tmp_path, capsys):
    """Ids by place would join the rows of two files; so would ids under an order of responses."""
    rows = [{"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(3)]
    file, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    write(file, [*rows, rows[0], {**rows[2], "id": "own", "domain": "d", "reference": "r",
                                  "source": "s"}, {**rows[1], "prompt": "?", "source": "s"}])
    write(other, [rows[2], rows[1], {**rows[0], "chosen": "b", "rejected": "a"}])
    found, others = load_examples(f"pairs:{file}"), load_examples(f"pairs:{other}")
    ids = [e.id for e in found]
    assert [e.id for e in others][:2] == [ids[2], ids[1]] and others[2].id not in ids
    assert ids[0] != ids[1] and ids[3] == f"{ids[0]}-2" and ids[4] == "own"
    assert [(e.domain, e.reference) for e in found[3:]] == [("all", None), ("d", "r"), ("s", None)]
    refuses("line 2: field 'id' repeats 'x'",
            f"pairs:{write(file, [{**rows[0], 'id': 'x'}, {**rows[1], 'id': 'x'}])}")
    math = [{"problem": "p", "response": r, "is_correct": True} for r in ("1", "2", "1")]
    ids = [e.id for e in load_examples(f"math:{write(file, math)}")]
    assert ids[2] == f"{ids[0]}-2" and ids[1] != ids[0]


@pytest.mark.parametrize("name, split", [
    (local("rewardbench"), "train"), (local("rewardbench"), "validation"),
    (local("rewardbench", "#train"), "test")])
def test_benchmarks_are_not_for_training(name, split):
    refuses("rewardbench is a benchmark", name, split)


def test_limit_domain_and_ids(tmp_path, capsys):
    """Of a set that is sorted by source the limit takes evenly spaced items; ids stay."""
    assert [e.id for e in load("rewardbench", limit=2)] == ["rewardbench/0", "rewardbench/2"]
    refuses("--limit must be at least 1", "toy", limit=0)
    name = str(write(tmp_path / "rows:1@x#2.jsonl", records(6)))  # an ordinary path
    assert [e.id for e in load_examples(name, "test", limit=3)] == ["r0", "r1", "r2"]
    assert capsys.readouterr().out == ""
    for row in (rows := records(6)):  # sorted by domain
        row["domain"] = f"d{int(row['id'][1]) // 2}"
    load_examples(str(write(tmp_path / "sorted.jsonl", rows)), limit=2)
    assert "none of the first 2 items is of domain d1, d2; shuffle" in capsys.readouterr().out
    assert [e.id for e in load_examples(name, domain="d1")] == ["r1", "r3", "r5"]
    assert [e.id for e in load_examples(name, exclude_domain="d1", limit=2)] == ["r0", "r2"]
    assert refuses("no item left", name, domain="x").endswith("no item left of domain 'x'")
    assert refuses("no item left", str(write(tmp_path / "one.jsonl", records(1))),
                   exclude_domain="d0").endswith("no item left outside domain 'd0'")
    assert [e.domain for e in load_examples("toy", "test", 3, domain="safety")] == ["safety"] * 3
    refuses("the toy world has the domains", "toy", domain="x")


def test_labels_and_enough_responses_where_they_are_needed(tmp_path, capsys):
    rows = records(3)
    rows[1] |= {"responses": ["a"], "rewards": [1]}
    path = str(write(tmp_path / "rows.jsonl", rows))
    assert [e.id for e in load_examples(path, labelled=True, at_least=2)] == ["r0", "r2"]
    assert "2 items; 1 left out for fewer than 2 responses" in capsys.readouterr().out
    assert [e.id for e in load_examples(path, limit=2, at_least=2)] == ["r0"]  # after the limit
    refuses("no item with n >= 3", path, at_least=3)
    del rows[2]["rewards"]
    write(tmp_path / "rows.jsonl", rows)
    assert len(load_examples(path)) == 3
    refuses("item r2 has no 'rewards'", path, labelled=True)
    for row in rows:
        row |= {"gold": 1, "source": "s"}
    write(tmp_path / "rows.jsonl", rows)
    refuses("item r2 has no 'rewards'.* fields 'gold', 'source'", path, labelled=True)


@pytest.mark.parametrize("name", ["absent.jsonl", "absent.jsonl#test", "", "#test", "toy:x"])
def test_names_that_mean_nothing(name):
    refuses(r"does not exist; give --data a \.jsonl file, toy, or one of skywork", name)


# ----- files -----

def write_csv(path, rows):
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({key: json.dumps(value) if isinstance(value, list) else value
                          for key, value in row.items()} for row in rows)


def test_file_formats_agree(tmp_path, capfd):
    """Lists are JSON in the cells of a CSV; a text that only begins like one stays a text.

    The second round finds other files under the same names.
    """
    own = [{"id": "x", "prompt": "Hi, you", "responses": ["a", "[b]"], "rewards": [0, 1.5],
            "preference_strength": 2},
           {"id": "y", "prompt": "[Ho", "responses": ["c"], "rewards": [1], "domain": "d",
            "source": "web"}]
    for prefix, rows in (("skywork:", fixture("skywork")[0]), ("", own)):
        lines = write(tmp_path / "a.jsonl", rows)
        expected = load_examples(f"{prefix}{lines}")
        (tmp_path / "a.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
        write_csv(tmp_path / "a.csv", rows)
        for name in ("a.jsonl", "a.json", "a.csv"):
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.read_bytes() + b"\n\n")
        table = datasets.Dataset.from_json(str(tmp_path / "a.json"))
        table.to_parquet(tmp_path / "a.parquet")
        shutil.rmtree(tmp_path / "disk", ignore_errors=True)
        table.save_to_disk(tmp_path / "disk", num_shards=2)
        (tmp_path / "disk" / "cache-1.arrow").write_bytes(b"what map() left")
        capfd.readouterr()
        for name in ("a.json", "a.jsonl.gz", "a.json.gz", "a.csv.gz", "bom.jsonl", "a.parquet",
                     "a.csv", "disk"):
            assert load_examples(f"{prefix}{tmp_path / name}") == expected, name
            if not prefix:
                assert [e.responses for e in read_jsonl(tmp_path / name)] == [
                    row["responses"] for row in rows], name
        said = "".join(capfd.readouterr())
        assert "Generating" not in said and said.count("\n") == 8 * bool(prefix), said  # a tie
    write_csv(tmp_path / "a.csv", [{"chosen": "a"}])
    refuses(r"a\.csv, row 0: field 'rejected' is missing", f"skywork:{tmp_path / 'a.csv'}")
    (tmp_path / "one.json").write_text(json.dumps(own[0], indent=1))  # one object, not a list
    assert [e.id for e in read_jsonl(tmp_path / "one.json")] == ["x"]


def test_answers_in_a_csv_stay_texts(tmp_path):
    """A column of numbers, or the word None, is an answer and no number, and is not missing."""
    write_csv(tmp_path / "a.csv", [{"prompt": "2 + 2", "chosen": "4", "rejected": "5"},
                                   {"prompt": "007?", "chosen": "None", "rejected": "[1, 2]"},
                                   {"prompt": "a list", "chosen": "NA", "rejected": "1.0"}])
    assert [e.responses for e in load_examples(f"pairs:{tmp_path / 'a.csv'}")] == [
        ["4", "5"], ["None", "[1, 2]"], ["NA", "1.0"]]
    write_csv(tmp_path / "b.csv", [{"problem": "1 + 1", "response": "2", "is_correct": True}])
    assert short(load_examples(f"math:{tmp_path / 'b.csv'}")) == [(["2"], [1])]


def test_a_folder_with_several_splits_is_not_one_file(tmp_path):
    parts = {name: datasets.Dataset.from_list(hh(4, name)) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "disk")
    for split in parts:  # the folders tell the splits
        found = load_examples(f"hh-rlhf:{tmp_path / 'disk'}", split)
        assert {e.prompt[0]["content"].split()[0] for e in found} == {split}
    refuses("disk is a folder; give one of its files, .* it holds test, train", tmp_path / "disk")
    write(tmp_path / "empty" / "a.txt", [])
    refuses("empty does not exist or holds no file ending in", tmp_path / "empty")


@pytest.mark.parametrize("name, content, problem", [
    ("x.json", b"[{]", "cannot be read"), ("x.json", b"[]", "no usable item; 0 dropped"),
    ("x.parquet", b"PAR?", "cannot be read"),
    ("x.jsonl.gz", b"no archive", "cannot be read"),
    # no time stamp, so that this test has one name in all processes
    ("x.jsonl.gz", gzip.compress(b"{}", mtime=0)[:-9], "cannot be read"),
    ("x.jsonl", b"\xff", "line 1: not JSON in UTF-8"),
    ("x.txt", b"", r"does not exist|give a file ending in \.jsonl, \.jsonl\.gz, \.json, .*\.csv")])
def test_unreadable_files_are_named(name, content, problem, tmp_path):
    (tmp_path / name).write_bytes(content)
    refuses(rf"skywork, .*{name}.*({problem})", f"skywork:{tmp_path / name}")
    refuses(rf"^{tmp_path / name}.*({problem})", str(tmp_path / name))


def test_a_part_that_is_none_is_named(tmp_path):
    file = write(tmp_path / "rows.jsonl", records(2))
    for name in (file, f"pairs:{file}"):
        refuses(rf"no part 'foo'; {name}#train, #validation or #test", f"{name}#foo")


def test_folders(tmp_path):
    shutil.copy(FIXTURES / "rewardbench.jsonl", tmp_path / "filtered-00000.jsonl")
    write(tmp_path / "raw-00000.jsonl", [{"not": "read"}])
    write(tmp_path / ".cache" / "filtered-00001.jsonl", [{"not": "read"}])
    assert load_examples(f"rewardbench:{tmp_path}", "test") == load("rewardbench")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "absent", tmp_path / "absent.jsonl", tmp_path / "empty"):
        refuses(r"does not exist or holds no file ending in \.jsonl", f"rewardbench:{path}", "test")


def test_pairs_given_as_records_name_the_way_to_read_them(tmp_path):
    path = write(tmp_path / "mine.jsonl", [{"prompt": "Hi.", "chosen": "Yes.", "rejected": "No."}])
    refuses(r"'responses' is missing; --data pairs:FILE\.jsonl reads chosen/rejected", str(path))
    assert load_examples(f"pairs:{path}")[0].responses == ["Yes.", "No."]


# ----- the hub -----

@pytest.fixture
def hub(monkeypatch):
    """datasets.load_dataset replaced: `calls` are what it was asked for, `rows` what it returns."""
    class Hub:
        pass
    hub = Hub()
    hub.calls, hub.rows = [], []

    def load_dataset(**options):
        hub.calls.append(options)
        return hub.rows
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return hub


def test_hub_sets_and_revisions(hub):
    hub.rows = fixture("rewardbench")[0]
    assert load_examples("rewardbench", "test") == load("rewardbench")
    assert load_examples("allenai/reward-bench@abc", "test") == load("rewardbench")
    filtered = {"split": "filtered", "path": "allenai/reward-bench"}  # not `raw`
    assert hub.calls == [filtered, {**filtered, "revision": "abc"}]
    hub.rows = [hub.rows[0], {"prompt": "x"}]
    refuses(r"^rewardbench, allenai/reward-bench/filtered, row 1: field 'subset'", "rewardbench",
            "test")


@pytest.mark.parametrize("name, word, call", [
    ("helpsteer2", "nvidia/HelpSteer2", {"path": "nvidia/HelpSteer2", "data_dir": "preference"}),
    ("helpsteer3", "helpsteer3", {"path": "nvidia/HelpSteer3", "name": "preference"}),
    ("pairs", "pairs:some-owner/some_set", {"path": "some-owner/some_set"})])
def test_the_part_of_a_hub_set(name, word, call, hub):
    hub.rows = fixture(name)[0]
    assert load_examples(word) == load(name)
    assert hub.calls == [{"split": "train", **call}]


def test_hub_splits(hub):
    hub.rows = fixture("helpsteer3")[0]
    assert len(load_examples("helpsteer3", "validation")) == 2, "its own validation set, whole"
    # cut from train; none of these rows falls in it
    refuses("split test: no usable item", "helpsteer3", "test")
    assert [call["split"] for call in hub.calls] == ["validation", "train"]


def test_hub_sets_of_several_parts(hub):
    hub.rows = fixture("ppe_correctness")[0]
    examples = load_examples("ppe_correctness", "test")
    assert len(examples) == 15 == len({e.id for e in examples})
    assert [e.domain for e in examples[::3]] == ["GPQA", "IFEval", "MATH", "MBPP-Plus", "MMLU-Pro"]
    assert all(call["split"] == "train" and len(call["revision"]) == 40 for call in hub.calls)
    hub.calls, hub.rows = [], fixture("realmistake")[0]
    examples = load_examples("realmistake", "test")
    assert Counter(e.extra["subset"] for e in examples) == {"gpt4": 3, "llama2": 3}
    assert len({e.domain for e in examples}) == 3
    assert {call["split"] for call in hub.calls} == {"gpt4", "llama2"}


@pytest.mark.parametrize("name", SETS)
def test_out_of_reach(name):  # conftest.py puts datasets offline
    said = "cannot load .*" if SETS[name][0] else "is not on the hub; give local files: "
    refuses(rf"^{name}:? {said}{name}:PATH", name, SPLIT[name])


# ----- chats -----

def test_chats(hub, tmp_path):
    chats = load_chats(str(FIXTURES / "chats.jsonl"), 5)
    assert len(chats) == 5 and sorted(map(len, chats[:2])) == [2, 3]
    assert any(m["content"] == "Then rest\u2028a little." for m in max(chats, key=len))
    assert load_chats(f"smoltalk:{FIXTURES / 'chats.jsonl'}", 5) == chats
    hub.rows = [{"messages": [user(f"q{i}"), assistant("a")]} for i in range(100)]
    drawn = load_chats("smoltalk", 3)
    assert len({chat[0]["content"] for chat in drawn}) == 3 and load_chats("smoltalk", 3) == drawn
    assert load_chats("smoltalk", 3, seed=1) != drawn
    hub.rows = iter(hub.rows)
    load_chats("smoltalk", 3)
    assert next(hub.rows)["messages"][0] == user("q30"), "no more than 10 x count are fetched"
    assert hub.calls[0] == {"split": "train", "path": "HuggingFaceTB/smoltalk", "name": "all",
                            "streaming": True}
    assert len(load_chats("toy", 4)) == 4
    with pytest.raises(UserError, match="absent does not exist; give --general_data"):
        load_chats("absent", 3)


@pytest.mark.parametrize("line", [
    "{", "[1]", '{"messages": []}', '{"messages": [{"role": "user", "content": "q"}]}',
    '{"messages": [{"role": "assistant", "content": null}]}', '{"text": "x"}'])
def test_bad_chats_are_named(line, tmp_path):
    good = json.dumps({"messages": [user("q"), assistant("a")]})
    (tmp_path / "chats.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"chats\.jsonl, line 2: field 'messages' must be a chat"):
        load_chats(str(tmp_path / "chats.jsonl"), 1)
