"""Bad input, one row each, at one and two ranks: the exit code, one clear message, nothing half-written, no rank hangs."""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import struct
import sys

import h5py
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from interrupted import frozen
from workbench import Case, Running, main, merged, run, write_tokens


class Row:
    """One copy of the bench to spoil. `begun`: the error can only be seen after the run directory was made."""

    def __init__(self, folder, bench):
        self.folder = folder
        shutil.copytree(bench, folder)
        self.model = folder / "model"
        self.config = folder / "config.yaml"
        self.run_dir = folder / "run"
        self.extra = {}
        self.arguments = []

    def set(self, **change):
        self.config.write_text(json.dumps(merged(json.loads(self.config.read_text()), change), indent=1))

    def set_model(self, without=(), **change):
        path = self.model / "config.json"
        fields = {k: v for k, v in merged(json.loads(path.read_text()), change).items() if k not in without}
        path.write_text(json.dumps(fields))

    def weights(self, change):
        from safetensors.numpy import load_file, save_file

        path = self.model / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    def tokens(self, change, name="b.h5"):
        with h5py.File(self.folder / name, "r+") as file:
            change(file)


# --- how each row is spoilt -------------------------------------------------------------------------


def unknown_key(row):
    row.set(prune={"targt": 0.3})


def duplicate_key(row):
    row.config.write_text("model: {path: model}\nprune: {target: 0.2}\nmodel: {path: model}\n")


def wrong_type(row):
    row.set(prune={"iterations": "many"})


def several_wrong_keys(row):
    row.set(prune={"iterations": 0, "measure": "weights"}, device="tpu")


def yaml_bomb(row):
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{i}: &a{i} [{', '.join(['*a' + str(i - 1)] * 10)}]" for i in range(1, 12)]
    row.config.write_text("\n".join(bomb))


def no_config(row):
    row.config.unlink()


def no_target(row):
    value = json.loads(row.config.read_text())
    del value["prune"]["target"]
    row.config.write_text(json.dumps(value))


def set_unknown(row):
    row.arguments = ["--set", "prune.targets=0.3"]


def ranks_do_not_divide(row):
    row.arguments = ["--tensor", 3]


def no_model(row):
    shutil.rmtree(row.model)


def missing_shard(row):
    names = {}

    def note(tensors):
        names.update(dict.fromkeys(tensors, "model-00001-of-00002.safetensors"))

    row.weights(note)
    (row.model / "model.safetensors").rename(row.model / "model-00001-of-00002.safetensors")
    names["model.norm.weight"] = "model-00002-of-00002.safetensors"
    (row.model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def short_shard(row):
    path = row.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def wrong_shapes(row):
    row.set_model(intermediate_size=20)


def missing_tensor(row):
    row.weights(lambda t: t.update({"model.layers.1.mlp.gate_prj.weight": t.pop("model.layers.1.mlp.gate_proj.weight")}))


def wrong_dtype(row):
    row.weights(lambda t: t.update({"model.norm.weight": np.ones(32, dtype=np.int32)}))


def huge_header(row):
    (row.model / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")


def overlapping_header(row):
    header = json.dumps({f"t{i}": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for i in range(2)}).encode()
    (row.model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


def unknown_model_type(row):
    row.set_model(model_type="gpt_neox")


def rope_yarn(row):
    row.set_model(rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4})


def quantised(row):
    row.set_model(quantization_config={"quant_method": "gptq", "bits": 4})


def other_activation(row):
    row.set_model(hidden_act="gelu")


def broken_model_config(row):
    (row.model / "config.json").write_text('{"model_type": "qwen2",')


def heads_do_not_divide(row):
    row.set_model(num_key_value_heads=3)


def nan_in_weight(row):
    def spoil(tensors):
        tensors["model.layers.2.mlp.up_proj.weight"][-1, 5] = np.nan

    row.weights(spoil)


def infinite_norm(row):
    def spoil(tensors):
        tensors["model.norm.weight"][3] = np.inf

    row.weights(spoil)


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


def no_tokens(row):
    (row.folder / "eval.h5").unlink()
    (row.folder / "b.h5").unlink()


def sft_without_mask(row):
    row.set(calibration={"domains": [{"name": "a", "tokens": "a.h5", "objective": "sft"}]})


def empty_mask(row):
    mask = np.ones((6, 12), dtype=np.uint8)
    mask[4] = 0
    write_tokens(row.folder / "a.h5", seed=1, mask=mask)
    row.set(calibration={"domains": [{"name": "a", "tokens": "a.h5", "objective": "sft"}]})


def sequences_above_rows(row):
    row.set(calibration={"domains": [{"name": "a", "tokens": "a.h5", "sequences": 7}]})


def target_beyond_protection(row):
    row.set(prune={"target": 0.9, "protect": {"layers": [0, 1]}})


def nan_in_backward(row):
    row.extra = {"ESPALIER_FAULT": "point=backward.enter;rank=RANK;iter=1;nth=2;action=nan"}
    row.arguments = ["--tensor", "RANKS"]


def nan_on_one_data_rank(row):
    row.extra = {"ESPALIER_FAULT": "point=backward.enter;rank=RANK;iter=1;action=nan"}


def nan_in_gates(row):
    row.set(importance={"criterion": "taylor_gate"})
    row.extra = {"ESPALIER_FAULT": "point=backward.enter;rank=RANK;iter=1;action=nan"}
    row.arguments = ["--tensor", "RANKS"]


def nan_in_forward(row):
    row.extra = {"ESPALIER_FAULT": "point=forward.exit;rank=RANK;iter=1;action=nan"}
    row.arguments = ["--tensor", "RANKS"]


def nan_in_a_layer(row):
    """Three domains' worth of micro-batches come before: 8 halves each, then the third of the second one."""
    row.extra = {"ESPALIER_FAULT": "point=layer.forward;rank=RANK;iter=1;nth=11;action=nan"}
    row.arguments = ["--tensor", "RANKS"]


def nan_in_a_layer_of_an_evaluation(row):
    row.extra = {"ESPALIER_FAULT": "point=layer.forward;rank=RANK;iter=0;nth=4;action=nan"}
    row.arguments = ["--tensor", "RANKS"]


def nan_in_a_layers_gradient(row):
    row.extra = {"ESPALIER_FAULT": "point=layer.backward;rank=RANK;iter=1;nth=3;action=nan"}
    row.arguments = ["--tensor", "RANKS"]


def nan_in_a_weight_gradient(row):
    row.extra = {"ESPALIER_FAULT": "point=weight.gradient;rank=RANK;iter=1;nth=2;action=nan"}
    row.arguments = ["--tensor", "RANKS"]


def nan_in_a_score(row):
    row.set(importance={"criterion": "taylor_gate"})
    row.extra = {"ESPALIER_FAULT": "point=score.value;rank=RANK;iter=1;action=nan"}


def nan_in_a_score_of_a_domain(row):
    row.set(calibration={"combine": "weighted_mean"})
    row.extra = {"ESPALIER_FAULT": "point=score.value;rank=RANK;iter=1;nth=2;action=nan"}


def nan_in_a_magnitude(row):
    row.set(importance={"criterion": "magnitude"})
    row.extra = {"ESPALIER_FAULT": "point=score.value;rank=RANK;iter=1;action=nan"}


def throw_between_collectives(row):
    """The other tensor ranks wait in a sum that will not come."""
    row.arguments = ["--tensor", "RANKS"]
    row.extra = {"ESPALIER_FAULT": "point=backward.enter;rank=RANK;iter=1;action=throw"}


def throw_on_one_rank(row):
    row.extra = {"ESPALIER_FAULT": "point=slice.enter;rank=RANK;iter=1;action=throw"}


def require_without_commit(row):
    row.arguments = ["--resume", "require"]


def unknown_resume(row):
    row.arguments = ["--resume", "perhaps"]


def file_for_directory(row):
    row.run_dir.write_text("a file")


BEGUN = True
# (spoil, exit code, words of the message, whether the run directory may exist)
TABLE = [
    (unknown_key, 78, ["prune.targt", "target", "config.yaml"], False),
    (duplicate_key, 78, ["model", "3:"], False),
    (wrong_type, 78, ["prune.iterations", "many"], False),
    (several_wrong_keys, 78, ["prune.iterations", "prune.measure", "device", "tpu", "3 errors"], False),
    (yaml_bomb, 78, ["config.yaml"], False),
    (no_config, 66, ["config.yaml"], False),
    (no_target, 78, ["prune.target"], False),
    (set_unknown, 78, ["prune.targets"], False),
    (ranks_do_not_divide, 69, ["parallel.tensor = 3"], False),
    (no_model, 66, ["model"], False),
    (missing_shard, 66, ["model-00002-of-00002.safetensors"], False),
    (short_shard, 65, ["model.safetensors"], False),
    (wrong_shapes, 65, [f"layers.{i}.mlp.{p}_proj" for i in range(4) for p in ("gate", "up", "down")]
     + ["[24, 32]", "[20, 32]", "12 problems"], False),
    (missing_tensor, 65, ["gate_proj", "gate_prj"], False),
    (wrong_dtype, 65, ["model.norm.weight", "I32"], False),
    (huge_header, 65, ["model.safetensors"], False),
    (overlapping_header, 65, ["model.safetensors"], False),
    (unknown_model_type, 65, ["gpt_neox", "qwen2"], False),
    (rope_yarn, 65, ["yarn"], False),
    (quantised, 65, ["quantization_config"], False),
    (other_activation, 65, ["hidden_act", "gelu"], False),
    (broken_model_config, 65, ["config.json"], False),
    (heads_do_not_divide, 65, ["num_key_value_heads"], False),
    (nan_in_weight, 65, ["model.layers.2.mlp.up_proj.weight", "layer 2", "rank"], BEGUN),
    (infinite_norm, 65, ["model.norm.weight", "rank"], BEGUN),
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
    (no_tokens, 66, ["b.h5", "eval.h5"], False),
    (sft_without_mask, 65, ["a.h5", "loss_mask"], False),
    (empty_mask, 65, ["a.h5", "row 4"], False),
    (sequences_above_rows, 78, ["sequences = 7", "6 sequences"], False),
    (target_beyond_protection, 78, ["target", "0.9"], False),
    (nan_in_backward, 65, ["model.norm.weight", "layer 3", "RANK"], BEGUN),
    (nan_on_one_data_rank, 65, ["model.norm.weight", "layer 3", "RANK"], BEGUN),
    (nan_in_gates, 65, ["model.norm.weight", "layer 3", "RANK"], BEGUN),
    (nan_in_forward, 65, ["NaN", "hidden states after layer 3", "tensor rank LAST", "micro-batch 1 of 6", "domain 'a'"], BEGUN),
    (nan_in_a_layer, 65, ["NaN", "output of the attention of layer 1", "model.layers.1.self_attn.o_proj.weight",
                          "tensor rank LAST", "micro-batch 2 of 6", "domain 'b'"], BEGUN),
    (nan_in_a_layer_of_an_evaluation, 65, ["NaN", "output of the MLP of layer 1", "tensor rank LAST", "micro-batch 1 of 2",
                                           "evaluation 'held'"], BEGUN),
    (nan_in_a_layers_gradient, 65, ["model.layers.2.post_attention_layernorm.weight", "MLP of layer 2", "tensor rank LAST",
                                    "micro-batch 1 of 6", "domain 'a'"], BEGUN),
    (nan_in_a_weight_gradient, 65, ["model.layers.2.mlp.up_proj.weight", "tensor rank LAST", "micro-batch 1 of 6"], BEGUN),
    (nan_in_a_score, 65, ["a score is not finite", "of the attention of layer 0", "self_attn.o_proj", "data rank LAST",
                          "all domains", "RANK"], BEGUN),
    (nan_in_a_score_of_a_domain, 65, ["a score is not finite", "layer 0", "data rank LAST", "domain 'b'", "RANK"], BEGUN),
    (nan_in_a_magnitude, 65, ["a score is not finite", "layer 0", "data rank LAST", "RANK"], BEGUN),
    (throw_between_collectives, 70, ["fault injected at backward.enter", "RANK"], BEGUN),
    (throw_on_one_rank, 70, ["fault injected at slice.enter", "RANK"], BEGUN),
    (require_without_commit, 66, ["commit"], BEGUN),
    (unknown_resume, 64, ["perhaps"], False),
    (file_for_directory, 73, ["run"], False),
]


class Refused(Case):
    def fails(self, result, code, words):
        self.assertEqual(result.code, code, result)
        blocks = re.findall(r"^espalier: ", result.err, re.MULTILINE)
        self.assertEqual(len(blocks), 1, f"one error block: {result}")
        for word in words:
            self.assertIn(word, result.err, result)
        self.assertIn(f"exit {code}", result.err)


class BadInput(Refused):
    def one(self, spoil, code, words, begun, ranks):
        row = Row(self.folder / f"{spoil.__name__}-{ranks}", self.bench.folder)
        spoil(row)
        last = str(ranks - 1)
        extra = {name: value.replace("RANK", last) for name, value in row.extra.items()}
        arguments = [str(a).replace("RANKS", str(ranks)) for a in row.arguments]
        was_there = row.run_dir.exists()
        result = run("run", row.config, "--run-dir", row.run_dir, *arguments, ranks=ranks, extra=extra)
        words = [w.replace("LAST", last) if w != "RANK" else f"rank {last}" for w in words]
        if ranks == 1:  # one process calls itself no rank everywhere
            words = [w for w in words if w not in ("rank", "rank 0")]
        self.fails(result, code, words)
        if not begun:
            self.assertEqual(row.run_dir.exists(), was_there, "a run directory was made for nothing")
        self.assertEqual(list(row.folder.glob("run/ckpt/*")), [], "half-written")
        self.assertFalse((row.run_dir / "export").exists())
        if begun and (row.run_dir / "status.json").exists():
            status = json.loads((row.run_dir / "status.json").read_text())
            self.assertEqual((status["state"], status["exit_code"]), ("failed", code), result)

    def test_table(self):
        self.bench.config()
        failures = []
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            futures = {pool.submit(self.one, *row, ranks): (row[0].__name__, ranks) for row in TABLE for ranks in (1, 2)}
            for future in concurrent.futures.as_completed(futures):
                try:
                    future.result()
                except Exception as error:  # noqa: BLE001: every row is reported
                    failures.append("{} at {} ranks: {}".format(*futures[future], error))
        if failures:
            self.fail("\n\n".join(failures))


class BadState(Refused):
    """Rows that need a run to exist."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.config = cls.bench.config()
        cls.done = cls.class_folder / "done"
        result = run("run", cls.config, "--run-dir", cls.done)
        if result.code != 0:
            raise AssertionError(result)

    def copy(self, name="copy"):
        return pathlib.Path(shutil.copytree(self.done, self.folder / name))

    def test_run_directory_in_use(self):
        run_dir = self.folder / "busy"
        running = Running(
            ["run", self.config, "--run-dir", run_dir],
            extra={"ESPALIER_FAULT": "point=forward.enter;nth=1;action=stop"},
        )
        try:
            frozen(running)  # it holds its lock while it stands still
            for ranks in (1, 2):
                result = run("run", self.config, "--run-dir", run_dir, "--lock-wait", 0.2, ranks=ranks)
                self.fails(result, 73, [str(running.process.pid), "in use"])
        finally:
            running.kill()
        # The lock died with its holder.
        self.is_at_rest(run_dir)
        self.succeeds("run", self.config, "--run-dir", run_dir)

    def test_other_configuration(self):
        run_dir = self.copy()
        before = (run_dir / "config.resolved.yaml").read_bytes()
        for ranks in (1, 2):
            result = run("run", self.config, "--run-dir", run_dir, "--set", "prune.target=0.3", ranks=ranks)
            self.fails(result, 78, ["prune.target", "0.4", "0.3", "--allow-change prune.target"])
            result = run("resume", run_dir, "--set", "importance.criterion=magnitude", ranks=ranks)
            self.fails(result, 78, ["importance.criterion", "taylor", "magnitude"])
        self.assertEqual((run_dir / "config.resolved.yaml").read_bytes(), before)
        self.succeeds("resume", run_dir, "--set", "calibration.micro_batch_tokens=48")

    def test_never_resume(self):
        result = run("run", self.config, "--run-dir", self.copy(), "--resume", "never")
        self.fails(result, 73, ["2 commits", "--resume=auto"])

    def test_resume_of_what_is_no_run(self):
        for ranks in (1, 2):
            self.fails(run("resume", self.folder / "none", ranks=ranks), 66, ["config.resolved.yaml"])
        self.assertFalse((self.folder / "none").exists())

    def test_damaged_commits(self):
        for ranks in (1, 2):
            run_dir = self.copy(f"damaged{ranks}")
            newest, older = (run_dir / "ckpt" / f"iter-00000{i}/state.h5" for i in (4, 3))
            damaged = bytearray(newest.read_bytes())
            damaged[len(damaged) // 2] ^= 4
            newest.write_bytes(damaged)
            # One is damaged: the one before is taken, and said so.
            result = self.succeeds("resume", run_dir, ranks=ranks)
            self.assertIn("iter-000004 is not used", result.text)
            self.assertIn("hash", result.text)
            self.assertIn("iter-000003", result.text)
            self.assertEqual((run_dir / "plan.h5").read_bytes(), (self.done / "plan.h5").read_bytes())
            # All are: never back to the beginning in silence.
            for path in (newest, older):
                path.write_bytes(path.read_bytes()[:-1])
            for command in (["resume", run_dir], ["run", self.config, "--run-dir", run_dir]):
                self.fails(run(*command, ranks=ranks), 66, ["no commit of this run is valid", "2 "])
            self.assertEqual(run("verify", run_dir).code, 65)

    def test_changed_source(self):
        row = Row(self.folder / "source", self.bench.folder)
        run_dir = row.folder / "run"
        self.succeeds("run", row.config, "--run-dir", run_dir)
        row.weights(lambda t: t.update({"model.norm.weight": t["model.norm.weight"] * 2}))
        for ranks in (1, 2):
            result = run("run", row.config, "--run-dir", run_dir, ranks=ranks)
            self.fails(result, 65, ["model.safetensors", "was ", "is "])

    def test_outputs_that_exist(self):
        out = self.folder / "out"
        out.mkdir()
        self.fails(run("export", self.done, "--out", out), 73, ["exists"])
        self.assertEqual(list(out.iterdir()), [])
        file = self.folder / "file.h5"
        file.write_text("mine")
        for command in ("score", "eval"):
            for ranks in (1, 2):
                self.fails(run(command, self.config, "--out", file, ranks=ranks), 73, ["exists"])
        self.assertEqual(file.read_text(), "mine")

    def test_other_refusals(self):
        none = self.folder / "none"
        for arguments, code, words in [
            (["export", none, "--out", self.folder / "x"], 66, ["none"]),
            (["export", self.done, "--out", self.folder / "x", "--sparsity", 0.9], 78, ["0.9"]),
            (["eval", self.config, "--run-dir", self.done, "--iteration", 1], 66, ["iteration 1"]),
            (["eval", self.config, "--iteration", 1], 64, ["--run-dir"]),
            (["verify", none], 66, ["none"]),
            (["status", none], 66, ["none"]),
            (["inspect", none], 66, ["none"]),
            (["prune"], 64, ["prune"]),
            (["rnu", self.config], 64, ["run"]),
            (["run", self.config], 64, ["--run-dir"]),
            (["config", "--explain", "prune.targt"], 64, ["prune.target"]),
        ]:
            with self.subTest(arguments=arguments):
                self.fails(run(*arguments), code, words)
        self.assertFalse((self.folder / "x").exists())

    def test_directory_that_cannot_be_written(self):
        for folder in (self.class_folder, self.folder, *self.bench.folder.rglob("*"), self.bench.folder):
            folder.chmod(folder.stat().st_mode | 0o055)
        prefix = []
        if os.geteuid() == 0:
            if not shutil.which("setpriv"):
                self.skipTest("root may write everywhere, and setpriv is not installed")
            prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"]
            if run("doctor", "--list-faults", prefix=prefix).code != 0:
                self.skipTest("another user may not read the program")
        closed = self.folder / "closed"
        closed.mkdir()
        closed.chmod(0o555)
        extra = {"HOME": "/tmp", "TMPDIR": "/tmp"}
        for ranks in (1, 2):
            result = run("run", self.config, "--run-dir", closed / "run", ranks=ranks, prefix=prefix, extra=extra)
            self.fails(result, 77, [str(closed)])
            result = run("run", self.config, "--run-dir", closed, ranks=ranks, prefix=prefix, extra=extra)
            self.fails(result, 77, [str(closed)])
        self.assertEqual(list(closed.iterdir()), [])


if __name__ == "__main__":
    main()
