"""A model with experts out of the fixture model: every expert is its MLP with noise of its own, the router is random.

make_experts.py mixtral|qwen3_moe FIXTURE OUT

Mixtral has 8 experts and sends a token to 2 of them, Qwen3-MoE 16 and 4.
"""
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

kind, fixture, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
SEED = 20261125
GATED = ("gate_proj", "up_proj", "down_proj")
KINDS = {
    "mixtral": ("MixtralForCausalLM", "block_sparse_moe", ("w1", "w3", "w2"), {
        "num_local_experts": 8, "num_experts_per_tok": 2,
    }),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "mlp", GATED, {
        "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 512, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [],
    }),
}

architecture, module, names, extra = KINDS[kind]
generator = torch.Generator().manual_seed(SEED)
named = {"architectures": [architecture], "model_type": kind}
config = json.loads((fixture / "config.json").read_text()) | extra | named
state = load_file(fixture / "model.safetensors")
experts = extra.get("num_local_experts") or extra["num_experts"]
for layer in range(config["num_hidden_layers"]):
    at = f"model.layers.{layer}"
    for part, name in zip(GATED, names):
        weight = state.pop(f"{at}.mlp.{part}.weight").float()
        for expert in range(experts):
            noise = torch.randn(weight.shape, generator=generator) * weight.std() * 0.3
            state[f"{at}.{module}.experts.{expert}.{name}.weight"] = (weight + noise).bfloat16()
    router = torch.randn(experts, config["hidden_size"], generator=generator) * 0.25
    state[f"{at}.{module}.gate.weight"] = router.bfloat16()
    for norm in ("q_norm", "k_norm") if kind == "qwen3_moe" else ():
        state[f"{at}.self_attn.{norm}.weight"] = torch.full((config["head_dim"],), 1.5).bfloat16()
folder.mkdir(parents=True, exist_ok=True)
for file in fixture.iterdir():
    if file.name not in ("config.json", "model.safetensors"):
        shutil.copyfile(file, folder / file.name)
(folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
save_file(state, folder / "model.safetensors", {"format": "pt"})
