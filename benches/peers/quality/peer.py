"""Jobs of one peer: each quantizes a model, then writes what was saved as plain f32. Runs in the peer's own environment.

    python peer.py PEER MODEL WINDOWS.json OUT METHOD:SCHEME...    # gptq:w4a16-g128 gptq:w4a16-g64-asym rtn:w4a16-channel ...

Of each job it leaves in OUT what the peer saved in its own layout (PEER:METHOD:SCHEME), that as a folder of f32 (the same and .plain), and
the figures (the same and .json): seconds and CPU seconds of the imports and of the job (loading the model, quantizing, saving), peak
memory, or the error. A job whose figures are there is not done again.

The packages are imported once and each job is a fork after that; gptqmodel and auto_round, which may start threads when they are
imported, are imported in the fork, as part of the job's figures. The f32 folder is read with the peer's own code; it has all tensors of MODEL, those the peer decoded
and those it left, or changed, as floats. A job fails unless all linear layers of the blocks are quantized and nothing else is.
"""

import importlib
import json
import os
import re
import resource
import shutil
import sys
import time
import traceback
from pathlib import Path

NOT_BLOCKS = ("embed_tokens", "lm_head")


def load(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options)


def decoded_by_forward(model, kinds):
    """Yields (name, weight) of each quantized layer: its outputs for the unit vectors, in f32."""
    import torch

    for name, module in model.named_modules():
        if isinstance(module, kinds):
            for key, buffer in module.named_buffers():
                if buffer is not None and buffer.is_floating_point():
                    module.register_buffer(key, buffer.float())
            width = getattr(module, "in_features", None) or module.infeatures
            with torch.no_grad():
                yield f"{name}.weight", module(torch.eye(width)).T.contiguous()


# llm-compressor: the package llmcompressor


def llm_compressor(method, bits, group, symmetric, folder, rows, out):
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    def common(observer=None):
        shape = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
        observed = {"observer": observer} if observer else {}
        weights = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **shape, **observed)
        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        return {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}

    recipes = {
        "rtn": lambda: QuantizationModifier(**common()),
        "gptq": lambda: GPTQModifier(**common()),  # actorder: static
        "gptq-no-actorder": lambda: GPTQModifier(**common(), actorder=None),
        "gptq-actorder-weight": lambda: GPTQModifier(**common(), actorder="weight"),
        "gptq-mse": lambda: GPTQModifier(**common("mse")),
        "awq": lambda: [AWQModifier(), QuantizationModifier(**common())],
    }
    begin = spent()
    model = load(folder, dtype="auto")
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]})
    calibration = {"dataset": data, "max_seq_length": len(rows[0]), "num_calibration_samples": len(rows)}
    oneshot(model=model, recipe=recipes[method](), **({} if method == "rtn" else calibration))
    model.save_pretrained(out, save_compressed=True)
    return begin


def llm_compressor_plain(out):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig.model_validate(json.loads(Path(out, "config.json").read_text())["quantization_config"])
    (scheme,) = config.config_groups.values()
    stored = tensors(out)
    for packed in [name for name in stored if name.endswith(".weight_packed")]:
        layer = packed.removesuffix(".weight_packed")
        keys = [key for key in stored if key.startswith(f"{layer}.")]
        state = {key.removeprefix(f"{layer}."): stored.pop(key) for key in keys}
        state["weight_scale"] = state["weight_scale"].float()
        compressor = BaseCompressor.get_value_from_registry(scheme.format or config.format)
        yield f"{layer}.weight", compressor.decompress(state, scheme)["weight"].float()


# GPTQModel: the package gptqmodel


def gptqmodel(method, bits, group, symmetric, folder, rows, out):
    # By default 7.7.0 makes one worker on two cores, then fails for want of a second.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization.config import GPTAQConfig

    options = {"gptq": {}, "gptaq": {"gptaq": GPTAQConfig()}}[method]  # desc_act off, act_group_aware on
    begin = spent()
    config = QuantizeConfig(bits=bits, group_size=group or -1, sym=symmetric, device="cpu", **options)
    model = GPTQModel.load(folder, config)
    data = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]
    model.quantize(data, batch_size=1, backend=BACKEND.TORCH)
    model.save(out)
    return begin


def gptqmodel_plain(out):
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear

    model = GPTQModel.load(out, device="cpu", backend=BACKEND.TORCH, dtype="float32").model
    return decoded_by_forward(model, BaseQuantLinear)


# AutoRound: the package auto-round


def auto_round(method, bits, group, symmetric, folder, rows, out):
    import torch
    from auto_round import AutoRound

    options = {
        "rtn": {"iters": 0, "disable_opt_rtn": True},
        "opt-rtn": {"iters": 0},
        "default": {"iters": 200},
        "best": {"iters": 1000},
        "light": {"iters": 50, "lr": 5e-3},
        "alg-ext": {"iters": 200, "enable_alg_ext": True},
    }[method]
    from transformers import AutoTokenizer

    begin = spent()
    batches = [torch.tensor(rows[at : at + 8]) for at in range(0, len(rows), 8)]
    data = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in batches]
    job = AutoRound(
        folder,
        tokenizer=AutoTokenizer.from_pretrained(folder),
        scheme="W4A16",
        bits=bits,
        group_size=group or -1,
        sym=symmetric,
        dataset=data,
        seqlen=len(rows[0]),
        nsamples=len(rows),
        batch_size=8,
        device_map="cpu",
        **options,
    )
    job.quantize_and_save(out, format="auto_round")
    for inner in [path for path in Path(out).iterdir() if path.is_dir()]:  # tuned models get a folder of their own below
        shutil.copytree(inner, out, dirs_exist_ok=True)
        shutil.rmtree(inner)
    return begin


def auto_round_plain(out):
    import torch
    from transformers import AutoRoundConfig

    model = load(out, dtype=torch.float32, device_map="cpu", quantization_config=AutoRoundConfig(backend="torch"))
    kinds = tuple({type(module) for module in model.modules() if hasattr(module, "qweight")})
    return decoded_by_forward(model, kinds)


# HQQ: the package hqq


def hqq(method, bits, group, symmetric, folder, rows, out):
    import torch
    from hqq.core.quantize import BaseQuantizeConfig
    from hqq.models.hf.base import AutoHQQHFModel

    if symmetric:
        sys.exit("hqq always stores a zero point")
    axis = {"default": {}, "axis0": {"axis": 0}}[method]
    begin = spent()
    model = load(folder, dtype="auto")
    config = BaseQuantizeConfig(nbits=bits, group_size=group or None, **axis)
    AutoHQQHFModel.quantize_model(model, quant_config=config, compute_dtype=torch.float32, device="cpu")
    AutoHQQHFModel.save_quantized(model, out)
    return begin


def hqq_plain(out):
    import torch
    from hqq.core.quantize import HQQLinear
    from hqq.models.hf.base import AutoHQQHFModel

    model = AutoHQQHFModel.from_quantized(out, compute_dtype=torch.float32, device="cpu")
    for name, module in model.named_modules():
        if isinstance(module, HQQLinear):
            yield f"{name}.weight", module.dequantize().float()


# What quantizes, what decodes, and what may be imported before the fork.
PEERS = {
    "llm-compressor": (llm_compressor, llm_compressor_plain, ["llmcompressor", "llmcompressor.modifiers.gptq", "datasets"]),
    "gptqmodel": (gptqmodel, gptqmodel_plain, ["torch", "transformers", "datasets"]),
    "auto-round": (auto_round, auto_round_plain, ["torch", "transformers", "datasets"]),
    "hqq": (hqq, hqq_plain, ["hqq.core.quantize", "hqq.models.hf.base", "transformers"]),
}


def spent():
    """Seconds on the wall and of CPU time, children's too, so far."""
    of_all = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.time(), sum(used.ru_utime + used.ru_stime for used in of_all)


def tensors(folder):
    from safetensors.torch import load_file

    return {name: tensor for path in sorted(Path(folder).glob("*.safetensors")) for name, tensor in load_file(path).items()}


def parsed(scheme):
    bits, group, asymmetric = re.fullmatch(r"w(\d)a16-(?:g(\d+)|channel)(-asym)?", scheme).groups()
    return int(bits), int(group or 0), asymmetric is None


def plain(decoded, folder, out, target):
    import torch
    from safetensors.torch import save_file

    original = {name: tensor.float() for name, tensor in tensors(folder).items()}
    blocks = {n for n, t in original.items() if t.dim() == 2 and not any(part in n for part in NOT_BLOCKS)}
    decoded = dict(decoded)
    if decoded.keys() != blocks:
        raise ValueError(f"quantized are not the blocks' layers: {sorted(decoded.keys() ^ blocks)[:5]}")
    left = {n: t.float() for n, t in tensors(out).items() if n in original and n not in blocks}
    changed = [n for n in left if (left[n] - original[n]).abs().max() > 2**-8 * original[n].abs().max()]
    if any(part in name for part in NOT_BLOCKS for name in changed):
        raise ValueError(f"changed: {changed}")
    written = {**original, **left, **decoded}
    written = {name: written[name].reshape(tensor.shape).contiguous() for name, tensor in original.items()}
    target.mkdir()
    save_file(written, target / "model.safetensors", metadata={"format": "pt"})
    for path in [*Path(folder).glob("*token*"), *Path(folder).glob("generation_config.json")]:
        shutil.copyfile(path, target / path.name)
    config = json.loads(Path(folder, "config.json").read_text()) | {"torch_dtype": "float32"}
    (target / "config.json").write_text(json.dumps(config, indent=2))
    error = sum((written[n] - original[n]).square().sum() for n in blocks) / sum(original[n].square().sum() for n in blocks)
    return {"layers": len(decoded), "relative_error": error.sqrt().item(), "floats_changed": len(changed)}


def job(peer, folder, rows, out, method, scheme, start):
    quantize, decoded, _ = PEERS[peer]
    begin = quantize(method, *parsed(scheme), folder, rows, str(out))
    end = spent()
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    figures = {
        "import_secs": start[0] + begin[0],
        "import_cpu_secs": start[1] + begin[1],
        "secs": end[0] - begin[0],
        "cpu_secs": end[1] - begin[1],
        "peak_rss_mib": max(resource.getrusage(of).ru_maxrss for of in who) / 1024,
    }
    return figures | plain(decoded(str(out)), folder, out, Path(f"{out}.plain"))


def main(peer, folder, windows, outs, *jobs):
    folder, windows, outs = map(os.path.abspath, (folder, windows, outs))
    os.chdir(outs)  # some leave logs where they run
    begin = spent()
    for name in PEERS[peer][2]:
        importlib.import_module(name)
    imported = spent()
    rows = json.loads(Path(windows).read_text())
    for method, scheme in (each.split(":") for each in jobs):
        out = Path(outs, f"{peer}:{method}:{scheme}")
        if Path(f"{out}.json").exists():
            continue
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(f"{out}.plain", ignore_errors=True)
        figures = {"peer": peer, "method": method, "scheme": scheme, "model": Path(folder).name}
        figures |= {"cores": os.cpu_count(), "load_before": os.getloadavg()[0]}
        child = os.fork()
        if child == 0:
            try:
                forked = spent()
                start = (imported[0] - begin[0] - forked[0], imported[1] - begin[1] - forked[1])
                figures |= job(peer, folder, rows, out, method, scheme, start)
            except BaseException as error:
                figures["error"] = f"{type(error).__name__}: {error}"
                traceback.print_exc()
            Path(f"{out}.json").write_text(json.dumps(figures))
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)
        print(Path(f"{out}.json").read_text() if Path(f"{out}.json").exists() else f"{out}: died", flush=True)


if __name__ == "__main__":  # auto_round starts processes that import this file
    main(*sys.argv[1:])
