"""SparseGPT in PyTorch, as its paper has it: the linear layers of each block in turn, columns as they stand, damping 0.01 of the mean
diagonal, blocks of 128 columns.

python sparsegpt.py MODEL TEXT TOKENS CTX 2:4|0.5 OUT    # saves a folder that transformers and attar load
"""

import sys

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

BLOCK, DAMPING = 128, 0.01


def sparse(weight, hessian, pattern):
    """weight [rows, cols] with zeros and what makes up for them; hessian [cols, cols] is the mean of the inputs' squares and products."""
    w, h = weight.clone().float(), hessian.clone()
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += DAMPING * h.diagonal().mean() * torch.eye(h.shape[0])
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    kept, _, of = pattern.partition(":")
    for start in range(0, w.shape[1], BLOCK):
        end = min(start + BLOCK, w.shape[1])
        block, errors = w[:, start:end].clone(), torch.zeros(w.shape[0], end - start)
        triangle = upper[start:end, start:end]
        gone = torch.zeros_like(block, dtype=torch.bool)
        if not of:
            loss = block**2 / triangle.diagonal() ** 2
            gone = loss <= loss.flatten().sort()[0][int(loss.numel() * float(pattern))]
        for j in range(end - start):
            if of and j % int(of) == 0:
                group = slice(j, j + int(of))
                loss = block[:, group] ** 2 / triangle.diagonal()[group] ** 2
                gone.scatter_(1, j + loss.topk(int(of) - int(kept), dim=1, largest=False)[1], True)
            made = block[:, j].masked_fill(gone[:, j], 0)
            error = (block[:, j] - made) / triangle[j, j]
            block[:, j:] -= error[:, None] * triangle[j, j:][None]
            block[:, j] = made
            errors[:, j] = error
        w[:, start:end] = block
        w[:, end:] -= errors @ upper[start:end, end:]
    return w.to(weight.dtype)


class Stop(Exception):
    pass


@torch.no_grad()
def main(folder, text, tokens, ctx, pattern, out):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(open(text, encoding="utf-8").read(), return_tensors="pt", add_special_tokens=False).input_ids[0]
    windows = ids[: int(tokens) // int(ctx) * int(ctx)].view(-1, int(ctx))
    states, rest = [], {}

    def catch(_, args, kwargs):
        states.append(kwargs.get("hidden_states", args[0] if args else None))
        rest.update({key: value for key, value in kwargs.items() if key != "hidden_states"})
        raise Stop

    hook = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    for window in windows:
        try:
            model(window[None], use_cache=False)
        except Stop:
            pass
    hook.remove()
    for layer in model.model.layers:
        sums, hooks = {}, []
        linears = {name: m for name, m in layer.named_modules() if isinstance(m, nn.Linear)}
        for name, linear in linears.items():
            def add(_, args, name=name):
                x = args[0].flatten(0, -2)
                sums[name] = sums.get(name, 0) + x.t() @ x
            hooks.append(linear.register_forward_pre_hook(add))
        run = lambda state: (lambda made: made[0] if isinstance(made, tuple) else made)(layer(state, **rest))
        for state in states:
            run(state)
        for hook in hooks:
            hook.remove()
        for name, linear in linears.items():
            linear.weight.data = sparse(linear.weight.data, sums[name] / windows.numel(), pattern)
        states = [run(state) for state in states]
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


main(*sys.argv[1:])
