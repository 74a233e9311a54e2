"""The file system around the program: odd names, links, permissions of a group, file systems that cannot lock, calls that
fail. Every refusal has its exit code and names the path; nothing is an internal error."""

import errno
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from workbench import (
    PROGRAM,
    Case,
    Running,
    digest_of,
    main,
    make_model,
    merged,
    run,
    status_of,
    write_tokens,
)

SHIM = pathlib.Path(__file__).resolve().parents[1] / "support/surroundings_shim.c"
SHORT = {"prune": {"iterations": 2}, "evaluation": {"every": 1}, "export": [{"format": "exact", "path": "export/exact"}]}


def bytes_of(text):
    """The bytes that a file of the program writes as this text (docs/file-formats.md)."""
    raw = text.encode()
    return re.sub(rb"\\x([0-9a-fA-F]{2})", lambda m: bytes([int(m.group(1), 16)]), raw)


class Surroundings(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.config = cls.bench.config("short", **SHORT)

    def copy_of_bench(self, name):
        """The bench in a directory of this name (text or bytes)."""
        place = pathlib.Path(os.fsdecode(os.path.join(os.fsencode(self.folder), os.fsencode(name))))
        shutil.copytree(self.bench.folder, place)
        return place

    def refuses(self, result, codes, *words):
        self.assertIn(result.code, codes, result)
        self.assertEqual(len(re.findall('^espalier: |"problems":', result.err, re.M)), 1, result)
        for word in words:
            self.assertIn(str(word), result.err)

    @classmethod
    def shim(cls):
        library = cls.class_folder / "shim.so"
        if not library.exists():
            made = shutil.which("cc") and subprocess.run(
                ["cc", "-shared", "-fPIC", "-o", library, SHIM, "-ldl"], capture_output=True
            )
            if not made or made.returncode != 0:
                raise unittest.SkipTest("calls cannot be made to fail: no C compiler")
        return str(library)

    def whole_life(self, bench, run_dir, ranks=1):
        """Run, killed, continued, looked at by every command, pruned model exported."""
        config = bench / "short.yaml"
        killed = run("run", config, "--run-dir", run_dir, ranks=ranks, extra={"ESPALIER_FAULT": "point=forward.enter;iter=2;action=kill9"})
        self.assertNotEqual(killed.code, 0, killed)
        self.assertTrue((run_dir / "ckpt/iter-000001").is_dir(), killed)
        self.assertIn("dead", self.succeeds("status", run_dir).out)
        self.succeeds("resume", run_dir, ranks=ranks)
        self.assertEqual(status_of(run_dir)["state"], "finished")
        for name in ("status.json", "owner.json", "provenance.json", "export/exact/provenance.json"):
            json.loads((run_dir / name).read_text(encoding="utf-8"))
        provenance = json.loads((run_dir / "provenance.json").read_text())
        self.assertEqual(bytes_of(provenance["model"]), os.fsencode(bench / "model"))
        self.assertIn(os.fsencode(bench / "a.h5"), [bytes_of(print["path"]) for print in provenance["inputs"].values()])
        self.succeeds("verify", run_dir)
        self.succeeds("verify", run_dir / "ckpt/iter-000002")
        self.succeeds("verify", run_dir / "export/exact")
        seen = json.loads(self.succeeds("inspect", run_dir, "--json").out)
        self.assertEqual(bytes_of(seen["model"]), os.fsencode(bench / "model"))
        out = pathlib.Path(f"{run_dir}-out")
        self.succeeds("export", run_dir, "--out", out)
        self.succeeds("verify", out)
        self.succeeds("eval", config, "--run-dir", run_dir, "--out", f"{out}.json")
        self.assertEqual(bytes_of(json.loads(pathlib.Path(f"{out}.json").read_text())["model"]), os.fsencode(bench / "model"))
        self.succeeds("score", config, "--out", f"{out}.h5")


class Names(Surroundings):
    def test_bytes_that_are_no_utf8(self):
        bench = self.copy_of_bench(b"caf\xe9 \xff\\x41")
        (bench / "model" / os.fsdecode(b"no\xfete.txt")).write_text("a file of the model that exports take over")
        self.whole_life(bench, bench / os.fsdecode(b"run\x80"), ranks=2)

    def test_names_that_mean_something_elsewhere(self):
        """Several in one path each: a directory of every name, and the run directory of the last."""
        for names in (["a b'\"c", "-x", "#y"], ["~root", "${HOME}", "~"], ["%s{}", "a: b", "*?[x]"],
                      ["é\u202e", "tab\there\x1b[31m", "\\x41\\"]):
            with self.subTest(names):
                bench = self.copy_of_bench("/".join(names))
                self.whole_life(bench, bench / names[-1])

    def test_names_with_line_breaks(self):
        bench = self.copy_of_bench("a\nb: c\r\n- d")
        self.whole_life(bench, bench / "run\n\n")

    def test_relative_and_dashed_words(self):
        bench = self.copy_of_bench("bench")
        here = ["env", "-C", str(bench)]
        self.assertEqual(run("run", "short.yaml", "--run-dir=-r", prefix=here).code, 0)
        self.assertEqual(run("verify", "./-r", prefix=here).code, 0)
        self.assertEqual(run("verify", "--", "-r", prefix=here).code, 0)
        self.refuses(run("run", "short.yaml", "--run-dir", "", prefix=here), (64,), "empty")

    def test_paths_survive_printing(self):
        """What `config` prints is read back as the same configuration, from anywhere."""
        for name in ("~x", "a\\x41", "${X}", "$${X}", "x\\x09y", "caf\\xe9", " lead", "trail ", "no", "1.5", "a\\\\b"):
            with self.subTest(name):
                config = self.bench.config("print", export=[{"format": "exact", "path": "./" + name.replace("${", "$${")}])
                first = self.succeeds("config", config)
                again = self.folder / "again.yaml"
                again.write_bytes(os.fsencode(first.out))
                self.assertEqual(self.succeeds("config", again).out, first.out)

    def test_bytes_in_the_environment_and_in_the_host_name(self):
        odd = os.fsdecode(b"\xff\xfe")
        extra = {"SLURM_JOB_ID": odd, "SLURM_JOB_NODELIST": odd, "LOADEDMODULES": "a\nb" + odd}
        extra |= {"LD_PRELOAD": self.shim(), "SHIM_HOST": odd}
        run_dir = self.folder / "run"
        self.succeeds("run", self.config, "--run-dir", run_dir, ranks=1, extra=extra)
        owner = json.loads((run_dir / "owner.json").read_text(encoding="utf-8"))
        self.assertEqual((bytes_of(owner["host"]), bytes_of(owner["job"])), (b"\xff\xfe", b"\xff\xfe"))
        facts = json.loads((run_dir / "provenance.json").read_text(encoding="utf-8"))
        self.assertEqual(bytes_of(facts["environment"]["SLURM_JOB_NODELIST"]), b"\xff\xfe")
        self.assertEqual(bytes_of(facts["hosts"][0]), b"\xff\xfe")

    def test_bytes_in_what_is_given(self):
        """Values of the environment in paths, and messages about paths that are not there."""
        bench = self.copy_of_bench(b"\xe9")
        config = self.bench.config("variable", **SHORT, model={"path": "${PLACE}/model"})
        run_dir = self.folder / "run"
        self.succeeds("run", config, "--run-dir", run_dir, extra={"PLACE": str(bench)})
        self.succeeds("resume", run_dir)
        gone = os.fsdecode(b"/nowhere/\xff\x1b[2J\nx")
        for arguments in (
            ["--log-format", "json", "run", config, "--run-dir", self.folder / "x"],
            ["run", config, "--run-dir", self.folder / "x"],
        ):
            result = run(*arguments, extra={"PLACE": gone})
            self.refuses(result, (66,), "/nowhere/")
            self.assertNotIn("\x1b", result.err)
        self.refuses(run("run", self.folder / gone[1:], "--run-dir", self.folder / "x"), (66,))
        self.refuses(run("verify", gone), (66,))
        self.assertFalse((self.folder / "x").exists())

    def test_commands_to_copy_are_quoted(self):
        run_dir = self.folder / "it's a run"
        config = self.bench.config("commands", **SHORT)
        stopped = run("run", config, "--run-dir", run_dir, extra={"ESPALIER_FAULT": "point=forward.enter;iter=2;action=kill9"})
        self.assertNotEqual(stopped.code, 0)
        running = Running(["resume", run_dir], extra={"ESPALIER_FAULT": "point=load.exit;action=slow:1500"})
        end = time.monotonic() + 30
        while "running" not in run("status", run_dir).out and time.monotonic() < end:
            time.sleep(0.05)
        run("stop", run_dir)  # may come too late
        if running.wait().code == 75:
            line = run("status", run_dir).out
            self.assertEqual(shlex.split(line[line.index("espalier resume") :])[2], str(run_dir))
        line = self.succeeds("resume", run_dir).out.split("smaller plans", 1)[1]
        self.assertEqual(shlex.split(line.split("\n", 1)[0])[2], str(run_dir))


class Links(Surroundings):
    """`link/../x` is beside what the link points to."""

    def setUp(self):
        super().setUp()
        self.real = self.folder / "real"
        shutil.copytree(self.bench.folder, self.real)
        (self.real / "deep/er").mkdir(parents=True)
        self.link = self.folder / "link"
        self.link.symlink_to("real/deep")

    def test_directory_of_the_run(self):
        self.succeeds("run", self.config, "--run-dir", f"{self.link}/../run/")
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["link", "real"])
        self.is_at_rest(self.real / "run")
        for command in ("verify", "inspect", "status"):
            self.succeeds(command, f"{self.link}/../run")
        self.succeeds("verify", f"{self.link}/../run/ckpt/iter-000002")
        self.succeeds("inspect", f"{self.link}/../run/ckpt/iter-000002/.")
        self.succeeds("resume", f"{self.link}/../run")
        # A run directory that is a link, dangling at first.
        (self.folder / "alias").symlink_to(self.real / "run")
        self.succeeds("resume", self.folder / "alias")
        self.succeeds("run", self.config, "--run-dir", f"{self.folder}/alias/")
        self.assertTrue((self.folder / "alias").is_symlink())

    def test_commits_elsewhere(self):
        """ckpt/ and a commit may be links: the run is found from the words, else from where they lead."""
        run_dir, scratch = self.folder / "run", self.folder / "scratch"
        run_dir.mkdir()
        scratch.mkdir()
        (run_dir / "ckpt").symlink_to(scratch)
        self.succeeds("run", self.config, "--run-dir", run_dir)
        self.succeeds("verify", run_dir)
        self.succeeds("verify", run_dir / "ckpt/iter-000002")
        self.succeeds("inspect", run_dir / "ckpt/iter-000002")
        plain = self.folder / "plain"
        self.succeeds("run", self.config, "--run-dir", plain)
        (self.folder / "best").symlink_to(plain / "ckpt/iter-000002")
        self.succeeds("verify", self.folder / "best")
        self.succeeds("inspect", self.folder / "best")

    def test_inputs(self):
        change = {
            "model": {"path": f"{self.link}/../model"},
            "calibration": {"domains": [{"name": "a", "tokens": f"{self.link}/../a.h5"}]},
            "evaluation": {"every": 1, "perplexity": [{"name": "held", "tokens": f"{self.link}/er/../../eval.h5"}]},
        }
        config = self.bench.config("links", **merged(SHORT, change))
        # Decoys where the words alone lead: other weights, no token file at all.
        make_model(self.folder / "model", seed=7)
        (self.folder / "a.h5").write_text("decoy")
        (self.folder / "eval.h5").write_text("decoy")
        run_dir = self.folder / "run"
        self.succeeds("run", config, "--run-dir", run_dir)
        same = self.bench.config("same", **merged(SHORT, {"calibration": {"domains": [{"name": "a", "tokens": "a.h5"}]}}))
        self.succeeds("run", same, "--run-dir", self.folder / "same")
        self.assertEqual(digest_of(run_dir), digest_of(self.folder / "same"))
        self.succeeds("resume", run_dir)

    def test_configuration(self):
        """Relative paths start where the configuration is named, also when that is a link to a file elsewhere."""
        # Printed as named, with the link: the words without it would be another directory.
        self.assertIn(f"path: {self.link}/../model", self.succeeds("config", f"{self.link}/../short.yaml").out)
        self.assertTrue(os.path.samefile(f"{self.link}/../model", self.real / "model"))
        project = self.folder / "project"
        shutil.copytree(self.bench.folder, project)
        (project / "short.yaml").unlink()
        shared = self.folder / "shared"
        shared.mkdir()
        shutil.copy(self.config, shared / "short.yaml")
        (project / "short.yaml").symlink_to(shared / "short.yaml")
        self.assertIn(f"path: {project}/model", self.succeeds("config", project / "short.yaml").out)

    def test_exports(self):
        run_dir = self.folder / "run"
        self.succeeds("run", self.config, "--run-dir", run_dir)
        self.succeeds("export", run_dir, "--out", f"{self.link}/../out/")
        self.assertTrue((self.real / "out/config.json").is_file())
        self.assertFalse((self.folder / "out").exists())
        self.succeeds("verify", f"{self.link}/../out")
        # An export place that is a link is not written through, whether it leads somewhere or not.
        for target in ("real/deep", "nowhere"):
            (self.folder / "x").symlink_to(target)
            self.refuses(run("export", run_dir, "--out", self.folder / "x"), (73,), "exists")
            (self.folder / "x").unlink()
        absolute = self.bench.config("absolute", **merged(SHORT, {"export": [{"format": "exact", "path": f"{self.link}/../abs"}]}))
        self.succeeds("run", absolute, "--run-dir", self.folder / "run-2")
        self.assertTrue((self.real / "abs/config.json").is_file())

    def test_sweeping_stays_inside(self):
        """export/ that leads out of the run directory may hold the half-made export of somebody else."""
        elsewhere = self.folder / "elsewhere"
        (elsewhere / "exact.tmp-1").mkdir(parents=True)
        run_dir = self.folder / "run"
        run_dir.mkdir()
        (run_dir / "export").symlink_to(elsewhere)
        self.succeeds("run", self.config, "--run-dir", run_dir)
        self.assertEqual(sorted(p.name for p in elsewhere.iterdir()), ["exact", "exact.tmp-1"])
        inside = self.folder / "inside"
        (inside / "export/exact.tmp-1").mkdir(parents=True)
        self.succeeds("run", self.config, "--run-dir", inside)
        self.assertEqual([p.name for p in (inside / "export").iterdir()], ["exact"])


class Permissions(Surroundings):
    def modes(self, folder):
        return {
            p.relative_to(folder): p.stat().st_mode & 0o777 for p in sorted(folder.rglob("*")) if not p.is_symlink()
        }

    def test_umask_decides(self):
        for umask in (0o002, 0o022, 0o027, 0o077):
            with self.subTest(oct(umask)):
                run_dir = self.folder / oct(umask)
                mask = ["sh", "-c", f'umask {umask:03o}; exec "$@"', "sh"]
                result = run("run", self.config, "--run-dir", run_dir, prefix=mask)
                self.assertEqual(result.code, 0, result)
                self.assertEqual(run("score", self.config, "--out", run_dir / "scores.h5", prefix=mask).code, 0)
                for name, mode in self.modes(run_dir).items():
                    whole = 0o777 if (run_dir / name).is_dir() else 0o666
                    self.assertEqual(oct(mode), oct(whole & ~umask), name)
                self.assertEqual(oct(run_dir.stat().st_mode & 0o777), oct(0o777 & ~umask))

    def another_user(self, user, group, umask="002"):
        words = [f"--reuid={user}", f"--regid={user}", f"--groups={group}", "--bounding-set=-all", "--inh-caps=-all"]
        return ["sh", "-c", f'umask {umask}; exec "$@"', "sh", "setpriv", *words]

    def open_to_all(self):
        for folder in (self.class_folder, self.folder, self.bench.folder, *self.bench.folder.rglob("*")):
            folder.chmod(folder.stat().st_mode | 0o055)

    def require_users(self):
        if os.geteuid() != 0 or not shutil.which("setpriv"):
            self.skipTest("other users need root and setpriv")
        self.open_to_all()
        prefix = self.another_user(65533, 4242)
        if run("doctor", "--list-faults", prefix=prefix).code != 0:
            self.skipTest("another user may not read the program")

    def test_a_group_shares_a_run(self):
        self.require_users()
        group, first, second = 4242, 65533, 65532
        shared = self.folder / "shared"
        shared.mkdir()
        os.chown(shared, 0, group)
        shared.chmod(0o2775)
        run_dir = shared / "run"
        home = {"HOME": "/tmp", "TMPDIR": "/tmp"}
        stopped = run(
            *("run", self.config, "--run-dir", run_dir),
            prefix=self.another_user(first, group),
            extra={**home, "ESPALIER_FAULT": "point=forward.enter;iter=2;action=kill9"},
        )
        self.assertEqual(stopped.code, 137, stopped)
        result = run("resume", run_dir, prefix=self.another_user(second, group), extra=home)
        self.assertEqual(result.code, 0, result)
        result = run("export", run_dir, "--out", run_dir / "export/second", prefix=self.another_user(first, group), extra=home)
        self.assertEqual(result.code, 0, result)
        for path in [run_dir, *run_dir.rglob("*")]:
            self.assertEqual(path.stat().st_gid, group, path)
            self.assertTrue(path.stat().st_mode & 0o020, f"{path} is not writable for the group")
        # Somebody outside the group may look, not write.
        outside = self.another_user(65531, 65531)
        self.assertEqual(run("status", run_dir, prefix=outside, extra=home).code, 0)
        for arguments in (["resume", run_dir], ["run", self.config, "--run-dir", shared / "other"]):
            self.refuses(run(*arguments, prefix=outside, extra=home), (77,), shared)

    def test_a_colleague_without_the_umask(self):
        """The directory is of the group, the files of a colleague whose umask is 022 are not: said before any work."""
        self.require_users()
        group, first, second = 4242, 65533, 65532
        run_dir = self.folder / "run"
        run_dir.mkdir()
        os.chown(run_dir, first, group)
        run_dir.chmod(0o2775)
        home = {"HOME": "/tmp", "TMPDIR": "/tmp"}
        result = run("run", self.config, "--run-dir", run_dir, prefix=self.another_user(first, group, "022"), extra=home)
        self.assertEqual(result.code, 0, result)
        result = run("resume", run_dir, prefix=self.another_user(second, group), extra=home)
        self.refuses(result, (77,), run_dir, "umask 002")
        os.chmod(run_dir / ".lock", 0o664)
        result = run("resume", run_dir, prefix=self.another_user(second, group), extra=home)
        self.refuses(result, (77,), run_dir / "ckpt", "umask 002")

    def test_closed_directories(self):
        """Every command says permission, with the path, when a directory on the way is closed."""
        self.require_users()
        run_dir = self.folder / "closed/run"
        self.succeeds("run", self.config, "--run-dir", run_dir)
        run_dir.parent.chmod(0o700)
        outside, home = self.another_user(65531, 65531), {"HOME": "/tmp", "TMPDIR": "/tmp"}
        writable = self.folder / "writable"
        writable.mkdir()
        writable.chmod(0o777)
        for arguments in (
            ["status", run_dir],
            ["stop", run_dir],
            ["verify", run_dir],
            ["verify", run_dir / "ckpt/iter-000002"],
            ["inspect", run_dir],
            ["resume", run_dir],
            ["export", run_dir, "--out", writable / "x"],
            ["eval", self.config, "--run-dir", run_dir, "--out", writable / "x"],
            ["eval", self.config, "--model", run_dir / "export/exact", "--out", writable / "x"],
            ["eval", self.config, "--out", run_dir / "x.json"],
            ["score", self.config, "--out", run_dir / "x.h5"],
            ["config", run_dir / "config.resolved.yaml"],
            ["run", self.config, "--run-dir", writable / "y", "--set", f"model.path={run_dir}/export/exact"],
            ["run", self.config, "--run-dir", writable / "y", "--set", f"evaluation.perplexity[0].tokens={run_dir}/a.h5"],
        ):
            with self.subTest(arguments):
                result = run(*arguments, prefix=outside, extra=home)
                self.assertEqual(result.code, 77, result)
                self.assertIn(str(run_dir), result.err)
        self.assertEqual(list(writable.iterdir()), [])
        # The run can be read, its commits cannot: nothing may be taken for "no commit".
        run_dir.parent.chmod(0o755)
        (run_dir / "ckpt").chmod(0o700)
        for arguments in (["verify", run_dir], ["inspect", run_dir], ["export", run_dir, "--out", writable / "x"]):
            with self.subTest(arguments):
                result = run(*arguments, prefix=outside, extra=home)
                self.assertEqual(result.code, 77, result)
                self.assertIn(str(run_dir / "ckpt"), result.err)


class Refusals(Surroundings):
    def test_paths_that_lead_nowhere(self):
        run_dir = self.folder / "run"
        self.succeeds("run", self.config, "--run-dir", run_dir)
        (self.folder / "loop").symlink_to("loop")
        (self.folder / "file").write_text("x")
        for place, why in (
            (self.folder / "loop", "symbolic links"),
            (self.folder / "loop/x", "symbolic links"),
            (self.folder / ("n" * 300), "too long"),
            (self.folder / "/".join(["d" * 200] * 30), "too long"),
            (self.folder / "file/x", ""),
        ):
            for arguments in (
                ["status", place],
                ["stop", place],
                ["verify", place],
                ["inspect", place],
                ["resume", place],
                ["export", place, "--out", self.folder / "x"],
                ["export", run_dir, "--out", place],
                ["run", self.config, "--run-dir", place],
                ["run", place, "--run-dir", self.folder / "x"],
                ["eval", self.config, "--run-dir", place, "--out", self.folder / "x"],
                ["eval", self.config, "--model", place],
                ["eval", self.config, "--out", place],
                ["score", self.config, "--out", place],
                ["run", self.config, "--run-dir", self.folder / "x", "--set", f"model.path={place}"],
            ):
                with self.subTest(arguments):
                    result = run(*arguments)
                    self.assertIn(result.code, (64, 66, 73, 74, 78), result)
                    if result.code == 73:
                        continue  # a link where an export should go is there already
                    self.assertIn(why, result.err, result)
        self.assertFalse((self.folder / "x").exists())

    def test_run_directory_that_vanishes(self):
        for ranks in (1, 2):
            run_dir = self.folder / f"run-{ranks}"
            running = Running(
                ["run", self.config, "--run-dir", run_dir], ranks, {"ESPALIER_FAULT": "point=calibrate.enter;rank=0;iter=2;action=slow:2000"}
            )
            end = time.monotonic() + 30
            while not (run_dir / "ckpt/iter-000001").exists() and time.monotonic() < end:
                time.sleep(0.02)
            run_dir.rename(self.folder / f"away-{ranks}")
            result = running.wait()
            self.refuses(result, (66, 74), run_dir)
            self.assertFalse(run_dir.exists())
            result = run("resume", self.folder / f"away-{ranks}")
            self.assertEqual(result.code, 0, result)

    def test_owner_file_that_is_damaged(self):
        """The message about a lock must not fail over the file that names its owner."""
        run_dir = self.folder / "run"
        running = Running(["run", self.config, "--run-dir", run_dir], extra={"ESPALIER_FAULT": "point=load.enter;action=slow:60000"})
        end = time.monotonic() + 30
        while not (run_dir / "status.json").exists() and time.monotonic() < end:
            time.sleep(0.02)
        for text in ("", "{", "[]", '{"pid": "x", "host": 3}', "\xff"):
            (run_dir / "owner.json").write_text(text, encoding="latin-1")
            self.refuses(run("resume", run_dir, "--lock-wait", 0), (73,), run_dir, "in use")
        running.kill()


class Calls(Surroundings):
    def test_interrupted_and_short_calls(self):
        run_dir = self.folder / "run"
        extra = {"LD_PRELOAD": self.shim(), "SHIM_ROOT": str(self.class_folder), "SHIM_INTERRUPT": "1"}
        self.succeeds("run", self.config, "--run-dir", run_dir, extra=extra)
        for arguments in (["resume", run_dir], ["verify", run_dir], ["export", run_dir, "--out", self.folder / "x"], ["status", run_dir]):
            self.succeeds(*arguments, extra=extra)
        self.succeeds("run", self.config, "--run-dir", self.folder / "plain")
        self.assertEqual(digest_of(run_dir), digest_of(self.folder / "plain"))

    def test_file_systems_that_refuse_fsync(self):
        for number in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            extra = {"LD_PRELOAD": self.shim(), "SHIM_ROOT": str(self.folder), "SHIM_FSYNC": str(number)}
            self.succeeds("run", self.config, "--run-dir", self.folder / f"run-{number}", extra=extra)
        extra["SHIM_FSYNC"] = str(errno.EIO)
        self.refuses(run("run", self.config, "--run-dir", self.folder / "run-io", extra=extra), (74,), "fsync")

    def test_a_commit_that_cannot_be_read_now_is_not_damaged(self):
        """The device, not the file: 74, nothing set aside, and the run goes on from it later."""
        run_dir = self.folder / "run"
        run("run", self.config, "--run-dir", run_dir, extra={"ESPALIER_FAULT": "point=forward.enter;iter=2;action=kill9"})
        before = sorted(p.name for p in (run_dir / "ckpt").iterdir())
        self.assertIn("iter-000001", before)
        extra = {"LD_PRELOAD": self.shim(), "SHIM_ROOT": str(run_dir / "ckpt/iter-000001"), "SHIM_READ": str(errno.EIO)}
        self.refuses(run("resume", run_dir, extra=extra), (74,), "iter-000001", "Input/output error")
        self.assertEqual(sorted(p.name for p in (run_dir / "ckpt").iterdir()), before)
        self.assertIn("continuing with iteration 2", self.succeeds("resume", run_dir).text)


class NoLocks(Surroundings):
    """A file system whose locks fail: .lock.claim, refreshed by its holder, stands for them."""

    def setUp(self):
        super().setUp()
        self.run_dir = self.folder / "run"
        self.claim = self.run_dir / ".lock.claim"
        self.extra = {"LD_PRELOAD": self.shim(), "SHIM_LOCKS": str(errno.ENOLCK)}

    def slow(self, milliseconds):
        """A run whose second iteration takes this long per micro-batch."""
        fault = f"point=forward.enter;iter=2;action=slow:{milliseconds}"
        return Running(["run", self.config, "--run-dir", self.run_dir], extra={**self.extra, "ESPALIER_FAULT": fault})

    def wait_for(self, path):
        end = time.monotonic() + 30
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.02)
        self.assertTrue(path.exists(), path)

    def test_every_way_to_say_no(self):
        for number in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
            with self.subTest(errno.errorcode[number]):
                run_dir = self.folder / str(number)
                extra = {**self.extra, "SHIM_LOCKS": str(number)}
                result = self.succeeds("run", self.config, "--run-dir", run_dir, extra=extra)
                self.assertEqual(result.err.count("has no locks"), 1, result)
                self.assertFalse((run_dir / ".lock.claim").exists())
                self.assertIn("finished", self.succeeds("status", run_dir, extra=extra).out)
                self.is_at_rest(run_dir)
        other = {**self.extra, "SHIM_LOCKS": str(errno.EIO)}
        self.refuses(run("run", self.config, "--run-dir", self.folder / "x", extra=other), (74,), self.folder / "x/.lock")

    def test_second_run_status_and_stop(self):
        running = self.slow(4000)
        self.wait_for(self.run_dir / "ckpt/iter-000001")
        said = self.claim.read_text()
        self.assertIn(f'"pid":{running.ranks()[0]},', said)
        for word in ("host", "job", "since"):
            self.assertIn(f'"{word}":', said)
        second = run("resume", self.run_dir, "--lock-wait", 0.5, extra=self.extra)
        self.refuses(second, (73,), f"process {running.ranks()[0]}", self.run_dir)
        # A host whose locks work must see the claim too.
        self.refuses(run("resume", self.run_dir, "--lock-wait", 0.5), (73,), self.run_dir)
        self.assertIn("running", self.succeeds("status", self.run_dir, extra=self.extra).out)
        self.assertIn("running", self.succeeds("status", self.run_dir).out)
        self.succeeds("stop", self.run_dir, extra=self.extra)
        self.assertEqual(running.wait().code, 75)
        self.assertIn("stopped", run("status", self.run_dir, extra=self.extra).out)
        self.assertFalse(self.claim.exists())
        self.succeeds("resume", self.run_dir, extra=self.extra)

    def test_claim_of_a_dead_run_is_taken_over(self):
        running = self.slow(60000)
        self.wait_for(self.run_dir / "ckpt/iter-000001")
        running.kill()
        self.assertTrue(self.claim.exists())
        os.utime(self.claim, (1, time.time() - 3600))
        self.assertIn("dead", self.succeeds("status", self.run_dir, extra=self.extra).out)
        results = []

        def resume():
            results.append(run("resume", self.run_dir, "--lock-wait", 0, extra=self.extra))

        threads = [threading.Thread(target=resume) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = sorted(result.code for result in results)
        self.assertEqual(codes[0], 0, results)
        self.assertEqual(set(codes[1:]) - {0, 73}, set(), results)
        self.assertFalse(self.claim.exists())
        self.succeeds("verify", self.run_dir)

    def test_heartbeat(self):
        running = self.slow(3000)
        self.wait_for(self.claim)
        first = self.claim.stat().st_mtime_ns
        time.sleep(6.5)
        self.assertGreater(self.claim.stat().st_mtime_ns, first)
        running.kill()

    def test_a_run_that_lost_its_claim_commits_nothing(self):
        running = self.slow(500)
        self.wait_for(self.run_dir / "ckpt/iter-000001")
        self.claim.unlink()
        self.claim.write_text("somebody else\n")
        result = running.wait()
        self.refuses(result, (73,), self.run_dir, "took")
        self.assertFalse((self.run_dir / "ckpt/iter-000002").exists())
        self.assertEqual(self.claim.read_text(), "somebody else\n")


if __name__ == "__main__":
    main()
