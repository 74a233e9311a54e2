"""The tokenizer, and what goes before and behind a document."""

import hashlib
import json
import os

from espalier_launch.stop import BAD_CONTENT, NO_INPUT, USAGE, Stop, stop_of

NO_TOKEN = (1 << 32) - 1  # ids of the library are unsigned, ours of token files are int32
MOST_IDS = (1 << 31) - 1
DOCUMENT_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")


class Coder:
    """A tokenizer with what goes before and behind a document.

    `open_end`: a document goes on behind its text, so nothing is put there unasked.

    The post-processor is taken out and applied by ourselves: some of them trim the offsets of
    white space, which the loss mask needs as it is.
    """

    def __init__(self, path, bos, eos, packed, vocab_size, open_end=False):
        from tokenizers import Tokenizer

        file = os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path
        raw = read_bytes(
            file,
            "write it with AutoTokenizer.from_pretrained(...).save_pretrained(...) if the "
            "model only has another form",
        )
        self.sha256 = hashlib.sha256(raw).hexdigest()
        self.file, self.folder = file, os.path.dirname(file)
        try:
            data = json.loads(raw)
            full = Tokenizer.from_str(json.dumps(data))
            data["post_processor"] = None
            self.plain = Tokenizer.from_str(json.dumps(data))
        except Exception as error:  # the library raises plain Exception
            raise Stop(
                BAD_CONTENT,
                f"'{file}' is no tokenizer",
                (str(error) or type(error).__name__).splitlines()[0],
                "give the tokenizer.json of the model",
            )
        self.decoder = data.get("decoder")
        added = data.get("added_tokens") or []
        self.special = {token["id"] for token in added if token.get("special")}
        for tokenizer in (full, self.plain):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self.settings = self._json("tokenizer_config.json")
        self.prefix, self.suffix = self._around(full)
        self.prefix = self._chosen(bos, "--bos", self.prefix, self._default_bos())
        self.suffix = (
            []
            if open_end and eos == "auto"
            else self._chosen(
                eos, "--eos", self.suffix, self._document_token() if packed else self._default_eos()
            )
        )
        ids = self.plain.get_vocab(with_added_tokens=True).values()
        self.vocab_size = vocab_size or self._model_vocabulary() or max(ids, default=0) + 1
        self.check_ids([*self.prefix, *self.suffix], "it stands around every document")
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
        """Ids that the tokenizer's own post-processor puts before and behind a text.

        It is given a text of one token that no vocabulary has: which texts the tokenizer itself
        could encode does not matter.
        """
        from tokenizers import Tokenizer, models

        probe = Tokenizer(models.WordLevel({"x": NO_TOKEN}, unk_token="x")).encode("x")
        ids = full.post_process(probe, None, True).ids
        if NO_TOKEN not in ids:
            return [], []
        place = ids.index(NO_TOKEN)
        return ids[:place], ids[place + 1 :]

    def _named(self, key):
        value = self.settings.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        return self.plain.token_to_id(value) if isinstance(value, str) else None

    def _default_bos(self):
        return self._named("bos_token") if self.settings.get("add_bos_token") is True else None

    def _default_eos(self):
        return self._named("eos_token") if self.settings.get("add_eos_token") is True else None

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

    def special_words(self, names):
        """{name: text} of the special tokens that the settings name."""
        older = self._json("special_tokens_map.json")
        words = {}
        for name in names:
            value = self.settings.get(name, older.get(name))
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                words[name] = value
        return words

    def ends(self):
        """Ids at which a generated text ends: those of the model's settings and the tokenizer's own."""
        found = [self._named("eos_token")]
        for name in ("generation_config.json", "config.json"):
            value = self._json(name).get("eos_token_id")
            found += value if isinstance(value, list) else [value]
        return sorted({i for i in found if type(i) is int and 0 <= i < self.vocab_size})

    def _model_vocabulary(self):
        return size_of(self._json("config.json").get("vocab_size"))

    def longest_row(self):
        """(tokens that the model has positions for, what says so), or (None, "")."""
        for values, name, key in (
            (self._json("config.json"), "config.json", "max_position_embeddings"),
            (self.settings, "tokenizer_config.json", "model_max_length"),
        ):
            size = size_of(values.get(key))
            if size is not None:
                return size, f"{key} of {os.path.join(self.folder, name)}"
        return None, ""

    def check_ids(self, ids, where):
        top = max(ids, default=0)
        if top >= self.vocab_size:
            raise Stop(
                BAD_CONTENT,
                f"token {top} ({self.plain.id_to_token(top)!r}) is beyond the vocabulary "
                f"of {self.vocab_size}",
                where,
                "use the tokenizer that belongs to the model, or give the model's --vocab-size",
            )

    def encode(self, texts, offsets):
        """Encodings of texts, without what goes around them; `offsets` only where they are read."""
        if not offsets and hasattr(self.plain, "encode_batch_fast"):
            return self.plain.encode_batch_fast(texts, add_special_tokens=False)
        return self.plain.encode_batch(texts, add_special_tokens=False)


def size_of(value):
    """A count of a configuration, or None: no number, or the huge one that stands for none."""
    return value if type(value) is int and 0 < value <= MOST_IDS else None


def read_bytes(path, remedy):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        stop = stop_of(error, path)
        stop.do = remedy if stop.code == NO_INPUT else stop.do
        raise stop
