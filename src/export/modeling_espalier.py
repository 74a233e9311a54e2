"""Loads checkpoints that espalier pruned to a different width in every layer.

    AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)

AutoModel and AutoModelForSequenceClassification work as well. config.json describes the *unpruned*
model, so that every stock check on it still holds, and adds what is left of each layer:

    "espalier": {"layers": [{"groups": [2, 1, 1], "channels": 96}, ...]}

`groups` lists the query heads that still read each kept key/value head, `channels` is the width of
the MLP. With "output_bias": true beside "layers", o_proj and down_proj of every layer have biases,
which stand for what was removed. The stock model builds itself; then every projection becomes a plain nn.Linear of the width
that is left, under the stock name, so that tools which look for nn.Linear (adapters, quantizers) find
what they expect. What differs from a stock layer lies around the projections:

Attention code expects the same number of query heads for every key/value head. Where groups differ,
the stock forward runs on a view of the module whose query projection lays its heads out in equal
slots (zero where no head is) and whose output projection drops those slots again. Keys and values are
neither copied nor padded: the cache of a layer holds exactly its kept key/value heads.

A layer without heads, or without channels, has no projections at all: its attention or MLP adds
zero, or its output bias.
Its attention still feeds one constant head to the cache, because masks and sequence lengths are read
from the first layer's cache (and transformers 4 counts the tokens of a static cache by their keys
that are not zero).

Written for transformers 4.48 to 5.x (Qwen3: from 4.51 on). Needs no other file of espalier.
"""

import importlib
import re

import transformers
from torch import cat, nn
from torch.nn import functional as F

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")


def zeros_like_last(x, width, value=0.0):
    """Constants [..., width] that still depend on x: every parameter before them gets a gradient,
    which is zero (DistributedDataParallel waits for each)."""
    return F.pad(x[..., :0], (0, width), value=value)


# ---------------------------------------------------------------- attention and MLP

class AttentionView:
    """An attention module as the stock forward is to see it: other projections, the same rest."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):  # only for what the view does not define itself
        return getattr(self.module, name)


class UnevenView(AttentionView):
    """Group i of the query heads fills the first of its `num_key_value_groups` slots."""

    def q_proj(self, x):
        width, head_dim = self.num_key_value_groups * self.head_dim, self.head_dim
        heads = self.module.q_proj(x).split([n * head_dim for n in self.groups], dim=-1)
        return cat([F.pad(h, (0, width - h.shape[-1])) for h in heads], dim=-1)

    def o_proj(self, x):
        by_group = x.split(self.num_key_value_groups * self.head_dim, dim=-1)
        kept = [g[..., : n * self.head_dim] for g, n in zip(by_group, self.groups)]
        return self.module.o_proj(cat(kept, dim=-1))


class EmptyView(AttentionView):
    """One head of constants, whose output is dropped; the output bias is left, where there is one."""

    def q_proj(self, x):
        return zeros_like_last(x, self.head_dim)

    def k_proj(self, x):
        return zeros_like_last(x, self.head_dim, value=1.0)

    v_proj = k_proj

    def o_proj(self, x):
        empty = zeros_like_last(x, self.config.hidden_size)
        return empty if self.module.o_proj is None else self.module.o_proj(empty)


class ViewedAttention:
    """Mixed in before a stock attention class: its forward, on a view."""

    view, stock, groups = None, None, ()

    def forward(self, *args, **kwargs):
        return self.stock.forward(self.view(self), *args, **kwargs)


class OutputBias(nn.Module):
    """What is left of a projection that reads nothing any more."""

    def __init__(self, weight):
        super().__init__()
        self.bias = nn.Parameter(weight.new_zeros(weight.shape[0]))

    def forward(self, x):
        return x + self.bias


class EmptyMLP(nn.Module):
    """The MLP of a layer without channels."""

    def __init__(self, down_proj):
        super().__init__()
        self.down_proj = down_proj

    def forward(self, x):
        empty = zeros_like_last(x, x.shape[-1])
        return empty if self.down_proj is None else self.down_proj(empty)


def _replace(parent, name, in_features, out_features, output_bias=False):
    """Puts a Linear of another width in the place of parent.name; same bias, dtype and device."""
    old = getattr(parent, name)
    setattr(parent, name, nn.Linear(in_features, out_features, old.bias is not None or output_bias,
                                    device=old.weight.device, dtype=old.weight.dtype))


def _left_of(writer, output_bias):
    """What a projection without inputs is: its bias, or nothing."""
    if writer.bias is not None and not output_bias:
        raise ValueError("a layer of which nothing is left cannot keep the bias of o_proj or down_proj")
    return OutputBias(writer.weight) if output_bias else None


def _shrink_attention(attention, family, hidden, groups, output_bias):
    head_dim, slots = attention.head_dim, max(groups, default=1)
    attention.num_key_value_groups, attention.groups = slots, groups
    if not groups:
        left = _left_of(attention.o_proj, output_bias)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            delattr(attention, name)
        attention.o_proj = left
        attention.__class__ = _class_of(f"Espalier{family}EmptyAttention")
        return
    for name, heads in (("q_proj", sum(groups)), ("k_proj", len(groups)), ("v_proj", len(groups))):
        _replace(attention, name, hidden, heads * head_dim)
    _replace(attention, "o_proj", sum(groups) * head_dim, hidden, output_bias)
    if min(groups) != slots:
        attention.__class__ = _class_of(f"Espalier{family}UnevenAttention")


def _shrink_mlp(block, hidden, channels, output_bias):
    if channels == 0:
        block.mlp = EmptyMLP(_left_of(block.mlp.down_proj, output_bias))
        return
    _replace(block.mlp, "gate_proj", hidden, channels)
    _replace(block.mlp, "up_proj", hidden, channels)
    _replace(block.mlp, "down_proj", channels, hidden, output_bias)


# ---------------------------------------------------------------- models

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


def _fit_static_cache(attention, args, kwargs):
    """Before transformers 4.54 a StaticCache is allocated with the KV heads of the unpruned model."""
    cache, layer = kwargs.get("past_key_value"), attention.layer_idx
    heads = max(1, len(attention.groups))
    if isinstance(cache, transformers.StaticCache) and cache.key_cache[layer].shape[1] > heads:
        cache.key_cache[layer] = cache.key_cache[layer][:, :heads].contiguous()
        cache.value_cache[layer] = cache.value_cache[layer][:, :heads].contiguous()


class PrunedModel:
    """Mixed in before a stock model class: builds it, then gives each layer its widths."""

    family = None
    # Without elements, of layers without projections: they are stored so that a stock class, loaded
    # without this file, stops at their size and does not draw random weights for them.
    _keys_to_ignore_on_load_unexpected = [
        r"layers\.\d+\.self_attn\.([qkvo]_proj\.weight|[qkv]_proj\.bias)$",
        r"layers\.\d+\.mlp\.(gate|up|down)_proj\.weight$",
    ]

    def __init__(self, config, *args, **kwargs):
        layers = _checked_layers(config)
        output_bias = bool(config.espalier.get("output_bias", False))
        super().__init__(config, *args, **kwargs)
        allocates_ahead = not hasattr(transformers.cache_utils, "StaticLayer")
        for block, left in zip(self.base_model.layers, layers):
            _shrink_attention(block.self_attn, self.family, config.hidden_size,
                              list(left["groups"]), output_bias)
            _shrink_mlp(block, config.hidden_size, left["channels"], output_bias)
            if allocates_ahead:
                block.self_attn.register_forward_pre_hook(_fit_static_cache, with_kwargs=True)
        self.post_init()  # gives the new modules their initial values

    def _get_static_cache_init_shape(self):
        """transformers 5 allocates static caches ahead: heads and head size of each layer."""
        heads = [max(1, len(layer["groups"])) for layer in self.config.espalier["layers"]]
        return heads, [block.self_attn.head_dim for block in self.base_model.layers]


# ---------------------------------------------------------------- classes on demand

VIEWS = {"UnevenAttention": UnevenView, "EmptyAttention": EmptyView}
AUTO_CLASSES = {"Model": "AutoModel", "ForCausalLM": "AutoModelForCausalLM",
                "ForSequenceClassification": "AutoModelForSequenceClassification"}


def _class_of(name):
    """Makes Espalier<family><what>, or returns the one made before."""
    if name in globals():
        return globals()[name]
    match = re.fullmatch(f"Espalier({'|'.join(FAMILIES)})({'|'.join((*VIEWS, *AUTO_CLASSES))})", name)
    if match is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    family, what = match.groups()
    if not hasattr(transformers, f"{family}ForCausalLM"):
        raise ImportError(f"transformers {transformers.__version__} has no {family}: a newer one is "
                          "needed")
    if what in VIEWS:
        place = f"transformers.models.{family.lower()}.modeling_{family.lower()}"
        stock = getattr(importlib.import_module(place), f"{family}Attention")
        made = type(name, (ViewedAttention, stock),
                    {"__module__": __name__, "view": VIEWS[what], "stock": stock})
    else:
        stock = getattr(transformers, f"{family}{what}")
        made = type(name, (PrunedModel, stock), {"__module__": __name__, "family": family})
        # So that save_pretrained copies this file along.
        made.register_for_auto_class(AUTO_CLASSES[what])
    globals()[name] = made
    return made


def __getattr__(name):
    """EspalierLlamaForCausalLM and the others are made when they are asked for: an older
    transformers lacks some families, and none need to be imported but the model's own."""
    return _class_of(name)
