"""Faults on purpose: programs are killed at random moments, started again with the same command,
and compared with an uninterrupted run.

    python tests/kill.py                          # one fault for each program
    python tests/kill.py --faults 6 --only rl     # six faults for one of them (and what it needs)
    python tests/kill.py --processes              # two processes against one; one that fails early

Four faults: SIGKILL just before a random file operation, SIGKILL at a random time, SIGINT at a
random time, and a full disk (from a random file operation on, every write raises "no space left on
device"). After each fault every file in sight must be whole; after the last one the finished run
must hold the same bytes as an uninterrupted run (times and memory in metrics.jsonl aside).
The programs run in forks of this process with their own command lines; a fork that opens an
internet connection fails. Ends with one line of JSON: faults by kind, files and bytes compared.
"""
import argparse
import contextlib
import errno
import importlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import ROOT, ddp_at_the_end

os.environ.update(OMP_NUM_THREADS="1", TQDM_MININTERVAL="60")
# Nothing but the audit hook below keeps us offline.
for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
    os.environ.pop(variable, None)

BASE = f"--model {ROOT}/toy_world/medium"
TRAIN = "--limit 6 --epochs 1 --batch_size 4 --micro_batch_size 2 --save_every 1"
# Command lines at their smallest; {whole} is the folder of the uninterrupted runs before it.
STAGES = {
    "rft": f"spct_rft {BASE} {TRAIN} --n_rft 2 --general_fraction 0.4",
    "rl": f"spct_rl {BASE} --limit 6 --steps 3 --prompts_per_step 2 --G 2 --micro_batch_size 2 "
          f"--save_every 1 --easy_filter {ROOT}/toy_world/medium",
    "meta_rm": f"meta_rm {BASE} {TRAIN} --rft_judgments {{whole}}/rft/judgments.jsonl "
               f"--grm {ROOT}/toy_world/medium --n_rft 1 --held_out 0.2",
    "voting": f"infer_scale {BASE} --limit 6 --k 2 --chunk_size 2 "
              "--meta_rm {whole}/meta_rm/model",
    "eval": f"eval {BASE} --limit 6 --chunk_size 2",
    "grm": f"grm {BASE} --data toy --limit 4",
    "btrm": f"extras.baselines btrm {BASE} {TRAIN} --test_limit 4",
}
KINDS = ["kill", "full disk", "kill at a time", "interrupt"]
CODES = {"kill": -9, "kill at a time": -9, "interrupt": 130, "full disk": 2}
SAID = {"interrupt": "the same command", "full disk": "finished work is kept"}


# ----- a program in a fork -----

def guard(folder, kind, at, counter):
    """Audit hook: counts the file operations that change `folder`, does what `kind` says at number
    `at`, blocks the network."""
    seen, home = 0, (None, "localhost", "127.0.0.1", "::1", socket.gethostname())
    changes = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def hook(event, args):
        nonlocal seen
        asked = (args[0] if event == "socket.getaddrinfo" else args[1][0]
                 if event == "socket.connect" and isinstance(args[1], tuple) else None)
        if asked not in home:
            os.write(2, f"NETWORK {event} {args}\n".encode())
            os._exit(99)
        if event not in changes and not (
                event == "open" and isinstance(args[2], int) and args[2] & writing):
            return
        below = event in ("os.remove", "os.rmdir") and args[-1] != -1  # within shutil.rmtree
        if not (str(args[0]).startswith(str(folder)) or below):
            return
        seen += 1
        if counter:
            os.pwrite(counter, f"{seen:9d}".encode(), 0)
        if kind == "kill" and seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "full disk" and seen >= at and event in ("open", "os.mkdir", "os.rename"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
    return hook


def start(words, folder, log, kind="", at=0, counter=None, rank=None, port=None):
    """The program in a fork, in a process group of its own; returns its process id.

    rank: of two processes (0 or 1); what torchrun sets is set.
    """
    program, *flags = words.split()
    main = importlib.import_module(program).main  # before the fork, so that no fault hits an import
    pid = os.fork()
    if pid:
        return pid
    try:
        left = []
        if rank is not None:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
                              LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            left = ddp_at_the_end(pytest.MonkeyPatch())
        if kind == "sgd":  # AdamW blows up rounding differences of tiny gradients
            torch.optim.AdamW = lambda parameters, lr, **_: torch.optim.SGD(parameters, lr)
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(log, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(ROOT)
        sys.argv = [f"{program}.py", *flags, "--output", str(folder)]
        sys.addaudithook(guard(folder, kind, at, counter))
        code = 0
        try:
            main()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
            code = 70
        if left:
            print(f"\nDDP models at the end: {sum(left)}")
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def ended(pid, seconds=600):
    """Exit code (negative: the signal) within `seconds`; a program that hangs is an error."""
    deadline = time.time() + seconds
    while time.time() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    raise AssertionError(f"no end after {seconds} s")


def well(code, log):
    assert code == 0, f"exit code {code}, {log.read_text()[-3000:]}"


# ----- what is compared -----

def files(folder):
    return {p.relative_to(folder): p for p in sorted(folder.rglob("*")) if p.is_file()
            and not any(part.startswith(".") for part in p.relative_to(folder).parts)}


def assert_whole(folder):
    """Every file that can be seen is whole; only one that is appended to may end in half a line."""
    for path in files(folder).values():
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl":
            lines = path.read_bytes().split(b"\n")
            appended = ("metrics.jsonl", "samples.jsonl", "judgments.jsonl")
            assert not lines[-1] or path.name in appended, path
            [json.loads(line) for line in lines[:-1]]
        elif path.suffix == ".safetensors":
            safetensors.safe_open(path, "pt")
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)


def content(path):
    """Bytes to compare. Times and memory differ, and a kill just after sampling can lose the line
    that says how long it took. Of a state the values: pickle's bytes also depend on which of them
    are one object."""
    if path.name == "metrics.jsonl":
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return json.dumps([{k: v for k, v in r.items() if k != "seconds"
                            and not k.startswith(("time/", "memory/"))}
                           for r in rows if "stage" not in r]).encode()
    if path.suffix == ".pt":
        return "".join(plain_values(torch.load(path, weights_only=True))).encode()
    return path.read_bytes()


def plain_values(value):
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype}{tuple(value.shape)}"
        yield value.contiguous().view(-1).view(torch.uint8).numpy().tobytes().hex()
    elif isinstance(value, (dict, list, tuple)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield f"{key!r}:"
            yield from plain_values(part)
    else:
        yield repr(value)


def compare(whole, killed, total):
    a, b = ({name: content(path) for name, path in files(folder).items()}
            for folder in (whole, killed))
    a, b = ({name: text for name, text in found.items() if text != b"[]"} for found in (a, b))
    different = sorted(str(n) for n in a.keys() | b.keys() if a.get(n) != b.get(n))
    assert not different, f"{killed} differs from the uninterrupted run in {different}"
    total["files_compared"] += len(a)
    total["bytes_compared"] += sum(map(len, a.values()))


# ----- faults -----

def faults(root, only, count, rng):
    total = dict.fromkeys([*KINDS, "files_compared", "bytes_compared"], 0)
    needed = set(only)
    for name in reversed(STAGES):
        if any(f"{{whole}}/{name}/" in STAGES[other] for other in needed):
            needed.add(name)
    for name in filter(needed.__contains__, STAGES):
        words = STAGES[name].format(whole=root / "whole")
        whole, killed, log = root / "whole" / name, root / "killed" / name, root / f"{name}.log"
        whole.parent.mkdir(exist_ok=True)
        counter = os.open(root / "operations", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        began = time.time()
        well(ended(start(words, whole, log, counter=counter)), log)
        latest, operations = time.time() - began, int(os.pread(counter, 9, 0) or 1)
        assert_whole(whole)
        done = 0
        while done < count * (name in only):
            kind = KINDS[sum(total[k] for k in KINDS) % len(KINDS)]
            at = rng.randint(1, operations) if kind in ("kill", "full disk") else 0
            size = log.stat().st_size
            pid = start(words, killed, log, kind, at)
            if not at:
                time.sleep(rng.uniform(0.1, latest))
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGINT if kind == "interrupt" else signal.SIGKILL)
            code, said = ended(pid), log.read_bytes()[size:].decode(errors="replace")
            if code == 0:  # done before the fault came: compare, and try it earlier
                compare(whole, killed, total)
                shutil.rmtree(killed)
                latest *= 0.7
                continue
            assert code == CODES[kind] and "Traceback" not in said and SAID.get(kind, "") in said, (
                f"{name}, {kind}: exit code {code}\n{said[-3000:]}")
            if kind == "full disk":
                assert sum(line.startswith("error: ") for line in said.splitlines()) == 1, said
            if killed.exists():
                assert_whole(killed)
            total[kind] += 1
            done += 1
        if done:
            well(ended(start(words, killed, log)), log)
            compare(whole, killed, total)
        print(f"{name}: {done} faults, {operations} file operations", file=sys.stderr, flush=True)
    return total


# ----- two processes against one -----

PAIRS = {  # fewer chunks than processes, chunks of unequal size
    "rft": STAGES["rft"] + " --lr 0.1", "rl": STAGES["rl"] + " --lr 0.1",
    "meta_rm": STAGES["meta_rm"] + " --lr 0.1", "btrm": STAGES["btrm"] + " --lr 0.1",
    "voting": f"infer_scale {BASE} --limit 7 --k 2 --chunk_size 2",
    "one item": f"infer_scale {BASE} --limit 1 --k 2",
}


def together(words, folder, log, kind=""):
    """Exit codes of both processes of one run (torchrun would end both when one has failed)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [start(words, folder, log, kind, rank=rank, port=port) for rank in (0, 1)]
    return [ended(pid) for pid in running]


def two_processes(root, only):
    """Same samples by id (the same bytes), and weights within 1e-5 after SGD steps of 0.1."""
    total = {"samples_compared": 0, "weights_compared": 0, "models_at_the_end": []}
    for name in filter(only.__contains__, PAIRS):
        one, two, log = (root / f"{kind}-{name}".replace(" ", "-")
                         for kind in ("one", "two", "log"))
        words = PAIRS[name].format(whole=root / "whole")
        if "{whole}" in PAIRS[name] and not (root / "whole" / "rft").exists():
            well(ended(start(STAGES["rft"], root / "whole" / "rft", log)), log)
        well(ended(start(words, one, log, "sgd")), log)
        for code in together(words, two, log, "sgd"):
            well(code, log)
        total["models_at_the_end"] += [int(line.split(": ")[1]) for line in log.read_text(
            ).splitlines() if line.startswith("DDP models at the end: ")]
        assert json.loads((two / "config.json").read_text())["processes"] == 2
        assert files(one).keys() == files(two).keys()
        for path in files(one):
            if path.suffix == ".safetensors":
                a, b = (safetensors.torch.load_file(folder / path) for folder in (one, two))
                worst = max((a[k] - b[k]).abs().max().item() for k in a)
                assert worst < 1e-5, f"{name}: {path} differs by {worst}"
                total["weights_compared"] += 1
            elif path.name == "metrics.jsonl":
                # clipping and SGD hide a gradient that is half as long; its norm does not
                a, b = ([json.loads(line).get("grad_norm", 0) for line in (folder / path).read_text(
                    ).splitlines()] for folder in (one, two))
                worst = max(abs(x - y) / max(x, 1e-9) for x, y in zip(a, b, strict=False))
                assert name == "rl" or worst < 1e-3, f"{name}: gradient norms {a} and {b}"
            elif path.suffix == ".jsonl" and "rl" != name:
                a, b = ([json.loads(line) for line in (folder / path).read_text(
                    encoding="utf-8").splitlines()] for folder in (one, two))
                ids = [r["id"] for r in a]
                assert ids == [r["id"] for r in b] and a and len(set(ids)) == len(ids), path
                # those of the baseline are numbers of the trained model
                assert a == b or name == "btrm", f"{name}: {path}"
                total["samples_compared"] += len(a)
        print(f"{name}: two processes equal one", file=sys.stderr, flush=True)
    if "early" in only:  # an item too long for the model: the other process must not wait for ever
        items = [{"id": str(i), "prompt": "How ?",
                  "responses": ["a", "word " * 3000 * (i == 1) + "b"]} for i in range(2)]
        (root / "items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
        words = f"infer_scale {BASE} --data {root}/items.jsonl --k 1 --chunk_size 1"
        codes = together(words, root / "early", root / "log-early")
        said = (root / "log-early").read_text()
        assert codes[1] == 2 and codes[0] != 0 and "exceed the model's" in said, (codes, said)
        total["ended_early"] = 1
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--faults", type=int, default=1, help="faults for each program")
    parser.add_argument("--only", nargs="+", help="only these programs (and what they need)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--processes", action="store_true", help="two processes against one")
    args = parser.parse_args()
    for command in STAGES.values():  # imported once, before the forks
        importlib.import_module(command.split()[0])
    importlib.import_module("plumbing.runs").git_commit()
    with tempfile.TemporaryDirectory(prefix="kill-") as folder:
        root = Path(folder).resolve()
        if args.processes:
            total = two_processes(root, args.only or [*PAIRS, "early"])
        else:
            total = faults(root, args.only or [*STAGES], args.faults, random.Random(args.seed))
    print(json.dumps(total))


if __name__ == "__main__":
    main()
