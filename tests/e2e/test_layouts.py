"""The plan does not depend on how ranks are laid out: (tensor, data) may be anything."""

import json
import pathlib
import shutil
import sys

import h5py
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from workbench import Case, digest_of, main, metrics_of, plan_of, status_of

LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (4, 1)]
# Two KV groups over four tensor ranks: two ranks hold no head from the start, and groups are uneven later.
MODEL = {"kv_heads": 2, "heads": 4, "channels": 22, "vocab": 61}


class Layouts(Case):
    model = MODEL

    def digests(self, name, layouts, **change):
        config = self.bench.config(name, **change)
        found = {}
        for tensor, data in layouts:
            run_dir = self.folder / f"{name}-{tensor}x{data}"
            self.succeeds("run", config, "--run-dir", run_dir, "--tensor", tensor, ranks=tensor * data)
            layout = json.loads((run_dir / "provenance.json").read_text())["layout"]
            self.assertEqual(layout, {"ranks": tensor * data, "tensor": tensor, "data": data})
            found[tensor, data] = digest_of(run_dir)
            self.last = run_dir
        return found

    def require_equal(self, found):
        self.assertEqual(len(set(found.values())), 1, found)

    def test_taylor_global_query_heads_after_ten_iterations(self):
        found = self.digests(
            "ten",
            LAYOUTS,
            prune={"target": 0.55, "iterations": 10, "protect": {"last_layers": 0, "min_heads": 0}},
            evaluation={"every": 10, "perplexity": []},
        )
        self.require_equal(found)
        rows = metrics_of(self.last)
        self.assertEqual([r["iteration"] for r in rows], list(range(11)))
        # The test would be empty if nothing of a kind fell, or if a layer kept all of its heads.
        digest, plan = plan_of(self.last / "plan.h5")
        self.assertEqual(digest, found[1, 1])
        self.assertGreater((plan["mlp/removed_at"] > 0).sum(), 20)
        self.assertGreater((plan["attention/removed_at"] > 0).sum(), 3)
        self.assertEqual(status_of(self.last)["state"], "finished")

    def test_kv_groups(self):
        self.require_equal(
            self.digests("groups", [(1, 1), (3, 1), (2, 2)], prune={"attention_unit": "kv_group", "target": 0.5})
        )

    def test_local_ranking(self):
        self.require_equal(self.digests("local", [(1, 1), (2, 1), (1, 3)], prune={"ranking": "local", "target": 0.5}))

    def test_gates_and_domains(self):
        change = {
            "importance": {"criterion": "taylor_gate_sample", "normalization": "block_l2"},
            "calibration": {"combine": "weighted_mean", "resample": True},
        }
        self.require_equal(self.digests("gates", [(1, 1), (4, 1), (1, 2)], **change))

    def test_more_data_ranks_than_sequences(self):
        domains = [{"name": "a", "tokens": "a.h5", "sequences": 2}]
        self.require_equal(
            self.digests("idle", [(1, 1), (1, 4)], calibration={"domains": domains, "micro_batch_tokens": 1})
        )


class Recompute(Case):
    """Kept or run again, a half layer's graph has the same bits: how much memory there is decides nothing."""

    model = MODEL

    def test_scores_are_equal_to_the_bit(self):
        for number, criterion in enumerate(("taylor", "taylor_gate_sample")):
            with self.subTest(criterion):
                scores, repeated = {}, {}
                for recompute in ("auto", "all"):
                    config = self.bench.config(
                        f"{recompute}{number}",
                        model={"path": "model", "dtype": "float32"},
                        importance={"criterion": criterion},
                        execution={"recompute": recompute},
                    )
                    run_dir = self.folder / f"{recompute}{number}"
                    self.succeeds("run", config, "--run-dir", run_dir, "--tensor", 2, ranks=2)
                    with h5py.File(run_dir / "ckpt/iter-000004/state.h5") as file:
                        scores[recompute] = {k: file[k]["score"][()].tobytes() for k in ("attention", "mlp")}
                    repeated[recompute] = [row["repeated_halves"] for row in metrics_of(run_dir)[1:]]
                self.assertEqual(scores["auto"], scores["all"])
                self.assertEqual(repeated, {"auto": [0] * 4, "all": [8] * 4}, "both halves of four layers")


class OneStepInFloat32(Case):
    """In float32, from the same plan, two layouts may disagree about units inside the rounding error at the cut only.

    Every channel has a twin with the same weights, and an odd number falls: the cut lies between twins, whose scores
    differ by rounding alone.
    """

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        from safetensors.numpy import load_file, save_file

        path = cls.bench.model / "model.safetensors"
        weights = load_file(path)
        for name, value in weights.items():
            half = 12
            if "gate_proj" in name or "up_proj" in name:
                value[half:] = value[:half]
            elif "down_proj" in name:
                value[:, half:] = value[:, :half]
        save_file(weights, path, metadata={"format": "pt"})

    def one_step(self, name, config, tensor, data):
        run_dir = self.folder / name
        shutil.copytree(self.start, run_dir)
        extra = [] if config is None else ["--allow-change", "model.dtype", "--set", f"model.dtype={config}"]
        self.succeeds("resume", run_dir, "--tensor", tensor, *extra, ranks=tensor * data)
        state = run_dir / "ckpt/iter-000004/state.h5"
        _, plan = plan_of(state)
        with h5py.File(state) as file:
            group = file["mlp"]
            keys = zip(group["layer"][()].tolist(), group["unit"][()].tolist(), strict=True)
            scores = dict(zip(keys, group["score"][()].tolist(), strict=True))
        removed = {tuple(map(int, place)) for place in np.argwhere(plan["mlp/removed_at"] == 4)}
        return scores, removed

    def test_lists_differ_only_inside_the_margin(self):
        # 72 channels may fall; 35 do in four steps, of which three leave an odd number.
        config = self.bench.config(
            "step",
            model={"path": "model", "dtype": "float32"},
            prune={"kinds": ["mlp"], "target": 35 / 96, "iterations": 4},
            evaluation={"every": 4, "perplexity": []},
            checkpoint={"keep_last": 4},
        )
        self.start = self.folder / "start"
        self.succeeds("run", config, "--run-dir", self.start)
        shutil.rmtree(self.start / "ckpt/iter-000004")
        before = (self.start / "ckpt/iter-000003/state.h5").read_bytes()

        exact, _ = self.one_step("float64", "float64", 1, 1)
        results = {
            (t, d): self.one_step(f"{t}x{d}", None, t, d) for t, d in [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)]
        }
        base, removed = results[1, 1]
        self.assertEqual(before, (self.folder / "2x2/ckpt/iter-000003/state.h5").read_bytes())
        # One layout's own error in float32, with a factor for the other order of sums.
        bound = 4 * max(abs(base[unit] - exact[unit]) for unit in exact)
        falling, staying = sorted(exact.values())[len(removed) - 1 : len(removed) + 1]
        cut = falling
        self.assertLess(bound, 1e-3 * cut)
        self.assertLessEqual(staying - falling, bound, "the cut must lie between twins, or this tests little")
        for layout, (scores, others) in results.items():
            with self.subTest(layout=layout):
                self.assertEqual(scores.keys(), exact.keys())
                self.assertLessEqual(max(abs(scores[unit] - exact[unit]) for unit in exact), bound)
                self.assertEqual(len(others), len(removed))
                for unit in others ^ removed:
                    self.assertLessEqual(abs(exact[unit] - cut), bound, unit)
                # Everything clearly below the cut fell, in every layout.
                self.assertLessEqual({u for u, s in exact.items() if s < cut - bound}, others)


if __name__ == "__main__":
    main()
