#!/usr/bin/env python3
"""The peer, one training step at a time: PyTorch + peft on random weights. Prints one JSON line.

usage: python tools/bench/peft_step.py [--model-config FILE] [--batch B] [--seq T] [--steps N] ...

The model is the sequence classifier of the given config.json (default: RoBERTa-base), LoRA r = 8 on the default targets
(query and value) and the head, AdamW. --lengths uniform draws each row's length from T/8 to T, pads to the longest, as a collator does; the
tokens that count are the real ones in both cases. The first steps (--warmup) are not counted.
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


# What lowrank adapts, and saves beside, where it is not query, value and the head alone.
TARGETS = {"deberta-v2": (["query_proj", "value_proj"], ["pooler", "classifier"]), "deberta": (["in_proj"], ["pooler", "classifier"])}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-config", type=Path, default=Path(__file__).parent / "configs" / "roberta-base.json")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--mode", choices=["lora", "full"], default="lora")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--dropout", type=float, help="in place of the config's own hidden and attention dropout")
    parser.add_argument("--lengths", choices=["full", "uniform"], default="full")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def build(args):
    fields = json.loads(args.model_config.read_text())
    if args.dropout is not None:
        fields |= {"hidden_dropout_prob": args.dropout, "attention_probs_dropout_prob": args.dropout}
    config = transformers.AutoConfig.for_model(**fields, num_labels=2)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    if args.mode == "lora":
        targets, saved = TARGETS.get(config.model_type, (["query", "value"], None))
        lora = LoraConfig(
            task_type="SEQ_CLS", r=8, lora_alpha=8, lora_dropout=0.0, target_modules=targets, modules_to_save=saved
        )
        model = get_peft_model(model, lora)
    if args.dtype == "bf16":
        model = model.to(torch.bfloat16)
    return model.train(), config


def make_batch(args, config):
    generator = torch.Generator().manual_seed(args.seed)
    ids = torch.randint(5, config.vocab_size - 5, (args.batch, args.seq), generator=generator)
    labels = torch.randint(0, 2, (args.batch,), generator=generator)
    if args.lengths == "full":
        return {"input_ids": ids, "labels": labels}, args.batch * args.seq
    lengths = torch.randint(max(1, args.seq // 8), args.seq + 1, (args.batch,), generator=generator)
    ids = ids[:, : int(lengths.max())]
    mask = (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).long()
    ids = torch.where(mask.bool(), ids, config.pad_token_id)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}, int(lengths.sum())


def main():
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model, config = build(args)
    batch, tokens = make_batch(args, config)
    params = [p for p in model.parameters() if p.requires_grad]
    run = torch.compile(model) if args.compile else model
    optimizer = torch.optim.AdamW(params, lr=5e-4)
    times, losses = [], []
    for _ in range(args.warmup + args.steps):
        start = time.perf_counter()
        loss = run(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        times.append(time.perf_counter() - start)
    times = times[args.warmup :]
    median = statistics.median(times)
    report = {
        "who": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "model": args.model_config.stem,
        "mode": args.mode,
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "trainable": sum(p.numel() for p in params),
        "tokens_per_step": tokens,
        "tokens_per_s": round(tokens / median, 1),
        "step_ms_median": round(median * 1e3, 2),
        "step_ms": [round(t * 1e3, 2) for t in times],
        # Linux counts it in KiB.
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "loss": losses[-1],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
