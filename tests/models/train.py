#!/usr/bin/env python3
"""Trains the small three-domain model of the tests and the quickstart from nothing, on the CPU.

  train.py [--out tests/models/tri-domain-qwen2] [--steps 2900] [--seed 0] [--threads 1]

Text from generate_text.py, a byte-level BPE tokenizer learned on its training split, a Qwen2-shape
model (q/k/v biases, grouped KV heads, tied embeddings) in float32, stored as bfloat16. All figures
in training.json are those of the stored (rounded) weights on held-out text. Same seed, threads and
library versions: same weights.
"""

import argparse
import hashlib
import json
import math
import os
import pathlib
import platform
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import generate_text  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
END = "<|endoftext|>"
SHAPE = dict(
    vocab_size=1024,
    hidden_size=128,
    intermediate_size=288,
    num_hidden_layers=8,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=16,
    max_position_embeddings=512,
)
ROPE_THETA = 10000.0
NORM_EPS = 1e-6
SEQUENCE = 256


def parse():
    parser = argparse.ArgumentParser(description="Train the three-domain test model.")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "tri-domain-qwen2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2900)
    parser.add_argument("--batch", type=int, default=8, help="sequences per step")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument(
        "--documents", type=int, default=60000, help="training documents per domain"
    )
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


# -------------------------------------------------------------------------------------- tokenizer


def learn_tokenizer(splits):
    """A byte-level BPE over the training split; every digit is a token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=[END],
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    texts = (d["text"] for domain in splits.values() for d in domain["train"][:8000])
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": END,
    "pad_token": END,
    "bos_token": None,
    "unk_token": None,
    "add_bos_token": False,
    "clean_up_tokenization_spaces": False,
    "model_max_length": SHAPE["max_position_embeddings"],
    "padding_side": "left",
    "model_input_names": ["input_ids", "attention_mask"],
}


def model_config(shape):
    """config.json in the field names of transformers 4 and 5 both."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **shape,
        "hidden_act": "silu",
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA},
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": shape["num_hidden_layers"],
        "layer_types": ["full_attention"] * shape["num_hidden_layers"],
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
    }


# ------------------------------------------------------------------------------------------- data


class Stream:
    """All documents of a split behind one another, each followed by the end token."""

    def __init__(self, tokenizer, documents, torch):
        end = tokenizer.token_to_id(END)
        ids, self.starts = [end], []
        for encoding in tokenizer.encode_batch([d["text"] for d in documents]):
            self.starts.append(len(ids))
            ids.extend(encoding.ids)
            ids.append(end)
        self.ids = torch.tensor(ids, dtype=torch.int32)
        self.starts = [s for s in self.starts if s + SEQUENCE + 1 <= len(ids)]

    def draw(self, rng, torch):
        """A row that begins at a document (with or without the end token before it) or anywhere."""
        kind = rng.random()
        if kind < 0.6:
            start = rng.choice(self.starts) - (1 if kind < 0.3 else 0)
        else:
            start = rng.randrange(len(self.ids) - SEQUENCE)
        return self.ids[start : start + SEQUENCE].to(torch.int64)

    def rows(self, torch):
        """The stream cut into whole rows, as a token file holds it."""
        count = len(self.ids) // SEQUENCE
        return self.ids[: count * SEQUENCE].reshape(count, SEQUENCE).to(torch.int64)


def unigram_entropy(ids):
    """Nats per token of the best model that knows only how often each token occurs in `ids`."""
    counts = ids.bincount(minlength=SHAPE["vocab_size"]).double()
    p = counts[counts > 0] / counts.sum()
    return float(-(p * p.log()).sum())


def loss_on(model, rows, torch, limit=None):
    """Mean nats per token over the rows; the first token of a row is not predicted."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in rows[:limit].split(16):
            logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none"
            )
            total += float(losses.double().sum())
            count += losses.numel()
    return total / count


# --------------------------------------------------------------------------------------- training


def build(torch, shape):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    fields = {
        k: v
        for k, v in model_config(shape).items()
        if k not in ("architectures", "model_type", "torch_dtype", "dtype", "rope_scaling")
    }
    return Qwen2ForCausalLM(Qwen2Config(**fields)).to(torch.float32)


def learning_rate(step, args):
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    done = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def train(model, streams, args, torch):
    import random

    rng = random.Random(args.seed)
    decay = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=args.lr,
        betas=(0.9, 0.98),
        eps=1e-9,
    )
    names = list(streams)
    model.train()
    started, running = time.time(), None
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args)
        batch = torch.stack(
            [streams[names[i % len(names)]].draw(rng, torch) for i in range(args.batch)]
        )
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise SystemExit(f"train.py: the loss became {value} in step {step}")
        running = value if running is None else 0.98 * running + 0.02 * value
        if step % 50 == 49 or step + 1 == args.steps:
            seconds = time.time() - started
            print(
                f"step {step + 1}/{args.steps} loss {running:.4f} "
                f"{(step + 1) * args.batch * SEQUENCE / seconds:.0f} tokens/s "
                f"eta {seconds / (step + 1) * (args.steps - step - 1):.0f} s",
                flush=True,
            )
    model.eval()
    return time.time() - started


# ---------------------------------------------------------------------------------------- figures


def damage(model, rows, torch, seed):
    """Held-out losses with a random 30 % of the MLP channels, or query heads, set to zero."""
    generator = torch.Generator().manual_seed(seed)
    figures = {}
    head = SHAPE["head_dim"]
    for name in ("mlp_channels", "query_heads"):
        saved, width = (
            [],
            SHAPE["intermediate_size"] if name == "mlp_channels" else SHAPE["num_attention_heads"],
        )
        for layer in model.model.layers:
            weight = (
                layer.mlp.down_proj.weight
                if name == "mlp_channels"
                else layer.self_attn.o_proj.weight
            )
            saved.append((weight, weight.detach().clone()))
            gone = torch.randperm(width, generator=generator)[: round(0.3 * width)]
            with torch.no_grad():
                if name == "mlp_channels":
                    weight[:, gone] = 0
                else:
                    weight.view(weight.shape[0], width, head)[:, gone] = 0
        figures[name] = {d: round(loss_on(model, r, torch), 4) for d, r in rows.items()}
        with torch.no_grad():
            for weight, kept in saved:
                weight.copy_(kept)
    return figures


def continuations(model, tokenizer, splits, torch):
    """What the model writes by itself after the beginning of one held-out document per domain."""
    prompts = {
        "prose": " ".join(splits["prose"]["heldout"][1]["text"].split()[:14]),
        "math": splits["math"]["heldout"][2]["question"] + "\n",
        "code": splits["code"]["heldout"][2]["text"].split("\n")[0],
    }
    written = {}
    for domain, prompt in prompts.items():
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=120,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=0,
        )
        written[domain] = {
            "prompt": prompt,
            "greedy": tokenizer.decode(out[0, ids.shape[1] :].tolist()),
        }
    return written


# ------------------------------------------------------------------------------------------ files


def save(model, tokenizer, splits, out, torch):
    """The checkpoint as transformers and espalier read it, and the text that goes with it."""
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.detach().to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    bad = [name for name, value in tensors.items() if not bool(value.float().isfinite().all())]
    if bad:
        raise SystemExit(f"train.py: not finite after training: {', '.join(bad)}")
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save(str(out / "tokenizer.json"))
    write_json(out / "config.json", model_config(SHAPE))
    write_json(
        out / "generation_config.json", {"eos_token_id": 0, "pad_token_id": 0, "do_sample": False}
    )
    write_json(out / "tokenizer_config.json", TOKENIZER_CONFIG)
    (out / "text").mkdir(exist_ok=True)
    for domain, parts in splits.items():
        for split in ("calibration", "heldout"):
            generate_text.write_jsonl(out / "text" / f"{domain}.{split}.jsonl", parts[split])


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def cpu_name():
    try:
        for line in open("/proc/cpuinfo", encoding="utf-8"):
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def write_readme(out, facts):
    recipe, damage_ = facts["recipe"], facts["damage"]
    rows = "\n".join(
        f"| {domain} | {f['heldout_loss']:.3f} | {math.exp(f['heldout_loss']):.2f} "
        f"| {f['unigram_entropy']:.3f} | {damage_['mlp_channels'][domain]:.3f} "
        f"| {damage_['query_heads'][domain]:.3f} |"
        for domain, f in facts["domains"].items()
    )
    text = f"""# tri-domain-qwen2

A language model of {facts["parameters"] / 1e6:.2f} M parameters in the shape of Qwen2:
{SHAPE["num_hidden_layers"]} layers, hidden {SHAPE["hidden_size"]}, {SHAPE["num_attention_heads"]} query heads on \
{SHAPE["num_key_value_heads"]} KV heads of {SHAPE["head_dim"]}, {SHAPE["intermediate_size"]} MLP channels, \
vocabulary {SHAPE["vocab_size"]},
q/k/v biases, tied embeddings, bfloat16. It was trained from nothing by `tests/models/train.py` on
text that `tests/models/generate_text.py` makes from a seed. It exists so that pruning can be tried,
shown and tested on weights that have learned something; it knows nothing about the world.

`text/DOMAIN.calibration.jsonl` and `text/DOMAIN.heldout.jsonl` were not trained on and share no
document (of math: no question) with each other.

| domain | held-out loss | perplexity | unigram entropy | 30 % of channels gone | 30 % of heads gone |
|---|---|---|---|---|---|
{rows}

Losses are nats per token over rows of {SEQUENCE} tokens, documents separated by `{END}`, computed
in float32 with the stored bfloat16 weights. The entropy is that of the held-out tokens' own
frequencies: no model that ignores the context can be below it. The last two columns are held-out
losses with a random 30 % of the MLP channels, or 2 of 8 query heads, of every layer set to zero.

Made by `tests/models/train.py --steps {recipe["steps"]} --batch {recipe["batch_sequences"]} \
--lr {recipe["learning_rate"]} --seed {recipe["seed"]}` in {facts["seconds"] / 60:.0f} minutes \
on {recipe["threads"]} thread. Recipe,
versions, machine and what the model writes by itself are in `training.json`. The license is that of
this repository.
"""
    out.joinpath("README.md").write_text(text, encoding="utf-8")


def main():
    args = parse()
    os.environ.setdefault("OMP_NUM_THREADS", str(args.threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import safetensors
    import tokenizers
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    splits = generate_text.make_splits(args.seed, args.documents, 140000, 140000)
    tokenizer = learn_tokenizer(splits)
    streams = {d: Stream(tokenizer, s["train"], torch) for d, s in splits.items()}
    heldout = {d: Stream(tokenizer, s["heldout"], torch).rows(torch) for d, s in splits.items()}
    for domain, stream in streams.items():
        print(
            f"{domain}: {len(stream.ids)} training tokens, {heldout[domain].numel()} held-out, "
            f"unigram entropy {unigram_entropy(heldout[domain].flatten()):.3f}",
            flush=True,
        )
    model = build(torch, SHAPE)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, vocabulary {tokenizer.get_vocab_size()}", flush=True)
    seconds = train(model, streams, args, torch)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())
    save(model, tokenizer, splits, args.out, torch)
    facts = {
        "parameters": parameters,
        "seconds": round(seconds, 1),
        "tokens": args.steps * args.batch * SEQUENCE,
        "domains": {
            d: {
                "heldout_loss": round(loss_on(model, rows, torch), 4),
                "unigram_entropy": round(unigram_entropy(rows.flatten()), 4),
                "heldout_tokens": rows.numel(),
                "train_tokens": len(streams[d].ids),
                "train_documents": args.documents,
            }
            for d, rows in heldout.items()
        },
        "damage": damage(model, heldout, torch, args.seed),
        "bias_rms": {
            name: round(
                float(
                    torch.cat(
                        [
                            getattr(layer.self_attn, name).bias.detach()
                            for layer in model.model.layers
                        ]
                    )
                    .pow(2)
                    .mean()
                    .sqrt()
                ),
                4,
            )
            for name in ("q_proj", "k_proj", "v_proj")
        },
        "continuations": continuations(model, tokenizer, splits, torch),
        "recipe": {
            "seed": args.seed,
            "steps": args.steps,
            "batch_sequences": args.batch,
            "sequence_tokens": SEQUENCE,
            "optimizer": "AdamW, betas 0.9 0.98, weight decay 0.05 on matrices, "
            "gradient norm clipped at 1",
            "learning_rate": args.lr,
            "schedule": f"{args.warmup} steps of warm-up, cosine to 2 %",
            "trained_in": "float32",
            "stored_in": "bfloat16",
            "threads": args.threads,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "safetensors": safetensors.__version__,
        },
        "machine": {"cpu": cpu_name(), "capability": torch.backends.cpu.get_cpu_capability()},
        "model_sha256": hashlib.sha256((args.out / "model.safetensors").read_bytes()).hexdigest(),
    }
    write_json(args.out / "training.json", facts)
    write_readme(args.out, facts)
    for domain, f in facts["domains"].items():
        print(
            f"{domain:6s} held-out loss {f['heldout_loss']:.4f}  "
            f"unigram entropy {f['unigram_entropy']:.4f}  "
            f"ratio {f['unigram_entropy'] / f['heldout_loss']:.2f}  "
            f"30% channels zeroed {facts['damage']['mlp_channels'][domain]:.4f}  "
            f"30% heads zeroed {facts['damage']['query_heads'][domain]:.4f}"
        )
        if f["heldout_loss"] > 0.5 * f["unigram_entropy"]:
            raise SystemExit(
                f"train.py: {domain} has not learned (loss above half the unigram entropy)"
            )


if __name__ == "__main__":
    main()
