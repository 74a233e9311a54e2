"""What a terminal shows: a table of iterations and a bar, both of which log files and pipes know nothing of."""

import os
import pathlib
import pty
import re
import subprocess
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from workbench import Case, command, environment, main, run

SLOW = {"ESPALIER_FAULT": "point=forward.enter;action=slow:120"}
ERASE = "\r\x1b[K"


def on_a_terminal(*arguments, extra=None):
    """(exit code, everything that the terminal got on stderr and stdout)"""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command(arguments), stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, env=environment({"TERM": "xterm", **(extra or {})})
    )
    os.close(slave)
    parts = []

    def read():
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:
                return
            if not part:
                return
            parts.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    code = process.wait(120)
    reader.join(20)
    os.close(master)
    return code, b"".join(parts).decode(errors="replace").replace("\r\n", "\n")


def screen_of(text):
    """The lines that stay: what was erased is gone."""
    return [line.rpartition(ERASE)[2] for line in text.split("\n")]


class Terminal(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.config = cls.bench.config(export=[{"format": "exact", "path": "export/exact"}])

    def test_table_and_bar(self):
        run_dir = self.folder / "run"
        code, text = on_a_terminal("run", self.config, "--run-dir", run_dir, extra=SLOW)
        self.assertEqual(code, 0, text)
        self.assertRegex(text, r"calibrate \[=* *\] \d+/\d+ micro-batches, [\d.]+/s, eta ")
        screen = screen_of(text)
        header = [n for n, line in enumerate(screen) if re.match(r" +iter structs decoder", line)]
        self.assertEqual(len(header), 1, text)
        rows = [line for line in screen if re.match(r" +\d/4 +-?[\d.]+% ", line)]
        self.assertEqual([row.split()[0] for row in rows], ["0/4", "1/4", "2/4", "3/4", "4/4"], text)
        self.assertLessEqual(max(map(len, rows)), 100)
        self.assertEqual(len({row.rstrip().find("%") for row in rows}), 1, "aligned")
        self.assertIn("        perplexity  held ", "\n".join(screen))
        self.assertNotRegex("\n".join(screen), r"\[=+ *\]", "no bar stays")
        self.assertIn("Done in", text)
        log = (run_dir / "logs/attempt-001/main.log").read_text()
        self.assertNotIn("\x1b", log)
        self.assertNotIn("[=", log)
        self.assertEqual(len(re.findall(r" iter \d/4 structures ", log)), 5, "greppable lines")

    def test_others_get_lines(self):
        """A pipe, a terminal that cannot draw, JSON, --quiet."""
        piped = run("run", self.config, "--run-dir", self.folder / "pipe", extra={**SLOW, "TERM": "xterm"})
        self.assertNotIn("\x1b", piped.text)
        self.assertEqual(len(re.findall(r" iter \d/4 structures ", piped.err)), 5)
        for name, words, extra in (("dumb", (), {"TERM": "dumb"}), ("json", ("--log-format", "json"), {}), ("quiet", ("--quiet",), {})):
            with self.subTest(name):
                code, text = on_a_terminal(*words, "run", self.config, "--run-dir", self.folder / name, extra={**SLOW, **extra})
                self.assertEqual(code, 0, text)
                self.assertNotIn("\x1b", text)
                self.assertNotIn("structs", text)

    def test_an_error_stands_on_a_line_of_its_own(self):
        code, text = on_a_terminal(
            "run", self.config, "--run-dir", self.folder / "nan", extra={"ESPALIER_FAULT": SLOW["ESPALIER_FAULT"] + "|point=forward.exit;nth=9;action=nan"}
        )
        self.assertEqual(code, 65, text)
        self.assertTrue([line for line in screen_of(text) if line.startswith("espalier: ")], text)


if __name__ == "__main__":
    main()
