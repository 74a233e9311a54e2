"""Model directories as other programs leave them: every variant is a change to a small checkpoint and what becomes of it.

`READ` means that espalier computes what every version of transformers computes that gets through. A tuple is a refusal: the
words that the message has to contain, the field, file or tensor, and from the remedy.
"""

import copy
import json

import torch
from safetensors.torch import load_file, save

READ = "read"
NEWER = "read as transformers 5 does"  # transformers 4 passes over a field that it does not know
AS_BASE = "read as the unchanged model"  # no version of transformers gets through, and the meaning is plain
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 4976698672\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Access to this model is restricted.</body></html>\n"
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}


class Draft:
    """A model directory before it is written."""

    def __init__(self, base):
        self.config = json.loads((base / "config.json").read_text())
        self.tensors = load_file(base / "model.safetensors")
        self.metadata = {"format": "pt"}
        self.parts = None  # {file: [tensor names]}; None = one model.safetensors
        self.index = None  # what the index says instead of the truth
        self.files = {}  # {name: bytes} laid over the rest; None removes

    def set(self, **fields):
        self.config.update(fields)

    def drop(self, *names):
        for name in names:
            self.config.pop(name, None)

    def rename(self, change):
        self.tensors = {change(name): value for name, value in self.tensors.items()}

    def cut(self, count=2):
        """Shards model-0000i-of-0000n.safetensors of the tensors in turn."""
        names = sorted(self.tensors)
        self.parts = {f"model-{i + 1:05}-of-{count:05}.safetensors": names[i::count] for i in range(count)}
        self.index = {"metadata": {"total_size": sum(t.nbytes for t in self.tensors.values())},
                      "weight_map": {name: file for file, part in self.parts.items() for name in part}}

    def write(self, path):
        path.mkdir()
        (path / "config.json").write_text(json.dumps(self.config, indent=2))
        for file, names in (self.parts or {"model.safetensors": list(self.tensors)}).items():
            part = {n: self.tensors[n].contiguous().clone() for n in names}
            (path / file).write_bytes(save(part, metadata=self.metadata))
        if self.index is not None:
            (path / "model.safetensors.index.json").write_text(json.dumps(self.index))
        for name, content in self.files.items():
            if content is None:
                (path / name).unlink()
            else:
                (path / name).parent.mkdir(exist_ok=True)
                (path / name).write_bytes(content)


def fields(**values):
    return lambda d: d.set(**copy.deepcopy(values))


def without(*names):
    return lambda d: d.drop(*names)


def both(*changes):
    def change(d):
        for one in changes:
            one(d)

    return change


def tensor(name, value):
    def change(d):
        d.tensors[name] = value(d.tensors) if callable(value) else value

    return change


def renamed(rule):
    return lambda d: d.rename(rule)


def files(**content):
    return lambda d: d.files.update({name.replace("__", "."): value for name, value in content.items()})


def text(change):
    """A change to the text of config.json, for what json.dumps does not write."""
    def apply(d):
        d.files["config.json"] = change(json.dumps(d.config, indent=2)).encode()

    return apply


def sharded(*changes):
    return both(lambda d: d.cut(), *changes)


def tensors_as(rule):
    def change(d):
        d.tensors = {name: rule(name, value) for name, value in d.tensors.items()}

    return change


def shard_bytes(rule, number=1):
    """What stands in the place of one shard: `rule` of its right bytes, None for no file."""
    def change(d):
        name = list(d.parts)[number]
        d.files[name] = rule(save({n: d.tensors[n].contiguous() for n in d.parts[name]}, metadata=d.metadata))

    return change


def single_bytes(rule):
    def change(d):
        d.files["model.safetensors"] = rule(save({n: t.contiguous() for n, t in d.tensors.items()}, metadata=d.metadata))

    return change


Q0 = "model.layers.0.self_attn.q_proj"
HEADLESS = renamed(lambda n: n.removeprefix("model."))

ROPE = [
    ("rope-null", FAMILIES, READ, fields(rope_scaling=None)),
    ("rope-empty", ("qwen2", "llama"), READ, fields(rope_scaling={})),
    ("rope-list", ("qwen2", "llama"), READ, fields(rope_scaling=[])),
    ("rope-absent", ("llama", "mistral"), READ, without("rope_scaling")),
    ("rope-false", ("qwen2",), ("rope_scaling",), fields(rope_scaling=False)),
    ("rope-type-default", ("mistral", "qwen3"), READ, fields(rope_scaling={"type": "default"})),
    ("rope-rope-type-default", ("qwen2",), READ, fields(rope_scaling={"rope_type": "default"})),
    ("rope-default-factor", ("qwen2",), READ, fields(rope_scaling={"rope_type": "default", "factor": 4.0})),
    ("rope-linear-1", ("mistral", "qwen2"), READ, fields(rope_scaling={"type": "linear", "factor": 1.0})),
    ("rope-linear-1-int", ("qwen3",), READ, fields(rope_scaling={"rope_type": "linear", "factor": 1})),
    ("rope-linear-no-factor", ("qwen2",), ("linear", "factor"), fields(rope_scaling={"type": "linear"})),
    ("rope-linear-2", ("qwen2", "llama"), ("linear",), fields(rope_scaling={"type": "linear", "factor": 2.0})),
    ("rope-dynamic", ("qwen2",), ("dynamic",), fields(rope_scaling={"type": "dynamic", "factor": 2.0})),
    ("rope-dynamic-1", ("qwen2",), ("dynamic",), fields(rope_scaling={"type": "dynamic", "factor": 1.0})),
    ("rope-yarn", ("qwen2", "qwen3"), ("yarn",), fields(rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64})),
    ("rope-longrope", ("mistral",), ("longrope",), fields(rope_scaling={"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4})),
    ("rope-su", ("mistral",), ("su",), fields(rope_scaling={"type": "su", "factor": 1.0})),
    ("rope-mrope", ("qwen2",), ("mrope",), fields(rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]})),
    ("rope-llama3-reversed", ("llama", "mistral"), READ, fields(rope_scaling=dict(reversed(LLAMA3.items())))),
    ("rope-llama3-type", ("qwen2",), READ, fields(rope_scaling={"type": "llama3", **{k: v for k, v in LLAMA3.items() if k != "rope_type"}})),
    ("rope-llama3-both", ("llama",), READ, fields(rope_scaling={"type": "llama3", **LLAMA3})),
    ("rope-llama3-ints", ("llama",), READ, fields(rope_scaling={**LLAMA3, "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4})),
    ("rope-llama3-original-float", ("llama",), READ, fields(rope_scaling={**LLAMA3, "original_max_position_embeddings": 32.0})),
    ("rope-llama3-original-outside", ("llama",), READ, both(
        fields(rope_scaling={k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}),
        fields(original_max_position_embeddings=32))),
    ("rope-llama3-original-both", ("llama",), READ, fields(original_max_position_embeddings=32)),
    ("rope-llama3-original-differs", ("llama",), ("original_max_position_embeddings", "Keep"), fields(original_max_position_embeddings=64)),
    ("rope-llama3-no-original", ("llama",), READ,
     fields(rope_scaling={k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"})),
    ("rope-llama3-no-low", ("llama",), ("low_freq_factor",), fields(rope_scaling={k: v for k, v in LLAMA3.items() if k != "low_freq_factor"})),
    ("rope-llama3-low-is-high", ("llama",), ("high_freq_factor",), fields(rope_scaling={**LLAMA3, "low_freq_factor": 4.0})),
    ("rope-llama3-attention-factor", ("llama",), READ, fields(rope_scaling={**LLAMA3, "attention_factor": 1.0})),
    ("rope-llama3-attention-factor-2", ("llama",), READ, fields(rope_scaling={**LLAMA3, "attention_factor": 2.0})),
    ("rope-types-differ", ("qwen2",), ("type", "Keep"), fields(rope_scaling={"type": "linear", "rope_type": "default", "factor": 1.0})),
    ("rope-theta-int", FAMILIES, READ, fields(rope_theta=500000)),
    ("rope-theta-float", ("llama", "qwen2"), READ, fields(rope_theta=1e6)),
    ("rope-theta-string", ("qwen2",), ("rope_theta",), fields(rope_theta="10000.0")),
    ("rope-theta-null", ("qwen2",), ("rope_theta",), fields(rope_theta=None)),
    ("rope-theta-absent", FAMILIES, READ, without("rope_theta")),
    ("rope-theta-inside", ("qwen2",), NEWER, both(without("rope_theta"), fields(rope_scaling={"type": "default", "rope_theta": 5000}))),
    ("rope-theta-inside-llama3", ("llama",), NEWER, both(without("rope_theta"), fields(rope_scaling={**LLAMA3, "rope_theta": 5000}))),
    ("rope-theta-both", ("qwen2",), READ, both(fields(rope_theta=5000), fields(rope_scaling={"type": "default", "rope_theta": 5000.0}))),
    ("rope-theta-differs", ("qwen2",), ("rope_theta", "Keep"), both(fields(rope_theta=5000), fields(rope_scaling={"type": "default", "rope_theta": 6000.0}))),
    ("rope-parameters", FAMILIES, NEWER, both(without("rope_theta", "rope_scaling"), fields(rope_parameters={"rope_type": "default", "rope_theta": 5000}))),
    ("rope-parameters-llama3", FAMILIES, NEWER, both(without("rope_theta", "rope_scaling"), fields(rope_parameters={**LLAMA3, "rope_theta": 5000}))),
    ("rope-parameters-linear-1", ("qwen2",), NEWER, both(without("rope_theta", "rope_scaling"), fields(rope_parameters={"rope_type": "linear", "factor": 1.0, "rope_theta": 5000}))),
    ("rope-parameters-list", ("qwen2",), READ, both(without("rope_scaling"), fields(rope_parameters=[]))),
    ("rope-parameters-theta-outside", ("qwen2",), READ, both(without("rope_scaling"), fields(rope_theta=5000, rope_parameters={"rope_type": "default"}))),
    ("rope-parameters-per-layer", ("qwen2", "qwen3"), ("rope_parameters.full_attention", "flat"), both(
        without("rope_theta", "rope_scaling"),
        fields(layer_types=["full_attention"] * 4, rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 5000}}))),
    ("rope-parameters-per-layer-undeclared", ("llama", "mistral"), ("rope_parameters.full_attention", "flat"), both(
        without("rope_theta", "rope_scaling"),
        fields(rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 5000}}))),
    ("rope-partial-1", ("qwen2",), READ, fields(partial_rotary_factor=1.0)),
    ("rope-partial-half", ("qwen2", "llama"), ("partial_rotary_factor",), fields(partial_rotary_factor=0.5)),
    ("rope-partial-half-inside", ("qwen2",), ("partial_rotary_factor",), fields(rope_scaling={"type": "default", "partial_rotary_factor": 0.5})),
]

DTYPES = [
    ("dtype-auto", FAMILIES, READ, fields(torch_dtype="auto")),
    ("dtype-null", ("llama",), READ, fields(torch_dtype=None)),
    ("dtype-absent", ("mistral",), READ, without("torch_dtype")),
    ("dtype-torch-prefix", ("llama", "qwen3"), READ, fields(torch_dtype="torch.bfloat16")),
    ("dtype-list", ("qwen2",), ("torch_dtype",), fields(torch_dtype=["bfloat16"])),
    ("dtype-fp16", ("qwen2",), ("torch_dtype",), fields(torch_dtype="fp16")),
    ("dtype-half", ("qwen2",), ("torch_dtype", "float16"), fields(torch_dtype="half")),
    ("dtype-float8", ("qwen2",), ("torch_dtype",), fields(torch_dtype="float8_e4m3fn")),
    ("dtype-new-spelling", ("qwen2",), READ, both(without("torch_dtype"), fields(dtype="float32"))),
]

FIELDS = [
    ("head-dim-null", ("llama", "mistral"), READ, fields(head_dim=None)),
    ("head-dim-null-qwen2", ("qwen2",), AS_BASE, fields(head_dim=None)),
    ("head-dim-absent", ("llama", "mistral", "qwen2"), READ, without("head_dim")),
    ("head-dim-absent-128", ("qwen3",), ("q_proj.weight",), without("head_dim")),
    ("head-dim-null-qwen3", ("qwen3",), ("q_proj.weight",), fields(head_dim=None)),
    ("head-dim-float", ("llama",), ("head_dim", "no fraction"), fields(head_dim=8.0)),
    ("head-dim-wrong", FAMILIES, ("q_proj.weight",), fields(head_dim=16)),
    ("kv-heads-null", ("llama", "qwen2"), ("k_proj.weight",), fields(num_key_value_heads=None)),
    ("kv-heads-absent", ("llama",), ("k_proj.weight",), without("num_key_value_heads")),
    ("kv-heads-default", FAMILIES[1:], ("num_key_value_heads", "the default of this model type"), without("num_key_value_heads")),
    ("kv-heads-zero", ("llama",), ("num_key_value_heads",), fields(num_key_value_heads=0)),
    ("kv-heads-3", ("llama",), ("num_key_value_heads",), fields(num_key_value_heads=3)),
    ("hidden-float", ("llama", "qwen2"), ("hidden_size", "no fraction"), fields(hidden_size=32.0)),
    ("hidden-string", ("llama",), ("hidden_size", "no quotes"), fields(hidden_size="32")),
    ("layers-float", ("mistral",), ("num_hidden_layers", "no fraction"), fields(num_hidden_layers=4.0)),
    ("layers-fewer", ("llama",), READ, fields(num_hidden_layers=3)),
    ("layers-more", ("llama",), ("layers.4",), fields(num_hidden_layers=5)),
    ("vocab-larger", ("qwen2",), ("embed_tokens.weight",), fields(vocab_size=96)),
    ("vocab-smaller", ("qwen2",), ("embed_tokens.weight",), fields(vocab_size=60)),
    ("vocab-boolean", ("qwen2",), ("vocab_size",), fields(vocab_size=True)),
    ("channels-fraction", ("llama",), ("intermediate_size",), fields(intermediate_size=24.5)),
    ("eps-string", FAMILIES, ("rms_norm_eps", "without quotes"), fields(rms_norm_eps="1e-05")),
    ("eps-written-out", ("llama",), READ, text(lambda t: t.replace("1e-05", "0.00001"))),
    ("eps-capital", ("qwen3",), READ, text(lambda t: t.replace("1e-05", "1E-5"))),
    ("eps-absent", FAMILIES, READ, without("rms_norm_eps")),
    ("eps-zero", ("llama",), READ, fields(rms_norm_eps=0.0)),
    ("eps-int", ("llama",), READ, fields(rms_norm_eps=1)),
    ("eps-null", ("llama",), ("rms_norm_eps",), fields(rms_norm_eps=None)),
    ("act-swish", ("llama", "qwen2"), READ, fields(hidden_act="swish")),
    ("act-absent", FAMILIES, READ, without("hidden_act")),
    ("act-gelu", ("mistral",), ("hidden_act",), fields(hidden_act="gelu")),
    ("act-capital", ("mistral",), ("hidden_act",), fields(hidden_act="SiLU")),
    ("act-null", ("mistral",), ("hidden_act",), fields(hidden_act=None)),
    ("activation-field", ("llama",), ("hidden_activation",), fields(hidden_activation="gelu_pytorch_tanh")),
    ("positions-absent", FAMILIES, READ, without("max_position_embeddings")),
    ("positions-short", ("qwen2",), READ, fields(max_position_embeddings=4)),
    ("positions-string", ("qwen2",), ("max_position_embeddings",), fields(max_position_embeddings="256")),
    ("pretraining-tp", ("llama",), READ, fields(pretraining_tp=2)),
    ("attention-bias", ("llama", "mistral", "qwen3"), ("attention_bias",), fields(attention_bias=True)),
    ("attention-bias-qwen2", ("qwen2",), READ, fields(attention_bias=True)),
    ("attention-bias-false-qwen2", ("qwen2",), READ, fields(attention_bias=False)),
    ("qkv-bias-false-qwen2", ("qwen2",), READ, fields(qkv_bias=False)),
    ("mlp-bias", ("llama",), ("mlp_bias",), fields(mlp_bias=True)),
    ("bias", ("llama",), READ, fields(bias=True)),
    ("tied-null", ("llama",), READ, fields(tie_word_embeddings=None)),
    ("tied-string", ("llama",), ("tie_word_embeddings",), fields(tie_word_embeddings="false")),
    ("tied-absent", FAMILIES, READ, without("tie_word_embeddings")),
    ("window-null", FAMILIES, READ, fields(sliding_window=None)),
    ("window-absent", FAMILIES, READ, without("sliding_window")),
    ("window-5", FAMILIES, READ, fields(sliding_window=5)),
    ("window-zero", ("mistral",), ("sliding_window",), fields(sliding_window=0)),
    ("window-negative", ("mistral", "qwen2"), ("sliding_window",), fields(sliding_window=-1)),
    ("window-float", ("mistral",), ("sliding_window", "no fraction"), fields(sliding_window=5.0)),
    ("window-used", ("qwen2", "qwen3"), READ, fields(use_sliding_window=True, sliding_window=5, max_window_layers=2)),
    ("window-used-everywhere", ("qwen2",), READ, fields(use_sliding_window=True, sliding_window=5, max_window_layers=0)),
    ("window-used-nowhere", ("qwen3",), READ, fields(use_sliding_window=True, sliding_window=5, max_window_layers=4)),
    ("window-used-null", ("qwen2",), READ, fields(use_sliding_window=True, sliding_window=None, max_window_layers=2)),
    ("window-used-zero", ("qwen2",), ("sliding_window",), fields(use_sliding_window=True, sliding_window=0, max_window_layers=2)),
    ("layer-types", ("qwen2", "qwen3"), READ, fields(use_sliding_window=True, sliding_window=5, layer_types=["full_attention", "sliding_attention"] * 2)),
    ("layer-types-unused", ("qwen2",), ("layer_types", "sliding_attention"), fields(sliding_window=5, layer_types=["full_attention", "sliding_attention"] * 2)),
    ("layer-types-short", ("qwen2",), ("layer_types",), fields(layer_types=["full_attention"] * 3)),
    ("layer-types-other", ("qwen2",), ("layer_types",), fields(layer_types=["full_attention"] * 3 + ["chunked_attention"])),
    ("layer-types-legacy", ("qwen2",), ("layer_types",), fields(layer_types=["attention"] * 4)),
    ("layer-types-llama", ("llama",), READ, fields(layer_types=["full_attention"] * 4)),
    ("layer-types-mistral", ("mistral",), READ, fields(layer_types=["sliding_attention"] * 4)),
    ("layer-types-mistral-full", ("mistral",), ("layer_types",), fields(layer_types=["full_attention"] * 4)),
    ("nested-text-config", FAMILIES, ("text_config",), lambda d: d.set(text_config=dict(d.config))),
    ("multimodal", ("mistral",), ("model_type", "language model alone"), lambda d: (
        d.config.update(text_config=dict(d.config), vision_config={"hidden_size": 8}, model_type="mistral3"))),
    ("multimodal-empty", ("qwen2",), ("model_type",), fields(model_type="qwen2_vl", vision_config={})),
    ("model-type-absent", ("llama",), ("model_type",), without("model_type")),
    ("model-type-other", ("llama",), ("model_type", "gemma2"), fields(model_type="gemma2")),
    ("model-type-moe", ("qwen2",), ("model_type",), fields(model_type="qwen2_moe", num_experts=4)),
    ("quantization-null", ("llama",), READ, fields(quantization_config=None)),
    ("quantization", ("llama",), ("quantization_config",), fields(quantization_config={"quant_method": "gptq", "bits": 4})),
    ("quantization-empty", ("llama",), ("quantization_config",), fields(quantization_config={})),
    ("auto-map", ("llama",), READ, both(fields(auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}),
                                        files(modeling_own__py=b"raise RuntimeError('foreign code was run')\n"))),
    ("transformers-weights", ("llama",), ("transformers_weights",), fields(transformers_weights="other.safetensors")),
    ("architectures-headless", ("llama",), READ, fields(architectures=["LlamaModel"])),
    ("architectures-other", ("qwen2",), READ, fields(architectures=["Qwen2ForSequenceClassification"])),
    ("per-layer-config", ("llama",), ("per_layer_config",), fields(per_layer_config={"0": {"intermediate_size": 12}})),
    ("unknown-fields", FAMILIES, READ, fields(unsloth_version="2024.9", _name_or_path="x/y", use_flash_attn=True, rope_ratio=None)),
    ("config-bom", ("llama",), AS_BASE, text(lambda t: "\ufeff" + t)),
    ("config-comment", ("llama",), ("config.json",), text(lambda t: "// " + t)),
    ("config-nan", ("llama",), ("config.json",), text(lambda t: t.replace("1e-05", "NaN"))),
    ("config-duplicate", ("llama",), ("config.json", "duplicate"), text(lambda t: t.replace('"hidden_size"', '"hidden_size": 32,\n  "hidden_size"'))),
    ("config-pointer", ("llama",), ("config.json", "Git LFS pointer", "git lfs pull"), files(config__json=POINTER)),
    ("config-page", ("llama",), ("config.json", "HTML", "ownload"), files(config__json=PAGE)),
    ("config-empty", ("llama",), ("config.json", "empty", "ownload"), files(config__json=b"")),
    ("config-absent", ("llama",), ("config.json", "Name a Hugging Face model directory"), files(config__json=None)),
]


def tie(d):
    d.set(tie_word_embeddings=True)


def index_map(change):
    return lambda d: change(d.index["weight_map"])


def first(d):
    return list(d.parts)[0]


def extra_shard(d):
    d.files["model-extra.safetensors"] = save({Q0 + ".weight": torch.zeros(32, 32)}, metadata={"format": "pt"})


def unneeded_shard(d):
    d.parts["vision.safetensors"] = ["vision_tower.weight"]
    d.tensors["vision_tower.weight"] = torch.zeros(3, 3)
    d.index["weight_map"]["vision_tower.weight"] = "vision.safetensors"


def twice(change):
    """q of layer 0 also in the second shard."""
    def apply(d):
        d.tensors = dict(d.tensors)
        name, (one, two) = Q0 + ".weight", list(d.parts)
        holder = one if name in d.parts[one] else two
        other = two if holder == one else one
        part = {n: d.tensors[n].contiguous().clone() for n in d.parts[other]}
        part[name] = change(d.tensors[name]).contiguous()
        d.files[other] = save(part, metadata=d.metadata)

    return apply


TENSORS = [
    ("tied-equal", FAMILIES, READ, both(tie, tensor("lm_head.weight", lambda t: t["model.embed_tokens.weight"].clone()))),
    ("tied-differs", FAMILIES, ("lm_head.weight", "tie_word_embeddings"), tie),
    ("tied-without-head", FAMILIES, READ, both(tie, lambda d: d.tensors.pop("lm_head.weight"))),
    ("tied-head-only", ("llama",), ("model.embed_tokens.weight", "lm_head.weight"), both(tie, lambda d: d.tensors.pop("model.embed_tokens.weight"))),
    ("tied-equal-other-dtype", ("llama",), READ, both(tie, tensors_as(lambda n, t: t.bfloat16()),
                                                      tensor("lm_head.weight", lambda t: t["model.embed_tokens.weight"].float()))),
    ("tied-head-longer", ("llama",), ("lm_head.weight",), both(tie, tensor("lm_head.weight", torch.zeros(66, 32)))),
    ("untied-without-head", FAMILIES, ("lm_head.weight", "tie_word_embeddings"), lambda d: d.tensors.pop("lm_head.weight")),
    ("bias-q", ("llama", "mistral", "qwen3"), ("q_proj.bias",), tensor(Q0 + ".bias", torch.ones(32))),
    ("bias-o", FAMILIES, ("o_proj.bias",), tensor("model.layers.2.self_attn.o_proj.bias", torch.ones(32))),
    ("bias-o-zero", ("qwen2",), ("o_proj.bias",), tensor("model.layers.2.self_attn.o_proj.bias", torch.zeros(32))),
    ("bias-mlp", ("llama",), ("down_proj.bias",), tensor("model.layers.1.mlp.down_proj.bias", torch.ones(32))),
    ("bias-norm", ("llama",), ("norm.bias",), tensor("model.norm.bias", torch.ones(32))),
    ("bias-head", ("llama",), ("lm_head.bias",), tensor("lm_head.bias", torch.ones(64))),
    ("bias-q-absent", ("qwen2",), ("q_proj.bias",), lambda d: d.tensors.pop(Q0 + ".bias")),
    ("qk-norm", ("llama", "qwen2"), ("q_norm.weight",), tensor("model.layers.0.self_attn.q_norm.weight", torch.ones(8))),
    ("lora-inside", ("llama",), ("lora_A",), tensor(Q0 + ".lora_A.default.weight", torch.zeros(4, 32))),
    ("norm-extra", ("mistral",), ("pre_feedforward_layernorm",), tensor("model.layers.0.pre_feedforward_layernorm.weight", torch.ones(32))),
    ("rotary-buffers", FAMILIES, READ, tensor("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4))),
    ("rotary-buffer-of-model", ("llama",), READ, tensor("model.rotary_emb.inv_freq", torch.ones(4))),
    ("causal-mask", ("llama",), READ, tensor("model.layers.0.self_attn.masked_bias", torch.tensor(-1e4))),
    ("vision-tower", ("mistral",), READ, tensor("vision_tower.patch.weight", torch.ones(4, 4))),
    ("score-head", ("llama",), READ, tensor("score.weight", torch.ones(2, 32))),
    ("value-head", ("qwen2",), READ, tensor("v_head.summary.weight", torch.ones(1, 32))),
    ("layers-beyond", ("qwen3",), READ, tensor("model.layers.4.mlp.up_proj.weight", torch.ones(24, 32))),
    ("integer-extra", ("llama",), READ, tensor("position_ids", torch.arange(8))),
    ("zero-dimensional", ("llama",), READ, tensor("loss_scale", torch.tensor(2.0))),
    ("fused-qkv", ("llama",), ("q_proj.weight", "qkv_proj"), lambda d: d.tensors.update(
        {"model.layers.0.self_attn.qkv_proj.weight": torch.cat([d.tensors.pop(f"model.layers.0.self_attn.{x}_proj.weight") for x in "qkv"])})),
    ("headless", FAMILIES, ("lm_head.weight",), both(HEADLESS, lambda d: d.tensors.pop("lm_head.weight"))),
    ("headless-tied", FAMILIES, READ, both(HEADLESS, tie, lambda d: d.tensors.pop("lm_head.weight"))),
    ("headless-with-head", FAMILIES, NEWER, HEADLESS),
    ("headless-sharded", ("llama",), NEWER, both(HEADLESS, sharded())),
    ("prefix-mixed", ("llama",), NEWER, renamed(lambda n: n.removeprefix("model.") if "layers.1" in n else n)),
    ("prefix-language-model", ("mistral", "llama"), ("language_model.", "safetensors"), renamed(lambda n: "language_model." + n)),
    ("prefix-model-language-model", ("qwen2",), ("model.language_model.",), renamed(lambda n: n.replace("model.", "model.language_model."))),
    ("prefix-peft", ("llama",), ("base_model.model.", "merge"), renamed(lambda n: "base_model.model." + n)),
    ("prefix-module", ("llama",), ("module.",), renamed(lambda n: "module." + n)),
    ("prefix-compiled", ("llama",), ("_orig_mod.",), renamed(lambda n: "_orig_mod." + n)),
    ("prefix-transformer", ("llama",), ("transformer.",), renamed(lambda n: n.replace("model.", "transformer."))),
    ("prefix-double", ("llama",), ("model.model.",), renamed(lambda n: "model." + n)),
    ("norms-wide", FAMILIES, READ, tensors_as(lambda n, t: t if "norm" in n else t.bfloat16())),
    ("half-and-bfloat", ("qwen2",), READ, tensors_as(lambda n, t: t.half() if "mlp" in n else t.bfloat16())),
    ("float64", ("llama",), READ, tensors_as(lambda n, t: t.double())),
    ("leading-one", ("llama",), ("norm.weight", "[1, 32]"), tensor("model.norm.weight", lambda t: t["model.norm.weight"][None])),
    ("trailing-one", ("llama",), ("norm.weight", "[32, 1]"), tensor("model.norm.weight", lambda t: t["model.norm.weight"][:, None])),
    ("transposed", ("llama",), ("up_proj.weight",), tensor("model.layers.0.mlp.up_proj.weight", lambda t: t["model.layers.0.mlp.up_proj.weight"].T)),
    ("int8-with-scales", ("llama",), ("q_proj.weight", "I8", "uantized"), both(
        tensor(Q0 + ".weight", torch.ones(32, 32, dtype=torch.int8)), tensor(Q0 + ".weight_scale", torch.ones(32)))),
    ("float8-with-scales", ("qwen3",), ("q_proj.weight", "F8", "uantized"), both(
        tensor(Q0 + ".weight", torch.ones(32, 32).to(torch.float8_e4m3fn)), tensor(Q0 + ".weight_scale_inv", torch.ones(1, 1)))),
    ("scales-only", ("llama",), ("weight_scale", "uantized"), tensor(Q0 + ".weight_scale", torch.ones(32))),
    ("gptq", ("llama",), ("qweight", "uantized"), lambda d: (d.tensors.pop(Q0 + ".weight"), d.tensors.update(
        {Q0 + ".qweight": torch.zeros(4, 32, dtype=torch.int32), Q0 + ".scales": torch.ones(1, 32)}))),
    ("no-metadata", ("llama",), READ, lambda d: setattr(d, "metadata", None)),
    ("metadata-without-format", ("llama",), READ, lambda d: setattr(d, "metadata", {"source": "converter"})),
    ("metadata-mlx", ("qwen2",), READ, lambda d: setattr(d, "metadata", {"format": "mlx"})),
    ("metadata-tf", ("qwen2",), ("format", "tf"), lambda d: setattr(d, "metadata", {"format": "tf"})),
    ("empty-tensor", ("llama",), ("norm.weight",), tensor("model.norm.weight", torch.zeros(0))),
]

SHARDS = [
    ("sharded", FAMILIES, READ, sharded()),
    ("sharded-no-metadata", ("llama",), AS_BASE, sharded(lambda d: d.index.pop("metadata"))),
    ("index-lists-absent", ("llama", "qwen2"), READ, sharded(lambda d: d.index["weight_map"].update(
        {"model.layers.0.self_attn.rotary_emb.inv_freq": first(d), "vision_tower.weight": first(d)}))),
    ("index-lists-absent-needed", ("llama",), (Q0,), sharded(twice(lambda t: t), lambda d: (d.files.clear(), d.tensors.pop(Q0 + ".weight"), [p.remove(Q0 + ".weight") for p in d.parts.values() if Q0 + ".weight" in p]))),
    ("index-wrong-shard", ("llama",), ("index places it", "ownload"), sharded(lambda d: d.index["weight_map"].update({n: first(d) if f != first(d) else list(d.parts)[1] for n, f in list(d.index["weight_map"].items())[:4]}))),
    ("index-omits", ("llama",), READ, sharded(lambda d: d.index["weight_map"].pop(Q0 + ".weight"))),
    ("index-subdirectory", ("llama",), ("weight_map", "sub/"), sharded(lambda d: d.index["weight_map"].update({Q0 + ".weight": "sub/x.safetensors"}))),
    ("index-empty", ("llama",), ("weight_map",), sharded(lambda d: d.index["weight_map"].clear())),
    ("index-without-map", ("llama",), ("weight_map",), sharded(lambda d: d.index.pop("weight_map"))),
    ("index-pointer", ("llama",), ("index.json", "Git LFS pointer", "git lfs pull"), sharded(lambda d: d.files.update({"model.safetensors.index.json": POINTER}))),
    ("index-page", ("llama",), ("index.json", "HTML", "ownload"), sharded(lambda d: d.files.update({"model.safetensors.index.json": PAGE}))),
    ("index-empty-file", ("llama",), ("index.json", "empty", "ownload"), sharded(lambda d: d.files.update({"model.safetensors.index.json": b""}))),
    ("index-absent", ("llama",), ("index.json", "ownload"), sharded(lambda d: setattr(d, "index", None))),
    ("shard-unneeded", ("llama", "qwen3"), READ, sharded(unneeded_shard)),
    ("shard-unneeded-absent", ("llama",), ("vision.safetensors", "ownload"), sharded(unneeded_shard, lambda d: d.files.update({"vision.safetensors": None}))),
    ("shard-unneeded-pointer", ("llama",), ("vision.safetensors", "git lfs pull"), sharded(unneeded_shard, lambda d: d.files.update({"vision.safetensors": POINTER}))),
    ("shard-unlisted", ("llama",), READ, sharded(extra_shard)),
    ("shard-absent", FAMILIES, ("model-00002-of-00002.safetensors", "ownload"), sharded(shard_bytes(lambda b: None))),
    ("shard-pointer", FAMILIES, ("model-00002-of-00002.safetensors", "Git LFS pointer", "git lfs pull"), sharded(shard_bytes(lambda b: POINTER))),
    ("shard-page", ("llama",), ("model-00002-of-00002.safetensors", "HTML", "ownload"), sharded(shard_bytes(lambda b: PAGE))),
    ("shard-empty", ("llama",), ("model-00002-of-00002.safetensors", "empty", "ownload"), sharded(shard_bytes(lambda b: b""))),
    ("shard-cut", ("llama",), ("model-00002-of-00002.safetensors", "ownload"), sharded(shard_bytes(lambda b: b[:-100]))),
    ("shard-zeros", ("llama",), ("model-00002-of-00002.safetensors", "ownload"), sharded(shard_bytes(lambda b: bytes(len(b))))),
    ("shard-incomplete", ("llama",), ("model-00002-of-00002.safetensors", "incomplete", "ownload"), sharded(
        shard_bytes(lambda b: None), lambda d: d.files.update({"model-00002-of-00002.safetensors.incomplete": b"x" * 50}))),
    ("shard-twice-equal", ("llama",), READ, sharded(twice(lambda t: t))),
    ("shard-twice-differs", ("llama",), (Q0, "model-00001-of-00002", "model-00002-of-00002"), sharded(twice(lambda t: t + 1))),
    ("single-pointer", ("llama",), ("model.safetensors", "Git LFS pointer", "git lfs pull"), single_bytes(lambda b: POINTER)),
    ("single-page", ("llama",), ("model.safetensors", "HTML", "ownload"), single_bytes(lambda b: PAGE)),
    ("single-empty", ("llama",), ("model.safetensors", "empty", "ownload"), single_bytes(lambda b: b"")),
    ("single-cut", ("llama",), ("model.safetensors", "ownload"), single_bytes(lambda b: b[:2000])),
    ("single-absent", ("llama",), ("model.safetensors",), files(model__safetensors=None)),
    ("single-incomplete", ("llama",), ("model.safetensors", "incomplete", "ownload"), files(model__safetensors=None, model__safetensors__incomplete=b"x")),
    ("single-variant", ("llama",), ("model.fp16.safetensors", "model.safetensors"), both(
        lambda d: d.files.update({"model.fp16.safetensors": save(d.tensors, metadata=d.metadata)}), files(model__safetensors=None))),
    ("single-consolidated", ("mistral",), ("consolidated.safetensors", "ransformers"), both(
        lambda d: d.files.update({"consolidated.safetensors": save(d.tensors, metadata=d.metadata)}), files(model__safetensors=None))),
    ("single-bin", ("llama",), (".bin", "safetensors"), files(model__safetensors=None, pytorch_model__bin=b"PK\x03\x04")),
    ("single-gguf", ("llama",), (".gguf",), files(model__safetensors=None, model__gguf=b"GGUF")),
    ("adapter-only", ("llama",), ("adapter_model.safetensors", "merge"), both(
        files(model__safetensors=None, adapter_config__json=b'{"peft_type": "LORA"}'), lambda d: d.files.update({"adapter_model.safetensors": b"x"}))),
    ("adapter-config-beside", FAMILIES, READ, files(adapter_config__json=b'{"peft_type": "LORA", "base_model_name_or_path": "x/y"}')),
    ("single-and-index", ("llama",), READ, lambda d: d.files.update({"model.safetensors.index.json": json.dumps({"weight_map": {"x": "gone.safetensors"}}).encode()})),
    ("quantize-config-beside", ("llama",), READ, files(quantize_config__json=b'{"bits": 4}')),
]

GROUPS = {"Rope": ROPE, "Fields": FIELDS + DTYPES, "Tensors": TENSORS, "Shards": SHARDS}
