"""espalier against golden.h5, which transformers + autograd wrote (golden.py); needs h5py and numpy only."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

import h5py
import numpy

import golden
import token_files


class Golden(unittest.TestCase):
    def score(self, scratch, criterion, unit, ranks, tensor):
        config = {"model": {"path": str(golden.MODEL), "dtype": "float64"}, "device": "cpu",
                  "calibration": {"domains": [{"name": "a", "tokens": str(scratch / "tokens.h5")}], "micro_batch_tokens": 48},
                  "importance": {"criterion": criterion, "normalization": "none"}, "prune": {"attention_unit": unit}}
        (scratch / "config.yaml").write_text(json.dumps(config))
        out = scratch / f"{criterion}-{unit}-{ranks}.h5"
        launcher = ["mpirun", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)] if ranks > 1 else []
        environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        done = subprocess.run([*launcher, os.environ["ESPALIER"], "--quiet", "score", str(scratch / "config.yaml"), "--tensor",
                               str(tensor), "--out", str(out)], env=environment, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        return out

    def test_scores_and_losses(self):
        with tempfile.TemporaryDirectory() as scratch, h5py.File(golden.GOLDEN) as truth:
            scratch = pathlib.Path(scratch)
            token_files.write(scratch / "tokens.h5", golden.tokens(), golden.VOCABULARY)
            for criterion in golden.CRITERIA:
                for unit in golden.UNITS:
                    ranks, tensor = (2, 2) if unit == "kv_group" else (1, 1)
                    with h5py.File(self.score(scratch, criterion, unit, ranks, tensor)) as file:
                        group = truth[criterion][unit]
                        self.assertAlmostEqual(file.attrs["loss"][0], group.attrs["loss"], delta=1e-9 * group.attrs["loss"])
                        for kind in ("attention", "mlp"):
                            wanted = group[kind][:]
                            found = file[kind]["raw"][0].reshape(wanted.shape)
                            self.assertLessEqual(numpy.abs(found - wanted).max(), 1e-9 * numpy.abs(wanted).max(), (criterion, unit, kind))


if __name__ == "__main__":
    unittest.main()
