"""Every benchmark's official layout with two or three questions in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

PEOPLE = ["red"] * 3 + ["dark red"] * 6 + ["maroon"]


def write(root: Path, files: dict[str, Any]) -> Path:
    """JSON files, and pictures where the value is a colour."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            Image.new("RGB", (8, 6), content).save(path)
        else:
            path.write_text(json.dumps(content))
    return root


def _answers(texts: list[str]) -> list[dict[str, Any]]:
    return [{"answer": text, "answer_confidence": "yes", "answer_id": i + 1} for i, text in enumerate(texts)]


def _coco(stem: str, answers: str, year: str = "2014") -> dict[str, Any]:
    asked = [
        {"image_id": 42, "question": "What color is it?", "question_id": 42000},
        {"image_id": 73, "question": "Is it red?", "question_id": 73001},
    ]
    notes = [  # not in the questions' order
        {"question_id": 73001, "image_id": 73, "answer_type": "yes/no", "answers": _answers(["yes"] * 10)},
        {"question_id": 42000, "image_id": 42, "answer_type": "other", "answers": _answers(PEOPLE)},
    ]
    return {
        f"{stem}_val{year}_questions.json": {"questions": asked, "data_subtype": "val2014"},
        f"{answers}_val{year}_annotations.json": {"annotations": notes},
        "val2014/COCO_val2014_000000000042.jpg": "red",
        "val2014/COCO_val2014_000000000073.jpg": "blue",
    }


def vqav2(root: Path) -> Path:
    tests = [{"image_id": i, "question": f"What is {i}?", "question_id": i * 1000} for i in (1, 2, 3)]
    return write(
        root,
        {
            **_coco("v2_OpenEnded_mscoco", "v2_mscoco"),
            "v2_OpenEnded_mscoco_test-dev2015_questions.json": {"questions": tests[1:2]},
            "v2_OpenEnded_mscoco_test2015_questions.json": {"questions": tests},
            "test2015/COCO_test2015_000000000002.jpg": "green",
        },
    )


def okvqa(root: Path) -> Path:
    return write(root, _coco("OpenEnded_mscoco", "mscoco"))


def gqa(root: Path) -> Path:
    def row(question: str, answer: str, kind: str) -> dict[str, Any]:
        return {"imageId": "n1", "question": question, "answer": answer, "types": {"structural": kind}}

    rows = {"20": row("What is it?", "traffic light", "query"), "03": row("Is it on?", "no", "verify")}
    return write(
        root,
        {
            "questions1.2/val_balanced_questions.json": rows,
            "questions1.2/submission_all_questions.json": {"7": {"imageId": "n1", "question": "Who?"}},
            "images/n1.jpg": "red",
        },
    )


def textvqa(root: Path) -> Path:
    row = {
        "question_id": 34602,
        "question": "what is the brand?",
        "image_id": "003a",
        "ocr_tokens": ["DAKOTA"],
    }
    return write(
        root,
        {
            "TextVQA_0.5.1_val.json": {
                "data": [{**row, "answers": ["nous les gosses"] * 4 + ["dakota"] * 6}]
            },
            "TextVQA_0.5.1_test.json": {"data": [{**row, "question_id": 9, "image_id": "f1"}]},
            "train_images/003a.jpg": "red",
            "test_images/f1.jpg": "blue",
        },
    )


def docvqa(root: Path) -> Path:
    row = {
        "questionId": 49153,
        "question": "What is it?",
        "image": "documents/pybv0228_81.png",
    }
    return write(
        root,
        {
            "val_v1.0_withQT.json": {
                "dataset_name": "docvqa",
                "data": [{**row, "answers": ["0.28", "0.2 8"]}],
            },
            "test_v1.0.json": {"data": [{**row, "questionId": 57344}]},
            "documents/pybv0228_81.png": "white",
        },
    )


def infovqa(root: Path) -> Path:
    row = {"questionId": 98313, "question": "Which platform?", "image_local_name": "38222.jpeg"}
    return write(
        root,
        {
            "infographicsVQA_val_v1.0_withQT.json": {"data": [{**row, "answers": ["linkedin"]}]},
            "infographicsVQA_test_v1.0.json": {"data": [{**row, "questionId": 5}]},
            "images/38222.jpeg": "white",
        },
    )


def chartqa(root: Path) -> Path:
    return write(
        root,
        {
            "ChartQA Dataset/test/test_human.json": [
                {"imgname": "41.png", "query": "How many?", "label": "14"},
                {"imgname": "41.png", "query": "Which?", "label": "Brazil"},
            ],
            "ChartQA Dataset/test/test_augmented.json": [
                {"imgname": "two.png", "query": "What share?", "label": "57"}
            ],
            "ChartQA Dataset/test/png/41.png": "white",
            "ChartQA Dataset/test/png/two.png": "white",
        },
    )


def scienceqa(root: Path) -> Path:
    def row(**more: Any) -> dict[str, Any]:
        return {"question": "Which is a planet?", "choices": ["Sun", "Mars"], "answer": 1, "hint": "", **more}

    problems = {
        "5": row(image="image.png", hint="Look at the sky."),
        "11": row(image=None, choices=["yes", "no", "maybe"], answer=0),
        "12": row(image="image.png"),
    }
    return write(
        root,
        {
            "problems.json": problems,
            "pid_splits.json": {"test": ["5", "11"], "val": ["12"]},
            "images/test/5/image.png": "black",
            "images/val/12/image.png": "black",
        },
    )


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    made.__name__: made for made in (vqav2, gqa, okvqa, textvqa, docvqa, infovqa, chartqa, scienceqa)
}
