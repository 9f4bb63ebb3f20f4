"""What the tests of whole training loops share: a tiny model to start from, and comparisons."""
import os

from conftest import ROOT, make_tiny_model

from plumbing.generation import load_model

# for processes of their own, which import this file and conftest.py
PYTHONPATH = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
TORCHRUN = ["-m", "torch.distributed.run"]


def save_tiny(folder, tokenizer, architecture="llama", ends=(), **options):
    """A random model that may end at any of several tokens: judgments of various lengths."""
    model = make_tiny_model(architecture, len(tokenizer), tokenizer.eos_token_id,
                            tokenizer.pad_token_id, **{"initializer_range": 0.2, **options})
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *ends]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def plain_steps(monkeypatch):
    """SGD in place of AdamW, which blows up rounding differences of tiny gradients."""
    import torch
    monkeypatch.setattr(torch.optim, "AdamW",
                        lambda parameters, lr, **_: torch.optim.SGD(parameters, lr))


def weights(folder):
    return load_model(str(folder))[0].state_dict()


def near(a, b, atol=0.0):
    """Whether two sets of weights are equal, up to atol."""
    return a.keys() == b.keys() and all(a[k].sub(b[k]).abs().max() <= atol for k in a)


def moved(a, b):
    return max(a[k].sub(b[k]).abs().max().item() for k in a)


def untimed(rows):
    """Metrics without seconds and memory."""
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "memory/", "seconds"))}
            for row in rows]
