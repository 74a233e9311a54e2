#!/usr/bin/env python3
"""Reads many model directories in one process of one version of transformers and writes what came out.

  [PYTHONPATH=DIR] HF_HOME=DIR read_variants.py TOKENS OUT < directories, one per line

OUT/NAME.pt of each directory NAME holds {"logits": float64 [rows, tokens, vocabulary]} or {"error": why there are none}. A
model of which transformers drew a part at random was not read: that is an error too.
"""

import pathlib
import resource
import sys

# Where peft is installed, transformers wants the adapter that a config file beside full weights names.
sys.modules["peft"] = None

import torch
import transformers

import reference


MEMORY = 8 << 30  # of address space; torch alone maps some


def read(path, tokens):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float64, attn_implementation="sdpa", output_loading_info=True, local_files_only=True)
    drawn = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if drawn:
        raise ValueError(f"drawn at random: {', '.join(drawn)}")
    reference.widen(model)
    with torch.no_grad():
        return model.eval()(tokens).logits.double()


def main():
    tokens, out = torch.load(sys.argv[1]), pathlib.Path(sys.argv[2])
    torch.set_num_threads(1)
    # A size that config.json gets wrong must be an error, not the end of the machine's memory.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for line in sys.stdin:
        path = pathlib.Path(line.rstrip("\n"))
        try:
            answer = {"logits": read(path, tokens)}
        except Exception as error:  # whatever a damaged directory makes of the library
            answer = {"error": f"{type(error).__name__}: {error}"}
        torch.save({"version": transformers.__version__, **answer}, out / f"{path.name}.pt")


if __name__ == "__main__":
    main()
