"""The tokenizer, and what goes before and behind a document."""

import hashlib
import json
import os

from .stop import BAD_CONTENT, NO_INPUT, USAGE, Stop, stop_of

DOCUMENT_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")


class Coder:
    """A tokenizer with what goes before and behind a document.

    The post-processor is taken out and applied by ourselves: some of them trim the offsets of
    white space, which the loss mask needs as it is.
    """

    def __init__(self, path, bos, eos, packed, vocab_size):
        from tokenizers import Tokenizer

        file = os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path
        raw = read_bytes(
            file,
            "write it with AutoTokenizer.from_pretrained(...).save_pretrained(...) if the "
            "model only has another form",
        )
        self.sha256 = hashlib.sha256(raw).hexdigest()
        self.folder = os.path.dirname(file)
        try:
            data = json.loads(raw)
            full = Tokenizer.from_str(json.dumps(data))
            data["post_processor"] = None
            self.plain = Tokenizer.from_str(json.dumps(data))
        except Exception as error:  # the library raises plain Exception
            raise Stop(
                BAD_CONTENT,
                f"'{file}' is no tokenizer",
                str(error).splitlines()[0],
                "give the tokenizer.json of the model",
            )
        for tokenizer in (full, self.plain):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self.settings = self._json("tokenizer_config.json")
        self.prefix, self.suffix = self._around(full)
        self.prefix = self._chosen(bos, "--bos", self.prefix, self._default_bos())
        self.suffix = self._chosen(
            eos, "--eos", self.suffix, self._document_token() if packed else None
        )
        ids = self.plain.get_vocab(with_added_tokens=True).values()
        self.vocab_size = vocab_size or self._model_vocabulary() or max(ids) + 1
        self.padding = next(
            (
                i
                for i in (*self.suffix, self._document_token(), 0)
                if i is not None and i < self.vocab_size
            ),
            0,
        )

    def _json(self, name):
        """A JSON object beside the tokenizer, or {} where there is none that can be read."""
        try:
            with open(os.path.join(self.folder, name), encoding="utf-8") as file:
                value = json.load(file)
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def _around(self, full):
        """Ids that the tokenizer's own post-processor puts before and behind a text."""
        encoding = full.encode("a", add_special_tokens=True)
        special = encoding.special_tokens_mask
        inner = [i for i, s in enumerate(special) if not s] or [0]
        return list(encoding.ids[: inner[0]]), list(encoding.ids[inner[-1] + 1 :])

    def _named(self, key):
        value = self.settings.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        return self.plain.token_to_id(value) if isinstance(value, str) else None

    def _default_bos(self):
        return self._named("bos_token") if self.settings.get("add_bos_token") is True else None

    def _document_token(self):
        """The token that ends a document of text: a chat model's eos_token ends a turn instead."""
        for name in DOCUMENT_TOKENS:
            if self.plain.token_to_id(name) is not None:
                return self.plain.token_to_id(name)
        return self._named("eos_token")

    def _chosen(self, wanted, flag, own, fallback):
        if wanted == "none":
            return []
        if wanted == "auto":
            return own or ([fallback] if fallback is not None else [])
        number = self.plain.token_to_id(wanted)
        if number is None:
            raise Stop(
                USAGE,
                f"{flag} {wanted}: the tokenizer has no such token",
                "it must be auto, none or a token of the vocabulary",
                "write the token as the tokenizer does",
            )
        return [number]

    def _model_vocabulary(self):
        size = self._json("config.json").get("vocab_size")
        return size if isinstance(size, int) and size > 0 else None

    def encode(self, texts, offsets):
        """Encodings of texts, without what goes around them; `offsets` only where they are read."""
        if not offsets and hasattr(self.plain, "encode_batch_fast"):
            return self.plain.encode_batch_fast(texts, add_special_tokens=False)
        return self.plain.encode_batch(texts, add_special_tokens=False)


def read_bytes(path, remedy):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        stop = stop_of(error, path)
        stop.do = remedy if stop.code == NO_INPUT else stop.do
        raise stop
