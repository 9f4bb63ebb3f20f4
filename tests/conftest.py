"""Shared by all tests: tiny random models, tokenizers with the chat templates that differ in the wild. CPU, no network."""
import contextlib
import gc
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("SPCT_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import psutil  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

torch.set_num_threads(int(os.environ["SPCT_THREADS"]))
settings.register_profile("quick", max_examples=150, deadline=None, derandomize=True, database=None,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.load_profile("quick")

ARCHITECTURES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2"]
WINDOW = 8  # sliding window of the tiny Gemmas: far shorter than the prompts of the tests


def make_tiny_model(architecture, vocab_size, eos=4, pad=0, seed=0, **options):
    """A random 2-layer causal LM of width 32, fp32, eval mode. Wide initial weights, so that no two tokens nearly tie."""
    import transformers as hf
    common = dict(vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.4, bos_token_id=None,
                  eos_token_id=eos, pad_token_id=pad, tie_word_embeddings=False)  # tied ones repeat the same token for ever
    gemma = dict(head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW,
                 layer_types=["sliding_attention", "full_attention"], attn_implementation="eager")
    classes = {
        "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, {}),
        "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, {}),
        "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM, dict(head_dim=8)),
        "gemma2": (hf.Gemma2Config, hf.Gemma2ForCausalLM,
                   dict(gemma, attn_logit_softcapping=20.0, final_logit_softcapping=15.0)),
        "gemma3": (hf.Gemma3TextConfig, hf.Gemma3ForCausalLM, gemma),
        "mistral": (hf.MistralConfig, hf.MistralForCausalLM, dict(sliding_window=WINDOW)),
        "gpt2": (hf.GPT2Config, hf.GPT2LMHeadModel, {}),
    }
    config_class, model_class, extra = classes[architecture]
    if architecture == "gpt2":
        common = dict(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=512, initializer_range=0.4,
                      bos_token_id=None, eos_token_id=eos, pad_token_id=pad, tie_word_embeddings=False,
                      resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model_class(config_class(**{**common, **extra, **options})).float().eval()


@pytest.fixture(scope="session")
def toy_tokenizer(tmp_path_factory):
    from toy_world import world as toy
    return toy.make_tokenizer(tmp_path_factory.mktemp("toy_tokenizer"))


@pytest.fixture(scope="session")
def tiny_model(toy_tokenizer):
    """tiny_model(architecture, **config options) -> a fresh model with the vocabulary of the toy tokenizer."""
    def make(architecture="llama", **options):
        return make_tiny_model(architecture, **{"vocab_size": len(toy_tokenizer), "eos": toy_tokenizer.eos_token_id,
                                                "pad": toy_tokenizer.pad_token_id, **options})
    return make


# ----- tokenizers: one token per byte, so that every text survives; special tokens and templates as in the wild -----

CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
          "{% if tools %}{{ '<tool_call>' }}{% endif %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
GEMMA = ("{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
         "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
         "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}")
MISTRAL = ("{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
           "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}")
LLAMA3 = ("{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
          " + '<|eot_id|>' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
DEEPSEEK = ("{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<｜Assistant｜>' + m['content'] + eos_token }}"
            "{% else %}{{ '<｜User｜>' + m['content'] }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}")
TOKENIZERS = {  # name: special tokens, other added tokens, chat template, names of the special tokens, tokenizer adds BOS
    "chatml": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], ["<tool_call>"], CHATML,
               dict(pad_token="<|endoftext|>", eos_token="<|im_end|>"), False),
    "gemma": (["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], [], GEMMA,
              dict(pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"), True),
    "mistral": (["<unk>", "<s>", "</s>"], ["[INST]", "[/INST]"], MISTRAL,
                dict(pad_token="</s>", eos_token="</s>", bos_token="<s>"), True),  # pad = eos
    "llama3": (["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], [], LLAMA3,
               dict(pad_token="<|eot_id|>", eos_token="<|eot_id|>", bos_token="<|begin_of_text|>"), True),
    "deepseek": (["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"], ["<｜User｜>", "<｜Assistant｜>"], DEEPSEEK,
                 dict(pad_token="<｜end▁of▁sentence｜>", eos_token="<｜end▁of▁sentence｜>", bos_token="<｜begin▁of▁sentence｜>"), True),
    "base": (["<s>", "</s>"], [], None, dict(eos_token="</s>", bos_token="<s>"), True),  # no template, no pad token
}


def make_byte_tokenizer(name):
    """name: of TOKENIZERS, or a row like theirs."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    special, added, template, names, adds_bos = TOKENIZERS[name] if isinstance(name, str) else name
    vocabulary = {token: i for i, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    raw.add_tokens([AddedToken(t, special=False, normalized=False) for t in added])
    if adds_bos:
        bos = names["bos_token"]
        raw.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, padding_side="left", **names)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer():
    """byte_tokenizer(name) -> a fresh tokenizer: "chatml" (system role), "gemma" (raises on system, BOS in the template),
    "mistral" (pad = eos, BOS in the template), "base" (no chat template, no pad token; the tokenizer adds BOS)."""
    return make_byte_tokenizer


@pytest.fixture
def two_end_tokens(byte_tokenizer):
    """(model, tokenizer) of a model with two end tokens in generation_config, as Gemma and Qwen have; the tokenizer knows one."""
    tokenizer = byte_tokenizer("gemma")
    model = make_tiny_model("llama", len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    return model, tokenizer


# ----- processes of their own -----

def started(script, *words, **environment):
    """Start `python script words` in the project's folder; its output is read by `finished`."""
    return subprocess.Popen([sys.executable, *script, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            cwd=ROOT, env={**os.environ, "ACCELERATE_USE_CPU": "1", **environment}, start_new_session=True)


def finished(process, timeout=600):
    """(exit code, output). A process that hangs fails its test, and is killed with its children."""
    try:
        out, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        for one in [process, *psutil.Process(process.pid).children(recursive=True)]:  # torchrun's ranks are in sessions of their own
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # an orphan may still hold the pipe
            pytest.fail(f"no end after {timeout} s:\n{process.communicate(timeout=10)[0][-3000:]}")
        pytest.fail(f"no end after {timeout} s")
    return process.returncode, out


def ddp_at_the_end(monkeypatch):
    """A list that gets, each time that a process leaves its group, the number of DDP models it still holds then."""
    counts, leave = [], torch.distributed.destroy_process_group

    def counted(*args):
        counts.append(sum(isinstance(o, torch.nn.parallel.DistributedDataParallel) for o in gc.get_objects()))
        leave(*args)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", counted)
    return counts
