"""A token file that is cut, of another type or with an id outside the vocabulary is refused with 65 and its first wrong
place.

Spoils sizes, types, lengths, masks and single ids, in one file and in two at once, at one and two ranks; a file of the
other byte order must give the same plan.
"""

import pathlib
import sys

import h5py
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from spoilt import Row, Spoilt
from workbench import digest_of, main, run, write_tokens


def ids_beyond_vocabulary(row):
    def spoil(file):
        file["tokens"][3, 2] = 64

    row.tokens(spoil)


def negative_ids(row):
    def spoil(file):
        file["tokens"][0, 0] = -1

    row.tokens(spoil, "eval.h5")


def wrong_ids_in_two_files(row):
    ids_beyond_vocabulary(row)
    negative_ids(row)


def evaluation_row_of_one_token(row):
    write_tokens(row.folder / "eval.h5", rows=4, seed=3, lengths=[12, 1, 12, 12])


def wrong_row_of_a_later_draw(row):
    """Row 5 is drawn by some iterations only."""

    def spoil(file):
        file["tokens"][5, 0] = 64

    row.tokens(spoil, "a.h5")
    row.set(calibration={"resample": True, "domains": [{"name": "a", "tokens": "a.h5", "sequences": 2}]})


def mask_of_other_numbers(row):
    mask = np.ones((6, 12), dtype=np.uint8)
    mask[1, 3] = 2
    write_tokens(row.folder / "a.h5", seed=1, mask=mask)
    row.set(calibration={"domains": [{"name": "a", "tokens": "a.h5", "objective": "sft"}]})


def wrong_format(row):
    row.tokens(lambda file: file.attrs.__setitem__("format", "other-tokens"))


def wrong_version(row):
    row.tokens(lambda file: file.attrs.__setitem__("version", 2))


def text_for_tokens(row):
    (row.folder / "b.h5").write_text("these are words\n" * 100)


def truncated_tokens(row):
    path = row.folder / "b.h5"
    path.write_bytes(path.read_bytes()[:-700])


def float_tokens(row):
    def spoil(file):
        del file["tokens"]
        file["tokens"] = np.zeros((5, 12))

    row.tokens(spoil)


def lengths_do_not_fit(row):
    def spoil(file):
        del file["length"]
        file["length"] = np.full(4, 12, dtype=np.int32)

    row.tokens(spoil)


def length_beyond_row(row):
    def spoil(file):
        file["length"][2] = 13

    row.tokens(spoil)


def sft_without_mask(row):
    row.set(calibration={"domains": [{"name": "a", "tokens": "a.h5", "objective": "sft"}]})


def empty_mask(row):
    mask = np.ones((6, 12), dtype=np.uint8)
    mask[4] = 0
    write_tokens(row.folder / "a.h5", seed=1, mask=mask)
    row.set(calibration={"domains": [{"name": "a", "tokens": "a.h5", "objective": "sft"}]})


TABLE = [
    (ids_beyond_vocabulary, 65, ["b.h5", "/tokens[3, 2] = 64"], False),
    (negative_ids, 65, ["eval.h5", "/tokens[0, 0] = -1"], False),
    (wrong_ids_in_two_files, 65, ["b.h5", "/tokens[3, 2] = 64", "eval.h5", "/tokens[0, 0] = -1"], False),
    (evaluation_row_of_one_token, 65, ["eval.h5", "row 1"], False),
    (wrong_row_of_a_later_draw, 65, ["a.h5", "/tokens[5, 0] = 64"], False),
    (mask_of_other_numbers, 65, ["a.h5", "/loss_mask[1, 3] = 2"], False),
    (wrong_format, 65, ["b.h5", "espalier-tokens"], False),
    (wrong_version, 65, ["b.h5", "version 2"], False),
    (text_for_tokens, 65, ["b.h5"], False),
    (truncated_tokens, 65, ["b.h5"], False),
    (float_tokens, 65, ["b.h5", "/tokens"], False),
    (lengths_do_not_fit, 65, ["b.h5", "/length"], False),
    (length_beyond_row, 65, ["b.h5", "/length[2] = 13"], False),
    (sft_without_mask, 65, ["a.h5", "loss_mask"], False),
    (empty_mask, 65, ["a.h5", "row 4"], False),
]


class BadTokenFile(Spoilt):
    def test_table(self):
        self.every_row(TABLE)

    def test_every_length(self):
        """A file that is cut anywhere, or empty: never a signal, always this file's name."""
        self.bench.config()
        whole = (self.bench.folder / "b.h5").read_bytes()
        for number, length in enumerate((0, 1, 7, 512, len(whole) // 2, len(whole) // 2 + 1, len(whole) - 1)):
            with self.subTest(length=length):
                row = Row(self.folder / str(number), self.bench.folder)
                (row.folder / "b.h5").write_bytes(whole[:length])
                result = run("run", row.config, "--run-dir", row.run_dir)
                self.fails(result, 65, ["b.h5"])
                self.assertFalse(row.run_dir.exists())

    def test_the_other_byte_order(self):
        """Such a file is right: its numbers are what counts, not how they lie."""
        self.bench.config()
        digests = []
        for order in "<>":
            row = Row(self.folder / ("little" if order == "<" else "big"), self.bench.folder)
            with h5py.File(row.folder / "b.h5", "r+") as file:
                for name in ("tokens", "length"):
                    values = file[name][()]
                    del file[name]
                    file.create_dataset(name, data=values.astype(f"{order}i4"))
            self.succeeds("run", row.config, "--run-dir", row.run_dir)
            digests.append(digest_of(row.run_dir))
        self.assertEqual(digests[0], digests[1])


if __name__ == "__main__":
    main()
