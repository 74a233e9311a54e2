"""Records of ESPALIER_TEST_DATA's data/mcq in the fields of the published data sets."""


def published(name, record):
    texts, answer = record["choices"], record["answer"]
    if name == "boolq":
        return {
            "passage": record["passage"],
            "question": record["question"],
            "label": int(texts[answer] == "yes"),
        }
    if name == "piqa":
        return {"goal": record["question"], "sol1": texts[0], "sol2": texts[1], "label": answer}
    if name == "winogrande":
        return {
            "sentence": record["sentence"],
            "option1": texts[0],
            "option2": texts[1],
            "answer": str(answer + 1),
        }
    if name == "hellaswag":
        activity, context = record["context"].split(": ", 1)
        return {
            "activity_label": activity,
            "ctx_a": context,
            "ctx_b": "",
            "endings": texts,
            "label": str(answer),
        }
    stem = "question_stem" if name == "openbookqa" else "question"
    labels = [chr(ord("A") + i) for i in range(len(texts))]
    return {
        stem: record["question"],
        "choices": {"text": texts, "label": labels},
        "answerKey": labels[answer],
    }
