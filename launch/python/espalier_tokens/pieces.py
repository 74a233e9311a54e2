"""The bytes that each token of a tokenizer decodes to, so that decoding is putting them together.

Decoders that treat the first token apart (they take a space from the begin of the text) are not
followed in that: a generated text begins in the middle of one.
"""

import re

from espalier_launch.stop import BAD_CONTENT, Stop

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


def byte_alphabet():
    """{character of a byte-level token: byte}: printable Latin-1 stands for itself, the rest for
    what follows behind it."""
    alphabet, following = {}, 256
    for byte in range(256):
        plain = 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174
        alphabet[chr(byte if plain else following)] = byte
        following += not plain
    return alphabet


class Decoder:
    """What a decoder of tokenizer.json makes of one token."""

    def __init__(self, settings, path):
        self.path, self.byte_level, self.byte_fallback, self.replaced = path, False, False, []
        self.alphabet = byte_alphabet()
        self._add(settings)

    def _add(self, settings):
        kind = settings.get("type") if isinstance(settings, dict) else None
        if kind == "Sequence":
            for part in settings.get("decoders", []):
                self._add(part)
        elif kind == "ByteLevel":
            self.byte_level = True
        elif kind == "ByteFallback":
            self.byte_fallback = True
        elif kind == "Metaspace":
            self.replaced.append((settings.get("replacement", "\u2581"), " "))
        elif kind == "Replace" and "String" in settings.get("pattern", {}):
            self.replaced.append((settings["pattern"]["String"], settings.get("content", "")))
        elif kind != "Fuse" and not (kind == "Strip" and not settings.get("stop")):
            raise Stop(
                BAD_CONTENT,
                f"the decoder of '{self.path}' is not known",
                f"its type is {kind or 'none'}; byte-level and SentencePiece decoders are",
                "use a tokenizer of another model for generation",
            )

    def bytes_of(self, token):
        for old, new in self.replaced:
            token = token.replace(old, new)
        byte = BYTE.match(token) if self.byte_fallback else None
        if byte:
            return bytes([int(byte.group(1), 16)])
        if self.byte_level and all(c in self.alphabet for c in token):
            return bytes(self.alphabet[c] for c in token)
        return token.encode()


def pieces(coder):
    """(all bytes, the end of each token's) for the ids of the vocabulary; of special tokens, and of
    ids that the tokenizer does not know, none."""
    decoder, out, ends = Decoder(coder.decoder, coder.file), bytearray(), []
    for number in range(coder.vocab_size):
        token = coder.plain.id_to_token(number)
        if token is not None and number not in coder.special:
            out += decoder.bytes_of(token)
        ends.append(len(out))
    return bytes(out), ends
