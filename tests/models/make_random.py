#!/usr/bin/env python3
"""Writes small random checkpoints of the families espalier reads, through transformers.

  llama    grouped heads, rope type llama3 with an original length so short that all three of its
           branches (kept, blended, divided frequencies) occur at this size
  llama2   one KV head per query head, plain rope
  mistral  a sliding window shorter than any useful test sequence
  qwen2    q/k/v biases
  qwen3    q/k norms per head, head_dim chosen so that heads * head_dim != hidden

Nothing is left at its initial value: biases are not 0, norm weights are not 1, and the matrices are
large enough for logits to differ between tokens. The same arguments give the same bytes.

  from make_random import make
  make(path, "qwen3", seed=3, layers=4, hidden=64, shards=3, spelling=4)
"""

import argparse
import json
import pathlib

FAMILIES = {  # model_type, class, defaults that differ
    "llama": ("llama", "LlamaForCausalLM", {"rope": "llama3"}),
    "llama2": ("llama", "LlamaForCausalLM", {"kv_heads": None}),
    "mistral": ("mistral", "MistralForCausalLM", {"sliding_window": 8}),
    "qwen2": ("qwen2", "Qwen2ForCausalLM", {}),
    "qwen3": ("qwen3", "Qwen3ForCausalLM", {"head_dim": 24}),
}
DTYPES = ("float32", "bfloat16", "float16")
ROPE_THETA = 10000.0
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SHAPE = {
    "layers": 3,
    "hidden": 64,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": None,
    "channels": 96,
    "vocab": 128,
    "max_positions": 256,
    "tied": False,
    "rope": "default",
    "sliding_window": None,
}


def settle(family, shape):
    """The full shape: the given values over the family's over the common ones."""
    if family not in FAMILIES:
        raise ValueError(f"family '{family}' is unknown (it must be one of {', '.join(FAMILIES)})")
    unknown = sorted(set(shape) - set(SHAPE))
    if unknown:
        raise ValueError(f"shape key '{unknown[0]}' is unknown (known: {', '.join(SHAPE)})")
    full = {**SHAPE, **FAMILIES[family][2], **{k: v for k, v in shape.items() if v is not None}}
    full["kv_heads"] = full["kv_heads"] or full["heads"]
    full["head_dim"] = full["head_dim"] or full["hidden"] // full["heads"]
    if full["heads"] % full["kv_heads"]:
        raise ValueError(f"heads = {full['heads']} is no multiple of kv_heads = {full['kv_heads']}")
    if full["rope"] not in ("default", "llama3"):
        raise ValueError(f"rope '{full['rope']}' is unknown (it must be default or llama3)")
    return full


def config_fields(family, s, dtype, spelling):
    """config.json with the field names of transformers 4 or 5."""
    model_type, architecture, _ = FAMILIES[family]
    fields = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": s["vocab"],
        "hidden_size": s["hidden"],
        "intermediate_size": s["channels"],
        "num_hidden_layers": s["layers"],
        "num_attention_heads": s["heads"],
        "num_key_value_heads": s["kv_heads"],
        "head_dim": s["head_dim"],
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": s["max_positions"],
        "tie_word_embeddings": s["tied"],
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    if model_type == "llama":
        fields.update(attention_bias=False, mlp_bias=False)
    if model_type == "mistral":
        fields.update(sliding_window=s["sliding_window"])
    if model_type == "qwen3":
        fields.update(attention_bias=False)
    if model_type in ("qwen2", "qwen3"):
        fields.update(use_sliding_window=False, sliding_window=None, max_window_layers=s["layers"])
    if spelling == 4:
        fields.update(
            rope_theta=ROPE_THETA,
            rope_scaling=dict(LLAMA3) if s["rope"] == "llama3" else None,
            torch_dtype=dtype,
        )
    else:
        rope = dict(LLAMA3) if s["rope"] == "llama3" else {"rope_type": "default"}
        fields.update(rope_parameters={**rope, "rope_theta": ROPE_THETA}, dtype=dtype)
        if model_type in ("qwen2", "qwen3"):
            fields["layer_types"] = ["full_attention"] * s["layers"]
    return fields


def draw(name, shape, generator, torch):
    """Random values of one tensor in float32; the spread follows its part in the model."""
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    if name.endswith("norm.weight"):
        return 1.0 + 0.2 * values
    if name.endswith(".bias"):
        return 0.3 * values
    return values * (2.0 if "embed_tokens" in name or "lm_head" in name else 1.2) / shape[-1] ** 0.5


def random_tensors(family, fields, seed, dtype):
    """{name: tensor} as transformers names them; its own class says which tensors the model has."""
    import torch
    import transformers

    own = 4 if int(transformers.__version__.split(".")[0]) < 5 else 5
    config_class = transformers.AutoConfig.for_model(fields[own]["model_type"]).__class__
    skipped = ("architectures", "model_type", "dtype", "torch_dtype")
    config = config_class(**{k: v for k, v in fields[own].items() if k not in skipped})
    with torch.device("meta"):
        model = getattr(transformers, FAMILIES[family][1])(config)
    shapes = {
        name: tuple(value.shape) for name, value in model.named_parameters()
    }  # a tied head is not listed twice
    generator = torch.Generator().manual_seed(seed)
    return {
        name: draw(name, shapes[name], generator, torch).to(getattr(torch, dtype))
        for name in sorted(shapes)
    }


def cut(tensors, shards):
    """The tensors in `shards` contiguous runs of about equal bytes, none empty."""
    if not 1 <= shards <= len(tensors):
        raise ValueError(
            f"shards = {shards} (it must be from 1 to {len(tensors)}, the number of tensors)"
        )
    total = sum(t.nbytes for t in tensors.values())
    parts, done = [{}], 0
    left = len(tensors)
    for name, tensor in tensors.items():
        missing = shards - len(parts)
        if parts[-1] and missing and (done >= total * len(parts) / shards or left == missing):
            parts.append({})
        parts[-1][name] = tensor
        done += tensor.nbytes
        left -= 1
    return parts


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def make(
    path, family, seed=0, *, dtype="float32", shards=1, spelling=5, config=None, without=(), **shape
):
    """Writes a checkpoint directory and returns its path.

    `shape`: layers, hidden, heads, kv_heads, head_dim, channels, vocab, max_positions, tied, rope
    ("default" or "llama3"), sliding_window. `spelling`: 4 or 5. `config`: fields laid over
    config.json as written; `without`: fields left out of it (an absent field takes the class's
    default). These two change the file only, never the tensors.
    """
    from safetensors.torch import save_file

    if dtype not in DTYPES:
        raise ValueError(f"dtype '{dtype}' is unknown (it must be one of {', '.join(DTYPES)})")
    if spelling not in (4, 5):
        raise ValueError(f"spelling = {spelling} (it must be 4 or 5)")
    path, full = pathlib.Path(path), settle(family, shape)
    fields = {s: config_fields(family, full, dtype, s) for s in (4, 5)}
    tensors = random_tensors(family, fields, seed, dtype)
    parts = cut(tensors, shards)
    path.mkdir(parents=True, exist_ok=True)
    names = (
        ["model.safetensors"]
        if shards == 1
        else [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    )
    for name, part in zip(names, parts):
        save_file(part, path / name, metadata={"format": "pt"})
        (path / name).chmod(0o644)
    if shards > 1:
        write_json(
            path / "model.safetensors.index.json",
            {
                "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
                "weight_map": {tensor: name for name, part in zip(names, parts) for tensor in part},
            },
        )
    written = {**fields[spelling], **(config or {})}
    write_json(path / "config.json", {k: v for k, v in written.items() if k not in without})
    write_json(path / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    return path


def main():
    parser = argparse.ArgumentParser(description="Write a small random checkpoint.")
    parser.add_argument("path", type=pathlib.Path, help="directory to write")
    parser.add_argument("--family", choices=list(FAMILIES), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument(
        "--spelling",
        type=int,
        choices=(4, 5),
        default=5,
        help="field names of config.json: transformers 4 or 5",
    )
    tied = parser.add_mutually_exclusive_group()
    tied.add_argument("--tied", dest="tied", action="store_true", default=None)
    tied.add_argument("--untied", dest="tied", action="store_false")
    for key in (
        "layers",
        "hidden",
        "heads",
        "kv-heads",
        "head-dim",
        "channels",
        "vocab",
        "max-positions",
        "sliding-window",
    ):
        parser.add_argument(f"--{key}", type=int)
    parser.add_argument("--rope", choices=("default", "llama3"))
    args = vars(parser.parse_args())
    try:
        print(make(args.pop("path"), args.pop("family"), **args))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
