"""A refit that is interrupted, or whose disk is full, goes on with the first layer that is not whole, to the same bytes;
nothing stale is used.

Kills the process at every fault point of the refit, fails every step of its writing, asks it to stop, damages layers, changes
what they depend on; continues each.
"""

import json
import pathlib
import shutil
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
import numpy as np
from interrupted import Interrupted, frozen, kill
from killed import listed_points, side_by_side
from safetensors.numpy import load_file
from workbench import main, run, status_of, weights_of

STEPS = ("open", "write", "flush", "close", "fsync", "readback", "fsync_dir", "pre_rename", "post_rename")


def record_of(run_dir):
    return json.loads((run_dir / "refit.json").read_text())


def layers_of(run_dir):
    """{layer directory: (inode, hash of its manifest)} of the only refit that is there."""
    (refit,) = (run_dir / "refit").iterdir()
    return {p.name: (p.stat().st_ino, (p / "MANIFEST.json").read_text()) for p in refit.glob("layer-*")}


class InterruptedRefit(Interrupted):
    change = {"refit": {"enabled": True}}

    def killed_at(self, fault, ranks=1, tensor=1):
        run_dir = self.folder / "".join(c if c.isalnum() else "-" for c in f"{fault}-{ranks}-{tensor}")
        result = self.start(run_dir, ranks, tensor, f"{fault};action=kill9").wait()
        self.assertEqual(result.code, 137, result)
        verified = run("verify", run_dir)
        self.assertEqual(verified.code, 0, verified)
        return run_dir

    def killed_and_continued(self, fault):
        run_dir = self.killed_at(fault)
        before = layers_of(run_dir) if list((run_dir / "refit").glob("*")) else {}
        self.continues_to_gold(run_dir)
        after = layers_of(run_dir)
        self.assertLessEqual(before.items(), after.items(), "a finished layer was written again")
        self.assertEqual(len(after), 4)
        if not (before and record_of(run_dir)["recalled_layers"] == 0):
            self.assertEqual(record_of(run_dir)["recalled_layers"], len(before))

    def test_killed_at_every_point(self):
        points = [p for p in listed_points() if p.startswith("refit.") and p != "refit.unlink"]
        self.assertGreater(len(points), 10)
        once = ("refit.enter", "refit.exit")
        cases = [(f"point={point};nth={n}",) for point in points for n in ((1,) if point in once else (1, 3))]
        _, failures = side_by_side(self.killed_and_continued, cases)
        self.assertEqual(failures, [], "\n".join(failures))

    def test_killed_on_several_ranks(self):
        """Each layer is written by the rank that solved it; another layout takes up what is there."""
        gold = load_file(self.class_folder / "gold/export/exact/model.safetensors")
        for rank, layout, resumed in ((1, (2, 1), (1, 2)), (1, (1, 2), (3, 1)), (2, (3, 1), (2, 2))):
            with self.subTest(rank=rank, layout=layout):
                tensor, data = layout
                run_dir = self.killed_at(f"point=refit.pre_rename;rank={rank}", tensor * data, tensor)
                before = layers_of(run_dir)
                self.assertEqual(sorted(before), [f"layer-{layer:06}" for layer in range(rank)])
                self.succeeds("resume", run_dir, "--tensor", resumed[0], ranks=resumed[0] * resumed[1])
                self.assertEqual(record_of(run_dir)["recalled_layers"], rank)
                found = load_file(run_dir / "export/exact/model.safetensors")
                for name, values in gold.items():
                    # Sums in another order, then rounded to the stored float32.
                    np.testing.assert_allclose(found[name], values, rtol=0, atol=2e-6 * np.abs(values).max(), err_msg=name)
                self.succeeds("verify", run_dir)

    def failed_at(self, step):
        run_dir = self.folder / step
        result = self.start(run_dir, 2, 2, f"point=refit.{step};rank=1;nth=1;action=errno:ENOSPC").wait()
        self.assertEqual(result.code, 74, result)
        self.assertEqual(result.err.count("espalier: "), 1, result)
        self.assertIn("No space left", result.err)
        self.assertEqual(status_of(run_dir)["exit_code"], 74)
        self.assertEqual(run("verify", run_dir).code, 0)
        self.assertIn("layer-000000", layers_of(run_dir))
        # From the beginning on one rank: the bytes are those of that layout.
        shutil.rmtree(run_dir / "refit")
        self.continues_to_gold(run_dir)

    def test_full_disk(self):
        _, failures = side_by_side(self.failed_at, [(step,) for step in STEPS])
        self.assertEqual(failures, [], "\n".join(failures))

    def test_asked_to_stop(self):
        run_dir = self.folder / "stopped"
        running = self.start(run_dir, fault="point=refit.solve;nth=5;action=stop")
        (rank,) = frozen(running)
        kill(rank, signal.SIGUSR1)
        kill(rank, signal.SIGCONT)
        result = running.wait()
        self.assertEqual(result.code, 75, result)
        self.assertEqual(status_of(run_dir)["state"], "stopped")
        self.assertIn("layer-000001", layers_of(run_dir))
        self.continues_to_gold(run_dir)
        self.assertEqual(record_of(run_dir)["recalled_layers"], 2)

    def copy(self, name):
        return pathlib.Path(shutil.copytree(self.class_folder / "gold", self.folder / name))

    def test_damaged_layers(self):
        for file in ("layer-000002/model.safetensors", "layer-000002/MANIFEST.json"):
            with self.subTest(file):
                run_dir = self.copy(file.replace("/", "-"))
                path = next((run_dir / "refit").iterdir()) / file
                data = bytearray(path.read_bytes())
                data[-20] ^= 1
                path.write_bytes(data)
                verified = run("verify", run_dir)
                self.assertEqual(verified.code, 65, verified)
                self.assertIn("layer-000002", verified.err)
                result = self.continues_to_gold(run_dir)
                self.assertIn("layer 2 of the refit is solved anew", result.err)
                self.assertEqual(record_of(run_dir)["recalled_layers"], 2)

    def test_what_is_stale_goes(self):
        run_dir = self.copy("stale")
        (before,) = (run_dir / "refit").iterdir()
        result = self.succeeds("resume", run_dir, "--set", "refit.ridge=0.25")
        self.assertIn("its matrices are of another refit", result.err)
        (after,) = (run_dir / "refit").iterdir()
        self.assertNotEqual(before.name, after.name)
        self.assertEqual({half["ridge"] for half in record_of(run_dir)["halves"]}, {0.25})
        self.assertNotEqual(weights_of(run_dir / "export/exact"), self.gold["weights"])
        self.succeeds("verify", run_dir)
        # Without a refit nothing of it is left, also in the export.
        self.succeeds("resume", run_dir, "--set", "refit.enabled=false")
        self.assertFalse((run_dir / "refit.json").exists())
        self.assertEqual(list((run_dir / "refit").iterdir()), [])
        self.assertNotIn("refit", json.loads((run_dir / "export/exact/provenance.json").read_text()))
        self.succeeds("resume", run_dir, "--set", "refit.enabled=true", "--set", "refit.ridge=auto")
        self.is_gold(run_dir)


class RefitOfEveryMatrix(Interrupted):
    """Layers with q, k, v, gate and up in them are kept and taken up as those with o and down alone."""

    change = {"refit": {"enabled": True, "matrices": "all"}}
    killed_at = InterruptedRefit.killed_at
    killed_and_continued = InterruptedRefit.killed_and_continued

    def test_killed(self):
        projections = [half.get("projections", {}) for half in record_of(self.class_folder / "gold")["halves"]]
        self.assertEqual([len(p) for p in projections], [0, 2, *(3, 2) * 3])
        # 2 matrices in the first half layers, 5 and 7 in what follows them.
        cases = [(f"point=refit.{point};nth={n}",) for point, n in (("solve", 3), ("solve", 8), ("pre_rename", 2), ("kept", 3))]
        _, failures = side_by_side(self.killed_and_continued, cases)
        self.assertEqual(failures, [], "\n".join(failures))

    def test_on_another_layout(self):
        gold = load_file(self.class_folder / "gold/export/exact/model.safetensors")
        run_dir = self.killed_at("point=refit.pre_rename;rank=1", 2, 2)
        self.succeeds("resume", run_dir, "--tensor", 3, ranks=3)
        self.assertEqual(record_of(run_dir)["recalled_layers"], 1)
        found = load_file(run_dir / "export/exact/model.safetensors")
        for name, values in gold.items():
            np.testing.assert_allclose(found[name], values, rtol=0, atol=2e-6 * np.abs(values).max(), err_msg=name)
        self.succeeds("verify", run_dir)


if __name__ == "__main__":
    main()
