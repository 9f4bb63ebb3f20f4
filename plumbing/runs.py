"""Plumbing: what keeps a run alive. Nothing of the paper is in here.

Device and threads, the run folder (config.json, metrics.jsonl), files that appear whole or not at all, JSON lines that
survive a kill, checkpoints that continue bitwise on a CPU, and one-line errors for a user's mistake.
"""
import argparse
import contextlib
import datetime
import errno
import functools
import gc
import json
import math
import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from tqdm import tqdm

HERE = Path(__file__).resolve().parent.parent  # the repository
# Pitfall: gradients of a well-trained small model underflow, and denormal numbers made steps seven times slower on a CPU.
torch.set_flush_denormal(True)


# What the system says about paths and disks that the user can mend (other OSErrors are bugs and keep their traceback).
DISK = {errno.EPERM, errno.ENOENT, errno.EIO, errno.EACCES, errno.EBUSY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EFBIG,
        errno.ENOSPC, errno.EROFS, errno.ENAMETOOLONG, errno.EDQUOT, errno.ELOOP}


class UserError(ValueError):
    """A mistake that the user can mend: printed as one line that names the fix, without a traceback; exit code 2."""


def one_line(error):
    return " ".join(str(error).split())


def command_line(main):
    """Decorate `main()`: user errors become one line and exit code 2, Ctrl-C says how to continue (exit code 130)."""
    def stop(code, message):
        for bar in list(getattr(tqdm, "_instances", [])):  # a half-drawn progress bar would share the line
            bar.close()
        sys.stdout.flush()
        print(message, file=sys.stderr)
        sys.exit(code)

    @functools.wraps(main)
    def wrapped():
        done = False
        again = "the same command" + " without --overwrite" * any(word.startswith("--ov") for word in sys.argv)
        try:
            main()
            done = True
        except UserError as error:
            stop(2, f"error: {one_line(error)}")
        except KeyboardInterrupt:
            stop(130, f"\nstopped; {again} continues where this one ended")
        except OSError as error:  # full disk, read-only folder: whatever was written whole before stays whole
            if error.errno not in DISK:
                raise
            stop(2, f"error: cannot read or write {error.filename or 'the output folder'}: {error.strerror}; free space "
                    f"and run {again} (finished work is kept), or choose another --output")
        finally:
            end_training(done)
    return wrapped


# Smallest value of the flags that every script names alike.
AT_LEAST = dict.fromkeys(["k", "k_meta", "limit", "test_limit", "batch_size", "micro_batch_size", "n_rft", "save_every",
                          "chunk_size", "steps", "prompts_per_step", "G", "updates_per_rollout", "max_new_tokens"], 1)
AT_LEAST |= dict.fromkeys(["seed", "lr", "temperature", "beta", "clip_eps", "epochs", "general_fraction", "held_out"], 0)


class Help(argparse.HelpFormatter):
    """Help that ends with the flag's default, unless there is none or the text says it."""

    def _get_help_string(self, action):
        none = action.default is None or action.default is False or action.default in ("", argparse.SUPPRESS)
        told = none or "default" in action.help
        return action.help + ("" if told else " [here: %(default)s]")


def read_flags(parser):
    """`parser.parse_args()` whose errors are one line; refuses numbers that no run can use and text that no file can hold."""
    parser.formatter_class = Help
    def error(message):
        raise UserError(f"{message}; --help lists the flags")
    parser.error = error
    args = parser.parse_args()
    for name, value in vars(args).items():
        if isinstance(value, (int, float)):
            if not math.isfinite(value) or value < AT_LEAST.get(name, -math.inf):
                raise UserError(f"--{name} must be at least {AT_LEAST[name]}" if name in AT_LEAST else f"--{name} must be finite")
            if name == "seed" and value >= 2 ** 32:
                raise UserError("--seed must be below 2 ** 32")
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.encode("utf-8", "ignore").decode() != text:
                raise UserError(f"--{name} is not UTF-8; write it in that encoding")
    return args


# ----- device, threads, seeds -----

STARTED = []  # the Accelerator of this program


def start_accelerator(log_with=None, output=None):
    """Accelerator on the GPUs of the machine, or on the CPU in fp32; sets torch's threads (a launcher may set 1).

    Prints nothing. bf16 autocast on a GPU that has it; on a CPU if asked (ACCELERATE_MIXED_PRECISION=bf16, or
    `accelerate launch --mixed_precision bf16`).
    """
    refuse_other_launches()
    from accelerate import Accelerator, InitProcessGroupKwargs
    warnings.filterwarnings("ignore", message=".*(pin_memory|no supported trackers).*")
    device = default_device()
    try:
        accelerator = Accelerator(
            cpu=device == "cpu", mixed_precision="bf16" if in_bf16(device) else "no", log_with=log_with, project_dir=output,
            # Pitfall: a process without a chunk left waits for the others, and one chunk can take longer than the default limit.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=datetime.timedelta(hours=12))])
    except (ValueError, ImportError) as error:
        if not log_with:
            raise
        raise UserError(f"--log_with {log_with}: {error}") from None
    if log_with and not accelerator.log_with:
        raise UserError(f"--log_with {log_with}: that tracker is not installed; install it with pip, or leave the flag out")
    if accelerator.distributed_type not in ("NO", "MULTI_CPU", "MULTI_GPU"):  # a TPU, or another kind of accelerator
        raise UserError(REFUSED.format(accelerator.distributed_type.value, Path(sys.argv[0]).name))
    share_threads(int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)))
    STARTED[:] = [accelerator]
    return accelerator


# What `accelerate launch` sets, by a flag or by the default config that some other project asked for once.
SHARDING = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
            "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism", "ACCELERATE_USE_SAGEMAKER": "SageMaker"}
REFUSED = ("{0} is switched on, by a flag of accelerate launch or by the default config of this machine; here every process "
           "holds the whole model: start with `torchrun --nproc_per_node 1 {1}` (more processes on more GPUs), which reads no "
           "config, or choose plain multi-GPU in `accelerate config`")


def refuse_other_launches():
    """One line instead of a silent or a late failure.

    Pitfall: DeepSpeed's `backward` makes an optimizer step of its own per micro-batch; under FSDP the sampler would read a shard
    of the weights, and ranks that decode different lengths wait for ever.
    """
    for variable, name in SHARDING.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise UserError(REFUSED.format(name, Path(sys.argv[0]).name))
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16"):
        raise UserError(f"--mixed_precision {precision} is not supported (losses are not scaled here, so small gradients would "
                        "vanish); use --mixed_precision bf16 or no, or change the default in `accelerate config`")


def end_training(done):
    """Close the trackers and, if main() is done, leave the group of processes: `command_line` calls it, not main() itself.

    Pitfall: a DDP model that outlives its gloo group waits for the group's thread while it holds Python's lock, which that thread
    may want to free a tensor (pytorch #56297): now and then one of two processes hung after its last line. When main() has
    returned, its models are gone.
    """
    while STARTED:
        accelerator = STARTED.pop()
        if done:
            gc.collect()  # what cycles still hold
            accelerator.end_training()
        else:  # the other processes may still be at work
            for tracker in accelerator.trackers:
                tracker.finish()


def default_device():
    """"cuda" if there is a GPU, unless the launcher was told to use the CPU (`accelerate launch --cpu`)."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return "cuda" if torch.cuda.is_available() and not on_cpu else "cpu"


def peak_gb():
    """Peak memory of this process so far, in GB (2^30 bytes): the GPU's where there is one, else the resident memory."""
    if default_device() == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # not on this system
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)


def in_bf16(device):
    """Whether forward passes on this device are in bf16: on a GPU that has it, and on a CPU if the launcher says so (twice as
    fast as fp32 where the CPU has AVX512-BF16)."""
    # Pitfall: a plain `accelerate launch` says "no" here without being asked, so a GPU does not listen to it.
    if str(device).startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"


def share_threads(processes_here=1):
    """Pitfall: `accelerate launch` sets OMP_NUM_THREADS=1 on a CPU; give each local process its share of cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(int(os.environ.get("SPCT_THREADS", 0)) or max(1, cores // max(1, processes_here)))


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# ----- files that appear whole or not at all -----

@contextlib.contextmanager
def whole(path):
    """A path beside `path` to write a file or a folder to; it takes the place of `path` at once (a folder: in two renames), or
    nothing happened.

    Pitfall: torch and safetensors raise errors of their own on a full disk; here they become OSErrors.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{os.environ.get('RANK', 0)}.{end}") for end in ("part", "old"))
    remove(temporary)
    remove(old)
    try:
        yield temporary
        for file in filter(Path.is_file, temporary.rglob("*") if temporary.is_dir() else [temporary]):
            with open(file, "rb") as written:
                os.fsync(written.fileno())
        if path.is_dir():
            path.rename(old)
        os.replace(temporary, path)
        remove(old)
    except (RuntimeError, SafetensorError) as error:
        raise OSError(errno.EIO, one_line(error)[:200], str(path)) from error
    finally:
        remove(temporary)


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path, text):
    """Write a file so that a reader sees the old content or the new one, never half of it."""
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"{path} is not JSON ({error}); delete it and run the command that makes it again") from None


def append_jsonl(path, rows):
    """Append whole lines in one write, so that a kill can tear at most the last one (`open_run` cuts it off)."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()


def cut_torn_line(path):
    """Cut off a last line that a kill or a full disk tore. Not while another process may be writing to the file."""
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def write_rows(path, rows):
    """A whole JSON-lines file at once."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path, repair=False, fields=()):
    """Rows of a JSON-lines file that this program wrote; `repair` cuts off a last line torn by a kill.

    fields: what every row must hold (a file that the user named may be another one).
    """
    path = Path(path)
    if not path.exists():
        return []
    if repair:
        cut_torn_line(path)
    data, rows = path.read_bytes(), []
    for number, line in enumerate(data[:data.rfind(b"\n") + 1].split(b"\n"), 1):
        if line:
            try:
                rows.append(json.loads(line.decode("utf-8")))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number} is damaged ({error}); delete the file and run the command that makes it "
                                "again") from None
            missing = [f for f in fields if not isinstance(rows[-1], dict) or f not in rows[-1]]
            if missing:
                raise UserError(f"{path}, line {number}: field '{missing[0]}' is missing; is this the file you meant?")
    return rows


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
              "skip_bad"}  # without it a bad item stops the run before anything depends on it, so what is there is the same


@functools.cache
def git_commit():
    """Commit of the code, "+" appended if the tree was changed; "unknown" outside a git checkout, or without git."""
    def git(*words):
        return subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True)
    head = git("rev-parse", "--short", "HEAD") if shutil.which("git") else None
    if head is None or head.returncode:
        return "unknown"
    return head.stdout.strip() + ("+" if git("status", "--porcelain", "-uno").stdout.strip() else "")


def open_run(folder, args, world_size=1, is_main=True):
    """Create or reopen a run folder; refuses the folder of a run with other arguments and names the difference.

    Returns the folder as a Path. Writes config.json: arguments, versions, commit, device, precision, processes.
    """
    folder = Path(folder)
    settings = {k: v for k, v in vars(args).items() if k not in FREE_FLAGS}
    config, before = folder / "config.json", None
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --output")
    if is_main:
        if not config.exists() and folder.exists() and any(not p.name.startswith(".") for p in folder.iterdir()):
            raise UserError(f"{folder} is not empty and not a run folder (no config.json); choose another --output")
        hold(folder)
        for file in folder.glob("*.jsonl"):
            cut_torn_line(file)
    if config.exists():
        with contextlib.suppress(UserError):  # not JSON
            before = read_json(config)
        before = before.get("args") if isinstance(before, dict) else None
        # Pitfall: folders of models have a config.json too, and --overwrite would delete them.
        if not isinstance(before, dict):
            raise UserError(f"{config} is damaged or not a run's; choose another --output, or delete the folder yourself")
    if getattr(args, "overwrite", False) and is_main and before is not None:
        # Pitfall: a kill while files are deleted one by one would leave a folder that is neither this run nor another.
        discarded = folder.resolve().with_name(f".{folder.resolve().name}.discarded")
        remove(discarded)
        folder.rename(discarded)
        remove(discarded)
        hold(folder)
        before = None
    if before is not None:
        now = json.loads(json.dumps(settings))
        differ = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        if differ:
            named = ", ".join(f"--{k} {before.get(k)} there, {now.get(k)} here" for k in differ)
            raise UserError(f"{folder} holds another run ({named}); choose another --output, or add --overwrite to discard it")
    elif is_main:
        import accelerate
        import transformers
        write_json(config, {
            "args": settings, "endpoint": getattr(args, "endpoint", None), "script": Path(sys.argv[0]).name,
            "commit": git_commit(), "processes": world_size, "precision": "bf16" if in_bf16(default_device()) else "fp32",
            "device": torch.cuda.get_device_name() if default_device() == "cuda" else "cpu",
            "versions": {"python": sys.version.split()[0], "torch": torch.__version__,
                         "transformers": transformers.__version__, "accelerate": accelerate.__version__}})
    return folder


HELD = {}  # folder -> open lock file; the system lets go of it when the process ends, however it ends


def hold(folder):
    """Two runs must not write to one folder: raises UserError if a living process holds it (a dead one holds nothing)."""
    try:
        import fcntl
    except ImportError:  # not on this system
        return
    folder.mkdir(parents=True, exist_ok=True)
    if str(folder.resolve()) in HELD:
        HELD.pop(str(folder.resolve())).close()
    file = open(folder / ".lock", "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{folder} is in use by another process; wait until it ends or stop it") from None
    except OSError:  # a file system without locks
        pass
    HELD[str(folder.resolve())] = file


# ----- checkpoints -----

def save_model(folder, model, tokenizer):
    """save_pretrained (safetensors) into a folder that appears whole or not at all; loads in plain transformers."""
    with whole(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def save_state(path, **state):
    """Training state (weights, optimizer, step, ...) as one file that replaces the last one at once."""
    with whole(path) as temporary:
        torch.save(state, temporary)


def load_state(path):
    """The state that `save_state` wrote, or None. Tensors and plain values only: nothing in the file is executed."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True) if Path(path).exists() else None
    except Exception as error:  # torch raises many types here
        raise UserError(f"{path} is damaged ({one_line(error)[:200] or type(error).__name__}); delete it, and the same command "
                        "trains from the start") from None


def check_update(step, loss, norm, batch, output, accelerator):
    """Stop before a loss or gradient that is not finite reaches the weights; its batch (JSON values) is kept to look at."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    rank = accelerator.process_index
    file = Path(output) / (f"bad_batch-{rank}.json" if rank else "bad_batch.json")
    write_json(file, {"step": step, "loss": str(loss), "grad_norm": str(norm), "batch": batch})
    raise UserError(f"step {step}: the loss is {loss} and the gradient's norm {norm}; the batch is in {file}, the last good "
                    f"state is kept in {output}; try a lower --lr with another --output")


# ----- long sampling, in chunks that are files -----

def in_chunks(path, items, make_rows, accelerator, chunk_size, label):
    """Rows of all items in item order, also written to the JSON-lines file `path`; continues after a kill.

    Every chunk is made by one process (chunk number modulo processes) and appears as a whole file, so the result does not
    depend on the number of processes, and a stopped run loses the chunk in the making only.
    make_rows: list of items -> list of JSON rows, each with the item's "id".
    """
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
            with whole(path) as temporary, open(temporary, "wb") as file:
                for c in range(len(chunks)):
                    file.write((parts / f"{c:05d}.jsonl").read_bytes())
    if accelerator.is_main_process and parts.exists():
        shutil.rmtree(parts)
    accelerator.wait_for_everyone()
    return read_rows(path)


def log_metrics(folder, accelerator=None, **metrics):
    """One line of metrics.jsonl, with this process's peak memory so far; with `--log_with` also one call of the tracker."""
    metrics["memory/peak_gb"] = peak_gb()
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
