"""A rank that is slower than the others ends nothing; a warning names it, its host, the phase and by how much.

Slows one rank of two, three and four in loading and in its half layers; where nobody is slow, nobody is named.
"""

import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import Interrupted
from workbench import main

WARNING = r"warning: iteration (\d+): rank (\d) on \S+ was busy ([\d.]+) times as long in phase (\w+) as the median"


class SlowRank(Interrupted):
    def warnings(self, name, fault, ranks, tensor):
        run_dir = self.folder / name
        result = self.start(run_dir, ranks, tensor, fault).wait(120)
        self.assertEqual(result.code, 0, result)
        self.is_gold(run_dir, result)
        return re.findall(WARNING, result.err)

    def test_it_is_named_once(self):
        for ranks, tensor in ((2, 1), (2, 2), (3, 1)):
            with self.subTest(ranks=ranks, tensor=tensor):
                found = self.warnings(f"{ranks}-{tensor}", "point=layer.forward;rank=1;action=slow:40", ranks, tensor)
                self.assertEqual([(i, r, p) for i, r, _, p in found if p == "calibrate"], [("1", "1", "calibrate")])
                self.assertGreater(min(float(ratio) for _, _, ratio, _ in found), 2)

    def test_loading(self):
        found = self.warnings("load", "point=load.enter;rank=0;action=slow:1500", 2, 1)
        self.assertEqual([(i, r, p) for i, r, _, p in found], [("1", "0", "load")])

    def test_nobody_is_slow(self):
        self.assertEqual(self.warnings("even", "", 3, 1), [])


if __name__ == "__main__":
    main()
