"""The refit against transformers and numpy: streams by hooks over whole models, normal equations by dense algebra.

The pruned model is the dense one with the columns of what fell at zero; it runs anew after every matrix that numpy solved. So
nothing is shared with the program but the formulas of docs/method.md.
"""

import json
import os
import pathlib
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "models"), str(HERE.parent / "support")]

import h5py  # noqa: E402
import numpy  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402

import compare  # noqa: E402
import reference  # noqa: E402
import workbench  # noqa: E402

RIDGES = [10.0**e for e in range(-5, 2)]
HALVES = ("attention", "mlp")
# (tensor, data) ranks
LAYOUTS = ((1, 1), (2, 1), (1, 2), (2, 2), (3, 1))
BLOCKS = {"attention": "self_attn", "mlp": "mlp"}
OUTPUTS = {"attention": "o_proj", "mlp": "down_proj"}
PROJECTIONS = {"attention": ("q_proj", "k_proj", "v_proj"), "mlp": ("gate_proj", "up_proj")}


def widened(model):
    """The checkpoint with float64 weights: the program stores what it solved in the dtype of the source."""
    path = model / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name: t.double() for name, t in tensors.items()}, path, {"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    for key in ("dtype", "torch_dtype"):
        if key in config:
            config[key] = "float64"
    (model / "config.json").write_text(json.dumps(config))


class Streams:
    """Residuals before and after every half layer, and the inputs of its linear maps, of one run of a model."""

    def __init__(self, model):
        self.model, self.values = model, {}
        for index, layer in enumerate(model.model.layers):
            layer.register_forward_pre_hook(self._keep(("before", index, "attention")))
            layer.post_attention_layernorm.register_forward_pre_hook(self._keep(("before", index, "mlp")))
            layer.self_attn.o_proj.register_forward_pre_hook(self._keep(("gate", index, "attention")))
            layer.mlp.down_proj.register_forward_pre_hook(self._keep(("gate", index, "mlp")))
            layer.self_attn.q_proj.register_forward_pre_hook(self._keep(("normed", index, "attention")))
            layer.mlp.gate_proj.register_forward_pre_hook(self._keep(("normed", index, "mlp")))
        model.model.norm.register_forward_pre_hook(self._keep(("before", len(model.model.layers), "attention")))

    def _keep(self, key):
        def hook(_, inputs, keywords=None):
            self.values[key] = inputs[0][0].double().numpy()

        return hook

    def run(self, row):
        self.values = {}
        with torch.no_grad():
            self.model(row[None])
        return self.values


def after(values, layer, kind):
    return values["before", layer, "mlp"] if kind == "attention" else values["before", layer + 1, "attention"]


def kept_columns(run_dir, kind, layer, width):
    """Columns of the dense matrix that are left."""
    with h5py.File(run_dir / "plan.h5") as file:
        removed = file[kind]["removed_at"][layer]
    return numpy.flatnonzero(numpy.repeat(removed < 0, width // len(removed)))


def solved(h, q, ridge):
    diagonal = numpy.diag(h)
    return numpy.linalg.solve(h + numpy.diag(numpy.where(diagonal == 0, 1.0, ridge * diagonal)), q)


def obs_columns(weight, inputs, weights, kept):
    moments = (inputs * weights[:, None]).T @ inputs
    damped = moments + 0.01 * numpy.diag(numpy.diag(moments))
    return weight @ damped[:, kept] @ numpy.linalg.inv(damped[numpy.ix_(kept, kept)])


def fitted(x, y, weights, folds, v0, ridge=None):
    """(V [inputs, outputs], facts) of one half."""
    total = weights.sum()
    mean = (weights[:, None] * y).sum(0) / total
    scale = 1 / ((weights[:, None] * (y - mean) ** 2).sum(0) / total)
    h = [(x[folds == f] * weights[folds == f, None]).T @ x[folds == f] for f in (0, 1)]
    q = [(x[folds == f] * weights[folds == f, None]).T @ (y[folds == f] - x[folds == f] @ v0) for f in (0, 1)]
    before = ((weights[:, None] * (y - x @ v0) ** 2).sum(0) * scale).mean() / total
    changes = []
    for candidate in RIDGES if ridge is None else [ridge]:
        change = 0
        for f in (0, 1):
            d = solved(h[1 - f], q[1 - f], candidate)
            rest = y[folds == f] - x[folds == f] @ v0
            lost = (rest - x[folds == f] @ d) ** 2 - rest**2
            change += ((weights[folds == f, None] * lost).sum(0) * scale).mean() / total
        changes.append(change)
    best = int(numpy.argmin(changes))
    facts = {"error_before": before, "error_after": before + changes[best], "ridge": (RIDGES if ridge is None else [ridge])[best]}
    facts["refitted"] = changes[best] < 0
    if not facts["refitted"]:
        return v0, facts
    return v0 + solved(h[0] + h[1], q[0] + q[1], facts["ridge"]), facts


class Oracle:
    """Refits a run's plan by itself: {(layer, kind, module): (matrix [kept outputs, kept inputs], facts)}."""

    def __init__(self, model_path, domains, run_dir, shrink_to="dense", ridge=None, matrices="outputs"):
        with reference.quiet():
            self.dense, self.pruned = (reference.load(model_path, torch.float64) for _ in range(2))
        self.run_dir, self.shrink_to, self.ridge, self.every = run_dir, shrink_to, ridge, matrices == "all"
        self.rows, token_weights, folds = [], [], []
        total = sum(domain.weight for domain in domains)
        for d, domain in enumerate(domains):
            for i, (row, _) in enumerate(domain.rows):
                self.rows.append(row)
                token_weights.append(numpy.full(len(row), domain.weight / total / len(domain.rows) / len(row)))
                folds.append(numpy.full(len(row), (i + d) % 2))
        self.weights, self.folds = numpy.concatenate(token_weights), numpy.concatenate(folds)

    def module(self, model, layer, kind, name=None):
        return getattr(getattr(model.model.layers[layer], BLOCKS[kind]), name or OUTPUTS[kind])

    def kept_rows(self, layer, kind, name, columns):
        """Of a projection, where these columns of the output matrix are left."""
        if name not in ("k_proj", "v_proj"):
            return columns
        config = self.dense.config
        size = self.module(self.dense, layer, kind, name).weight.shape[0] // config.num_key_value_heads
        heads = numpy.unique(columns // size) // (config.num_attention_heads // config.num_key_value_heads)
        return numpy.flatnonzero(numpy.isin(numpy.arange(size * config.num_key_value_heads) // size, heads))

    def fit_projections(self, layer, kind, columns, dense, pruned, found):
        """Towards what the dense model's give without their biases, which both have."""
        x, dense_x = (numpy.concatenate([values["normed", layer, kind] for values in stream]) for stream in (pruned, dense))
        for name in PROJECTIONS[kind]:
            rows = self.kept_rows(layer, kind, name, columns)
            start = self.module(self.dense, layer, kind, name).weight.detach().numpy()[rows]
            v, facts = fitted(x, dense_x @ start.T, self.weights, self.folds, start.T, self.ridge)
            with torch.no_grad():
                self.module(self.pruned, layer, kind, name).weight[rows] = torch.tensor(v.T)
            found[layer, kind, name] = (v.T, facts)

    def matrices(self):
        streams = Streams(self.dense)
        dense = [streams.run(row) for row in self.rows]
        streams = Streams(self.pruned)
        places = [(layer, kind) for layer in range(len(self.dense.model.layers)) for kind in HALVES]
        kept = {}
        for layer, kind in places:
            weight = self.module(self.pruned, layer, kind).weight
            columns = kept[layer, kind] = kept_columns(self.run_dir, kind, layer, weight.shape[1])
            gone = numpy.setdiff1d(numpy.arange(weight.shape[1]), columns)
            with torch.no_grad():
                weight[:, gone] = 0
        found = {}
        for layer, kind in places:
            columns = kept[layer, kind]
            if len(columns) == 0:
                continue
            pruned = [streams.run(row) for row in self.rows]
            if self.every and (layer, kind) != (0, "attention"):
                self.fit_projections(layer, kind, columns, dense, pruned, found)
                pruned = [streams.run(row) for row in self.rows]
            x = numpy.concatenate([values["gate", layer, kind][:, columns] for values in pruned])
            y = numpy.concatenate([after(d, layer, kind) - p["before", layer, kind] for d, p in zip(dense, pruned)])
            weight = self.module(self.dense, layer, kind).weight.detach().numpy()
            start = weight[:, columns]
            if self.shrink_to == "obs":
                inputs = numpy.concatenate([values["gate", layer, kind] for values in dense])
                start = obs_columns(weight, inputs, self.weights, columns)
            v, facts = fitted(x, y, self.weights, self.folds, start.T, self.ridge)
            with torch.no_grad():
                self.module(self.pruned, layer, kind).weight[:, columns] = torch.tensor(v.T)
            found[layer, kind, OUTPUTS[kind]] = (v.T, facts)
        return found


class Refitted(unittest.TestCase):
    family = "qwen2"

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="espalier-refit-")
        cls.addClassCleanup(folder.cleanup)
        cls.folder = pathlib.Path(folder.name)
        cls.bench = workbench.Workbench(cls.folder / "bench", family=cls.family)
        widened(cls.bench.model)
        workbench.write_tokens(cls.folder / "bench/a.h5", rows=10, seed=1)
        cls.domains = [reference.Domain(cls.folder / "bench/a.h5", 1.0), reference.Domain(cls.folder / "bench/b.h5", 2.0)]

    def refitted(self, name, ranks=1, tensor=1, refit=None, **change):
        """(the run directory, its export's tensors, refit.json)"""
        settings = {
            "prune": {"target": 0.45, "iterations": 2, "protect": {"first_layers": 0, "last_layers": 0}},
            "refit": {"enabled": True, **(refit or {})},
            "export": [{"format": "exact", "path": "export/exact"}],
        }
        config = self.bench.config(name, **workbench.merged(settings, change))
        run_dir = self.folder / name
        compare.run(workbench.PROGRAM, ranks, "run", str(config), "--run-dir", str(run_dir), "--tensor", str(tensor))
        tensors = safetensors.torch.load_file(run_dir / "export/exact/model.safetensors")
        record = json.loads((run_dir / "refit.json").read_text())
        return run_dir, tensors, record

    def compare(self, run_dir, tensors, record, bound=1e-8, **oracle):
        return self.compare_with(Oracle(self.bench.model, self.domains, run_dir, **oracle).matrices(), tensors, record, bound,
                                 kept=oracle.get("shrink_to", "dense"))

    def compare_with(self, wanted, tensors, record, bound=1e-8, kept="dense"):
        facts = {}
        for half in record["halves"]:
            place = half["layer"], half["kind"]
            facts[*place, OUTPUTS[half["kind"]]] = half
            facts.update(((*place, name), projection) for name, projection in half.get("projections", {}).items())
        self.assertEqual({place for place, matrix in facts.items() if matrix["outcome"] != "empty"}, set(wanted))
        for place, (matrix, known) in wanted.items():
            layer, kind, name = place
            found = tensors[f"model.layers.{layer}.{BLOCKS[kind]}.{name}.weight"].numpy()
            self.assertEqual(found.dtype, numpy.float64)
            self.assertEqual(found.shape, matrix.shape)
            self.assertLessEqual(numpy.abs(found - matrix).max(), bound * numpy.abs(matrix).max(), place)
            told = facts[place]
            stays = kept if name in OUTPUTS.values() else "dense"
            self.assertEqual(told["outcome"], "refitted" if known["refitted"] else stays, place)
            self.assertAlmostEqual(told["ridge"], known["ridge"], delta=1e-12 * known["ridge"])
            for key in ("error_before", "error_after"):
                self.assertAlmostEqual(told[key], known[key], delta=1e-8 * known[key], msg=(*place, key))
        return facts

    def perplexity_in_transformers(self, export):
        with reference.quiet():
            import transformers

            model = transformers.AutoModelForCausalLM.from_pretrained(export, dtype=torch.float64, trust_remote_code=True)
        model = reference.widen(model.eval())
        domain = reference.Domain(self.bench.folder / "eval.h5")
        losses, count = 0.0, 0
        for row, _ in domain.rows:
            with torch.no_grad():
                _, each = reference.sequence_loss(model, row, None)
            losses, count = losses + each.sum().item(), count + len(each)
        return numpy.exp(losses / count)

    def test_matrices_and_perplexity(self):
        run_dir, tensors, record = self.refitted("one")
        facts = self.compare(run_dir, tensors, record)
        self.assertGreater(sum(half["outcome"] == "refitted" for half in facts.values()), 0)
        found = self.perplexity_in_transformers(run_dir / "export/exact")
        self.assertAlmostEqual(record["perplexity"]["held"] / found, 1, delta=1e-9)
        last = workbench.metrics_of(run_dir)[-1]
        self.assertEqual(record["perplexity_before"], last["perplexity"])

    def test_every_layout_gives_the_same_matrices(self):
        _, single, _ = self.refitted("single")
        for tensor, data in ((2, 1), (1, 2), (3, 1), (2, 2)):
            with self.subTest(tensor=tensor, data=data):
                _, tensors, _ = self.refitted(f"layout-{tensor}x{data}", ranks=tensor * data, tensor=tensor)
                for name, t in single.items():
                    self.assertLessEqual((tensors[name] - t).abs().max().item(), 1e-9 * t.abs().max().item(), name)

    def on_layouts(self, name, layouts, few=None, **settings):
        """Runs with these settings of the refit, on the rows of `few` if any, against one refit of numpy, which it returns."""
        wanted = digest = None
        domains = [reference.Domain(few, 1.0)] if few else self.domains
        data = {"domains": [{"name": "few", "tokens": str(few)}]} if few else {}
        for tensor, others in layouts:
            with self.subTest(tensor=tensor, data=others, **settings):
                run_dir, tensors, record = self.refitted(
                    f"{name}-{tensor}x{others}", ranks=tensor * others, tensor=tensor, refit={**settings, **data})
                if wanted is None:
                    wanted = Oracle(self.bench.model, domains, run_dir, **settings).matrices()
                    digest = workbench.digest_of(run_dir)
                self.assertEqual(workbench.digest_of(run_dir), digest, "another plan")
                self.compare_with(wanted, tensors, record, kept=settings.get("shrink_to", "dense"))
        return wanted

    def test_fixed_ridge(self):
        self.on_layouts("fixed", LAYOUTS, ridge=0.05)

    def test_towards_the_updated_weights(self):
        self.on_layouts("obs", LAYOUTS, shrink_to="obs")

    def test_fixed_ridge_towards_the_updated_weights(self):
        self.on_layouts("both", ((1, 1), (2, 2)), ridge=0.05, shrink_to="obs")

    def test_every_matrix(self):
        wanted = self.on_layouts("all", LAYOUTS, matrices="all")
        refitted = {name for (_, _, name), (_, known) in wanted.items() if known["refitted"]}
        self.assertLessEqual({"v_proj", "gate_proj", "up_proj", "down_proj"}, refitted)

    def test_every_matrix_towards_the_updated_weights(self):
        self.on_layouts("all-obs", ((2, 2),), matrices="all", shrink_to="obs", ridge=0.05)

    def test_what_the_guard_keeps_under_a_ridge_that_fits_nothing(self):
        """So small a ridge on so few tokens: others are worse off than before."""
        few = workbench.write_tokens(self.folder / "bench/few.h5", rows=2, length=6, seed=7)
        for shrink_to in ("dense", "obs"):
            wanted = self.on_layouts(f"guard-{shrink_to}", ((1, 1), (2, 1)), few, ridge=1e-4, shrink_to=shrink_to)
            self.assertGreater(sum(not known["refitted"] for _, known in wanted.values()), 0)


class Llama(Refitted):
    family = "llama"


class Qwen3(Refitted):
    family = "qwen3"


if __name__ == "__main__":
    workbench.main()
