"""How a program is started: what `accelerate launch` may switch on (C32), what a run records of its
machine, attention on a GPU (C30)."""
import pytest
import torch
from conftest import error_of, finished, started

from plumbing import generation, runs
from plumbing.runs import UserError, read_json, read_rows

# Every program that starts accelerate, with flags that keep it from ending before.
PROGRAMS = {"spct_rft": [], "spct_rl": ["--steps", 1], "infer_scale": [], "eval": [],
            "meta_rm": ["--rft_judgments", "", "--grm", "toy_world/medium"],
            "extras.baselines": ["btrm"], "results.hostile": []}


@pytest.mark.parametrize("program", PROGRAMS)
def test_c32_every_program_refuses_fsdp_in_one_line(program, tmp_path, cli):
    # C32: under FSDP the sampler would read a shard of the weights; the default config of another
    # project may switch it on.
    said = error_of(cli(program, *PROGRAMS[program], "--limit", 2, "--output", tmp_path / "run",
                        ACCELERATE_USE_FSDP="true", FSDP_VERSION="1"))
    assert said.startswith("error: FSDP is switched on")
    assert f"torchrun --nproc_per_node 1 {program.split('.')[-1]}.py" in said
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("variables, fault", [
    ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, "DeepSpeed is"),
    ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is switched on"),
    ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism is switched on"),
    ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "fp16 is not supported"),
    ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "fp8 is not supported")])
def test_c32_other_launches_are_refused(variables, fault, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=fault):
        runs.start_accelerator()


def test_c32_a_kind_of_device_that_was_never_tried_is_refused(monkeypatch):
    import accelerate

    class Tpu:
        distributed_type, trackers, log_with = accelerate.utils.DistributedType.XLA, [], []
    monkeypatch.setattr(accelerate, "Accelerator", lambda **options: Tpu())
    with pytest.raises(UserError, match="XLA is switched on"):
        runs.start_accelerator()


def test_c32_accelerate_launch_with_another_projects_config(tmp_path):
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nnum_machines: 1\n"
        "fsdp_config: {fsdp_version: 1, fsdp_sharding_strategy: FULL_SHARD}\nmachine_rank: 0\n"
        "mixed_precision: bf16\nnum_processes: 1\nmain_training_function: main\n")
    launch = ["-m", "accelerate.commands.launch"]
    _, out = finished(started(launch, "spct_rl.py", "--output", tmp_path / "run",
                              HF_HOME=str(tmp_path), ACCELERATE_USE_CPU=""), timeout=120)
    assert "error: FSDP is switched on" in out and not (tmp_path / "run").exists()


def test_a_launch_on_the_cpu_of_a_machine_with_a_gpu_is_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    assert runs.default_device() == "cuda"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert runs.default_device() == "cpu" and not runs.in_bf16("cpu")


def test_sizes_that_do_not_divide_are_refused(monkeypatch):
    from types import SimpleNamespace

    import accelerate
    two = SimpleNamespace(distributed_type=accelerate.utils.DistributedType.MULTI_CPU,
                          num_processes=2, trackers=[], log_with=[])
    monkeypatch.setattr(accelerate, "Accelerator", lambda **options: two)
    for flag in ("batch_size", "prompts_per_step"):
        with pytest.raises(UserError, match=f"--{flag} 7 does not divide by 2 processes"):
            runs.start_accelerator(SimpleNamespace(**{flag: 7}))
    monkeypatch.setattr(runs, "STARTED", [])


def test_a_tracker_that_is_not_installed_is_named(cli, tmp_path):
    said = error_of(cli("eval", "--log_with", "comet_ml", "--output", tmp_path / "run"))
    assert "comet_ml" in said and "--log_with" in said


def test_c30_no_model_is_loaded_with_cudnn_attention(tiny):
    torch.backends.cuda.enable_cudnn_sdp(True)
    generation.load_model(tiny)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_every_stage_records_precision_device_processes_and_peak_memory(tmp_path, tiny, cli):
    stages = {"spct_rft": ["--general_only", "--epochs", 0.1, "--batch_size", 4], "eval": [],
              "spct_rl": ["--steps", 1, "--prompts_per_step", 2], "infer_scale": ["--k", 2]}
    for program, words in stages.items():
        output = tmp_path / program
        code, _, said = cli(program, "--model", tiny, "--limit", 4, "--max_new_tokens", 4, *words,
                            "--output", output, ACCELERATE_MIXED_PRECISION="bf16")
        assert code == 0, said
        config = read_json(output / "config.json")
        assert (config["precision"], config["device"], config["processes"]) == ("bf16", "cpu", 1)
        assert config["script"] == f"{program}.py" and {"torch", "transformers"} <= set(
            config["versions"])
        metrics = read_rows(output / "metrics.jsonl")
        assert metrics and all(0.05 < row["memory/peak_gb"] < 1000 for row in metrics)


def test_c25_a_launch_on_a_cpu_shares_all_cores(monkeypatch):
    """C25: `accelerate launch` sets OMP_NUM_THREADS=1, so a program would run at a fraction."""
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(runs.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.delenv("SPCT_THREADS", raising=False)
    for processes in (1, 2, 9):
        runs.share_threads(processes)
    monkeypatch.setenv("SPCT_THREADS", "4")
    runs.share_threads(2)
    assert set_to == [6, 3, 1, 4]
