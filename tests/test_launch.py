"""How a program is started: what `accelerate launch` may switch on, what a run records of its machine, attention on a GPU."""
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT, make_tiny_model
from test_models import write_gguf

from plumbing import generation, runs
from plumbing.runs import UserError, read_json, read_rows, save_model

# every program that starts accelerate, with flags that keep it from ending before
PROGRAMS = [["spct_rft.py"], ["spct_rl.py"], ["meta_rm.py", "--trajectories", "", "--grm", "toy_world/medium"], ["infer_scale.py"],
            ["eval.py"], ["baselines.py", "btrm"], ["results/hostile.py"], ["results/principles.py"]]


@pytest.fixture
def start(monkeypatch, capsys):
    """start(words, variables) -> (exit code, its lines on stderr): a program with the environment variables that a launcher sets."""
    def call(words, **variables):
        AcceleratorState._reset_state(reset_partial_state=True)  # the library keeps one precision per process
        capsys.readouterr()
        code = 0
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", words)
            patch.setattr(sys, "path", [str(ROOT / "results"), *sys.path])
            for name, value in variables.items():
                patch.setenv(name, value)
            try:
                importlib.import_module(Path(words[0]).stem).main()
            except SystemExit as stop:
                code = stop.code or 0
        return code, capsys.readouterr().err
    yield call
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("words", PROGRAMS, ids=lambda words: words[0])
def test_c32_every_program_refuses_fsdp_in_one_line(words, tmp_path, start):
    output = [] if words[0] == "results/principles.py" else ["--output", str(tmp_path / "run")]
    code, said = start([*words, *output], ACCELERATE_USE_FSDP="true", FSDP_VERSION="1")
    assert code == 2 and said.count("\n") == 1 and said.startswith("error: FSDP is switched on")
    assert "torchrun --nproc_per_node 1 " + Path(words[0]).name in said
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("variables, fault", [
    ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, "DeepSpeed is switched on"),
    ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM is switched on"),
    ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism is switched on"),
    ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "fp16 is not supported"),
    ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "fp8 is not supported")])
def test_c32_other_launches_are_refused(variables, fault, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=fault):
        runs.start_accelerator()


def test_c32_another_projects_default_config_is_met_with_one_line(tmp_path):
    (tmp_path / "accelerate").mkdir()
    (tmp_path / "accelerate" / "default_config.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nfsdp_config: {fsdp_version: 1, fsdp_sharding_strategy: FULL_SHARD}\n"
        "mixed_precision: bf16\nnum_machines: 1\nnum_processes: 1\nmachine_rank: 0\nmain_training_function: main\n")
    done = subprocess.run([sys.executable, "-m", "accelerate.commands.launch", "spct_rl.py", "--output", str(tmp_path / "run")], cwd=ROOT,
                          capture_output=True, text=True, timeout=120, env={**os.environ, "HF_HOME": str(tmp_path)})
    assert "error: FSDP is switched on" in done.stderr and not (tmp_path / "run").exists()


def test_c32_a_kind_of_device_that_was_never_tried_is_refused(monkeypatch):
    import accelerate

    class Tpu:
        distributed_type, trackers, log_with = accelerate.utils.DistributedType.XLA, [], []
    monkeypatch.setattr(accelerate, "Accelerator", lambda **options: Tpu())
    with pytest.raises(UserError, match="XLA is switched on"):
        runs.start_accelerator()


def test_a_launch_on_the_cpu_of_a_machine_with_a_gpu_is_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runs.default_device() == "cuda"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert runs.default_device() == "cpu" and not runs.in_bf16(runs.default_device())


def test_c30_no_model_is_loaded_with_cudnn_attention(tmp_path, toy_tokenizer, tiny_model):
    save_model(tmp_path / "model", tiny_model(), toy_tokenizer)
    torch.backends.cuda.enable_cudnn_sdp(True)
    generation.load_model(tmp_path / "model")
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU (the fault shows on an H100 or H200)")
def test_c30_gradients_of_attention_are_finite(tmp_path, toy_tokenizer, tiny_model):
    save_model(tmp_path / "model", tiny_model(), toy_tokenizer)
    generation.load_model(tmp_path / "model")
    q, k, v = (0.1 * torch.randn(1, 1, 704, 64, device="cuda") for _ in range(3))
    q[..., 0], k[..., 0] = 1, -120 * 8  # a row's logsumexp far below zero
    q = q.bfloat16().requires_grad_()
    mask = torch.ones(704, 704, device="cuda", dtype=torch.bool).tril()[None, None]
    torch.nn.functional.scaled_dot_product_attention(q, k.bfloat16(), v.bfloat16(), attn_mask=mask).sum().backward()
    assert q.grad.isfinite().all()


def test_every_stage_records_precision_device_processes_and_peak_memory(tmp_path, toy_tokenizer, start):
    save_model(tmp_path / "base", make_tiny_model("llama", len(toy_tokenizer), toy_tokenizer.eos_token_id, initializer_range=0.1),
               toy_tokenizer)
    small = ["--model", str(tmp_path / "base"), "--limit", "4", "--max_new_tokens", "4"]
    stages = {"spct_rft.py": ["--general_only", "--epochs", "0.1", "--batch_size", "4"], "eval.py": [], "infer_scale.py": ["--k", "2"],
              "spct_rl.py": ["--steps", "1", "--prompts_per_step", "2"]}
    for script, words in stages.items():
        code, said = start([script, *small, *words, "--output", str(tmp_path / script)], ACCELERATE_MIXED_PRECISION="bf16")
        assert code == 0, said
        config = read_json(tmp_path / script / "config.json")
        assert (config["precision"], config["device"], config["processes"]) == ("bf16", "cpu", 1) or torch.cuda.is_available()
        assert all(0.05 < row["memory/peak_gb"] < 1000 for row in read_rows(tmp_path / script / "metrics.jsonl"))


def test_a_gguf_model_carries_no_mark_of_quantization(tmp_path):
    pytest.importorskip("trl", reason="optional peer: pip install trl")
    write_gguf(tmp_path / "tiny.gguf")
    model, _ = generation.load_model(tmp_path / "tiny.gguf")
    assert not getattr(model, "is_quantized", False) and not hasattr(model, "quantization_method")
    done = subprocess.run(
        [sys.executable, "benchmarks/bench_rl_step.py", "--model", str(tmp_path / "tiny.gguf"), "--repeats", "1", "--threads", "1",
         "--prompts", "1", "--G", "2", "--prompt_tokens", "800", "--new_tokens", "3", "--steps", "2"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["ratios"]
