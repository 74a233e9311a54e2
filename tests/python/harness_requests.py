"""What lm-evaluation-harness 0.4.13 asks a model for records of its data sets.

harness_requests.py FOLDER RECORDS.json: FOLDER holds the harness (launch/requirements/
lm-eval-0.4.13.txt). Reads {task: [record]} and prints {task: [{"requests": [[context,
continuation]], "right": index, "lengths": [characters]}]}; for gsm8k, of which the records are
{"train": [record], "test": [record]}, [{"prompt": text, "until": [text], "answer": text}], with
five examples drawn by its default seed.
"""

import json
import os
import pathlib
import sys
import tempfile

folder = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(folder))
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

from lm_eval.api.task import ConfigurableTask  # noqa: E402
from lm_eval.tasks._yaml_loader import load_yaml  # noqa: E402

FILES = {
    "boolq": "super_glue/boolq/default.yaml",
    "piqa": "piqa/piqa.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "arc": "arc/arc_easy.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "medqa": "medqa/medqa.yaml",
}


def questions(records, scratch):
    config = load_yaml(folder / "lm_eval" / "tasks" / "gsm8k" / "gsm8k.yaml")
    files = {split: f"{scratch}/{split}.json" for split in records}
    for split, path in files.items():
        pathlib.Path(path).write_text("\n".join(map(json.dumps, records[split])))
    config.update(
        dataset_path="json",
        dataset_name=None,
        dataset_kwargs={"data_files": files, "cache_dir": scratch},
    )
    task = ConfigurableTask(config=config)
    task.set_fewshot_seed(1234)
    for doc in task.test_docs():
        prompt, settings = task.construct_requests(
            doc, task.fewshot_context(doc, 5), metadata=(None, 0, 1)
        ).args
        yield {"prompt": prompt, "until": settings["until"], "answer": task.doc_to_target(doc)}


def task_of(name, records, scratch):
    config = load_yaml(folder / "lm_eval" / "tasks" / FILES[name])
    path = pathlib.Path(scratch) / f"{name}.json"
    path.write_text("\n".join(map(json.dumps, records)))
    config.update(
        dataset_path="json",
        dataset_name=None,
        training_split=None,
        test_split=None,
        validation_split="train",
        dataset_kwargs={"data_files": str(path), "cache_dir": scratch},
    )
    return ConfigurableTask(config=config)


def asked(task, doc):
    requests = task.construct_requests(doc, task.fewshot_context(doc, 0), metadata=(None, 0, 1))
    return {
        "requests": [list(request.args[:2]) for request in requests],
        "right": int(task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)),
        "lengths": [len(choice) for choice in task.doc_to_choice(doc)],
    }


if __name__ == "__main__":
    records = json.loads(pathlib.Path(sys.argv[2]).read_text())
    out = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, those in records.items():
            if name == "gsm8k":
                out[name] = list(questions(those, scratch))
                continue
            task = task_of(name, those, scratch)
            out[name] = [asked(task, doc) for doc in task.validation_docs()]
    json.dump(out, sys.stdout, indent=1, ensure_ascii=False)
