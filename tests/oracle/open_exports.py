#!/usr/bin/env python3
"""Opens exports in one version of transformers, which takes seconds to load: once, and not for every export.

Each export is opened in a fork of its own, as a user opens it: what its code registers or changes in transformers must not
reach the next one.

  HF_HOME=DIR [PYTHONPATH=DIR] open_exports.py CHECKPOINT

opens the unpruned checkpoint, so that all that a model of the family needs is loaded, and answers {"transformers": VERSION}.
Then one JSON object per line on stdin, {"export", "form", "tokens", "out"}, and one per line as the answer, {"code"}: the
exit code of the fork, which wrote the logits to `out` if it is 0 and what went wrong to stderr if not.
"""

import json
import os
import sys
import traceback

import torch
import transformers


def load(path, form):
    model = transformers.AutoModelForCausalLM.from_pretrained(path, trust_remote_code=form == "exact", dtype=torch.float32)
    return model.eval()


def write_logits(export, form, tokens, out):
    with torch.no_grad():
        torch.save(load(export, form)(torch.load(tokens)).logits.double(), out)


def in_fork(request):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            write_logits(**request)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main():
    torch.set_num_threads(1)  # a fork has no threads but the one that forked
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    load(sys.argv[1], "uniform")
    print(json.dumps({"transformers": transformers.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps({"code": in_fork(json.loads(line))}), file=answers, flush=True)


if __name__ == "__main__":
    main()
