"""On the trained model, at equal parameters: taylor iterative <= one-shot < min(magnitude, median of 5 random)."""

import os
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
        iterative, one_shot, naive = cc.ordering(results)
        self.assertLessEqual(iterative, one_shot)
        self.assertLess(one_shot, naive)


if __name__ == "__main__":
    unittest.main()
