"""A refit that holds one layer of the pruned model at a time: the same bytes as one that holds all of it, in less memory; what
follows reads the layers with what was refitted laid over them."""

import hashlib
import json
import pathlib
import re
import shutil
import sys

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "support"), str(TESTS / "oracle")]
import numpy as np
import token_files
import workbench
from interrupted import frozen
from workbench import Running, main, run, weights_of

WHOLE = ("--set", "execution.order=sample_major")
MEMORY = ("--set", "execution.order=layer_major", "--set", "execution.boundaries=memory")
FILES = ("--set", "execution.order=layer_major", "--set", "execution.boundaries=files")
OPEN = {"protect": {"first_layers": 0, "last_layers": 0}}
PRUNED = {
    "model": {"path": "model", "dtype": "float32"},
    "prune": {"target": 0.45, "iterations": 1, "ranking": "local", "attention_unit": "equal_per_group", **OPEN},
    "refit": {"enabled": False},
    "export": [{"format": "exact", "path": "export/exact"}],
}


class Layers(workbench.Case):
    """All refits begin with the same plan: a run without one is copied and resumed with it."""

    def pruned(self, name, **change):
        run_dir = self.folder / name
        self.succeeds("run", self.bench.config(name, **workbench.merged(PRUNED, change)), "--run-dir", run_dir)
        return run_dir

    def refitted(self, pruned, name, how, tensor=1, data=1, fault=None, code=0):
        """A copy of the run, refitted."""
        run_dir = pathlib.Path(shutil.copytree(pruned, self.folder / f"{pruned.name}-{name}-{tensor}x{data}"))
        self.resume(run_dir, how, tensor, data, fault, code)
        return run_dir

    def resume(self, run_dir, how, tensor=1, data=1, fault=None, code=0):
        arguments = ["resume", run_dir, "--tensor", tensor, "--set", "refit.enabled=true", *how]
        result = run(*arguments, ranks=tensor * data, extra={"ESPALIER_FAULT": fault} if fault else None)
        self.assertEqual(result.code, code, result)
        return result

    def made(self, run_dir):
        """Every byte of the refit and of the export with it, and what the refitted model was measured at."""
        record = json.loads((run_dir / "refit.json").read_text())
        self.assertGreater(record["matrices"]["refitted"], 0)
        measured = {name: record.get(name) for name in ("key", "perplexity", "exact_match", "multiple_choice", "halves")}
        files = sorted((run_dir / "refit").rglob("*.safetensors"))
        layers = {file.parent.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        return layers, weights_of(run_dir / "export/exact"), measured

    def test_the_same_bytes_on_every_layout(self):
        pruned = self.pruned("pruned")
        for (tensor, data), how, matrices in (((1, 1), FILES, "all"), ((2, 1), MEMORY, "all"), ((1, 2), FILES, "outputs"),
                                              ((2, 2), MEMORY, "all")):
            with self.subTest(f"{tensor}x{data}"):
                solve = ("--set", f"refit.matrices={matrices}")
                whole = self.refitted(pruned, "whole", (*WHOLE, *solve), tensor, data)
                layers = self.refitted(pruned, "layers", (*how, *solve), tensor, data)
                self.assertEqual(self.made(layers), self.made(whole))
                self.assertEqual(sorted(p.name for p in layers.iterdir()), sorted(p.name for p in whole.iterdir()))

    def test_killed_between_two_layers(self):
        """What an earlier process had solved lies over the source too; biases that stand for what fell as well."""
        means = {"importance": {"criterion": "flap", "normalization": "none"}, "prune": {"compensation": "mean"}}
        for name, change in (("plain", {}), ("means", means)):
            with self.subTest(name):
                pruned = self.pruned(name, **change)
                whole = self.refitted(pruned, "whole", WHOLE)
                for point, recalled, how in (("refit.kept;nth=2", 2, MEMORY), ("refit.exit", 4, WHOLE)):
                    layers = self.refitted(pruned, point, how, fault=f"point={point};action=kill9", code=137)
                    self.resume(layers, FILES)
                    self.assertEqual(json.loads((layers / "refit.json").read_text())["recalled_layers"], recalled)
                    self.assertEqual(self.made(layers), self.made(whole))

    def test_killed_on_several_ranks(self):
        """And gone on with by as many, or by others, which hold other shares of what was solved."""
        pruned = self.pruned("pruned", model={"path": "model", "dtype": "float64"})
        whole = {layout: self.refitted(pruned, "whole", WHOLE, *layout) for layout in ((1, 1), (2, 1))}
        for number, (killed, resumed) in enumerate((((2, 1), (2, 1)), ((2, 2), (1, 1)), ((1, 2), (2, 1)))):
            with self.subTest(f"{killed} then {resumed}"):
                fault = f"point=refit.kept;rank=0;nth={1 + number % 2};action=kill9"
                layers = self.refitted(pruned, f"killed-{number}", MEMORY, *killed, fault=fault, code=137)
                self.resume(layers, FILES, *resumed)
                self.assertEqual(json.loads((layers / "refit.json").read_text())["recalled_layers"], 1 + number % 2)
                if killed == resumed:
                    self.assertEqual(self.made(layers), self.made(whole[resumed]))
                for found, expected in zip(self.made(layers)[2]["halves"], self.made(whole[resumed])[2]["halves"], strict=True):
                    self.assertEqual((found["outcome"], found["ridge"]), (expected["outcome"], expected["ridge"]))
                    self.assertAlmostEqual(found["error_after"], expected["error_after"], delta=1e-8)

    def test_smaller_sizes(self):
        """They keep nothing in a run directory."""
        pruned = self.pruned("pruned", model={"path": "model", "dtype": "float64"})
        whole, layers = self.refitted(pruned, "whole", WHOLE), self.refitted(pruned, "layers", MEMORY)
        self.assertEqual(self.made(layers), self.made(whole))
        scratch = self.folder / "scratch"
        scratch.mkdir()
        points = []
        for name, run_dir in (("whole", whole), ("layers", layers)):
            out = self.folder / f"{name}.json"
            self.succeeds("eval", run_dir, "--sparsity", "0.2,0.35", "--refit", "--out", out, extra={"TMPDIR": str(scratch)})
            points.append(json.loads(out.read_text())["points"])
        self.assertEqual(points[0], points[1])
        self.assertEqual(list(scratch.iterdir()), [])
        self.succeeds("export", layers, "--sparsity", 0.2, "--refit", "--out", self.folder / "small")
        out = self.folder / "small.json"
        self.succeeds("eval", self.bench.config("pruned", model={"path": "model", "dtype": "float64"}),
                      "--model", self.folder / "small", "--out", out)
        found, expected = (one["perplexity"]["held"]["perplexity"] for one in (json.loads(out.read_text()), points[0][0]))
        self.assertAlmostEqual(found / expected, 1, delta=1e-9)

    def test_answers_are_those_of_the_export(self):
        """Answers are generated from the whole model, with what was refitted in it."""
        pruned = self.pruned("pruned", model={"path": "model", "dtype": "float64"})
        config = self.bench.config("pruned", model={"path": "model", "dtype": "float64"})
        prompts = np.random.default_rng(3).integers(0, 64, (5, 9)).tolist()
        pieces = [f"{token:02}.".encode() for token in range(64)]
        file = self.folder / "prompts.h5"
        asked = ("--set", f"evaluation.exact_match=[{{name: made, tokens: {file}, max_new_tokens: 6}}]")
        token_files.write_prompts(file, prompts, ["none"] * 5, pieces, 64)
        made = []
        for name, how in (("export", ()), ("plain", ("--no-refit",))):
            self.succeeds("export", pruned, "--sparsity", 0.35, *(how or ("--refit",)), "--out", self.folder / name)
            items = self.folder / f"{name}.jsonl"
            self.succeeds("eval", config, "--model", self.folder / name, *asked, "--items", items)
            lines = [json.loads(line) for line in items.read_text().splitlines()]
            made.append([line["tokens"] for line in lines if line["task"] == "made"])
        self.assertNotEqual(made[0], made[1], "the refit changes no answer, so nothing would be seen")
        answers = ["".join(f"{token:02}." for token in tokens) for tokens in made[0]]
        token_files.write_prompts(file, prompts, answers, pieces, 64)
        out = self.folder / "curve.json"
        self.succeeds("eval", pruned, "--sparsity", 0.35, "--refit", *FILES, *asked, "--out", out)
        (point,) = json.loads(out.read_text())["points"]
        self.assertEqual(point["exact_match"]["made"]["flexible"], 1.0)

    def test_no_room_for_what_lies_over_the_source(self):
        pruned = self.pruned("pruned")
        layers = self.refitted(pruned, "full", MEMORY, fault="point=scratch.write;nth=3;action=errno:ENOSPC", code=74)
        self.assertEqual(sorted(p.name for p in next((layers / "refit").iterdir()).iterdir()), ["layer-000000", "layer-000001"])
        place = self.folder / "elsewhere"
        lacking = self.resume(layers, (*MEMORY, "--set", f"execution.scratch={place}"), code=66)
        self.assertIn(str(place), lacking.err)
        place.mkdir()
        self.resume(layers, (*MEMORY, "--set", f"execution.scratch={place}"))
        self.assertEqual(self.made(layers), self.made(self.refitted(pruned, "whole", WHOLE)))
        self.assertEqual(list(place.iterdir()), [])


class Memory(workbench.Case):
    model = {"layers": 12, "hidden": 512, "heads": 8, "kv_heads": 4, "head_dim": 64, "channels": 512}

    def most_resident(self, pruned, name, how):
        """Bytes of the process that has refitted the last layer."""
        run_dir = shutil.copytree(pruned, self.folder / name)
        running = Running(["resume", run_dir, "--set", "refit.enabled=true", "--set", "refit.ridge=0.1", *how],
                          extra={"ESPALIER_FAULT": "point=refit.exit;action=stop"})
        (rank,) = frozen(running)
        kib = int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path(f"/proc/{rank}/status").read_text()).group(1))
        running.kill()
        running.result(None)
        return 1024 * kib

    def test_one_layer_at_a_time(self):
        """The model is most of what a process holds; of 12 layers a refit holds one of each model."""
        change = {"model": {"path": "model", "dtype": "float64"}, "evaluation": {"perplexity": []}, "export": [],
                  "prune": {"target": 0.1}, "importance": {"criterion": "magnitude"}}
        run_dir = self.folder / "run"
        self.succeeds("run", self.bench.config(**workbench.merged(PRUNED, change)), "--run-dir", run_dir, *FILES)
        layer = 8 * 0.9 * (3 * 512 * 512 + 3 * 512 * 512)
        plan = json.loads(self.succeeds("plan", self.bench.folder / "config.yaml", "--set", "refit.enabled=true", *FILES, "--json").out)
        self.assertAlmostEqual(plan["refit"]["pruned_layer_bytes"] / layer, 1, delta=0.02)
        saved = self.most_resident(run_dir, "whole", WHOLE) - self.most_resident(run_dir, "layers", FILES)
        self.assertGreater(saved, 0.8 * 11 * layer)


if __name__ == "__main__":
    main()
