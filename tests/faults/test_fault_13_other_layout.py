"""A run continues on any number of ranks in any layout that its configuration allows, without a conversion, to the same
plan.

Saves on 1, 2 and 4 ranks and continues on 1 to 4, split by tensor, by data or both, with heads and channels that the
ranks do not divide; plan, losses and the bytes of the export must be those of an uninterrupted run.
"""

import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import Interrupted
from killed import side_by_side
from workbench import FULL, main, metrics_of

SAVED = [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4)]  # tensor, data
CONTINUED = [(1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (4, 1), (2, 2), (1, 4)]


class OtherLayout(Interrupted):
    # Two KV groups over four tensor ranks: two ranks hold no head from the start, and groups are uneven later.
    model = {"kv_heads": 2, "heads": 4, "channels": 22, "vocab": 61}

    def begun(self, layout):
        """A run of which two of four iterations were done on this layout."""
        tensor, data = layout
        run_dir = self.folder / f"begun-{tensor}x{data}"
        rank = tensor * data - 1
        result = self.start(run_dir, tensor * data, tensor, f"point=rank.enter;rank={rank};iter=3;action=kill9").wait()
        self.assertEqual(result.code, 137, result)
        return run_dir

    def continued(self, name, run_dir, layout):
        copy = self.folder / name
        shutil.copytree(run_dir, copy)
        result = self.continues_to_gold(copy, *layout)
        self.assertIn("continuing with iteration 3", result.text)
        self.assertEqual([row["iteration"] for row in metrics_of(copy)], list(range(5)))

    def test_saved_on_one_continued_on_another(self):
        """By default every layout is continued on once; the long form has every pair."""
        pairs = [(a, b) for a in SAVED for b in CONTINUED if a != b]
        if not FULL:
            three = [(1, 1), (2, 1), (2, 2)]  # one, two and four ranks
            pairs = [(three[(number + 1) % 3], layout) for number, layout in enumerate(CONTINUED)]
        saved = {layout: self.begun(layout) for layout in {a for a, _ in pairs}}
        cases = [(f"{a[0]}x{a[1]}-{b[0]}x{b[1]}", saved[a], b) for a, b in pairs if a != b]
        self.assertEqual({b for _, _, b in cases}, set(CONTINUED))
        self.assertIn(3, {b[0] * b[1] for _, b in pairs})
        _, failures = side_by_side(self.continued, cases)
        self.assertEqual(failures, [], "\n".join(failures))

    def test_another_layout_in_every_iteration(self):
        run_dir = self.folder / "often"
        for iteration, (tensor, data) in ((2, (2, 1)), (3, (1, 3)), (4, (4, 1))):
            fault = f"point=rank.enter;rank=0;iter={iteration};action=kill9"
            self.assertEqual(self.start(run_dir, tensor * data, tensor, fault).wait().code, 137)
        self.continues_to_gold(run_dir, 1, 2)


if __name__ == "__main__":
    main()
