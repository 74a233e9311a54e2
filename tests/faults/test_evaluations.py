"""Evaluations of a run that is interrupted among them: what is finished is not done again, nor are the rows of one that was
stopped, on any layout; what was kept of anything else is not used.
"""

import json
import pathlib
import shutil
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import EXPORT, Interrupted, frozen, is_pending, kill, wait_for
from workbench import main, metrics_of, run, write_options

OPTIONS = (3, 2, 4, 2)  # of each item


class Evaluations(Interrupted):
    change = {**EXPORT, "evaluation": {"every": 2, "perplexity": [{"name": "held", "tokens": "eval.h5"}],
                                       "multiple_choice": [{"name": "options", "tokens": "options.h5"}]}}

    @classmethod
    def prepare(cls):
        write_options(cls.bench.folder / "options.h5", OPTIONS)

    def is_gold(self, run_dir, result=None, set_aside=()):
        super().is_gold(run_dir, result, set_aside)
        self.assertFalse((run_dir / "evaluation.json").exists(), "what was kept is of no use any more")
        for row, gold in zip(metrics_of(run_dir), metrics_of(self.class_folder / "gold"), strict=True):
            self.assertEqual(row["perplexity"].keys(), gold["perplexity"].keys())
            for name, value in gold["perplexity"].items():
                self.assertAlmostEqual(row["perplexity"][name], value, delta=1e-9 * value)
            self.assertEqual(row.get("multiple_choice"), gold.get("multiple_choice"))

    def killed_after(self, evaluations, ranks=1, tensor=1):
        """A run killed in its second iteration when so many evaluations are done."""
        run_dir = self.folder / "run"
        fault = f"point=evaluate.kept;iter=2;nth={evaluations};rank=0;action=kill9"
        self.assertEqual(self.start(run_dir, ranks, tensor, fault).wait().code, 137)
        kept = json.loads((run_dir / "evaluation.json").read_text())
        self.assertEqual(len(kept["evaluations"]), evaluations)
        self.assertEqual(kept["state"]["iteration"], 2)
        return run_dir

    def continued(self, run_dir, tensor=1, data=1):
        result = run("run", self.config, "--run-dir", run_dir, "--tensor", tensor, ranks=tensor * data)
        self.assertEqual(result.code, 0, result)
        return result

    def test_what_is_finished_is_not_done_again(self):
        run_dir = self.killed_after(2, 2, 2)
        path = run_dir / "evaluation.json"
        kept = json.loads(path.read_text())
        shutil.copytree(run_dir, self.folder / "marked")
        result = self.continued(run_dir)
        self.is_gold(run_dir, result)
        for name in ("held", "options"):
            self.assertIn(f"evaluation {name}: was finished before", result.text)
        # Other numbers in their place come out, so nothing was measured.
        kept["evaluations"]["held"]["outcome"]["facts"]["perplexity"] = 123.5
        kept["evaluations"]["options"]["outcome"]["facts"]["acc"] = 0.125
        (self.folder / "marked/evaluation.json").write_text(json.dumps(kept))
        self.continued(self.folder / "marked", 1, 2)
        row = metrics_of(self.folder / "marked")[2]
        self.assertEqual((row["perplexity"]["held"], row["multiple_choice"]["options"]["acc"]), (123.5, 0.125))

    def test_one_that_is_finished_and_one_that_is_not(self):
        run_dir = self.killed_after(1)
        result = self.continued(run_dir, 2, 1)
        self.is_gold(run_dir, result)
        self.assertIn("evaluation held: was finished before", result.text)
        self.assertNotIn("evaluation options", result.text)

    def test_a_stopped_one_goes_on_with_its_next_rows(self):
        run_dir = self.folder / "run"
        # Rows of the second evaluation: the first has 4 of 12 tokens, two at once.
        running = self.start(run_dir, 2, 1, "point=evaluate.rows;iter=2;nth=3;rank=0;action=stop")
        (standing,) = frozen(running)
        kill(running.process.pid, signal.SIGUSR1)
        wait_for(lambda: is_pending(standing, signal.SIGUSR1), running)
        kill(standing, signal.SIGCONT)
        self.assertEqual(running.wait().code, 75)
        kept = json.loads((run_dir / "evaluation.json").read_text())["evaluations"]["options"]
        self.assertIsNone(kept["outcome"])
        self.assertTrue(0 < kept["done"] < sum(OPTIONS), kept)
        result = self.continued(run_dir, 2, 2)
        self.is_gold(run_dir, result)
        self.assertRegex(result.text, rf"evaluation options: {kept['done']} rows? done before")

    def test_what_was_kept_of_another_file_or_is_damaged_is_not_used(self):
        for name in ("file", "damaged", "state"):
            with self.subTest(name):
                shutil.rmtree(self.folder)
                self.folder.mkdir()
                run_dir = self.killed_after(2)
                path = run_dir / "evaluation.json"
                kept = json.loads(path.read_text())
                if name == "file":
                    for one in kept["evaluations"].values():
                        (print_of,) = one["inputs"].values()
                        print_of["head_sha256"] = "0" * 64
                        print_of.pop("content_sha256", None)
                elif name == "state":
                    kept["state"]["plan_digest"] = "0" * 64
                for one in kept["evaluations"].values():  # must not be seen again
                    one["outcome"]["facts"] = {"perplexity": 1.0}
                path.write_text(json.dumps(kept)[: -20 if name == "damaged" else None])
                result = self.continued(run_dir)
                self.is_gold(run_dir, result)
                self.assertNotIn("was finished before", result.text)
                if name == "damaged":
                    self.assertIn("evaluation.json is not used", result.text)


if __name__ == "__main__":
    main()
