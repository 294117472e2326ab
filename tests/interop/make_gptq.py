"""gptqmodel quantizes a model, on the processor, into a folder of its own.

make_gptq.py MODEL TEXT OUT BITS GROUP [asym]

With `desc_act`, so that columns belong to groups in an order of their own.
"""
import os
import sys

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # on two cores it counts one, and asks for two

from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

model_path, text_path, out, bits, group = sys.argv[1:6]
symmetric = "asym" not in sys.argv[6:]
text = open(text_path, encoding="utf-8").read()
samples = [text[start : start + 2000] for start in range(0, 64_000, 2000)]
config = QuantizeConfig(bits=int(bits), group_size=int(group), sym=symmetric, desc_act=True, act_group_aware=False, device="cpu")
model = GPTQModel.load(model_path, config, backend=BACKEND.GPTQ_TORCH)
model.quantize(samples, batch_size=4)
model.save(out)
