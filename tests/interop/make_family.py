"""Makes a random model of one family, with books-2m's tokenizer, as a Hugging Face folder.

make_family.py FAMILY TOKENIZER_FOLDER OUT

Shapes are such that every block format and llama.cpp's own limits fit; norms are far from their usual values, so that none
can be forgotten.
"""
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

family, tokenizer, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])

COMMON = {
    "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 4096, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5,
    "bos_token_id": 4094, "eos_token_id": 4095, "pad_token_id": 0, "torch_dtype": "bfloat16",
}
GEMMA = {"head_dim": 64, "query_pre_attn_scalar": 64, "hidden_activation": "gelu_pytorch_tanh"}
PHI3 = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "sliding_window": 1024}
PAIRS = 24  # of three quarters of 64 features
FAMILIES = {
    "gemma2": GEMMA | {
        "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "sliding_window": 100,
        "attn_logit_softcapping": 3.0, "final_logit_softcapping": 15.0,
    },
    "gemma3": GEMMA | {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 100,
        "rope_theta": 100000.0, "rope_local_base_freq": 1000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    },
    "gemma3-pattern": GEMMA | {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "sliding_window": 100,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    },
    "phi3": PHI3,
    "phi3-short": PHI3 | {
        "original_max_position_embeddings": 512, "partial_rotary_factor": 0.75, "tie_word_embeddings": True,
        "rope_scaling": {
            "type": "longrope", "short_factor": [1 + i / 20 for i in range(PAIRS)],
            "long_factor": [1 + i for i in range(PAIRS)],
        },
    },
    "phi3-long": PHI3 | {
        "original_max_position_embeddings": 256, "rope_scaling": {
            "type": "longrope", "short_factor": [1 + i / 20 for i in range(32)], "long_factor": [1 + i for i in range(32)],
        },
    },
    "olmo2": {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "rope_theta": 500000.0},
    "smollm3": {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3"},
    "granite": {
        "architectures": ["GraniteForCausalLM"], "model_type": "granite", "embedding_multiplier": 12.0,
        "attention_multiplier": 0.05, "residual_multiplier": 0.22, "logits_scaling": 4.0, "tie_word_embeddings": True,
    },
}

out.mkdir(parents=True, exist_ok=True)
for path in tokenizer.glob("tokenizer*"):
    shutil.copy(path, out)
(out / "config.json").write_text(json.dumps(COMMON | FAMILIES[family], indent=2) + "\n")
generator = torch.Generator().manual_seed(20261125)
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(out), dtype=torch.float32)
centre = 0.0 if "Gemma" in type(model).__name__ else 1.0  # Gemma's norms add one to their weight
state = {}
for name, parameter in model.named_parameters():
    noise = torch.randn(parameter.shape, generator=generator)
    if "norm" in name:
        value = centre + 0.3 * noise
    else:
        value = 0.1 * noise if "embed" in name else noise * parameter.shape[1] ** -0.5
    state[name] = value.to(torch.bfloat16).contiguous()
save_file(state, out / "model.safetensors", {"format": "pt"})
