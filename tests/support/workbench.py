"""What whole-program tests share: tiny models, token files, configurations, and the program itself.

The program is the one that the environment variable ESPALIER names. Checkpoints come from
tests/models/make_random.py and are kept in ESPALIER_TEST_CACHE, if set, since making them loads
transformers.
"""

import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import h5py
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHAPE = {
    "layers": 4,
    "hidden": 32,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "channels": 24,
    "vocab": 64,
}
PROGRAM = os.environ.get("ESPALIER", str(ROOT / "build/dev/bin/espalier"))
# Seconds. What takes two on an idle machine may take a minute on a busy one.
HANGS_AFTER = 240
FULL = os.environ.get("ESPALIER_TEST_FULL") == "1"
# More ranks than cores: a waiting rank must not eat the time of one that works. Open MPI finds ob1 by itself in 0.2 s.
MPIRUN = ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1", "--mca", "pml", "ob1"]


def environment(extra=None):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ESPALIER_FAULT", "SLURM_"))}
    fixed = {
        "OMP_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    return {**kept, **fixed, **(extra or {})}


class Result:
    """How a run of the program ended."""

    def __init__(self, code, out, err, seconds):
        self.code, self.out, self.err, self.seconds = code, out, err, seconds

    @property
    def text(self):
        return self.out + self.err

    def __repr__(self):
        return f"exit code {self.code} after {self.seconds:.1f} s\n{self.text[-6000:]}"


def command(arguments, ranks=1):
    launcher = [*MPIRUN, "-n", str(ranks)] if ranks > 1 else []
    return [*launcher, PROGRAM, *[str(a) for a in arguments]]


class Running:
    """The program under way, in a session of its own so that nothing of it is missed."""

    def __init__(self, arguments, ranks=1, extra=None, prefix=()):
        self.begin = time.monotonic()
        self.files = [tempfile.TemporaryFile("w+", errors="backslashreplace") for _ in range(2)]
        self.process = subprocess.Popen(
            [*prefix, *command(arguments, ranks)],
            stdin=subprocess.DEVNULL,
            stdout=self.files[0],
            stderr=self.files[1],
            env=environment(extra),
            start_new_session=True,
        )

    def ranks(self):
        """Process numbers of the program's ranks, lowest first; the launcher is not among them."""
        return [p for p in session_of(self.process.pid) if program_of(p) == os.path.realpath(PROGRAM)]

    def printed(self):
        """What is on its standard output so far."""
        descriptor = self.files[0].fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="backslashreplace")

    def wait(self, timeout=HANGS_AFTER):
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"a rank hangs: no end after {timeout} s\n{self.result(None)}") from None
        return self.result(code)

    def kill(self):
        for pid in session_of(self.process.pid):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(10)

    def result(self, code):
        texts = []
        for file in self.files:
            file.seek(0)
            texts.append(file.read())
            file.close()
        # A shell's way to write that a signal ended it.
        return Result(128 - code if code is not None and code < 0 else code, *texts, time.monotonic() - self.begin)


def program_of(pid):
    try:
        return os.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)")
    except OSError:
        return ""


def session_of(leader):
    """Living processes of the session that `leader` began or of its descendants: mpirun gives every rank a group."""
    parents, sessions = {}, {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            fields = pathlib.Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(entry)], sessions[int(entry)] = int(fields[1]), int(fields[3])

    def belongs(pid):
        while pid in parents:
            if pid == leader or sessions[pid] == leader:
                return True
            pid = parents[pid]
        return False

    return sorted(pid for pid in parents if belongs(pid))


def run(*arguments, ranks=1, extra=None, timeout=HANGS_AFTER, prefix=()):
    return Running(arguments, ranks, extra, prefix).wait(timeout)


def make_model(path, family="qwen2", seed=1, **options):
    """A random checkpoint at `path`; the cache spares loading transformers."""
    shape = {**SHAPE, **options}
    name = hashlib.sha256(repr((family, seed, sorted(shape.items()))).encode()).hexdigest()[:16]
    cache = pathlib.Path(os.environ.get("ESPALIER_TEST_CACHE") or tempfile.gettempdir() + "/espalier-test-models")
    source = ROOT / "tests/models/make_random.py"
    stored = cache / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:8]}"
    if not stored.exists():
        sys.path.insert(0, str(source.parent))
        import make_random

        cache.mkdir(parents=True, exist_ok=True)
        fresh = pathlib.Path(tempfile.mkdtemp(dir=cache))
        make_random.make(fresh, family, seed, **shape)
        try:
            fresh.rename(stored)
        except OSError:  # another test was faster
            shutil.rmtree(fresh)
    shutil.copytree(stored, path)
    return pathlib.Path(path)


def write_tokens(path, rows=6, length=12, vocab=64, seed=0, lengths=None, mask=None, tokens=None):
    """A token file; `lengths` and `mask` are optional datasets."""
    values = np.random.default_rng(seed).integers(0, vocab, (rows, length)) if tokens is None else tokens
    with h5py.File(path, "w") as file:
        file["tokens"] = np.asarray(values, dtype=np.int32)
        if lengths is not None:
            file["length"] = np.asarray(lengths, dtype=np.int32)
        if mask is not None:
            file["loss_mask"] = np.asarray(mask, dtype=np.uint8)
        file.attrs["format"] = "espalier-tokens"
        file.attrs["version"] = 1
        file.attrs["vocab_size"] = vocab
    return pathlib.Path(path)


def write_options(path, options=(3, 2, 4, 2), vocab=64, length=12):
    """A file of items with so many options each, of different lengths with a common begin; the last one is right."""
    generator = np.random.default_rng(9)
    rows = sum(options)
    lengths = generator.integers(5, length + 1, rows)
    mask = np.zeros((rows, length))
    tokens = generator.integers(0, vocab, (rows, length))
    first = 0
    for n in options:
        common = lengths[first : first + n].min() - 3  # the prompt; what is more of a longer one is the answer's
        tokens[first : first + n, :common] = tokens[first, :common]
        for row in range(first, first + n):
            mask[row, common : lengths[row]] = 1
        first += n
    write_tokens(path, vocab=vocab, tokens=tokens, lengths=lengths, mask=mask)
    with h5py.File(path, "a") as file:
        file["item"] = np.repeat(np.arange(len(options), dtype="int32"), options)
        file["option"] = np.concatenate([np.arange(n, dtype="int16") for n in options])
        file["correct"] = np.concatenate([np.eye(n, dtype="uint8")[n - 1] for n in options])
        file["normalizer"] = generator.integers(1, 30, rows).astype("int32")
    return pathlib.Path(path)


def merged(base, change):
    result = dict(base)
    for key, value in change.items():
        result[key] = merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return result


class Workbench:
    """One folder with a model, token files and configurations."""

    def __init__(self, folder, **model):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = make_model(self.folder / "model", **model)
        vocab = model.get("vocab", SHAPE["vocab"])
        write_tokens(self.folder / "a.h5", vocab=vocab, seed=1)
        write_tokens(self.folder / "b.h5", rows=5, vocab=vocab, seed=2, lengths=[12, 9, 12, 4, 7])
        write_tokens(self.folder / "eval.h5", rows=4, vocab=vocab, seed=3)

    def config(self, name="config", **change):
        """Writes a configuration (JSON is YAML) over small defaults and returns its path."""
        base = {
            "model": {"path": "model", "dtype": "float64"},
            "device": "cpu",
            "calibration": {
                "domains": [
                    {"name": "a", "tokens": "a.h5"},
                    {"name": "b", "tokens": "b.h5", "weight": 2.0},
                ],
                "micro_batch_tokens": 24,
            },
            "prune": {"target": 0.4, "iterations": 4, "protect": {"first_layers": 0, "last_layers": 1}},
            "evaluation": {"every": 2, "perplexity": [{"name": "held", "tokens": "eval.h5"}]},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps(merged(base, change), indent=1), encoding="utf-8")
        return path


def status_of(run_dir):
    return json.loads((pathlib.Path(run_dir) / "status.json").read_text())


def metrics_of(run_dir):
    return [json.loads(line) for line in (pathlib.Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


def plan_of(path):
    """What a plan file or a commit's state.h5 says: its digest and its arrays."""
    with h5py.File(path) as file:
        digest = file.attrs["digest"]
        arrays = {
            f"{kind}/{name}": file[kind][name][()] for kind in ("attention", "mlp") for name in ("removed_at", "order")
        }
    return (digest.decode() if isinstance(digest, bytes) else str(digest)), arrays


def digest_of(run_dir):
    return plan_of(pathlib.Path(run_dir) / "plan.h5")[0]


def weights_of(folder):
    """The bytes of every weight file of a model directory."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(pathlib.Path(folder).glob("*.safetensors"))}


def lock_is_free(run_dir):
    """Whether nobody holds an open file description lock on the run's .lock.

    Asks only: a lock taken here would live on in children that other threads fork at that moment.
    """
    lock = pathlib.Path(run_dir) / ".lock"
    if not lock.exists():
        return True
    with open(lock, "r+b") as file:
        request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(file, 36, request)  # F_OFD_GETLK
    return struct.unpack("hhqqi4x", answer)[0] == fcntl.F_UNLCK


class Case(unittest.TestCase):
    """A test with a folder of its own; asserts that nothing of the program outlives the test."""

    maxDiff = None
    model = {}

    @classmethod
    def setUpClass(cls):
        cls.class_folder = pathlib.Path(tempfile.mkdtemp(prefix="espalier-test-"))
        cls.addClassCleanup(shutil.rmtree, cls.class_folder, ignore_errors=True)
        cls.bench = Workbench(cls.class_folder / "bench", **cls.model)

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(dir=self.class_folder))

    def succeeds(self, *arguments, **options):
        result = run(*arguments, **options)
        self.assertEqual(result.code, 0, result)
        return result

    def is_at_rest(self, run_dir, commits_only=True, set_aside=()):
        """Lock free and, unless told otherwise, nothing in ckpt/ but commits, LATEST and exactly what was set aside."""
        deadline = time.monotonic() + 60  # ranks of a killed launcher live on for some seconds
        while not lock_is_free(run_dir) and time.monotonic() < deadline:
            time.sleep(0.05)
        self.assertTrue(lock_is_free(run_dir), f"{run_dir}/.lock is held")
        if commits_only:
            names = [p.name for p in (pathlib.Path(run_dir) / "ckpt").iterdir()]
            others = [n for n in names if not (n.startswith("iter-") or n == "LATEST")]
            self.assertEqual(sorted(others), sorted(set_aside), "leftovers in ckpt/")


class LineResult(unittest.TextTestResult):
    """Results in GoogleTest's line form, which tests/support/count_results.py counts."""

    def startTest(self, test):
        super().startTest(test)
        self.begin = time.monotonic()

    def line(self, mark, test):
        milliseconds = (time.monotonic() - self.begin) * 1000
        print(f"[{mark}] {type(test).__name__}.{test._testMethodName} ({milliseconds:.0f} ms)", flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.line("       OK ", test)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.line("  FAILED  ", test)

    def addError(self, test, err):
        super().addError(test, err)
        self.begin = getattr(self, "begin", time.monotonic())
        self.line("  FAILED  ", test) if hasattr(test, "_testMethodName") else None

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        print(f"{type(test).__module__}.py:1: Skipped\n{reason}", flush=True)


def main():
    if not os.access(PROGRAM, os.X_OK):
        sys.exit(f"{PROGRAM} is not a program: set ESPALIER to the built espalier")
    unittest.main(module="__main__", testRunner=unittest.TextTestRunner(resultclass=LineResult))
