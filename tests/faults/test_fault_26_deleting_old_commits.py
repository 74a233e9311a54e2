"""Old commits are removed only when newer ones stand: at no moment are there fewer valid ones than checkpoint.keep_last
asks for.

Kills the process at every rename and every removal of a save that removes an old commit, keeping two and keeping one;
then counts what verifies and continues.
"""

import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import Interrupted
from killed import side_by_side
from workbench import main, run


class DeletingOldCommits(Interrupted):
    """Keeps two: the third iteration is the first that removes one."""

    keep = 2
    change = {"checkpoint": {"keep_last": keep}}
    POINTS = ("pre_rename", "post_rename", "unlink")

    def sweep(self, point):
        """How often the point is passed in the iteration that removes the first commit."""
        nth = 0
        while True:
            nth += 1
            self.assertLess(nth, 20, point)
            run_dir = self.folder / f"{point}-{nth}"
            fault = f"point=save.{point};iter={self.keep + 1};nth={nth};action=kill9"
            result = self.start(run_dir, fault=fault).wait()
            if result.code == 0:
                return nth - 1
            self.assertEqual(result.code, 137, result)
            verified = run("verify", run_dir)
            self.assertEqual(verified.code, 0, verified)
            valid = re.findall(r"(?m)^ok +(iter-\d+):", verified.out)
            self.assertGreaterEqual(len(valid), self.keep, f"{point} {nth}: {valid}")
            result = self.continues_to_gold(run_dir)
            self.assertRegex(result.text, rf"continuing with iteration [{self.keep + 1}{self.keep + 2}]")
            kept = sorted(path.name for path in (run_dir / "ckpt").glob("iter-*"))
            self.assertEqual(kept, [f"iter-00000{i}" for i in range(5 - self.keep, 5)])

    def test_killed_at_every_step(self):
        done, failures = side_by_side(self.sweep, [(point,) for point in self.POINTS])
        self.assertEqual(failures, [], "\n".join(failures))
        reached = {point: count for (point,), count in done}
        # state.h5, the manifest and the directory of the one that goes; it was renamed before.
        self.assertGreaterEqual(reached["unlink"], 3, reached)
        self.assertGreaterEqual(reached.get("pre_rename", 3), 3, reached)


class KeepingOne(DeletingOldCommits):
    keep = 1
    change = {"checkpoint": {"keep_last": keep}}
    POINTS = ("unlink",)


if __name__ == "__main__":
    main()
