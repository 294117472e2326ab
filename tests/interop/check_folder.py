"""transformers loads a folder, plain or quantized, and scores the perplexity attar reported, within 0.1 %, where inputs are rounded within 0.3 %.

check_folder.py FOLDER REPORT.json TEXT

Symmetric folders are loaded as anyone would. With asymmetric ones that fails in transformers 5.24 with compressed-tensors
0.20, whoever wrote them: the empty model it makes first has unpacked zero points. Decoding on loading works, and so it does where
scales have a type of their own: those weights it would multiply as bf16, whatever was asked for. Folders of GPTQ and AWQ are loaded
through gptqmodel, whose kernels multiply in half precision; its own code then decodes them, so that all is multiplied in f32.
Where a folder says that inputs are rounded, they are here too, as vLLM's kernels do it: transformers rounds them to other steps.
"""
import json
import math
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig


def decode(model):
    """Puts what gptqmodel's code makes of each quantized matrix in its place, in f32."""
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    torch.nn.Module.float(model)
    replaced = 0
    for name, module in list(model.named_modules()):
        if not hasattr(module, "qweight"):
            continue
        module.scales = module.scales.float()
        if hasattr(module, "dequantize_weight"):
            weight = module.dequantize_weight()
        else:
            weight = dequantize_gemm(module.qweight, module.qzeros, module.scales, module.bits, module.group_size)
        linear = torch.nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
        linear.weight.data = weight.float().T.contiguous()
        if module.bias is not None:
            linear.bias.data = module.bias.float()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, linear)
        replaced += 1
    assert replaced, "gptqmodel has loaded nothing quantized"


def rounded(x, inputs):
    """Inputs as a program reads them that multiplies in eight bits: a scale for each token, or for so many features of one."""
    runs = x.reshape(*x.shape[:-1], -1, inputs["group_size"] or x.shape[-1])
    largest = runs.abs().amax(-1, keepdim=True)
    if inputs["type"] == "int":
        scale = largest / 127
        codes = (runs * (127 / largest).nan_to_num(0, 0, 0)).round().clamp(-128, 127)
    else:
        scale = (largest / 448).clamp(min=1e-10 / 448 if inputs["group_size"] else 1 / (448 * 512))
        codes = (runs / scale).clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype)
    return (codes * scale).reshape(x.shape)


def round_inputs(model, inputs, ignored):
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name not in ignored:
            module.register_forward_pre_hook(lambda _, args: (rounded(args[0], inputs), *args[1:]))


folder, report_path, text_path = sys.argv[1:]
evaluation = json.load(open(report_path))["evaluation"]
ctx, reported = evaluation["ctx"], evaluation["perplexity"]["value"]

tokenizer = AutoTokenizer.from_pretrained(folder)
quantization = json.load(open(f"{folder}/config.json")).get("quantization_config", {"config_groups": {}})
groups = quantization.get("config_groups", {}).values()
decoded = not all(group["weights"]["symmetric"] and "scale_dtype" not in group["weights"] for group in groups)
options = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if decoded else {}
by_gptqmodel = quantization.get("quant_method") in ("gptq", "awq")
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16 if by_gptqmodel else torch.float32, **options).eval()
if by_gptqmodel:
    decode(model)
for module in model.modules():
    module.quantization_enabled = False  # inputs are rounded below, where they are
    for parameter in module.parameters(recurse=False):
        if parameter.dtype == torch.bfloat16:  # what four-bit numbers are decoded to, whatever was asked for
            parameter.data = parameter.data.float()
inputs = next((group["input_activations"] for group in groups if group["input_activations"]), None)
if inputs:
    round_inputs(model, inputs, quantization["ignore"])
ids = tokenizer(open(text_path, encoding="utf-8").read(), add_special_tokens=False)["input_ids"]
first = [tokenizer.bos_token_id] if tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id else []
step = ctx - len(first)
total, count = 0.0, 0
with torch.no_grad():
    for start in list(range(0, len(ids) - step + 1, step))[: evaluation["chunks"]]:
        window = torch.tensor([first + ids[start : start + step]])
        log_probs = model(window).logits[0, :-1].float().log_softmax(-1)
        total -= log_probs.gather(1, window[0, 1:, None]).double().sum().item()
        count += window.shape[1] - 1
measured = math.exp(total / count)
difference = abs(measured / reported - 1)
print(f"{folder.rsplit('/', 1)[-1]}: transformers {measured:.4f}, attar {reported:.4f} over {count} tokens ({difference:.4%})")
# Where inputs are rounded, a code that falls on the other side moves what follows: noise of 1e-6 in what is rounded moves the figure by 0.04 %.
limit = 3e-3 if inputs else 1e-3
if count != evaluation["tokens"] or difference > limit:
    sys.exit(f"the figures differ by more than {limit:.1%}")
