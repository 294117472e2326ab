"""Runs attar beside the peers, scores all outputs with `attar eval`, and prints the table. Needs nothing but Python.

    python scores.py attar ATTAR MODEL CALIB OUT NAME:SCHEME[:OPTION]...    # gptq:w4a16-g128 gptq:w4a16-g128:--precision=bf16
    python scores.py score ATTAR MODEL OUT RESULTS.jsonl HELD_OUT...
    python scores.py table RESULTS.jsonl

OUT is where peer.py left its outputs. `attar` quantizes on the same windows as the peers, 131,072 tokens in windows of 512, on one thread as they.
`score` measures each output once per held-out text (40 windows of 512) against MODEL, and adds a line to RESULTS.jsonl
when all texts are scored.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

TOKENS, CTX, CHUNKS = "131072", "512", "40"


def attar(binary, model, calib, outs, *jobs):
    for spec in jobs:
        method, scheme, *options = spec.split(":")
        label = "-".join([method, *(option.removeprefix("--").replace("=", "-") for option in options)])
        out = Path(outs, f"attar:{label}:{scheme}")
        if Path(f"{out}.json").exists():
            continue
        figures = {"peer": "attar", "method": label, "scheme": scheme, "model": Path(model).name}
        figures |= {"cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
        text = [] if method == "rtn" else ["--calib", calib, "--calib-tokens", TOKENS, "--ctx", CTX]
        command = [binary, "quantize", model, "-o", str(out), "--scheme", scheme, "--method", method.split("+")[0], *text]
        command += ["--no-eval", "--force", "--threads", "1", "--device", "cpu", *options]
        begin = time.time()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        figures |= {"secs": time.time() - begin, "cpu_secs": used.ru_utime + used.ru_stime, "peak_rss_mib": used.ru_maxrss / 1024}
        if status:
            figures["error"] = said.strip()
        Path(f"{out}.json").write_text(json.dumps(figures))
        print(json.dumps(figures), flush=True)


def evaluated(binary, folder, text, reference, report):
    command = [binary, "eval", folder, "--text", text, "--ctx", CTX, "--chunks", CHUNKS, "--threads", "1", "--device", "cpu"]
    subprocess.run([*map(str, command), *reference, "--quiet", "--json", str(report), "--force"], check=True, stdout=subprocess.DEVNULL)
    return json.loads(report.read_text())["evaluation"]


def score(binary, model, outs, results, *texts):
    outs, results = Path(outs), Path(results)
    done = {line["run"] for line in map(json.loads, results.read_text().splitlines())} if results.exists() else set()
    kept = {text: outs / f"reference:{Path(model).name}:{Path(text).stem}" for text in texts}
    for text, folder in kept.items():
        if not folder.exists():
            evaluated(binary, model, text, ["--save-reference", str(folder)], outs / "reference.json")
    for path in sorted(outs.glob("*:*:*.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        figures = json.loads(path.read_text()) if not path.name.startswith("reference:") else {}
        if path.stem in done or figures.get("model") != Path(model).name:
            continue
        plain = outs / f"{path.stem}.plain" if figures["peer"] != "attar" else outs / path.stem
        scores = {}
        for text, reference in () if "error" in figures else kept.items():
            e = evaluated(binary, plain, text, ["--reference", str(reference)], outs / "score.json")
            scores[Path(text).stem] = {
                "kl": e["kl_divergence"]["mean"],
                "kl_error": e["kl_divergence"]["stderr"],
                "perplexity": e["perplexity"]["value"],
            }
        line = {"run": path.stem, **figures, "scores": scores}
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def table(results):
    lines = [json.loads(line) for line in Path(results).read_text().splitlines()]
    texts = list(dict.fromkeys(text for line in lines for text in line["scores"]))
    heads = ["model", "scheme", "peer", "method", *(f"KL, {t}" for t in texts), *(f"perplexity, {t}" for t in texts)]
    heads += ["CPU s", "wall s", "import CPU s", "peak MiB", "load"]
    print("| " + " | ".join(heads) + " |\n|" + "|".join([":--"] * 4 + ["--:"] * (len(heads) - 4)) + "|")
    first = texts[0] if texts else ""
    for line in sorted(lines, key=lambda l: (l["model"], l["scheme"], l["scores"].get(first, {"kl": 99})["kl"])):
        cells = [line["model"], line["scheme"], line["peer"], line["method"]]
        if "error" in line:
            cells += [line["error"].splitlines()[0][:90]]
        else:
            cells += [f"{line['scores'][text]['kl']:.5f}" for text in texts]
            cells += [f"{line['scores'][text]['perplexity']:.3f}" for text in texts]
            cells += [f"{line[key]:.1f}" if key in line else "" for key in ("cpu_secs", "secs", "import_cpu_secs")]
            cells += [f"{line['peak_rss_mib']:.0f}", f"{line['load_before']:.1f}"]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    {"attar": attar, "score": score, "table": table}[sys.argv[1]](*sys.argv[2:])
