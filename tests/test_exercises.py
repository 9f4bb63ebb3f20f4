"""Exercises: shipped stubs earn nothing, solutions earn everything, each planted bug and each plausible wrong answer is caught."""
import contextlib
import importlib.util
import json
import re
import shutil
import signal
import sys

import pytest
from conftest import ROOT

EXERCISES = ROOT / "exercises"
NAMES = sorted(path.name for path in EXERCISES.glob("[0-9][0-9]_*.py"))


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("exercise_check", EXERCISES / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_ten_tasks_each_with_a_solution():
    assert len(NAMES) == 10
    assert sorted(path.name for path in (EXERCISES / "solutions").glob("*.py")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_file_earns_nothing_and_the_solution_everything(check, name):
    points, possible, missed = check.grade(EXERCISES / name)
    assert points == 0 and missed, [what for what, _ in missed]
    assert check.grade(EXERCISES / "solutions" / name) == (possible, possible, [])
    statement = (EXERCISES / name).read_text(encoding="utf-8").split('"""')[1]
    assert re.search(rf"Paper .*§.*\b{possible} points?\b|Paper .*App.*\b{possible} points?\b", statement), "source and points in the first line"


@pytest.mark.parametrize("name", NAMES)
def test_statement_and_solution_agree_and_import_nothing_of_ours(name):
    ours = {path.stem for path in ROOT.glob("*.py")}
    sources = [(folder / name).read_text(encoding="utf-8") for folder in (EXERCISES, EXERCISES / "solutions")]
    for source in sources:
        assert not ours & set(re.findall(r"^\s*(?:import|from) (\w+)", source, re.M))
    asked, answered = (re.findall(r"^def (\w+\(.*\)):", source, re.M) for source in sources)
    assert asked and set(asked) <= set(answered)


# (task, the line of the solution, the wrong one in its place, a word of each part that must be missed)
PLANTED = [  # the bugs of the two hunts, each alone: found, and no other part is blamed but the whole loss
    ("05", ", correction=0)", ")", ["advantages"]),
    ("05", "return ended_before == 0", "return ids != end", ["mask"]),
    ("05", "(logits / temperature)", "logits", ["log-prob"]),
    ("05", "kl = d.exp() - d - 1", "kl = -d", ["size", "whole"]),
    ("05", "policy - beta * kl", "policy + beta * kl", ["direction", "whole"]),
    ("05", "    text = judge(build_prompt(query, responses, best))\n", "    prompt = build_prompt(query, responses, best)\n    return prompt, judge(prompt)\n", ["hinted"]),
    ("06", ' or t["hinted"]', "", ["learn from"]),
    ("06", 't["permutation"].index(t["rewards"].index(max(t["rewards"])))', 't["rewards"].index(max(t["rewards"]))', ["labels"]),
    ("06", 'random.Random(f"{seed}/{row[0]}").random()', "random.random()", ["split"]),
]
WRONG = [
    ("01", "scores[j] > s", "scores[j] >= s", ["tie", "lists", "rewards"]),
    ("01", "all(scores[j] > s for i, s in enumerate(scores) if i != j)", "scores.index(max(scores)) == j", ["lists"]),  # first of a tie
    ("01", "    if len(scores) == 1:\n        return scores[0] == rewards[0]\n", "", ["single"]),
    ("01", "else -1.0", "else 0.0", ["rewards"]),
    ("01", "    if scores is None:\n        return False\n", "", ["unparsed"]),
    ("02", "text.rfind", "text.find", ["last"]),
    ("02", "1 <= s <= 10", "0 <= s <= 10", ["repaired"]),
    ("02", "scores if all(1 <= s <= 10 for s in scores) else None", "[min(10, max(1, s)) for s in scores]", ["repaired", "300"]),
    ("02", "len(parts) != n or ", "", ["last", "repaired", "300"]),
    ("02", 'place = text.rfind("\\\\boxed")', 'place = max([m.start() for m in re.finditer(r"\\\\boxed\\{[0-9, ]*\\}", text)], default=-1)', ["last"]),
    ("03", "original[i] = shown[place]", "original[place] = shown[i]", ["list of three"]),  # the permutation, not its inverse
    ("03", "reverse=True", "reverse=False", ["guided"]),
    ("03", "if scores is not None]\n    return [sum", "if scores]\n    return [sum", []),  # an equal way to write it
    ("03", "[sum(column) for column in zip(*valid)]", "[sum(column) / len(valid) for column in zip(*valid)]", ["Fig. 3"]),  # Eq. 12
    ("03", "[:k_meta]", "[:k_meta - 1]", ["guided"]),
    ("04", "/ G) ** 0.5", "/ (G - 1)) ** 0.5", ["hand"]),
    ("04", "(r - mean) / std if std > 1e-6 else 0.0", "(r - mean) / (std + 1e-4)", ["exactly"]),  # 0.1 three times is not quite 0
    ("04", "for start in range(0, len(rewards), G):\n        group = rewards[start:start + G]", "for start in range(0, len(rewards), G):\n        group = rewards[start::len(rewards) // G][:G]", ["16 groups"]),
    ("04", "(r - mean) / std if", "(r - mean) if", ["hand"]),
    ("05", "d = logp_ref - logp", "d = logp - logp_ref", ["size", "whole"]),  # k3 with the wrong sign
    ("05", "kl = d.exp() - d - 1", "kl = d ** 2 / 2", ["size", "whole"]),
    ("05", "ended_before = (ids == end).cumsum(1) - (ids == end).long()", "ended_before = (ids == end).cumsum(1)", ["mask"]),
    ("05", "ended_before = (ids == end).cumsum(1) - (ids == end).long()", "ended_before = torch.zeros_like(ids)", ["mask"]),
    ("05", "logits / temperature", "logits * temperature", ["log-prob"]),
    ("05", "return logp.gather(-1, ids[..., None])[..., 0]", "return logp.gather(-1, ids[..., None])[..., 0] / temperature", ["log-prob"]),
    ("05", "return -(objective.sum(1) / mask.sum(1).clamp(min=1)).mean()", "return -objective.sum() / mask.sum()", ["whole"]),
    ("05", "torch.minimum(ratio * A", "torch.maximum(ratio * A", ["whole"]),
    ("05", "text = judge(build_prompt(query, responses, best))", "text = judge(build_prompt(query, responses))", ["hinted"]),
    ("06", 'or t["hinted"]', 'or not t["hinted"]', ["learn from", "labels"]),
    ("06", '(held if random.Random(f"{seed}/{row[0]}").random() < held_out else train).append(row)', "train.append(row)", ["split"]),
    ("06", '    for row in rows:  # the item\'s id alone decides\n        (held if random.Random(f"{seed}/{row[0]}").random() < held_out else train).append(row)',
     '    ids = sorted({row[0] for row in rows})\n    out = random.Random(seed).sample(ids, round(held_out * len(ids)))\n    for row in rows:\n        (held if row[0] in out else train).append(row)',
     ["split"]),  # by item, but each call draws its own items
    ("07", "max(1, sum(z > 1 for z in meta_logits))", "max(1, len(meta_logits) // 2)", ["above k/2", "fixed"]),
    ("07", "max(1, sum(z > 1 for z in meta_logits))", "len(meta_logits)", ["random", "above k/2", "fixed"]),
    ("07", "max(1, sum(z > 1 for z in meta_logits))", "1", ["above k/2", "fixed"]),
    ("07", "max(1, sum(z > 1 for z in meta_logits))", "4", ["fixed"]),
    ("07", "max(1, sum(z > 1 for z in meta_logits))", "sum(z > 1 for z in meta_logits)", ["integer", "random", "above k/2", "fixed"]),  # 0 now and then
    ("07", "sum(z > 1", "sum(z < 1", ["above k/2", "fixed"]),
    ("08", "(r == w) / 2", "0", ["half"]),
    ("08", "(r > w) + (r == w) / 2", "(r >= w)", ["half"]),
    ("08", "return None", "return 0.5", ["one class"]),
    ("09", "else clusters", "else range(len(values))", ["copies"]),
    ("09", "sums[picked].sum(1) / sizes[picked].sum(1)", "(sums / sizes)[picked].mean(1)", ["large"]),
    ("09", "size=(draws, len(sums))", "size=(draws, len(values))", ["copies"]),
    ("09", "[0.025, 0.975]", "[0.25, 0.75]", ["alone"]),
    ("09", "default_rng(seed)", "default_rng()", ["same seed"]),
    ("09", '    if len(values) == 0:\n        raise ValueError("no values")\n', "    if len(values) == 0:\n        return 0.0, 0.0\n", ["ValueError"]),
    ("10", 's["permutation"][0] == best', "best == 0", ["as in eval.py", "likes the first"]),  # the first in original order
    ("10", 's["permutation"][0] == best', 's["permutation"].index(0) == best', ["as in eval.py"]),
    ("10", 'if s["scores"] and s["scores"].count(max(s["scores"])) == 1:', 'if s["scores"]:', ["as in eval.py"]),  # the first of a tie
    ("10", "1 / row[\"n\"]", "1 / 2", ["as in eval.py"]),
    ("10", "bool(low > 0 or high < 0)", "bool(low > 0)", ["likes the last"]),
    ("10", "(2000, len(rows))", "(500, 32 * len(rows))", ["copies"]),  # judgments for clusters
    ("10", "bool(low > 0 or high < 0)", "False", ["likes the first", "likes the last"]),
    ("10", "bool(low > 0 or high < 0)", "True", ["fair judge"]),
]


@pytest.mark.parametrize("task, right, wrong, parts", PLANTED + WRONG)
def test_planted_bugs_and_wrong_answers_are_caught(check, tmp_path, task, right, wrong, parts):
    [name] = [n for n in NAMES if n.startswith(task)]
    source = (EXERCISES / "solutions" / name).read_text(encoding="utf-8")
    assert source.count(right) == 1, "the line is not in the solution (any more)"
    (tmp_path / name).write_text(source.replace(right, wrong), encoding="utf-8")
    points, possible, missed = check.grade(tmp_path / name)
    for part in parts:
        assert any(part in what for what, _ in missed), (part, missed)
    assert points < possible if parts else points == possible, missed
    if (task, right, wrong, parts) in PLANTED:
        assert len(missed) == len(parts), missed


def run(check, monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["check.py", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        check.main()
    return end.value.code, capsys.readouterr()


def test_an_answer_that_leaves_or_never_ends_earns_nothing_and_stops_nothing(check, monkeypatch, tmp_path):
    (tmp_path / "01_correct.py").write_text("raise SystemExit(0)", encoding="utf-8")
    points, possible, missed = check.grade(tmp_path / "01_correct.py")
    assert points == 0 < possible and "SystemExit" in missed[0][1]
    if not hasattr(signal, "SIGALRM"):
        return
    with pytest.raises(check.TooLong, match="more than 1 seconds"), check.limited(1):
        while True:
            with contextlib.suppress(Exception):  # an answer that catches what it can
                while True:
                    pass
    with check.limited(1):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)  # no alarm is left behind


def test_command_line(check, monkeypatch, capsys, tmp_path):
    code, said = run(check, monkeypatch, capsys, "--solutions", 1, 8)
    assert not code and said.out.splitlines() == ["01_correct          4 / 4", "08_roc_auc          4 / 4", "total               8 / 8"]
    # a folder of a student: one answer, one file that does not load, the rest missing
    shutil.copy(EXERCISES / "solutions" / "01_correct.py", tmp_path)
    (tmp_path / "04_advantages.py").write_text("def group_advantages(rewards, G)\n    return rewards\n")
    code, said = run(check, monkeypatch, capsys, "--folder", tmp_path, 1, 4, 8)
    lines = said.out.splitlines()
    assert code == 1 and lines[0].endswith("4 / 4") and "SyntaxError" in said.out and lines[-1].split() == ["total", "4", "/", "12"]
    assert "FileNotFoundError" not in said.out and said.out.count("no such file") == 1
    code, said = run(check, monkeypatch, capsys, "--folder", tmp_path / "nowhere")
    assert code == 2 and said.err.startswith("error: no exercise") and said.err.count("\n") == 1
    code, said = run(check, monkeypatch, capsys, 3)
    assert code == 1 and "not done yet" in said.out.splitlines()[0] and len(said.out.splitlines()) == 2


def test_practice_samples_are_not_those_of_the_grade(check, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["check.py", "--samples", str(tmp_path / "practice.jsonl")])
    check.main()
    rows = [json.loads(line) for line in (tmp_path / "practice.jsonl").read_text().splitlines()]
    assert len(rows) == 500 and all(len(r["samples"]) == len(r["meta_logits"]) == 16 for r in rows)
    graded = [[s["scores"] for s in r["samples"]] for r in check.guided_samples(500, "grade")]
    assert not any([s["scores"] for s in r["samples"]] in graded for r in rows)
