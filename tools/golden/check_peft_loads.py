#!/usr/bin/env python3
"""Loads an adapter of ours with Python's peft, fails on any missing or unexpected key, and prints its logits as JSONL.

usage: python tools/golden/check_peft_loads.py MODEL_DIR ADAPTER_DIR ROWS.jsonl [--dtype f32|f64] [--batch-size N]
           [--max-length N] [--text-column NAME] [--pair-column NAME] [--expect LOGITS.jsonl [--tolerance X]]
           [--loralib FILE --alpha A]

A row is {"input_ids": [...], "token_type_ids": [...]?} or holds text in the named columns. One line a row comes out:
{"row": 0, "logits": [...]} (a list a token for token classification and language models). With --expect the logits of another JSONL file
with a `logits` field a line are compared instead, as `lowrank predict` writes it or, for a language model,
`cargo run -p lowrank-model --example logits`; exit code 1 if they differ. With --loralib the expected logits are those of
the base with the formula of loralib's MergedLinear in its weights, from the checkpoint that the adapter was made of.
"""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch  # noqa: E402
import transformers  # noqa: E402
from peft import PeftConfig, PeftModel, get_peft_model_state_dict  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


def adapter_tensors(folder):
    safetensors = folder / "adapter_model.safetensors"
    if safetensors.exists():
        return load_file(safetensors)
    return torch.load(folder / "adapter_model.bin", weights_only=True)


def num_labels(tensors, model_dir):
    """The head's outputs: from the adapter's head if it has one, else from the base's config.json."""
    for key, value in tensors.items():
        if key.endswith((".classifier.weight", ".classifier.out_proj.weight", ".score.weight")):
            return value.shape[0]
    return transformers.AutoConfig.from_pretrained(model_dir).num_labels


def load(model_dir, adapter_dir, dtype):
    config = PeftConfig.from_pretrained(adapter_dir)
    tensors = adapter_tensors(adapter_dir)
    kinds = {
        "SEQ_CLS": transformers.AutoModelForSequenceClassification,
        "TOKEN_CLS": transformers.AutoModelForTokenClassification,
        "CAUSAL_LM": transformers.AutoModelForCausalLM,
        "FEATURE_EXTRACTION": transformers.AutoModel,
    }
    task = str(getattr(config.task_type, "value", config.task_type))
    if task not in kinds:
        raise SystemExit(f"adapter_config.json: expected task_type one of {sorted(kinds)}, found {task}")
    arguments = {} if task in ("FEATURE_EXTRACTION", "CAUSAL_LM") else {"num_labels": num_labels(tensors, model_dir)}
    base = kinds[task].from_pretrained(model_dir, dtype=dtype, attn_implementation="eager", **arguments)
    model = PeftModel.from_pretrained(base, adapter_dir, is_trainable=True, autocast_adapter_dtype=False)
    own = get_peft_model_state_dict(model)
    # What peft itself writes besides, under bias="all", names no trained value.
    # Beside an adapted table it writes the base's.
    surplus = {k for k in own if ".modules_to_save." in k or ".original_module." in k or k.endswith(".base_layer.weight")}
    missing = sorted(set(own) - set(tensors) - surplus)
    unexpected = sorted(set(tensors) - set(own))
    differ = sorted(k for k in own if k in tensors and not torch.equal(own[k].to(tensors[k].dtype), tensors[k]))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for what, keys in [("missing", missing), ("unexpected", unexpected), ("not loaded", differ)]:
        for key in keys:
            print(f"{what}: {key}", file=sys.stderr)
    if missing or unexpected or differ:
        raise SystemExit(1)
    print(f"{len(tensors)} tensors, no key missing or unexpected; {trained} trainable values", file=sys.stderr)
    return model.to(dtype).eval()


def merged_linear(model_dir, file, alpha, dtype):
    """The base with W += alpha/r · (B A) for the first and last third of each fused layer (enable_lora [True, False, True])."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, attn_implementation="eager")
    tensors = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
    for name in [key[: -len(".lora_A")] for key in tensors if key.endswith(".lora_A")]:
        a, b = tensors[f"{name}.lora_A"].to(dtype), tensors[f"{name}.lora_B"].to(dtype)
        rank = b.shape[1]
        delta = torch.nn.functional.conv1d(a.unsqueeze(0), b.unsqueeze(-1), groups=2).squeeze(0)
        queries, values = delta.chunk(2)
        whole = torch.cat([queries, torch.zeros_like(queries), values])
        # Conv1D stores [in, out].
        model.get_submodule(name).weight.data += alpha / rank * whole.T
    return model.eval()


def read_rows(args):
    rows = [json.loads(line) for line in args.rows.read_text().splitlines() if line.strip()]
    if rows and "input_ids" in rows[0]:
        return rows
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    limit = {"truncation": True, "max_length": args.max_length} if args.max_length else {}
    texts = [(row[args.text_column], row.get(args.pair_column)) for row in rows]
    return [dict(tokenizer(text, pair, **limit) if pair else tokenizer(text, **limit)) for text, pair in texts]


def predict(model, rows, batch_size):
    pad = model.config.pad_token_id or 0
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        width = max(len(row["input_ids"]) for row in part)
        batch = {"input_ids": torch.full((len(part), width), pad), "attention_mask": torch.zeros(len(part), width).long()}
        if "token_type_ids" in part[0] and hasattr(model.config, "type_vocab_size") and model.config.type_vocab_size > 1:
            batch["token_type_ids"] = torch.zeros(len(part), width).long()
        for i, row in enumerate(part):
            n = len(row["input_ids"])
            batch["input_ids"][i, :n] = torch.tensor(row["input_ids"])
            batch["attention_mask"][i, :n] = 1
            if "token_type_ids" in batch:
                batch["token_type_ids"][i, :n] = torch.tensor(row["token_type_ids"])
        with torch.no_grad():
            logits = model(**batch).logits
        for i, row in enumerate(part):
            yield logits[i, : len(row["input_ids"])] if logits.dim() == 3 else logits[i]


def compare(what, theirs, found, tolerance):
    worst = max(float((t.double() - f.double()).abs().max()) for t, f in zip(theirs, found))
    largest = max(float(f.abs().max()) for f in found)
    print(f"{what}: largest difference of a logit: {worst:.3e} over {len(found)} rows (allowed {tolerance:.1e}), largest logit {largest:.1f}")
    if not worst <= tolerance:
        raise SystemExit(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--dtype", choices=["f32", "f64"], default="f32")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--pair-column", default="text_pair")
    parser.add_argument("--expect", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--loralib", type=Path)
    parser.add_argument("--alpha", type=float)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dtype = {"f32": torch.float32, "f64": torch.float64}[args.dtype]
    model = load(args.model, args.adapter, dtype)
    found = list(predict(model, read_rows(args), args.batch_size))
    if args.loralib is not None:
        model = merged_linear(args.model, args.loralib, args.alpha, dtype)
        compare("the formula of loralib", list(predict(model, read_rows(args), args.batch_size)), found, args.tolerance)
        if args.expect is None:
            return
    if args.expect is None:
        for i, logits in enumerate(found):
            print(json.dumps({"row": i, "logits": logits.tolist()}))
        return
    theirs = [json.loads(line)["logits"] for line in args.expect.read_text().splitlines() if line.strip()]
    if len(theirs) != len(found):
        raise SystemExit(f"{args.expect}: expected {len(found)} rows, found {len(theirs)}")
    compare(args.expect, [torch.tensor(t) for t in theirs], found, args.tolerance)


if __name__ == "__main__":
    main()
