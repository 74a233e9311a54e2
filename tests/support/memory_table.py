"""The table of docs/memory.md, from the program's own arithmetic: memory_table.py [--write]

ESPALIER names the program. --write puts the table into the page; otherwise it is printed.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/memory.md"
BEGIN, END = "<!-- made by tests/support/memory_table.py -->\n", "<!-- end -->\n"
TOKENS = 8192
TENSOR = (1, 2, 4, 8)
CRITERIA = ("taylor", "taylor_gate")
COMMON = {
    "hidden_act": "silu",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
QWEN2 = {"model_type": "qwen2", "vocab_size": 152064, "use_sliding_window": False, "rope_theta": 1e6}
LLAMA = {"model_type": "llama", "attention_bias": False}
# As the published config.json files say.
MODELS = {
    "Llama-2-7B": LLAMA | {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32000,
                           "num_attention_heads": 32, "num_key_value_heads": 32, "rope_theta": 1e4},
    "Qwen2.5-7B": QWEN2 | {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                           "num_attention_heads": 28, "num_key_value_heads": 4},
    "Qwen2.5-32B": QWEN2 | {"hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64,
                            "num_attention_heads": 40, "num_key_value_heads": 8},
    "Llama-3-70B": LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "vocab_size": 128256,
                            "num_attention_heads": 64, "num_key_value_heads": 8, "rope_theta": 5e5},
}


def plan(program, folder, shape, tensor, criterion):
    (folder / "config.json").write_text(json.dumps(COMMON | shape))
    config = folder / "plan.yaml"
    config.write_text(json.dumps({
        "model": {"path": str(folder)},
        "calibration": {"domains": [{"name": "web", "tokens": "web.h5"}], "micro_batch_tokens": TOKENS},
        "importance": {"criterion": criterion},
    }))
    done = subprocess.run([program, "plan", config, "--tensor", str(tensor), "--json"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def gib(number):
    return f"{number / 2**30:.1f}"


def table(program):
    lines = ["| model | criterion | " + " | ".join(f"tensor {t}" for t in TENSOR) + " | of it hidden states |"]
    lines.append("|---|---|" + "---|" * (len(TENSOR) + 1))
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in MODELS.items():
            for criterion in CRITERIA:
                needs = [plan(program, pathlib.Path(folder), shape, tensor, criterion) for tensor in TENSOR]
                cells = [gib(need["total_bytes"]) for need in needs]
                lines.append(f"| {name} | `{criterion}` | {' | '.join(cells)} | {gib(needs[0]['hidden_state_bytes'])} |")
    return "\n".join(lines) + "\n"


def table_in_page():
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def main():
    made = table(os.environ["ESPALIER"])
    if sys.argv[1:] != ["--write"]:
        print(made, end="")
        return
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + made + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
