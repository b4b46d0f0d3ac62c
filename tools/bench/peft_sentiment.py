#!/usr/bin/env python3
"""The peer on the default model and data: transformers + peft on the film reviews. Prints one JSON line.

usage: python tools/bench/peft_sentiment.py [--method lora|full|head] [--seed S] [--epochs N] ...

Rows are padded to the longest of their batch, as the usual collator does. LoRA r = 8, alpha = 16 on query and value and the
head; AdamW with weight decay 0.01, 6% linear warm-up and linear decay, clipping at 1. Reports accuracy on validation and
test, seconds, tokens/s over real tokens, and the peak memory of the process.
"""

import argparse
import csv
import json
import os
import resource
import time
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
warnings.simplefilter("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
LEARNING_RATES = {"lora": 1e-3, "full": 5e-5, "head": 1e-3}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "assets" / "minilm-l6")
    parser.add_argument("--data", type=Path, default=ROOT / "assets" / "sentiment" / "movie")
    parser.add_argument("--method", choices=list(LEARNING_RATES), default="lora")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--max-steps", type=int, help="stop early (for a quick look; the accuracy is then not the result)")
    return parser.parse_args()


def read_rows(tokenizer, path, max_length):
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=max_length)["input_ids"]
    return [(i, int(row["label"] == "positive")) for i, row in zip(ids, rows)]


def collate(rows, pad):
    width = max(len(ids) for ids, _ in rows)
    input_ids = torch.full((len(rows), width), pad)
    attention_mask = torch.zeros_like(input_ids)
    for k, (ids, _) in enumerate(rows):
        input_ids[k, : len(ids)] = torch.tensor(ids)
        attention_mask[k, : len(ids)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}, torch.tensor([label for _, label in rows])


@torch.no_grad()
def accuracy(model, rows, pad):
    model.eval()
    right = 0
    for k in range(0, len(rows), 64):
        batch, labels = collate(rows[k : k + 64], pad)
        right += int((model(**batch).logits.argmax(-1) == labels).sum())
    model.train()
    return right / len(rows)


def build(args):
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    # The committed weights are f16; the head is drawn in f32.
    model = transformers.AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=2, dtype=torch.float32)
    if args.method == "lora":
        lora = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["query", "value"])
        model = get_peft_model(model, lora)
    elif args.method == "head":
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name.startswith("classifier")
    return model.to(dtype).train()


def main():
    args = parse()
    begin = time.time()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(args.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    pad = tokenizer.pad_token_id
    train, validation, test = (
        read_rows(tokenizer, args.data / f"{split}.tsv", args.max_length) for split in ["train", "validation", "test"]
    )
    model = build(args)
    params = [p for p in model.parameters() if p.requires_grad]
    lr = args.lr or LEARNING_RATES[args.method]
    optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=0.01)
    per_epoch = (len(train) + args.batch - 1) // args.batch
    steps = args.epochs * per_epoch
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, int(0.06 * steps), steps)
    generator = torch.Generator().manual_seed(args.seed)
    tokens, done, start = 0, 0, time.time()
    for _ in range(args.epochs):
        order = torch.randperm(len(train), generator=generator).tolist()
        for k in range(0, len(order), args.batch):
            if args.max_steps and done == args.max_steps:
                break
            rows = [train[j] for j in order[k : k + args.batch]]
            tokens += sum(len(ids) for ids, _ in rows)
            batch, labels = collate(rows, pad)
            loss = torch.nn.functional.cross_entropy(model(**batch).logits.float(), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
            done += 1
    seconds = time.time() - start
    report = {
        "who": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "method": args.method,
        "dtype": args.dtype,
        "seed": args.seed,
        "epochs": args.epochs,
        "steps": done,
        "lr": lr,
        "batch": args.batch,
        "trainable": sum(p.numel() for p in params),
        "loss": loss.item(),
        "validation_accuracy": accuracy(model, validation, pad),
        "test_accuracy": accuracy(model, test, pad),
        "train_s": round(seconds, 1),
        "total_s": round(time.time() - begin, 1),
        "tokens_per_s": round(tokens / seconds, 1),
        # Linux counts it in KiB.
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
