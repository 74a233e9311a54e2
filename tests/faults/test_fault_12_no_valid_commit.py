"""A run never goes back to its beginning in silence: it says which commit it takes and why, and ends with 66 where none
is valid.

Starts with every mode of --resume in directories whose commits are all damaged, bear the number of another iteration,
are empty, or are none at all.
"""

import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from spoilt import BEGUN, Finished, Spoilt
from workbench import digest_of, main, metrics_of, run


def require_without_commit(row):
    row.arguments = ["--resume", "require"]


TABLE = [
    (require_without_commit, 66, ["commit"], BEGUN),
]


class WithoutACommit(Spoilt):
    def test_table(self):
        self.every_row(TABLE)


class NoValidCommit(Finished):
    def test_never_resume(self):
        result = run("run", self.config, "--run-dir", self.copy(), "--resume", "never")
        self.fails(result, 73, ["2 commits", "--resume=auto"])

    def test_resume_of_what_is_no_run(self):
        for ranks in (1, 2):
            self.fails(run("resume", self.folder / "none", ranks=ranks), 66, ["config.resolved.yaml"])
        self.assertFalse((self.folder / "none").exists())

    def none_is_valid(self, run_dir, found, ranks=1):
        """66 with every mode that continues, and nothing in the directory is changed by it."""
        before = {path: path.read_bytes() for path in (run_dir / "ckpt").rglob("*") if path.is_file()}
        for command in (["resume", run_dir], ["run", self.config, "--run-dir", run_dir],
                        ["run", self.config, "--run-dir", run_dir, "--resume", "require"]):
            result = run(*command, ranks=ranks)
            self.fails(result, 66, ["no commit of this run is valid", f"{found} commit"])
        self.fails(run("run", self.config, "--run-dir", run_dir, "--resume", "never"), 73, [f"{found} commit"])
        after = {path: path.read_bytes() for path in (run_dir / "ckpt").rglob("*") if path.is_file()}
        self.assertEqual(after, before)
        self.assertEqual([row["iteration"] for row in metrics_of(run_dir)], list(range(5)))

    def test_all_damaged(self):
        for ranks in (1, 2):
            run_dir = self.copy(f"damaged{ranks}")
            for path in (run_dir / "ckpt").glob("iter-*/state.h5"):
                path.write_bytes(path.read_bytes()[:-1])
            self.none_is_valid(run_dir, 2, ranks)
            self.assertEqual(run("verify", run_dir).code, 65)

    def test_iterations_of_other_numbers(self):
        run_dir = self.copy("numbers")
        ckpt = run_dir / "ckpt"
        (ckpt / "iter-000004").rename(ckpt / "iter-000009")
        (ckpt / "iter-000003").rename(ckpt / "iter-000004")
        self.none_is_valid(run_dir, 2)

    def test_empty_directories(self):
        run_dir = self.copy("empty")
        for name in ("iter-000003", "iter-000004"):
            shutil.rmtree(run_dir / "ckpt" / name)
            (run_dir / "ckpt" / name).mkdir()
        self.none_is_valid(run_dir, 2)

    def test_commits_that_are_gone(self):
        """Commits that are gone altogether are no damage: `auto` begins, says so, and comes to the same end."""
        run_dir = self.copy("gone")
        shutil.rmtree(run_dir / "ckpt")
        (run_dir / "ckpt").mkdir()
        for command in (["resume", run_dir], ["run", self.config, "--run-dir", run_dir, "--resume", "require"]):
            self.fails(run(*command), 66, ["commit"])
        result = self.succeeds("run", self.config, "--run-dir", run_dir)
        self.assertNotIn("continuing", result.text)
        self.assertEqual(digest_of(run_dir), digest_of(self.done))

    def test_it_says_what_it_takes(self):
        run_dir = self.copy("takes")
        (run_dir / "ckpt/iter-000004/MANIFEST.json").unlink()
        result = self.succeeds("run", self.config, "--run-dir", run_dir)
        self.assertIn("iter-000004 is not used", result.text)
        self.assertIn("continuing with iteration 4", result.text)
        self.assertIn("iter-000003", result.text)


if __name__ == "__main__":
    main()
