"""Faults on purpose: every program is killed at random moments, started again with the same command, and compared.

    python tests/kill.py                          # what the test suite runs: one fault of each kind for some programs
    python tests/kill.py --faults 6 --all         # six faults for each program, judge and tokenprob included
    python tests/kill.py --processes              # no faults: two processes against one, one process that fails early

Four faults: SIGKILL just before a random file operation, SIGKILL at a random time, SIGINT at a random time, and a full disk
(from a random file operation on, every write raises "no space left on device"). After each fault every file in sight must be
whole; after the last one the finished run must hold the same bytes as an uninterrupted run (times in metrics.jsonl aside).
The programs run in forks of this process with their own command lines; a fork that opens an internet connection fails.
Ends with one line of JSON: the faults by kind, files and bytes compared, bytes that differ.
"""
import argparse
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

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.update(SPCT_THREADS="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", TQDM_MININTERVAL="60")
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):  # nothing but the audit hook keeps us offline
    os.environ.pop(name, None)

import safetensors.torch  # noqa: E402
import torch  # noqa: E402

from plumbing import runs  # noqa: E402

BASE = f"--model {ROOT}/toy_world/medium"
TRAIN = "--limit 6 --epochs 1 --batch_size 4 --micro_batch_size 2 --save_every 1"
# program: command line at its smallest; {whole} is the folder of the uninterrupted runs of the programs before it
STAGES = {
    "rft": f"spct_rft {BASE} {TRAIN} --n_rft 2 --general_fraction 0.4",
    "rl": f"spct_rl {BASE} --limit 6 --steps 3 --prompts_per_step 2 --G 2 --micro_batch_size 2 --save_every 1 "
          f"--easy_filter {ROOT}/toy_world/medium",
    "meta_rm": f"meta_rm {BASE} {TRAIN} --trajectories {{whole}}/rft/trajectories.jsonl --grm {ROOT}/toy_world/medium --n_rft 1 "
               "--held_out 0.2",
    "voting": f"infer_scale {BASE} --limit 6 --k 2 --chunk_size 2 --meta_rm {{whole}}/meta_rm/model",
    "eval": f"eval {BASE} --limit 6 --chunk_size 2",
    "grm": f"grm {BASE} --data toy --limit 4",
    "cloud": f"baselines cloud {BASE} {TRAIN} --test_limit 4 --k 2 --general_fraction 0.4",
    "btrm": f"baselines btrm {BASE} {TRAIN} --test_limit 4",
    "pairrm": f"baselines pairrm {BASE} {TRAIN} --test_limit 4",
    "tables": "eval --runs {whole}/eval {whole}/voting",
    "judge": f"baselines judge {BASE} --limit 6 --test_limit 4 --k 2 --general_fraction 0.4 "
             "--rft=--n_rft,2,--epochs,1,--batch_size,4,--general_fraction,0.4 "
             "--rl=--steps,2,--prompts_per_step,2,--G,2,--micro_batch_size,2,--limit,6",
    "tokenprob": "baselines tokenprob --samples {whole}/judge/voting",
}
SLOW = ("pairrm", "tables", "judge", "tokenprob")  # left to --all
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}


def guard(folder, kind, at, counter):
    """Audit hook: counts the file operations that change `folder`, does what `kind` says at number `at`, blocks the network."""
    seen = 0

    def hook(event, args):
        nonlocal seen
        if event == "socket.getaddrinfo" and args[0] not in (None, "localhost", "127.0.0.1", socket.gethostname()) or \
                event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in ("127.0.0.1", "::1"):
            os.write(2, f"NETWORK {event} {args}\n".encode())
            os._exit(99)
        change = event in CHANGES or event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not change or not (str(args[0]).startswith(str(folder)) or event in ("os.remove", "os.rmdir") and args[-1] != -1):
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
    """The program in a fork, in a process group of its own; returns its process id. rank: of two processes (0 or 1)."""
    pid = os.fork()
    if pid:
        return pid
    try:
        if rank is not None:  # what torchrun sets
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", ACCELERATE_USE_CPU="1",
                              MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        if kind == "sgd":  # AdamW blows up rounding differences of tiny gradients
            torch.optim.AdamW = lambda parameters, lr, **_: torch.optim.SGD(parameters, lr)
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with open(log, "ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(ROOT)
        program, *flags = words.split()
        sys.argv = [f"{program}.py", *[f.replace(",", " ") if f.startswith(("--rft=", "--rl=")) else f for f in flags],
                    "--output", str(folder)]
        sys.addaudithook(guard(folder, kind, at, counter))
        code = 0
        try:
            importlib.import_module(program).main()
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            traceback.print_exc()
            code = 70
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def ended(pid, seconds=1800):
    """Exit code (negative: the signal) within `seconds`; a program that hangs is an error."""
    deadline = time.time() + seconds
    while time.time() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    raise AssertionError(f"no end after {seconds} s")


def files(folder):
    return {p.relative_to(folder): p for p in sorted(folder.rglob("*"))
            if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)}


def assert_whole(folder):
    """Every file that can be seen is whole; only a file that is appended to may end in half a line."""
    for path in files(folder).values():
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".jsonl":
            lines = path.read_bytes().split(b"\n")
            assert not lines[-1] or path.name in ("metrics.jsonl", "samples.jsonl", "judgments.jsonl"), path
            [json.loads(line) for line in lines[:-1]]
        elif path.suffix == ".safetensors":
            safetensors.safe_open(path, "pt")
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)


def content(path):
    """Bytes to compare. Times differ, and a kill just after sampling can lose the line that says how long it took."""
    if path.name == "metrics.jsonl":
        rows = [r for r in map(json.loads, path.read_text(encoding="utf-8").splitlines()) if "stage" not in r]
        return json.dumps([{k: v for k, v in r.items() if k != "seconds" and not k.startswith(("time/", "memory/"))} for r in rows]).encode()
    if path.suffix == ".pt":  # the values; pickle's bytes also depend on which of them are one object in memory
        return "".join(plain_values(torch.load(path, weights_only=True))).encode()
    return path.read_bytes()


def plain_values(value):
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype}{tuple(value.shape)}{value.contiguous().view(-1).view(torch.uint8).numpy().tobytes().hex()}"
    elif isinstance(value, dict):
        for key in value:
            yield f"{key!r}:"
            yield from plain_values(value[key])
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from plain_values(part)
    else:
        yield repr(value)


def compare(whole, killed, total):
    a, b = ({name: content(path) for name, path in files(folder).items()} for folder in (whole, killed))
    a, b = ({name: text for name, text in found.items() if text != b"[]"} for found in (a, b))
    different = sorted(str(n) for n in a.keys() | b.keys() if a.get(n) != b.get(n))
    assert not different, f"{killed} differs from the uninterrupted run in {different}"
    total["files_compared"] += len(a)
    total["bytes_compared"] += sum(map(len, a.values()))


# ----- two processes against one -----

PAIRS = {  # fewer chunks than processes, chunks of unequal size, one item
    "meta_rm": STAGES["meta_rm"].replace("--grm", "--lr 0.1 --grm"), "btrm": STAGES["btrm"] + " --lr 0.1",
    "cloud": STAGES["cloud"] + " --lr 0.1", "voting": f"infer_scale {BASE} --limit 7 --k 2 --chunk_size 2",
    "eval": f"eval {BASE} --limit 5 --chunk_size 4", "one item": f"infer_scale {BASE} --limit 1 --k 2",
    "rft": STAGES["rft"] + " --lr 0.1", "rl": STAGES["rl"] + " --lr 0.1"}


def two_processes(root, only, total):
    """Same samples by id (the same bytes) and weights within 1e-5 of those of one process, after SGD steps of 0.1."""
    for name, command in PAIRS.items():
        if only and name not in only:
            continue
        one, two, log = (root / f"{kind}-{name.replace(' ', '-')}" for kind in ("one", "two", "log"))
        words = command.format(whole=root / "whole")
        if "{whole}" in command and not (root / "whole" / "rft").exists():
            assert ended(start(STAGES["rft"], root / "whole" / "rft", log)) == 0, log.read_text()[-3000:]
        assert ended(start(words, one, log, "sgd")) == 0, log.read_text()[-3000:]
        assert together(words, two, log, "sgd") == [0, 0], log.read_text()[-3000:]
        assert json.loads((two / "config.json").read_text())["processes"] == 2
        assert files(one).keys() == files(two).keys()
        for path in files(one):
            if path.suffix == ".safetensors":
                a, b = (safetensors.torch.load_file(folder / path) for folder in (one, two))
                worst = max((a[k] - b[k]).abs().max().item() for k in a)
                assert worst < 1e-5, f"{name}: {path} differs by {worst}"
                total["weights_compared"] += 1
            elif path.suffix == ".jsonl" and path.name != "metrics.jsonl":
                a, b = ([json.loads(line) for line in (folder / path).read_text(encoding="utf-8").splitlines()] for folder in (one, two))
                assert [r["id"] for r in a] == [r["id"] for r in b] and a
                if name == "rl" and path.name == "samples.jsonl":  # not by item, but the first group of each step
                    continue
                assert len({r["id"] for r in a}) == len(a), f"{name}: {path}"
                if name not in ("btrm", "cloud"):  # whose samples are numbers of the trained model
                    assert a == b, f"{name}: {path}"
                total["samples_compared"] += len(a)
        print(f"{name}: two processes equal one", file=sys.stderr, flush=True)
    if not only or "early" in only:  # one of two processes meets an item that is too long for the model: the other one must not wait for ever
        items = [{"id": str(i), "prompt": "How ?", "responses": ["a", "word " * 3000 * (i == 1) + "b"]} for i in range(2)]
        (root / "items.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
        words = f"infer_scale {BASE} --data {root}/items.jsonl --k 1 --chunk_size 1"
        codes = together(words, root / "early", root / "log-early")
        assert codes[1] == 2 and codes[0] != 0 and "exceed the model's" in (root / "log-early").read_text(), codes
        total["ended_early"] = 1


def together(words, folder, log, kind=""):
    """Exit codes of both processes of one run. When one has failed, the other gets a minute (torchrun would end it at once)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [start(words, folder, log, kind, rank=rank, port=port) for rank in (0, 1)]
    return [ended(pid) for pid in running]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--faults", type=int, default=2, help="faults for each program")
    parser.add_argument("--all", action="store_true", help="the slow programs too")
    parser.add_argument("--only", nargs="+", help="only these programs (and what they need)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--processes", action="store_true", help="two processes against one instead of faults")
    parser.add_argument("--keep", help="folder to work in; default one that is deleted at the end")
    args = parser.parse_args()
    rng, root = random.Random(args.seed), Path(args.keep or tempfile.mkdtemp(prefix="kill-")).resolve()
    root.mkdir(parents=True, exist_ok=True)
    total = {"faults": 0, "kill": 0, "kill at a time": 0, "interrupt": 0, "full disk": 0, "programs": {},
             "files_compared": 0, "bytes_compared": 0, "bytes_different": 0}
    for word in ("spct_rft", "spct_rl", "meta_rm", "infer_scale", "eval", "grm", "baselines"):  # once, before the forks
        importlib.import_module(word)
    runs.git_commit()
    if args.processes:
        total = {"samples_compared": 0, "weights_compared": 0}
        two_processes(root, args.only, total)
        print(json.dumps(total))
        return
    kinds = ["kill", "full disk", "kill at a time", "interrupt", "kill", "kill at a time"]
    turn = 0
    for name, command in STAGES.items():
        if name in SLOW and not args.all and name not in (args.only or ()):
            continue
        words, whole, killed, log = command.format(whole=root / "whole"), root / "whole" / name, root / "killed" / name, root / f"{name}.log"
        whole.parent.mkdir(exist_ok=True)
        counter, began = os.open(root / "operations", os.O_RDWR | os.O_CREAT | os.O_TRUNC), time.time()
        code = ended(start(words, whole, log, counter=counter))
        seconds, operations = time.time() - began, int(os.pread(counter, 9, 0) or 1)
        assert code == 0, f"{name}: exit code {code}, {log.read_text()[-3000:]}"
        assert_whole(whole)
        faults, latest = 0, seconds  # the last moment of a fault that comes at a time
        while faults < args.faults * (args.only is None or name in args.only):
            kind = kinds[turn % len(kinds)]
            with open(log, "a") as file:
                file.write(f"\n==== {kind}\n")
            at = rng.randint(1, operations) if kind in ("kill", "full disk") else 0
            size = log.stat().st_size
            pid = start(words, killed, log, kind, at)
            if not at:
                time.sleep(rng.uniform(0.1, latest))
                try:
                    os.killpg(pid, signal.SIGINT if kind == "interrupt" else signal.SIGKILL)
                except ProcessLookupError:
                    pass
            code, said = ended(pid), log.read_bytes()[size:].decode(errors="replace")
            if code == 0:  # done before the fault came: compare, and try the same fault earlier in a fresh folder
                compare(whole, killed, total)
                shutil.rmtree(killed)
                latest *= 0.7
                continue
            turn += 1
            expected = {"kill": -9, "kill at a time": -9, "interrupt": 130, "full disk": 2}[kind]
            assert code == expected and "Traceback" not in said, f"{name}, {kind}: exit code {code}\n{said[-3000:]}"
            if kind == "interrupt":
                assert "the same command continues" in said, said
            if kind == "full disk":
                assert sum(line.startswith("error: ") for line in said.splitlines()) == 1 and "free space" in said, said
            if killed.exists():
                assert_whole(killed)
            faults += 1
            total["faults"] += 1
            total[kind] += 1
            total["programs"][name] = total["programs"].get(name, 0) + 1
        if faults:
            code = ended(start(words, killed, log))
            assert code == 0, f"{name}, continued: exit code {code}, {log.read_text()[-3000:]}"
            compare(whole, killed, total)
        print(f"{name}: {faults} faults, {operations} file operations, {seconds:.1f} s uninterrupted", file=sys.stderr, flush=True)
    if not args.keep:
        shutil.rmtree(root)
    print(json.dumps(total))


if __name__ == "__main__":
    main()
