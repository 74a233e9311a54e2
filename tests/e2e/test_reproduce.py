"""launch/reproduce.sh with the program itself: one claim, one seed, the model of the tree; and every configuration that it would run."""

import json
import pathlib
import subprocess
import sys
import xml.etree.ElementTree

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "support"), str(HERE.parents[1] / "launch/python")]

from espalier_reproduce import claims, runs  # noqa: E402
from workbench import HANGS_AFTER, PROGRAM, ROOT, Case, environment, main  # noqa: E402

MODEL = ROOT / "tests/models/tri-domain-qwen2"
DOMAINS = ("prose", "math", "code")


def reproduce(out, *flags):
    command = [ROOT / "launch/reproduce.sh", "--espalier", PROGRAM, "--out", out, "--claims", "2", "--seeds", "1", "--rows", "4", "--items", "2",
               "--heldout-rows", "4", "--heldout-items", "4", *flags]
    kept = {k: v for k, v in environment().items() if k != "ESPALIER_TEST_DATA"}
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, env=kept, timeout=3 * HANGS_AFTER)


class Reproduce(Case):
    def test_one_claim(self):
        out = self.folder / "out"
        done = reproduce(out)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("one seed: not decided: global better than local", done.stdout)
        found = json.loads((out / "results.json").read_text())
        self.assertTrue(found["complete"])
        self.assertIn("most ways look alike", " ".join(found["facts"]))  # it is the easy model
        ways = {way["way"]: way["seeds"][0] for way in found["claims"][0]["ways"]}
        self.assertEqual(list(ways), ["global", "global_by_kind", "local"])
        for name, seed in ways.items():
            self.assertLessEqual(seed["removed"], 0.5)
            # A list per kind or layer may leave a unit of each.
            self.assertGreater(seed["removed"], 0.49 if name == "global" else 0.47, name)
            self.assertEqual([round(p["removed"], 1) for p in seed["points"]], [0.2, 0.3, 0.5], name)
            by_size = [p["perplexity"]["prose"] for p in seed["points"]]
            self.assertLess(found["dense"]["perplexity"]["prose"], by_size[-1], name)
            self.assertEqual(by_size[-1], seed["perplexity"]["prose"])
        self.assertLess(ways["global"]["perplexity"]["prose"], ways["local"]["perplexity"]["prose"])
        self.assertTrue(xml.etree.ElementTree.parse(out / "claim-2.svg").getroot().tag.endswith("svg"))
        before = sorted(p.name for p in (out / "results").iterdir())
        again = reproduce(out)
        self.assertEqual(again.returncode, 0, again.stderr)
        self.assertIn("3 runs, 3 of them finished before", again.stdout)
        self.assertEqual(sorted(p.name for p in (out / "results").iterdir()), before)
        self.assertEqual(json.loads((out / "results.json").read_text())["claims"], found["claims"])

    def test_every_configuration_is_read(self):
        """By the program's own rules; token files are not looked at."""
        s = runs.Settings(str(MODEL), DOMAINS, seeds=1)
        for key, run in runs.needed(claims.all_claims(DOMAINS), s).items():
            file = self.folder / f"{key}.yaml"
            file.write_text(run.config)
            done = subprocess.run([PROGRAM, "config", file], capture_output=True, text=True, env=environment())
            self.assertEqual(done.returncode, 0, f"{run.config}\n{done.stderr}")


if __name__ == "__main__":
    main()
