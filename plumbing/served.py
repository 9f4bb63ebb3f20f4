r"""Plumbing: a judge behind a URL, in a local model's place. Any OpenAI-compatible server will do.

The server (vLLM, SGLang, transformers serve) has the tokenizer, the chat template and the batching.
We send messages and get text, one request per judgment, because every judgment has its own response
order. There are no token ids and no log-probabilities, only token counts.

    vllm serve <model> --generation-config vllm  # no top_k or repetition penalty of the model's own
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
from plumbing.generation import Completion, first_line
from plumbing.runs import UserError

# Texts of others: the server's special tokens are not known here, so whatever looks like one of the
# usual kinds is broken by a space, as generation.encode_chat does with those of a local tokenizer:
# <|im_end|>, <｜User｜>, <turn|>, </s>, <end_of_turn>, [INST].
SPECIAL = re.compile(
    r"<(?=[|｜][^<>\s]{1,40}>|[^<>\s]{1,40}[|｜]>|<SYS>>|</SYS>>"
    r"|/?(?:s|bos|eos|pad|unk|mask|cls|sep|think|tool_call|tool_response)>"
    r"|/?(?:start_of_turn|end_of_turn)>)|\[(?=/?(?:INST|SYSTEM_PROMPT)\])")
TOO_LONG = re.compile(r"context.{0,20}(?:length|window)|too long|longer than|too many tokens"
                      r"|maximum.{0,20}(?:length|tokens)", re.IGNORECASE)
BUSY = (408, 409, 425, 429)  # of the 4xx, the ones that may pass; the others are refusals


# ----- flags -----

def add_endpoint_flags(parser):
    parser.add_argument("--endpoint", help="sample from a served model: URL of an OpenAI-compatible"
                        " server; its key is OPENAI_API_KEY (on hosts of Hugging Face: HF_TOKEN)")
    parser.add_argument("--served_model", help="name of the model on --endpoint")
    parser.add_argument("--concurrency", type=int, default=32,
                        help="requests to --endpoint at once, per process (at most 100)")


def check_endpoint(args, role="model"):
    """The arguments, with the served model's name as --model (or --sampler). Raises UserError."""
    if bool(args.endpoint) != bool(args.served_model):
        raise UserError("give --endpoint (the server's URL) and --served_model (a name that "
                        "URL/v1/models lists) together")
    if not args.endpoint:
        return args
    try:
        url = urlsplit(args.endpoint)
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UserError(f"--endpoint {args.endpoint}: not a URL such as http://127.0.0.1:8000")
    if url.username or url.password or url.query:
        raise UserError("--endpoint: leave the key out of the URL, which config.json records; set "
                        "OPENAI_API_KEY instead")
    if not 1 <= args.concurrency <= 100:
        raise UserError("--concurrency must be between 1 and 100")
    if role == "sampler" and args.sampler:
        raise UserError("give --sampler or --endpoint, not both")
    setattr(args, role, args.served_model)
    return args


def load_judge(args, name, device=None):
    """(judge, tokenizer): with --endpoint a served model and None, else a local model's."""
    if args.endpoint:
        return Served(args.endpoint, args.served_model, args.concurrency), None
    return generation.load_model(name, device)


def key_of(host):
    """The key from the environment, or None. A Hugging Face token goes to its own hosts only."""
    of_hub = f".{host}".endswith((".huggingface.co", ".huggingface.cloud"))
    return of_hub and os.environ.get("HF_TOKEN") or os.environ.get("OPENAI_API_KEY")


# ----- the judge -----

class Served:
    """A served model. Stateless but for the key, which is never printed or written."""
    tries = 10
    pause, longest_pause, timeout = 1.0, 60.0, 600.0  # seconds; pauses double

    def __init__(self, endpoint, name, concurrency=32):
        self.endpoint, self.name, self.concurrency = endpoint, name, concurrency
        self.answered = self.warned = False
        host = urlsplit(endpoint).hostname
        self.key = key_of(host)
        # Pitfall: without any key the client sends the user's saved Hugging Face token, to whatever
        # host this is.
        self.client = InferenceClient(base_url=endpoint, api_key=self.key or "none",
                                      timeout=self.timeout)
        # Pitfall: HF_HUB_OFFLINE=1 makes it refuse every host, a server on this machine included.
        session = get_session()
        session.event_hooks = {**session.event_hooks, "request": [
            lambda request, hook=hook: None if request.url.host == host else hook(request)
            for hook in session.event_hooks["request"]]}

    def complete(self, chats, temperature, max_new_tokens, seeds, skip_long=False):
        """One Completion per chat (messages), same order; `concurrency` requests at once.

        Raises UserError if the server stays away, refuses, or gets a prompt that is too long for it
        (with skip_long that one is a Completion whose `why` is "too_long").
        """
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
                    found = self.ask(chats[r], temperature, max_new_tokens, seeds[r], skip_long,
                                     stop)
                except Exception as error:  # raised again below, in the main thread
                    found = error
                answers.put((r, found))
        for _ in range(min(self.concurrency, len(chats))):
            # daemon: Ctrl-C does not wait for open requests
            threading.Thread(target=work, daemon=True).start()
        completions = [None] * len(chats)
        try:
            for _ in chats:
                r, found = answers.get()
                if isinstance(found, Exception):
                    raise found
                completions[r] = found
        finally:
            stop.set()
        return completions

    def ask(self, messages, temperature, max_new_tokens, seed, skip_long, stop):
        """One request, again after pauses while the server is away, busy or failing."""
        messages = [{**m, "content": SPECIAL.sub(r"\g<0> ", m["content"])} for m in messages]
        digest = hashlib.sha256(seed.encode()).digest()  # of this seed/item/judgment
        options = dict(
            model=self.name, temperature=temperature, max_tokens=max_new_tokens,
            top_p=1.0,  # said, because vLLM would take it from the model's generation_config.json
            seed=int.from_bytes(digest[:4], "little") >> 1)
        for attempt in range(1, self.tries + 1):
            response = None
            try:
                return self.read(self.client.chat_completion(messages, **options))
            except Exception as error:  # the client raises the types of its HTTP library
                response = getattr(error, "response", None)
                said = first_line(error) if response is None else " ".join(response.text.split())
            status = getattr(response, "status_code", None)
            why = f"{status}: {said}" if status else said
            why = (why.replace(self.key, "***") if self.key else why)[:300]
            if status and 400 <= status < 500 and status not in BUSY:
                if status in (400, 413, 422) and TOO_LONG.search(said):
                    if skip_long:
                        return Completion([], [], False, "too_long")
                    raise UserError(f"{seed} (seed/item/judgment) is too long for {self.name} "
                                    f"({why}); shorten or drop that item, lower --max_new_tokens, "
                                    "or pass --skip_bad")
                raise UserError(f"{self.endpoint} refuses the request ({why}); check --endpoint, "
                                "--served_model and the key (OPENAI_API_KEY)")
            # a server that was never there is most likely a typo
            if attempt == (self.tries if self.answered or status else min(3, self.tries)):
                raise UserError(f"{self.endpoint} gave no answer in {attempt} tries ({why}); when "
                                "it is back, the same command continues and finished chunks are "
                                "kept")
            if attempt > 1 and not self.warned:
                self.warned = True
                tqdm.write(f"{self.endpoint}: {why}; trying again")
            pause = min(self.longest_pause, self.pause * 2 ** (attempt - 1))
            pause *= SystemRandom().uniform(0.5, 1)  # not all workers at the same moment
            asked = "" if response is None else response.headers.get("retry-after", "")
            if asked.isdigit():
                pause = max(pause, min(self.longest_pause, int(asked)))
            if stop.wait(pause):
                raise UserError("stopped")

    def read(self, answer):
        """The Completion of an answer. Raises if it is only half of one."""
        choice, usage = answer.choices[0], getattr(answer, "usage", None)
        if choice.finish_reason in (None, "abort"):
            raise ValueError("half an answer")
        self.answered, self.warned = True, False
        # Anything but an end token ("length", "content_filter") is a judgment that was cut off.
        # (transformers serve says "length" also where the end token is the last one allowed.)
        finished = choice.finish_reason in ("stop", "eos_token")
        counts = (usage.prompt_tokens, usage.completion_tokens) if usage else (0, 0)
        return Completion([], [], finished, text=choice.message.content or "",
                          prompt_tokens=counts[0], tokens=counts[1])
