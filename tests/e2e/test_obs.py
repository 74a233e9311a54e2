"""Criterion obs in whole runs: one pass, nested plans, the same on every layout and whatever the inputs' scales."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
from safetensors.numpy import save_file
from safetensors.torch import load_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from workbench import ROOT, Case, digest_of, main, metrics_of, plan_of, run, write_tokens

OPEN = {"first_layers": 0, "last_layers": 0}


def obs(target=0.4, unit="query_head", ranking="global_by_kind", **importance):
    return {
        "model": {"path": "model", "dtype": "float64"},
        "importance": {"criterion": "obs", **importance},
        "prune": {"target": target, "iterations": 1, "measure": "parameters", "ranking": ranking, "attention_unit": unit,
                  "protect": OPEN},
        "evaluation": {"perplexity": []},
    }


def power_of_two(random, count):
    """From 2^-10 to 2^10, so that nothing is rounded."""
    return np.exp2(random.integers(-10, 11, count))


def up_to_a_thousand(random, count):
    return np.exp(random.uniform(-np.log(1000), np.log(1000), count))


def rescaled(model, place, seed, factors=power_of_two):
    """The same function with other activations: up rows times c and down columns over c; v rows of a KV head times c and the
    o columns of the query heads that read it over c. In float32."""
    shutil.copytree(model, place)
    config = json.loads((model / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    random = np.random.default_rng(seed)
    for file in place.glob("*.safetensors"):
        tensors = {name: tensor.double().numpy() for name, tensor in load_file(file).items()}
        for name in [n for n in tensors if n.endswith("up_proj.weight")]:
            down = name.replace("up_proj", "down_proj")
            factor = factors(random, len(tensors[name]))
            tensors[name] = tensors[name] * factor[:, None]
            tensors[down] = tensors[down] / factor
        for name in [n for n in tensors if n.endswith("v_proj.weight")]:
            factor = factors(random, kv_heads)
            width = len(tensors[name]) // kv_heads
            rows = np.repeat(factor, width)
            tensors[name] = tensors[name] * rows[:, None]
            bias = name.replace("weight", "bias")
            if bias in tensors:
                tensors[bias] = tensors[bias] * rows
            out = name.replace("v_proj", "o_proj")
            tensors[out] = tensors[out] / np.repeat(factor, width * heads // kv_heads)
        save_file({name: values.astype(np.float32) for name, values in tensors.items()}, file, metadata={"format": "pt"})
    (place / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}))
    return place


class Obs(Case):
    model = {"family": "qwen2", "kv_heads": 2, "heads": 4, "channels": 150, "vocab": 61}

    def pruned(self, name, tensor=1, data=1, **changes):
        config = self.bench.config(name, **{**obs(), **changes})
        run_dir = self.folder / f"{name}-{tensor}x{data}"
        self.succeeds("run", config, "--run-dir", run_dir, "--tensor", tensor, ranks=tensor * data)
        return run_dir

    def test_layouts(self):
        for name, changes, layouts in [
            ("heads", obs(), [(2, 1), (1, 2), (2, 2), (3, 1), (1, 5)]),
            ("groups", obs(unit="kv_group"), [(3, 1)]),
            ("scalar", obs(curvature="scalar"), [(2, 2)]),
            ("mean", {**obs(), "calibration": {"combine": "weighted_mean"}}, [(2, 1)]),
        ]:
            with self.subTest(name):
                found = {layout: digest_of(self.pruned(name, *layout, **changes)) for layout in [(1, 1), *layouts]}
                self.assertEqual(len(set(found.values())), 1, found)
                plan = plan_of(self.folder / f"{name}-1x1" / "plan.h5")[1]
                self.assertGreater((plan["mlp/removed_at"] > 0).sum(), 60)
                self.assertGreater((plan["attention/removed_at"] > 0).sum(), 0)

    def test_rescaled_activations_change_nothing(self):
        plain = digest_of(self.pruned("plain"))
        for seed in (1, 2):
            place = rescaled(self.bench.model, self.folder / f"rescaled{seed}", seed)
            found = self.pruned(f"scaled{seed}", model={"path": str(place), "dtype": "float64"})
            self.assertEqual(digest_of(found), plain)

    def test_every_sparsity_is_in_the_order_of_the_largest(self):
        orders = {}
        for target in (0.2, 0.4, 0.6):
            plan = plan_of(self.pruned(f"to{target}", **obs(target, ranking="global")) / "plan.h5")[1]
            orders[target] = {(kind, int(l), int(u)): int(o[l, u]) for kind, o in
                              ((k, plan[f"{k}/order"]) for k in ("attention", "mlp")) for l, u in zip(*np.nonzero(o >= 0))}
        for small, large in ((0.2, 0.4), (0.4, 0.6)):
            self.assertGreater(len(orders[large]), len(orders[small]))
            for unit, place in orders[small].items():
                self.assertEqual(orders[large][unit], place)

    def test_defaults_and_refusals(self):
        config = self.folder / "defaults.yaml"
        config.write_text(json.dumps({
            "model": {"path": str(self.bench.model)}, "importance": {"criterion": "obs"}, "prune": {"target": 0.3},
            "calibration": {"domains": [{"name": "a", "tokens": str(self.bench.folder / "a.h5")}]},
        }))
        text = self.succeeds("config", config).out
        self.assertIn("iterations: 1", text)
        self.assertIn("normalization: cost", text)
        for what, words in [
            ({"prune": {"iterations": 4}}, ["prune.iterations = 4", "every sparsity", "Use 1"]),
            ({"prune": {"attention_unit": "equal_per_group"}}, ["equal_per_group", "query_head or kv_group"]),
            ({"importance": {"criterion": "obs", "normalization": "block_mean"}}, ["block_mean", "infinite", "cost"]),
            ({"importance": {"criterion": "obs", "damping": 0}}, ["importance.damping = 0", "above 0"]),
        ]:
            changed = {**obs(), **what}
            changed["prune"] = {**obs()["prune"], **what.get("prune", {})}
            result = run("run", self.bench.config("refused", **changed), "--run-dir", self.folder / "refused")
            self.assertEqual(result.code, 78, result)
            for word in words:
                self.assertIn(word, result.text)

    def test_what_reads_a_run_reads_this_one(self):
        """Infinite scores are in its commit."""
        run_dir = self.pruned("read")
        self.succeeds("verify", run_dir)
        self.succeeds("inspect", run_dir)
        report = subprocess.run([sys.executable, ROOT / "launch/report.py", run_dir], capture_output=True, text=True)
        self.assertEqual(report.returncode, 0, report.stderr)

    def test_memory_decides_the_curvature(self):
        run_dir = self.pruned("auto")
        log = (run_dir / "logs" / "attempt-001" / "main.log").read_text()
        self.assertRegex(log, r"obs +curvature full")
        self.assertGreater(metrics_of(run_dir)[1]["statistics_bytes"], 4 * 150 * 150 * 8)


class Float32(Case):
    """A trained model, whose losses mean something."""

    def perplexities(self, name, model):
        config = self.bench.config(name, **{
            "model": {"path": str(model), "dtype": "float32"},
            "calibration": {"domains": [{"name": "text", "tokens": "text.h5"}], "micro_batch_tokens": 1024},
            "importance": {"criterion": "obs"}, "prune": {"target": 0.5, "measure": "parameters", "iterations": 1},
            "refit": {"enabled": True, "domains": [{"name": "text", "tokens": "others.h5"}]},
            "evaluation": {"perplexity": [{"name": "held", "tokens": "held.h5"}]}})
        run_dir = self.folder / name
        self.succeeds("run", config, "--run-dir", run_dir)
        dense, pruned = (row["perplexity"]["held"] for row in metrics_of(run_dir))
        return dense, pruned, json.loads((run_dir / "refit.json").read_text())["perplexity"]["held"]

    def test_massive_activations(self):
        """Factors up to 1,000 leave the perplexities where they are; 1 % was asked for, 1e-5 were seen."""
        model = ROOT / "tests/models/tri-domain-qwen2"
        from tokenizers import Tokenizer
        text = "\n".join(json.loads(line)["text"] for line in (model / "text/prose.calibration.jsonl").read_text().splitlines())
        ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids
        rows = np.array(ids[: 160 * 64]).reshape(160, 64)
        for name, part in (("text", rows[:40]), ("others", rows[40:120]), ("held", rows[120:])):
            write_tokens(self.bench.folder / f"{name}.h5", vocab=1024, tokens=part)
        plain = self.perplexities("plain", model)
        self.assertLess(plain[2], plain[1])
        for seed in (1, 2):
            found = self.perplexities(f"scaled{seed}", rescaled(model, self.folder / f"model{seed}", seed, up_to_a_thousand))
            np.testing.assert_allclose(found, plain, rtol=1e-3)


if __name__ == "__main__":
    main()
