"""What the tests share in which one rank alone fails: all ranks end, soon, with one code and one message."""

import re

from killed import side_by_side
from workbench import Case, run, status_of

LAYOUTS = [(2, 1), (1, 2), (3, 1), (1, 3)]  # tensor, data


class OneRankAlone(Case):
    def fails(self, name, config, layout, fault, code, says):
        tensor, data = layout
        run_dir = self.folder / re.sub(r"\W+", "-", name)
        arguments = ["run", config, "--run-dir", run_dir, "--tensor", tensor]
        result = run(*arguments, ranks=tensor * data, extra={"ESPALIER_FAULT": fault}, timeout=60)
        self.assertEqual(result.code, code, f"{name}: {result}")
        self.assertRegex(result.err, says, name)
        blocks = re.findall(r"^espalier: .*\(exit \d+", result.err, re.M)
        self.assertEqual(len(blocks), 1, f"{name}: one error, said once: {result}")
        status = status_of(run_dir)
        self.assertEqual((status["state"], status["exit_code"]), ("failed", code), f"{name}: {status}")
        self.assertRegex(status["reason"], says, name)

    def all_of(self, cases):
        _, failures = side_by_side(self.fails, cases)
        self.assertEqual(failures, [], "\n".join(failures))
