"""A run continues, and is exported, on the files that it began with: recognised by content, wherever they are."""

import json
import os
import pathlib
import shutil
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from workbench import Case, Running, Workbench, digest_of, main, metrics_of, run, status_of, write_tokens

LARGE = 1 << 20  # beyond the first MiB a file is known by its content's hash only


def change_in_secret(file, offset=-8):
    """Other bytes at the same size, and the time as it was: only reading the content can tell."""
    facts = file.stat()
    with open(file, "r+b") as stream:
        stream.seek(offset, os.SEEK_END)
        byte = stream.read(1)
        stream.seek(offset, os.SEEK_END)
        stream.write(bytes([byte[0] ^ 0x10]))
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


class SourceOfARun(Case):
    model = {"vocab": 6000, "hidden": 64}  # 1.5 MB of embeddings: a file larger than its head

    def bench_of_its_own(self):
        bench = Workbench(self.folder / "bench", **self.model)
        self.assertGreater((bench.model / "model.safetensors").stat().st_size, 2 * LARGE)
        return bench

    def begun(self, bench, *more, **change):
        """A run of which two of four iterations are done."""
        config = bench.config(evaluation={"every": 4}, **change)
        run_dir = bench.folder / "run"
        fault = {"ESPALIER_FAULT": "point=calibrate.enter;iter=3;action=kill9"}
        result = run("run", config, "--run-dir", run_dir, *more, extra=fault)
        self.assertEqual(result.code, 137, result)
        return config, run_dir

    def refuses(self, *arguments, names, **options):
        result = run(*arguments, **options)
        self.assertEqual(result.code, 65, result)
        self.assertIn(names, result.err)
        self.assertIn("Restore the file", result.err)
        return result

    def test_a_changed_weight_is_noticed_by_every_command(self):
        for start in ([], ["--fast-verify"]):
            for following in ([], ["--fast-verify"]):
                with self.subTest(start=start, following=following):
                    self.folder = self.folder / f"{len(start)}{len(following)}"
                    bench = self.bench_of_its_own()
                    config, run_dir = self.begun(bench, *start)
                    weights = bench.model / "model.safetensors"
                    change_in_secret(weights)
                    os.utime(weights)
                    before = (run_dir / "config.resolved.yaml").read_bytes()
                    arguments = ["run", config, "--run-dir", run_dir, *following]
                    if start:
                        # Nothing but facts was known: another time cannot be excused.
                        result = run(*arguments)
                        self.assertEqual(result.code, 65, result)
                        self.assertIn("may be another file", result.err)
                    else:
                        self.refuses(*arguments, names="model/model.safetensors")
                    status = status_of(run_dir)
                    self.assertEqual((status["state"], status["exit_code"]), ("failed", 65))
                    self.assertIn("model/model.safetensors", status["reason"])
                    self.assertEqual((run_dir / "config.resolved.yaml").read_bytes(), before)
                    out = bench.folder / "out"
                    for command in (["export", run_dir, "--out", out],
                                    ["eval", config, "--run-dir", run_dir],
                                    ["score", config, "--run-dir", run_dir, "--out", out],
                                    ["verify", run_dir]):
                        result = run(*command)
                        self.assertEqual(result.code, 65, result)
                        self.assertIn("model/model.safetensors", result.err)
                        self.assertFalse(out.exists())

    def test_only_the_content_tells_a_secret_change(self):
        bench = self.bench_of_its_own()
        config, run_dir = self.begun(bench)
        change_in_secret(bench.model / "model.safetensors")
        self.refuses("run", config, "--run-dir", run_dir, names="model/model.safetensors")
        self.refuses("verify", run_dir, "--deep", names="model/model.safetensors")
        # What the quick comparison can see it says, and no more.
        quick = self.succeeds("verify", run_dir)
        self.assertIn("1 file by size, time and first MiB", quick.out)

    def test_a_touched_or_copied_model_is_recognised_by_content(self):
        bench = self.bench_of_its_own()
        config, run_dir = self.begun(bench)
        os.utime(bench.model / "model.safetensors")
        moved = bench.folder / "moved"
        bench.model.rename(moved)
        result = run("resume", run_dir)
        self.assertEqual(result.code, 66, result)
        for command in (["verify", run_dir], ["inspect", run_dir], ["verify", run_dir / "ckpt/iter-000002"]):
            result = run(*command)
            self.assertEqual(result.code, 66, result)
            self.assertIn("is not where it was", result.err)
        result = run("export", run_dir, "--out", bench.folder / "out")
        self.assertEqual(result.code, 66, result)
        self.assertIn("--model DIR", result.err)
        self.succeeds("export", run_dir, "--out", bench.folder / "out", "--model", moved)
        evaluated = bench.folder / "moved.yaml"
        evaluated.write_text(config.read_text().replace('"path": "model"', '"path": "moved"'))
        self.succeeds("eval", evaluated, "--run-dir", run_dir)
        # The configuration names another path: that is accepted when asked for, and only for the same weights.
        change = ["--set", f"model.path={moved}"]
        result = run("resume", run_dir, *change)
        self.assertEqual(result.code, 78, result)
        self.assertIn("--allow-change model.path", result.err)
        result = self.succeeds("resume", run_dir, *change, "--allow-change", "model.path", "--fast-verify")
        self.assertIn("by content", result.err)
        self.assertEqual(len(metrics_of(run_dir)), 5)

    def test_other_weights_are_refused_whatever_is_allowed(self):
        bench = self.bench_of_its_own()
        config, run_dir = self.begun(bench)
        other = Workbench(self.folder / "other", seed=9, **self.model).model
        before = (run_dir / "config.resolved.yaml").read_bytes()
        for more in ([], ["--fast-verify"]):
            self.refuses("resume", run_dir, "--set", f"model.path={other}", "--allow-change", "model.path", *more,
                         names="model/model.safetensors")
        self.assertEqual((run_dir / "config.resolved.yaml").read_bytes(), before, "a refused change is not kept")
        self.refuses("export", run_dir, "--model", other, "--out", self.folder / "out",
                     names="model/model.safetensors")
        self.succeeds("resume", run_dir)

    def test_other_calibration_data_needs_a_word_and_other_evaluation_data_gets_one(self):
        bench = self.bench_of_its_own()
        config, run_dir = self.begun(bench)
        write_tokens(bench.folder / "a.h5", vocab=6000, seed=11)
        write_tokens(bench.folder / "eval.h5", rows=4, vocab=6000, seed=12)
        result = self.refuses("resume", run_dir, names="calibration/a")
        self.assertIn("--allow-change calibration.domains", result.err)
        result = self.succeeds("resume", run_dir, "--allow-change", "calibration.domains")
        self.assertIn("evaluation/held is another file than before", result.err)

    def test_every_attempt_keeps_its_provenance(self):
        bench = self.bench_of_its_own()
        config, run_dir = self.begun(bench)
        self.succeeds("resume", run_dir)
        records = [json.loads(p.read_text()) for p in sorted(run_dir.glob("logs/*/provenance.json"))]
        self.assertEqual(len(records), 2)
        self.assertIn("run", records[0]["command"])
        self.assertIn("resume", records[1]["command"])
        self.assertEqual(json.loads((run_dir / "provenance.json").read_text()), records[1])
        names = {"model/config.json", "model/model.safetensors", "calibration/a", "calibration/b", "evaluation/held"}
        self.assertEqual(set(records[1]["inputs"]), names)

    def test_a_rank_reads_its_share(self):
        """Hashing and loading together: half of the file each at tensor 2, counted over the whole run."""
        bench = self.bench_of_its_own()
        size = (bench.model / "model.safetensors").stat().st_size
        config = bench.config(prune={"iterations": 1}, evaluation={"perplexity": []})
        read = {}
        for ranks in (1, 2):
            run_dir = bench.folder / f"run{ranks}"
            self.succeeds("run", config, "--run-dir", run_dir, "--tensor", ranks, ranks=ranks)
            read[ranks] = metrics_of(run_dir)[-1]["read_bytes"]
        self.assertGreater(read[1], 2 * size, "hashed and loaded")
        self.assertLess(read[1], 2.5 * size)
        self.assertLess(read[2], read[1] - 0.4 * size)


class SeenFromOutside(Case):
    """From its first moment a run can be seen, stopped and timed."""

    def test_a_stop_while_inputs_are_hashed_is_obeyed(self):
        big = self.folder / "big"
        shutil.copytree(self.bench.folder, big)
        # 3 GiB of an evaluation file that takes seconds to hash: sparse, behind its HDF5 content.
        with open(big / "eval.h5", "r+b") as file:
            file.truncate(3 << 30)
        run_dir = self.folder / "run"
        config = big / "config.yaml"
        config.write_text(self.bench.config().read_text())
        running = Running(["run", config, "--run-dir", run_dir])
        deadline = time.monotonic() + 60
        while not ((run_dir / "status.json").exists() and status_of(run_dir)["phase"] == "hash inputs"):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        seen = run("status", run_dir)
        self.assertIn("starting iter 0/0", seen.out)
        self.assertIn("hash inputs", seen.out)
        self.succeeds("stop", run_dir)
        result = running.wait()
        self.assertEqual(result.code, 75, result)
        status = status_of(run_dir)
        self.assertEqual((status["state"], status["reason"]), ("stopped", "STOP file"))
        self.assertFalse((run_dir / "STOP").exists())
        # And the limit of time counts these seconds.
        result = run("run", config, "--run-dir", run_dir, "--max-hours", 1.5 / 3600)
        self.assertEqual(result.code, 75, result)
        self.assertEqual(status_of(run_dir)["reason"], "time limit")

    def test_the_time_limit_counts_every_phase(self):
        """Each phase takes a second in which nobody can look: the run stops while there is time for one more."""
        config = self.bench.config(name="long", prune={"iterations": 40}, evaluation={"perplexity": []})
        for point in ("reduce.enter", "rank.enter", "slice.enter", "save.enter"):
            with self.subTest(point):
                run_dir = self.folder / point
                result = run("run", config, "--run-dir", run_dir, "--max-hours", 6 / 3600,
                             extra={"ESPALIER_FAULT": f"point={point};action=slow:1000"})
                self.assertEqual(result.code, 75, result)
                self.assertLess(result.seconds, 7, "6 s were allowed, and the start of the program")
                status = status_of(run_dir)
                self.assertEqual(status["reason"], "time limit")
                self.assertRegex(status["last_commit"], "iter-00000[1-4]")

    def test_inputs_that_are_wrong_are_reported_where_a_run_was_begun(self):
        run_dir = self.folder / "run"
        folder = self.folder / "inputs"
        shutil.copytree(self.bench.folder, folder)
        weights = folder / "model" / "model.safetensors"
        right = weights.read_bytes()
        config = folder / "config.yaml"
        config.write_text(self.bench.config().read_text())
        weights.write_bytes(b"nothing of the kind")
        result = run("run", config, "--run-dir", run_dir)
        self.assertEqual(result.code, 65, result)
        self.assertFalse(run_dir.exists(), "a run directory was made for nothing")
        weights.write_bytes(right)
        fault = {"ESPALIER_FAULT": "point=calibrate.enter;iter=2;action=kill9"}
        self.assertEqual(run("run", config, "--run-dir", run_dir, extra=fault).code, 137)
        weights.write_bytes(b"nothing of the kind")
        result = run("run", config, "--run-dir", run_dir)
        self.assertEqual(result.code, 65, result)
        status = status_of(run_dir)
        self.assertEqual((status["state"], status["exit_code"]), ("failed", 65))
        self.assertIn("model.safetensors", status["reason"])
        weights.write_bytes(right)
        self.succeeds("run", config, "--run-dir", run_dir)
        self.assertEqual(len(digest_of(run_dir)), 64)

    def test_a_frozen_key_is_compared_before_anything_is_read(self):
        run_dir = self.folder / "run"
        self.succeeds("run", self.bench.config(), "--run-dir", run_dir)
        other = self.bench.config(name="other", calibration={"seed": 5})
        result = run("run", other, "--run-dir", run_dir, extra={"ESPALIER_FAULT": "point=load.enter;action=kill9"})
        self.assertEqual(result.code, 78, result)
        trace = self.folder / "reads"
        self.assertFalse(trace.exists())
        self.assertIn("calibration.seed was 0 and is now 5", result.err)


if __name__ == "__main__":
    main()
