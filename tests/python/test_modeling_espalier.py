"""The bundled modelling file against the masked dense model, inside transformers.

Every test draws a plan for a tiny random model, writes it with the small writer below (which shares
nothing with the C++ exporter), and compares the loaded checkpoint with the unpruned model whose
removed units are zero. Run it once for each transformers version of interest:

    python tests/python/test_modeling_espalier.py
    PYTHONPATH=<folder with another transformers> python tests/python/test_modeling_espalier.py
"""

import atexit
import copy
import functools
import json
import os
import random
import shutil
import tempfile
import unittest
import warnings
from pathlib import Path

_SCRATCH = tempfile.mkdtemp(prefix="espalier-modeling-")
atexit.register(shutil.rmtree, _SCRATCH, True)  # other modules of the process may still need it
os.environ["HF_HOME"] = _SCRATCH  # remote code is copied there before it is imported
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    StaticCache,
)

MODELING_FILE = Path(__file__).resolve().parents[2] / "src" / "export" / "modeling_espalier.py"
ALL_FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
FAMILIES = tuple(f for f in ALL_FAMILIES if hasattr(transformers, f + "ForCausalLM"))
VERSION = tuple(int(n) for n in transformers.__version__.split(".")[:2])
DTYPE = "dtype" if VERSION >= (4, 56) else "torch_dtype"
LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, CHANNELS, VOCABULARY = 4, 48, 12, 4, 8, 40, 101
GROUP = HEADS // KV_HEADS
PADDING_TOKEN = 0

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)


# ---------------------------------------------------------------- dense models

def dense_model(family, tied=False, seed=0, **settings):
    """A random model whose biases and norms matter and whose logits are far from uniform."""
    extra = {"sliding_window": None} if family == "Mistral" else {}
    extra.update(settings)
    config = getattr(transformers, family + "Config")(
        hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, intermediate_size=CHANNELS,
        vocab_size=VOCABULARY, max_position_embeddings=64, initializer_range=0.2,
        tie_word_embeddings=tied, bos_token_id=1, eos_token_id=None, pad_token_id=PADDING_TOKEN,
        **extra)
    torch.manual_seed(seed)
    model = getattr(transformers, family + "ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif name.endswith(".bias"):
                parameter.copy_(0.5 * torch.randn_like(parameter))
    return model.eval()


# ---------------------------------------------------------------- plans

def drawn_plan(seed, no_heads=(), no_channels=()):
    """Kept query heads and channels of each layer; the named layers lose everything of a kind."""
    draw = random.Random(seed)
    plan = []
    for layer in range(LAYERS):
        heads = [h for h in range(HEADS) if draw.random() < 0.5] or [draw.randrange(HEADS)]
        channels = [c for c in range(CHANNELS) if draw.random() < 0.6] or [0]
        plan.append({"heads": [] if layer in no_heads else heads,
                     "channels": [] if layer in no_channels else channels})
    return plan


def even_plan(seed):
    """The same number of query heads for every kept KV head of a layer."""
    draw = random.Random(seed)
    plan = []
    for layer in range(LAYERS):
        width = draw.randint(1, GROUP)
        kept = sorted(draw.sample(range(KV_HEADS), draw.randint(1, KV_HEADS)))
        heads = sorted(k * GROUP + q for k in kept for q in draw.sample(range(GROUP), width))
        plan.append({"heads": heads, "channels": sorted(draw.sample(range(CHANNELS), 8 + layer))})
    return plan


def groups_of(heads):
    counts = [sum(1 for h in heads if h // GROUP == k) for k in range(KV_HEADS)]
    return [n for n in counts if n]


PLANS = {
    "even": even_plan(1),
    "uneven": drawn_plan(2),
    "middle layers empty": drawn_plan(3, no_heads=(1,), no_channels=(2,)),
    "first layer empty": drawn_plan(4, no_heads=(0,), no_channels=(0,)),
    "last layer empty": drawn_plan(5, no_heads=(LAYERS - 1,), no_channels=(LAYERS - 1,)),
    "no attention at all": drawn_plan(6, no_heads=range(LAYERS)),
    "nothing but norms": drawn_plan(7, no_heads=range(LAYERS), no_channels=range(LAYERS)),
}
PLANS.update({f"drawn {s}": drawn_plan(s, no_heads=(s % LAYERS,)) for s in range(10, 13)})
# What differs between the families is drawn on by these already; Llama takes all.
ESSENTIAL_PLANS = ("uneven", "middle layers empty", "first layer empty")


# ---------------------------------------------------------------- the reference writer

def rows_of(units, width):
    return torch.tensor([u * width + i for u in units for i in range(width)], dtype=torch.long)


def slices_of(plan):
    """Tensor name -> (axis, kept indices) of everything that the plan makes smaller or takes away."""
    slices = {}
    for i, layer in enumerate(plan):
        prefix = f"model.layers.{i}."
        q = rows_of(layer["heads"], HEAD_DIM)
        kv = rows_of(sorted({h // GROUP for h in layer["heads"]}), HEAD_DIM)
        channels = torch.tensor(layer["channels"], dtype=torch.long)
        for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            slices[f"{prefix}self_attn.{name}.weight"] = (0, rows)
            slices[f"{prefix}self_attn.{name}.bias"] = (0, rows)
        slices[f"{prefix}self_attn.o_proj.weight"] = (1, q)
        slices[f"{prefix}mlp.gate_proj.weight"] = (0, channels)
        slices[f"{prefix}mlp.up_proj.weight"] = (0, channels)
        slices[f"{prefix}mlp.down_proj.weight"] = (1, channels)
    return slices


def sliced(tensors, plan):
    slices = slices_of(plan)
    cut = lambda name, t: t.index_select(*slices[name]) if name in slices else t
    return {name: cut(name, t.detach()).clone().contiguous() for name, t in tensors.items()}


def stored_tensors(directory):
    """Those that have elements: a layer of which nothing is left has no module for the others."""
    return {n: t for n, t in load_file(directory / "model.safetensors").items() if t.numel()}


def write_pruned(model, plan, directory):
    """The `exact` form: true shapes, the dense config.json and two keys, the modelling file."""
    directory.mkdir(parents=True)
    tensors = dict(model.state_dict())
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_file(sliced(tensors, plan), directory / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    name = "Espalier" + type(model).__name__.removesuffix("ForCausalLM")
    config["architectures"] = [name + "ForCausalLM"]
    config["auto_map"] = {
        "AutoModel": f"modeling_espalier.{name}Model",
        "AutoModelForCausalLM": f"modeling_espalier.{name}ForCausalLM",
        "AutoModelForSequenceClassification":
            f"modeling_espalier.{name}ForSequenceClassification"}
    config["espalier"] = {"layers": [{"groups": groups_of(layer["heads"]),
                                      "channels": len(layer["channels"])} for layer in plan]}
    (directory / "config.json").write_text(json.dumps(config))
    shutil.copy(MODELING_FILE, directory)
    return directory


def masked(model, plan):
    """The unpruned model with removed heads and channels set to zero where they are read."""
    config = type(model.config).from_dict(model.config.to_dict())
    twin = type(model)(config).eval()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        for block, layer in zip(twin.model.layers, plan):
            heads = torch.zeros(HEADS, HEAD_DIM)
            heads[layer["heads"]] = 1
            block.self_attn.o_proj.weight.mul_(heads.flatten())
            channels = torch.zeros(CHANNELS)
            channels[layer["channels"]] = 1
            block.mlp.down_proj.weight.mul_(channels)
    return twin


# ---------------------------------------------------------------- comparing

def batch_with_left_padding():
    """Three rows of 14 tokens; the second has 5, the third 13 padding tokens in front."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(1, VOCABULARY, (3, 14), generator=generator)
    mask = torch.ones_like(ids)
    for row, padding in ((1, 5), (2, 13)):
        ids[row, :padding] = PADDING_TOKEN
        mask[row, :padding] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits_of(model, batch):
    with torch.no_grad():
        logits = model(**batch).logits
    return logits[batch["attention_mask"].bool()]


def cached(cache):
    """Keys and values of each layer, in the forms of transformers 4 and 5."""
    if hasattr(cache, "layers"):
        return [(layer.keys, layer.values) for layer in cache.layers]
    return list(zip(cache.key_cache, cache.value_cache))


def tolerance_for(reference, tokens=1):
    """2 x terms x eps, relative to the largest value: terms are summed once in each linear map."""
    terms = LAYERS * (2 * HIDDEN + HEADS * HEAD_DIM + CHANNELS) * tokens
    return 2 * terms * torch.finfo(torch.float32).eps * max(reference.abs().max().item(), 1e-30)


class PrunedCase(unittest.TestCase):
    def setUp(self):
        self.directory = Path(tempfile.mkdtemp(dir=_SCRATCH))

    def write(self, model, plan, name):
        return write_pruned(model, plan, self.directory / name.replace(" ", "_"))

    def load(self, directory, attention="sdpa", **settings):
        return AutoModelForCausalLM.from_pretrained(
            directory, trust_remote_code=True, attn_implementation=attention, **settings)

    def assert_close(self, actual, expected, tokens=1, what=""):
        self.assertEqual(actual.shape, expected.shape, what)
        if expected.numel() == 0:
            return
        difference = (actual - expected).abs().max().item()
        self.assertTrue(torch.isfinite(actual).all(), what)
        self.assertLessEqual(difference, tolerance_for(expected, tokens), what)


def each_case(plans=None):
    """Calls the test with (model, plan, directory of the written checkpoint) for family x plan."""
    def of_family(family):
        return plans or (tuple(PLANS) if family == "Llama" else ESSENTIAL_PLANS)

    def decorate(test):
        @functools.wraps(test)
        def run(self):
            cases = [(family, name) for family in FAMILIES for name in of_family(family)]
            for number, (family, name) in enumerate(cases):
                tied = number % 2 == 0
                with self.subTest(family=family, plan=name, tied=tied,
                                  transformers=transformers.__version__):
                    model = dense_model(family, tied)
                    directory = self.write(model, PLANS[name], f"{family}-{name}")
                    test(self, model, PLANS[name], directory)
        return run
    return decorate


class Plans(unittest.TestCase):
    """The plans contain what these tests are about."""

    def test_plans_have_uneven_groups_unread_kv_heads_and_empty_layers(self):
        groups = [groups_of(layer["heads"]) for plan in PLANS.values() for layer in plan]
        self.assertTrue(any(len(set(g)) > 1 for g in groups))
        self.assertTrue(any(0 < len(g) < KV_HEADS for g in groups))
        self.assertTrue(any(len(g) == 0 for g in groups))
        self.assertTrue(any(g[0] < g[-1] for g in groups if g))
        self.assertTrue(any(g[0] > g[-1] for g in groups if g))
        self.assertTrue(any(not layer["channels"] for plan in PLANS.values() for layer in plan))
        self.assertTrue(all(len(set(groups_of(layer["heads"]))) == 1 for layer in PLANS["even"]))

    def test_every_family_is_compared(self):
        missing = sorted(set(ALL_FAMILIES) - set(FAMILIES))
        if missing:
            self.skipTest(f"transformers {transformers.__version__} has no {' or '.join(missing)}")


class SameAsMasked(PrunedCase):
    @each_case()
    def test_every_tensor_of_the_file_is_used_and_none_is_missing(self, model, plan, directory):
        loaded, info = self.load(directory, output_loading_info=True)
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            self.assertEqual(list(info[key]), [], key)
        for name, tensor in stored_tensors(directory).items():
            self.assertTrue(torch.equal(loaded.state_dict()[name], tensor), name)

    @each_case()
    def test_logits_with_left_padding(self, model, plan, directory):
        batch = batch_with_left_padding()
        expected = logits_of(masked(model, plan), batch)
        self.assertGreater((logits_of(model, batch) - expected).abs().max().item(), 0.1,
                           "the plan changes nothing: the comparison could not fail")
        for attention in ("eager", "sdpa"):
            actual = logits_of(self.load(directory, attention), batch)
            self.assert_close(actual, expected, what=attention)

    @each_case(plans=["uneven", "middle layers empty", "first layer empty", "nothing but norms"])
    def test_output_biases(self, model, plan, directory):
        """Also of layers of which nothing else is left; saved and loaded again they are the same."""
        batch, expected, tensors = batch_with_left_padding(), masked(model, plan), load_file(directory / "model.safetensors")
        generator = torch.Generator().manual_seed(9)
        for number, block in enumerate(expected.model.layers):
            for name, module in (("self_attn.o_proj", block.self_attn.o_proj), ("mlp.down_proj", block.mlp.down_proj)):
                module.bias = torch.nn.Parameter(0.5 * torch.randn(HIDDEN, generator=generator))
                tensors[f"model.layers.{number}.{name}.bias"] = module.bias.detach().clone()
        without = logits_of(self.load(directory), batch)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((directory / "config.json").read_text())
        config["espalier"]["output_bias"] = True
        (directory / "config.json").write_text(json.dumps(config))
        wanted = logits_of(expected, batch)
        self.assertGreater((wanted - without).abs().max().item(), 0.1, "the biases change nothing")
        loaded, info = self.load(directory, output_loading_info=True)
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            self.assertEqual(list(info[key]), [], key)
        self.assert_close(logits_of(loaded, batch), wanted)
        loaded.train()(**batch, labels=batch["input_ids"]).loss.backward()
        for name, parameter in loaded.named_parameters():
            self.assertIsNotNone(parameter.grad, name)
        loaded.eval().save_pretrained(self.directory / "saved")
        self.assert_close(logits_of(self.load(self.directory / "saved"), batch), wanted, what="saved again")
        shutil.rmtree(self.directory / "saved")

    @each_case(plans=["uneven"])
    def test_exchanged_groups_are_noticed(self, model, plan, directory):
        """The comparison can fail: the same tensors read with another query-to-KV map."""
        batch = batch_with_left_padding()
        config = json.loads((directory / "config.json").read_text())
        for layer in config["espalier"]["layers"]:
            layer["groups"].reverse()
        (directory / "config.json").write_text(json.dumps(config))
        expected = logits_of(masked(model, plan), batch)
        actual = logits_of(self.load(directory), batch)
        self.assertGreater((actual - expected).abs().max().item(), 0.1)

    @each_case()
    def test_gradients_with_and_without_checkpointing(self, model, plan, directory):
        batch = batch_with_left_padding()
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        tokens = int(batch["attention_mask"].sum())
        reference = masked(model, plan).train()
        reference(**batch, labels=labels).loss.backward()
        expected = sliced({n: p.grad for n, p in reference.named_parameters()}, plan)
        # With left padding the stock models of 4.49 have wrong gradients under sdpa, too.
        attention = "sdpa" if VERSION >= (4, 57) else "eager"
        for checkpointing in (False, True):
            loaded = self.load(directory, attention).train()
            if checkpointing:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)  # renamed in 5.x, absent in 4.57
                    loaded.gradient_checkpointing_enable({"use_reentrant": False})
                self.assertTrue(loaded.is_gradient_checkpointing)
            loaded(**batch, labels=labels, use_cache=False).loss.backward()
            for name, parameter in loaded.named_parameters():
                self.assertIsNotNone(parameter.grad, name)
                self.assert_close(parameter.grad, expected[name], tokens, name)

    @each_case(plans=["middle layers empty", "first layer empty"])
    def test_an_optimiser_step_trains_it(self, model, plan, directory):
        batch = batch_with_left_padding()
        loaded = self.load(directory).train()
        optimiser = torch.optim.AdamW(loaded.parameters(), lr=1e-2)
        losses = []
        for _ in range(4):
            loss = loaded(**batch, labels=batch["input_ids"]).loss
            losses.append(loss.item())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self.assertLess(losses[-1], losses[0])


class OtherHeads(PrunedCase):
    @each_case(plans=ESSENTIAL_PLANS)
    def test_without_a_head(self, model, plan, directory):
        batch = batch_with_left_padding()
        real = batch["attention_mask"].bool()
        settings = {"trust_remote_code": True, "attn_implementation": "sdpa"}
        loaded, info = AutoModel.from_pretrained(directory, output_loading_info=True, **settings)
        self.assertEqual(list(info["missing_keys"]), [])
        with torch.no_grad():
            actual = loaded(**batch).last_hidden_state[real]
            expected = masked(model, plan).model(**batch).last_hidden_state[real]
        self.assert_close(actual, expected)
        again = self.directory / ("headless-" + directory.name)
        loaded.save_pretrained(again)
        shutil.rmtree(directory)
        second = AutoModel.from_pretrained(again, **settings)
        with torch.no_grad():
            self.assertTrue(torch.equal(second(**batch).last_hidden_state[real], actual))

    @each_case(plans=["middle layers empty"])
    def test_with_a_head_for_classes(self, model, plan, directory):
        batch = batch_with_left_padding()
        classifier = AutoModelForSequenceClassification.from_pretrained(
            directory, trust_remote_code=True, num_labels=3)
        own = getattr(transformers, type(model).__name__.replace("CausalLM", "SequenceClassification"))
        config = type(model.config).from_dict(model.config.to_dict())
        config.num_labels = 3
        stock = own(config).eval()
        stock.model.load_state_dict(masked(model, plan).model.state_dict())
        stock.score.load_state_dict(classifier.score.state_dict())
        with torch.no_grad():
            self.assert_close(classifier(**batch).logits, stock(**batch).logits)


class PlainProjections(PrunedCase):
    """What tools look for: nn.Linear itself, of the widths that it says, none of them empty."""

    @each_case()
    def test_every_projection_is_a_linear_of_its_true_width(self, model, plan, directory):
        loaded = self.load(directory)
        stored = stored_tensors(directory)
        found = {}
        for name, module in loaded.model.layers.named_modules():
            if list(module.children()) or not name.endswith("_proj"):
                continue
            self.assertIs(type(module), torch.nn.Linear, name)
            found[name] = module
            self.assertEqual(tuple(module.weight.shape),
                             (module.out_features, module.in_features), name)
            self.assertEqual(module(torch.zeros(2, module.in_features)).shape,
                             (2, module.out_features), name)
        self.assertEqual(sorted(f"model.layers.{name}.weight" for name in found),
                         sorted(name for name in stored if name.endswith("_proj.weight")))
        for module in loaded.modules():
            self.assertFalse(module._forward_hooks, "a hook would outlive the module's replacement")

    def test_it_compiles_without_a_break(self):
        model = dense_model("Llama")
        directory = self.write(model, PLANS["middle layers empty"], "compiled")
        loaded = self.load(directory)
        batch = batch_with_left_padding()
        expected = logits_of(loaded, batch)
        compiled = torch.compile(loaded, backend="eager", fullgraph=True)
        try:
            actual = logits_of(compiled, {**batch, "use_cache": False})
        except torch._dynamo.exc.Unsupported:
            with self.assertRaises(torch._dynamo.exc.Unsupported):
                logits_of(torch.compile(model, backend="eager", fullgraph=True),
                          {**batch, "use_cache": False})
            self.skipTest(f"transformers {transformers.__version__} compiles no stock Llama either")
        self.assert_close(actual, expected)

    def test_copied_and_pickled_it_is_the_same_model(self):
        model = dense_model("Qwen2")
        loaded = self.load(self.write(model, PLANS["middle layers empty"], "copied"))
        batch = batch_with_left_padding()
        expected = logits_of(loaded, batch)
        torch.save(loaded, self.directory / "whole.pt")
        twin = copy.deepcopy(loaded)
        with torch.no_grad():
            for parameter in loaded.parameters():
                parameter.zero_()
        self.assertTrue(torch.equal(logits_of(twin, batch), expected))
        whole = torch.load(self.directory / "whole.pt", weights_only=False)
        self.assertTrue(torch.equal(logits_of(whole, batch), expected))


class Generation(PrunedCase):
    NEW = 9

    def generate(self, model, **settings):
        batch = batch_with_left_padding()
        return model.generate(**batch, max_new_tokens=self.NEW, do_sample=False, **settings)

    @each_case()
    def test_every_cache_gives_the_masked_models_tokens(self, model, plan, directory):
        expected = self.generate(masked(model, plan), use_cache=False)
        self.assertEqual(expected.shape[1], 14 + self.NEW)
        for attention in ("eager", "sdpa"):
            loaded = self.load(directory, attention)
            for settings in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
                actual = self.generate(loaded, **settings)
                self.assertEqual(actual.tolist(), expected.tolist(), (attention, settings))

    def test_sliding_window_and_window_longer_than_the_cache(self):
        for window in (5, 30):
            model = dense_model("Mistral", sliding_window=window)
            for name in ("uneven", "first layer empty", "last layer empty"):
                with self.subTest(window=window, plan=name):
                    directory = self.write(model, PLANS[name], f"{window}-{name}")
                    expected = self.generate(masked(model, PLANS[name]), use_cache=False)
                    batch = batch_with_left_padding()
                    loaded = self.load(directory)
                    self.assert_close(logits_of(loaded, batch),
                                      logits_of(masked(model, PLANS[name]), batch))
                    for settings in ({}, {"cache_implementation": "static"}):
                        actual = self.generate(loaded, **settings)
                        self.assertEqual(actual.tolist(), expected.tolist(), settings)

    @each_case()
    def test_caches_hold_exactly_the_kept_kv_heads(self, model, plan, directory):
        batch = batch_with_left_padding()
        loaded = self.load(directory)
        # A layer without heads still counts the tokens, with one head.
        kept = [max(1, len(groups_of(layer["heads"]))) for layer in plan]
        if VERSION >= (4, 57):
            dynamic = DynamicCache(config=loaded.config)
            static = StaticCache(config=loaded.config, max_cache_len=20)
        else:
            dynamic = DynamicCache()
            static = StaticCache(config=loaded.config, max_batch_size=3, max_cache_len=20)
        with torch.no_grad():
            for cache in (dynamic, static):
                loaded(**batch, past_key_values=cache, use_cache=True)
        for cache, length in ((dynamic, 14), (static, 20)):
            expected = [((3, n, length, HEAD_DIM),) * 2 for n in kept]
            self.assertEqual([(tuple(k.shape), tuple(v.shape)) for k, v in cached(cache)], expected)
            self.assertEqual(int(cache.get_seq_length()), 14)

    @each_case()
    def test_static_cache_of_generate_holds_exactly_the_kept_kv_heads(self, model, plan, directory):
        kept = [max(1, len(groups_of(layer["heads"]))) for layer in plan]
        out = self.generate(self.load(directory), cache_implementation="static",
                            return_dict_in_generate=True)
        self.assertEqual([keys.shape[1] for keys, _ in cached(out.past_key_values)], kept)


class SavingAndLoading(PrunedCase):
    @each_case()
    def test_saved_again_it_is_the_same_model(self, model, plan, directory):
        batch = batch_with_left_padding()
        loaded = self.load(directory)
        again = self.directory / ("again-" + directory.name)
        loaded.save_pretrained(again)
        before = stored_tensors(directory)
        shutil.rmtree(directory)  # nothing may be read from the first place any more
        after = stored_tensors(again)
        self.assertEqual(sorted(before), sorted(after))
        for name in before:
            self.assertTrue(torch.equal(before[name], after[name]), name)
        self.assertEqual((again / "modeling_espalier.py").read_bytes(), MODELING_FILE.read_bytes())
        config = json.loads((again / "config.json").read_text())
        self.assertEqual([layer["groups"] for layer in config["espalier"]["layers"]],
                         [groups_of(layer["heads"]) for layer in plan])
        expected = logits_of(loaded, batch)
        self.assertTrue(torch.equal(logits_of(self.load(again), batch), expected))

    @each_case(plans=["first layer empty"])
    def test_sharded_and_stored_in_bfloat16(self, model, plan, directory):
        tensors = {n: t.bfloat16() for n, t in load_file(directory / "model.safetensors").items()}
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        loaded = self.load(directory, **{DTYPE: torch.bfloat16})
        again = self.directory / ("sharded-" + directory.name)
        loaded.save_pretrained(again, max_shard_size="20KB")
        self.assertTrue((again / "model.safetensors.index.json").exists())
        second = self.load(again, **{DTYPE: "auto"})
        self.assertEqual({p.dtype for p in second.parameters()}, {torch.bfloat16})
        for name, tensor in ((n, t) for n, t in tensors.items() if t.numel()):
            self.assertTrue(torch.equal(second.state_dict()[name], tensor), name)

    @each_case()
    def test_without_remote_code_it_fails_loudly(self, model, plan, directory):
        if VERSION < (4, 57):
            self.skipTest(f"transformers {transformers.__version__} checks no sizes when it loads")
        with self.assertRaises((RuntimeError, ValueError)) as caught:
            AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=False)
        self.assertRegex(str(caught.exception).lower(), "size mismatch|mismatch")

    @each_case(plans=["uneven", "middle layers empty"])
    def test_from_config_it_has_the_familys_initial_values(self, model, plan, directory):
        config = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=True)
        torch.manual_seed(3)
        fresh = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
        block = fresh.model.layers[0]
        for module in (block.self_attn.q_proj, block.mlp.up_proj, block.mlp.down_proj):
            # Normal with initializer_range 0.2; a bare Linear would have at most 0.16 / sqrt(3).
            self.assertGreater(module.weight.std().item(), 0.15)
            if module.bias is not None:
                self.assertEqual(module.bias.abs().max().item(), 0.0)


class WrongConfigurations(PrunedCase):
    def refused(self, change, expected):
        directory = self.write(dense_model("Qwen2"), PLANS["uneven"], expected.replace(".", "-"))
        config = json.loads((directory / "config.json").read_text())
        change(config)
        (directory / "config.json").write_text(json.dumps(config))
        with self.assertRaisesRegex(ValueError, expected):
            self.load(directory)

    def test_no_widths(self):
        self.refused(lambda c: c.pop("espalier"), "no key espalier.layers")

    def test_a_layer_too_few(self):
        self.refused(lambda c: c["espalier"]["layers"].pop(), "3 entries for 4 layers")

    def test_more_groups_than_kv_heads(self):
        self.refused(lambda c: c["espalier"]["layers"][1].update(groups=[1] * 5), "1..groups")

    def test_a_group_wider_than_the_models(self):
        self.refused(lambda c: c["espalier"]["layers"][2].update(groups=[4]), "1 to 3 heads")

    def test_an_empty_group(self):
        self.refused(lambda c: c["espalier"]["layers"][2].update(groups=[1, 0]), "1 to 3 heads")

    def test_more_channels_than_the_model(self):
        self.refused(lambda c: c["espalier"]["layers"][3].update(channels=41), "outside .0, 40.")


if __name__ == "__main__":
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    unittest.main()
