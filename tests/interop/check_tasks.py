"""Answers of `attar eval --task` and of lm-evaluation-harness on the same model, item by item.

    check_tasks.py MODEL REPORT.json TASK.jsonl... [--items N]

REPORT is what attar wrote. Each task is described to the harness as its own configuration files describe arc_easy, piqa,
winogrande and lambada_openai, with the data of the JSON lines. Needs torch, transformers, lm_eval.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

CHOICES = """
output_type: multiple_choice
doc_to_text: "{{query.removesuffix('\\n')}}\\nAnswer:"
doc_to_target: gold
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
CONTEXTS = """
output_type: multiple_choice
doc_to_text: gold
doc_to_target: continuation
doc_to_choice: context_options
metric_list: [{metric: acc}]
"""
LAST_WORD = """
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: "{{' ' + continuation}}"
metric_list: [{metric: perplexity}, {metric: acc}]
"""


def described(path, folder, items):
    lines = [line for line in path.read_text().splitlines() if line.strip()][:items]
    first = json.loads(lines[0])
    kind = CHOICES if "choices" in first else CONTEXTS if "context_options" in first else LAST_WORD
    data = folder / path.name
    data.write_text("\n".join(lines) + "\n")
    name = f"same_{path.stem}"
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n{kind}"
    )
    return name


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("report")
    parser.add_argument("tasks", nargs="+", type=pathlib.Path)
    parser.add_argument("--items", type=int)
    args = parser.parse_args()

    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    ours = {task["name"]: task for task in json.load(open(args.report))["tasks"]}
    with tempfile.TemporaryDirectory() as folder:
        names = {path.stem: described(path, pathlib.Path(folder), args.items) for path in args.tasks}
        results = lm_eval.simple_evaluate(
            model=HFLM(pretrained=args.model, device="cpu", dtype=torch.float32, batch_size=16),
            tasks=list(names.values()),
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            log_samples=True,
        )
    wrong = False
    for task, name in names.items():
        samples = sorted(results["samples"][name], key=lambda sample: sample["doc_id"])
        mine = ours[task]
        gold = [sample["doc"].get("gold", 1) for sample in samples]
        differing = []
        for metric, picks in (("acc", mine["picked"]), ("acc_norm", mine.get("normalised", []))):
            for at, (sample, picked) in enumerate(zip(samples, picks)):
                if bool(sample[metric]) != (picked == gold[at]):
                    differing.append((metric, at))
        theirs = results["results"][name]
        figures = [f"acc {theirs['acc,none']:.4f} and {mine['accuracy']['value']:.4f}"]
        if "acc_norm,none" in theirs:
            figures.append(f"acc_norm {theirs['acc_norm,none']:.4f} and {mine['normalised_accuracy']['value']:.4f}")
        if "perplexity,none" in theirs:
            figures.append(f"perplexity {theirs['perplexity,none']:.4f} and {mine['perplexity']['value']:.4f}")
            differing += [("perplexity", None)] * (abs(theirs["perplexity,none"] / mine["perplexity"]["value"] - 1) > 1e-4)
        differing += [("items", len(samples))] * (len(samples) != mine["items"])
        print(f"{task}: the harness and attar, {len(samples)} items: {', '.join(figures)}; differing: {differing or 'none'}")
        wrong |= bool(differing)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
