"""Names in an index of shards are plain names of files in the model directory; nothing outside is opened, and no link
written through.

Puts paths, links and odd bytes into weight_map and looks with strace at what the program opens; plants links where a
run and an export write. Shards and token files may be links, as caches make them, unless `--strict-paths` is given.
"""

import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from killed import side_by_side
from spoilt import Row, Spoilt
from traced import calls_in, require_strace, traced
from workbench import main, run

NAMES = [
    "../outside/model.safetensors", "../../outside/model.safetensors", "/etc/passwd", "sub/model.safetensors",
    "./model.safetensors",
    "..", ".", "", "model.safetensors/", "a\\b", "..model.safetensors", "model.safetensors\0", "model.safetensors\n",
    "~/model.safetensors", "file:///etc/passwd", "\x1b[31m", "n" * 5000,
]


class HostileIndexPaths(Spoilt):
    def index(self, row, name):
        """The model in one shard, and one tensor of it in a file of this name."""
        names = {}
        row.weights(lambda tensors: names.update(dict.fromkeys(tensors, "good.safetensors")))
        (row.model / "model.safetensors").rename(row.model / "good.safetensors")
        names["model.norm.weight"] = name
        (row.model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))

    def place(self, name):
        """A bench with a whole model beside it, which nothing may read."""
        place = self.folder / name
        place.mkdir()
        row = Row(place / "bench", self.bench.folder)
        for outside in (place / "outside", place / "bench/outside"):
            outside.mkdir()
            (outside / "model.safetensors").write_bytes((row.model / "model.safetensors").read_bytes())
        (row.model / "sub").mkdir()
        (row.model / "sub/model.safetensors").write_bytes((row.model / "model.safetensors").read_bytes())
        return row

    def refused(self, number, name):
        row = self.place(str(number))
        self.index(row, name)
        log = self.folder / f"{number}.log"
        result = run("run", row.config, "--run-dir", row.run_dir, prefix=traced(log, "open,openat,openat2"))
        self.fails(result, 65, ["model.safetensors.index.json", "plain names"])
        self.assertNotIn("\x1b", result.err)
        opened = [text for _, text in calls_in(log)]
        self.assertTrue(any("model.safetensors.index.json" in text for text in opened), "strace saw nothing")
        forbidden = ("outside/", "/sub/", "/etc/passwd")
        self.assertEqual([text for text in opened if any(place in text for place in forbidden)], [], name)
        self.assertFalse(row.run_dir.exists())

    def test_names_that_lead_elsewhere(self):
        require_strace(self)
        self.bench.config()
        _, failures = side_by_side(self.refused, list(enumerate(NAMES)))
        self.assertEqual(failures, [], "\n".join(failures))

    def test_links_to_inputs(self):
        """Hugging Face caches keep shards as links: they are read, and --strict-paths names them all."""
        self.bench.config()
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir()
        for number, names in enumerate((["model/model.safetensors", "a.h5"], ["model/config.json"], ["model"], ["eval.h5"], [])):
            for ranks in (1, 2):
                with self.subTest(names, ranks=ranks):
                    row = Row(self.folder / f"links{number}-{ranks}", self.bench.folder)
                    for name in names:
                        target = elsewhere / f"{number}-{ranks}-{name.replace('/', '-')}"
                        (row.folder / name).rename(target)
                        (row.folder / name).symlink_to(target)
                    words = ["run", row.config, "--run-dir", row.run_dir]
                    result = run(*words, "--strict-paths", ranks=ranks)
                    if names:
                        self.fails(result, 65, ["--strict-paths", *(f"/{name}' is a symbolic link to '" for name in names)])
                        self.assertEqual(result.err.count("is a symbolic link"), len(names), result)
                        result = run(*words, ranks=ranks)
                    self.assertEqual(result.code, 0, result)

    def test_what_a_run_writes_stays_in_its_directories(self):
        """Every file that is made anew is made with O_EXCL or O_NOFOLLOW, in the run directory and nowhere else."""
        require_strace(self)
        config = self.bench.config(export=[{"format": "exact", "path": "export/exact"}])
        run_dir, log = self.folder / "run", self.folder / "log"
        self.succeeds("run", config, "--run-dir", run_dir, prefix=traced(log, "open,openat,openat2,creat"))
        made = [text for _, text in calls_in(log) if "O_CREAT" in text]
        self.assertGreater(len(made), 10)
        for text in made:
            path = re.search(r'"([^"]*)"', text).group(1)
            self.assertTrue(path.startswith(str(run_dir)), f"written outside the run directory: {text}")
        weights = [text for text in made if "/export/" in text or "/ckpt/" in text]
        self.assertGreater(len(weights), 6)
        for text in weights:
            self.assertRegex(text, "O_EXCL|O_NOFOLLOW")

    def test_links_where_a_run_writes(self):
        """A link of the name of an output is replaced or refused; what it leads to is left alone."""
        victim = self.folder / "victim"
        victim.write_text("mine")
        config = self.bench.config(export=[{"format": "exact", "path": "export/exact"}])
        run_dir = self.folder / "run"
        (run_dir / "ckpt").mkdir(parents=True)
        names = ("status.json", "metrics.jsonl", "plan.h5", "config.resolved.yaml", "owner.json", "provenance.json")
        for name in (*names, "ckpt/LATEST"):
            (run_dir / name).symlink_to(victim)
        result = run("run", config, "--run-dir", run_dir)
        self.assertEqual(victim.read_text(), "mine", result)
        elsewhere = self.folder / "elsewhere"
        elsewhere.mkdir()
        second = self.folder / "second"
        (second / "export").mkdir(parents=True)
        (second / "export/exact").symlink_to(elsewhere)
        result = run("run", config, "--run-dir", second)
        self.fails(result, 73, [str(second / "export/exact")])
        self.assertEqual(list(elsewhere.iterdir()), [])


if __name__ == "__main__":
    main()
