#!/usr/bin/env python3
"""The peer, one training step at a time: PyTorch + peft on a checkpoint and rows that prepare.py made. Prints one JSON line.

usage: python tools/bench/peft_step.py --model DIR [--batch B] [--steps N] [--dtype f32|bf16] [--compile] ...

LoRA r = 8 on what lowrank adapts by default, and the head; AdamW, clipping at 1. Rows are padded to the longest of their batch, as a collator
does; the tokens that count are the real ones. The first steps (--warmup) are not counted; --compile warms up on every batch.
"""

import argparse
import json
import os
import resource
import statistics
import time
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.simplefilter("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from prepare import CAUSAL  # noqa: E402

# What lowrank adapts, and saves beside, where it is not query, value and the head alone.
TARGETS = {
    "deberta-v2": (["query_proj", "value_proj"], ["pooler", "classifier"]),
    "deberta": (["in_proj"], ["pooler", "classifier"]),
    "gpt2": (["c_attn"], None),
    "gpt_neo": (["q_proj", "v_proj"], None),
    "opt": (["q_proj", "v_proj"], None),
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--mode", choices=["lora", "full"], default="lora")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    return parser.parse_args()


def build(args):
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(args.model)
    causal = config.model_type in CAUSAL
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    model = auto.from_pretrained(args.model, dtype=dtype)
    if args.mode == "lora":
        targets, saved = TARGETS.get(config.model_type, (["query", "value"], None))
        lora = LoraConfig(
            task_type="CAUSAL_LM" if causal else "SEQ_CLS",
            r=8,
            lora_alpha=8,
            lora_dropout=0.0,
            target_modules=targets,
            modules_to_save=saved,
            fan_in_fan_out=config.model_type == "gpt2",
        )
        model = get_peft_model(model, lora).to(dtype)
    return model.train(), config, causal


def pad(rows, pad_id, causal):
    width = max(len(row["input_ids"]) for row in rows)
    fill = lambda values, with_: torch.tensor([v + [with_] * (width - len(v)) for v in values])  # noqa: E731
    ids = [row["input_ids"] for row in rows]
    labels = [row["labels"] for row in rows]
    batch = {"input_ids": fill(ids, pad_id), "labels": fill(labels, -100) if causal else torch.tensor(labels)}
    if any(len(row) < width for row in ids):
        batch["attention_mask"] = fill([[1] * len(row) for row in ids], 0)
    return batch, sum(len(row) for row in ids)


def main():
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model, config, causal = build(args)
    rows = [json.loads(line) for line in (args.model / "rows.jsonl").read_text().splitlines()]
    pad_id = config.pad_token_id if getattr(config, "pad_token_id", None) is not None else 0
    batch_of = lambda step: [rows[i % len(rows)] for i in range(step * args.batch, (step + 1) * args.batch)]  # noqa: E731
    batches = [pad(batch_of(step), pad_id, causal) for step in range(args.warmup + args.steps)]
    params = [p for p in model.parameters() if p.requires_grad]
    run = torch.compile(model) if args.compile else model
    # lowrank's defaults.
    optimizer = torch.optim.AdamW(params, lr=1e-3 if args.mode == "lora" else 5e-5)

    def step(batch):
        start = time.perf_counter()
        loss = run(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item(), time.perf_counter() - start

    if args.compile:
        # Every shape is compiled before anything is counted, without moving the weights.
        lr, optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"], 0.0
        for batch, _ in batches:
            step(batch)
        optimizer.param_groups[0]["lr"] = lr
    done = [(tokens, *step(batch)) for batch, tokens in batches]
    counted = done[args.warmup :]
    seconds = [s for _, _, s in counted]
    report = {
        "who": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "mode": args.mode,
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "trainable": sum(p.numel() for p in params),
        "tokens_per_s": round(statistics.median(tokens / s for tokens, _, s in counted), 1),
        "step_ms_median": round(statistics.median(seconds) * 1e3, 2),
        # Linux counts it in KiB.
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "loss": counted[-1][1],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
