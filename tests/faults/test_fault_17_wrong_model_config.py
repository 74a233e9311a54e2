"""A config.json that does not fit the weights is refused before any work, with every tensor, both shapes and the
nearest name.

Changes each number of config.json by itself, one tensor's name and its dtype, and sets what no version of the program
can run; at one and two ranks.
"""

import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from spoilt import Row, Spoilt
from workbench import main, run


def wrong_shapes(row):
    row.set_model(intermediate_size=20)


def missing_tensor(row):
    row.weights(lambda t: t.update({"model.layers.1.mlp.gate_prj.weight": t.pop("model.layers.1.mlp.gate_proj.weight")}))


def wrong_dtype(row):
    row.weights(lambda t: t.update({"model.norm.weight": np.ones(32, dtype=np.int32)}))


def unknown_model_type(row):
    row.set_model(model_type="gpt_neox")


def rope_yarn(row):
    row.set_model(rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4})


def quantised(row):
    row.set_model(quantization_config={"quant_method": "gptq", "bits": 4})


def other_activation(row):
    row.set_model(hidden_act="gelu")


def broken_model_config(row):
    (row.model / "config.json").write_text('{"model_type": "qwen2",')


def heads_do_not_divide(row):
    row.set_model(num_key_value_heads=3)


TABLE = [
    (wrong_shapes, 65, [f"layers.{i}.mlp.{p}_proj" for i in range(4) for p in ("gate", "up", "down")]
     + ["[24, 32]", "[20, 32]", "12 problems"], False),
    (missing_tensor, 65, ["gate_proj", "gate_prj"], False),
    (wrong_dtype, 65, ["model.norm.weight", "I32"], False),
    (unknown_model_type, 65, ["gpt_neox", "qwen2"], False),
    (rope_yarn, 65, ["yarn"], False),
    (quantised, 65, ["quantization_config"], False),
    (other_activation, 65, ["hidden_act", "gelu"], False),
    (broken_model_config, 65, ["config.json"], False),
    (heads_do_not_divide, 65, ["num_key_value_heads"], False),
]

# How each number of config.json is changed, and what is said of it: tensors with both shapes, as far as they follow.
NUMBERS = {
    "hidden_size": (48, ["model.embed_tokens.weight", "[64, 48]", "[64, 32]"]),
    "intermediate_size": (28, ["model.layers.3.mlp.down_proj.weight", "[32, 28]", "[32, 24]"]),
    "num_hidden_layers": (5, ["model.layers.4.", "mlp.up_proj.weight"]),
    "num_attention_heads": (8, ["model.layers.0.self_attn.q_proj.weight"]),
    "num_key_value_heads": (4, ["model.layers.0.self_attn.k_proj.weight", "[32, 32]", "[16, 32]"]),
    "vocab_size": (60, ["model.embed_tokens.weight", "[60, 32]", "[64, 32]"]),
    "head_dim": (4, ["model.layers.0.self_attn.o_proj.weight"]),
}


class WrongModelConfig(Spoilt):
    def test_table(self):
        self.every_row(TABLE)

    def test_every_number(self):
        self.bench.config()
        numbers = {k for k, v in json.loads((self.bench.model / "config.json").read_text()).items()
                   if isinstance(v, int) and not isinstance(v, bool)}
        shapes = {k for k in numbers if k.endswith(("_size", "_heads", "_layers"))} | {"head_dim"}
        self.assertEqual(sorted(shapes - set(NUMBERS) - {"max_window_layers"}), [], "a number that no row changes")
        for name, (value, words) in NUMBERS.items():
            with self.subTest(name):
                row = Row(self.folder / name, self.bench.folder)
                row.set_model(without=["layer_types"], **{name: value})
                result = run("run", row.config, "--run-dir", row.run_dir)
                self.fails(result, 65, words)
                self.assertFalse(row.run_dir.exists())


if __name__ == "__main__":
    main()
