"""What users put on exports: adapters of peft, int8 weights of optimum-quanto.

Both look for nn.Linear and trust its sizes. The models have uneven groups, a layer without heads and
one without channels. Runs once for each transformers version, as test_modeling_espalier.py does.
"""

import importlib.util
import tempfile
import unittest
import warnings
from pathlib import Path

from test_modeling_espalier import (  # before transformers: it says where remote code is cached
    DTYPE,
    FAMILIES,
    PLANS,
    PrunedCase,
    batch_with_left_padding,
    dense_model,
    logits_of,
    tolerance_for,
)

import torch

MISSING = [m for m in ("peft", "accelerate", "optimum.quanto")
           if importlib.util.find_spec(m.split(".")[0]) is None]
PLAN = PLANS["middle layers empty"]
# Everything that reads shapes: the others are LoRA with another start.
RELATIVES = {
    "DoRA": lambda peft: peft.LoraConfig(r=2, target_modules="all-linear", use_dora=True),
    "LoKr": lambda peft: peft.LoKrConfig(r=2, target_modules="all-linear"),
    "VeRA": lambda peft: peft.VeraConfig(r=2, target_modules=["q_proj", "o_proj"]),
    "OFT": lambda peft: peft.OFTConfig(r=0, oft_block_size=8, target_modules=["q_proj", "o_proj"]),
    "IA3": lambda peft: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"],
                                       feedforward_modules=["down_proj"]),
}


def train(model, steps=3, rate=2e-2):
    """Losses of a few steps on one batch; every parameter that is trained must get a gradient."""
    batch = batch_with_left_padding()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(trained.values(), lr=rate)
    losses = []
    for _ in range(steps):
        loss = model(**batch, labels=labels, use_cache=False).loss
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        for name, parameter in trained.items():
            if parameter.grad is None or not torch.isfinite(parameter.grad).all():
                raise AssertionError(f"{name} has no finite gradient")
        optimiser.step()
    return losses


@unittest.skipIf(MISSING, f"needs {' and '.join(MISSING)}: launch/setup.sh --tests installs them")
class Tools(PrunedCase):
    def setUp(self):
        super().setUp()
        quiet = warnings.catch_warnings()
        quiet.__enter__()
        self.addCleanup(quiet.__exit__, None, None, None)
        warnings.simplefilter("ignore")  # of the tools, about themselves

    def exported(self, family="Llama", **settings):
        directory = self.directory / family
        if not directory.exists():
            self.write(dense_model(family), PLAN, family)
        return self.load(directory, **settings)


class Adapters(Tools):
    def adapted(self, family, config, **settings):
        import peft

        torch.manual_seed(5)
        return peft.get_peft_model(self.exported(family), config(peft), **settings)

    def test_lora_is_attached_trained_merged_saved_and_loaded(self):
        for number, family in enumerate(FAMILIES):
            # all-linear in every family, single projections in turn.
            for target in ("all-linear", ["q_proj"], ["o_proj"])[: 3 if number == 0 else 1]:
                with self.subTest(family=family, target=target):
                    self.check_lora(family, target)

    def check_lora(self, family, target):
        batch = batch_with_left_padding()
        bare = self.exported(family)
        with self.subTest("attached it changes nothing"):
            model = self.adapted(family, lambda peft: peft.LoraConfig(
                r=2, lora_alpha=4, target_modules=target, task_type="CAUSAL_LM"))
            self.assertTrue(torch.equal(logits_of(model, batch), logits_of(bare, batch)))
        adapters = sum(".lora_A." in name for name, _ in model.named_parameters())
        # 4 layers, one without heads and another without channels; lm_head is no target.
        self.assertEqual(adapters, 3 if target != "all-linear" else 3 * 4 + 3 * 3)
        model.train()
        model.enable_input_require_grads()
        model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
        losses = train(model)
        self.assertLess(losses[-1], losses[0])
        model.eval()
        expected = logits_of(model, batch)
        self.assertGreater((expected - logits_of(bare, batch)).abs().max().item(), 1e-3)
        place = Path(tempfile.mkdtemp(dir=self.directory))
        model.save_pretrained(place / "adapter")
        merged = model.merge_and_unload()
        self.assert_close(logits_of(merged, batch), expected)
        merged.save_pretrained(place / "merged")
        again = self.load(place / "merged")
        self.assertTrue(torch.equal(logits_of(again, batch), logits_of(merged, batch)))
        import peft

        loaded = peft.PeftModel.from_pretrained(bare, place / "adapter").eval()
        self.assert_close(logits_of(loaded, batch), expected)

    def test_relatives_of_lora_train(self):
        for name, config in RELATIVES.items():
            with self.subTest(name):
                model = self.adapted("Llama", config).train()
                losses = train(model)
                self.assertLess(losses[-1], losses[0])
                merged = model.eval().merge_and_unload()
                self.assertTrue(torch.isfinite(logits_of(merged, batch_with_left_padding())).all())


class Quantized(Tools):
    def test_int8_weights_compute_what_their_values_say(self):
        from optimum import quanto

        batch = batch_with_left_padding()
        for family in FAMILIES:
            with self.subTest(family):
                model = self.exported(family)
                twin = self.load(self.directory / family)
                quanto.quantize(model, weights=quanto.qint8)
                quanto.freeze(model)
                replaced = 0
                with torch.no_grad():
                    for name, module in model.named_modules():
                        if isinstance(module, quanto.QLinear):
                            replaced += 1
                            exact = twin.get_submodule(name).weight
                            rounded = module.weight.dequantize()
                            # A row's largest value is 127 steps: rounding errs by half a step.
                            step = exact.abs().amax(dim=1, keepdim=True) / 127
                            self.assertTrue(((exact - rounded).abs() <= 0.51 * step).all(), name)
                            exact.copy_(rounded)
                linears = sum(type(m) is torch.nn.Linear for m in twin.modules())
                self.assertEqual(replaced, linears)
                expected = logits_of(twin, batch)
                difference = (logits_of(model, batch) - expected).abs().max().item()
                self.assertLessEqual(difference, tolerance_for(expected))
                tokens = model.generate(**batch, max_new_tokens=4, do_sample=False)
                self.assertEqual(tokens.shape, (3, 18))


class Trained(Tools):
    def test_all_weights_train_in_bfloat16_and_load_again(self):
        batch = batch_with_left_padding()
        for family in FAMILIES:
            with self.subTest(family):
                model = self.exported(family, **{DTYPE: torch.bfloat16}).train()
                losses = train(model, rate=5e-3)
                self.assertLess(losses[-1], losses[0])
                model.eval().save_pretrained(self.directory / f"{family}-trained")
                again = self.load(self.directory / f"{family}-trained", **{DTYPE: "auto"})
                self.assertEqual({p.dtype for p in again.parameters()}, {torch.bfloat16})
                self.assertTrue(torch.equal(logits_of(again, batch), logits_of(model, batch)))


del PrunedCase, Tools  # unittest would run them as cases of their own


if __name__ == "__main__":
    unittest.main()
