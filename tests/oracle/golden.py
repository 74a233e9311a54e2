#!/usr/bin/env python3
"""Writes golden.h5: losses and scores of the committed model from transformers + autograd in float64.

  .venv/bin/python tests/oracle/golden.py

test_golden.py compares espalier with it where transformers cannot be installed. Never written from espalier.
"""

import pathlib

import h5py
import numpy

HERE = pathlib.Path(__file__).resolve().parent
MODEL = HERE.parent / "models" / "tri-domain-qwen2"
GOLDEN = HERE / "golden.h5"
CRITERIA = ("taylor", "taylor_gate", "taylor_gate_sample", "magnitude")
UNITS = ("query_head", "kv_group")
ROWS, WINDOW, VOCABULARY = 4, 24, 1024


def tokens():
    """Ids that anybody can make again."""
    place = numpy.arange(ROWS * WINDOW, dtype="int64").reshape(ROWS, WINDOW)
    return (place * 7919 + place // WINDOW * 104729 + 17) % VOCABULARY


def main():
    import torch
    import transformers

    import reference
    import token_files

    torch.set_num_threads(1)
    path = HERE / "golden-tokens.h5"
    token_files.write(path, tokens(), VOCABULARY)
    with reference.quiet():
        model = reference.load(MODEL, torch.float64)
    with h5py.File(GOLDEN, "w") as file:
        file.attrs["transformers"] = str(transformers.__version__)
        file.attrs["torch"] = str(torch.__version__)
        for criterion in CRITERIA:
            for unit in UNITS:
                raw, losses = reference.raw_scores(model, [reference.Domain(path)], criterion, unit)
                for kind, values in raw.items():
                    file.create_dataset(f"{criterion}/{unit}/{kind}", data=values.numpy(), compression="gzip")
                file[f"{criterion}/{unit}"].attrs["loss"] = losses[0]
    path.unlink()


if __name__ == "__main__":
    main()
