#!/usr/bin/env python3
"""What lm-evaluation-harness 0.4.13 measures on the trained model of ESPALIER_TEST_DATA, by its own tasks: every item's log
likelihoods, acc and acc_norm of seven data sets of multiple choice; answers, what its filters find and exact match of gsm8k.

  harness_figures.py FOLDER DATA > harness_figures.json

FOLDER holds the harness (launch/setup.sh --tests --harness: .venv/lm-eval-0.4.13), DATA is ESPALIER_TEST_DATA. The model rarely
answers a question of gsm8k rightly, so every second question's answer is replaced by the number that the harness extracts from
what the model says. `clear` is false where two tokens were nearly as likely as each other: rounding decides there.
"""

import hashlib
import json
import os
import pathlib
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "python")]

from harness_requests import load_yaml, task_of  # noqa: E402  (takes FOLDER from the command line, too)
from published_records import published  # noqa: E402

import torch  # noqa: E402
import transformers  # noqa: E402
from lm_eval import evaluator  # noqa: E402
from lm_eval.api.task import ConfigurableTask  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

FOLDER, DATA = (pathlib.Path(argument) for argument in sys.argv[1:3])
ITEMS = 40
FILES = {
    "arc_easy": ("arc", "arc_easy_validation"),
    "arc_challenge": ("arc", "arc_challenge_validation"),
    "boolq": ("boolq", "boolq_validation"),
    "hellaswag": ("hellaswag", "hellaswag_validation"),
    "openbookqa": ("openbookqa", "openbookqa_validation"),
    "piqa": ("piqa", "piqa_validation"),
    "winogrande": ("winogrande", "winogrande_validation"),
}
QUESTIONS, SHOTS, NEW = 24, 2, 48
GAP = 1e-3  # of logits, whose rounding in float32 is some 1e-5
FILTERS = {"strict-match": "strict", "flexible-extract": "flexible"}


def lines_of(path, count):
    with open(DATA / "data" / path, encoding="utf-8") as lines:
        return [json.loads(line) for _, line in zip(range(count), lines)]


def evaluated(model, name, task):
    """The harness's figures and samples of one task."""
    task.set_config("task", name)
    out = evaluator.evaluate(lm=model, task_dict={name: task}, log_samples=True, bootstrap_iters=0)
    return out["results"][name], sorted(out["samples"][name], key=lambda sample: sample["doc_id"])


def choices(model, scratch):
    found = {}
    for name, (layout, file) in FILES.items():
        records = [published(layout, record) for record in lines_of(f"mcq/{file}.jsonl", ITEMS)]
        figures, samples = evaluated(model, name, task_of(layout, records, scratch))
        found[name] = {
            "layout": layout,
            "file": file,
            **{metric: figures[f"{metric},none"] for metric in ("acc", "acc_norm") if f"{metric},none" in figures},
            "items": [{"log_likelihoods": [float(response[0]) for response in sample["filtered_resps"]],
                       **{metric: sample[metric] for metric in ("acc", "acc_norm") if metric in sample}} for sample in samples],
        }
    return found


def gsm8k(records, scratch):
    config = load_yaml(FOLDER / "lm_eval" / "tasks" / "gsm8k" / "gsm8k.yaml")
    files = {split: f"{scratch}/gsm8k-{split}-{hashlib.sha256(json.dumps(those).encode()).hexdigest()[:8]}.json"
             for split, those in records.items()}
    for split, path in files.items():
        pathlib.Path(path).write_text("\n".join(map(json.dumps, records[split])))
    config.update(dataset_path="json", dataset_name=None, dataset_kwargs={"data_files": files, "cache_dir": scratch},
                  num_fewshot=SHOTS)
    config["generation_kwargs"]["max_gen_toks"] = NEW
    task = ConfigurableTask(config=config)
    task.set_fewshot_seed(1234)
    return task


def clear(model, sample):
    """Whether one token leads clearly at every step up to the last of the answer."""
    prompt = sample["arguments"][0][0]
    ids = model.tok_encode(prompt)
    with torch.no_grad():
        out = model.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=NEW, return_dict_in_generate=True,
                                   output_logits=True)
    best = torch.stack(out.logits).topk(2).values
    return (best[..., 0] - best[..., 1]).min().item() > GAP


def answers(model, scratch):
    train, test = lines_of("math/gsm8k_train.jsonl", 200), lines_of("math/gsm8k_test.jsonl", QUESTIONS)
    _, samples = evaluated(model, "gsm8k", gsm8k({"train": train, "test": test}, scratch))
    flexible = [sample for sample in samples if sample["filter"] == "flexible-extract"]
    records = [dict(record) for record in test]
    for record, sample in list(zip(records, flexible))[::2]:
        number = sample["filtered_resps"][0]
        record["answer"] = f"So it is {number}.\n#### {number}"
    figures, samples = evaluated(model, "gsm8k", gsm8k({"train": train, "test": records}, scratch))
    items = [{"question": record["question"], "answer": record["answer"]} for record in records]
    for sample in samples:
        item, name = items[sample["doc_id"]], FILTERS[sample["filter"]]
        item["text"] = sample["resps"][0][0]
        if name == "flexible":
            item["clear"] = clear(model, sample)
        item[name] = sample["filtered_resps"][0]
        item[f"{name}_right"] = sample["exact_match"]
    return {"shots": SHOTS, "new_tokens": NEW, "train": len(train),
            **{name: figures[f"exact_match,{filter}"] for filter, name in FILTERS.items()}, "items": items}


def main():
    path = DATA / "models/tri-qwen2"
    torch.set_num_threads(1)
    # Not AutoTokenizer: for any qwen2 it puts Qwen's own way of splitting texts in the place of tokenizer.json's.
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(path)
    model = HFLM(pretrained=str(path), tokenizer=tokenizer, dtype="float32", device="cpu", batch_size=8, max_length=1024)
    with tempfile.TemporaryDirectory() as scratch:
        figures = {
            "command": "tests/oracle/harness_figures.py .venv/lm-eval-0.4.13 $ESPALIER_TEST_DATA, of lm-eval 0.4.13",
            "model_sha256": hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest(),
            "multiple_choice": choices(model, scratch),
            "gsm8k": answers(model, scratch),
        }
    json.dump(figures, sys.stdout, indent=1, ensure_ascii=False)
    print()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
