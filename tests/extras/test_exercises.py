"""Exercises: stubs earn nothing, solutions everything; each planted bug and each plausible wrong
answer is caught."""
import contextlib
import json
import re
import shutil
import signal

import pytest
from conftest import ROOT, error_of

from exercises import check

EXERCISES = ROOT / "exercises"
NAMES = sorted(path.name for path in EXERCISES.glob("[0-9][0-9]_*.py"))


def test_there_are_ten_tasks_each_with_a_solution_and_a_row_in_the_readme():
    assert len(NAMES) == 10
    assert sorted(path.name for path in (EXERCISES / "solutions").glob("*.py")) == NAMES
    readme = (EXERCISES / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `exercises/(\w+\.py)` \|.*\| (\d+) \|$", readme, re.M)
    assert [name for name, _ in rows] == NAMES
    for name, points in rows:
        assert check.grade(EXERCISES / name)[1] == int(points), name
    assert f"{sum(int(points) for _, points in rows)} points" in readme


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_file_earns_nothing_and_the_solution_everything(name):
    points, possible, missed = check.grade(EXERCISES / name)
    assert points == 0 and missed
    assert check.grade(EXERCISES / "solutions" / name) == (possible, possible, [])
    task, solution = (path.read_text(encoding="utf-8") for path in (
        EXERCISES / name, EXERCISES / "solutions" / name))
    statement = task.split('"""')[1]
    assert re.search(rf"Paper .*(§|App\.).*\b{possible} points?\b", statement), "source and points"
    ours = {path.stem for path in ROOT.glob("*.py")} | {"plumbing", "toy_world"}
    assert not ours & set(re.findall(r"^\s*(?:import|from) (\w+)", task + solution, re.M))
    asked, answered = (set(re.findall(r"^def (\w+\(.*\)):", source, re.M))
                       for source in (task, solution))
    assert asked and asked <= answered


# (task, the line of the solution, the wrong one in its place, a word of each part that it misses)
PLANTED = [  # the bugs of the two hunts: no other part is blamed but the whole loss
    ("05", ", correction=0)", ")", ["advantages"]),
    ("05", "return ended_before == 0", "return ids != end", ["mask"]),
    ("05", "(logits / temperature)", "logits", ["log-prob"]),
    ("05", "kl = d.exp() - d - 1", "kl = -d", ["size", "whole"]),
    ("05", "policy - beta * kl", "policy + beta * kl", ["direction", "whole"]),
    ("05", "return build_prompt(query, responses), text",
     "return build_prompt(query, responses, best), text", ["hinted"]),
    ("06", ' or t["hinted"]', "", ["learn from"]),
    ("06", 't["permutation"].index(t["rewards"].index(max(t["rewards"])))',
     't["rewards"].index(max(t["rewards"]))', ["labels"]),
    ("06", 'random.Random(f"{seed}/{row[0]}").random()', "random.random()", ["split"]),
]
K_META = "max(1, sum(z > 1 for z in meta_logits))"
FIRST = 's["permutation"][0] == best'
BIASED = "bool(low > 0 or high < 0)"
ENDED = "ended_before = (ids == end).cumsum(1) - (ids == end).long()"
TRAIN = '(held if random.Random(f"{seed}/{row[0]}").random() < held_out else train).append(row)'
WRONG = [
    ("01", "scores[j] > s", "scores[j] >= s", ["tie", "lists", "rewards"]),
    ("01", "all(scores[j] > s for i, s in enumerate(scores) if i != j)",
     "scores.index(max(scores)) == j", ["lists"]),  # the first of a tie
    ("01", "    if len(scores) == 1:\n        return scores[0] == rewards[0]\n", "", ["single"]),
    ("01", "else -1.0", "else 0.0", ["rewards"]),
    ("01", "    if scores is None:\n        return False\n", "", ["unparsed"]),
    ("02", "text.rfind", "text.find", ["last"]),
    ("02", "1 <= s <= 10", "0 <= s <= 10", ["repaired"]),
    ("02", "scores if all(1 <= s <= 10 for s in scores) else None",
     "[min(10, max(1, s)) for s in scores]", ["repaired", "300"]),
    ("02", "len(parts) != n or ", "", ["last", "repaired", "300"]),
    ("02", 'text.rfind("\\\\boxed")',  # the last one that parses
     'max([m.start() for m in re.finditer(r"\\\\boxed\\{[0-9, ]*\\}", text)], default=-1)',
     ["last"]),
    ("03", "original[i] = shown[place]", "original[place] = shown[i]", ["list of three"]),
    ("03", "reverse=True", "reverse=False", ["guided"]),
    ("03", "if scores is not None]\n    return [sum", "if scores]\n    return [sum", []),  # equal
    ("03", "[sum(column) for column in zip(*valid)]",
     "[sum(column) / len(valid) for column in zip(*valid)]", ["Fig. 3"]),  # Eq. 12
    ("03", "[:k_meta]", "[:k_meta - 1]", ["guided"]),
    ("04", "/ G) ** 0.5", "/ (G - 1)) ** 0.5", ["hand"]),
    ("04", "(r - mean) / std if std > 1e-6 else 0.0", "(r - mean) / (std + 1e-4)", ["exactly"]),
    ("04", "rewards[start:start + G]", "rewards[start::len(rewards) // G][:G]", ["16 groups"]),
    ("04", "(r - mean) / std if", "(r - mean) if", ["hand"]),
    ("05", "d = logp_ref - logp", "d = logp - logp_ref", ["size", "whole"]),  # k3, wrong sign
    ("05", "kl = d.exp() - d - 1", "kl = d ** 2 / 2", ["size", "whole"]),
    ("05", ENDED, "ended_before = (ids == end).cumsum(1)", ["mask"]),
    ("05", ENDED, "ended_before = torch.zeros_like(ids)", ["mask"]),
    ("05", "logits / temperature", "logits * temperature", ["log-prob"]),
    ("05", "logp.gather(-1, ids[..., None])[..., 0]",
     "logp.gather(-1, ids[..., None])[..., 0] / temperature", ["log-prob"]),
    ("05", "-(objective.sum(1) / mask.sum(1).clamp(min=1)).mean()",
     "-objective.sum() / mask.sum()", ["whole"]),
    ("05", "torch.minimum(ratio * A", "torch.maximum(ratio * A", ["whole"]),
    ("05", "text = judge(build_prompt(query, responses, best))",
     "text = judge(build_prompt(query, responses))", ["hinted"]),
    ("06", 'or t["hinted"]', 'or not t["hinted"]', ["learn from", "labels"]),
    ("06", TRAIN, "train.append(row)", ["split"]),
    ("06", TRAIN,  # by item, but each call draws its own items
     "(held if row[0] in random.Random(seed).sample(sorted({r[0] for r in rows}), round(held_out "
     "* len({r[0] for r in rows}))) else train).append(row)", ["split"]),
    ("07", K_META, "max(1, len(meta_logits) // 2)", ["above k/2", "fixed"]),
    ("07", K_META, "len(meta_logits)", ["random", "above k/2", "fixed"]),
    ("07", K_META, "1", ["above k/2", "fixed"]),
    ("07", K_META, "4", ["fixed"]),
    ("07", K_META, "sum(z > 1 for z in meta_logits)",  # 0 now and then
     ["integer", "random", "above k/2", "fixed"]),
    ("07", "sum(z > 1", "sum(z < 1", ["above k/2", "fixed"]),
    ("08", "(r == w) / 2", "0", ["half"]),
    ("08", "(r > w) + (r == w) / 2", "(r >= w)", ["half"]),
    ("08", "return None", "return 0.5", ["one class"]),
    ("09", "else clusters", "else range(len(values))", ["copies"]),
    ("09", "sums[picked].sum(1) / sizes[picked].sum(1)", "(sums / sizes)[picked].mean(1)",
     ["large"]),
    ("09", "size=(draws, len(sums))", "size=(draws, len(values))", ["copies"]),
    ("09", "[0.025, 0.975]", "[0.25, 0.75]", ["alone"]),
    ("09", "default_rng(seed)", "default_rng()", ["same seed"]),
    ("09", 'raise ValueError("no values")', "return 0.0, 0.0", ["ValueError"]),
    ("10", FIRST, "best == 0", ["as in eval.py", "likes the first"]),  # first in original order
    ("10", FIRST, 's["permutation"].index(0) == best', ["as in eval.py"]),
    ("10", 'if s["scores"] and s["scores"].count(max(s["scores"])) == 1:', 'if s["scores"]:',
     ["as in eval.py"]),  # the first of a tie
    ("10", "1 / row[\"n\"]", "1 / 2", ["as in eval.py"]),
    ("10", BIASED, "bool(low > 0)", ["likes the last"]),
    ("10", "(2000, len(rows))", "(500, 32 * len(rows))", ["copies"]),  # judgments for clusters
    ("10", BIASED, "False", ["likes the first", "likes the last"]),
    ("10", BIASED, "True", ["fair judge"]),
]


@pytest.mark.parametrize("number", range(len(PLANTED + WRONG)))
def test_planted_bugs_and_wrong_answers_are_caught(number, tmp_path):
    task, right, wrong, parts = (PLANTED + WRONG)[number]
    [name] = [n for n in NAMES if n.startswith(task)]
    source = (EXERCISES / "solutions" / name).read_text(encoding="utf-8")
    assert source.count(right) == 1, "the line is not in the solution (any more)"
    (tmp_path / name).write_text(source.replace(right, wrong), encoding="utf-8")
    points, possible, missed = check.grade(tmp_path / name)
    for part in parts:
        assert any(part in what for what, _ in missed), (part, missed)
    assert points < possible if parts else points == possible, missed
    if number < len(PLANTED):
        assert len(missed) == len(parts), missed


def test_an_answer_that_leaves_or_never_ends_earns_nothing_and_stops_nothing(tmp_path):
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


def test_command_line(cli, tmp_path):
    def run(*words):
        code, out, err = cli("exercises.check", *words)
        return code, out.splitlines(), err
    assert run("--solutions", 1, 8)[:2] == (0, [
        "01_correct          4 / 4", "08_roc_auc          4 / 4", "total               8 / 8"])
    # a folder of a student: one answer, one file that does not load, the rest missing
    shutil.copy(EXERCISES / "solutions" / "01_correct.py", tmp_path)
    (tmp_path / "04_advantages.py").write_text("def group_advantages(rewards, G)\n    return 1\n")
    code, lines, _ = run("--folder", tmp_path, 1, 4, 8)
    assert code == 1 and lines[0].endswith("4 / 4") and "SyntaxError" in lines[2]
    assert "no such file" in lines[4] and lines[-1].split() == ["total", "4", "/", "12"]
    nowhere = cli("exercises.check", "--folder", tmp_path / "nowhere")
    assert "no exercise" in error_of(nowhere)
    code, lines, _ = run(3)
    assert code == 1 and "not done yet" in lines[0] and len(lines) == 2


def test_practice_samples_are_not_those_of_the_grade(cli, tmp_path):
    assert cli("exercises.check", "--samples", tmp_path / "practice.jsonl")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "practice.jsonl").read_text().splitlines()]
    assert len(rows) == 500
    assert all(len(r["samples"]) == len(r["meta_logits"]) == 16 for r in rows)
    graded = [[s["scores"] for s in r["samples"]] for r in check.guided_samples(500, "grade")]
    assert not any([s["scores"] for s in r["samples"]] in graded for r in rows)
