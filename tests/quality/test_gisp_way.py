"""GISP's own way (tests/bench/gisp_way.py: transformers and autograd on a masked model of full size) and `taylor` remove the same units,
in every step: what tests/bench/cheapest.py compares in time is the same work.
"""

import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE.parent / "oracle"), str(HERE.parent / "bench")]

import torch  # noqa: E402
import transformers  # noqa: E402

import gisp_way  # noqa: E402
import token_files  # noqa: E402
from workbench import PROGRAM, ROOT, Case, environment, main, plan_of  # noqa: E402

MODEL = ROOT / "tests/models/tri-domain-qwen2"


class GispWay(Case):
    def test_same_units_fall(self):
        for name in ("prose", "code"):
            token_files.from_text(self.folder / f"{name}.h5", MODEL, MODEL / f"text/{name}.calibration.jsonl", 4, 64, 1024)
        config = self.folder / "config.yaml"
        config.write_text(json.dumps({
            "model": {"path": str(MODEL), "dtype": "float64"}, "device": "cpu",
            "calibration": {"domains": [{"name": n, "tokens": f"{n}.h5"} for n in ("prose", "code")], "micro_batch_tokens": 128},
            "prune": {"target": 0.6, "measure": "parameters", "iterations": 3}}))
        done = subprocess.run([PROGRAM, "--quiet", "run", config, "--run-dir", self.folder / "run"], capture_output=True, text=True,
                              env=environment())
        self.assertEqual(done.returncode, 0, done.stderr)
        line = json.loads((self.folder / "run/metrics.jsonl").read_text().splitlines()[-1])
        plan = plan_of(self.folder / "run/plan.h5")[1]

        model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float64)
        rows = torch.cat([gisp_way.read_rows(self.folder / f"{n}.h5") for n in ("prose", "code")])
        removed, masked = gisp_way.prune(model, rows, 0.6, 3, 3, 0, 1)
        self.assertAlmostEqual(removed, line["sparsity_parameters"], places=12)
        for kind in gisp_way.KINDS:
            kept = torch.from_numpy(plan[f"{kind}/removed_at"] < 0)
            self.assertTrue(torch.equal(kept, masked.kept[kind]), f"{kind}: {int((kept != masked.kept[kind]).sum())} units differ")
            self.assertFalse(kept.all(), f"no unit of {kind} falls: nothing is compared")


if __name__ == "__main__":
    main()
