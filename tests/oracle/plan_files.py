"""plan.h5 files drawn at random, and what they leave: written without espalier (docs/file-formats.md)."""

import hashlib

import h5py
import numpy


def draw(config, unit, seed, empty_attention=(), empty_mlp=(), share=0.45):
    """{kind: removed [L, units] of bool}: uneven groups, whole groups gone, the listed layers empty."""
    generator = numpy.random.default_rng(seed)
    units = config["num_key_value_heads"] if unit == "kv_group" else config["num_attention_heads"]
    layers = config["num_hidden_layers"]
    removed = {"attention": generator.random((layers, units)) < share,
               "mlp": generator.random((layers, config["intermediate_size"])) < share}
    if unit == "query_head":
        # Layer 0 loses all readers of its first KV head; the last layer is left with uneven groups.
        group = config["num_attention_heads"] // config["num_key_value_heads"]
        removed["attention"][0, :group] = True
        removed["attention"][0, group:] = False
        removed["attention"][-1] = False
        removed["attention"][-1, 0] = True
    if unit == "equal_per_group":
        # As many heads of each group, other ones in each.
        kv_heads, group = config["num_key_value_heads"], config["num_attention_heads"] // config["num_key_value_heads"]
        counts = generator.integers(0, group + 1, layers)
        places = generator.random((layers, kv_heads, group)).argsort(axis=2)
        removed["attention"] = (places < counts[:, None, None]).reshape(layers, -1)
    for layer in empty_attention:
        removed["attention"][layer] = True
    for layer in empty_mlp:
        removed["mlp"][layer] = True
    return removed


def write(path, removed, unit, config_sha256, means=None):
    """`means`: {kind: [L, features]}, written beside the plan."""
    at = {kind: numpy.where(gone, 1, -1).astype("int32") for kind, gone in removed.items()}
    order, place = {}, 0
    for kind in ("attention", "mlp"):
        order[kind] = numpy.full(removed[kind].shape, -1, dtype="int64")
        count = int(removed[kind].sum())
        order[kind][removed[kind]] = numpy.arange(place, place + count)
        place += count
    digest = hashlib.sha256()
    for kind in ("attention", "mlp"):
        for values in (at[kind], order[kind]):
            digest.update(numpy.asarray(values.shape, dtype="<i8").tobytes())
            digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
    with h5py.File(path, "w") as file:
        for kind in ("attention", "mlp"):
            file[f"{kind}/removed_at"] = at[kind]
            file[f"{kind}/order"] = order[kind]
        file.attrs.update({"format": "espalier-plan", "version": 1, "digest": digest.hexdigest(), "attention_unit": unit,
                           "iteration": 1, "model_config_sha256": config_sha256})
        if means is None:
            return
        digest = hashlib.sha256()
        for kind in ("attention", "mlp"):
            file[f"means/{kind}"] = means[kind]
            digest.update(numpy.asarray(means[kind].shape, dtype="<i8").tobytes())
            digest.update(means[kind].astype("<f8").tobytes())
        file.attrs["means_digest"] = digest.hexdigest()


def mask(model, removed, unit):
    """Sets the weights of removed units of a transformers model to zero, which is what a plan means."""
    import torch

    config = model.config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    with torch.no_grad():
        for index, layer in enumerate(model.model.layers):
            gone = removed["attention"][index]
            if unit == "kv_group":
                gone = numpy.repeat(gone, heads // kv_heads)
            for head in numpy.flatnonzero(gone):
                layer.self_attn.o_proj.weight[:, head * dim : (head + 1) * dim] = 0
            layer.mlp.down_proj.weight[:, torch.tensor(removed["mlp"][index])] = 0
