"""tests/models/make_random.py: what it writes is read by transformers, and is random everywhere."""

import importlib.util
import json
import pathlib
import sys
import tempfile
import unittest

MODELS = pathlib.Path(__file__).resolve().parents[1] / "models"
sys.path.insert(0, str(MODELS))
import make_random

MISSING = [n for n in ("torch", "transformers") if importlib.util.find_spec(n) is None]


def families():
    """Those that this version of transformers has: 4.49 knows no Qwen3."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return [family for family in make_random.FAMILIES if family in CONFIG_MAPPING]


@unittest.skipIf(MISSING, f"needs {' and '.join(MISSING)}: launch/setup.sh --tests installs them")
class MakeRandom(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = pathlib.Path(folder.name)

    def load(self, path):
        """(model in float64, logits of fixed tokens)"""
        import torch
        import transformers

        torch.set_num_threads(1)
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        major = int(transformers.__version__.split(".")[0])
        dtype = {"torch_dtype" if major < 5 else "dtype": torch.float64}
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            path, output_loading_info=True, **dtype
        )
        self.assertFalse(list(info["missing_keys"]) + list(info["unexpected_keys"]))
        with torch.no_grad():
            return model, model(torch.arange(2, 66).reshape(2, 32)).logits

    def test_families_spellings_and_shards_agree(self):
        for family in families():
            for tied in (False, True):
                with self.subTest(family=family, tied=tied):
                    one = make_random.make(self.dir / "one", family, 3, spelling=4, tied=tied)
                    three = make_random.make(
                        self.dir / f"{family}{tied}", family, 3, spelling=4, tied=tied, shards=3
                    )
                    self.assertEqual(len(list(three.glob("*-of-00003.safetensors"))), 3)
                    index = json.loads((three / "model.safetensors.index.json").read_text())
                    self.assertEqual("lm_head.weight" in index["weight_map"], not tied)
                    model, logits = self.load(one)
                    self.assertTrue((self.load(three)[1] == logits).all())
                    self.assertGreater(float(logits.std()), 0.5)
                    for name, value in model.named_parameters():
                        self.assertGreater(float(value.detach().std()), 0.05, name)

    def test_features_of_the_families_change_the_logits(self):
        for family, plain in (("llama", {"rope": "default"}), ("mistral", {"sliding_window": 64})):
            _, logits = self.load(make_random.make(self.dir / "a", family, spelling=4))
            _, other = self.load(make_random.make(self.dir / "b", family, spelling=4, **plain))
            self.assertGreater(float((logits - other).abs().max()), 0.1, family)
        if "qwen3" not in families():
            self.skipTest("this version of transformers has no Qwen3")
        config = json.loads((make_random.make(self.dir / "c", "qwen3") / "config.json").read_text())
        self.assertNotEqual(
            config["head_dim"] * config["num_attention_heads"], config["hidden_size"]
        )

    def test_fields_of_the_spellings(self):
        old = make_random.make(self.dir / "old", "qwen2", spelling=4, dtype="bfloat16")
        new = make_random.make(self.dir / "new", "qwen2", spelling=5, dtype="bfloat16")
        old, new = (json.loads((p / "config.json").read_text()) for p in (old, new))
        self.assertEqual(
            set(old) - set(new), {"rope_theta", "rope_scaling", "torch_dtype"}, "only in 4"
        )
        self.assertEqual(set(new) - set(old), {"rope_parameters", "dtype", "layer_types"})

    def test_same_arguments_same_bytes(self):
        read = [
            (make_random.make(self.dir / n, "qwen2", seed) / "model.safetensors").read_bytes()
            for n, seed in (("a", 1), ("b", 1), ("c", 2))
        ]
        self.assertEqual(read[0], read[1])
        self.assertNotEqual(read[0], read[2])

    def test_config_laid_over_and_left_out(self):
        path = make_random.make(
            self.dir / "m", "mistral", config={"hidden_act": "gelu"}, without=("sliding_window",)
        )
        config = json.loads((path / "config.json").read_text())
        self.assertEqual(config["hidden_act"], "gelu")
        self.assertNotIn("sliding_window", config)

    def test_wrong_arguments(self):
        for words, keys in (
            ("family 'gpt'", {"family": "gpt"}),
            ("no multiple", {"heads": 4, "kv_heads": 3}),
            ("shards = 1000", {"shards": 1000}),
            ("'width' is unknown", {"width": 3}),
            ("float64", {"dtype": "float64"}),
            ("spelling = 6", {"spelling": 6}),
            ("rope 'yarn'", {"rope": "yarn"}),
        ):
            with self.subTest(keys=keys), self.assertRaisesRegex(ValueError, words):
                make_random.make(self.dir / "x", **{"family": "llama", **keys})


if __name__ == "__main__":
    unittest.main()
