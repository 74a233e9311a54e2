"""What removed units leave: means by hooks in transformers, biases by numpy, logits of the masked model with these biases.

Drawn plans with drawn means show the exports, with layers of which nothing is left; runs show which means are taken.
"""

import json
import os
import pathlib
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "models")]

import h5py  # noqa: E402
import numpy  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402

import compare  # noqa: E402
import plan_files  # noqa: E402
import reference  # noqa: E402
import test_pruned  # noqa: E402
import token_files  # noqa: E402
from make_random import make  # noqa: E402

PROJECTIONS = {"attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}


def tensors_of(path):
    return {name: tensor.double().numpy() for name, tensor in
            safetensors.torch.load_file(pathlib.Path(path) / "model.safetensors").items()}


def features(gone, width):
    """Units as the features that they own."""
    return numpy.repeat(gone, width // gone.shape[1], axis=1)


def biases_of(weights, gone, means, layer, kind):
    """(bias, the sum of the sizes of its terms), by a dot product per output."""
    columns = numpy.flatnonzero(gone[layer])
    weight = weights[f"model.layers.{layer}.{PROJECTIONS[kind]}.weight"][:, columns]
    return weight @ means[layer, columns], numpy.abs(weight) @ numpy.abs(means[layer, columns])


def with_biases(model, biases):
    for layer, block in enumerate(model.model.layers):
        for kind, module in (("attention", block.self_attn.o_proj), ("mlp", block.mlp.down_proj)):
            bias = torch.nn.Parameter(torch.tensor(biases[layer, kind]).to(module.weight.dtype))
            if module.bias is None:
                module.bias = bias
            else:
                module.bias.data += bias
    return model


class Biases:
    """Compares the biases of an export with the plan's units, means and the unpruned weights."""

    def checked_biases(self, export, removed, means):
        """The export's biases {(layer, kind): [D]}, each within the rounding of the stored float32."""
        dense, written, found = tensors_of(self.model), tensors_of(export), {}
        for kind, projection in PROJECTIONS.items():
            gone = features(removed[kind], means[kind].shape[1])
            for layer in range(len(gone)):
                wanted, size = biases_of(dense, gone, means[kind], layer, kind)
                bias = written[f"model.layers.{layer}.{projection}.bias"]
                bound = numpy.finfo("float32").eps / 2 * numpy.abs(wanted) + 2 * gone.shape[1] * numpy.finfo("float64").eps * size
                self.assertTrue((numpy.abs(bias - wanted) <= bound).all(), (kind, layer))
                found[layer, kind] = bias
        return found


class Drawn(Biases, test_pruned.Opened):
    def compensated_logits(self, removed, unit, biases, dtype=torch.float64):
        with reference.quiet():
            model = reference.load(self.model, dtype)
        plan_files.mask(model, removed, unit)
        return reference.logits(with_biases(model, biases), self.token_file, 4)

    def exported(self, removed, unit, form="exact"):
        """(the export, its biases): of drawn means, none of which is known of what stays."""
        generator = numpy.random.default_rng(21)
        heads, hidden = self.config["num_attention_heads"], self.config["hidden_size"]
        sizes = {"attention": heads * (self.config.get("head_dim") or hidden // heads), "mlp": self.config["intermediate_size"]}
        means = {kind: numpy.where(features(gone, sizes[kind]), generator.normal(0.1, 0.3, (len(gone), sizes[kind])), numpy.nan)
                 for kind, gone in removed.items()}
        plan, export = self.path / f"plan-{unit}.h5", self.path / f"export-{unit}-{form}"
        plan_files.write(plan, removed, unit, "0" * 64, means)
        compare.run(self.case.espalier, 1, "export", str(plan), "--model", str(self.model), "--out", str(export), "--format", form)
        return export, self.checked_biases(export, removed, means)

    def check(self, removed, unit, layouts):
        export, biases = self.exported(removed, unit)
        self.assertIs(json.loads((export / "config.json").read_text())["espalier"]["output_bias"], True)
        wanted = self.compensated_logits(removed, unit, biases)
        self.assertGreater(compare.difference(wanted, self.masked_logits(removed, unit)), 1e-3 * wanted.abs().max().item())
        bound = 1e-9 * wanted.abs().max().item()
        for layout in layouts:
            self.assertLessEqual(compare.difference(self.sliced_logits(layout, "--model", str(export)), wanted), bound, layout)
        compare.run(self.case.espalier, 1, "verify", str(export), "--deep")
        narrow = 4 * compare.difference(self.compensated_logits(removed, unit, biases, torch.float32), wanted)
        for version, logits in self.read_by_transformers(export, "exact"):
            self.assertLessEqual(compare.difference(logits, wanted), narrow, version)

    def test_query_heads_and_empty_layers(self):
        removed = plan_files.draw(self.config, "query_head", 11, empty_attention=(0, 1), empty_mlp=(0, 2))
        self.check(removed, "query_head", ((1, 1), (2, 1), (3, 1), (2, 2)))

    def test_kv_groups(self):
        self.check(plan_files.draw(self.config, "kv_group", 13, empty_attention=(2,)), "kv_group", ((1, 1), (3, 1)))


class Llama(Drawn, unittest.TestCase):
    family = "llama"

    def test_uniform_in_the_stock_class(self):
        removed = plan_files.draw(self.config, "kv_group", 14)
        for kind in removed:  # the same number everywhere, other units in every layer
            for layer in range(self.layers):
                removed[kind][layer] = False
                removed[kind][layer, layer % 2 :: 2] = True
        export, biases = self.exported(removed, "kv_group", "uniform")
        wanted = self.compensated_logits(removed, "kv_group", biases)
        narrow = 4 * compare.difference(self.compensated_logits(removed, "kv_group", biases, torch.float32), wanted)
        for version, logits in self.read_by_transformers(export, "uniform"):
            self.assertLessEqual(compare.difference(logits, wanted), narrow, version)


class Qwen2(Drawn, unittest.TestCase):
    family = "qwen2"
    shape = {"heads": 8, "kv_heads": 4}


class Qwen3(Drawn, unittest.TestCase):
    family = "qwen3"
    shape = {"heads": 8, "kv_heads": 2}


class Runs(Biases):
    """Of two domains of different weights, one with padding."""

    unit = "query_head"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        torch.set_num_threads(1)
        scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(scratch.cleanup)
        cls.path = pathlib.Path(scratch.name)
        cls.model = cls.path / "model"
        make(cls.model, cls.family, seed=4, layers=4, channels=40, hidden=48, vocab=96)
        token_files.random_plain(cls.path / "a.h5", 5, 24, 96, 5)
        token_files.random_answers(cls.path / "b.h5", 6, 24, 96, 6)
        cls.case = compare.Case(os.environ["ESPALIER"], cls.model, [cls.path / "a.h5", cls.path / "b.h5"], cls.path,
                                weights=[1.0, 2.5])

    def pruned(self, name, layout, iterations, **change):
        """The directory of a run."""
        config = json.loads(self.case.config("float64", "flap", self.unit, **change).read_text())
        config["prune"].update(target=0.45, iterations=iterations, compensation="mean", ranking="global_by_kind",
                               protect={"first_layers": 0, "last_layers": 1})
        config["export"] = [{"format": "exact", "path": "exact"}]
        (self.path / f"{name}.yaml").write_text(json.dumps(config))
        compare.run(self.case.espalier, layout[0] * layout[1], "run", str(self.path / f"{name}.yaml"), "--run-dir",
                    str(self.path / name), "--tensor", str(layout[0]))
        return self.path / name

    @staticmethod
    def plan_of(run):
        with h5py.File(run / "plan.h5") as file:
            at = {kind: file[kind]["removed_at"][:] for kind in PROJECTIONS}
            return at, {kind: file["means"][kind][:] for kind in PROJECTIONS}

    def measured(self, removed):
        """Means of every feature of the masked model, a token of a domain counting its share times the number of domains."""
        with reference.quiet():
            model = reference.load(self.model, torch.float64)
        plan_files.mask(model, removed, self.unit)
        domains, gates = self.case.domains(), reference.Gates(model, retain=False)
        counts = [domain.weight * len(domains) / sum(d.weight for d in domains) for domain in domains]
        sums, tokens = {}, 0.0
        with torch.no_grad():
            for domain, count in zip(domains, counts):
                for row, _ in domain.rows:
                    model(row[None])
                    tokens += count * len(row)
                    for place, x in gates.tensors.items():
                        sums[place] = sums.get(place, 0) + count * x[0].sum(0)
        gates.close()
        layers = range(model.config.num_hidden_layers)
        return {kind: numpy.stack([(sums[layer, kind] / tokens).numpy() for layer in layers]) for kind in PROJECTIONS}

    def check_means(self, at, means, iterations):
        for iteration in range(1, iterations + 1):
            measured = self.measured({kind: (gone >= 1) & (gone < iteration) for kind, gone in at.items()})
            for kind in PROJECTIONS:
                fell = features(at[kind] == iteration, means[kind].shape[1])
                self.assertGreater(fell.sum(), 0, (kind, iteration))
                self.assertLessEqual(numpy.abs(means[kind] - measured[kind])[fell].max(), 1e-9 * numpy.abs(measured[kind]).max(),
                                     (kind, iteration))
        for kind in PROJECTIONS:
            self.assertTrue((numpy.isnan(means[kind]) == features(at[kind] < 0, means[kind].shape[1])).all())

    def compensated(self, removed, biases):
        with reference.quiet():
            model = reference.load(self.model, torch.float64)
        plan_files.mask(model, removed, self.unit)
        return with_biases(model, biases)

    def check_evaluations(self, export, model):
        """Losses and logits of the program on several layouts."""
        case = compare.Case(self.case.espalier, export, self.case.tokens, self.path)
        for layout in ((1, 1), (2, 1), (3, 1), (1, 2)):
            losses, logits = case.evaluate(layout, "float64", rows=4)
            for path, loss, ours in zip(self.case.tokens, losses, logits):
                wanted, true = reference.logits(model, path, 4), reference.token_losses(model, path).mean().item()
                self.assertLessEqual(compare.difference(ours, wanted), 1e-9 * wanted.abs().max().item(), layout)
                self.assertLessEqual(abs(loss - true), 1e-9 * abs(true), layout)

    def test_three_iterations(self):
        run = self.pruned("three", (1, 1), 3)
        at, means = self.plan_of(run)
        self.check_means(at, means, 3)
        removed = {kind: gone >= 1 for kind, gone in at.items()}
        biases = self.checked_biases(run / "exact", removed, means)
        self.check_evaluations(run / "exact", self.compensated(removed, biases))
        for layout in ((2, 1), (3, 1), (1, 2), (2, 2)):
            other_at, other = self.plan_of(self.pruned("three-{}x{}".format(*layout), layout, 3))
            for kind in PROJECTIONS:
                self.assertTrue((other_at[kind] == at[kind]).all(), (kind, layout))
                fell = features(removed[kind], means[kind].shape[1])
                self.assertLessEqual(numpy.abs(other[kind] - means[kind])[fell].max(), 1e-9 * numpy.abs(means[kind][fell]).max())

    def test_one_shot_and_domains_combined_otherwise(self):
        """Means are of all domains by their weights, however their scores are combined."""
        for name, change in (("pooled", {}), ("max", {"combine": "max"})):
            with self.subTest(name):
                run = self.pruned(name, (1, 2), 1, **change)
                at, means = self.plan_of(run)
                self.check_means(at, means, 1)
                self.checked_biases(run / "exact", {kind: gone >= 1 for kind, gone in at.items()}, means)


class RunsOfQueryHeads(Runs, unittest.TestCase):
    family = "qwen2"


class RunsOfKvGroups(Runs, unittest.TestCase):
    family = "llama"
    unit = "kv_group"


if __name__ == "__main__":
    unittest.main()
