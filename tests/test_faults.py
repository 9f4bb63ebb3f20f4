"""Nothing is lost: kills, full disks, damaged files, folders of others, bad numbers. The long runs: tests/kill.py."""
import ast
import importlib
import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, make_tiny_model

import spct_rl
from plumbing import generation, runs
from plumbing.runs import (
    DISK,
    UserError,
    append_jsonl,
    command_line,
    load_state,
    read_json,
    read_rows,
    save_model,
    save_state,
    whole,
    write_text,
)

PROGRAMS = ["grm", "spct_rft", "spct_rl", "meta_rm", "infer_scale", "eval", "baselines"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, toy_tokenizer):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_model(folder, make_tiny_model("llama", len(toy_tokenizer), toy_tokenizer.eos_token_id, initializer_range=0.1), toy_tokenizer)
    return str(folder)


@pytest.fixture
def cli(monkeypatch, capsys):
    """cli(program, flags...) -> (exit code, the error line): a program in this process."""
    def call(program, *flags):
        capsys.readouterr()
        code = 0
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [f"{program}.py", *map(str, flags)])
            try:
                importlib.import_module(program).main()
            except SystemExit as stop:
                code = stop.code or 0
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "it/s" not in line and "%|" not in line]
        assert code == 0 or len(lines) == 1, lines
        return code, lines[-1] if lines else ""
    return call


# ----- kills (tests/kill.py says how) -----

def test_killed_programs_continue_to_the_same_bytes():
    words = [sys.executable, str(ROOT / "tests" / "kill.py"), "--faults", "1", "--only", "rft", "rl", "meta_rm", "voting"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    total = json.loads(done.stdout.splitlines()[-1])
    assert total["faults"] == 4 and total["bytes_different"] == 0 and total["bytes_compared"] > 1_000_000
    assert [total[k] for k in ("kill", "full disk", "kill at a time", "interrupt")] == [1, 1, 1, 1]


def test_two_processes_equal_one_and_none_waits_for_the_dead():
    words = [sys.executable, str(ROOT / "tests" / "kill.py"), "--processes", "--only", "meta_rm", "one item", "early"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    total = json.loads(done.stdout.splitlines()[-1])
    assert total["weights_compared"] >= 1 and total["samples_compared"] >= 1 and total["ended_early"] == 1


# ----- files -----

@pytest.fixture
def full_disk():
    """full_disk(bytes): no file can grow beyond that, for torch's and safetensors' own writers too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def everything(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("what", ["state", "model", "text", "rows"])
def test_a_full_disk_leaves_the_old_file_and_no_half_one(what, tmp_path, full_disk, tiny_model, toy_tokenizer):
    def write(seed):
        if what == "state":
            save_state(tmp_path / "state.pt", model={"w": torch.full((50_000,), float(seed))}, step=seed)
        elif what == "model":
            save_model(tmp_path / "model", tiny_model(seed=seed), toy_tokenizer)
        elif what == "text":
            write_text(tmp_path / "text.json", str(seed) * 100_000)
        else:
            append_jsonl(tmp_path / "rows.jsonl", [{"seed": seed, "text": "x" * 30_000}])
    write(1)
    before = everything(tmp_path)
    full_disk(40_000)
    with pytest.raises(OSError) as error:
        write(2)
    assert error.value.errno in DISK
    full_disk(resource.RLIM_INFINITY)
    if what == "rows":  # a line is torn; readers pass over it, and the next start cuts it off
        assert read_rows(tmp_path / "rows.jsonl") == [{"seed": 1, "text": "x" * 30_000}]
        runs.cut_torn_line(tmp_path / "rows.jsonl")
        write(3)
        assert [r["seed"] for r in read_rows(tmp_path / "rows.jsonl")] == [1, 3]
    else:
        assert everything(tmp_path) == before
        write(2)
        assert everything(tmp_path) != before and not [p for p in everything(tmp_path) if p.name.startswith(".")]


def test_half_a_checkpoint_is_named(tmp_path, tiny, cli):
    save_state(tmp_path / "state.pt", model={"w": torch.ones(3)}, step=1)
    whole = (tmp_path / "state.pt").read_bytes()
    assert load_state(tmp_path / "state.pt")["step"] == 1 and load_state(tmp_path / "none.pt") is None
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        (tmp_path / "state.pt").write_bytes(whole[:size])
        with pytest.raises(UserError, match="state.pt is damaged .*delete it"):
            load_state(tmp_path / "state.pt")
    copy = tmp_path / "model"
    copy.mkdir()
    for file in Path(tiny).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = (copy / "model.safetensors").read_bytes()
    for size in (0, 100, len(weights) // 2):
        (copy / "model.safetensors").write_bytes(weights[:size])
        code, line = cli("infer_scale", "--model", copy, "--limit", 1, "--k", 1, "--output", tmp_path / f"out{size}")
        assert code == 2 and str(copy) in line and "could not be loaded" in line


def test_a_folder_that_cannot_be_written(tiny, cli, tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in ("/proc/spct", "/sys/kernel/spct", tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        code, line = cli("eval", "--model", tiny, "--limit", 1, "--output", output)
        assert code == 2 and line.startswith("error: ") and str(output) in line and "--output" in line, line
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_in_a_folder_is_written_whole(tmp_path):  # tokenizers with several chat templates are
    with whole(tmp_path / "model") as temporary:
        (temporary / "additional_chat_templates").mkdir(parents=True)
        (temporary / "additional_chat_templates" / "tool.jinja").write_text("x")
    assert list(everything(tmp_path)) == [Path("model/additional_chat_templates/tool.jinja")]
    with pytest.raises(ValueError, match="a bug"), whole(tmp_path / "model") as temporary:  # not called a full disk
        raise ValueError("a bug")


def test_without_git_there_is_no_commit(monkeypatch):
    assert runs.git_commit.__wrapped__()
    monkeypatch.setenv("PATH", "")
    assert runs.git_commit.__wrapped__() == "unknown"  # text: tables join the commits of their runs


@pytest.mark.parametrize("error", [None, UserError("x"), KeyboardInterrupt(), OSError(28, "full"), ValueError("a bug")])
def test_trackers_are_closed_however_a_program_ends(error, monkeypatch):
    did = []
    tracker = SimpleNamespace(finish=lambda: did.append("closed"))
    monkeypatch.setattr(runs, "STARTED", [SimpleNamespace(trackers=[tracker], end_training=lambda: did.append("closed, group left"))])

    @command_line
    def main():
        if error:
            raise error
    if error:
        with pytest.raises((SystemExit, ValueError)):
            main()
    else:
        main()
    assert did == (["closed"] if error else ["closed, group left"]) and not runs.STARTED


def test_meta_rm_names_what_is_missing_and_reports_all_held_out_judgments(tiny, cli, tmp_path):
    items = [{"id": f"i{i}", "prompt": "Which ?", "responses": ["good", "bad"], "rewards": [1, 0], **({"domain": "chat"} if i % 2 else {})}
             for i in range(24)]
    judgments = [{"permutation": [0, 1], "text": "Scores : 9 2", "scores": [9, 2]}, {"permutation": [0, 1], "text": "2 9", "scores": [2, 9]}]
    write_text(tmp_path / "items.jsonl", "".join(json.dumps(item) + "\n" for item in items))
    write_text(tmp_path / "blind.jsonl", json.dumps({**items[0], "rewards": None}) + "\n")
    write_text(tmp_path / "rft.jsonl", "".join(json.dumps({"id": i["id"], "non_hinted": judgments}) + "\n" for i in items))
    words = ["meta_rm", "--model", tiny, "--grm", "", "--batch_size", 4, "--epochs", 0.2, "--trajectories", tmp_path / "rft.jsonl"]
    code, line = cli(*words, "--data", tmp_path / "blind.jsonl", "--output", tmp_path / "blind")
    assert code == 2 and "item i0 has no 'rewards'" in line
    words += ["--data", tmp_path / "items.jsonl"]
    code, line = cli(*words, "--held_out", 1, "--output", tmp_path / "nothing")
    assert code == 2 and "--held_out 1.0 leaves no judgment" in line
    assert cli(*words, "--held_out", 0.5, "--output", tmp_path / "run") == (0, "")
    report = read_json(tmp_path / "run" / "report.json")
    parts = {name: part["count"] for name, part in report["held_out"].items()}
    assert set(parts) == {"all", "chat", "rft"} and parts["all"] == parts["rft"] == 48 - report["train"] > parts["chat"] > 0


def test_another_run_is_refused_with_the_difference_named(tiny, cli, tmp_path):
    words = ["infer_scale", "--model", tiny, "--k", 1, "--max_new_tokens", 5, "--limit", 2, "--output", tmp_path / "run"]
    assert cli(*words)[0] == 0
    before = everything(tmp_path)
    code, line = cli(*words, "--seed", 3, "--temperature", 0.25)
    assert code == 2 and "--seed 0 there, 3 here" in line and "--temperature 0.5 there, 0.25 here" in line and "--k " not in line
    assert everything(tmp_path) == before
    (tmp_path / "run" / "config.json").write_text('{"model_type": "llama"}')
    code, line = cli(*words)
    assert code == 2 and "config.json is damaged or not a run's" in line
    (tmp_path / "run" / "config.json").write_text('{"args": ')
    before = everything(tmp_path)
    assert "is damaged or not a run's" in cli(*words)[1] and "delete the folder yourself" in cli(*words, "--overwrite")[1]
    assert everything(tmp_path) == before


def test_one_run_at_a_time(tiny, cli, tmp_path):
    import fcntl
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        code, line = cli("grm", "--model", tiny, "--max_new_tokens", 5, "--output", tmp_path / "run")
        assert code == 2 and "in use by another process" in line
    assert cli("grm", "--model", tiny, "--max_new_tokens", 5, "--output", tmp_path / "run")[0] == 0  # let go with the process


def test_a_kill_while_a_run_is_discarded(tiny, cli, tmp_path, monkeypatch):
    words = ["infer_scale", "--model", tiny, "--k", 1, "--max_new_tokens", 5, "--limit", 2, "--output", tmp_path / "run"]
    assert cli(*words)[0] == 0
    samples = (tmp_path / "run" / "samples.jsonl").read_bytes()

    def killed(path, *args, **options):
        raise KeyboardInterrupt
    for patched in ("rename", "rmtree"):
        with monkeypatch.context() as patch:
            if patched == "rmtree":
                patch.setattr(runs.shutil, "rmtree", killed)
            else:
                patch.setattr(Path, "rename", killed)
            code, line = cli(*words, "--overwrite")
            assert code == 130 and "the same command without --overwrite continues" in line
        assert cli(*words)[0] == 0 and (tmp_path / "run" / "samples.jsonl").read_bytes() == samples
    assert cli(*words, "--overwrite")[0] == 0 and (tmp_path / "run" / "samples.jsonl").read_bytes() == samples
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_grm_is_one_process(tiny, cli, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, line = cli("grm", "--model", tiny, "--output", tmp_path / "run")
    assert code == 2 and "infer_scale.py" in line


# ----- numbers -----

def trajectories(path, examples):
    rows = [{"id": e.id, "non_hinted": [{"permutation": list(range(len(e.responses))), "text": f"good {s}", "completion_ids": [5],
                                         "scores": s, "correct": True} for s in (e.rewards, [1 - r for r in e.rewards])]}
            for e in examples]
    runs.write_rows(path, rows)
    return path


@pytest.mark.parametrize("program", ["spct_rft", "spct_rl", "meta_rm", "baselines"])
@pytest.mark.parametrize("which", ["loss", "gradient"])
def test_a_number_that_is_none_stops_before_it_is_learnt(program, which, tiny, cli, tmp_path, monkeypatch):
    from plumbing.data import load_examples
    output, calls = tmp_path / "run", []
    words = [program, *(["btrm"] if program == "baselines" else []), "--model", tiny, "--limit", 12, "--output", output,
             "--save_every", 1, "--max_new_tokens", 5]
    words += {"spct_rft": ["--general_only", "--batch_size", 4, "--epochs", 0.2], "spct_rl": [
        "--steps", 5, "--prompts_per_step", 2, "--G", 2, "--micro_batch_size", 4], "baselines": ["--batch_size", 2, "--test_limit", 4],
        "meta_rm": ["--grm", "", "--batch_size", 4, "--held_out", 0, "--trajectories",
                    trajectories(tmp_path / "t.jsonl", load_examples("toy", "train", 12))]}[program]

    def poisoned(accelerator, parameters, *args):  # the third update goes wrong
        calls.append(1)
        return torch.tensor(float("nan" if len(calls) == 3 else 1))

    from accelerate import Accelerator
    reduce = Accelerator.reduce

    def bad_loss(self, loss):
        calls.append(1)
        return reduce(self, loss * float("inf") if len(calls) == 3 else loss)
    if which == "gradient":
        monkeypatch.setattr(Accelerator, "clip_grad_norm_", poisoned)
    elif program == "spct_rl":
        loss = spct_rl.grpo_loss

        def infinite(*args):
            calls.append(1)
            value, stats = loss(*args)
            return value * float("inf" if len(calls) == 3 else 1), stats
        monkeypatch.setattr(spct_rl, "grpo_loss", infinite)
    else:
        monkeypatch.setattr(Accelerator, "reduce", bad_loss)
    code, line = cli(*words)
    assert code == 2 and "step 2: " in line and ("nan" in line or "inf" in line) and "bad_batch.json" in line and "--lr" in line
    bad = read_json(output / "bad_batch.json")
    assert bad["step"] == 2 and len(bad["batch"]) == (2 if program == "baselines" else 4)
    state = load_state(output / "state.pt")
    assert state["step"] == 2 and all(torch.isfinite(w).all() for w in state["model"].values())
    assert [r["step"] for r in read_rows(output / "metrics.jsonl")] == [1, 2] and not (output / "model").exists()


def test_a_judge_of_nan_is_an_error(tiny_model, toy_tokenizer):
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    for temperature in (0, 1):
        with pytest.raises(UserError, match="NaN"):
            generation.generate(model, toy_tokenizer, [[5, 6, 7]], temperature, 4, ["s"])


# ----- what is loaded and saved -----

def test_checkpoints_are_safetensors_and_execute_nothing(tmp_path, tiny_model, toy_tokenizer, tiny, cli):
    model = tiny_model()
    save_model(tmp_path / "model", model, toy_tokenizer)
    assert {p.suffix for p in (tmp_path / "model").iterdir()} <= {".safetensors", ".json", ".jinja"}

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))
    torch.save({"model": Evil(), "step": 1}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="damaged"):
        load_state(tmp_path / "state.pt")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save({**model.state_dict(), "evil": Evil()}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(UserError, match="could not be loaded.*safetensors"):
        generation.load_model(str(tmp_path / "model"))
    assert not (tmp_path / "executed").exists()


def test_nothing_asks_for_code_of_others():
    """No program passes trust_remote_code, unpickles, or loads training state without weights_only."""
    for name in ["runs", "records", "attention", "sampler", "data", "toy", *PROGRAMS]:
        tree = ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            words = {k.arg: k.value for k in call.keywords}
            assert "trust_remote_code" not in words, f"{name}.py, line {call.lineno}"
            if ast.unparse(call.func) == "torch.load":
                assert words["weights_only"].value is True
            assert ast.unparse(call.func) not in ("pickle.load", "pickle.loads", "eval", "exec", "os.system")


def test_torn_lines_anywhere_are_found(tmp_path):
    rng, path = random.Random(0), tmp_path / "rows.jsonl"
    rows = [{"step": i, "text": "é\u2028" * i} for i in range(5)]
    runs.write_rows(path, rows)
    whole = path.read_bytes()
    for _ in range(50):
        size = rng.randrange(len(whole) + 1)
        path.write_bytes(whole[:size])
        kept = read_rows(path, repair=True)
        assert kept == rows[:len(kept)] and path.read_bytes() == whole[:size][:whole[:size].rfind(b"\n") + 1]
