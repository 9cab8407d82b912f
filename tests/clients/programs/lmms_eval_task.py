"""The functions of a task of lmms-eval: a question's turns, its pictures where they stand."""

from PIL import Image


def messages(doc, lmms_eval_specific_kwargs=None):
    images = iter(doc["images"])
    turns = []
    for turn in doc["messages"]:
        first, *others = turn["content"].split("<image>\n")
        content = [{"type": "text", "text": first}] if first else []
        for text in others:
            content.append({"type": "image", "url": Image.open(next(images))})
            content.append({"type": "text", "text": text})
        turns.append({"role": turn["role"], "content": content})
    return turns


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["messages"][-1]["content"]


def visuals(doc):
    return [Image.open(file) for file in doc["images"]]


def right(doc, results):
    return {"exact_match": float(results[0].strip() == doc["truth"])}
