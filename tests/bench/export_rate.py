#!/usr/bin/env python3
"""The rate of an export beside the disk's own: a sparse checkpoint in bfloat16 of 10 GB (the shape of Qwen2.5-7B with fewer
layers, its files all holes) and a plan that takes a third of its query heads and channels, scattered; in turn, a file of as many
bytes is written front to back past the cache (where the file system can) and flushed, and the plan is exported.

  export_rate.py --espalier build/release/bin/espalier [--gigabytes 10] [--rounds 3] [--work DIR] [--out export_rate.json]

The work directory (default: the temporary one) needs room for one export. Prints both rates of every round and the ratio of their
medians; nothing is asserted about time.
"""

import argparse
import errno
import hashlib
import json
import mmap
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "oracle"), str(HERE.parent / "support")]
import plan_files  # noqa: E402
import sparse_checkpoint  # noqa: E402

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "hidden_act": "silu",
}  # fmt: skip
SHARD_BYTES = 4_000_000_000
BLOCK = mmap.mmap(-1, 16 << 20)  # page-aligned, as O_DIRECT wants it
BLOCK.write(os.urandom(16 << 20))


def layers_for(gigabytes):
    """As many layers as reach the size."""
    rest = 2 * sparse_checkpoint.parameters_of(CONFIG | {"num_hidden_layers": 0})[0]
    per_layer = 2 * sparse_checkpoint.parameters_of(CONFIG | {"num_hidden_layers": 1})[1]
    return max(1, -(-(int(gigabytes * 1e9) - rest) // per_layer))


def make_checkpoint(folder, gigabytes):
    """Returns the number of layers and of bytes."""
    layers = layers_for(gigabytes)
    return layers, sparse_checkpoint.make(folder, CONFIG | {"num_hidden_layers": layers}, SHARD_BYTES)


def write_plan(path, folder, layers):
    config = CONFIG | {"num_hidden_layers": layers}
    removed = plan_files.draw(config, "query_head", 1, share=1 / 3)
    plan_files.write(path, removed, "query_head", hashlib.sha256((folder / "config.json").read_bytes()).hexdigest())


def open_past_the_cache(path):
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(path, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags)


def rate_of_disk(path, size):
    begin = time.time()
    file = open_past_the_cache(path)
    written = 0
    while written < size:
        written += os.write(file, BLOCK)
    os.fsync(file)
    os.close(file)
    seconds = time.time() - begin
    path.unlink()
    return written / seconds


def seconds_of_export(program, plan, model, out):
    """And the bytes that it wrote."""
    begin = time.time()
    done = subprocess.run([program, "--quiet", "export", plan, "--model", model, "--format", "exact", "--out", out],
                          capture_output=True, text=True)
    seconds = time.time() - begin
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    size = sum(file.stat().st_size for file in out.iterdir())
    shutil.rmtree(out)
    return seconds, size


def main():
    parser = argparse.ArgumentParser(description="The rate of an export beside the disk's own.")
    parser.add_argument("--espalier", required=True)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=pathlib.Path, help="a directory on the disk that is measured")
    parser.add_argument("--out", type=pathlib.Path, help="JSON of all figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="espalier-export-rate-", dir=arguments.work) as name:
        work = pathlib.Path(name)
        layers, size = make_checkpoint(work / "model", arguments.gigabytes)
        write_plan(work / "plan.h5", work / "model", layers)
        print(f"{platform.node()}: {os.cpu_count()} cores; {layers} layers, {size / 1e9:.1f} GB", flush=True)
        _, written = seconds_of_export(arguments.espalier, work / "plan.h5", work / "model", work / "out")
        rounds = []
        for number in range(arguments.rounds):
            disk = rate_of_disk(work / "file", written)
            seconds, again = seconds_of_export(arguments.espalier, work / "plan.h5", work / "model", work / "out")
            assert again == written, (again, written)
            rounds.append({"disk": disk, "export": written / seconds})
            print(f"round {number + 1}: {written / 1e9:.2f} GB, disk {disk / 1e9:.3f} GB/s, export {written / seconds / 1e9:.3f} GB/s",
                  flush=True)
    medians = {key: statistics.median(row[key] for row in rounds) for key in ("disk", "export")}
    ratio = medians["export"] / medians["disk"]
    print(f"ratio of the medians: {ratio:.2f}")
    if arguments.out:
        arguments.out.write_text(json.dumps({"bytes": written, "rounds": rounds, "ratio": ratio}, indent=2) + "\n")


if __name__ == "__main__":
    main()
