#!/usr/bin/env python3
"""The rate at which a run loads its model beside plain reading: a checkpoint in bfloat16 of 10 GB (the shape of Qwen2.5-7B with fewer
layers, random weights) whose pages are given back before each reading; in turn, two threads that `pread` every byte of it in blocks of
8 MiB, and the phase `load` of `espalier run`, on as many threads.

  load_rate.py --espalier build/release/bin/espalier [--gigabytes 10] [--rounds 3] [--cached] [--work DIR] [--out load_rate.json]

--cached leaves the files in the page cache, where they fit. The work directory needs room for the checkpoint, the machine memory for the
model. The plain reading is done twice: into the same few blocks again and again, and into memory that it fills, as a load must. Prints the
rates of every round and the ratios of their medians; nothing is asserted about time.
"""

import argparse
import concurrent.futures
import json
import mmap
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "oracle"), str(HERE.parent / "models")]
import export_rate  # noqa: E402
import token_files  # noqa: E402
import torch  # noqa: E402

THREADS, BLOCK = 2, 8 << 20


def make_checkpoint(folder, gigabytes):
    """Files with the same 64 MiB of weights again and again; returns their sizes by path."""
    _, _ = export_rate.make_checkpoint(folder, gigabytes)
    torch.manual_seed(0)
    weights = (0.02 * torch.randn(32 << 20)).to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
    sizes = {}
    for path in sorted(folder.glob("*.safetensors")):
        sizes[path] = path.stat().st_size
        with open(path, "r+b") as file:
            at = 8 + int.from_bytes(file.read(8), "little")
            file.seek(at)
            while at < sizes[path]:
                at += file.write(weights[: sizes[path] - at])
            os.fsync(file.fileno())
    return sizes


def give_back(sizes):
    for path in sizes:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_of_reading(sizes, keep):
    """Into the same blocks again and again, or so that all of it is in memory at the end."""
    parts = [(path, begin) for path, size in sizes.items() for begin in range(0, size, BLOCK)]
    files = {path: os.open(path, os.O_RDONLY) for path in sizes}
    memory = memoryview(mmap.mmap(-1, BLOCK * (len(parts) if keep else THREADS), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    def read(thread):
        total = 0
        for number in range(thread, len(parts), THREADS):
            path, begin = parts[number]
            place = BLOCK * (number if keep else thread)
            total += os.preadv(files[path], [memory[place : place + BLOCK]], begin)
        return total

    begin = time.time()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(read, range(THREADS))) == sum(sizes.values())
    seconds = time.time() - begin
    for file in files.values():
        os.close(file)
    return seconds


def seconds_of_loading(program, config, run_dir):
    done = subprocess.run([program, "--quiet", "run", config, "--run-dir", run_dir, "--fast-verify"], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": str(THREADS)})  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[0])["seconds"]["load"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--espalier", required=True)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cached", action="store_true")
    parser.add_argument("--work", type=pathlib.Path, help="a directory on the disk that is measured")
    parser.add_argument("--out", type=pathlib.Path, help="JSON of all figures")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="espalier-load-rate-", dir=a.work) as name:
        work = pathlib.Path(name)
        sizes = make_checkpoint(work / "model", a.gigabytes)
        token_files.random_plain(work / "tokens.h5", 2, 16, export_rate.CONFIG["vocab_size"], 0)
        config = work / "config.yaml"
        config.write_text(json.dumps({
            "model": {"path": str(work / "model"), "dtype": "bfloat16"}, "device": "cpu", "execution": {"order": "sample_major"},
            "calibration": {"domains": [{"name": "random", "tokens": str(work / "tokens.h5")}], "micro_batch_tokens": 16},
            "importance": {"criterion": "random"}, "prune": {"target": 0.01, "iterations": 1, "protect": {"first_layers": 0, "last_layers": 0}},
            "checkpoint": {"keep_last": 1, "keep_every": 0}}))  # fmt: skip
        size = sum(sizes.values())
        print(f"{platform.node()}: {os.cpu_count()} cores; {size / 1e9:.1f} GB in {len(sizes)} files", flush=True)
        rounds = []
        for number in range(a.rounds):
            one = {}
            for key, seconds in (("read", lambda: seconds_of_reading(sizes, keep=False)),
                                 ("kept", lambda: seconds_of_reading(sizes, keep=True)),
                                 ("load", lambda: seconds_of_loading(a.espalier, config, work / f"run-{number}"))):  # noqa: B023
                if not a.cached:
                    give_back(sizes)
                one[key] = size / seconds()
            rounds.append(one)
            print(f"round {number + 1}: read {one['read'] / 1e9:.3f} GB/s, and kept {one['kept'] / 1e9:.3f} GB/s, loaded "
                  f"{one['load'] / 1e9:.3f} GB/s", flush=True)
    medians = {key: statistics.median(row[key] for row in rounds) for key in ("read", "kept", "load")}
    ratios = {key: medians["load"] / medians[key] for key in ("read", "kept")}
    print(f"ratio of the medians: {ratios['kept']:.2f} of reading that keeps the bytes, {ratios['read']:.2f} of reading alone")
    if a.out:
        a.out.write_text(json.dumps({"bytes": size, "rounds": rounds, "ratios": ratios}, indent=2) + "\n")


if __name__ == "__main__":
    main()
