"""data.py: every schema against a small invented file in that schema, splits, local files, the hub, user errors."""
import gzip
import json
import shutil
from collections import Counter

import datasets
import pytest
from conftest import ROOT

from grm import build_prompt
from plumbing import data
from plumbing import sets
from plumbing.data import load_chats, load_examples
from plumbing.sets import SETS
from plumbing.runs import UserError

FIXTURES = ROOT / "tests" / "fixtures"
TRAINING = [name for name, (_, splits, _) in SETS.items() if not isinstance(splits, str)]
FIELDS = {  # what each schema cannot do without
    "skywork": ["chosen", "rejected"], "helpsteer2": ["prompt", "response_1", "response_2", "preference_strength"],
    "helpsteer3": ["context", "response1", "response2", "overall_preference"],
    "ultrafeedback": ["instruction", "completions"], "ultrafeedback_binarized": ["chosen", "rejected"],
    "offsetbias": ["instruction", "output_1", "output_2", "label"], "hh-rlhf": ["chosen", "rejected"],
    "pairs": ["chosen", "rejected"], "math": ["problem", "response", "is_correct"],
    "rewardbench": ["prompt", "chosen", "rejected", "subset"],
    "rewardbench2": ["prompt", "chosen", "rejected", "subset"],
    "ppe_preference": ["prompt", "response_1", "response_2", "winner"],
    "ppe_correctness": ["prompt", "scores", "sampled_conflict_pairs", "response_1"],
    "rmb": ["conversation_input", "bon_best", "loser_list"], "realmistake": ["input", "llm_response", "label"],
}


def local(name, part=""):
    """The name of the fixture of a set, as it is given to --data."""
    file = FIXTURES / f"{name}.jsonl"
    return f"{name}:{file if file.exists() else FIXTURES / name}{part}"


def load(name, **options):
    return load_examples(local(name), **{"split": "train" if name in TRAINING else "test", **options})


def short(examples):
    return [(e.responses, e.rewards) for e in examples]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_rows(name):
    file = sorted(FIXTURES.glob(f"{name}.jsonl")) or sorted(f for f in (FIXTURES / name).rglob("*.json*")
                                                            if f.name != "config.json")
    text = file[0].read_text(encoding="utf-8")
    rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.split("\n") if line]
    return rows, str(file[0].relative_to(FIXTURES))


# ----- all sets -----

def test_every_set_has_a_fixture_and_a_row_here():
    assert set(FIELDS) == set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_items_can_be_used(name):
    examples = load(name)
    assert len({e.id for e in examples}) == len(examples) and all(e.id.startswith(name + "/") for e in examples)
    for e in examples:
        n = len(e.responses)
        assert len(e.rewards) == n and (e.rewards.count(max(e.rewards)) == 1 if n > 1 else e.rewards[0] in (0, 1))
        assert e.prompt[-1]["role"] == "user" and all(set(m) == {"role", "content"} for m in e.prompt)
        assert e.extra["cluster"] and "split" not in e.extra
        assert e.responses[0] in build_prompt(e)[0]["content"]
        if name not in TRAINING:
            assert e.extra["section"] == e.domain and "subset" in e.extra


@pytest.mark.parametrize(("name", "field"), [(name, field) for name, fields in FIELDS.items() for field in fields])
@pytest.mark.parametrize("bad", ["missing", None, 1.5])
def test_a_malformed_row_is_named(name, field, bad, tmp_path):
    rows, file = read_rows(name)
    rows = [dict(rows[0]), dict(rows[0])]
    del rows[1][field]
    if bad != "missing":
        rows[1][field] = bad
    path = write_jsonl(tmp_path / file.replace(".json", ".jsonl").replace(".jsonll", ".jsonl"), rows)
    # Without bon_best a row of RMB reads as a pair, and without label one of ReaLMistake as one with error_label.
    said = "chosen" if (field, bad) == ("bon_best", "missing") else field
    problem = "must be" if bad == 1.5 else "is missing"
    with pytest.raises(UserError, match=rf"^{name}, .*line 2: field '{said}' {problem}") as error:
        load_examples(f"{name}:{tmp_path}", "train" if name in TRAINING else "test")
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_skip_bad_counts_malformed_rows(tmp_path, capsys):
    row = read_rows("rewardbench")[0][0]
    path = write_jsonl(tmp_path / "rows.jsonl", [row, {"prompt": "no answers"}, [1], row])
    path.write_text(path.read_text() + '{"torn', encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2: field 'subset' is missing"):
        load_examples(f"rewardbench:{path}", "test")
    kept = load_examples(f"rewardbench:{path}", "test", skip_bad=True)
    assert [e.id for e in kept] == ["rewardbench/0", "rewardbench/3"]
    assert "3 malformed rows skipped" in capsys.readouterr().out


def test_ties_are_dropped_and_counted(capsys, tmp_path):
    for name, kept, dropped in [("skywork", 2, 1), ("helpsteer2", 2, 1), ("helpsteer3", 2, 1), ("ultrafeedback", 1, 2),
                                ("ultrafeedback_binarized", 1, 1), ("hh-rlhf", 2, 1), ("rewardbench2", 1, 2),
                                ("ppe_preference", 2, 2)]:
        assert len(load(name)) == kept
        assert f"{name}: {kept} items; {dropped} dropped" in capsys.readouterr().out
    tied = write_jsonl(tmp_path / "tied.jsonl", read_rows("ppe_preference")[0][2:])
    with pytest.raises(UserError, match="no usable item.*2 dropped"):
        load_examples(f"ppe_preference:{tied}", "test")


# ----- training sets -----

def test_skywork_prompt_is_the_shared_prefix():
    first, multi_turn = load("skywork")
    assert first.prompt == [user("Name a river in an invented land.")] and first.domain == "magpie_ultra"
    assert short([first]) == [(["The Ulm flows through Tarn.", "No."], [1, 0])]
    assert [m["role"] for m in multi_turn.prompt] == ["user", "assistant", "user"]
    assert short([multi_turn]) == [(["A bigger omelette.", "Eggs are oval."], [1, 0])]
    assert [e.domain for e in load("skywork", exclude_domain="magpie_ultra")] == ["offset_bias"]


def test_helpsteer2_sign_and_turns():
    second_better, first_better = load("helpsteer2")
    assert short([second_better]) == [(["A leaf.", "A stone."], [0, 1])]
    assert short([first_better]) == [(["Ash.", "Grey names are many."], [1, 0])]
    assert (second_better.preference_strength, first_better.preference_strength) == (3, 1)
    held_out, = load("helpsteer2", split="validation")  # its own `split` column comes before the hash
    assert held_out.prompt == [user("Is water wet?"), assistant("Some say so."), user("What do you say?")]
    assert held_out.rewards == [1, 0] and held_out.preference_strength == 2
    assert "(much better than the other)" in build_prompt(second_better, hint=True)[0]["content"]


def test_helpsteer3_sign():
    first_better, second_better = load("helpsteer3")
    assert short([first_better]) == [(["Iron.", "Wood."], [1, 0])] and first_better.domain == "stem"
    assert short([second_better]) == [(["xs.reverse", "xs[::-1]"], [0, 1])] and len(second_better.prompt) == 3


def test_ultrafeedback_means_and_not_rated():
    item, = load("ultrafeedback")  # four responses, of which the third has an N/A rating
    assert short([item]) == [(["A tower.", "A tower whose lamp warns ships.", "Ships like it."], [3.0, 4.75, 1.5])]


def test_ultrafeedback_binarized_repeats_no_prompt():
    item, = load("ultrafeedback_binarized")
    assert item.prompt == [user("Offer me a drink.")] and short([item]) == [(["Would you like tea?", "Drink."], [1, 0])]


def test_offsetbias_label_counts_from_one(tmp_path):
    assert [e.rewards for e in load("offsetbias")] == [[0, 1], [1, 0]]
    path = write_jsonl(tmp_path / "x.jsonl", [{**read_rows("offsetbias")[0][0], "label": 0}])
    with pytest.raises(UserError, match="line 1: field 'label' must be 1 or 2"):
        load_examples(f"offsetbias:{path}")


def test_hh_rlhf_turns():
    alike, multi_turn = load("hh-rlhf")
    assert alike.prompt == [user("How do I fold a shirt?")]
    assert alike.responses == ["Lay it flat first.", "Lay off."], "a common beginning belongs to the responses"
    assert multi_turn.prompt == [user("Hi there, you"), assistant("Hi! What can I do?"), user("Tell a joke")]
    assert multi_turn.responses == ["A snail walks into a bar, slowly.", "No."]


def test_math_is_single():
    right, wrong = load("math")
    assert (right.rewards, wrong.rewards) == ([1], [0]) and right.reference == "42" and right.domain == "math"
    assert right.extra["cluster"] == wrong.extra["cluster"]


def test_pairs_in_every_form_of_prompt(tmp_path):
    explicit, implicit, explicit_chat, implicit_chat, system = load("pairs")
    assert explicit.prompt == [user("The sky is")] and explicit.responses == [" blue.", " made of tin."]
    assert implicit.prompt == [user("Snow is")] and implicit.responses == ["black as seldom.", "blue as never."]
    assert explicit_chat.prompt == [user("What colour is grass?")] and explicit_chat.responses == ["Green.", "Loud."]
    assert implicit_chat.prompt == [user("What colour is coal?")] and implicit_chat.responses == ["Black.", "Coal."]
    assert [m["role"] for m in system.prompt] == ["system", "user"] and system.responses[0] == "White."
    shared = {"role": "Human", "content": "a"}
    row = {"chosen": [shared, {"role": "gpt", "content": "b"}], "rejected": [shared, {"role": "gpt", "content": "c"}]}
    assert load_examples(f"pairs:{write_jsonl(tmp_path / 'roles.jsonl', [row])}")[0].prompt == [user("a")]
    for row, problem in [
            ({"chosen": "Yes.", "rejected": "No."}, "field 'prompt' is missing"),
            ({"chosen": [user("a"), assistant("b")], "rejected": "c"}, "field 'rejected' must be a text or"),
            ({"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("c")]}, "must differ from"),
            ({"chosen": [user("a"), user("b")], "rejected": [user("a"), user("c")]}, "must differ from"),
            ({"chosen": [assistant("b")], "rejected": [assistant("c")]}, "field 'prompt' must be a text"),
            ({"chosen": [], "rejected": []}, "field 'chosen' must be"),
            ({"prompt": "p", "chosen": [{"role": "user"}], "rejected": [assistant("c")]}, "field 'chosen' must be")]:
        with pytest.raises(UserError, match=problem):
            load_examples(f"pairs:{write_jsonl(tmp_path / 'bad.jsonl', [row])}")


# ----- benchmarks -----

def test_rewardbench_sections_and_weights():
    examples = load("rewardbench")
    assert [(e.domain, e.extra["weight"]) for e in examples] == [
        ("chat", 100), ("chat-hard", 92), ("safety", 250), ("reasoning", 984), ("reasoning", 164)]
    assert [e.extra["source_id"] for e in examples] == [0, 0, 7, 8, 9], "source ids repeat, ours do not"
    assert short(examples[3:4]) == [(["7", "8"], [1, 0])]
    sums = {section: sum(weights.values()) for section, weights in sets.REWARDBENCH.items()}
    assert sums == {"chat": 358, "chat-hard": 456, "safety": 740, "reasoning": 1968}
    assert sum(sums.values()) - 984 + 447 == 2985, "items of the split `filtered`"


def test_rewardbench_unknown_subset(tmp_path):
    path = write_jsonl(tmp_path / "x.jsonl", [{**read_rows("rewardbench")[0][0], "subset": "prior"}])
    with pytest.raises(UserError, match="field 'subset' is 'prior'"):
        load_examples(f"rewardbench:{path}", "test")


def test_rewardbench2_one_right_of_four():
    assert short(load("rewardbench2")) == [(["Eight.", "Six.", "Ten.", "Four."], [1, 0, 0, 0])]


def test_ppe_preference_winner():
    assert short(load("ppe_preference")) == [
        (["first of q1", "second of q1"], [1, 0]), (["first of q2", "second of q2"], [0, 1])]


def test_ppe_correctness_pairs_count_from_zero_and_columns_from_one():
    examples = load("ppe_correctness")
    assert short(examples) == [  # pairs [0, 1], [2, 3], [3, 1]; then [0, 2]; then [3, 0]
        (["g1 answer at place 0", "g1 answer at place 1"], [1, 0]),
        (["g1 answer at place 2", "g1 answer at place 3"], [0, 1]),
        (["g1 answer at place 3", "g1 answer at place 1"], [1, 0]),
        (["m1 answer at place 0", "m1 answer at place 2"], [0, 1]),
        (["m2 answer at place 3", "m2 answer at place 0"], [1, 0])]
    assert [e.extra["section"] for e in examples] == ["GPQA"] * 3 + ["MATH"] * 2
    clusters = [e.extra["cluster"] for e in examples]
    assert len(set(clusters[:3])) == 1 and len(set(clusters)) == 3
    assert [e.id for e in load("ppe_correctness", domain="MATH")] == ["ppe_correctness/1", "ppe_correctness/2"]


def test_ppe_correctness_references():
    """App. E.1.3: every set holds its ground truth in other columns."""
    assert [e.reference for e in load("ppe_correctness")] == ["(C) 3 blips"] * 3 + ["\\boxed{4}", "\\boxed{5}"]
    assert "#### Reference Answer ####\n(C) 3 blips" in build_prompt(load("ppe_correctness")[0], use_reference=True)[0]["content"]
    assert sets.ppe_reference({"options": ["2", "3"], "answer": "B", "answer_index": 1}) == "(B) 3"  # MMLU-Pro
    assert sets.ppe_reference({"code": "def f(): pass", "test_list": []}) == "def f(): pass"  # MBPP-Plus
    assert sets.ppe_reference({"instruction_id_list": ["words:at_most", "case:lower"], "kwargs": [{"num_words": 9, "letter": None}, {}]}) \
        == "words:at_most num_words=9\ncase:lower"  # IFEval
    assert sets.ppe_reference({"options": ["2"], "answer": "B", "answer_index": 1}) is None


@pytest.mark.parametrize(("change", "problem"), [
    ({"sampled_conflict_pairs": [[1, 4]]}, "must hold pairs of places 0..3"),
    ({"sampled_conflict_pairs": [[-1, 0]]}, "must hold pairs of places 0..3"),
    ({"sampled_conflict_pairs": [3]}, "must hold pairs of places 0..3"),
    ({"scores": [True, None, False, True]}, "field 'scores' must hold true or false")])
def test_ppe_correctness_bad_pairs(change, problem, tmp_path):
    path = write_jsonl(tmp_path / "GPQA.jsonl", [{**read_rows("ppe_correctness")[0][0], **change}])
    with pytest.raises(UserError, match=problem):
        load_examples(f"ppe_correctness:{path}", "test")


def test_ppe_correctness_needs_the_name_of_its_set(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", read_rows("ppe_correctness")[0])
    with pytest.raises(UserError, match="must be named after one of GPQA, IFEval, MATH, MBPP-Plus, MMLU-Pro"):
        load_examples(f"ppe_correctness:{path}", "test")


def test_rmb_pairs_and_lists():
    examples = {e.extra["section"]: e for e in load("rmb")}  # a whole checkout: config.json lies beside the data
    assert set(examples) == {f"{a}-{b}" for a in ("helpfulness", "harmlessness") for b in ("pairwise", "bon")}
    assert examples["helpfulness-pairwise"].responses == ["Once a week.", "Plants are green."]
    bon = examples["helpfulness-bon"]
    assert short([bon]) == [(["Once a week.", "Never.", "Hourly.", "Plants are green."], [1, 0, 0, 0])]
    assert bon.prompt == [user("My plant is dry."), assistant("Water it."), user("How often?")]
    assert bon.extra["cluster"] == examples["helpfulness-pairwise"].extra["cluster"]
    assert examples["harmlessness-bon"].rewards == [1, 0, 0] and examples["harmlessness-pairwise"].rewards == [1, 0]
    assert {s: e.extra["subset"] for s, e in examples.items()} == {
        "helpfulness-pairwise": "Advice", "helpfulness-bon": "Advice", "harmlessness-pairwise": "S1", "harmlessness-bon": "multi"}


def test_rmb_needs_its_folders(tmp_path):
    row = {**read_rows("rmb")[0][0], "category_path": None}
    with pytest.raises(UserError, match="field 'category_path' or the file's folder must say"):
        load_examples(f"rmb:{write_jsonl(tmp_path / 'rows.jsonl', [row])}", "test")
    path = write_jsonl(tmp_path / "Helpfulness" / "S3.jsonl", [row])
    assert load_examples(f"rmb:{path}", "test")[0].domain == "helpfulness-bon"


def test_realmistake_right_is_one():
    examples = load("realmistake")
    assert [e.rewards for e in examples] == [[1], [1], [0]], "`label` and `error_label` are read alike; 1 = no error"
    assert [e.domain for e in examples] == ["answerability_classification"] + ["math_word_problem_generation"] * 2
    assert [e.extra["subset"] for e in examples] == ["llama2", "gpt4", "gpt4"]


def test_realmistake_as_its_own_archive(tmp_path):
    """data.zip names the files after the models, and holds rows that its paper prints besides (they would count twice)."""
    rows = read_rows("realmistake")[0]
    for file in ("answerability_classification/gpt-4-0613.jsonl", "answerability_classification/Llama-2-70b-chat-hf.jsonl", "example.jsonl"):
        write_jsonl(tmp_path / "data" / file, rows)
    examples = load_examples(f"realmistake:{tmp_path}", "test")
    assert Counter(e.extra["subset"] for e in examples) == {"gpt4": len(rows), "llama2": len(rows)}
    assert {e.domain for e in examples} == {"answerability_classification"}


# ----- splits, limits, domains -----

def records(count, prompt="question {}"):
    return [{"id": f"r{i}", "prompt": prompt.format(i), "responses": ["a", "b"], "rewards": [1, 0],
             "domain": f"d{i % 2}"} for i in range(count)]


def test_part_of_a_file_is_decided_by_the_prompt(tmp_path):
    rows = records(600) + [{**row, "id": row["id"] + "again"} for row in records(600, "  question\n{} ")]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    parts = {part: load_examples(f"{path}#{part}") for part in ("train", "validation", "test")}
    texts = {part: Counter(" ".join(e.prompt[0]["content"].split()) for e in found) for part, found in parts.items()}
    assert sum(len(found) for found in parts.values()) == 1200 == len(load_examples(str(path)))
    assert all(set(counts.values()) == {2} for counts in texts.values()), "equal prompts lie in one split"
    assert 0.86 < len(parts["train"]) / 1200 < 0.94 and min(len(parts["validation"]), len(parts["test"])) > 20
    assert [e.id for e in load_examples(f"{path}#test", split="train")] == [e.id for e in parts["test"]]
    # the same on every machine and in every version: models already trained must not meet their test items
    assert [data.hash_split(e) for e in load_examples(str(path), limit=6)] == [
        "validation", "train", "train", "train", "validation", "test"]  # sha256sum of "question 0" ..., modulo 100


def test_conversations_with_one_opening_stay_together():
    def item(*turns):
        row = {"prompt": list(turns), "chosen": "a", "rejected": "b"}
        return data.row_examples(row, sets.chosen_rejected, "id", "where")[0]
    short_one, long_one = item(user("Hi")), item(user("Hi"), assistant("a"), user("And?"))
    assert data.opening_hash(short_one) == data.opening_hash(long_one) != data.opening_hash(item(user("Ho")))


def hh(count, word):
    return [{key: f"\n\nHuman: {word} {i}\n\nAssistant: {key}" for key in ("chosen", "rejected")} for i in range(count)]


def test_own_splits_are_used_and_missing_ones_cut_from_train(tmp_path):
    write_jsonl(tmp_path / "helpful" / "train.jsonl", hh(200, "train"))
    write_jsonl(tmp_path / "helpful" / "test.jsonl", hh(30, "test"))
    found = {split: load_examples(f"hh-rlhf:{tmp_path}", split) for split in ("train", "validation", "test")}
    words = {split: Counter(e.prompt[0]["content"].split()[0] for e in examples) for split, examples in found.items()}
    assert words["test"] == {"test": 30} and set(words["train"]) == set(words["validation"]) == {"train"}
    assert sum(words["train"].values()) + sum(words["validation"].values()) == 200 and words["validation"]["train"] < 25
    with pytest.raises(UserError, match=r"has no rows for the split 'train', only for test"):
        load_examples(f"hh-rlhf:{tmp_path / 'helpful' / 'test.jsonl'}")


@pytest.mark.parametrize("file", ["rows.jsonl", "train.jsonl"])
def test_one_file_is_cut_into_disjoint_splits(file, tmp_path):
    path = write_jsonl(tmp_path / file, hh(400, "question"))
    found = [e.id for split in ("train", "validation", "test") for e in load_examples(f"hh-rlhf:{path}", split)]
    assert len(found) == len(set(found)) == 400


def test_own_pairs_are_used_as_they_are():
    assert len(load_examples(local("pairs"), "test")) == 5
    parts = []
    for part in ("train", "validation", "test"):
        try:
            parts += load_examples(local("pairs", "#" + part), "test")
        except UserError as error:
            assert f"in the split {part}" in str(error)
    assert len(parts) == 5


@pytest.mark.parametrize("split", ["train", "validation"])
def test_benchmarks_are_not_for_training(split):
    with pytest.raises(UserError, match=f"rewardbench is a benchmark.*{split}"):
        load("rewardbench", split=split)
    with pytest.raises(UserError, match="rewardbench is a benchmark"):
        load_examples(local("rewardbench", "#" + split), "test")


def test_limit_takes_evenly_spaced_items_and_ids_stay():
    assert [e.id for e in load("rewardbench", limit=2)] == ["rewardbench/0", "rewardbench/2"]
    assert len(load("rewardbench", limit=99)) == 5
    with pytest.raises(UserError, match="--limit must be at least 1"):
        load("rewardbench", limit=0)


def test_a_plain_file_stays_as_it_is(tmp_path):
    path = write_jsonl(tmp_path / "rows:1@x#2.jsonl", records(6))
    assert [e.id for e in load_examples(str(path), "test", limit=3)] == ["r0", "r1", "r2"]
    assert [e.id for e in load_examples(str(path), domain="d1")] == ["r1", "r3", "r5"]
    assert [e.id for e in load_examples(str(path), exclude_domain="d1", limit=2)] == ["r0", "r2"]
    with pytest.raises(UserError, match="no item left with domain 'x'"):
        load_examples(str(path), domain="x")
    for name in ("absent.jsonl", "absent.jsonl#test", "", "#test"):
        with pytest.raises(UserError, match=r"does not exist; give --data a \.jsonl file, toy, or one of skywork"):
            load_examples(name)


# ----- local files and the hub -----

def test_file_formats_agree(tmp_path):
    import pyarrow
    import pyarrow.parquet
    rows = read_rows("skywork")[0]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((FIXTURES / "skywork.jsonl").read_bytes()))
    (tmp_path / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + (FIXTURES / "skywork.jsonl").read_bytes() + b"\n\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.json", "a.jsonl.gz", "bom.jsonl", "a.parquet"):
        assert load_examples(f"skywork:{tmp_path / name}") == load("skywork"), name
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"chosen": "a"}]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, row 0: field 'rejected' is missing"):
        load_examples(f"skywork:{tmp_path / 'a.parquet'}")


@pytest.mark.parametrize(("name", "content"), [
    ("x.json", b"[{]"), ("x.jsonl", b"\xff"), ("x.parquet", b"PAR?"), ("x.jsonl.gz", b"no archive"),
    ("x.jsonl.gz", gzip.compress(b"{}", mtime=0)[:-9])])  # no time stamp: the workers compare the names of the tests
def test_unreadable_files_are_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"skywork, .*{name}: cannot be read"):
        load_examples(f"skywork:{tmp_path / name}")


def test_folders(tmp_path):
    shutil.copy(FIXTURES / "rewardbench.jsonl", tmp_path / "filtered-00000.jsonl")
    write_jsonl(tmp_path / "raw-00000.jsonl", [{"not": "read"}])
    write_jsonl(tmp_path / ".cache" / "filtered-00001.jsonl", [{"not": "read"}])
    assert load_examples(f"rewardbench:{tmp_path}", "test") == load("rewardbench")
    for path in (tmp_path / "absent", tmp_path / "absent.jsonl", tmp_path / ".cache" / "empty"):
        (tmp_path / ".cache" / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=r"rewardbench: .* does not exist or holds no file ending in \.jsonl"):
            load_examples(f"rewardbench:{path}", "test")


@pytest.fixture
def hub(monkeypatch):
    """datasets.load_dataset replaced: `calls` are what it was asked for, `rows` what it returns."""
    class Hub:
        calls, rows = [], []
    hub = Hub()
    hub.calls, hub.rows = [], []
    monkeypatch.setattr(datasets, "load_dataset", lambda **options: hub.calls.append(options) or hub.rows)
    return hub


def test_hub_sets(hub):
    hub.rows = read_rows("rewardbench")[0]
    assert load_examples("rewardbench", "test") == load("rewardbench")
    assert load_examples("allenai/reward-bench@abc", "test") == load("rewardbench")
    assert hub.calls == [{"split": "filtered", "path": "allenai/reward-bench"},
                         {"split": "filtered", "path": "allenai/reward-bench", "revision": "abc"}]
    with pytest.raises(UserError, match=r"^rewardbench, allenai/reward-bench/filtered, row 1: field 'subset'"):
        hub.rows = [hub.rows[0], {"prompt": "x"}]
        load_examples("rewardbench", "test")


def test_hub_splits(hub):
    hub.rows = read_rows("helpsteer3")[0]
    assert len(load_examples("helpsteer3", "validation")) == 2, "its own validation set, whole"
    assert load_examples("helpsteer3") == load("helpsteer3")
    with pytest.raises(UserError, match="no usable item in the split test"):
        load_examples("helpsteer3", "test")  # cut from train; none of these rows falls in it
    assert [call["split"] for call in hub.calls] == ["validation", "train", "train"]
    assert all(call["path"] == "nvidia/HelpSteer3" and call["name"] == "preference" for call in hub.calls)


def test_hub_sets_of_several_parts(hub):
    hub.rows = read_rows("ppe_correctness")[0]
    examples = load_examples("ppe_correctness", "test")
    assert len(examples) == 15 == len({e.id for e in examples})
    assert [e.domain for e in examples[::3]] == ["GPQA", "IFEval", "MATH", "MBPP-Plus", "MMLU-Pro"]
    assert all(call["split"] == "train" and len(call["revision"]) == 40 for call in hub.calls)
    hub.calls, hub.rows = [], read_rows("realmistake")[0]
    examples = load_examples("realmistake", "test")
    assert Counter(e.extra["subset"] for e in examples) == {"gpt4": 3, "llama2": 3}
    assert len({e.domain for e in examples}) == 3
    assert {call["split"] for call in hub.calls} == {"gpt4", "llama2"}


def test_hub_errors_become_one_line(monkeypatch):
    def broken(**options):
        raise RuntimeError("gated\nsecond line")
    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(UserError, match=r"\(RuntimeError: gated\).*hf auth login`$"):
        load_examples("realmistake", "test")


def test_helpsteer2_is_its_preference_part(hub):
    hub.rows = read_rows("helpsteer2")[0]
    assert load_examples("nvidia/HelpSteer2") == load("helpsteer2")
    assert hub.calls == [{"split": "train", "path": "nvidia/HelpSteer2", "data_dir": "preference"}]


def test_any_pairs_of_the_hub(hub):
    hub.rows = read_rows("pairs")[0]
    assert load_examples("pairs:some-owner/some_set") == load("pairs")
    assert hub.calls == [{"split": "train", "path": "some-owner/some_set"}]
    with pytest.raises(UserError, match="does not exist or holds no file"):
        load_examples("pairs:data/absent.jsonl")


@pytest.mark.parametrize("name", [name for name, (hubs, _, _) in SETS.items() if hubs])
def test_hub_out_of_reach(name):  # conftest.py puts datasets offline
    with pytest.raises(UserError, match=rf"^{name}: cannot load .*{name}:PATH") as error:
        load_examples(name, "train" if name in TRAINING else "test")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [name for name, (hubs, _, _) in SETS.items() if not hubs])
def test_not_on_the_hub(name):
    with pytest.raises(UserError, match=rf"{name} is not on the hub; give local files: {name}:PATH"):
        load_examples(name, "train" if name in TRAINING else "test")


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
    assert next(hub.rows)["messages"] == [user("q30"), assistant("a")], "no more than 10 x count chats are fetched"
    assert hub.calls[0] == {"split": "train", "path": "HuggingFaceTB/smoltalk", "name": "all", "streaming": True}


@pytest.mark.parametrize("line", ["{", "[1]", '{"messages": []}', '{"messages": [{"role": "user", "content": "q"}]}',
                                  '{"messages": [{"role": "assistant", "content": null}]}', '{"text": "x"}'])
def test_bad_chats_are_named(line, tmp_path):
    good = json.dumps({"messages": [user("q"), assistant("a")]})
    (tmp_path / "chats.jsonl").write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"chats\.jsonl, line 2: field 'messages' must be a chat"):
        load_chats(str(tmp_path / "chats.jsonl"), 1)


def test_chats_out_of_reach():
    with pytest.raises(UserError, match="smoltalk: cannot load .*smoltalk:PATH"):
        load_chats("smoltalk", 3)
    with pytest.raises(UserError, match="absent does not exist; give --general_data"):
        load_chats("absent", 3)


# ----- the rest -----

def test_toy_is_untouched():
    assert [e.domain for e in load_examples("toy", "test", limit=3, domain="safety")] == ["safety"] * 3
    assert len(load_chats("toy", 4)) == 4


def test_help_text_is_fit_for_argparse():
    assert "%" not in data.DATA_HELP and all(name in data.DATA_HELP for name in SETS)


def test_pairs_given_as_records_name_the_way_to_read_them(tmp_path):
    path = write_jsonl(tmp_path / "mine.jsonl", [{"prompt": "Hi.", "chosen": "Yes.", "rejected": "No."}])
    with pytest.raises(UserError, match=r"'id' is missing; --data pairs:FILE\.jsonl reads chosen/rejected"):
        load_examples(str(path))
    assert load_examples(f"pairs:{path}")[0].responses in (["Yes.", "No."], ["No.", "Yes."])
