"""What keeps a run alive. Nothing of the paper is in here.

Launch (device, precision, processes), the run folder (config.json, metrics.jsonl, state.pt,
model/), files that appear whole or not at all, and one-line errors for a user's mistake.
"""
import argparse
import contextlib
import dataclasses
import datetime
import functools
import gc
import hashlib
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent  # of the repository
# Pitfall: gradients of a well-trained small model underflow, and denormal numbers made steps seven
# times slower on a CPU.
torch.set_flush_denormal(True)


class UserError(ValueError):
    """A mistake that the user can mend: one line that names the fix, no traceback, exit code 2."""


def one_line(error):
    return " ".join(str(error).split())


def first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


STOPPED = "\nstopped; the same command (without --overwrite) continues where it ended"


def on_ctrl_c(handler):
    """Set what Ctrl-C does, if it still raises KeyboardInterrupt (nohup, for example, ignores it).

    Returns whether it was set.
    """
    mine = (threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    if mine:
        signal.signal(signal.SIGINT, handler)
    return mine


def stop_at_once(*_):
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(130)


def command_line(main):
    """Decorate `main()`: a user's mistake and a disk's error end in one line, Ctrl-C in another.

    Pitfall: Ctrl-C after the work is done, while the group of processes is left or Python shuts
    down, raises inside code that is not ours. So when main() has returned, it ends the program.
    """
    def stop(code, message):
        on_ctrl_c(signal.SIG_IGN)  # a second one must not cut the line
        for bar in list(getattr(tqdm, "_instances", [])):  # a half-drawn bar would share the line
            bar.close()
        sys.stdout.flush()
        print(message, file=sys.stderr)
        sys.exit(code)

    @functools.wraps(main)
    def wrapped():
        done = changed = False
        try:
            try:
                main()
                done = True
                sys.stdout.flush()
                changed = on_ctrl_c(stop_at_once)
            finally:
                end_training(done)
        except UserError as error:
            stop(2, f"error: {one_line(error)}")
        except KeyboardInterrupt:
            stop(130, STOPPED)
        except OSError as error:  # full disk, read-only folder, ...; without an errno it is a bug
            if error.errno is None:
                raise
            stop(2, f"error: cannot read or write {error.filename or 'the output folder'} "
                    f"({error.strerror}); mend it and run the same command (without --overwrite): "
                    "finished work is kept")
        if changed and main.__module__ != "__main__":  # somebody's Python goes on
            signal.signal(signal.SIGINT, signal.default_int_handler)
    return wrapped


# Smallest value of the flags that scripts name alike.
AT_LEAST = dict.fromkeys(["k", "k_meta", "limit", "batch_size", "micro_batch_size", "n_rft",
                          "steps", "save_every", "chunk_size", "prompts_per_step", "G",
                          "max_new_tokens", "updates_per_rollout", "n"], 1)
AT_LEAST |= dict.fromkeys(["seed", "lr", "temperature", "beta", "clip_eps", "epochs", "held_out",
                           "general_fraction"], 0)


class Help(argparse.HelpFormatter):
    """Help that ends with the flag's default, unless there is none or the text says it."""

    def _get_help_string(self, action):
        none = action.default in (None, False, "", argparse.SUPPRESS)
        told = none or "default" in action.help
        return action.help + ("" if told else " [here: %(default)s]")


def read_flags(parser):
    """`parser.parse_args()` whose errors are one line; refuses numbers that no run can use."""
    def error(message):
        raise UserError(f"{message}; --help lists the flags")
    parser.formatter_class, parser.error = Help, error
    args = parser.parse_args()
    for name, value in vars(args).items():
        if isinstance(value, (int, float)):
            if not math.isfinite(value):
                raise UserError(f"--{name} must be finite")
            if value < AT_LEAST.get(name, -math.inf):
                raise UserError(f"--{name} must be at least {AT_LEAST[name]}")
            if name == "seed" and value >= 2 ** 32:
                raise UserError("--seed must be below 2 ** 32")
    return args


def add_run_flags(parser, save_every):
    """The flags that every training script shares."""
    parser.add_argument("--save_every", type=int, default=save_every,
                        help="updates between saves of the training state")
    parser.add_argument("--log_with", help="tracker of accelerate: trackio, wandb, tensorboard ...")
    parser.add_argument("--overwrite", action="store_true", help="discard the run in --output")


# ----- launch: device, precision, processes -----

# What `accelerate launch` sets, by a flag or by the default config that another project asked for.
SHARDING = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
            "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
            "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor or context parallelism",
            "ACCELERATE_USE_SAGEMAKER": "SageMaker"}
REFUSED = ("{0} is switched on, by a flag of accelerate launch or by the default config of this "
           "machine; here every process holds the whole model: start with "
           "`torchrun --nproc_per_node 1 {1}` (more processes on more GPUs), which reads no "
           "config, or choose plain multi-GPU in `accelerate config`")
STARTED = []  # the Accelerator of this program


def refuse_other_launches():
    """One line instead of a silent or a late failure.

    Pitfall: DeepSpeed's `backward` makes an optimizer step of its own per micro-batch. Under FSDP
    the sampler would read a shard of the weights, and ranks that decode different lengths wait for
    ever.
    """
    for variable, name in SHARDING.items():
        if os.environ.get(variable, "").lower() in ("1", "true"):
            raise UserError(REFUSED.format(name, Path(sys.argv[0]).name))
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "bf16"):
        raise UserError(f"--mixed_precision {precision} is not supported (losses are not scaled "
                        "here, so small gradients would vanish); use --mixed_precision bf16 or no, "
                        "or change the default in `accelerate config`")


def start_accelerator(args=None):
    """Accelerator on the GPUs of the machine, or on the CPU; sets torch's threads.

    bf16 autocast on a GPU that has it; on a CPU if the launcher says --mixed_precision bf16.
    args: flags of a script; their `log_with` names a tracker, `batch_size` is checked.
    """
    refuse_other_launches()
    from accelerate import Accelerator, InitProcessGroupKwargs
    warnings.filterwarnings("ignore", message=".*(pin_memory|no supported trackers).*")
    device, log_with = default_device(), getattr(args, "log_with", None)
    # Pitfall: a process without a chunk left waits for the others, longer than the default limit.
    patience = InitProcessGroupKwargs(timeout=datetime.timedelta(hours=12))
    try:
        accelerator = Accelerator(
            cpu=device == "cpu", mixed_precision="bf16" if in_bf16(device) else "no",
            log_with=log_with, project_dir=getattr(args, "output", None),
            kwargs_handlers=[patience])
    except (ValueError, ImportError) as error:
        if not log_with:
            raise
        raise UserError(f"--log_with {log_with}: {error}") from None
    if log_with and not accelerator.log_with:
        raise UserError(f"--log_with {log_with}: that tracker is not installed; install it with "
                        "pip, or leave the flag out")
    if accelerator.distributed_type not in ("NO", "MULTI_CPU", "MULTI_GPU"):  # a TPU, for example
        raise UserError(REFUSED.format(accelerator.distributed_type.value, Path(sys.argv[0]).name))
    share_threads(int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes)))
    STARTED[:] = [accelerator]
    for flag in ("batch_size", "prompts_per_step"):
        if getattr(args, flag, 0) % accelerator.num_processes:
            raise UserError(f"--{flag} {getattr(args, flag)} does not divide by "
                            f"{accelerator.num_processes} processes; change it")
    return accelerator


def end_training(done):
    """Close the trackers and, if main() is done, leave the group of processes.

    Pitfall: a DDP model that outlives its gloo group waits for the group's thread while it holds
    Python's lock, which that thread may want (pytorch #56297): now and then one of two processes
    hung after its last line. When main() has returned, its models are gone; so `command_line` calls
    this, not main() itself.
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
    """"cuda" if there is a GPU, unless the launcher says CPU (`accelerate launch --cpu`)."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return "cuda" if torch.cuda.is_available() and not on_cpu else "cpu"


def in_bf16(device):
    """Whether forward passes on this device are in bf16."""
    # Pitfall: a plain `accelerate launch` says "no" without being asked, so a GPU does not listen.
    if str(device).startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"


def peak_gb():
    """Peak memory of this process so far, GB (2^30 bytes): the GPU's, or the resident memory."""
    if default_device() == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        import resource
    except ImportError:  # not on this system
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform != "darwin" else 2**30)


def share_threads(processes_here=1):
    """Give each local process its share of the cores (SPCT_THREADS overrides it).

    Pitfall: `accelerate launch` sets OMP_NUM_THREADS=1 on a CPU.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    mine = max(1, cores // max(1, processes_here))
    torch.set_num_threads(int(os.environ.get("SPCT_THREADS", 0)) or mine)


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


# ----- files that appear whole or not at all -----

@contextlib.contextmanager
def whole(path):
    """A path beside `path` to write to; it takes the place of `path` at the end, or never."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.environ.get('RANK', 0)}.part")
    remove(temporary)
    try:
        yield temporary
        if path.is_dir():
            if not temporary.is_dir():
                raise UserError(f"{path} is a folder; name a file that is to be written")
            remove(path)
        os.replace(temporary, path)
    except (RuntimeError, SafetensorError) as error:  # what they call a full disk
        raise OSError(5, one_line(error)[:200], str(path)) from error
    finally:
        remove(temporary)


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path, text):
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def strict_json(value, **options):
    """JSON that every reader accepts: null for NaN and infinity, for which JSON has no word."""
    def finite(value):
        if isinstance(value, dict):
            return {k: finite(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(v) for v in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, **options)
    except ValueError:
        return json.dumps(finite(value), ensure_ascii=False, **options)


def write_json(path, value):
    write_text(path, strict_json(value, indent=1) + "\n")


def read_json(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"{path} is not JSON ({error}); delete it and run the command that makes "
                        "it again") from None


def json_lines(rows):
    return "".join(strict_json(row) + "\n" for row in rows)


def write_rows(path, rows):
    """A whole JSON-lines file at once."""
    write_text(path, json_lines(rows))


def append_jsonl(path, rows):
    """Append lines in one write, so that a kill can tear at most the last (`open_run` cuts it)."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json_lines(rows))


def cut_torn_line(path):
    """Cut off a last line that a kill or a full disk tore."""
    with open(path, "rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


def read_rows(path, fields=()):
    """Rows of a JSON-lines file that a program here wrote; [] if there is none.

    fields: what every row must hold (a file that the user named may be another one).
    """
    path = Path(path)
    if not path.exists():
        return []
    data, rows = path.read_bytes(), []
    for number, line in enumerate(data[:data.rfind(b"\n") + 1].split(b"\n"), 1):
        if not line:
            continue
        try:
            rows.append(json.loads(line.decode("utf-8")))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number} is damaged ({error}); delete the file and run "
                            "the command that makes it again") from None
        missing = [f for f in fields if not isinstance(rows[-1], dict) or f not in rows[-1]]
        if missing:
            raise UserError(f"{path}, line {number}: field '{missing[0]}' is missing; is this the "
                            "file you meant?")
    return rows


# ----- the run folder -----

# Flags that may differ when a run is continued: they do not change its results.
FREE_FLAGS = {"output", "log_with", "save_every", "overwrite", "meta_rm", "endpoint", "concurrency",
              "skip_bad"}


@functools.cache
def git_commit():
    """Commit of the code, "+" appended if the tree was changed; "unknown" where git cannot say."""
    def git(*words):
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    head = git("rev-parse", "--short", "HEAD") if shutil.which("git") else None
    if head is None or head.returncode:
        return "unknown"
    changed = git("status", "--porcelain", "-uno").stdout.strip()
    return head.stdout.strip() + "+" * bool(changed)


# Flags that name what a run is made from: weights, and files beside its items.
MODEL_FLAGS = ("model", "sampler", "grm", "easy_filter")
FILE_FLAGS = ("rft_judgments", "general_data", "samples")


def content(path, blocks=256):
    """Short digest of a file, or of what a model folder holds (weights, config, tokenizer).

    A file of more than 256 blocks of 1 MiB is told by its size and by so many, spread evenly over
    it: a training step moves all weights, so it shows in any of them.
    """
    path, digest = Path(path), hashlib.sha256()
    parts = (".safetensors", ".json", ".jsonl", ".jinja", ".txt", ".model")
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in parts)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with open(file, "rb") as data:
            for start in range(0, size, max(2**20, size // blocks)):
                data.seek(start)
                digest.update(data.read(2**20))
    return digest.hexdigest()[:12]


def hub_file(name, file):
    """Path of one small file of a model: in its folder, or from the hub's cache; None without."""
    path = Path(name)
    if path.exists():
        path = (path if path.is_dir() else path.parent) / file
        return path if path.is_file() else None
    if path.parts[:1] == ("runs",) or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        return None
    from transformers.utils import cached_file
    try:
        return Path(cached_file(name, file))
    except Exception:  # no such file, no network, no right to it: loading will tell
        return None


def made_from(args, items=None):
    """{"items": digest, flag: digest of what it names}: what a run is made from, by its content.

    items: examples with all that is judged or graded: prompts, responses, rewards, references.
    A model of the hub is told by its commit; a served one cannot be told.
    """
    found = {}
    if items is not None:
        digest = hashlib.sha256()
        for item in items:
            fields = {name: value for name, value in vars(item).items() if name != "extra"}
            digest.update(json.dumps(fields).encode())
        found["items"] = digest.hexdigest()[:12]
    for flag in MODEL_FLAGS + FILE_FLAGS:
        name = getattr(args, flag, None)
        path = Path(name or "/none").resolve()
        if name and path.exists():
            found[flag] = content(path)
        elif name and flag in MODEL_FLAGS and name != getattr(args, "served_model", None):
            config = hub_file(name, "config.json")  # .../snapshots/<commit>/config.json
            found |= {flag: config.parent.name} if config else {}
    return found


def changes(before, now, args):
    """What is not as it was, in words. What either does not know is not compared."""
    words = []
    for name in (n for n in now if before.get(n, now[n]) != now[n]):
        named = dict.fromkeys(f"--{flag} {getattr(args, flag)}" for flag in (
            ("data", "test_data") if name == "items" else (name,)) if hasattr(args, flag))
        what = "the items" if name == "items" else "the weights" if name in MODEL_FLAGS else ""
        words.append(f"{what}{' of ' * bool(what and named)}{' and '.join(named)} "
                     f"{'have' if what else 'has'} changed since")
    return words


GROWN = {}  # folder -> config.json of a longer run, written with the first state that it saves


def open_run(folder, args, accelerator=None, items=None, may_grow=()):
    """Create or reopen a run folder; refuses that of another run and names the difference.

    Another run is one with other flags, and one with other weights or items under the same names.
    The same weights under another name are the same: a folder may be moved.
    may_grow: flags that may have a larger value than before.
    Returns the folder as a Path. Writes config.json: arguments, what the run is made from,
    versions, commit, device, precision, processes.
    """
    first = accelerator.main_process_first() if accelerator else contextlib.nullcontext()
    with first:
        return _open_run(Path(folder), args, accelerator, made_from(args, items), may_grow)


def _open_run(folder, args, accelerator, content_now, may_grow):
    is_main = accelerator is None or accelerator.is_main_process
    config, before = folder / "config.json", None
    GROWN.pop(folder, None)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; choose another --output")
    if config.exists():
        with contextlib.suppress(UserError):  # not JSON
            before = read_json(config)
        # Pitfall: folders of models have a config.json too, and --overwrite would delete them.
        if not isinstance(before, dict) or not isinstance(before.get("args"), dict):
            raise UserError(f"{config} is damaged or not a run's; choose another --output, or "
                            "delete the folder yourself")
    elif is_main and folder.exists() and any(f.name[0] != "." for f in folder.iterdir()):
        raise UserError(f"{folder} is not empty and not a run folder (no config.json); choose "
                        "another --output")
    if is_main:
        hold(folder)
        if getattr(args, "overwrite", False) and before is not None:
            for file in folder.iterdir():
                if file not in (config, folder / ".lock"):
                    remove(file)
            config.unlink()  # last, so that the same command goes on after a kill
            before = None
        if {file.name for file in folder.iterdir()} <= {config.name, ".lock"}:
            before = None  # it stopped before it made anything, so there is nothing to mix with
        for file in folder.glob("*.jsonl"):
            cut_torn_line(file)
    now = {k: below_here(v) for k, v in vars(args).items() if k not in FREE_FLAGS}
    if before is not None:
        now, then, made = json.loads(json.dumps(now)), before["args"], before.get("made_from", {})
        moved = {k for k in MODEL_FLAGS + FILE_FLAGS if k in made and made[k] == content_now.get(k)}
        changed = sorted(k for k in (then.keys() | now.keys()) - moved if then.get(k) != now.get(k))
        differ = [f"--{k} {str(then.get(k))[:200]} there, {str(now.get(k))[:200]} here"
                  for k in changed]
        other = changes(made, content_now, args)
        differ += other
        if differ and not other and all(k in may_grow and now[k] > then[k] for k in changed):
            trained = (folder / "state.pt").exists()
            if is_main and trained:
                print(f"{folder}: {', '.join(differ)}; it is trained on from its last saved step, "
                      "by the new learning-rate schedule: not the result of one run of that length")
                before.setdefault("continued_from", []).append({k: then[k] for k in changed})
            GROWN[folder] = {**before, "args": now}
        elif differ:
            raise UserError(f"{folder} holds another run ({', '.join(differ)}); choose another "
                            "--output, or add --overwrite to discard it")
    elif is_main:
        import accelerate
        import transformers
        device = default_device()
        write_json(config, {
            "args": now, "made_from": content_now, "endpoint": getattr(args, "endpoint", None),
            "script": Path(sys.argv[0]).name, "commit": git_commit(),
            "processes": accelerator.num_processes if accelerator else 1,
            "precision": "bf16" if in_bf16(device) else "fp32",
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "versions": {"python": sys.version.split()[0], "torch": torch.__version__,
                         "transformers": transformers.__version__,
                         "accelerate": accelerate.__version__}})
    return folder


def below_here(value):
    """A flag's value for config.json; a path below the working folder without that folder."""
    path = Path(value) if isinstance(value, str) else None
    inside = path and path.is_absolute() and path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd())) if inside else value


HELD = {}  # folder -> open lock file; the system lets go of it when the process ends


def hold(folder):
    """Raises UserError if another living process holds the folder: two must not write to it."""
    try:
        import fcntl
    except ImportError:  # not on this system
        return
    folder.mkdir(parents=True, exist_ok=True)
    name = str(folder.resolve())
    if name in HELD:
        HELD.pop(name).close()
    HELD[name] = open(folder / ".lock", "a+")
    try:
        fcntl.flock(HELD[name], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{folder} is in use by another process; wait until it ends or stop it"
                        ) from None
    except OSError:  # a file system without locks
        pass


def log_metrics(folder, accelerator=None, **metrics):
    """One line of metrics.jsonl, with this process's peak memory so far; also to the tracker."""
    metrics["memory/peak_gb"] = peak_gb()
    append_jsonl(Path(folder) / "metrics.jsonl", [metrics])
    if accelerator is not None and accelerator.trackers:
        numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
        accelerator.log(numbers, step=metrics.get("step"))


# ----- training: what every stage repeats -----

# The rates by default are for the toy's judges of at most 2 million parameters.
TOY_RATE, TOY_SIZE = 1e-4, 20_000_000


class Run:
    """A stage's folder and its loop's housekeeping: resume, micro-batches, update, log, save.

        run = start_run(args, accelerator)
        model, optimizer, step = run.prepare(model, optimizer, steps, "RFT")
        while step < steps:
            for part, sync in run.parts(model, run.mine(batch), args.micro_batch_size):
                with sync: ... accelerator.backward(...)
            norm = run.update(model, lr, loss, batch)
            step = run.log(loss=..., ...)
        run.finish(tokenizer)
    """
    def __init__(self, folder, args, accelerator):
        self.folder, self.args, self.accelerator, self.step = folder, args, accelerator, 0

    def prepare(self, model, optimizer, steps, label, inner=None):
        """(model, optimizer, step) ready to train, with the last saved state if there is one.

        inner: the language model inside `model`, whose weights are saved (default: `model`).
        """
        self.model, self.steps = inner or model, steps
        size = sum(p.numel() for p in self.model.parameters())
        if self.args.lr >= TOY_RATE and size > TOY_SIZE:
            self.accelerator.print(
                f"warning: --lr {self.args.lr:g} is a rate for the toy, and this model has "
                f"{size / 1e6:,.0f} million parameters; --help names the paper's rate")
        state = load_state(self.folder / "state.pt")
        if state:
            self.model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
        model, self.optimizer = self.accelerator.prepare(model, optimizer)
        if self.accelerator.is_main_process:  # what a kill undid: it comes after the saved state
            for path in (self.folder / "metrics.jsonl", self.folder / "samples.jsonl"):
                if path.exists():
                    kept = [r for r in read_rows(path) if r.get("step", 0) <= self.step]
                    write_rows(path, kept)
        self.accelerator.wait_for_everyone()
        self.bar = tqdm(total=steps, initial=self.step, desc=label, unit="update",
                        disable=not self.accelerator.is_local_main_process)
        return model, self.optimizer, self.step

    def seed(self):
        """The seed of this update, the same on all processes."""
        return self.args.seed * 1_000_003 + self.step

    def mine(self, batch):
        """This process's share of a batch that all processes know."""
        return batch[self.accelerator.process_index::self.accelerator.num_processes]

    def parts(self, model, rows, size):
        """(part, context) of each micro-batch; only in the last context does DDP communicate."""
        starts = range(0, len(rows), size)
        for start in starts:
            last = start == starts[-1]
            yield rows[start:start + size], (
                contextlib.nullcontext() if last else self.accelerator.no_sync(model))

    def update(self, model, lr, loss, batch):
        """One optimizer step; returns the gradient's norm before it was clipped to 1.0.

        A loss or gradient that is not finite never reaches the weights: the run stops, and `batch`
        (JSON values) is kept to look at.
        """
        norm = float(self.accelerator.clip_grad_norm_(model.parameters(), 1.0))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            rank = self.accelerator.process_index
            file = self.folder / (f"bad_batch-{rank}.json" if rank else "bad_batch.json")
            write_json(file, {"step": self.step, "loss": str(loss), "grad_norm": str(norm),
                              "batch": batch})
            raise UserError(f"step {self.step}: the loss is {loss} and the gradient's norm {norm}; "
                            f"the batch is in {file}, the last good state is kept in "
                            f"{self.folder}; try a lower --lr with another --output")
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def log(self, shown=(), samples=(), **metrics):
        """Count the update and write its line of metrics.jsonl; save the state now and then.

        shown: metrics beside the progress bar.  samples: rows of samples.jsonl.
        """
        self.step += 1
        self.bar.update()
        self.bar.set_postfix({name: f"{metrics[name]:.3f}" for name in shown})
        if self.accelerator.is_main_process:
            log_metrics(self.folder, self.accelerator, step=self.step, **metrics)
            if samples:
                append_jsonl(self.folder / "samples.jsonl",
                             [{"step": self.step, **row} for row in samples])
            if self.step % self.args.save_every == 0 or self.step == self.steps:
                if self.folder in GROWN:  # before it, the shorter run is still what the folder has
                    write_json(self.folder / "config.json", GROWN.pop(self.folder))
                save_state(self.folder / "state.pt", model=self.model.state_dict(),
                           optimizer=self.optimizer.state_dict(), step=self.step)
        return self.step

    def finish(self, tokenizer, judge=None):
        """Write model/; the main process says so.  judge: for judge.json beside the weights."""
        self.bar.close()
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            save_model(self.folder / "model", self.model, tokenizer, judge)
            print(f"wrote {self.folder}/model")


def start_run(args, accelerator, items=None):
    """The Run of --output: a new one, or the one there if flags, weights and items are the same.

    A run, a finished one too, may be continued to more --steps or --epochs.
    """
    folder = open_run(args.output, args, accelerator, items, may_grow=("steps", "epochs"))
    accelerator.init_trackers("spct")  # those of --log_with
    return Run(folder, args, accelerator)


def sum_over_processes(totals, accelerator):
    """{name: sum over all processes} of {name: number}, in one exchange."""
    names = sorted(totals)  # Pitfall: the same order on every process
    packed = torch.tensor([float(totals[name]) for name in names], dtype=torch.float64,
                          device=accelerator.device)
    return dict(zip(names, accelerator.reduce(packed).tolist(), strict=True))


def batch_indices(step, batch_size, count, seed):
    """Indices of update `step`: epochs of shuffled data end to end, so that every batch is full."""
    picked, orders = [], {}
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, count)
        if epoch not in orders:
            orders[epoch] = list(range(count))
            random.Random(f"{seed}/{epoch}").shuffle(orders[epoch])
        picked.append(orders[epoch][place])
    return picked


def name_draws(drawn):
    """The items of one step; one that is drawn again has another id, and so other random numbers.

    Pitfall: where epochs meet, or with fewer items than --prompts_per_step, the second group would
    copy the first.
    """
    seen = Counter()
    for i, example in enumerate(drawn):
        seen[example.id] += 1
        if seen[example.id] > 1:
            drawn[i] = dataclasses.replace(example, id=f"{example.id}/draw{seen[example.id]}")
    return drawn


def save_model(folder, model, tokenizer, judge=None):
    """save_pretrained (safetensors); the folder loads in plain transformers.

    judge: the settings of its prompt in training (plumbing/judge.py), for judge.json.
    """
    with whole(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if judge:
            write_json(temporary / "judge.json", judge)


def save_state(path, **state):
    """Training state (weights, optimizer, step) as one file that replaces the last one at once."""
    with whole(path) as temporary:
        torch.save(state, temporary)


def load_state(path):
    """What `save_state` wrote, or None. Tensors and plain values only: nothing is executed."""
    if not Path(path).exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types here
        raise UserError(f"{path} is damaged ({one_line(error)[:200]}); delete it, and the same "
                        "command trains from the start") from None


# ----- long sampling, in chunks that are files -----

def in_chunks(path, items, make_rows, accelerator, chunk_size, label):
    """Rows of all items in item order, also written to the file `path`; continues after a kill.

    One process makes a chunk (chunk number modulo processes), as a whole file, so the result does
    not depend on the number of processes, and a stopped run loses the chunk in the making only.
    make_rows: list of items -> list of JSON rows, each with the item's "id".
    """
    path = Path(path)
    parts = path.with_name(f".{path.stem}.parts")
    chunks = [items[i:i + chunk_size] for i in range(0, len(items), chunk_size)]
    if not path.exists():
        mine = range(accelerator.process_index, len(chunks), accelerator.num_processes)
        for c in tqdm(mine, desc=label, unit="chunk",
                      disable=not accelerator.is_local_main_process):
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
