"""Plumbing: what keeps a run alive. Nothing of the paper is in here.

Device and threads, the run folder (config.json, metrics.jsonl), files that appear whole or not at all, JSON lines that
survive a kill, checkpoints that continue bitwise on a CPU, and one-line errors for a user's mistake.
"""
import functools
import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
# Pitfall: gradients of a well-trained small model underflow, and denormal numbers made steps seven times slower on a CPU.
torch.set_flush_denormal(True)


class UserError(ValueError):
    """A mistake that the user can mend: printed as one line that names the fix, without a traceback; exit code 2."""


def command_line(main):
    """Decorate `main()`: user errors become one line and exit code 2, Ctrl-C says how to continue (exit code 130)."""
    @functools.wraps(main)
    def wrapped():
        try:
            main()
        except UserError as error:
            from tqdm import tqdm
            sys.stdout.flush()
            tqdm.write(f"error: {error}", file=sys.stderr)  # on a line of its own, not behind an open progress bar
            sys.exit(2)
        except KeyboardInterrupt:
            print("\nstopped; the same command continues where this one ended", file=sys.stderr)
            sys.exit(130)
        except OSError as error:  # full disk, read-only folder: whatever was written whole before stays whole
            if error.errno not in (28, 13, 30):
                raise
            where = error.filename or "the output folder"
            print(f"error: cannot write {where}: {error.strerror}; free space or choose another --output, then run the "
                  "same command again: finished work is kept", file=sys.stderr)
            sys.exit(2)
    return wrapped


# ----- device, threads, seeds -----

def start_accelerator(log_with=None, output=None):
    """Accelerator on the GPUs of the machine, or on the CPU in fp32; sets torch's threads (a launcher may set 1).

    Prints nothing. bf16 autocast on a GPU that has it.
    """
    from accelerate import Accelerator
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    on_gpu = torch.cuda.is_available()
    accelerator = Accelerator(cpu=not on_gpu, mixed_precision="bf16" if on_gpu and torch.cuda.is_bf16_supported() else "no",
                              log_with=log_with, project_dir=output)
    share_threads(int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)))
    if log_with:
        accelerator.init_trackers("spct")
    return accelerator


def share_threads(processes_here=1):
    """Pitfall: `accelerate launch` sets OMP_NUM_THREADS=1 on a CPU; give each local process its share of cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(int(os.environ.get("SPCT_THREADS", 0)) or max(1, cores // max(1, processes_here)))


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# ----- files that appear whole or not at all -----

def write_text(path, text):
    """Write a file so that a reader sees the old content or the new one, never half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}); delete it and run the command that makes it again") from None


def append_jsonl(path, rows):
    """Append whole lines in one write, so that a kill can tear at most the last one (`read_rows` repairs it)."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()


def write_rows(path, rows):
    """A whole JSON-lines file at once."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path, repair=False):
    """Rows of a JSON-lines file that this program wrote; `repair` cuts off a last line torn by a kill."""
    path = Path(path)
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[:data.rfind(b"\n") + 1]
    if repair and len(whole) < len(data):
        with open(path, "r+b") as file:
            file.truncate(len(whole))
    try:
        return [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run the command that makes it again") from None


# ----- the order of the data -----

def batch_indices(step, batch_size, count, seed):
    """Indices of update `step`: epochs of shuffled data laid end to end, so that every batch is full."""
    picked, orders = [], {}
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, count)
        if epoch not in orders:
            orders[epoch] = list(range(count))
            random.Random(f"{seed}/{epoch}").shuffle(orders[epoch])
        picked.append(orders[epoch][place])
    return picked


# ----- the run folder -----

# Flags that may differ when a run is continued: they do not change its results.
FREE_FLAGS = {"output", "log_with", "save_every", "overwrite", "meta_rm", "k_meta", "ties", "endpoint", "concurrency",
              "skip_bad"}  # without it a bad item stops the run, so what is there is the same


@functools.cache
def git_commit():
    """Commit of the code, "+" appended if the tree was changed; None outside a git checkout."""
    def git(*words):
        return subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True)
    head = git("rev-parse", "--short", "HEAD")
    return head.stdout.strip() + ("+" if git("status", "--porcelain", "-uno").stdout.strip() else "") \
        if head.returncode == 0 else None


def open_run(folder, args, world_size=1, is_main=True):
    """Create or reopen a run folder; refuses the folder of a run with other arguments and names the difference.

    Returns the folder as a Path. Writes config.json: arguments, versions, commit, device, world size.
    """
    folder = Path(folder)
    settings = {k: v for k, v in vars(args).items() if k not in FREE_FLAGS}
    config = folder / "config.json"
    if getattr(args, "overwrite", False) and is_main and folder.exists():
        if not config.exists() and any(folder.iterdir()):
            raise UserError(f"--overwrite: {folder} is not a run folder (no config.json); choose another --output")
        shutil.rmtree(folder)
    if config.exists():
        before = read_json(config)["args"]
        now = json.loads(json.dumps(settings))
        differ = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        if differ:
            named = ", ".join(f"--{k} {before.get(k)} there, {now.get(k)} here" for k in differ)
            raise UserError(f"{folder} holds another run ({named}); choose another --output, or add --overwrite to discard it")
    elif folder.exists() and any(p for p in folder.iterdir() if not p.name.startswith(".")) and is_main:
        raise UserError(f"{folder} is not empty and not a run folder; choose another --output")
    elif is_main:
        import accelerate
        import transformers
        write_json(config, {
            "args": settings, "endpoint": getattr(args, "endpoint", None), "script": Path(sys.argv[0]).name,
            "commit": git_commit(), "world_size": world_size,
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "versions": {"python": sys.version.split()[0], "torch": torch.__version__,
                         "transformers": transformers.__version__, "accelerate": accelerate.__version__}})
    return folder


# ----- checkpoints -----

def save_model(folder, model, tokenizer):
    """save_pretrained into a new folder that takes the old one's place at once; loads in plain transformers."""
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def save_state(path, **state):
    """Training state (weights, optimizer, step, ...) as one file that replaces the last one at once."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_state(path):
    """The state that `save_state` wrote, or None. Tensors and plain values only: nothing in the file is executed."""
    path = Path(path)
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


# ----- long sampling, in chunks that are files -----

def in_chunks(path, items, make_rows, accelerator, chunk_size, label):
    """Rows of all items in item order, also written to the JSON-lines file `path`; continues after a kill.

    Every chunk is made by one process (chunk number modulo processes) and appears as a whole file, so the result does not
    depend on the number of processes, and a stopped run loses the chunk in the making only.
    make_rows: list of items -> list of JSON rows, each with the item's "id".
    """
    from tqdm import tqdm
    path = Path(path)
    parts = path.with_name(f".{path.stem}.parts")
    chunks = [items[i:i + chunk_size] for i in range(0, len(items), chunk_size)]
    if not path.exists():
        mine = range(accelerator.process_index, len(chunks), accelerator.num_processes)
        for c in tqdm(mine, desc=label, unit="chunk", disable=not accelerator.is_local_main_process):
            part = parts / f"{c:05d}.jsonl"
            if not part.exists():
                write_rows(part, make_rows(chunks[c]))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            write_text(path, "".join((parts / f"{c:05d}.jsonl").read_text(encoding="utf-8") for c in range(len(chunks))))
            shutil.rmtree(parts)
    accelerator.wait_for_everyone()
    return read_rows(path)


def log_metrics(folder, accelerator=None, **metrics):
    """One line of metrics.jsonl; with `--log_with` also one call of the tracker."""
    append_jsonl(Path(folder) / "metrics.jsonl", [metrics])
    if accelerator is not None and accelerator.trackers:
        accelerator.log({k: v for k, v in metrics.items() if isinstance(v, (int, float))}, step=metrics.get("step"))


def trim_metrics(folder, step, accelerator):
    """Drop the metrics of updates that a kill undid (they come after the last saved state)."""
    for path in (Path(folder) / "metrics.jsonl", Path(folder) / "samples.jsonl"):
        if accelerator.is_main_process and path.exists():
            rows = read_rows(path, repair=True)
            write_rows(path, [r for r in rows if r.get("step", 0) <= step])
    accelerator.wait_for_everyone()
