"""The compressed-tensors package decodes our folders to the very numbers that attar does, bit for bit.

check_decoded.py FOLDER PLAIN [FOLDER PLAIN]...

PLAIN is what `attar convert FOLDER -o PLAIN` makes. Scales are widened to f32 first: the package multiplies in the type of the scales,
and rounds the product to that.
"""
import json
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file

WIDENED = (torch.float16, torch.bfloat16)


def tensors(folder):
    return {name: tensor for path in sorted(Path(folder).glob("*.safetensors")) for name, tensor in load_file(path).items()}


def differing(folder, plain):
    config = QuantizationConfig.model_validate(json.loads(Path(folder, "config.json").read_text())["quantization_config"])
    (scheme,) = config.config_groups.values()
    compressor = BaseCompressor.get_value_from_registry(scheme.format or config.format)
    stored, decoded = tensors(folder), tensors(plain)
    modules = sorted(name.removesuffix(".weight_scale") for name in stored if name.endswith(".weight_scale"))
    count, dtypes = 0, set()
    for module in modules:
        state = {name.removeprefix(f"{module}."): tensor for name, tensor in stored.items() if name.startswith(f"{module}.")}
        state = {name: tensor.float() if tensor.dtype in WIDENED else tensor for name, tensor in state.items()}
        weight = compressor.decompress(state, scheme)["weight"]
        # Numbers of powers of two and of four bits are decoded to bf16: then ours must round to that.
        count += (weight != decoded[f"{module}.weight"].to(weight.dtype)).sum().item()
        dtypes.add(str(weight.dtype).removeprefix("torch."))
    print(f"{Path(folder).name}: {len(modules)} matrices, {count} numbers differ, compared as {', '.join(dtypes)}")
    return count or not modules


folders = sys.argv[1:]
if any([differing(*pair) for pair in zip(folders[::2], folders[1::2])]):
    sys.exit("the package decodes other numbers than attar does")
