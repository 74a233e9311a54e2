"""A run stops before --max-hours or the end of its batch job is reached, with 75, and loses nothing that is committed.

Makes micro-batches and saves slow, sets limits of seconds, by the option and as Slurm tells them, and continues
afterwards.
"""

import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import Interrupted
from workbench import Running, main, run, status_of

# Four iterations of six micro-batches of half a second each.
SLOW = "point=forward.enter;action=slow:500"


class WallTime(Interrupted):
    def begin(self, run_dir, ends_in, *more, fault=SLOW):
        end = {"SLURM_JOB_END_TIME": str(int(time.time() + ends_in))}
        return Running(["run", self.config, "--run-dir", run_dir, *more], extra={"ESPALIER_FAULT": fault, **end})

    def stops_before(self, run_dir, running, seconds):
        result = running.wait(60)
        self.assertEqual(result.code, 75, result)
        self.assertLess(result.seconds, seconds)
        self.assertEqual(status_of(run_dir)["reason"], "time limit")
        return result

    def test_the_end_that_slurm_tells(self):
        run_dir = self.folder / "slurm"
        result = self.stops_before(run_dir, self.begin(run_dir, 8), 8)
        self.assertRegex(result.err, r"limit    stops in time before [67]\.\d s are over")
        self.continues_to_gold(run_dir, 2, 1)

    def test_the_option_counts_more(self):
        run_dir = self.folder / "option"
        self.stops_before(run_dir, self.begin(run_dir, 1000, "--max-hours", 6 / 3600), 6)
        self.continues_to_gold(run_dir, 1, 2)

    def test_no_limit(self):
        for name, ends_in, more in (("zero", 3, ("--max-hours", 0)), ("past", -100, ())):
            with self.subTest(name):
                run_dir = self.folder / name
                result = self.begin(run_dir, ends_in, *more, fault="point=rank.enter;action=slow:1000").wait(60)
                self.assertEqual(result.code, 0, result)
                self.assertNotIn("limit   ", result.err)
                self.is_gold(run_dir, result)

    def test_a_slow_save_is_part_of_it(self):
        """Saves of two seconds: the next one must fit as well."""
        run_dir = self.folder / "save"
        self.stops_before(run_dir, self.begin(run_dir, 10, fault="point=save.manifest;action=slow:2000"), 10)
        self.continues_to_gold(run_dir, 1, 1)

    def test_what_is_no_time(self):
        run_dir = self.folder / "text"
        result = run("run", self.config, "--run-dir", run_dir, extra={"SLURM_JOB_END_TIME": "tomorrow"})
        self.assertEqual(result.code, 0, result)


if __name__ == "__main__":
    main()
