"""Shared by all tests: tiny random models, tokenizers as in the wild, programs in this process.

Everything runs on the CPU and without a network. ACCELERATE_USE_CPU=0 tries a GPU.
"""
import contextlib
import gc
import importlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("SPCT_THREADS", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "1")
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1",
                  TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg")

import psutil  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

torch.set_num_threads(int(os.environ["SPCT_THREADS"]))
settings.register_profile("quick", max_examples=150, deadline=None, derandomize=True, database=None,
                          suppress_health_check=[HealthCheck.too_slow,
                                                 HealthCheck.function_scoped_fixture])
settings.load_profile("quick")


# ----- programs -----

def run_program(program, *words, **environment):
    """(exit code, stdout, stderr) of a program run in this process, which saves seconds.

    program: "spct_rl", "extras.baselines", ... words: its command line. environment: variables as a
    launcher sets them; None takes one away. Progress bars are left out of stderr.
    """
    from accelerate.state import AcceleratorState
    out, err, code = io.StringIO(), io.StringIO(), 0
    file = ROOT / (program.replace(".", "/") + ".py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(file), *map(str, words)])
        for name, value in environment.items():
            if value is None:
                patch.delenv(name, raising=False)
            else:
                patch.setenv(name, str(value))
        # The library keeps one precision and one device per process.
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                importlib.import_module(program).main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
    lines = err.getvalue().replace("\r", "\n").splitlines()
    said = [line for line in lines if line.strip() and "%|" not in line and "it/s" not in line]
    return code, out.getvalue(), "".join(line + "\n" for line in said)


@pytest.fixture(scope="session")
def cli():
    """cli(program, *words, **environment) -> (exit code, stdout, stderr), see `run_program`."""
    return run_program


def error_of(result):
    """The one line of a run that refused: exit code 2, "error: ..." on stderr and nothing else."""
    code, _, err = result
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, (code, err)
    return err.strip()


def started(script, *words, **environment):
    """Start `python script words` in a process of its own; its output is read by `finished`."""
    return subprocess.Popen([sys.executable, *script, *map(str, words)], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, cwd=ROOT,
                            env={**os.environ, **environment}, start_new_session=True)


def finished(process, timeout=600):
    """(exit code, output). A process that hangs fails its test, and is killed with its children."""
    try:
        out, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        # torchrun's ranks are in sessions of their own
        for one in [process, *psutil.Process(process.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # an orphan may still hold the pipe
            said = process.communicate(timeout=10)[0]
            pytest.fail(f"no end after {timeout} s:\n{said[-3000:]}")
        pytest.fail(f"no end after {timeout} s")
    return process.returncode, out


def ddp_at_the_end(monkeypatch):
    """A list that gets, each time a process leaves its group, the number of DDP models it holds."""
    counts, leave = [], torch.distributed.destroy_process_group

    def counted(*args):
        kind = torch.nn.parallel.DistributedDataParallel
        counts.append(sum(isinstance(o, kind) for o in gc.get_objects()))
        leave(*args)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", counted)
    return counts


# ----- models -----

ARCHITECTURES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2"]
WINDOW = 8  # sliding window of the tiny Gemmas: far shorter than the prompts of the tests


def make_tiny_model(architecture, vocab_size, eos=4, pad=0, seed=0, **options):
    """A random causal LM of 2 layers and width 32, fp32, eval mode.

    Its initial weights are wide, so that no two tokens nearly tie. Its embeddings are not tied:
    tied ones repeat the same token for ever.
    """
    import transformers as hf
    common = dict(vocab_size=vocab_size, initializer_range=0.4, bos_token_id=None,
                  eos_token_id=eos, pad_token_id=pad, tie_word_embeddings=False)
    gpt2 = dict(n_embd=32, n_layer=2, n_head=4, n_positions=512,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    others = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=512)
    gemma = dict(head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW,
                 layer_types=["sliding_attention", "full_attention"], attn_implementation="eager")
    capped = dict(attn_logit_softcapping=20.0, final_logit_softcapping=15.0)
    config_class, model_class, extra = {
        "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, others),
        "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, others),
        "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM, others | dict(head_dim=8)),
        "gemma2": (hf.Gemma2Config, hf.Gemma2ForCausalLM, others | gemma | capped),
        "gemma3": (hf.Gemma3TextConfig, hf.Gemma3ForCausalLM, others | gemma),
        "mistral": (hf.MistralConfig, hf.MistralForCausalLM, others | dict(sliding_window=WINDOW)),
        "gpt2": (hf.GPT2Config, hf.GPT2LMHeadModel, gpt2),
    }[architecture]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model_class(config_class(**{**common, **extra, **options})).float().eval()


@pytest.fixture(scope="session")
def toy_tokenizer():
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(ROOT / "toy_world" / "medium")


@pytest.fixture(scope="session")
def tiny_model(toy_tokenizer):
    """tiny_model(architecture, **config options) -> a fresh model for the toy tokenizer."""
    def make(architecture="llama", **options):
        fitting = {"vocab_size": len(toy_tokenizer), "eos": toy_tokenizer.eos_token_id,
                   "pad": toy_tokenizer.pad_token_id}
        return make_tiny_model(architecture, **{**fitting, **options})
    return make


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, tiny_model, toy_tokenizer):
    """Folder (str) of a tiny Llama with the toy tokenizer, for --model. Do not change it."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_model(initializer_range=0.1).save_pretrained(folder)
    toy_tokenizer.save_pretrained(folder)
    return str(folder)


# ----- tokenizers: one token per byte, special tokens and chat templates as in the wild -----

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if tools %}{{ '<tool_call>' }}{% endif %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}")
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}")
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + m['content'] + eos_token }}"
    "{% else %}{{ '<｜User｜>' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}")
TOKENIZERS = {  # special tokens, other added tokens, chat template, names, tokenizer adds BOS
    "chatml": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<tool_call>"], CHATML,
               dict(pad_token="<|endoftext|>", eos_token="<|im_end|>"), False),
    "gemma": (["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], [], GEMMA,
              dict(pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"), True),
    "mistral": (["<unk>", "<s>", "</s>"], ["[INST]", "[/INST]"], MISTRAL,
                dict(pad_token="</s>", eos_token="</s>", bos_token="<s>"), True),  # pad = eos
    "llama3": (["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], [],
               LLAMA3, dict(pad_token="<|eot_id|>", eos_token="<|eot_id|>",
                            bos_token="<|begin_of_text|>"), True),
    "deepseek": (["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"],
                 ["<｜User｜>", "<｜Assistant｜>"], DEEPSEEK,
                 dict(pad_token="<｜end▁of▁sentence｜>", eos_token="<｜end▁of▁sentence｜>",
                      bos_token="<｜begin▁of▁sentence｜>"), True),
    "base": (["<s>", "</s>"], [], None,  # no template, no pad token
             dict(eos_token="</s>", bos_token="<s>"), True),
}


def make_byte_tokenizer(name):
    """A fresh tokenizer. name: one of TOKENIZERS, or a row like theirs."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    special, added, template, names, adds_bos = TOKENIZERS[name] if isinstance(name, str) else name
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(special + alphabet)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    raw.add_tokens([AddedToken(t, special=False, normalized=False) for t in added])
    if adds_bos:
        bos = names["bos_token"]
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, padding_side="left", **names)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer():
    """byte_tokenizer(name) -> a fresh tokenizer, see `make_byte_tokenizer`."""
    return make_byte_tokenizer


@pytest.fixture
def two_end_tokens(byte_tokenizer):
    """(model, tokenizer) with two end tokens, as Gemma and Qwen have; the tokenizer knows one."""
    tokenizer = byte_tokenizer("gemma")
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    model = make_tiny_model("llama", len(tokenizer), ends[0], tokenizer.pad_token_id)
    model.generation_config.eos_token_id = ends
    return model, tokenizer


# ----- a judge whose first verdict is known -----

def animals(count, n=2):
    """Records with `n` responses "... a.", "... b.", ..., the best of them in turn."""
    return [{"id": f"x/{i}", "prompt": f"Name animal {i // 2}.",
             "responses": [f"Sure, animal {i} {r}." for r in "abcd"[:n]],
             "rewards": [int(r == i % n) for r in range(n)]} for i in range(count)]


class FindsBGood:
    """logit(" good") - logit(" bad") is `bias` plus `content` if response b. is shown first, else
    `bias` less `content`. For a byte tokenizer, where the words part behind their blank."""
    device = "cpu"

    def __init__(self, tokenizer, content, bias=0.0):
        self.tokenizer, self.content, self.bias = tokenizer, content, bias

    def __call__(self, ids, logits_to_keep):
        first = re.findall(r"animal \d+ ([a-d])", self.tokenizer.decode(ids[0]))[0]
        logits = torch.zeros(1, 1, len(self.tokenizer))
        logits[0, 0, self.tokenizer("g")["input_ids"][0]] = self.bias + (
            self.content if first == "b" else -self.content)
        return SimpleNamespace(logits=logits)
