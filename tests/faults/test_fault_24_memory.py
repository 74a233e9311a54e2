"""What does not fit into memory is refused with 69 before anything is loaded, with the smallest changes that fit; memory that
runs out later, on one rank, ends them all with 69.

The address space of a process is limited to less than its pass needs, alone and on two ranks, and the first change that the
message offers is made, under the same limit; an allocation fails on one rank, at points from loading to saving.
"""

import json
import pathlib
import re
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
import memory_table
from interrupted import SMALL, frozen
from lone_failure import LAYOUTS, OneRankAlone
from workbench import PROGRAM, Case, Running, main, run, write_tokens

GIB = 2**30
FORECAST = r"memory   at least ([\d.]+) GiB a rank: .*; ([\d.]+) GiB free for each of (\d) rank"
END = r"memory +([\d.]+) GiB a rank forecast, peak ([\d.]+) GiB"
REFUSAL = r"not enough memory on \S+: a rank needs ([\d.]+) GiB and can have ([\d.]+) \(exit 69\)"


class MemoryEstimate(Case):
    """Small weights and large micro-batches: what a pass holds is nearly all that is needed."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        write_tokens(cls.bench.folder / "long.h5", rows=4096, length=64, seed=5)
        cls.config = cls.bench.config(
            model={"path": "model", "dtype": "float32"},
            calibration={"domains": [{"name": "long", "tokens": "long.h5"}], "micro_batch_tokens": 262144},
            prune={"iterations": 1},
            evaluation={"perplexity": []},
            execution={"order": "sample_major"},
        )

    def held_at_load(self, name, ranks=1, tensor=1):
        """Bytes of address space of the largest rank that is about to load, and GiB that its pass needs."""
        arguments = ["run", self.config, "--run-dir", self.folder / name, "--tensor", tensor]
        running = Running(arguments, ranks, {"ESPALIER_FAULT": "point=load.enter;action=stop"})
        sizes = []
        for pid in frozen(running, ranks):
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
            sizes.append(int(re.search(r"VmSize:\s+(\d+)", status).group(1)) * 1024)
        running.kill()
        said = running.result(None).err
        need, _, sharing = re.search(FORECAST, said).groups()
        self.assertEqual(int(sharing), ranks, said)
        return max(sizes), float(need)

    def test_refused_and_mended(self):
        size, need = self.held_at_load("size")
        limited = ["prlimit", f"--as={int(size + 0.9 * need * GIB)}"]
        run_dir = self.folder / "limited"
        refused = run("run", self.config, "--run-dir", run_dir, prefix=limited)
        self.assertEqual(refused.code, 69, refused)
        needed, free = (float(number) for number in re.search(REFUSAL, refused.err).groups())
        self.assertAlmostEqual(needed, need, delta=0.01)
        self.assertLess(free, needed)
        self.assertNotIn("iter 0", refused.err, "nothing was loaded")
        change = re.search(r"(calibration\.micro_batch_tokens): (\d+)", refused.err)
        self.assertIsNotNone(change, refused)
        self.succeeds("run", self.config, "--run-dir", run_dir, "--set", "=".join(change.groups()), prefix=limited)

    def test_ranks_of_a_node_share_its_memory(self):
        size, need = self.held_at_load("size", 2, 2)
        # Enough for one of the two.
        limit = int(size + 1.5 * need * GIB)
        launcher = Running(["run", self.config, "--run-dir", self.folder / "two", "--tensor", 2], 2,
                           prefix=["prlimit", f"--as={limit}"])
        refused = launcher.wait()
        self.assertEqual(refused.code, 69, refused)
        self.assertEqual(len(re.findall(REFUSAL, refused.err)), 1, refused)
        self.assertIn("2 ranks share", refused.err)

    def test_score_and_eval_look_too(self):
        size, need = self.held_at_load("size")
        limited = ["prlimit", f"--as={int(size + 0.5 * need * GIB)}"]
        refused = run("score", self.config, "--out", self.folder / "s.h5", prefix=limited)
        self.assertEqual(refused.code, 69, refused)
        self.assertRegex(refused.err, REFUSAL)
        long = self.bench.config("long", evaluation={"perplexity": [{"name": "long", "tokens": "long.h5"}]},
                                 calibration={"micro_batch_tokens": 262144}, model={"path": "model", "dtype": "float32"},
                                 execution={"order": "sample_major"})
        refused = run("eval", long, prefix=["prlimit", f"--as={int(size + 0.2 * need * GIB)}"])
        self.assertEqual(refused.code, 69, refused)
        self.assertRegex(refused.err, REFUSAL)


class Forecast(Case):
    """What is said before a run is what it takes."""

    model = {"layers": 8, "hidden": 512, "heads": 8, "kv_heads": 4, "head_dim": 64, "channels": 2048, "vocab": 4096}

    def config(self, name, device="cpu", **execution):
        write_tokens(self.bench.folder / "rows.h5", rows=8, length=128, vocab=4096, seed=1)
        return self.bench.config(
            name,
            device=device,
            model={"path": "model", "dtype": "float32"},
            calibration={"domains": [{"name": "rows", "tokens": "rows.h5"}], "micro_batch_tokens": 512},
            importance={"criterion": "taylor"},
            prune={"target": 0.2, "iterations": 1},
            evaluation={"perplexity": []},
            execution=execution,
        )

    def test_it_is_what_the_run_takes(self):
        # What the process that starts a program once took is not the program's.
        del (bytearray(b"x") * 2**30)[:]
        device = "cpu" if shutil.which("nvidia-smi") else "auto"
        for order, recompute, ranks in (("sample_major", "all", 1), ("sample_major", "all", 2), ("sample_major", "auto", 1), ("layer_major", "auto", 2)):
            with self.subTest(order=order, recompute=recompute, ranks=ranks):
                config = self.config("one", device if recompute == "auto" else "cpu", order=order, recompute=recompute)
                layout = ("--tensor", ranks)
                result = self.succeeds("run", config, "--run-dir", self.folder / f"{order}-{recompute}-{ranks}", *layout, ranks=ranks)
                forecast, peak = map(float, re.search(END, result.text).groups())
                # What the heap keeps is a guess that counts for something beside so small a model.
                self.assertLess(abs(forecast - peak), 0.12, result.text)
                plan = json.loads(self.succeeds("plan", config, "--json", *layout).out)
                said = float(re.search(r"; expected ([\d.]+) with", result.text)[1])
                self.assertAlmostEqual(said, forecast, delta=0.06)
                if recompute == "all":
                    self.assertAlmostEqual(plan["expected_bytes"] / GIB, forecast, delta=0.006)

    def test_graphs_that_are_kept(self):
        few, many = (json.loads(self.succeeds("plan", self.config("few", order="sample_major"), "--memory", gib, "--json").out) for gib in (0.8, 8))
        self.assertEqual(few["total_bytes"], many["total_bytes"])
        self.assertLess(few["kept_graph_bytes"], many["kept_graph_bytes"])
        for plan in (few, many):
            tensors = plan["total_bytes"] + plan["kept_graph_bytes"]
            self.assertEqual(plan["expected_bytes"], tensors + tensors // 8 + 192 * 2**20)
        text = self.succeeds("plan", self.config("few", order="sample_major"), "--memory", 8).out
        self.assertRegex(text, r"; expected [\d.]+ with graphs that are kept and the program; micro-batches")
        text = self.succeeds("plan", self.config("none", recompute="all", order="sample_major"), "--memory", 8).out
        self.assertRegex(text, r"; expected [\d.]+ with the program; micro-batches")


class Plan(Case):
    """The same arithmetic without weights, data or ranks."""

    def plan(self, *arguments, code=0):
        result = run("plan", self.config, *arguments, "--json")
        self.assertEqual(result.code, code, result)
        return json.loads(result.out)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = cls.class_folder / "qwen2.5-32b"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 5120,
            "intermediate_size": 27648, "num_attention_heads": 40, "num_key_value_heads": 8, "num_hidden_layers": 64,
            "vocab_size": 152064, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
            "tie_word_embeddings": False, "torch_dtype": "bfloat16", "hidden_act": "silu", "use_sliding_window": False,
        }))
        cls.config = cls.bench.config(
            model={"path": str(folder), "dtype": "as_stored"},
            calibration={"domains": [{"name": "web", "tokens": "absent.h5"}], "micro_batch_tokens": 8192},
        )

    def test_a_32b_model(self):
        whole = self.plan()
        # 32,763,876,352 parameters; 2 x 63 half layers and two more of 8,192 x 5,120.
        self.assertEqual(whole["weight_bytes"], 2 * 32763876352)
        self.assertEqual(whole["hidden_state_bytes"], (2 * 64 + 2) * 8192 * 5120 * 2)
        eighth = self.plan("--tensor", 8, "--ranks", 64, "--memory", 80)
        self.assertTrue(eighth["fits"])
        self.assertEqual(eighth["hidden_state_bytes"], whole["hidden_state_bytes"], "every rank holds them in full")
        self.assertAlmostEqual(eighth["weight_bytes"] / whole["weight_bytes"], 1 / 8, delta=0.001)

    def test_what_would_fit(self):
        whole = ("--set", "execution.order=sample_major")
        refused = self.plan("--tensor", 2, "--memory", 80, *whole, code=69)
        self.assertFalse(refused["fits"])
        self.assertTrue(any(change.startswith("execution.order: layer_major") for change in refused["fitting_changes"]), refused)
        chosen = self.plan("--tensor", 2, "--memory", 80)
        self.assertEqual((chosen["fits"], chosen["order"]), (True, "layer_major"))
        self.assertTrue(any(change.startswith("--tensor 4") for change in refused["fitting_changes"]), refused)
        self.assertTrue(any("taylor_gate" in change for change in refused["fitting_changes"]), refused)
        self.plan("--tensor", 4, "--memory", 80)
        self.plan("--tensor", 2, "--set", "importance.criterion=taylor_gate", "--memory", 80)

    def test_a_refit_is_told_too(self):
        """Two streams of the rows of the refit, a dense layer, and the sums of the widest matrix that is left."""
        self.assertNotIn("refit", self.plan())
        refit = self.plan("--set", "refit.enabled=true")["refit"]
        layer = 2 * 5120 * 5120 + 2 * 5120 * 1024 + 3 * 5120 * 27648 + 2 * 5120 + 5120 + 2 * 1024
        self.assertEqual(refit["dense_layer_bytes"], 2 * layer)
        self.assertEqual(refit["pruned_layer_bytes"], 0, "it is held with all of the model")
        self.assertEqual(refit["stream_bytes"], 2 * 8192 * 5120 * 2)
        # Protected layers keep all channels.
        self.assertEqual(refit["sums_bytes"], 8 * (5 * 27648**2 + 8 * 27648 * 5120))
        open_layers = ("--set", "prune.protect.first_layers=0", "--set", "prune.protect.last_layers=0", "--set", "prune.target=0.5")
        half = self.plan("--set", "refit.enabled=true", *open_layers, "--tensor", 2, "--ranks", 4)["refit"]
        self.assertEqual(half["sums_bytes"], 8 * (6 * 13824**2 + 8 * 13824 * 5120))
        self.assertEqual(half["dense_layer_bytes"], layer)
        # Of gate and up with all hidden inputs, where these are more than the channels that are left.
        eighth = (*open_layers[:-1], "prune.target=0.875")
        every = self.plan("--set", "refit.enabled=true", "--set", "refit.matrices=all", *eighth)["refit"]
        self.assertEqual(every["sums_bytes"], 8 * (8 * 5120**2 + 8 * 5120 * 3456))
        by_layer = ("--set", "refit.enabled=true", "--set", "execution.order=layer_major", *open_layers, "--tensor", 2, "--ranks", 4)
        layers = self.plan(*by_layer)["refit"]
        # Half of the heads and channels fall, and no KV head that one of them reads.
        gone = 2 * 5120 * 2560 + 2560 + 3 * 5120 * 13824
        self.assertEqual(layers["pruned_layer_bytes"], layer - gone)
        outside = 2 * 152064 * 5120 + 5120
        self.assertEqual((half["held_bytes"], layers["held_bytes"]), (outside + 64 * (layer - gone), outside))
        self.assertEqual(layers["total_bytes"], half["total_bytes"] - 63 * (layer - gone))
        self.assertIn("; beside what lies outside the layers", run("plan", self.config, *by_layer).out)
        said = run("plan", self.config, "--set", "refit.enabled=true", "--memory", 16, *open_layers)
        self.assertIn("refit    about", said.out)
        self.assertIn("; for rows as long as a micro-batch, since token files are not there", said.out)

    def test_the_order_is_one_that_the_refit_has_room_in_too(self):
        passes = ("--set", "importance.criterion=taylor_gate", "--set", "prune.protect.first_layers=0", "--set",
                  "prune.protect.last_layers=0", "--set", "prune.target=0.5", "--set", "calibration.micro_batch_tokens=1024")
        refit = ("--set", "refit.enabled=true")
        whole = self.plan(*passes, *refit, "--tensor", 8, "--ranks", 8, "--set", "execution.order=sample_major")
        self.assertGreater(whole["refit"]["total_bytes"], whole["total_bytes"])
        room = ("--tensor", 8, "--ranks", 8, "--memory", whole["refit"]["total_bytes"] / GIB)
        self.assertEqual(self.plan(*passes, *room)["order"], "sample_major")
        chosen = self.plan(*passes, *refit, *room)
        self.assertEqual((chosen["fits"], chosen["order"]), (True, "layer_major"))
        self.assertRegex(run("plan", self.config, *passes, *refit, *room).out,
                         r"order    layer_major, .*would not hold sample_major \([0-9.]+ GiB, its refit [0-9.]+\)")

    def test_the_table_of_the_documents(self):
        self.assertEqual(memory_table.table_in_page(), memory_table.table(PROGRAM), "tests/support/memory_table.py --write")

    def test_ranks_that_form_no_groups(self):
        result = run("plan", self.config, "--ranks", 6, "--tensor", 4)
        self.assertEqual(result.code, 69, result)
        self.assertIn("6 ranks with --tensor 4", result.err)


class OnOneRank(OneRankAlone):
    def test_memory_that_runs_out_on_one_rank(self):
        config = self.bench.config(**SMALL)
        points = ["load.enter", "forward.enter", "backward.exit", "reduce.enter", "slice.enter", "save.write"]
        cases = [(f"{p} memory", config, LAYOUTS[n % 2], f"point={p};rank={0 if p == 'save.write' else n % 2};action=alloc-fail",
                  69, "memory ran out") for n, p in enumerate(points)]
        self.all_of(cases)

    def test_the_phase_is_named(self):
        """In the message and in what is left in status.json, on one rank and on one of two."""
        config = self.bench.config(**SMALL)
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                run_dir = self.folder / f"phase{ranks}"
                fault = {"ESPALIER_FAULT": f"point=forward.enter;rank={ranks - 1};iter=1;action=alloc-fail"}
                result = run("run", config, "--run-dir", run_dir, ranks=ranks, extra=fault)
                self.assertEqual(result.code, 69, result)
                self.assertRegex(result.err, "where +phase calibrate" if ranks == 1 else "where +rank 1, phase calibrate")
                status = json.loads((run_dir / "status.json").read_text())
                self.assertEqual((status["state"], status["phase"]), ("failed", "calibrate"))
                self.assertIn("phase calibrate", run("status", run_dir).text)


if __name__ == "__main__":
    main()
