"""Whatever happens to a byte of a commit or an export is noticed and named; the run goes on from the commit before it
and says so.

Flips bits and cuts files at drawn places, swaps, deletes and adds files: none may stay unnoticed, and the continued
runs end as the uninterrupted one.
"""

import concurrent.futures
import os
import pathlib
import random
import shutil
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import Interrupted
from killed import side_by_side
from spoilt import Finished
from workbench import FULL, main, run


class Damaged(Interrupted):
    change = {"checkpoint": {"keep_last": 2}}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.run_dir = cls.class_folder / "gold"
        cls.seed = int(os.environ.get("ESPALIER_TEST_SEED") or time.time())
        print(f"seed {cls.seed} (ESPALIER_TEST_SEED repeats it)", flush=True)

    def damages(self, sizes, count, generator):
        """(file name, description, change) drawn over the files."""
        for number in range(count):
            name = generator.choice(sorted(sizes))
            if number % 5 == 4:
                length = generator.choice([0, sizes[name] - 1, generator.randrange(sizes[name])])
                yield name, f"cut to {length} bytes", lambda b, length=length: b[:length]
            else:
                at, bit = generator.randrange(sizes[name]), 1 << generator.randrange(8)
                yield name, f"byte {at} xor {bit}", lambda b, at=at, bit=bit: b[:at] + bytes([b[at] ^ bit]) + b[at + 1 :]

    def undetected(self, original, prepare, count, codes=(65,), flags=()):
        generator = random.Random(self.seed)
        files = {p.name: p.stat().st_size for p in original.iterdir() if p.is_file()}

        def one(case):
            number, (name, what, change) = case
            copy, target = prepare(number)
            path = target / name
            path.write_bytes(change(path.read_bytes()))
            result = run("verify", copy, *flags)
            shutil.rmtree(copy)
            return [] if result.code in codes else [f"{name}: {what}: {result}"]

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            results = pool.map(one, enumerate(self.damages(files, count, generator)))
            return [line for lines in results for line in lines]

    def test_commits(self):
        commit = self.run_dir / "ckpt/iter-000004"

        def prepare(number):
            copy = self.folder / f"copy{number}"
            (copy / "ckpt").mkdir(parents=True)
            shutil.copy(self.run_dir / "config.resolved.yaml", copy)
            shutil.copytree(commit, copy / "ckpt/iter-000004")
            return copy, copy / "ckpt/iter-000004"

        self.assertEqual(run("verify", prepare(9999)[0]).code, 0)
        # 200 flips and 50 cuts in the long form.
        self.assertEqual(self.undetected(commit, prepare, 250 if FULL else 50), [])

    def test_a_damaged_commit_costs_one_iteration(self):
        """Nothing is lost: the commit before is taken, the damaged one set aside, and the end is the same."""
        commit = self.run_dir / "ckpt/iter-000004"
        sizes = {path.name: path.stat().st_size for path in commit.iterdir()}

        def one(name, file, what, change):
            copy = self.folder / name
            shutil.copytree(self.run_dir, copy, ignore=shutil.ignore_patterns("export"))
            path = copy / "ckpt/iter-000004" / file
            path.write_bytes(change(path.read_bytes()))
            result = self.continues_to_gold(copy, set_aside=["rejected-iter-000004-0"])
            self.assertIn("iter-000004 is not used", result.text, f"{file}: {what}")
            self.assertIn(file, result.text, what)
            self.assertIn("continuing with iteration 4", result.text)
            shutil.rmtree(copy)

        drawn = self.damages(sizes, 250 if FULL else 6, random.Random(self.seed + 1))
        _, failures = side_by_side(one, [(f"damaged{number}", *case) for number, case in enumerate(drawn)])
        self.assertEqual(failures, [], f"seed {self.seed}\n" + "\n".join(failures))

    def test_exports(self):
        export = self.run_dir / "export/exact"

        def prepare(number):
            copy = self.folder / f"export{number}"
            shutil.copytree(export, copy)
            return copy, copy

        self.assertEqual(run("verify", prepare(9999)[0], "--deep").code, 0)
        # provenance.json holds the hashes and has none of its own; what it says about files is compared.
        hashed = self.folder / "hashed"
        shutil.copytree(export, hashed)
        (hashed / "provenance.json").unlink()
        self.assertEqual(self.undetected(hashed, prepare, 40 if FULL else 10), [])

    def test_swapped_deleted_and_foreign_files(self):
        def fails(change, words):
            copy = self.folder / "copy"
            shutil.copytree(self.run_dir, copy)
            change(copy / "ckpt/iter-000004")
            result = run("verify", copy)
            shutil.rmtree(copy)
            self.assertEqual(result.code, 65, result)
            for word in words:
                self.assertIn(word, result.err)

        def in_the_place_of_the_third(commit):
            shutil.rmtree(commit.parent / "iter-000003")
            commit.rename(commit.parent / "iter-000003")

        fails(lambda c: (c / "other").write_text("x"), ["other"])
        fails(in_the_place_of_the_third, ["iteration 3", "iteration 4"])
        fails(lambda c: shutil.copy(c.parents[1] / "plan.h5", c / "state.h5"), ["state.h5"])

        copy = self.folder / "missing"
        shutil.copytree(self.run_dir, copy)
        (copy / "ckpt/iter-000004/state.h5").unlink()
        result = run("verify", copy)
        self.assertIn(result.code, (65, 66), result)
        self.assertIn("state.h5", result.err)


class NewestIsDamaged(Finished):
    def test_damaged_commits(self):
        for ranks in (1, 2):
            run_dir = self.copy(f"damaged{ranks}")
            newest, older = (run_dir / "ckpt" / f"iter-00000{i}/state.h5" for i in (4, 3))
            damaged = bytearray(newest.read_bytes())
            damaged[len(damaged) // 2] ^= 4
            newest.write_bytes(damaged)
            # One is damaged: the one before is taken, and said so.
            result = self.succeeds("resume", run_dir, ranks=ranks)
            self.assertIn("iter-000004 is not used", result.text)
            self.assertIn("hash", result.text)
            self.assertIn("iter-000003", result.text)
            self.assertEqual((run_dir / "plan.h5").read_bytes(), (self.done / "plan.h5").read_bytes())


if __name__ == "__main__":
    main()
