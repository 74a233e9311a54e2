"""Checkpoints of any size that take no room: safetensors with the names, shapes and dtypes that the families have, whose weights
are holes of the file (zeros when they are read).

  from sparse_checkpoint import make
  make(folder, config, shard_bytes=5_000_000_000)     # config: a dict as config.json has it

The shapes are written down here once more, by hand, so that they check what the program derives from config.json.
"""

import json
import pathlib
import struct

BYTES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}


def layer_shapes(config):
    """{name within a layer: shape}."""
    hidden, channels = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim") or hidden // heads
    rows = {"q": heads * width, "k": kv_heads * width, "v": kv_heads * width}
    shapes = {f"self_attn.{name}_proj.weight": [n, hidden] for name, n in rows.items()}
    if config["model_type"] == "qwen2":
        shapes |= {f"self_attn.{name}_proj.bias": [n] for name, n in rows.items()}
    if config["model_type"] == "qwen3":
        shapes |= {f"self_attn.{name}_norm.weight": [width] for name in ("q", "k")}
    shapes["self_attn.o_proj.weight"] = [hidden, heads * width]
    shapes |= {f"mlp.{name}_proj.weight": [channels, hidden] for name in ("gate", "up")}
    shapes["mlp.down_proj.weight"] = [hidden, channels]
    shapes |= {f"{name}_layernorm.weight": [hidden] for name in ("input", "post_attention")}
    return shapes


def shapes_of(config):
    """{name: shape} of the whole model."""
    ends = [config["vocab_size"], config["hidden_size"]]
    shapes = {"model.embed_tokens.weight": ends}
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer_shapes(config).items()}
    shapes["model.norm.weight"] = [config["hidden_size"]]
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = ends
    return shapes


def numbers_in(shape):
    count = 1
    for extent in shape:
        count *= extent
    return count


def parameters_of(config):
    """(of the whole model, of its decoder layers with their norms)."""
    in_layers = config["num_hidden_layers"] * sum(map(numbers_in, layer_shapes(config).values()))
    return sum(map(numbers_in, shapes_of(config).values())), in_layers


def write_sparse(path, shapes, dtype):
    word, size = BYTES[dtype]
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        end = at + size * numbers_in(shape)
        header[name] = {"dtype": word, "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)


def make(folder, config, shard_bytes=5_000_000_000):
    """Writes config.json, shards and their index into `folder`; returns the bytes of the weights."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    dtype = config["torch_dtype"]
    shapes, shards, size = shapes_of(config), [{}], 0
    for name, shape in shapes.items():
        number = BYTES[dtype][1] * numbers_in(shape)
        if shards[-1] and size + number > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += number
    placed = {}
    for index, part in enumerate(shards):
        name = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        write_sparse(folder / name, part, dtype)
        placed |= dict.fromkeys(part, name)
    total = BYTES[dtype][1] * sum(map(numbers_in, shapes.values()))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": placed}))
    return total
