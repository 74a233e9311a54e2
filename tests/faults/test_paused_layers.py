"""A pass that goes layer by layer is paused between two layers, for every criterion, and goes on there on any layout, to the
same end; what is finished is not done again.

Asks for a stop in every layer, kills the process at every step of the pause and of what reads it again, fills the disk,
damages what was kept, changes what it depends on; continues each.
"""

import json
import pathlib
import shutil
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
import h5py
from interrupted import Interrupted, frozen, kill
from killed import listed_points, side_by_side
from safetensors import safe_open
from workbench import SHAPE, digest_of, main, merged, metrics_of, run, status_of, write_options

LAYER_MAJOR = {"execution": {"order": "layer_major", "boundaries": "memory"}}
LAYERS = SHAPE["layers"]
MICRO_BATCHES = 6


def asked_in(layer, iteration=3, rank=0):
    """Asks for a stop once so many layers of the iteration are finished."""
    return f"point=reduce.exit;rank={rank};iter={iteration};nth={layer};action=sigusr1"


def never(count, iteration=3):
    """An end of the run at one layer more than so many."""
    return f"point=reduce.exit;iter={iteration};nth={count + 1};action=throw"


def scores_of(run_dir, iteration):
    with h5py.File(run_dir / f"ckpt/iter-{iteration:06}/state.h5") as file:
        return {f"{kind}/{name}": file[kind][name][()] for kind in ("attention", "mlp") for name in ("score", "raw")}


class Paused(Interrupted):
    """What the tests below share; has none of its own."""

    config_change = {}
    layers = LAYERS  # that are finished in a pass: protected ones above the lowest that can fall, too
    at = 3  # the iteration that is paused
    forward = False  # whether layers are finished on the way forward

    @classmethod
    def setUpClass(cls):
        cls.change = merged(merged(LAYER_MAJOR, {"checkpoint": {"keep_last": 9}}), cls.config_change)
        super().setUpClass()

    def paused(self, name, layer, layout=(1, 1), more=()):
        """A run paused behind so many layers."""
        tensor, data = layout
        run_dir = self.folder / name
        result = self.start(run_dir, tensor * data, tensor, "|".join([asked_in(layer, self.at), *more])).wait()
        self.assertEqual(result.code, 75, result)
        self.assertEqual(status_of(run_dir)["last_commit"], f"pass-{self.at:06}", result)
        self.assertEqual(status_of(run_dir)["state"], "stopped")
        return run_dir

    def facts_of(self, run_dir):
        return json.loads((run_dir / f"ckpt/pass-{self.at:06}/MANIFEST.json").read_text())["pass"]

    def boundaries_of(self, run_dir):
        """{micro-batch: shape} of what is kept between layers."""
        found = {}
        for path in (run_dir / f"ckpt/pass-{self.at:06}").glob("boundaries-*.safetensors"):
            with safe_open(path, "np") as file:
                for name in file.keys():
                    if not name.endswith(".loss_scale"):
                        self.assertNotIn(name, found)
                        found[name] = file.get_slice(name).get_shape()
        return found

    def goes_on(self, run_dir, done, layout=(1, 1), iteration=None):
        """Continued without doing again what is done: so many layers are left, and no more are finished."""
        iteration = iteration or self.at
        self.succeeds("verify", run_dir)
        tensor, data = layout
        arguments = ["run", self.config, "--run-dir", run_dir, "--tensor", tensor]
        result = run(*arguments, ranks=tensor * data, extra={"ESPALIER_FAULT": never(self.layers - done, iteration)})
        self.assertEqual(result.code, 0, result)
        self.assertIn("in the middle of its pass", result.text)
        self.assertNotIn("of other work", result.text)
        self.assertEqual(metrics_of(run_dir)[iteration].get("continued_layers", 0), done, result)
        self.is_gold(run_dir, result)

    def same_scores(self, run_dir):
        for iteration in range(1, self.iterations + 1):
            found, expected = (scores_of(place, iteration) for place in (run_dir, self.class_folder / "gold"))
            for name, values in expected.items():
                self.assertEqual(found[name].tobytes(), values.tobytes(), f"iteration {iteration}, {name}")


class Everywhere(Paused):
    """What the tests below share; has none of its own: behind every layer."""

    def behind(self, layer):
        run_dir = self.paused(f"alone-{layer}", layer)
        done = "1 traversal" if layer == self.layers and not self.forward else f"{layer} layer"
        self.assertIn(f"sums after {done}", self.succeeds("verify", run_dir).out)
        self.goes_on(run_dir, layer)
        self.same_scores(run_dir)

    def elsewhere(self, layer, before, after):
        run_dir = self.paused(f"{layer}-{before[0]}x{before[1]}", layer, before)
        kept = self.boundaries_of(run_dir)
        self.assertEqual(sorted(kept), [] if layer == self.layers and not self.forward else [str(n) for n in range(MICRO_BATCHES)])
        self.goes_on(run_dir, layer, after)

    def everywhere(self):
        _, failures = side_by_side(self.behind, [(layer,) for layer in range(1, self.layers + 1)])
        self.assertEqual(failures, [], "\n".join(failures))
        moves = [((1, 1), (2, 2)), ((2, 2), (3, 1)), ((3, 1), (1, 3)), ((1, 3), (2, 1)), ((1, 2), (1, 1))]
        cases = [(1 + n % self.layers, *move) for n, move in enumerate(moves)]
        _, failures = side_by_side(self.elsewhere, cases)
        self.assertEqual(failures, [], "\n".join(failures))


class Taylor(Everywhere):
    def test_behind_every_layer_and_on_other_layouts(self):
        self.everywhere()

    def test_what_is_finished_is_not_done_again(self):
        """Counted by the half layers that go back: two of each layer and micro-batch, and no more than are left."""
        for done in (1, 3):
            run_dir = self.paused(f"counted-{done}", done)
            left = 2 * (LAYERS - done) * MICRO_BATCHES
            fault = "point=layer.backward;iter=3;nth={};action=throw"
            copied = pathlib.Path(shutil.copytree(run_dir, self.folder / f"copied-{done}"))
            result = run("resume", copied, extra={"ESPALIER_FAULT": fault.format(left)})
            self.assertEqual(result.code, 70, result)
            self.succeeds("resume", run_dir, extra={"ESPALIER_FAULT": fault.format(left + 1)})

    def test_paused_again_and_again(self):
        run_dir = self.paused("again", 1)
        before = (run_dir / "ckpt/pass-000003/MANIFEST.json").read_text()
        for done, layout in ((2, (2, 1)), (3, (1, 2))):
            result = self.start(run_dir, layout[0] * layout[1], layout[0], asked_in(1)).wait()
            self.assertEqual(result.code, 75, result)
            self.assertEqual(self.facts_of(run_dir)["layers"], done)
            names = sorted(p.name for p in (run_dir / "ckpt").iterdir())
            self.assertEqual(names, ["LATEST", "iter-000001", "iter-000002", "pass-000003"], "the old pause is left")
            self.assertNotEqual((run_dir / "ckpt/pass-000003/MANIFEST.json").read_text(), before)
        # On the way to where it was, there is nothing to keep, and nothing is lost.
        result = self.start(run_dir, fault="point=forward.enter;iter=3;nth=2;action=sigusr1").wait()
        self.assertEqual(result.code, 75, result)
        self.assertIn("goes on from the paused pass again", result.text)
        self.assertEqual(self.facts_of(run_dir)["layers"], 3)
        self.goes_on(run_dir, 3)

    def test_on_the_way_forward_nothing_is_kept(self):
        run_dir = self.folder / "forward"
        result = self.start(run_dir, fault="point=layer.forward;iter=3;nth=9;action=sigusr1").wait()
        self.assertEqual(result.code, 75, result)
        self.assertIn("its pass begins anew", result.text)
        self.assertEqual(list((run_dir / "ckpt").glob("pass-*")), [])
        self.continues_to_gold(run_dir)

    def test_in_the_middle_of_a_layer(self):
        """The layer comes to its end first."""
        run_dir = self.folder / "middle"
        # On the way back: the second micro-batch of the last layer but one.
        fault = f"point=layer.backward;iter=3;nth={2 * MICRO_BATCHES + 3};action=sigusr1"
        result = self.start(run_dir, fault=fault).wait()
        self.assertEqual(result.code, 75, result)
        self.assertEqual(self.facts_of(run_dir)["layers"], 2)
        self.goes_on(run_dir, 2)

    def test_stop_file_and_time_limit(self):
        run_dir = self.folder / "file"
        running = self.start(run_dir, 2, 1, "point=reduce.exit;rank=0;iter=3;nth=2;action=stop")
        (rank,) = frozen(running)
        self.assertEqual(run("stop", run_dir).code, 0)
        kill(rank, signal.SIGCONT)
        self.assertEqual(running.wait().code, 75)
        self.assertEqual(status_of(run_dir)["reason"], "STOP file")
        self.goes_on(run_dir, 2, (2, 1))
        # A layer takes twelve times 0.3 s on the way back, so that 15 s do not hold all of a pass.
        run_dir = self.folder / "hours"
        slow = "point=layer.backward;iter=1;action=slow:300"
        begin = time.monotonic()
        result = self.start(run_dir, 1, 1, slow, "--max-hours", 15 / 3600).wait()
        self.assertEqual(result.code, 75, result)
        self.assertEqual(status_of(run_dir)["reason"], "time limit")
        self.assertLess(time.monotonic() - begin, 15)
        manifest = json.loads((run_dir / "ckpt/pass-000001/MANIFEST.json").read_text())
        self.goes_on(run_dir, manifest["pass"]["layers"], iteration=1)

    def test_other_work_and_the_other_order(self):
        for name, change in (("order", ["--set", "execution.order=sample_major"]),
                             ("gate", ["--set", "importance.criterion=taylor_gate", "--allow-change", "importance.criterion"])):
            run_dir = self.paused(name, 2)
            result = self.succeeds("run", self.config, "--run-dir", run_dir, *change)
            self.assertIn("of other work", result.text)
            self.assertNotIn("continued_layers", metrics_of(run_dir)[3])
            if name == "order":
                self.is_gold(run_dir, result)

    def test_auto_goes_on_in_the_order_of_the_pause(self):
        """Left to itself, with as much memory as here, a run goes through sequences."""
        run_dir = self.paused("auto", 2)
        result = self.succeeds("run", self.config, "--run-dir", run_dir, "--set", "execution.order=auto")
        self.assertIn("layer_major, in which its pass was paused", result.text)
        self.assertNotIn("of other work", result.text)
        self.assertEqual(metrics_of(run_dir)[3]["continued_layers"], 2)
        self.is_gold(run_dir, result)

    def test_damaged(self):
        for name in ("boundaries-0000.safetensors", "sums.h5"):
            for how in ("flipped", "cut", "gone"):
                with self.subTest(f"{name} {how}"):
                    run_dir = self.paused(f"{how}-{name}", 2)
                    file = run_dir / "ckpt/pass-000003" / name
                    content = bytearray(file.read_bytes())
                    content[len(content) // 2] ^= 1
                    file.write_bytes(content if how == "flipped" else content[:-100])
                    if how == "gone":
                        file.unlink()
                    verified = run("verify", run_dir)
                    self.assertIn(verified.code, (65, 66), verified)
                    self.assertIn(f"pass-000003/{name}", verified.text)
                    result = self.continues_to_gold(run_dir, 1, 2, set_aside=["rejected-pass-000003-0"])
                    self.assertIn("pass-000003 is not used", result.text)


class Interruptions(Paused):
    """The pause itself, and what reads it again, are killed and have no room."""

    # The steps of a save that a pause takes.
    STEPS = ("open", "write", "flush", "close", "fsync", "readback")

    def pauses_into(self, name, fault, code, layout=(1, 1), begun=None):
        """A run that is killed, or fails, while it pauses: what was committed before stands."""
        run_dir = self.folder / "".join(c if c.isalnum() else "-" for c in f"{name}-{fault}")
        if begun:
            shutil.copytree(begun, run_dir)
        armed = f"{asked_in(1 if begun else 2)}|{fault}"
        result = self.start(run_dir, layout[0] * layout[1], layout[0], armed).wait()
        self.assertEqual(result.code, code, result)
        self.assertEqual(run("verify", run_dir).code, 0)
        return run_dir, result

    def killed(self, point, nth, begun):
        run_dir, _ = self.pauses_into("again" if begun else "first", f"point={point};iter=3;nth={nth};action=kill9", 137, begun=begun)
        # Of a pause that another one replaces, one is there: work of hours is not lost between two names.
        result = self.continues_to_gold(run_dir)
        if begun:
            self.assertIn("in the middle of its pass", result.text)
            self.assertIn(metrics_of(run_dir)[3]["continued_layers"], (1, 2))

    def test_killed_at_every_step_of_a_pause(self):
        begun = self.paused("begun", 1)
        points = [p for p in listed_points() if p.startswith("pause.") and p != "pause.recall"]
        points += [p for p in listed_points() if p.startswith("save.")]
        self.assertGreater(len(points), 15)
        cases = [(point, 1, None) for point in points if point != "save.unlink"]
        # One pause in the place of another: the old one steps aside, the new one comes, the old one goes.
        cases += [(point, nth, begun) for point in ("save.pre_rename", "save.post_rename") for nth in (1, 2)]
        cases += [(point, 1, begun) for point in ("pause.write", "save.manifest", "save.unlink")]
        _, failures = side_by_side(self.killed, cases)
        self.assertEqual(failures, [], "\n".join(failures))

    def test_killed_on_several_ranks(self):
        for rank, layout, resumed in ((1, (2, 1), (1, 2)), (1, (1, 2), (3, 1)), (3, (2, 2), (1, 1))):
            fault = f"point=pause.fsync;rank={rank};iter=3;action=kill9"
            run_dir, _ = self.pauses_into(f"ranks-{layout[0]}{layout[1]}", fault, 137, layout)
            self.continues_to_gold(run_dir, *resumed)

    def test_killed_while_it_is_read_again(self):
        run_dir = self.paused("reading", 2)
        for nth in (1, MICRO_BATCHES):
            result = self.start(run_dir, fault=f"point=pause.recall;nth={nth};action=kill9").wait()
            self.assertEqual(result.code, 137, result)
            self.assertEqual(self.facts_of(run_dir)["layers"], 2)
        self.goes_on(run_dir, 2)

    def fails(self, step, begun):
        for scope, layout, rank in (("pause", (2, 1), 1), ("save", (1, 1), 0)):
            fault = f"point={scope}.{step};rank={rank};iter=3;nth=1;action=errno:ENOSPC"
            run_dir, result = self.pauses_into(f"{scope}-{step}", fault, 74, layout, begun)
            self.assertIn("No space left", result.err)
            self.assertEqual(result.err.count("espalier: "), 1, result)
            self.assertEqual(self.facts_of(run_dir)["layers"], 1)
            self.goes_on(run_dir, 1)

    def test_full_disk(self):
        """The pause before stands."""
        begun = self.paused("begun", 1)
        _, failures = side_by_side(self.fails, [(step, begun) for step in self.STEPS])
        self.assertEqual(failures, [], "\n".join(failures))


class Obs(Everywhere):
    config_change = {"importance": {"criterion": "obs"}, "execution": {"boundaries": "files"}, "prune": {"iterations": 1}}
    iterations = at = 1

    def test_behind_every_layer_and_on_other_layouts(self):
        self.everywhere()


class Flap(Everywhere):
    """Layers are finished on the way forward, and means of what fell are kept."""

    config_change = {"importance": {"criterion": "flap", "normalization": "none"}, "prune": {"compensation": "mean"},
                     "calibration": {"overlap": [3]}}
    forward = True

    def test_behind_every_layer_and_on_other_layouts(self):
        self.everywhere()


class Magnitude(Everywhere):
    config_change = {"importance": {"criterion": "magnitude"}}
    forward = True

    def test_behind_every_layer_and_on_other_layouts(self):
        self.everywhere()


class Gate(Everywhere):
    """A row for each domain, from one traversal; items of several options, other ones in every iteration."""

    config_change = {
        "importance": {"criterion": "taylor_gate_sample"},
        "calibration": {
            "domains": [{"name": "a", "tokens": "a.h5"},
                        {"name": "options", "tokens": "options.h5", "objective": "margin", "sequences": 7, "weight": 2.0}],
            "micro_batch_tokens": 36,
            "combine": "worst_domain",
            "resample": True,
            "adapt": "loss_gap",
        },
    }

    @classmethod
    def prepare(cls):
        write_options(cls.bench.folder / "options.h5", (3, 2, 4, 2, 5, 2, 3, 2, 2))

    def test_behind_every_layer_the_same_bits(self):
        _, failures = side_by_side(self.behind, [(layer,) for layer in range(1, self.layers + 1)])
        self.assertEqual(failures, [], "\n".join(failures))
        self.goes_on(self.paused("elsewhere", 2, (2, 2)), 2, (3, 1))


class DomainByDomain(Paused):
    """A traversal for each domain: stops in the second one, on its way forward too."""

    config_change = {"calibration": {"combine": "weighted_mean"}}
    layers = 2 * LAYERS

    def test_in_both_domains(self):
        for layer in (3, LAYERS, LAYERS + 1, LAYERS + 3, 2 * LAYERS):
            with self.subTest(layer):
                run_dir = self.paused(f"{layer}", layer)
                facts = self.facts_of(run_dir)
                self.assertEqual((facts["traversals"], facts["layers"]), divmod(layer, LAYERS))
                self.goes_on(run_dir, layer)
                self.same_scores(run_dir)
        self.goes_on(self.paused("elsewhere", LAYERS + 2, (2, 2)), LAYERS + 2, (3, 1))

    def test_forward_in_the_second_domain(self):
        """Before any layer of it is finished, the first domain stays."""
        run_dir = self.folder / "forward"
        # Three micro-batches of the first domain went through eight halves, and on the way back through the attention of four
        # layers once more.
        result = self.start(run_dir, fault=f"point=layer.forward;iter=3;nth={3 * (8 + 4) + 2};action=sigusr1").wait()
        self.assertEqual(result.code, 75, result)
        self.assertEqual((self.facts_of(run_dir)["traversals"], self.facts_of(run_dir)["layers"]), (1, 0))
        self.goes_on(run_dir, LAYERS)
        self.same_scores(run_dir)


class Skipping(Paused):
    """A micro-batch that is not finite was left out before the pause: it stays out, and is named."""

    config_change = {"calibration": {"non_finite": "skip-batch"}}

    def test_what_was_skipped_stays_out(self):
        # By itself: a fault would not come again in the process that goes on.
        nan = "point=layer.backward;iter=3;nth=3;action=nan"
        whole = self.folder / "whole"
        result = self.start(whole, fault=nan).wait()
        self.assertEqual(result.code, 0, result)
        skipped = metrics_of(whole)[3]["skipped"]
        self.assertEqual(len(skipped), 1)
        for layer, layout in ((1, (1, 1)), (3, (1, 1)), (2, (2, 2))):
            with self.subTest(layer):
                run_dir = self.paused(f"skipping-{layer}", layer, more=[nan])
                result = self.succeeds("resume", run_dir, "--tensor", layout[0], ranks=layout[0] * layout[1],
                                       extra={"ESPALIER_FAULT": never(LAYERS - layer)})
                self.assertEqual(digest_of(run_dir), digest_of(whole))
                self.assertEqual(metrics_of(run_dir)[3]["skipped"], skipped)
                self.assertEqual(metrics_of(run_dir)[3]["continued_layers"], layer)
                self.assertEqual(metrics_of(run_dir)[3]["tokens"], metrics_of(whole)[3]["tokens"])

    def test_a_value_that_breaks_after_the_pause(self):
        """The pass begins anew, without what it had of the pause."""
        run_dir = self.paused("breaks", 1)
        result = self.succeeds("resume", run_dir, extra={"ESPALIER_FAULT": "point=layer.backward;iter=3;nth=3;action=nan"})
        self.assertIn("begins anew", result.text)
        self.assertEqual(len(metrics_of(run_dir)[3]["skipped"]), 1)
        self.assertNotIn("continued_layers", metrics_of(run_dir)[3])


class Narrow(Everywhere):
    """float32; and float16, whose gradients carry a scale."""

    config_change = {"model": {"path": "model", "dtype": "float32"}}

    def test_the_same_bits(self):
        _, failures = side_by_side(self.behind, [(layer,) for layer in range(1, self.layers + 1)])
        self.assertEqual(failures, [], "\n".join(failures))


class Half(Narrow):
    config_change = {"model": {"path": "model", "dtype": "float16"}}


class Brain(Narrow):
    config_change = {"model": {"path": "model", "dtype": "bfloat16"}}


if __name__ == "__main__":
    main()
