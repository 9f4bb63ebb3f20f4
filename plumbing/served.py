r"""Plumbing: a judge behind a URL. Any OpenAI-compatible server (vLLM, SGLang, transformers serve) in a local model's place.

The server has the tokenizer, the chat template and the batching. We send messages and get text, one request per sample,
because every sample has its own response order. There are no token ids and no log-probabilities, only token counts.

    vllm serve <model> --generation-config vllm     # that flag: no top_k or repetition penalty of the model's own
    OPENAI_API_KEY=... python eval.py --endpoint http://127.0.0.1:8000 --served_model <model>
"""
import hashlib
import os
import queue
import re
import threading
from random import SystemRandom
from urllib.parse import urlsplit

from huggingface_hub import InferenceClient, get_session
from tqdm import tqdm

from plumbing import generation
from plumbing.generation import Row, first_line
from plumbing.runs import UserError

# Untrusted text: we do not know the server's special tokens, so whatever looks like one of the usual kinds is broken by a
# space, as `grm.encode_chat` does with those of a local tokenizer: <|im_end|>, <｜User｜>, <turn|>, </s>, <end_of_turn>, [INST].
SPECIAL = re.compile(r"<(?=[|｜][^<>\s]{1,40}>|[^<>\s]{1,40}[|｜]>|<SYS>>|</SYS>>|/?(?:s|bos|eos|pad|unk|mask|cls|sep|think|"
                     r"tool_call|tool_response|start_of_turn|end_of_turn)>)|\[(?=/?(?:INST|SYSTEM_PROMPT)\])")
TOO_LONG = re.compile(r"context.{0,20}(?:length|window)|too long|longer than|too many tokens|maximum.{0,20}(?:length|tokens)",
                      re.IGNORECASE)


def add_endpoint_flags(parser):
    parser.add_argument("--endpoint", help="sample from a served model instead: URL of an OpenAI-compatible server; its key is "
                        "taken from OPENAI_API_KEY (on hosts of Hugging Face: HF_TOKEN)")
    parser.add_argument("--served_model", help="name of the model on --endpoint")
    parser.add_argument("--concurrency", type=int, default=32, help="requests to --endpoint at once, per process (at most 100)")


def check_endpoint(args, role="model"):
    """The arguments, with the served model's name as --model (or --sampler). Raises UserError."""
    if bool(args.endpoint) != bool(args.served_model):
        raise UserError("give --endpoint (the server's URL) and --served_model (a name that URL/v1/models lists) together")
    if args.endpoint:
        try:
            url = urlsplit(args.endpoint)
            usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise UserError(f"--endpoint {args.endpoint}: not a URL such as http://127.0.0.1:8000")
        if url.username or url.password or url.query:
            raise UserError("--endpoint: leave the key out of the URL, which config.json records; set OPENAI_API_KEY instead")
        if not 1 <= args.concurrency <= 100:
            raise UserError("--concurrency must be between 1 and 100")
        if role == "sampler" and args.sampler:
            raise UserError("give --sampler or --endpoint, not both")
        setattr(args, role, args.served_model)
    return args


def load_judge(args, name, device=None):
    """(model, tokenizer) for `grm.sample_judgments`: a served model and no tokenizer with --endpoint, else a local model."""
    if args.endpoint:
        return Served(args.endpoint, args.served_model, args.concurrency), None
    return generation.load_model(name, device)


def key_of(host):
    """The key from the environment, or None. A Hugging Face token goes to hosts of Hugging Face only."""
    of_hub = f".{host}".endswith((".huggingface.co", ".huggingface.cloud"))
    return of_hub and os.environ.get("HF_TOKEN") or os.environ.get("OPENAI_API_KEY")


class Served:
    """A served model. Stateless but for the key, which is never printed or written."""
    tries, pause, longest_pause, timeout = 10, 1.0, 60.0, 600.0  # all but the first in seconds; pauses double

    def __init__(self, endpoint, name, concurrency=32):
        self.endpoint, self.name, self.concurrency, self.answered, self.warned = endpoint, name, concurrency, False, False
        host = urlsplit(endpoint).hostname
        self.key = key_of(host)
        # Pitfall: without any key the client sends the user's saved Hugging Face token, to whatever host this is.
        self.client = InferenceClient(base_url=endpoint, api_key=self.key or "none", timeout=self.timeout)
        # Pitfall: HF_HUB_OFFLINE=1 makes it refuse every host, a server on this machine included.
        session = get_session()
        session.event_hooks = {**session.event_hooks, "request": [
            lambda request, hook=hook: None if request.url.host == host else hook(request)
            for hook in session.event_hooks["request"]]}

    def generate(self, chats, temperature, max_new_tokens, seeds, skip_long=False, progress=False):
        """One Row per chat (messages), same order; `concurrency` requests at once. Raises UserError if the server stays away."""
        todo, answers, stop = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()
        for r in range(len(chats)):
            todo.put(r)

        def work():
            while not stop.is_set():
                try:
                    r = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    answers.put((r, self.ask(chats[r], temperature, max_new_tokens, seeds[r], skip_long, stop)))
                except Exception as error:  # raised again below, in the main thread
                    answers.put((r, error))
        for _ in range(min(self.concurrency, len(chats))):
            threading.Thread(target=work, daemon=True).start()  # daemon: Ctrl-C does not wait for open requests
        rows = [None] * len(chats)
        try:
            for _ in tqdm(chats, desc="judgments", unit="", disable=not progress):
                r, row = answers.get()
                if isinstance(row, Exception):
                    raise row
                rows[r] = row
        finally:
            stop.set()
        return rows

    def ask(self, messages, temperature, max_new_tokens, seed, skip_long, stop):
        """One request, tried again after pauses (doubled, with jitter) while the server is away, busy or failing."""
        messages = [{**m, "content": SPECIAL.sub(r"\g<0> ", m["content"])} for m in messages]
        number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "little") >> 1  # of this (seed, item, sample)
        for attempt in range(1, self.tries + 1):
            try:
                # top_p is said because vLLM would take it, with top_k, from the model's generation_config.json.
                answer = self.client.chat_completion(messages, model=self.name, temperature=temperature, top_p=1.0,
                                                     max_tokens=max_new_tokens, seed=number)
                choice, usage = answer.choices[0], getattr(answer, "usage", None)
                if choice.finish_reason in (None, "abort"):
                    raise ValueError("half an answer")
                self.answered, self.warned = True, False
                # Anything but an end token ("length", "content_filter") is a judgment cut off. (transformers serve says
                # "length" also where the end token is the last one allowed.)
                return Row([], [], choice.finish_reason in ("stop", "eos_token"), text=choice.message.content or "",
                           usage=(usage.prompt_tokens, usage.completion_tokens) if usage else ())
            except Exception as error:  # the client raises the types of its HTTP library; without a response: no (whole) answer
                response = getattr(error, "response", None)
                status = getattr(response, "status_code", None)
                said = " ".join(response.text.split()) if response is not None else first_line(error)
            why = f"{status}: {said}" if status else said
            why = (why.replace(self.key, "***") if self.key else why)[:300]
            if status and 400 <= status < 500 and status not in (408, 409, 425, 429):  # it understood, and refuses
                if status in (400, 413, 422) and TOO_LONG.search(said):
                    if skip_long:
                        return Row([], [], False, text="", why="too_long")
                    raise UserError(f"{seed} (seed/item/sample) is too long for {self.name} ({why}); shorten or drop that item, "
                                    "lower --max_new_tokens, or pass --skip_bad")
                raise UserError(f"{self.endpoint} refuses the request ({why}); check --endpoint, --served_model and the key "
                                "(OPENAI_API_KEY)")
            if attempt == (self.tries if self.answered or status else min(3, self.tries)):  # never there: most likely a typo
                raise UserError(f"{self.endpoint} gave no answer in {attempt} tries ({why}); when it is back, the same command "
                                "continues and finished chunks are kept")
            if attempt > 1 and not self.warned:
                self.warned = True
                tqdm.write(f"{self.endpoint}: {why}; trying again")
            pause = min(self.longest_pause, self.pause * 2 ** (attempt - 1)) * SystemRandom().uniform(0.5, 1)
            asked = response.headers.get("retry-after", "") if response is not None else ""
            if stop.wait(max(pause, min(self.longest_pause, int(asked))) if asked.isdigit() else pause):
                raise UserError("stopped")
