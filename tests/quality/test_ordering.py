"""On the trained model, at equal parameters: taylor iterative <= one-shot < min(magnitude, median of 5 random).

Random is the fair one: heads and channels fall in proportion.
"""

import math
import os
import statistics
import tempfile
import unittest

import compare_criteria as cc


class Ordering(unittest.TestCase):
    def test_held_out_perplexity(self):
        with tempfile.TemporaryDirectory() as scratch:
            bench = cc.Bench(os.environ["ESPALIER"], cc.COMMITTED, cc.committed_texts(), scratch, 0.5, 10, 48, 48)
            results = {name: bench.prune(name, changes) for name, changes in cc.MAIN.items() if not name.startswith("taylor_gate")}
        print(cc.table(results, bench.domains))
        parameters = [r["parameters"] for r in results.values()]
        # Equal up to one unit: a head is the largest thing that may be left over.
        self.assertLessEqual(max(parameters) - min(parameters), 4 * 16 * 128 + 4 * 16)
        self.fall_in_proportion([r for name, r in results.items() if name.startswith("random")])
        iterative, one_shot, naive = cc.ordering(results)
        self.assertLessEqual(iterative, one_shot)
        self.assertLess(one_shot, naive)

    def fall_in_proportion(self, drawn):
        """Of both kinds the same share falls, up to four deviations of the rarer kind's mean over the seeds."""
        self.assertEqual(len(drawn), len(cc.RANDOM_SEEDS))
        heads, channels = 7 * 8, 7 * 288  # of the layers that may lose any
        protected_heads, protected_channels = 8, 288
        heads_lost = statistics.fmean(1 - (r["heads"] - protected_heads) / heads for r in drawn)
        channels_lost = statistics.fmean(1 - (r["channels"] - protected_channels) / channels for r in drawn)
        deviation = math.sqrt(channels_lost * (1 - channels_lost) / (heads * len(drawn)))
        self.assertAlmostEqual(heads_lost, channels_lost, delta=4 * deviation)


if __name__ == "__main__":
    unittest.main()
