"""An export is there as a whole or not at all: a kill in the middle leaves none, or the one before, and the next start
writes it.

Kills the process at the first and a later passing of every fault point of an export; continues on other layouts.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import other_layout
from killed import Killed, listed_points
from workbench import main


class KilledWhileExporting(Killed):
    def test_every_call_of_the_export(self):
        cases = []
        for point in (p for p in listed_points() if p.startswith("export.")):
            if point == "export.unlink":  # only an export that fails removes files
                fault = f"point=export.fsync;nth=2;action=errno:EIO|point={point};nth=2;action=kill9"
                cases.append((point, fault, (1, 1), other_layout((1, 1), point)))
                continue
            nth = (1,) if point in ("export.enter", "export.exit", "export.pre_rename", "export.post_rename") else (1, 4)
            nth = (1, 2) if point == "export.fsync_dir" else nth
            nth = (1,) if point == "export.flush" else nth
            for n in nth:
                name = f"{point} {n}"
                cases.append((name, f"point={point};nth={n};action=kill9", (1, 1), other_layout((1, 1), name)))
        self.all_of(cases)


if __name__ == "__main__":
    main()
