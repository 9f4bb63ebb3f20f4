"""plumbing/runs.py: nothing is lost in kills, full disks and damaged files; no run takes another's
folder; a user's mistake is one line. Real kills and two real processes: tests/kill.py."""
import ast
import contextlib
import fcntl
import json
import os
import random
import resource
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, error_of, finished, started

from plumbing import generation, runs
from plumbing.runs import (
    UserError,
    append_jsonl,
    command_line,
    in_chunks,
    load_state,
    read_json,
    read_rows,
    save_model,
    save_state,
    start_run,
    whole,
    write_rows,
    write_text,
)


def everything(folder):
    return {str(p.relative_to(folder)): p.read_bytes()
            for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


# ----- real processes: kills, and two against one -----

def kill(*words):
    """The last line of tests/kill.py, a JSON object; it says there what it does."""
    code, out = finished(started(["tests/kill.py"], *words), timeout=900)
    assert code == 0, out[-3000:]
    return json.loads(out.splitlines()[-1])


def test_c23_killed_programs_continue_to_the_same_bytes():
    total = kill("--only", "rft", "rl", "meta_rm", "voting")
    assert total["files_compared"] > 20 and total["bytes_compared"] > 1_000_000
    kinds = ["kill", "full disk", "kill at a time", "interrupt"]
    assert [total[kind] for kind in kinds] == [1, 1, 1, 1]


def test_two_processes_equal_one_and_no_process_waits_for_a_dead_one():
    # Their DDP models are gone before they leave their group, else they may hang (pytorch #56297).
    total = kill("--processes", "--only", "meta_rm", "voting", "early")
    assert total["weights_compared"] >= 1 and total["samples_compared"] >= 7
    assert total["ended_early"] == 1 and total["models_at_the_end"] == [0, 0, 0, 0]


ENDING = """
import atexit, gc, os, signal, sys, types
from plumbing import runs
moment = sys.argv[1]
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it
def ctrl_c(*_):
    os.kill(os.getpid(), signal.SIGINT)
@runs.command_line
def main():
    runs.STARTED.append(types.SimpleNamespace(end_training=lambda: None, trackers=[]))
    print("the table")
    if moment == "while the group is left":
        gc.collect = ctrl_c
    if moment == "while an object dies":  # Python prints what is raised there and goes on
        gc.collect = lambda: type("Object", (), {"__del__": ctrl_c})() and None
    if moment == "while Python shuts down":
        atexit.register(ctrl_c)
    if moment == "while an error is said":
        class Bar:
            close = ctrl_c
        runs.tqdm._instances = [Bar()]
        raise runs.UserError("a mistake")
main()
"""


@pytest.mark.parametrize("moment", [
    "while the group is left", "while an object dies", "while Python shuts down",
    "while an error is said"])
def test_whenever_ctrl_c_comes_the_ending_is_one_line(moment):
    code, out = finished(started(["-c", ENDING], moment, PYTHONPATH=str(ROOT)), timeout=120)
    mistake = moment == "while an error is said"
    said = "error: a mistake" if mistake else runs.STOPPED.strip()
    assert [line for line in out.splitlines() if line] == ["the table", said]
    assert code == (2 if mistake else 130)


# ----- files appear whole -----

@pytest.fixture
def full_disk():
    """full_disk(bytes): no file can grow beyond that, whoever writes it (torch and safetensors
    raise errors of their own then)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("what", ["state", "model", "text", "rows"])
def test_a_full_disk_leaves_the_old_file_and_no_half_one(what, tmp_path, full_disk, tiny_model,
                                                         toy_tokenizer):
    def write(seed):
        if what == "state":
            weights = torch.full((50_000,), float(seed))
            save_state(tmp_path / "state.pt", model={"w": weights}, step=seed)
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
    assert error.value.errno
    full_disk(resource.RLIM_INFINITY)
    if what == "rows":  # a line is torn: readers pass over it, and the next start cuts it off
        assert [r["seed"] for r in read_rows(tmp_path / "rows.jsonl")] == [1]
        runs.cut_torn_line(tmp_path / "rows.jsonl")
        write(3)
        assert [r["seed"] for r in read_rows(tmp_path / "rows.jsonl")] == [1, 3]
    else:
        assert everything(tmp_path) == before
        write(2)
        after = everything(tmp_path)
        assert after != before and not [name for name in after if "/." in f"/{name}"]


def test_a_folder_in_a_folder_is_written_whole(tmp_path):  # tokenizers with several templates
    with whole(tmp_path / "model") as temporary:
        (temporary / "templates").mkdir(parents=True)
        (temporary / "templates" / "tool.jinja").write_text("x")
    assert list(everything(tmp_path)) == ["model/templates/tool.jinja"]
    with pytest.raises(UserError, match="is a folder; name a file"):  # nothing in it is lost
        write_text(tmp_path / "model", "rows")
    # A bug is not called a full disk.
    with pytest.raises(ValueError, match="a bug"), whole(tmp_path / "model"):
        raise ValueError("a bug")
    assert list(everything(tmp_path)) == ["model/templates/tool.jinja"]


def test_torn_lines_are_passed_over_and_damaged_ones_named(tmp_path):
    path, rng = tmp_path / "rows.jsonl", random.Random(0)
    rows = [{"step": i, "text": "é\u2028" * i} for i in range(5)]
    write_rows(path, rows)
    data = path.read_bytes()
    for _ in range(50):
        torn = data[:rng.randrange(len(data) + 1)]
        path.write_bytes(torn)
        kept = read_rows(path)
        assert kept == rows[:len(kept)]
        runs.cut_torn_line(path)
        assert path.read_bytes() == torn[:torn.rfind(b"\n") + 1] and read_rows(path) == kept
    for line in (b"{}}", b"\xff", b"[" * 100_000):
        path.write_bytes(b'{"step": 0}\n' + line + b"\n")
        with pytest.raises(UserError, match="rows.jsonl, line 2 is damaged"):
            read_rows(path)
    path.write_bytes(b'{"step": 0}\n{"id": 1}\n')
    with pytest.raises(UserError, match="line 2: field 'step' is missing"):
        read_rows(path, fields=["step"])
    assert read_rows(tmp_path / "none.jsonl") == []


def test_half_a_checkpoint_is_named(tmp_path, tiny):
    state = tmp_path / "state.pt"
    save_state(state, model={"w": torch.ones(3)}, step=1)
    data = state.read_bytes()
    assert load_state(state)["step"] == 1 and load_state(tmp_path / "none.pt") is None
    for size in (0, 10, len(data) // 2, len(data) - 30):
        state.write_bytes(data[:size])
        with pytest.raises(UserError, match="state.pt is damaged .*delete it"):
            load_state(state)
    copy = tmp_path / "model"
    copy.mkdir()
    for file in Path(tiny).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = (copy / "model.safetensors").read_bytes()
    for size in (0, 100, len(weights) // 2):
        (copy / "model.safetensors").write_bytes(weights[:size])
        with pytest.raises(UserError, match=f"{copy} could not be loaded"):
            generation.load_model(copy)


def test_checkpoints_are_safetensors_and_execute_nothing(tmp_path, tiny_model, toy_tokenizer):
    model, folder = tiny_model(), tmp_path / "model"
    save_model(folder, model, toy_tokenizer)
    assert {p.suffix for p in folder.iterdir()} <= {".safetensors", ".json", ".jinja"}

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))
    torch.save({"model": Evil(), "step": 1}, tmp_path / "state.pt")
    with pytest.raises(UserError, match="damaged"):
        load_state(tmp_path / "state.pt")
    (folder / "model.safetensors").unlink()
    torch.save({**model.state_dict(), "evil": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="could not be loaded.*safetensors"):
        generation.load_model(folder)
    assert not (tmp_path / "executed").exists()


def test_nothing_asks_for_code_of_others():
    """No program passes trust_remote_code, unpickles, or loads a state without weights_only."""
    files = [f for folder in (".", "plumbing", "toy_world", "extras", "results")
             for f in (ROOT / folder).glob("*.py")]
    assert len(files) > 15
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            words = {k.arg: ast.unparse(k.value) for k in call.keywords}
            name, where = ast.unparse(call.func), f"{file}, line {call.lineno}"
            assert "trust_remote_code" not in words, where
            assert name != "torch.load" or words["weights_only"] == "True", where
            assert name not in ("pickle.load", "pickle.loads", "eval", "exec", "os.system"), where


# ----- long sampling in chunks -----

@pytest.mark.parametrize("processes", [1, 2, 3])
def test_chunks_are_in_item_order_and_a_stopped_run_loses_one_at_most(processes, tmp_path):
    items, made, stop_at = list(range(7)), [], [3]

    def make_rows(part):
        made.append(part)
        if len(made) == stop_at[0]:
            raise KeyboardInterrupt
        return [{"id": i, "é": "\u2028"} for i in part]

    def run(rank):
        one = SimpleNamespace(process_index=rank, num_processes=processes,
                              is_main_process=rank == 0, is_local_main_process=False,
                              wait_for_everyone=lambda: None)
        return in_chunks(tmp_path / "rows.jsonl", items, make_rows, one, 2, "x")
    ranks = list(range(processes))[::-1]  # the main process joins the parts, so it comes last
    with pytest.raises(KeyboardInterrupt):
        [run(rank) for rank in ranks]
    assert not (tmp_path / "rows.jsonl").exists()
    done, stop_at[0] = made[:2], None
    rows = [run(rank) for rank in ranks][-1]
    assert [r["id"] for r in rows] == items == [r["id"] for r in read_rows(tmp_path / "rows.jsonl")]
    assert sorted(made[:2] + made[3:]) == [[0, 1], [2, 3], [4, 5], [6]] and done == made[:2]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]
    count = len(made)
    assert run(0) == rows and len(made) == count  # a finished file is read


# ----- training: state, metrics, micro-batches, bad numbers -----

class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))

    def save_pretrained(self, folder):
        Path(folder).mkdir(parents=True)
        torch.save(self.state_dict(), Path(folder) / "weights")


def train_line(folder, stop_at=None, loss_at=None, gradient_at=None, save_every=4, steps=6,
               **flags):
    """Six updates of a tiny Run, with AdamW; stopped as by Ctrl-C after update `stop_at`."""
    args = SimpleNamespace(output=folder, save_every=save_every, seed=3, steps=steps, lr=0.1,
                           **flags)
    run = start_run(args, runs.start_accelerator(args))
    model = Line()
    model, optimizer, step = run.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=1), steps, "line")
    while step < steps:
        batch = torch.randn(4, 3, generator=torch.Generator().manual_seed(run.seed())).tolist()
        for part, sync in run.parts(model, batch, 3):
            with sync:
                run.accelerator.backward((torch.tensor(part) @ model.weight).square().sum() / 4)
        if step == gradient_at:
            model.weight.grad[0] = float("inf")
        loss = float("nan") if step == loss_at else 1.0
        norm = run.update(model, 0.1 / (1 + step), loss, batch)
        step = run.log(loss=loss, norm=norm, samples=[{"row": step}])
        if step == stop_at:
            raise KeyboardInterrupt
    run.finish(SimpleNamespace(save_pretrained=lambda folder: None))
    return {**torch.load(Path(folder) / "model" / "weights"),
            "rows": [{**r, "memory/peak_gb": 0} for r in read_rows(Path(folder) / "metrics.jsonl")],
            "samples": read_rows(Path(folder) / "samples.jsonl")}


@pytest.mark.parametrize("stop_at", [3, 4, 5, 6])
def test_c23_a_stopped_run_continues_bitwise_with_each_update_told_once(stop_at, tmp_path):
    plain = train_line(tmp_path / "plain")
    with pytest.raises(KeyboardInterrupt):
        train_line(tmp_path / "stopped", stop_at)
    with open(tmp_path / "stopped" / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')  # torn by a kill
    again = train_line(tmp_path / "stopped")
    assert torch.equal(plain.pop("weight"), again.pop("weight")) and plain == again
    assert [r["step"] for r in again["rows"]] == [s["step"] for s in again["samples"]] == [
        1, 2, 3, 4, 5, 6]
    # The last update is saved too, so that a finished run is never trained on.
    assert load_state(tmp_path / "stopped" / "state.pt")["step"] == 6


@pytest.mark.parametrize("stop_at", [None, 3, 1])  # finished, stopped, stopped before a save
def test_a_run_may_be_continued_to_more_steps_only(stop_at, tmp_path, capsys):
    plain, folder = train_line(tmp_path / "plain"), tmp_path / "longer"
    with contextlib.suppress(KeyboardInterrupt):
        train_line(folder, stop_at, steps=4, save_every=2)
    with pytest.raises(UserError, match="another run .--G None there, 8 here, --steps 4 there, 6"):
        train_line(folder, G=8)
    capsys.readouterr()
    longer, said = train_line(folder), capsys.readouterr().out
    assert torch.equal(plain.pop("weight"), longer.pop("weight")) and plain == longer
    assert ("--steps 4 there, 6 here" in said and "schedule" in said) == (stop_at != 1)
    config = read_json(folder / "config.json")
    assert config["args"]["steps"] == 6
    assert config.get("continued_from") == (None if stop_at == 1 else [{"steps": 4}])
    with pytest.raises(UserError, match="another run .--steps 6 there, 5 here"):
        train_line(folder, steps=5)
    train_line(folder)
    assert "schedule" not in capsys.readouterr().out  # the same command
    with pytest.raises(UserError, match="another run"):  # judging has no steps to add
        runs.open_run(folder, SimpleNamespace(seed=3, steps=7, lr=0.1))


def test_a_longer_run_that_saved_nothing_yet_is_still_the_short_one(tmp_path):
    short = train_line(tmp_path, steps=2)
    with pytest.raises(KeyboardInterrupt):
        train_line(tmp_path, steps=4, stop_at=3)
    again = train_line(tmp_path, steps=2)
    assert torch.equal(again.pop("weight"), short.pop("weight")) and again == short
    assert read_json(tmp_path / "config.json")["args"]["steps"] == 2
    with pytest.raises(KeyboardInterrupt):
        train_line(tmp_path, steps=6, stop_at=4)
    assert read_json(tmp_path / "config.json")["args"]["steps"] == 6
    with pytest.raises(UserError, match="--steps 6 there, 2 here"):
        train_line(tmp_path, steps=2)


def test_an_update_is_one_clipped_step_at_the_given_rate(tmp_path):
    args = SimpleNamespace(output=tmp_path, save_every=9, seed=0, lr=9)
    run, model = start_run(args, runs.start_accelerator(args)), Line()
    model, optimizer, _ = run.prepare(
        model, torch.optim.SGD(model.parameters(), lr=9), 2, "line")
    for slope, lr in ((100.0, 0.5), (0.1, 0.25)):  # its gradient is clipped to length 1, or left
        before = model.weight.detach().clone()
        run.accelerator.backward(slope * model.weight.sum())
        norm = run.update(model, lr, 1.0, [])
        assert norm == pytest.approx(slope * 3 ** 0.5, rel=1e-4)  # as it was before
        moved = (model.weight - before).norm().item()
        assert moved == pytest.approx(lr * min(1.0, norm), rel=1e-4)


@pytest.mark.parametrize("which", ["loss_at", "gradient_at"])
def test_a_number_that_is_none_never_reaches_the_weights(which, tmp_path):
    with pytest.raises(UserError, match="step 4: the loss is .*bad_batch.json.*--lr"):
        train_line(tmp_path, **{which: 4})
    bad, state = read_json(tmp_path / "bad_batch.json"), load_state(tmp_path / "state.pt")
    assert bad["step"] == 4 and len(bad["batch"]) == 4
    assert state["step"] == 4 and state["model"]["weight"].isfinite().all()
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 4 and not (tmp_path / "model").exists()


def test_parts_cover_the_rows_and_only_the_last_one_communicates():
    fake = SimpleNamespace(no_sync=lambda model: contextlib.nullcontext("quiet"))
    told = []
    for part, sync in runs.Run(None, None, fake).parts("model", [*range(7)], 3):
        with sync as state:
            told.append((part, state))
    assert told == [([0, 1, 2], "quiet"), ([3, 4, 5], "quiet"), ([6], None)]
    ranks = (SimpleNamespace(process_index=rank, num_processes=2) for rank in (0, 1))
    assert [runs.Run(None, None, rank).mine([*range(5)]) for rank in ranks] == [[0, 2, 4], [1, 3]]


@pytest.mark.parametrize("program", ["spct_rft", "spct_rl", "meta_rm", "extras.baselines"])
def test_every_stage_stops_at_a_bad_gradient(program, tiny, cli, tmp_path, monkeypatch):
    from accelerate import Accelerator

    from plumbing.data import load_examples
    judgments = [{"id": e.id, "non_hinted": [
        {"permutation": [*range(len(e.responses))], "text": f"good {scores}", "completion_ids": [5],
         "scores": scores, "correct": True} for scores in (e.rewards, [1 - r for r in e.rewards])]}
        for e in load_examples("toy", "train", 12)]
    write_rows(tmp_path / "judgments.jsonl", judgments)
    words = {
        "spct_rft": ["--general_only", "--batch_size", 4, "--epochs", 0.2],
        "spct_rl": ["--steps", 5, "--prompts_per_step", 2, "--G", 2, "--micro_batch_size", 4],
        "meta_rm": ["--grm", "", "--batch_size", 4, "--held_out", 0,
                    "--rft_judgments", tmp_path / "judgments.jsonl"],
        "extras.baselines": ["--batch_size", 2, "--test_limit", 4]}[program]
    clip, calls = Accelerator.clip_grad_norm_, []

    def poisoned(*args):  # the third update goes wrong
        calls.append(1)
        return clip(*args) * (float("nan") if len(calls) == 3 else 1)
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", poisoned)
    output = tmp_path / "run"
    first = ["btrm"] if program == "extras.baselines" else []
    said = error_of(cli(program, *first, "--model", tiny, "--limit", 12, "--output", output,
                        "--save_every", 1, "--max_new_tokens", 5, *words))
    assert "step 2: " in said and "bad_batch.json" in said
    assert len(read_json(output / "bad_batch.json")["batch"]) == (2 if first else 4)
    state = load_state(output / "state.pt")
    assert state["step"] == 2 and all(torch.isfinite(w).all() for w in state["model"].values())
    assert [r["step"] for r in read_rows(output / "metrics.jsonl") if "step" in r] == [1, 2]
    assert not (output / "model").exists()


@pytest.mark.parametrize("count, batch_size", [(12, 4), (10, 4), (3, 8), (7, 7), (1, 2)])
def test_batches_are_epochs_laid_end_to_end(count, batch_size):
    def batches(seed):
        return [runs.batch_indices(step, batch_size, count, seed) for step in range(3 * count)]
    flat = sum(batches(3), [])
    epochs = [flat[i:i + count] for i in range(0, len(flat), count)]
    assert all(sorted(e) == list(range(count)) for e in epochs[:3 * batch_size])
    assert batches(3) == batches(3) and all(len(b) == batch_size for b in batches(3))
    if count > 3:  # another order in every epoch and with every seed
        assert len({tuple(e) for e in epochs}) > 1 and batches(3) != batches(4)


# ----- the run folder -----

SMALL = ["--k", 1, "--max_new_tokens", 5, "--limit", 2]


def test_another_run_is_refused_with_the_difference_named(tiny, cli, tmp_path):
    words = ["infer_scale", "--model", tiny, *SMALL, "--output", tmp_path / "run"]
    assert cli(*words)[0] == 0
    before = everything(tmp_path)
    said = error_of(cli(*words, "--seed", 3, "--temperature", 0.25))
    assert "--seed 0 there, 3 here" in said and "--temperature 0.5 there, 0.25 here" in said
    assert "--k " not in said and everything(tmp_path) == before
    assert cli(*words)[0] == 0 and everything(tmp_path) == before  # the same command: nothing to do
    assert cli(*words, "--seed", 3, "--overwrite")[0] == 0
    after = everything(tmp_path)
    assert after.keys() == before.keys() and after["run/samples.jsonl"] != before[
        "run/samples.jsonl"]
    # Folders of models and of other people have files too, and --overwrite must not delete them.
    (tmp_path / "run" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("mine")
    before = everything(tmp_path)
    for folder, fault in (("run", "is damaged or not a run's"), ("thesis", "not a run folder")):
        for more in ([], ["--overwrite"]):
            said = error_of(cli(*words[:-1], tmp_path / folder, *more))
            assert fault in said and "choose another --output" in said
    (tmp_path / "run" / "config.json").write_text('{"args": ')
    assert "is damaged" in error_of(cli(*words))
    assert {**everything(tmp_path), "run/config.json": b""} == {**before, "run/config.json": b""}


def test_a_run_that_made_nothing_stands_in_nobodys_way(tiny, cli, tmp_path):
    """A mistake that is told late left config.json, and the mended command was another run."""
    shutil.copytree(tiny, tmp_path / "rl" / "model")
    words = ["infer_scale", *SMALL, "--output", tmp_path / "run", "--model"]
    said = error_of(cli(*words, tmp_path / "rl"))
    assert f"did you mean {tmp_path / 'rl' / 'model'}?" in said
    said = error_of(cli(*words, tiny, "--meta_rm", tmp_path / "rl"))
    assert f"did you mean {tmp_path / 'rl' / 'model'}?" in said
    assert cli(*words, tmp_path / "rl" / "model")[0] == 0
    assert read_json(tmp_path / "run" / "config.json")["args"]["model"] == str(
        tmp_path / "rl" / "model")
    assert "another run" in error_of(cli(*words, tmp_path / "rl" / "model", "--seed", 1))


def test_a_line_torn_by_a_kill_is_cut_before_the_next_is_appended(tmp_path):
    args = SimpleNamespace(output=tmp_path / "run")
    runs.open_run(args.output, args)
    (args.output / "judgments.jsonl").write_text('{"id": 1}\n{"id": 2')
    runs.open_run(args.output, args)
    append_jsonl(args.output / "judgments.jsonl", [{"id": 2}])
    assert [r["id"] for r in read_rows(args.output / "judgments.jsonl")] == [1, 2]


def test_a_kill_while_a_run_is_discarded(tiny, cli, tmp_path, monkeypatch):
    words = ["infer_scale", "--model", tiny, *SMALL, "--output", tmp_path / "run"]
    assert cli(*words)[0] == 0
    samples, remove = (tmp_path / "run" / "samples.jsonl").read_bytes(), runs.remove
    for survivors in range(4):
        left = [survivors]

        def killed(path, left=left):
            if path.exists() and not left[0]:
                raise KeyboardInterrupt
            left[0] -= path.exists()
            remove(path)
        with monkeypatch.context() as patch:
            patch.setattr(runs, "remove", killed)
            assert cli(*words, "--overwrite")[0] == (130 if survivors < 2 else 0)
        assert cli(*words)[0] == 0
        assert (tmp_path / "run" / "samples.jsonl").read_bytes() == samples
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_one_run_at_a_time(tiny, cli, tmp_path):
    words = ["infer_scale", "--model", tiny, *SMALL, "--output", tmp_path / "run"]
    (tmp_path / "run").mkdir()
    with open(tmp_path / "run" / ".lock", "a") as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # ours must be the only one
        assert "in use by another process" in error_of(cli(*words))
    assert cli(*words)[0] == 0  # let go with the process


def test_a_folder_that_cannot_be_written(tiny, cli, tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in ("/proc/spct", "/sys/kernel/spct", tmp_path / "file", tmp_path / "file" / "below",
                   tmp_path / ("x" * 300)):
        said = error_of(cli("eval", "--model", tiny, "--limit", 1, "--output", output))
        assert str(output) in said
    assert (tmp_path / "file").read_text() == "mine"


def test_without_git_there_is_no_commit(monkeypatch):
    assert runs.git_commit.__wrapped__()
    monkeypatch.setenv("PATH", "")
    assert runs.git_commit.__wrapped__() == "unknown"  # text, as tables join the commits of runs


# ----- how a program ends -----

@pytest.mark.parametrize("error, code, said", [
    (None, 0, ""), (UserError("a\nb"), 2, "error: a b\n"),
    (KeyboardInterrupt(), 130, "the same command"),
    (OSError(28, "full", "file"), 2, "error: cannot read or write file (full)"),
    (ValueError("a bug"), None, ""), (OSError("a bug"), None, "")])
def test_errors_of_users_are_one_line_and_trackers_are_closed(error, code, said, monkeypatch,
                                                              capsys):
    did, made = [], []
    tracker = SimpleNamespace(finish=lambda: did.append("closed"))
    one = SimpleNamespace(trackers=[tracker], end_training=lambda: did.append(
        "closed, group left" if made[0]() is None else "a model is left"))
    monkeypatch.setattr(runs, "STARTED", [one])

    @command_line
    def main():
        model = Line()
        model.cycle = [model]  # only the garbage collector can free it
        made.append(weakref.ref(model))
        if error:
            raise error
    if code == 0:
        main()
    elif code is None:  # a bug keeps its traceback
        with pytest.raises(type(error), match="a bug"):
            main()
    else:
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == code
    err = capsys.readouterr().err
    assert said in err and (code != 2 or err.count("\n") == 1)
    # A process that fails leaves the group to the others, which may still be at work.
    assert did == (["closed"] if error else ["closed, group left"]) and not runs.STARTED
