"""`espalier bench`, and `plan --bench`, which reads what it wrote: names, and numbers against arithmetic done here."""

import json
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
import workbench  # noqa: E402

LAYERS, HIDDEN, CHANNELS, HEADS, KV_HEADS, VOCABULARY = 3, 48, 80, 6, 2, 200
HEAD_DIM = HIDDEN // HEADS
SHAPE = f"hidden={HIDDEN},channels={CHANNELS},layers={LAYERS},heads={HEADS},kv_heads={KV_HEADS},vocabulary={VOCABULARY}"
PASS = {"criterion", "order", "recompute", "tensor", "data", "sequences", "sequence_tokens", "micro_batch_tokens", "seconds",
        "tokens_per_s", "model_flops_per_s", "hardware_flops_per_s", "peak_bytes", "seconds_by_phase"}
Q = O = HIDDEN * HEADS * HEAD_DIM
K = V = HIDDEN * KV_HEADS * HEAD_DIM
MLP = 3 * HIDDEN * CHANNELS
LAYER = Q + K + V + O + MLP


def flops(criterion, sequences, tokens):
    """(needed, forward once more) for a pass over everything, from the sizes."""
    per_weight = 2 * sequences * tokens
    head = 2 * sequences * (tokens - 1) * HIDDEN * VOCABULARY
    forward = per_weight * LAYERS * LAYER + head
    if criterion == "flap":
        return forward, 0
    # The projections of the first layer's attention are below the lowest gate.
    needed = forward + per_weight * (LAYERS * LAYER - Q - K - V) + head
    if criterion == "taylor":
        needed += per_weight * LAYERS * (Q + O + MLP)
    return needed, per_weight * LAYERS * LAYER


class OfShapes(unittest.TestCase):
    """No files at all."""

    maxDiff = None

    def setUp(self):
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def succeeds(self, *arguments, **options):
        done = workbench.run(*arguments, **options)
        self.assertEqual(done.code, 0, done)
        return done

    def measure(self, *arguments, **options):
        return json.loads(self.succeeds("bench", *arguments, "--json", **options).out)

    def check_pass(self, one, gemm, order="sample_major"):
        self.assertLessEqual(PASS, set(one))
        tokens = one["sequences"] * one["sequence_tokens"]
        self.assertAlmostEqual(one["tokens_per_s"] * one["seconds"], tokens, delta=1e-9 * tokens)
        self.assertGreaterEqual(one["hardware_flops_per_s"], one["model_flops_per_s"])
        self.assertAlmostEqual(one["gemm_fraction"], one["hardware_flops_per_s"] / one["gemm_flops_per_s"], places=12)
        self.assertEqual(one["order"], order)
        self.assertIn(one["recompute"], ("auto", "all") if order == "sample_major" else ("all",))
        self.assertEqual(one.get("boundaries"), "memory" if order == "layer_major" else None)
        self.assertEqual(one["micro_batch_tokens"] % one["sequence_tokens"], 0)
        self.assertIn(one["seconds"], one["seconds_of_each"])
        phases = one["seconds_by_phase"]
        self.assertLessEqual({"calibrate", "reduce"} | ({"load"} if order == "layer_major" else set()), set(phases))
        self.assertAlmostEqual(sum(one["seconds_by_kind"].values()), sum(phases.values()), delta=0.02 * one["seconds"] + 1e-3)
        self.assertGreater(one["peak_bytes"], one["forecast_bytes"] // 2)
        self.assertGreater(gemm, 0)

    def test_the_object(self):
        result = self.measure("--shape", SHAPE, "--sequences", "4", "--sequence-tokens", "16", "--repeat", "2")
        self.assertLessEqual({"machine", "shape", "gemm_flops_per_s", "passes", "collectives"}, set(result))
        machine = result["machine"]
        self.assertTrue(machine["name"])
        self.assertEqual((machine["threads"], machine["ranks"]), (1, 1))
        self.assertIn("libtorch", machine["libraries"])
        self.assertEqual(
            {k: result["shape"][k] for k in ("hidden", "channels", "layers", "heads", "kv_heads", "vocabulary", "dtype")},
            {"hidden": HIDDEN, "channels": CHANNELS, "layers": LAYERS, "heads": HEADS, "kv_heads": KV_HEADS,
             "vocabulary": VOCABULARY, "dtype": "float32"})
        self.assertEqual(result["collectives"], [])
        refit = result["refit"]
        self.assertEqual((refit["inputs"], refit["outputs"], refit["rows"]), (CHANNELS // 2, HIDDEN, result["gemm"]["rows"] // 2))
        for rate in ("sums_flops_per_s", "solving_flops_per_s", "sums_flops_per_processor_s", "solving_flops_per_processor_s"):
            self.assertGreater(refit[rate], 0)
        self.assertEqual([one["criterion"] for one in result["passes"]], ["taylor", "taylor_gate"])
        for one in result["passes"]:
            self.check_pass(one, result["gemm_flops_per_s"])
            self.assertEqual(len(one["seconds_of_each"]), 2)
            self.assertEqual((one["tensor"], one["data"], one["sequences"], one["sequence_tokens"]), (1, 1, 4, 16))
        gemm = result["gemm"]
        self.assertEqual(gemm["flops"] / gemm["sweeps"], 3 * 2 * gemm["rows"] * (LAYERS * LAYER + HIDDEN * VOCABULARY))
        self.assertAlmostEqual(result["gemm_flops_per_s"], gemm["flops"] / gemm["seconds"], delta=1)

    def test_counted_is_computed(self):
        for recompute in ("auto", "all"):
            for ranks, layout in ((1, ()), (2, ("--tensor", "2")), (2, ()), (4, ("--tensor", "2"))):
                result = self.measure(
                    "--shape", SHAPE, "--tokens", "80", "--sequence-tokens", "16", "--micro-batch-tokens", "32", "--criterion",
                    "taylor,taylor_gate,flap", "--recompute", recompute, "--repeat", "1", *layout, ranks=ranks)
                tensor = 2 if layout else 1
                for one in result["passes"]:
                    with self.subTest(recompute=recompute, ranks=ranks, tensor=tensor, criterion=one["criterion"]):
                        self.check_pass(one, result["gemm_flops_per_s"])
                        self.assertEqual((one["tensor"], one["data"], one["sequences"]), (tensor, ranks // tensor, 5))
                        self.assertEqual(one["micro_batch_tokens"], 32)
                        needed, again = flops(one["criterion"], 5, 16)
                        self.assertEqual(one["model_flops"], needed)
                        gradients = one["criterion"] != "flap"
                        self.assertEqual(one["hardware_flops"], needed + (again if recompute == "all" else 0))
                        self.assertEqual(one["repeated_halves"], 2 * LAYERS if recompute == "all" and gradients else 0)
                groups = {"tensor"} if layout else {"data"} if ranks > 1 else set()
                if ranks == 4:
                    groups = {"tensor", "data"}
                self.assertEqual({one["group"] for one in result["collectives"]}, groups)
                for one in result["collectives"]:
                    self.assertGreater(one["seconds"], 0)
                sizes = [one["bytes"] for one in result["collectives"] if one["group"] in groups]
                self.assertGreaterEqual(len(set(sizes)), 4 if groups else 0)

    def test_counted_is_computed_layer_by_layer(self):
        for ranks, layout in ((1, ()), (2, ("--tensor", "2")), (2, ())):
            result = self.measure(
                "--shape", SHAPE, "--tokens", "80", "--sequence-tokens", "16", "--micro-batch-tokens", "32", "--criterion",
                "taylor,taylor_gate,flap", "--order", "layer_major,sample_major", "--repeat", "1", *layout, ranks=ranks)
            self.assertEqual([(one["order"], one["criterion"]) for one in result["passes"]],
                             [(order, name) for order in ("layer_major", "sample_major") for name in ("taylor", "taylor_gate", "flap")])
            for one in result["passes"]:
                with self.subTest(ranks=ranks, layout=layout, order=one["order"], criterion=one["criterion"]):
                    self.check_pass(one, result["gemm_flops_per_s"], order=one["order"])
                    needed, again = flops(one["criterion"], 5, 16)
                    self.assertEqual(one["model_flops"], needed)
                    if one["order"] == "layer_major":
                        self.assertEqual(one["hardware_flops"], needed + again)
                        self.assertEqual(one["repeated_halves"], 2 * LAYERS if again else 0)
            gemm, models = result["gemm"], 1 if layout else ranks
            self.assertEqual(gemm["flops"] / gemm["sweeps"], models * 3 * 2 * 32 * (LAYERS * LAYER + HIDDEN * VOCABULARY))

    def test_few_layers_are_held(self):
        # 12 layers of 16.8 MB: twice their sum for taylor, the weights of two and the sums of one layer by layer.
        layers, layer = 12, 4 * (2 * 512 * 512 + 2 * 512 * 256 + 3 * 512 * 2048)
        result = self.measure("--shape", f"hidden=512,channels=2048,layers={layers},heads=8,kv_heads=4,vocabulary=256", "--criterion", "taylor",
                              "--order", "sample_major,layer_major", "--sequences", "2", "--sequence-tokens", "16", "--micro-batch-tokens", "32",
                              "--repeat", "1")
        whole, few = result["passes"]
        self.assertEqual((whole["order"], few["order"]), ("sample_major", "layer_major"))
        for kind, least in (("forecast_bytes", 0.95), ("peak_bytes", 0.6)):
            self.assertGreater(whole[kind] - few[kind], least * (2 * layers - 4) * layer)

    def test_random_weights_do_not_stay(self):
        arguments = ("bench", "--shape", SHAPE, "--sequences", "2", "--sequence-tokens", "8", "--repeat", "1", "--order", "layer_major")
        place = {"TMPDIR": str(self.folder)}
        ends = (
            (0, "layer_major, boundaries in memory", {"ranks": 2, "extra": place}),
            (75, "stopped on request", {"extra": {**place, "ESPALIER_FAULT": "point=reduce.exit;action=sigusr1"}}),
            (74, "espalier-bench-", {"extra": place, "prefix": ["prlimit", "--fsize=50000"]}),
            (66, "absent", {"extra": {"TMPDIR": str(self.folder / "absent")}}),
        )
        for code, says, options in ends:
            with self.subTest(code):
                done = workbench.run(*arguments, **options)
                self.assertEqual(done.code, code, done)
                self.assertIn(says, done.text)
                self.assertEqual(list(self.folder.iterdir()), [])

    def test_ragged_beside_rounded_widths(self):
        file = self.folder / "widths.json"
        file.write_text("[61, 0, 80]")
        arguments = ("--shape", SHAPE, "--sequences", "4", "--sequence-tokens", "16", "--micro-batch-tokens", "32", "--repeat", "1",
                     "--widths", file, "--width-multiple", "16")
        for ranks, layout, order in ((1, (), "sample_major"), (2, ("--tensor", "2"), "sample_major"), (1, (), "layer_major")):
            with self.subTest(ranks=ranks, order=order):
                result = self.measure(*arguments, *layout, "--order", order, ranks=ranks)
                rounded = result["rounded"]
                self.assertEqual(result["shape"]["layer_channels"], [61, 0, 80])
                self.assertEqual((rounded["multiple"], rounded["channels"]), (16, [64, 0, 80]))
                self.assertEqual(rounded["parameters"] - result["shape"]["parameters"], 3 * 3 * HIDDEN)
                self.assertAlmostEqual(rounded["gemm_rate_ratio"], rounded["gemm_flops_per_s"] / result["gemm_flops_per_s"])
                self.assertEqual([one["criterion"] for one in rounded["passes"]], ["taylor", "taylor_gate"])
                for one, ragged in zip(rounded["passes"], result["passes"], strict=True):
                    self.check_pass(one, rounded["gemm_flops_per_s"], order)
                    for name in ("micro_batch_tokens", "recompute", "sequences", "tensor"):
                        self.assertEqual(one[name], ragged[name])
                    self.assertAlmostEqual(one["seconds_ratio"], ragged["seconds"] / one["seconds"])
                    self.assertAlmostEqual(one["rate_ratio"], one["hardware_flops_per_s"] / ragged["hardware_flops_per_s"])
                    # Of every further weight: forward, gradient of the input, and for taylor that of the weight.
                    factor = 3 if one["criterion"] == "taylor" else 2
                    self.assertEqual(one["model_flops"] - ragged["model_flops"], factor * 2 * 4 * 16 * 3 * 3 * HIDDEN)
        done = self.succeeds("bench", *arguments)
        self.assertIn("\nrounded  0-80 channels a layer at multiples of 16, in place of 0-80; gemm ", done.out)
        self.assertRegex(done.out, r"\nratio    taylor: ragged takes [0-9.]+ x as long; rounded has [0-9.]+ x the rate\n")

    def test_widths_that_are_none(self):
        file = self.folder / "widths.json"
        for text, says in (("{}", "it is no JSON list"), ("[1, 2]", "it has 2 numbers"), ("[1, 2, 81]", "81 for layer 2"),
                           ("[1, -2, 3]", "-2 for layer 1"), ("[1, 2.5, 3]", "2.5 for layer 1"), ("[1, 2", "invalid JSON")):
            with self.subTest(text):
                file.write_text(text)
                done = workbench.run("bench", "--shape", SHAPE, "--widths", file)
                self.assertEqual(done.code, 65, done)
                self.assertIn(says, done.text)

    def test_text_for_people(self):
        done = self.succeeds("bench", "--shape", SHAPE, "--sequences", "2", "--sequence-tokens", "8", "--repeat", "1", ranks=2)
        for begin in ("machine  ", "shape    hidden=48", "gemm     ", "pass     taylor: 2 sequences of 8 tokens",
                      "pass     taylor_gate: ", "sum      2 ranks (data), 4 KiB: "):
            self.assertIn("\n" + begin, "\n" + done.out)

    def test_what_sums_tensors(self):
        arguments = ("--shape", SHAPE, "--sequences", "2", "--sequence-tokens", "8", "--repeat", "1", "--criterion", "taylor")
        for way in ("auto", "mpi"):
            result = self.measure(*arguments, "--collectives", way, ranks=2)
            self.assertEqual(result["machine"]["sums_of_tensors"], "MPI, in host memory")
        done = workbench.run("bench", *arguments, "--collectives", "nccl", ranks=2)
        self.assertEqual(done.code, 69, done)
        self.assertIn("execution.collectives = nccl, and NCCL cannot be used", done.err)

    def test_what_is_refused(self):
        cases = [
            ((), 64, "bench needs a model"),
            (("--shape", "qwen2.5-8b"), 64, "did you mean 'qwen2.5-7b'?"),
            (("--shape", "hidden=8"), 64, "channels is missing"),
            (("--shape", SHAPE, "--tokens", "64", "--sequences", "2"), 64, "exclude each other"),
            (("--shape", SHAPE, "--plan", "plan.h5"), 64, "--plan excludes"),
            (("--shape", SHAPE, "--width-multiple", "16"), 64, "--width-multiple without --widths"),
            (("--shape", SHAPE, "--widths", "absent.json"), 66, "absent.json"),
            (("--shape", SHAPE, "--criterion", "sparsegpt"), 64, "--criterion"),
            (("--shape", SHAPE, "--order", "auto"), 64, "--order"),
            (("--shape", SHAPE, "--set", "device=cpu"), 64, "--set without CONFIG"),
            (("--shape", SHAPE, "--tensor", "2"), 69, "1 rank"),
            (("absent.yaml",), 66, "absent.yaml"),
            (("--shape", "llama-3.1-70b"), 69, "not enough memory"),
        ]
        for arguments, code, says in cases:
            with self.subTest(arguments):
                done = workbench.run("bench", *arguments)
                self.assertEqual(done.code, code, done)
                self.assertIn(says, done.text)
                self.assertEqual(done.out, "")


class OfAConfiguration(workbench.Case):
    def test_of_a_configuration(self):
        config = self.bench.config("gate", importance={"criterion": "taylor_gate"})
        (self.folder / "model").mkdir()
        (self.folder / "model" / "config.json").write_bytes((self.bench.folder / "model" / "config.json").read_bytes())
        out = self.folder / "new" / "bench.json"
        done = self.succeeds("bench", config, "--set", f"model.path={self.folder / 'model'}", "--repeat", "1", "--out", out, "--json")
        result = json.loads(done.out)
        self.assertEqual(json.loads(out.read_text()), result)
        self.assertEqual(result["shape"]["channels"], workbench.SHAPE["channels"])
        self.assertEqual(result["shape"]["dtype"], "float64")
        (one,) = result["passes"]
        self.assertEqual((one["criterion"], one["sequence_tokens"]), ("taylor_gate", 12))
        # The last layer of four is protected, and its inputs are differentiated all the same.
        widths = result["shape"]
        q = widths["hidden"] * widths["heads"] * widths["head_dim"]
        kv = widths["hidden"] * widths["kv_heads"] * widths["head_dim"]
        layer = 2 * q + 2 * kv + 3 * widths["hidden"] * widths["channels"]
        tokens, predictions = 16 * 12, 16 * 11
        head = 2 * predictions * widths["hidden"] * widths["vocabulary"]
        self.assertEqual(one["model_flops"], 2 * tokens * (8 * layer - q - 2 * kv) + 2 * head)
        # In the order of the configuration, which may keep boundaries in files.
        done = self.succeeds("bench", config, "--repeat", "1", "--json", "--set", "execution.order=layer_major",
                             "--set", "execution.boundaries=files", "--set", f"execution.scratch={self.folder}")
        (layered,) = json.loads(done.out)["passes"]
        self.assertEqual((layered["order"], layered["boundaries"]), ("layer_major", "files"))
        self.assertEqual(layered["model_flops"], one["model_flops"])
        # Also the projections of the first layer, whose input has no gradient.
        self.assertEqual(layered["hardware_flops"], one["model_flops"] + 2 * tokens * 4 * layer)
        # A layer goes forward whole, also where only its MLP is differentiated.
        done = self.succeeds("bench", config, "--repeat", "1", "--json", "--order", "layer_major", "--set", "prune.kinds=[mlp]",
                             "--set", "prune.protect.first_layers=1")
        (layered,) = json.loads(done.out)["passes"]
        self.assertEqual(layered["hardware_flops"], layered["model_flops"] + 2 * tokens * 3 * layer)
        # What a plan leaves.
        run_dir = self.folder / "run"
        self.succeeds("run", config, "--run-dir", run_dir)
        _, plan = workbench.plan_of(run_dir / "plan.h5")
        done = self.succeeds("bench", config, "--repeat", "1", "--widths", run_dir / "plan.h5", "--width-multiple", "4", "--json")
        result = json.loads(done.out)
        kept = (plan["mlp/removed_at"] < 0).sum(axis=1)
        self.assertEqual(result["shape"]["layer_channels"], kept.tolist())
        self.assertEqual(result["rounded"]["channels"], [max(4, (n + 2) // 4 * 4) if n else 0 for n in kept.tolist()])
        again = workbench.run("bench", config, "--out", out)
        self.assertEqual(again.code, 73, again)


class Time(workbench.Case):
    """A run takes about what plan says from a bench made beside it."""

    model = {"layers": 4, "hidden": 128, "heads": 8, "kv_heads": 4, "head_dim": 16, "channels": 384, "vocab": 512}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = cls.bench.folder
        workbench.write_tokens(folder / "long.h5", rows=48, length=128, vocab=512, seed=5)
        cls.config = cls.bench.config(
            "time", model={"path": "model", "dtype": "float32"},
            calibration={"domains": [{"name": "long", "tokens": "long.h5"}], "micro_batch_tokens": 512},
            prune={"target": 0.5, "iterations": 3, "protect": {"first_layers": 0, "last_layers": 0}},
            evaluation={"every": 3, "perplexity": [{"name": "held", "tokens": "long.h5"}]})
        cls.measured = folder / "bench.json"
        done = workbench.run("bench", cls.config, "--micro-batch-tokens", "512", "--order", "sample_major,layer_major", "--out", cls.measured)
        assert done.code == 0, done

    def plan(self, *arguments, measured=None):
        return json.loads(self.succeeds("plan", self.config, "--bench", measured or self.measured, "--json", *arguments).out)["time"]

    def test_plan_and_run(self):
        for order in ("sample_major", "layer_major"):
            with self.subTest(order):
                in_order = ("--set", f"execution.order={order}")
                time = self.plan(*in_order)
                run_dir = self.folder / order
                self.succeeds("run", self.config, "--run-dir", run_dir, *in_order)
                rows = workbench.metrics_of(run_dir)
                scoring = sum(row["seconds"].get("calibrate", 0) for row in rows)
                evaluating = sum(row["seconds"].get("evaluate", 0) for row in rows)
                self.assertEqual((time["iterations"], time["evaluations"], time["order"], time["notes"]), (3, 2, order, []))
                # On a machine that others use either may be slowed down alone.
                self.assertLess(time["scoring_seconds"], 3 * scoring)
                self.assertGreater(time["scoring_seconds"], scoring / 3)
                self.assertLess(time["evaluation_seconds"], 4 * evaluating)
                self.assertGreater(time["evaluation_seconds"], evaluating / 4)

    def test_arithmetic(self):
        bench = json.loads(self.measured.read_text())
        one = bench["passes"][0]
        time = self.plan()
        self.assertAlmostEqual(time["rank_flops_per_s"], one["hardware_flops_per_s"], delta=1)
        q, kv, mlp = 128 * 128, 128 * 64, 3 * 384 * 128
        tokens, predictions = 48 * 128, 48 * 127
        head = 2 * predictions * 128 * 512
        forward = 2 * tokens * 4 * (2 * q + 2 * kv + mlp) + head
        needed = 2 * forward - 2 * tokens * (q + 2 * kv) + 2 * tokens * 4 * (2 * q + mlp)
        self.assertAlmostEqual(time["first_iteration_flops"], needed * one["hardware_flops"] / one["model_flops"], delta=1e-6 * needed)
        self.assertAlmostEqual(time["first_iteration_seconds"], time["first_iteration_flops"] / time["rank_flops_per_s"], places=9)
        self.assertLess(time["last_iteration_seconds"], time["first_iteration_seconds"])
        self.assertAlmostEqual(time["seconds"], time["scoring_seconds"] + time["evaluation_seconds"], places=9)
        # The dense model's evaluation, and that of half of every layer's units (two heads of a KV head, one of which stays).
        half = 2 * tokens * 4 * (q + 2 * kv + mlp // 2) + head
        self.assertAlmostEqual(time["evaluation_seconds"], (forward + half) / time["rank_flops_per_s"], places=9)
        # 12 micro-batches on 5 data ranks: three rounds, in which the last one has two.
        five = self.plan("--ranks", "5")
        self.assertAlmostEqual(five["first_iteration_seconds"], time["first_iteration_seconds"] * 3 / 12, places=9)
        repeated = self.plan("--set", "execution.recompute=all")
        self.assertAlmostEqual(repeated["first_iteration_flops"], needed + forward - head, delta=1e-6 * needed)

    def test_arithmetic_layer_by_layer(self):
        bench = json.loads(self.measured.read_text())
        whole, few = bench["passes"]
        self.assertEqual((whole["order"], few["order"]), ("sample_major", "layer_major"))
        load = few["seconds_by_phase"]["load"]
        in_order = ("--set", "execution.order=layer_major")
        time = self.plan(*in_order)
        q, kv, mlp = 128 * 128, 128 * 64, 3 * 384 * 128
        tokens, predictions = 48 * 128, 48 * 127
        layers, head = 2 * tokens * 4 * (2 * q + 2 * kv + mlp), 2 * predictions * 128 * 512
        needed = 2 * (layers + head) - 2 * tokens * (q + 2 * kv) + 2 * tokens * 4 * (2 * q + mlp)
        rate = few["hardware_flops"] / (few["seconds"] - load)
        self.assertAlmostEqual(time["rank_flops_per_s"] / rate, 1, places=9)
        self.assertAlmostEqual(time["first_iteration_flops"] / (needed + layers), 1, places=12)
        # Once for each iteration whatever its tokens, and half of it for each of two evaluations; less where layers are smaller.
        self.assertAlmostEqual(time["first_iteration_seconds"], (needed + layers) / rate + load, places=9)
        self.assertGreater(time["load_seconds"], 2 * load)
        self.assertLess(time["load_seconds"], 4 * load)
        # All KV heads stay. Beside the matrices two norms, and biases of q, k and v.
        decoder, half = (4 * (n * (2 * q + mlp) + 2 * kv + 2 * 128 + n * 128 + 2 * 64) for n in (1, 0.5))
        one = self.plan(*in_order, "--set", "prune.iterations=1")
        self.assertAlmostEqual(one["load_seconds"] / load, 1 + 0.5 + 0.5 * half / decoder, places=9)
        two = self.plan(*in_order, "--tensor", "2", "--set", "prune.iterations=1")
        self.assertAlmostEqual(two["load_seconds"], one["load_seconds"] / 2, places=9)
        done = self.succeeds("plan", self.config, "--bench", self.measured, *in_order)
        self.assertRegex(done.out, r"\n         [^\n]* of it for reading layers\n         taylor layer by layer at [0-9.]+ GFLOP/s a rank on ")
        # Nobody said how much memory there is, so that nothing speaks against the other order.
        self.assertEqual(self.plan()["order"], "sample_major")

    def test_measured_in_the_other_order(self):
        bench = json.loads(self.measured.read_text())
        whole, few = bench["passes"]
        for only, order in ((whole, "layer_major"), (few, "sample_major")):
            with self.subTest(order):
                other = self.folder / f"{order}.json"
                other.write_text(json.dumps({**bench, "passes": [only]}))
                time = self.plan("--set", f"execution.order={order}", measured=other)
                (note,) = time["notes"]
                self.assertIn(f"measured {only['order']}, the run goes {order}", note)
                self.assertIn(f"espalier bench CONFIG --order {order}", note)
                self.assertNotIn("load_seconds", time)
                # Every half forward twice: in the one because it goes layer by layer, in the other as the bench did.
                self.assertAlmostEqual(time["first_iteration_flops"] / self.plan("--set", "execution.order=layer_major")["first_iteration_flops"], 1,
                                       places=2)

    def refit_flops(self, tokens, kept_inputs, hidden=128):
        """(of both streams for each weight pair, sums, one ridge, the rest of solving) of a layer with these inputs left."""
        sums = sum(2 * tokens * k * (k + hidden) for k in kept_inputs)
        ridge = sum(2 * (k**3 / 3 + 4 * k * k * hidden) for k in kept_inputs)
        rest = sum(8 * k * k * hidden + k**3 / 3 + 2 * k * k * hidden for k in kept_inputs)
        return sums, ridge, rest

    def test_arithmetic_of_a_refit(self):
        bench = json.loads(self.measured.read_text())
        one, rates = bench["passes"][0], bench["refit"]
        plain, time = self.plan(), self.plan("--set", "refit.enabled=true")
        refit = time["refit"]
        tokens, layers = 48 * 128, 4
        dense = 2 * 128 * 128 + 2 * 128 * 64 + 3 * 384 * 128
        # Half of the query heads and channels; every KV head keeps one of its two.
        left = 2 * 128 * 64 + 2 * 128 * 64 + 3 * 192 * 128
        sums, ridge, rest = (layers * flops for flops in self.refit_flops(tokens, (64, 192)))
        streams = 2 * tokens * layers * (dense + 2 * left)
        self.assertAlmostEqual(refit["streams_flops"], streams)
        self.assertAlmostEqual(refit["sums_flops"], sums)
        self.assertAlmostEqual(refit["solving_flops"] / (7 * ridge + rest), 1, places=12)
        self.assertAlmostEqual(refit["streams_seconds"], streams / one["hardware_flops_per_s"], places=9)
        self.assertAlmostEqual(refit["sums_seconds"], sums / rates["sums_flops_per_s"], places=9)
        self.assertAlmostEqual(refit["solving_seconds"], (7 * ridge + rest) / rates["solving_flops_per_s"], places=9)
        self.assertEqual(refit["seconds"], refit["streams_seconds"] + refit["sums_seconds"] + refit["solving_seconds"])
        # The checkpoint is stored in float32.
        self.assertEqual(refit["written_bytes"], layers * (64 + 192) * 128 * 4)
        # The refitted model is evaluated once more.
        again = (plain["evaluation_seconds"] * one["hardware_flops_per_s"] - 2 * tokens * layers * (dense - left)) / 2
        self.assertEqual(time["evaluations"], plain["evaluations"] + 1)
        self.assertAlmostEqual(time["evaluation_seconds"] - plain["evaluation_seconds"], again / one["hardware_flops_per_s"], places=9)
        self.assertAlmostEqual(time["seconds"], plain["seconds"] + refit["seconds"] + again / one["hardware_flops_per_s"], places=9)
        self.assertNotIn("refit", plain)

    def test_a_refit_on_ranks_and_with_settings(self):
        base = self.plan("--set", "refit.enabled=true")["refit"]
        sums, ridge, rest = (4 * flops for flops in self.refit_flops(48 * 128, (64, 192)))
        # 12 micro-batches on 5 data ranks: three rounds; 7 ridges on 5 ranks: two each at most.
        five = self.plan("--set", "refit.enabled=true", "--ranks", "5")["refit"]
        self.assertAlmostEqual(five["streams_seconds"], base["streams_seconds"] * 3 / 12, places=9)
        self.assertAlmostEqual(five["sums_seconds"], base["sums_seconds"] * 3 / 12, places=9)
        self.assertAlmostEqual(five["solving_flops"] / (2 * ridge + rest), 1, places=12)
        fixed = self.plan("--set", "refit.enabled=true", "--set", "refit.ridge=0.1", "--set", "refit.sequences=24")["refit"]
        self.assertAlmostEqual(fixed["solving_flops"] / (ridge + rest), 1, places=12)
        self.assertAlmostEqual(fixed["streams_flops"] / base["streams_flops"], 0.5)
        moments = self.plan("--set", "refit.enabled=true", "--set", "refit.shrink_to=obs")["refit"]
        self.assertAlmostEqual(moments["sums_flops"], sums + 4 * 2 * 48 * 128 * (64 * 128 + 192 * 384))
        more = sum(k**3 / 3 + 2 * k * k * 128 + 2 * k * a * 128 for k, a in ((64, 128), (192, 384)))
        self.assertAlmostEqual(moments["solving_flops"] / (7 * ridge + rest + 4 * more), 1, places=12)
        done = self.succeeds("plan", self.config, "--bench", self.measured, "--set", "refit.enabled=true")
        self.assertRegex(done.out, r"\n         a refit in .*: both streams .*, sums .*, solving .*; up to 0.000524 GB written\n")

    def test_ordering_of_obs(self):
        measured = self.folder / "obs.json"
        self.succeeds("bench", self.config, "--criterion", "obs", "--micro-batch-tokens", "512", "--repeat", "1", "--out", measured)
        bench = json.loads(measured.read_text())
        one = bench["passes"][0]
        # Products that add up A and G, and those of the ordering, were executed too.
        self.assertGreater(one["hardware_flops"], one["model_flops"])
        arguments = ("--set", "importance.criterion=obs", "--set", "importance.curvature=full", "--set", "prune.iterations=1")
        time = self.plan(*arguments, measured=measured)
        self.assertAlmostEqual(time["rank_flops_per_s"] * one["seconds_by_phase"]["calibrate"] / one["model_flops"], 1, places=6)
        attention, channels = self.heads_flops([16] * 8), self.channels_flops(384)
        self.assertAlmostEqual(time["first_ordering_flops"] / (4 * (attention + channels)), 1, places=12)
        rate = bench["refit"]["solving_flops_per_s"]
        self.assertAlmostEqual(time["ordering_seconds"], time["first_ordering_flops"] / rate, places=9)
        self.assertAlmostEqual(time["seconds"], time["scoring_seconds"] + time["ordering_seconds"] + time["evaluation_seconds"], places=9)
        # Layer by layer two ranks order a layer's heads and channels, and others wait.
        layered = self.plan(*arguments, "--set", "execution.order=layer_major", "--ranks", "4", measured=measured)
        self.assertAlmostEqual(layered["first_ordering_flops"] / (4 * max(attention, channels)), 1, places=12)
        # On two ranks one orders the heads of every layer, the other the channels.
        two = self.plan(*arguments, "--ranks", "2", measured=measured)
        self.assertAlmostEqual(two["first_ordering_flops"] / (4 * max(attention, channels)), 1, places=12)
        done = self.succeeds("plan", self.config, "--bench", measured, *arguments)
        self.assertRegex(done.out, r"\ntime     about .* in all: 1 iteration of .*, ordering in .*, 2 evaluations in ")

    @staticmethod
    def heads_flops(widths, outputs=128):
        """One unit after the other, the last one first."""
        inputs = sum(widths)
        flops = inputs**3 + 2 * inputs**2 * outputs + 2 * inputs * outputs**2
        while len(widths) > 1:
            inputs = sum(widths)
            flops += sum(w**3 / 3 + 2 * w**3 for w in widths)  # what each would cost
            *widths, fallen = widths
            flops += fallen**3 / 3 + 2 * fallen**2 * inputs  # its rows of P, solved
            flops += 2 * fallen**2 * inputs + 3 * 2 * fallen * inputs**2  # P and N without it
        return flops

    @staticmethod
    def channels_flops(inputs, outputs=128):
        """In blocks of 64; rows of what fell stay until they are 15 % of all."""
        flops = inputs**3 + 2 * inputs**2 * outputs + 2 * inputs * outputs**2
        left, fallen = inputs - 1, 0
        while left:
            block = min(64, left)
            flops += sum(3 * 2 * i * inputs for i in range(block)) + 3 * 2 * block * inputs**2
            left, fallen = left - block, fallen + block
            if fallen >= 0.15 * inputs:
                inputs, fallen = inputs - fallen, 0
        return flops

    def test_text_and_notes(self):
        done = self.succeeds("plan", self.config, "--bench", self.measured)
        self.assertRegex(done.out, r"\ntime     about .* in all: 3 iterations of .* \(the first\) to .* \(the last\), 2 evaluations in ")
        self.assertRegex(done.out, r"\n         taylor at [0-9.]+ GFLOP/s a rank on .*, 1 thread a rank, as .*bench.json says\n")
        notes = self.plan("--set", "model.dtype=float64", "--tensor", "2")["notes"]
        self.assertEqual(notes, ["measured in float32, the run computes in float64", "measured with 1 tensor rank, the run has 2"])

    def test_what_is_no_bench(self):
        good = json.loads(self.measured.read_text())
        broken = [("{", 65, "bad.json"), ("[]", 65, "not what a bench measured"), ("{}", 65, "passes is missing")]
        for change in ({"passes": [{}]}, {"passes": [{**good["passes"][0], "hardware_flops_per_s": 0}]}, {"machine": 1},
                       {"shape": {}}, {"passes": [{**good["passes"][0], "tensor": "two"}]}):
            broken.append((json.dumps({**good, **change}), 65, "not what a bench measured"))
        broken.append((json.dumps({k: v for k, v in good.items() if k != "refit"}), 65, "refit is missing"))
        broken.append((json.dumps({**good, "refit": {"sums_flops_per_s": 1}}), 65, "solving_flops_per_s is missing"))
        broken.append((json.dumps({**good, "passes": [{**good["passes"][0], "criterion": "flap"}]}), 78, "the bench has passes of flap"))
        for text, code, says in broken:
            bad = self.folder / "bad.json"
            bad.write_text(text)
            done = workbench.run("plan", self.config, "--bench", bad, "--set", "refit.enabled=true")
            self.assertEqual(done.code, code, (text, done))
            self.assertIn(says, done.text)
        done = workbench.run("plan", self.config, "--bench", self.folder / "absent.json")
        self.assertEqual(done.code, 66, done)
        done = workbench.run("plan", self.config, "--bench", self.measured, "--set", "calibration.domains=[{name: x, tokens: absent.h5}]")
        self.assertEqual(done.code, 78, done)
        self.assertIn("the tokens of domain 'x' are not known", done.text)


if __name__ == "__main__":
    workbench.main()
