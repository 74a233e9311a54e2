"""Loads checkpoints that espalier pruned to a different width in every layer.

    AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)

config.json describes the *unpruned* model, so that every stock check on it still holds, and adds
what is left of each layer:

    "espalier": {"layers": [{"groups": [2, 1, 1], "channels": 96}, ...]}

`groups` lists the query heads that still read each kept key/value head, `channels` is the width of
the MLP. The classes below let the stock model build itself and then replace Linear modules only. No
forward of the model is overridden: attention implementations, masks, caches and generate() are the
stock ones.

Attention code expects the same number of query heads for every key/value head. Where groups differ,
the query projection scatters its heads into equal slots (zero where no head is) and the output
projection drops those slots again, so keys and values are neither copied nor padded: the cache of a
layer holds exactly its kept key/value heads. A layer without heads is the same thing with one empty
slot: it feeds one constant head to the cache, because masks and sequence lengths are read from the
first layer's cache (and 4.57 counts the tokens of a static cache by their keys that are not zero).
The projections of such a layer are parameters with zero rows.

Written for transformers 4.57 and 5.x. Needs no other file of espalier.
"""

import warnings

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)


class ScatterLinear(nn.Linear):
    """A Linear whose output heads go into slots: group i fills the first of its `slots` places."""

    groups, slots, head_dim, filler = (), 1, 1, 0.0

    def forward(self, x):
        heads = super().forward(x).split([n * self.head_dim for n in self.groups], dim=-1)
        width = self.slots * self.head_dim
        padded = [F.pad(h, (0, width - h.shape[-1]), value=self.filler) for h in heads]
        return torch.cat(padded, dim=-1)


class GatherLinear(nn.Linear):
    """A Linear that reads slots as ScatterLinear laid them out and skips the empty ones."""

    groups, slots, head_dim, filler = (), 1, 1, 0.0

    def forward(self, x):
        by_group = x.split(self.slots * self.head_dim, dim=-1)
        kept = [g[..., : n * self.head_dim] for g, n in zip(by_group, self.groups)]
        return super().forward(torch.cat(kept, dim=-1))


def _replace(parent, name, in_features, out_features, kind=nn.Linear, layout=None):
    """Puts a Linear of another width in the place of parent.name; same bias, dtype and device."""
    old = getattr(parent, name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*zero-element.*")
        new = kind(in_features, out_features, old.bias is not None,
                   device=old.weight.device, dtype=old.weight.dtype)
    if kind is not nn.Linear:  # plain attributes: buffers would lose their values on "meta"
        new.groups, new.slots, new.head_dim, new.filler = layout
    setattr(parent, name, new)


def _shrink_attention(attention, hidden, groups):
    head_dim, heads, slots = attention.head_dim, sum(groups), max(groups, default=1)
    empty, uneven = not groups, any(n != slots for n in groups)
    layout, constant = (groups or [0], slots, head_dim, 0.0), ([0], 1, head_dim, 1.0)
    q_kind = ScatterLinear if empty or uneven else nn.Linear
    o_kind = GatherLinear if empty or uneven else nn.Linear
    kv_kind = ScatterLinear if empty else nn.Linear
    _replace(attention, "q_proj", hidden, heads * head_dim, q_kind, layout)
    _replace(attention, "k_proj", hidden, len(groups) * head_dim, kv_kind, constant)
    _replace(attention, "v_proj", hidden, len(groups) * head_dim, kv_kind, constant)
    _replace(attention, "o_proj", heads * head_dim, hidden, o_kind, layout)
    attention.num_key_value_groups = slots


def _shrink_mlp(mlp, hidden, channels):
    _replace(mlp, "gate_proj", hidden, channels)
    _replace(mlp, "up_proj", hidden, channels)
    _replace(mlp, "down_proj", channels, hidden)


def _checked_layers(config):
    """config.espalier["layers"], or ValueError when it cannot be what is left of this model."""
    layers = (getattr(config, "espalier", None) or {}).get("layers")
    if layers is None:
        raise ValueError("config.json has no key espalier.layers (it is not an espalier export)")
    if len(layers) != config.num_hidden_layers:
        raise ValueError(f"espalier.layers has {len(layers)} entries for "
                         f"{config.num_hidden_layers} layers")
    widest = config.num_attention_heads // config.num_key_value_heads
    for i, layer in enumerate(layers):
        groups, channels = layer["groups"], layer["channels"]
        if len(groups) > config.num_key_value_heads or any(not 1 <= n <= widest for n in groups):
            raise ValueError(f"espalier.layers[{i}].groups is {groups}: at most "
                             f"{config.num_key_value_heads} groups of 1 to {widest} heads fit")
        if not 0 <= channels <= config.intermediate_size:
            raise ValueError(f"espalier.layers[{i}].channels is {channels}, outside "
                             f"[0, {config.intermediate_size}]")
    return layers


class _PrunedForCausalLM:
    """Mixed in before a stock ...ForCausalLM: builds it, then gives each layer its widths."""

    def __init__(self, config, *args, **kwargs):
        layers = _checked_layers(config)
        super().__init__(config, *args, **kwargs)
        for block, left in zip(self.model.layers, layers):
            _shrink_attention(block.self_attn, config.hidden_size, list(left["groups"]))
            _shrink_mlp(block.mlp, config.hidden_size, left["channels"])
        self.post_init()  # gives the new modules their initial values

    def _get_static_cache_init_shape(self):
        """transformers 5 allocates static caches ahead: heads and head size of each layer."""
        heads = [max(1, len(layer["groups"])) for layer in self.config.espalier["layers"]]
        return heads, [block.self_attn.head_dim for block in self.model.layers]


class EspalierLlamaForCausalLM(_PrunedForCausalLM, LlamaForCausalLM):
    """Llama 2 and 3."""


class EspalierMistralForCausalLM(_PrunedForCausalLM, MistralForCausalLM):
    """Mistral."""


class EspalierQwen2ForCausalLM(_PrunedForCausalLM, Qwen2ForCausalLM):
    """Qwen2 and Qwen2.5."""


class EspalierQwen3ForCausalLM(_PrunedForCausalLM, Qwen3ForCausalLM):
    """Qwen3, dense."""


# So that save_pretrained copies this file along (4.57 does it only for registered classes).
for _class in (EspalierLlamaForCausalLM, EspalierMistralForCausalLM,
               EspalierQwen2ForCausalLM, EspalierQwen3ForCausalLM):
    _class.register_for_auto_class("AutoModelForCausalLM")
