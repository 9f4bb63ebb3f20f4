"""§3.2, rule-based RL: the whole loop of spct_rl.py, on tiny random models whose judge is played.

`python tests/paper/test_sec32_rl_loop.py --flags` is spct_rl.py with the played judge (`play`):
what the tests start as processes of their own.
"""
import json
import os
import random
import socket
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ddp_at_the_end, error_of, finished, started
from played import PYTHONPATH, TORCHRUN, moved, near, plain_steps, save_tiny, untimed, weights

import spct_rl
from grm import Judgment, rule_reward, sample_judgments
from plumbing import runs
from plumbing.data import load_examples
from plumbing.generation import TOKENS_ON_A_GPU, CompletionLogits, load_model
from plumbing.runs import read_json, read_rows
from spct_rl import group_advantages, grpo_loss, too_easy

NORMS = ["sequence", "token", "constant"]
ENDS = range(5, 65)  # a random model meets one of these soon


@pytest.fixture(scope="module")
def base(tmp_path_factory, toy_tokenizer):
    return save_tiny(tmp_path_factory.mktemp("base"), toy_tokenizer, ends=ENDS)


def play(monkeypatch, wanted=lambda ids: sum(ids) % 2 == 0, sgd=False):
    """A random model never writes scores, so its judge is played: ids that are `wanted` stand for
    the right scores.

    Returns what happened: "rollouts" (per step the (example, group) pairs), "loss" (arguments and
    losses of each grpo_loss), "parts" (who, prompts, completions of each forward pass), "models"
    (policy, reference).
    """
    seen, forward, pack = defaultdict(list), CompletionLogits.forward, CompletionLogits.pack

    def judged(model, tokenizer, examples, *args, **options):
        groups = sample_judgments(model, tokenizer, examples, *args, **options)
        for example, group in zip(examples, groups, strict=True):
            for j in group:
                j.scores = list(example.rewards) if wanted(j.completion_ids) else None
        seen["rollouts"].append(list(zip(examples, groups, strict=True)))
        return groups

    def loss(*args, **options):
        losses, stats = grpo_loss(*args, **options)
        seen["loss"].append((args, losses.detach()))
        return losses, stats

    def remembered(*args, **options):
        seen["models"].append(load_model(*args, **options))
        return seen["models"][-1]

    def packed(self, *lists):
        return pack(self, *lists) | {"lists": lists}

    def spied(self, batch, function):
        seen["parts"].append((torch.is_grad_enabled(), *batch["lists"]))
        return forward(self, batch, function)
    monkeypatch.setattr(spct_rl, "sample_judgments", judged)
    monkeypatch.setattr(spct_rl, "grpo_loss", loss)
    monkeypatch.setattr(spct_rl, "load_model", remembered)
    monkeypatch.setattr(CompletionLogits, "pack", packed)
    monkeypatch.setattr(CompletionLogits, "forward", spied)
    if sgd:
        plain_steps(monkeypatch)
    return seen


def command(model, output, *flags):
    return ["--model", model, "--output", output, "--data", "toy", "--limit", 20,
            "--prompts_per_step", 4, "--micro_batch_size", 8, "--max_new_tokens", 10,
            "--lr", 0.02, "--steps", 2, *flags]


@pytest.fixture
def train(cli, base, tmp_path, monkeypatch):
    """train(*flags, name="out", model=base) -> (metrics, stdout) of a run in tmp_path/name."""
    def run(*flags, name="out", model=base):
        code, out, err = cli("spct_rl", *command(model, tmp_path / name, *flags))
        assert code == 0, err
        return read_rows(tmp_path / name / "metrics.jsonl"), out
    return run


@pytest.fixture
def refused(cli, base, tmp_path):
    """refused(*flags) -> the one line that a user's mistake ends in."""
    return lambda *flags, name="out": error_of(
        cli("spct_rl", *command(base, tmp_path / name, *flags)))


def policy_parts(seen):
    return [(prompts, completions) for is_policy, prompts, completions in seen["parts"]
            if is_policy]


# ----- reward and filter -----

def test_too_easy_is_right_three_times_of_three():
    """C35: a judgment that did not parse is not right, also where the truth is 0."""
    def judgments(*scores):
        return [Judgment(0, [0], [], [], "", s, "", [], 0, 0) for s in scores]
    pair, single = load_examples("toy", "train", 40)[:2]
    pair.responses, pair.rewards, single.responses, single.rewards = ["a", "b"], [1, 0], ["a"], [0]
    assert too_easy(judgments([9, 2], [3, 1], [10, 9]), pair)
    assert not too_easy(judgments([9, 2], [3, 3], [10, 9]), pair)
    assert not too_easy(judgments([9, 2], None, [10, 9]), pair)
    assert too_easy(judgments([0]), single) and not too_easy(judgments(None), single)


def test_easy_filter_drops_what_the_judge_gets_right_three_times(base, train, monkeypatch):
    seen = play(monkeypatch, lambda ids: ids[0] % 3 != 0)
    _, out = train("--easy_filter", base, "--limit", 10)
    tried, *steps = seen["rollouts"]
    easy = {e.id for e, group in tried if all(j.scores for j in group)}
    assert 0 < len(easy) < 10 and all(len(group) == 3 for _, group in tried)
    drawn = {e.id.split("/draw")[0] for step in steps for e, _ in step}
    assert drawn == {e.id for e, _ in tried} - easy
    assert f"{len(easy)} of 10 items dropped" in out


# ----- one step -----

def test_c12_c13_c28_one_step_trains_and_starts_at_the_reference(base, tmp_path, train,
                                                                 monkeypatch):
    """C12: the reference is the model that RL starts from.  C13: every weight moves; a trainer
    with an empty optimizer had healthy curves.  C28: rho = 1 although two programs computed it."""
    seen = play(monkeypatch)
    (first, second), _ = train("--temperature", 0.7)
    assert first["policy/kl"] == pytest.approx(0, abs=1e-7) and first["opt/grad_norm"] > 0
    assert first["policy/clip_frac"] == first["policy/bounded_frac"] == 0
    assert max(first["policy/ratio_error"], second["policy/ratio_error"]) < 1e-5
    assert second["policy/kl"] > 1e-5
    (policy, _), (reference, _) = seen["models"]
    before, after = weights(base), weights(tmp_path / "out" / "model")
    assert near(before, reference.state_dict()) and near(after, policy.state_dict())
    assert not any(torch.equal(before[k], v) for k, v in after.items())
    assert not any(p.requires_grad for p in reference.parameters())


def test_c11_c17_sampled_ids_are_trained_on_with_their_own_advantage(train, monkeypatch,
                                                                     toy_tokenizer):
    """C11: groups stay whole.  C17: text that is tokenised again gives other ids."""
    seen = play(monkeypatch)
    train("--steps", 1, "--prompts_per_step", 12)
    expected, trained, again = {}, {}, 0
    for example, group in seen["rollouts"][0]:
        assert len(group) == 4 and len({tuple(j.prompt_ids) for j in group}) == 1
        rewards = torch.tensor([[rule_reward(j.scores, example.rewards) for j in group]])
        for j, A in zip(group, group_advantages(rewards)[0].tolist(), strict=True):
            expected[tuple(j.prompt_ids), tuple(j.completion_ids)] = [*j.logp, A]
            text = toy_tokenizer.decode(j.completion_ids)
            again += toy_tokenizer(text, add_special_tokens=False)["input_ids"] != j.completion_ids
    assert again  # some ids do not survive decoding and encoding
    for (args, _), (prompts, completions) in zip(seen["loss"], policy_parts(seen), strict=True):
        old, A, mask = args[1], args[3], args[4]
        for r, ids in enumerate(completions):
            assert mask[r].sum() == len(ids)
            trained[tuple(prompts[r // 4]), tuple(ids)] = [*old[r, :len(ids)].tolist(), A[r].item()]
    assert trained.keys() == expected.keys()
    assert all(trained[k] == pytest.approx(expected[k], abs=1e-6) for k in expected)
    reference = [part[1:] for part in seen["parts"] if not part[0]]
    assert reference == policy_parts(seen)  # reference and policy see the same


def test_c10_c22_metrics_equal_a_count_by_hand(train, monkeypatch, tmp_path):
    """C10: frac_zero_std counts the groups of equal rewards, right or wrong."""
    seen, dead, drawn = play(monkeypatch), Counter(), defaultdict(list)
    rows, _ = train("--steps", 3, "--G", 2, "--prompts_per_step", 8, "--length_norm", "token",
                    "--lr", 0)
    for metrics, rollout in zip(rows, seen["rollouts"], strict=True):
        judgments = [j for _, group in rollout for j in group]
        groups = [tuple(j.scores is not None for j in group) for _, group in rollout]
        right = sum(map(sum, groups))
        zero_std = groups.count((True, True)) + groups.count((False, False))
        assert metrics["reward/mean"] == pytest.approx((right - (16 - right)) / 16)
        assert metrics["reward/parse_rate"] == right / 16
        assert metrics["reward/frac_zero_std"] == zero_std / 8
        assert metrics["len/mean"] == sum(len(j.completion_ids) for j in judgments) / 16
        truncated = sum(j.reason == "truncated" for j in judgments)
        assert metrics["len/truncated_frac"] == truncated / 16
        dead.update(groups)
        for e, group in rollout:
            drawn[e.id].append((metrics["step"], [j.completion_ids for j in group]))
    twice = [(a, b) for (i, a), *others in drawn.values() for j, b in others if i != j]
    # another step, other random numbers (the policy stays what it is)
    assert twice and all(a != b for a, b in twice)
    assert dead[True, True] and dead[False, False]
    losses = [losses for _, losses in seen["loss"]]
    per_step = len(losses) // 3  # parts per step
    for i, metrics in enumerate(rows):  # Eq. 15: the mean over all rollouts
        whole = torch.cat(losses[i * per_step:(i + 1) * per_step])
        assert len(whole) == 16
        assert metrics["policy/loss"] == pytest.approx(whole.mean().item(), abs=1e-6)
    assert max(abs(metrics["policy/loss"]) for metrics in rows) > 1e-3  # so that it can differ
    samples = read_rows(tmp_path / "out" / "samples.jsonl")
    assert [r["step"] for r in samples] == [1, 1, 2, 2, 3, 3]
    assert {r["rule_reward"] for r in samples} <= {1.0, -1.0}


def test_a_group_of_one_is_told(train):
    _, out = train("--G", 1, "--limit", 4, "--prompts_per_step", 4, "--steps", 1)
    assert out.count("--G 1") == 1 and "teach" in out


def test_c11_an_item_drawn_twice_in_a_step_gets_other_judgments(train, monkeypatch):
    """C11: fewer items than --prompts_per_step; the second group was a copy of the first."""
    seen = play(monkeypatch)
    _, out = train("--limit", 3, "--prompts_per_step", 8, "--steps", 1)
    [step] = seen["rollouts"]
    groups, orders, rewards = defaultdict(list), defaultdict(set), defaultdict(set)
    for e, group in step:
        groups[e.prompt[-1]["content"]] += [tuple(j.completion_ids) for j in group]
        orders[e.prompt[-1]["content"]].add(tuple(group[0].permutation))
        rewards[e.prompt[-1]["content"]].add(tuple(e.rewards))
    assert len(step) == 8 and sorted(map(len, groups.values())) == [8, 12, 12]
    assert all(len(set(ids)) > 0.9 * len(ids) for ids in groups.values())
    assert any(len(order) > 1 for order in orders.values())
    assert all(len(truth) == 1 for truth in rewards.values())
    assert "3 distinct items per step" in out
    first = [load_examples("toy", "train", 3)[i].id for i in runs.batch_indices(0, 3, 3, 0)]
    assert [e.id for e, _ in step[:3]] == first  # a first draw has the random numbers of ever


@pytest.mark.parametrize("masked", [False, True])
def test_c21_truncated_judgments_stay_in_the_loss_unless_masked(masked, train, monkeypatch):
    """C21: what the length limit cut off earns -1; --mask_truncated takes it out of the loss."""
    seen = play(monkeypatch)
    [metrics], _ = train("--steps", 1, "--max_new_tokens", 4, "--length_norm", "token",
                         *["--mask_truncated"] * masked)
    assert 0 < metrics["len/truncated_frac"] < 1
    reasons = {tuple(j.completion_ids): j.reason for _, g in seen["rollouts"][0] for j in g}
    counted = 0
    for (args, _), (_, completions) in zip(seen["loss"], policy_parts(seen), strict=True):
        for row, ids in zip(args[4], completions, strict=True):
            out = masked and reasons[tuple(ids)] == "truncated"
            assert row.sum() == (0 if out else len(ids))
            counted += int(row.sum())
    # tokens per completion of the whole update, the same in every part
    lengths = {float(args[9]) for args, _ in seen["loss"]}
    assert list(lengths) == pytest.approx([counted / 16])


@pytest.mark.parametrize("length_norm", NORMS)
def test_c21_only_truncated_judgments_and_all_of_them_masked(length_norm, tmp_path, toy_tokenizer,
                                                             train, monkeypatch):
    """C21: then no token is left to divide by; the loss is 0, not NaN."""
    endless = save_tiny(tmp_path / "endless", toy_tokenizer)
    play(monkeypatch)
    [metrics], _ = train("--steps", 1, "--max_new_tokens", 1, "--mask_truncated", "--length_norm",
                         length_norm, model=endless)
    assert metrics["len/truncated_frac"] == 1
    assert metrics["opt/grad_norm"] == metrics["policy/loss"] == 0


def test_flags_reach_the_loss(train, monkeypatch):
    seen = play(monkeypatch)
    train("--steps", 1, "--beta", 0.5, "--kl", "corrected", "--no_std", "--length_norm", "constant",
          "--updates_per_rollout", 2)
    arguments = [args for args, _ in seen["loss"]]
    assert len(arguments) == 4 and {args[5:10] for args in arguments} == {
        (0.5, 0.2, "corrected", "constant", 10)}
    who = [is_policy for is_policy, *_ in seen["parts"]]
    assert who == [False] * 2 + [True] * 4  # the reference once, the policy in both updates
    first, second = [args[0] - args[1] for args in arguments[::2]]
    # the second update is off the policy that sampled
    assert first.abs().max() < 1e-5 < second.abs().max()
    rewards = torch.tensor([[1.0 if j.scores else -1.0 for j in group]
                            for _, group in seen["rollouts"][0]])
    found = sorted(a for args in arguments[:2] for a in args[3].tolist())
    assert found == sorted(group_advantages(rewards, std=False).flatten().tolist())


def test_c13_ten_steps_raise_the_rewarded_behaviour(train, monkeypatch):
    """C13: the only proof that something is learned."""
    play(monkeypatch, lambda ids: ids[0] % 4 == 0)
    rows, _ = train("--steps", 10, "--prompts_per_step", 16, "--micro_batch_size", 64,
                    "--lr", 0.05, "--beta", 0.0, "--max_new_tokens", 4)
    right = [(row["reward/mean"] + 1) / 2 for row in rows]
    assert right[0] < 0.4 and sum(right[-2:]) / 2 > 0.8, right


@pytest.mark.parametrize("flags", [[], ["--gradient_checkpointing"]])
def test_c14_dropout_does_not_move_the_ratio(flags, tmp_path, toy_tokenizer, train, monkeypatch):
    """C14: dropout in one of two passes makes rho differ from 1.  C26: so would a prompt that
    checkpointing loses."""
    dropout = dict(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    model = save_tiny(tmp_path / "gpt2", toy_tokenizer, "gpt2", ENDS, **dropout)
    play(monkeypatch)
    [metrics], _ = train("--steps", 1, *flags, model=model)
    assert metrics["policy/ratio_error"] < 1e-4
    assert metrics["policy/kl"] == pytest.approx(0, abs=1e-6)


# ----- data and mistakes -----

def test_c35_c36_a_judge_that_never_tells_two_apart_is_told(train, tmp_path, monkeypatch):
    """C36: equal rewards in every group train with a loss of 0.  C35: what does not parse earns -1,
    also where the truth is 0."""
    rows = [{**ITEM, "id": str(i), "responses": ["x"], "rewards": [0]} for i in range(4)]
    flags = ["--data", jsonl(tmp_path / "single.jsonl", *rows), "--steps", 6]
    metrics, out = train(*flags)
    assert {row["reward/mean"] for row in metrics} == {-1.0}
    assert {row["reward/frac_zero_std"] for row in metrics} == {1.0}
    assert out.count("every group had equal rewards") == 1 and "reward/parse_rate" in out
    play(monkeypatch)
    assert "equal rewards" not in train(*flags, name="alive")[1]


ITEM = {"id": "a", "prompt": "Hi", "responses": ["x", "y"], "rewards": [1, 0]}


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_items_that_do_not_fit_stop_the_run_or_are_dropped(tmp_path, train, refused, monkeypatch):
    rows = [{**ITEM, "id": f"i{i}", "responses": ["good", "bad " * (600 if i == 2 else 2)]}
            for i in range(5)]
    flags = ["--data", jsonl(tmp_path / "items.jsonl", *rows)]
    line = refused(*flags)
    assert "1 of 5 items" in line and "i2" in line and "512" in line and "--skip_bad" in line
    assert not (tmp_path / "out" / "metrics.jsonl").exists()
    seen = play(monkeypatch)
    metrics, out = train(*flags, "--skip_bad")  # the same folder: the flag may be added
    assert len(metrics) == 2 and "1 of 5 items dropped" in out
    assert {e.id for step in seen["rollouts"] for e, _ in step} == {"i0", "i1", "i3", "i4"}


@pytest.mark.parametrize("flags, word", [
    (["--data", "unlabelled.jsonl"], "item b"),
    (["--data", "single.jsonl", "--rating", "best"], "2 responses"),
    (["--data", "single.jsonl", "--rating", "1-10"], "choose from"),
    (["--limit", 3, "--easy_filter", "BASE"], "too easy"),
])
def test_mistakes_end_in_one_line(flags, word, base, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "unlabelled.jsonl", ITEM, {**ITEM, "id": "b", "rewards": None})
    jsonl(tmp_path / "single.jsonl", {**ITEM, "responses": ["x"], "rewards": [1]})
    play(monkeypatch, lambda ids: True)
    assert word in refused(*[base if flag == "BASE" else flag for flag in flags])
    # mended data may go to the same --output
    assert not (tmp_path / "out").exists() or "too easy" in word


def test_a_tracker_that_writes_files_gets_each_update_and_is_closed(train, refused, tmp_path,
                                                                    monkeypatch):
    """Its files lie in the new run folder, which made the run refuse its own folder once."""
    from accelerate import accelerator, tracking
    log, lines = tmp_path / "out" / "spct" / "events", []

    class Tracker(tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "tensorboard", True, None

        def __init__(self, run_name, logging_dir):
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("begun")

        def log(self, values, step=None):
            lines.append((step, values["reward/mean"]))

        def finish(self):
            lines.append("closed")
    play(monkeypatch)
    monkeypatch.setattr(tracking, "_available_trackers", [])
    assert "not installed" in refused("--log_with", "tensorboard")
    available = [tracking.LoggerType.TENSORBOARD]
    monkeypatch.setattr(tracking, "_available_trackers", available)
    monkeypatch.setitem(accelerator.LOGGER_TYPE_TO_CLASS, "tensorboard", Tracker)
    rows, _ = train("--log_with", "tensorboard")
    assert lines == [*[(row["step"], row["reward/mean"]) for row in rows], "closed"]
    assert len(rows) == 2 and log.exists()


# ----- stopped and continued; two processes, two machines -----

def test_c23_stopped_and_continued_equals_uninterrupted_bitwise(base, train, tmp_path, cli,
                                                                monkeypatch):
    """C23: random numbers, data order and rollouts continue where the last saved state ended."""
    play(monkeypatch)
    flags = ["--steps", 6, "--save_every", 3, "--temperature", 0.7]
    whole, _ = train(*flags, name="whole")

    log_metrics = runs.log_metrics

    def stop(folder, accelerator=None, **metrics):
        log_metrics(folder, accelerator, **metrics)
        if metrics["step"] == 4:
            raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(runs, "log_metrics", stop)
        assert cli("spct_rl", *command(base, tmp_path / "out", *flags))[0] == 130
    out = tmp_path / "out"
    assert len(read_rows(out / "metrics.jsonl")) == 4 and not (out / "model").exists()
    for name in ("metrics.jsonl", "samples.jsonl"):  # a kill can tear the last line
        with open(out / name, "a", encoding="utf-8") as file:
            file.write('{"step": 5, "rew')
    rows, _ = train(*flags)
    assert untimed(rows) == untimed(whole) and [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]
    assert near(weights(tmp_path / "whole" / "model"), weights(out / "model"))
    assert read_rows(out / "samples.jsonl") == read_rows(tmp_path / "whole" / "samples.jsonl")


THREE_UPDATES = ["--steps", 3, "--micro_batch_size", 4, "--lr", 0.5, "--temperature", 0.8,
                 "--length_norm", "token"]


def told(seen):
    """Per step: item id -> the ids of its judgments."""
    return [{e.id: [j.completion_ids for j in group] for e, group in step}
            for step in seen["rollouts"]]


@pytest.fixture(scope="module")
def two_and_one(base, tmp_path_factory, cli):
    """The same three updates by two processes, by two machines and by one process.

    Machines are two launchers on loopback that share a folder: the lines of the README.
    """
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def launch(name, *launcher):
        words = [__file__, *command(base, folder / name, *THREE_UPDATES)]
        return started([*TORCHRUN, *map(str, launcher)], *words, PYTHONPATH=PYTHONPATH,
                       DUMP=str(folder / f"{name}-rank"))
    running = [launch("two", "--standalone", "--nproc_per_node", 2)] + [
        launch("machines", "--nnodes", 2, "--node_rank", rank, "--nproc_per_node", 1,
               "--master_addr", "127.0.0.1", "--master_port", port) for rank in (0, 1)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        seen = play(monkeypatch, sgd=True)
        code, _, err = cli("spct_rl", *command(base, folder / "one", *THREE_UPDATES))
    assert code == 0, err
    for process in running:
        code, out = finished(process, 300)
        assert code == 0, out
    return SimpleNamespace(folder=folder, one=told(seen))


@pytest.mark.parametrize("name", ["two", "machines"])
def test_c08_c11_c16_c27_processes_train_to_the_weights_of_one(name, two_and_one, base):
    """C16: ranks that stop at different lengths once waited for ever.  C11: a group is whole and
    on one process.  C27: a DDP model that is called unwrapped trains each rank alone.  C08:
    gradients of unequal parts add up.  And no DDP model outlives its group: a deadlock at exit."""
    folder = two_and_one.folder
    assert read_json(folder / name / "config.json")["processes"] == 2
    first, second = (torch.load(folder / f"{name}-rank{r}.pt") for r in (0, 1))
    assert first["ddp"] == second["ddp"] == [0]
    for one, mine, other in zip(two_and_one.one, first["told"], second["told"], strict=True):
        assert len(mine) == len(other) == 2 and not mine.keys() & other.keys()
        assert {**mine, **other} == one and all(len(group) == 4 for group in one.values())
    saved, one = weights(folder / name / "model"), weights(folder / "one" / "model")
    assert near(first["model"], second["model"]) and near(first["model"], saved)
    assert near(saved, one, 1e-5)
    assert moved(one, weights(base)) > 0.01


@pytest.mark.parametrize("name", ["two", "machines"])
def test_c22_processes_report_the_metrics_of_one(name, two_and_one):
    """C22: sums over ranks, by sorted names; a mean of rank 0 is another number."""
    one, two = (two_and_one.folder / folder for folder in ("one", name))
    metrics = [untimed(read_rows(folder / "metrics.jsonl")) for folder in (one, two)]
    assert [row["step"] for row in metrics[1]] == [1, 2, 3]
    for a, b in zip(*metrics, strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)
    samples = [[(r["step"], r["id"], r["text"], r["advantage"]) for r in read_rows(
        folder / "samples.jsonl")] for folder in (one, two)]
    assert samples[0] == samples[1] and len(samples[0]) == 12


def main():
    """spct_rl.py with the played judge. DUMP: where each process writes what it saw."""
    monkeypatch = pytest.MonkeyPatch()
    seen, left = play(monkeypatch, sgd=True), ddp_at_the_end(monkeypatch)
    spct_rl.main()
    torch.save({"ddp": left, "told": told(seen), "model": seen["models"][0][0].state_dict()},
               Path(f"{os.environ['DUMP']}{os.environ['RANK']}.pt"))


if __name__ == "__main__":
    main()


def test_c22_micro_batches_change_no_metric(train, monkeypatch):
    """C22: metrics are sums over all parts of an update, then means."""
    found = []
    for size in (2, 8):
        play(monkeypatch)
        found += untimed(train("--steps", 1, "--G", 2, "--micro_batch_size", size,
                               name=f"out{size}")[0])
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert value == pytest.approx(found[1][name], rel=1e-4, abs=1e-6), name


# ----- micro-batches -----

@pytest.mark.parametrize("size", [None, 8])
def test_micro_batches_are_whole_groups_and_fill_a_gpu_by_tokens(size):
    rng = random.Random(0)
    groups = [[SimpleNamespace(prompt_ids=[q] * rng.randrange(10, 900), reason="ok",
                               completion_ids=[7] * n, logp=[0.0] * n)
               for n in (rng.randrange(1, 300) for _ in range(4))] for q in range(40)]
    for group in groups:
        for j in group:
            j.prompt_ids = group[0].prompt_ids
    args = SimpleNamespace(G=4, micro_batch_size=size, mask_truncated=False)
    parts = spct_rl.make_parts(groups, torch.zeros(40, 4), args, lambda *lists: lists,
                               torch.device("meta"))  # a device that is no CPU
    lists = [part["batch"] for part in parts]
    assert sorted(p[0] for prompts, _ in lists for p in prompts) == list(range(40))
    tokens = [len(prompts) * (max(map(len, prompts)) + 4 * max(map(len, completions)))
              for prompts, completions in lists]  # with padding
    if size:
        assert all(len(prompts) == 2 for prompts, _ in lists)
    else:
        assert max(tokens) <= TOKENS_ON_A_GPU < min(
            a + b for a, b in zip(tokens, tokens[1:]))
    for part, (prompts, completions) in zip(parts, lists, strict=True):
        assert len(completions) == 4 * len(prompts)
        assert part["logp_old"].shape == (len(completions), max(map(len, completions)))
