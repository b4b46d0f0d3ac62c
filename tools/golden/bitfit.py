"""BitFit beside transformers: a model whose biases and head alone require a gradient, and the folder of what it trains.

peft has no BitFit. The folder is lowrank's: adapter_config.json says `BITFIT`, and the tensors stand under the model's own
names, so that `load_state_dict(..., strict=False)` is all that it takes here.
"""

import json

import torch
from safetensors.torch import load_file, save_file

HEADS = ("classifier", "score")
TASK_TYPES = {"single_label": "SEQ_CLS", "causal_lm": "CAUSAL_LM"}


def freeze(model):
    """Leaves a gradient to biases, those of norms too, and to the head; returns what has one, by name."""
    for name, value in model.named_parameters():
        is_head = any(part in HEADS for part in name.split("."))
        value.requires_grad_(is_head or (name.endswith("bias") and value.dim() == 1))
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def make(model, task, folder, generator):
    """Moves every trained value, and saves them."""
    trained = freeze(model)
    with torch.no_grad():
        for value in trained.values():
            value.add_((0.25 if value.dim() > 1 else 0.1) * torch.randn(value.shape, generator=generator))
    save(trained, task, folder)


def save(trained, task, folder):
    folder.mkdir(parents=True)
    save_file({name: value.detach().float().contiguous() for name, value in trained.items()}, folder / "adapter_model.safetensors", {"format": "pt"})
    heads = sorted({part for name in trained for part in name.split(".") if part in HEADS})
    config = {
        "base_model_name_or_path": "tiny-random",
        "modules_to_save": heads,
        "peft_type": "BITFIT",
        "revision": None,
        "task_type": TASK_TYPES[task],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))


def load(model, folder):
    """The model with the folder's values, ready to train."""
    missing = model.load_state_dict(load_file(folder / "adapter_model.safetensors"), strict=False)
    assert not missing.unexpected_keys, missing.unexpected_keys
    freeze(model)
    return model
