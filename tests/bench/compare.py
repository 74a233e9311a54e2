#!/usr/bin/env python3
"""Compares two results of `espalier bench --json` and names every figure that got slower.

  compare.py OLD.json NEW.json [--limit 5]

A rate that fell, or a time that rose, by more than the limit (in percent) is a line of its own. Passes are matched by criterion,
order, tensor and data ranks; phases count from a twentieth of their pass on. Where machine, shape or work differ that is said,
since the figures then tell no regression.

Exit codes: 0 nothing got slower, 1 something did or is no longer there, 64 wrong usage, 65 a file is not a bench's result.
"""

import argparse
import json
import math
import sys

MACHINE = ("name", "device", "threads", "ranks")
SHAPE = ("hidden", "channels", "layers", "heads", "kv_heads", "head_dim", "vocabulary", "dtype", "parameters")
WORK = ("sequences", "sequence_tokens", "micro_batch_tokens", "recompute")
RATES = ("tokens_per_s", "model_flops_per_s", "hardware_flops_per_s", "gemm_flops_per_s", "gemm_fraction")


class NoResult(Exception):
    pass


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.print_usage(sys.stderr)
        self.exit(64, f"{self.prog}: {message}\n")


def read(path):
    try:
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        figures(result)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise NoResult(f"{path} is not what `espalier bench --json` writes ({type(error).__name__}: {error})") from None
    return result


def positive(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{value!r} is no positive number")
    return float(value)


def name_of(one):
    return f"{one['criterion']}, {one['order']}, tensor {int(one['tensor'])} x data {int(one['data'])}"


def figures(result):
    """Name -> (value, whether more is better)."""
    found = {"gemm_flops_per_s": (positive(result["gemm_flops_per_s"]), True)}
    for one in result["passes"]:
        name = name_of(one)
        seconds = positive(one["seconds"])
        found[f"{name}: seconds"] = (seconds, False)
        for key in RATES:
            if key in one or key in RATES[:3]:
                found[f"{name}: {key}"] = (positive(one[key]), True)
        for phase, value in one["seconds_by_phase"].items():
            if float(value) >= seconds / 20:
                found[f"{name}: seconds_by_phase.{phase}"] = (float(value), False)
    for one in result["collectives"]:
        found[f"collective {one['group']} of {int(one['bytes'])} bytes: seconds"] = (positive(one["seconds"]), False)
    return found


def differences(old, new):
    """Sentences on what makes the two hard to compare."""
    said = []
    for part, keys in (("machine", MACHINE), ("shape", SHAPE)):
        for key in keys:
            before, after = old[part].get(key), new[part].get(key)
            if before != after:
                said.append(f"{part} differs: {key} {before} -> {after}")
    passes = {name_of(one): one for one in old["passes"]}
    for one in new["passes"]:
        before = passes.get(name_of(one))
        for key in WORK if before else ():
            if before.get(key) != one.get(key):
                said.append(f"work differs: {name_of(one)}: {key} {before.get(key)} -> {one.get(key)}")
    return said


def slower(old, new, limit):
    """Lines on figures of `old` that `new` is worse at or lacks."""
    before, after = figures(old), figures(new)
    lines = []
    for name, (was, more_is_better) in before.items():
        if name not in after:
            # A phase that is short enough by now is not told.
            if ": seconds_by_phase." not in name:
                lines.append(f"gone: {name}")
            continue
        now = after[name][0]
        change = was / now if more_is_better else now / was
        if change > 1 + limit / 100:
            lines.append(f"slower by {100 * (change - 1):.1f} %: {name} {was:.6g} -> {now:.6g}")
    return lines


def main(arguments=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--limit", type=float, default=5.0, help="percent (default: 5)")
    a = parser.parse_args(arguments)
    if not 0 <= a.limit < math.inf:
        parser.error("--limit is a percentage from 0 on")
    try:
        old, new = read(a.old), read(a.new)
        notes, lines = differences(old, new), slower(old, new, a.limit)
    except NoResult as error:
        print(error, file=sys.stderr)
        return 65
    for line in notes + lines:
        print(line)
    if not lines:
        print(f"nothing got slower by more than {a.limit:g} % ({len(figures(old))} figures)")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
