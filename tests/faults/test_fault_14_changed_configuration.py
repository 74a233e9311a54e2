"""Every configuration key is free or frozen when a run continues: a frozen one that changed is 78 with key, old and new
value.

Walks over the schema that the program prints and changes each key of a finished run; a key that the test does not know
fails it.
"""

import json
import pathlib
import re
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from spoilt import Finished
from workbench import main, run

# Another value of each key than that of the run; what the schema calls free is taken, the rest refused.
FREE = {
    "device": "auto",
    "parallel.tensor": 2,
    "parallel.rebalance": 1.5,
    "calibration.micro_batch_tokens": 48,
    "calibration.overlap": "[4]",
    "execution.order": "sample_major",
    "execution.boundaries": "files",
    "execution.scratch": "/tmp",
    "execution.recompute": "all",
    "execution.attention": "math",
    "execution.collectives": "mpi",
    "execution.share_prompts": "false",
    "refit.enabled": "true",
    "refit.sequences": 4,
    "refit.matrices": "all",
    "refit.ridge": 0.5,
    "refit.shrink_to": "obs",
    "checkpoint.keep_last": 1,
    "checkpoint.keep_every": 2,
}
FROZEN = {
    "model.path": "{folder}/elsewhere",
    "model.dtype": "float32",
    "calibration.domains[].name": "other",
    "calibration.domains[].tokens": "{folder}/other.h5",
    "calibration.domains[].sequences": 3,
    "calibration.domains[].weight": 3.0,
    "calibration.domains[].objective": "sft",
    "calibration.combine": "weighted_mean",
    "calibration.resample": "true",
    "calibration.adapt": "loss_gap",
    "calibration.seed": 5,
    "calibration.non_finite": "skip-batch",
    "calibration.max_skipped": 3,
    "importance.normalization": "block_l2",
    "importance.reduction": "scores",
    "importance.accumulate": "float64",
    "importance.damping": 0.02,
    "importance.curvature": "scalar",
    "prune.kinds": "[mlp]",
    "prune.attention_unit": "kv_group",
    "prune.ranking": "local",
    "prune.target": 0.3,
    "prune.measure": "parameters",
    "prune.iterations": 5,
    "prune.shape": "gisp",
    "prune.rate": 2.0,
    "prune.protect.first_layers": 1,
    "prune.protect.last_layers": 0,
    "prune.protect.layers": "[1]",
    "prune.protect.min_heads": 2,
    "prune.protect.min_channels": 2,
    "prune.width_multiple": 2,
    "evaluation.every": 3,
    "evaluation.perplexity[].name": "other",
    "evaluation.perplexity[].tokens": "{folder}/other.h5",
    "export[].format": "uniform",
    "export[].path": "export/other",
}
# Of another criterion there is nothing to reduce: changed in a start of its own.
BY_ITSELF = {"importance.criterion": "taylor_gate"}
# One needs the other.
TOGETHER = {"importance.criterion": "flap", "prune.compensation": "mean"}
# Elements of lists that the run has none of: the list is then what changes, from none to one.
FIRST_ELEMENTS = {
    "evaluation.multiple_choice": "[{{name: other, tokens: {folder}/options.h5}}]",
    "evaluation.exact_match": "[{{name: other, tokens: {folder}/prompts.h5, max_new_tokens: 7}}]",
}
# Free lists, likewise from none to one.
FREE_LISTS = {"refit.domains": "[{{name: other, tokens: {folder}/other.h5}}]"}
# Other lists change by their elements, above.
LISTS = {"calibration.domains", "evaluation.perplexity", "export"}


class ChangedConfiguration(Finished):
    change = {"export": [{"format": "exact", "path": "export/exact"}]}

    def keys(self):
        """{key: whether it is free} as the program prints them."""
        rows = json.loads(self.succeeds("config", "--schema").out)
        self.assertGreater(len(rows), 40)
        return {row["key"]: row["free_at_resume"] for row in rows}

    def setUp(self):
        super().setUp()
        # What does not exist would be an error of its own.
        (self.folder / "elsewhere").symlink_to(self.bench.model)
        (self.folder / "other.h5").symlink_to(self.bench.folder / "eval.h5")

    def settings(self, values):
        words = []
        for key, value in values.items():
            words += ["--set", f"{key.replace('[]', '[0]')}={str(value).format(folder=self.folder)}"]
        return words

    def test_every_key_is_known_as_free_or_frozen(self):
        keys = self.keys()
        known = {*FREE, *FROZEN, *BY_ITSELF, *TOGETHER, *LISTS, *FIRST_ELEMENTS, *FREE_LISTS}
        known |= {key for key in keys if key.partition("[].")[0] in {*FIRST_ELEMENTS, *FREE_LISTS}}
        self.assertEqual(sorted(set(keys) ^ known), [], "keys that this test does not know, or that are gone")
        self.assertEqual(sorted(key for key, free in keys.items() if free and "[]." not in key),
                         sorted({*FREE, *FREE_LISTS}))

    def refused(self, run_dir, values):
        result = run("resume", run_dir, *self.settings(values))
        self.fails(result, 78, [])
        text = re.sub(r"\s+", " ", result.err)
        for key, value in values.items():
            with self.subTest(key):
                name = key.replace("[]", "[0]")
                said = re.search(rf"{re.escape(name)} was (\S.*?) and is now (\S.*?)( \(exit 78\))? why ", text)
                self.assertIsNotNone(said, result)
                self.assertNotEqual(said.group(1), said.group(2))
                self.assertEqual(said.group(2).strip('"'), str(value).format(folder=self.folder))
                self.assertIn(f"--allow-change {name} ", text)
        self.assertEqual(text.count(" and is now "), len(values), result)

    def test_every_frozen_key_is_named_with_both_values(self):
        """In one start: all differences are listed at once, and none is hidden by another."""
        run_dir = self.copy()
        of_every_start = ("owner.json", "status.json")
        files = [path for path in run_dir.rglob("*") if path.is_file() and path.name not in of_every_start]
        before = {path: path.read_bytes() for path in files}
        self.refused(run_dir, FROZEN)
        self.refused(run_dir, BY_ITSELF)
        self.refused(run_dir, TOGETHER)
        self.assertEqual({path: path.read_bytes() for path in before}, before, "a refused command changes nothing")

    def test_a_list_that_was_empty(self):
        run_dir = self.copy()
        for name in ("options.h5", "prompts.h5"):
            (self.folder / name).symlink_to(self.bench.folder / "eval.h5")
        for key, value in FIRST_ELEMENTS.items():
            with self.subTest(key):
                result = run("resume", run_dir, *self.settings({key: value}))
                self.fails(result, 78, [f"{key} was [] and is now ", f"--allow-change {key} "])

    def test_one_that_is_not_allowed_is_refused_alone(self):
        run_dir = self.copy()
        others = [key.replace("[]", "[0]") for key in FROZEN if key != "calibration.seed"]
        allowed = [word for key in others for word in ("--allow-change", key)]
        result = run("resume", run_dir, *self.settings(FROZEN), *allowed)
        self.fails(result, 78, ["calibration.seed was 0 and is now 5"])
        self.assertEqual(result.err.count(" and is now "), 1, result)

    def test_every_free_key_may_change(self):
        """On two ranks, from the middle of the run: the new values are those that the run works with."""
        run_dir = self.copy()
        shutil.rmtree(run_dir / "ckpt/iter-000004")
        result = run("resume", run_dir, *self.settings({**FREE, **FREE_LISTS}), ranks=2)
        self.assertEqual(result.code, 0, result)
        self.assertIn("continuing with iteration 4", result.text)
        resolved = self.succeeds("config", run_dir / "config.resolved.yaml").out
        for key, value in FREE.items():
            self.assertRegex(resolved, rf"(?m)^ *{key.rpartition('.')[2]}: {re.escape(str(value))}$")

    def test_other_configuration(self):
        run_dir = self.copy()
        before = (run_dir / "config.resolved.yaml").read_bytes()
        for ranks in (1, 2):
            result = run("run", self.config, "--run-dir", run_dir, "--set", "prune.target=0.3", ranks=ranks)
            self.fails(result, 78, ["prune.target", "0.4", "0.3", "--allow-change prune.target"])
            result = run("resume", run_dir, "--set", "importance.criterion=magnitude", ranks=ranks)
            self.fails(result, 78, ["importance.criterion", "taylor", "magnitude"])
        self.assertEqual((run_dir / "config.resolved.yaml").read_bytes(), before)
        self.succeeds("resume", run_dir, "--set", "calibration.micro_batch_tokens=48")


if __name__ == "__main__":
    main()
