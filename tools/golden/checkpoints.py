"""The ways in which a checkpoint can lie on disk: one file or shards, safetensors or pickles, with or without a head."""

import json

import debertas
import decoders
import moderns
import rotary
import torch
from safetensors.torch import save_file

HALF = {"f16": torch.float16, "bf16": torch.bfloat16}


def shards_of(state):
    """Two shards, cut in the middle of the key list."""
    keys = list(state)
    half = len(keys) // 2
    return [{k: state[k] for k in keys[:half]}, {k: state[k] for k in keys[half:]}]


def old_names(state, prefix):
    """The keys of TensorFlow-era BERT checkpoints, with the masked-word head that a classifier leaves unused."""
    out = {}
    for key, value in state.items():
        key = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        out[key] = value
    embedding = state[f"{prefix}embeddings.word_embeddings.weight"]
    width = embedding.shape[1]
    out["cls.predictions.bias"] = torch.zeros(embedding.shape[0])
    out["cls.predictions.transform.dense.weight"] = torch.eye(width)
    out["cls.predictions.transform.dense.bias"] = torch.zeros(width)
    out["cls.predictions.transform.LayerNorm.gamma"] = torch.ones(width)
    out["cls.predictions.transform.LayerNorm.beta"] = torch.zeros(width)
    out["cls.predictions.decoder.weight"] = embedding
    out["cls.seq_relationship.weight"] = torch.zeros(2, width)
    out["cls.seq_relationship.bias"] = torch.zeros(2)
    return out


def without_head(state, prefix, with_pooler):
    """The keys of a bare encoder: no head, no family prefix."""
    out = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return out if with_pooler else {k: v for k, v in out.items() if not k.startswith("pooler.")}


def write_safetensors(state, folder, sharded):
    if not sharded:
        save_file(state, folder / "model.safetensors", {"format": "pt"})
        return
    weight_map = {}
    for i, shard in enumerate(shards_of(state), 1):
        name = f"model-{i:05}-of-00002.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
    write_index(state, weight_map, folder / "model.safetensors.index.json")


def write_pickles(state, folder, kind):
    if kind == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    elif kind == "bin-legacy":
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        weight_map = {}
        for i, shard in enumerate(shards_of(state), 1):
            name = f"pytorch_model-{i:05}-of-00002.bin"
            torch.save(shard, folder / name)
            weight_map.update(dict.fromkeys(shard, name))
        write_index(state, weight_map, folder / "pytorch_model.bin.index.json")


def write_index(state, weight_map, path):
    total = sum(v.numel() * v.element_size() for v in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def write_checkpoint(model, folder, case, bare_class):
    """Writes config.json and the weights as `case.checkpoint` says."""
    folder.mkdir(parents=True)
    state = {k: v.detach().contiguous().clone() for k, v in model.state_dict().items()}
    words = case.checkpoint.split("+")
    prefix = (decoders.PREFIXES | rotary.PREFIXES | debertas.PREFIXES | moderns.PREFIXES).get(case.family, "bert." if case.family == "bert" else "roberta.")
    if "lm_head.weight" in state and model.config.tie_word_embeddings and "tied-copy" not in words:
        del state["lm_head.weight"]
    if "buffers" in words:
        decoders.add_buffers(state, model.config)
    if "bare" in words:
        state = without_head(state, prefix, with_pooler="pooler" in words)
        model.config.architectures = [bare_class]
    else:
        model.config.architectures = [type(model).__name__]
    if "old-names" in words:
        state = old_names(state, prefix)
    for name, dtype in HALF.items():
        if name in words:
            state = {k: v.to(dtype) for k, v in state.items()}
            model.config.dtype = dtype
    config = model.config.to_dict()
    if "old-names" in words:
        # Old files say little: everything else has its default.
        keep = [
            "model_type", "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
            "vocab_size", "max_position_embeddings", "type_vocab_size", "hidden_act", "hidden_dropout_prob",
            "attention_probs_dropout_prob", "initializer_range", "id2label", "label2id",
        ]  # fmt: skip
        config = {k: config[k] for k in keep if k in config}
    for key, value in case.hub_config.items():
        config.pop(key, None)
        if value is not None:
            config[key] = value
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")
    if words[0].startswith("safetensors"):
        write_safetensors(state, folder, sharded=words[0].endswith("sharded"))
    else:
        write_pickles(state, folder, words[0])
