#!/usr/bin/env python3
"""Makes what both sides of a benchmark read: a checkpoint with random weights and a file of rows, tokenised once.

usage: python tools/bench/prepare.py --out DIR [--model-config FILE] [--rows full|FILE] [--batch B] [--seq T] [--steps N] ...

--rows full   random tokens, every row of --seq tokens; a language model learns every token
--rows F.tsv  the column `text` of a table with the column `label` (positive or negative), at natural length (--tokenizer)
--rows F.txt  lines `meaning||text`: the loss of a language model is on ` text` and the end token
Writes DIR/config.json, DIR/model.safetensors and DIR/rows.jsonl (`input_ids`, `labels`).
"""

import argparse
import csv
import json
import os
import sys
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.simplefilter("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
CAUSAL = {"gpt2", "gpt_neo", "opt"}


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model-config", type=Path, default=Path(__file__).parent / "configs" / "roberta-base.json")
    parser.add_argument("--rows", default="full")
    parser.add_argument("--tokenizer", type=Path, default=ROOT / "assets" / "minilm-l6")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seq", type=int, default=128, help="tokens a row; rows of a file are cut there")
    parser.add_argument("--steps", type=int, default=10, help="batches of rows to write")
    parser.add_argument("--dropout", type=float, help="in place of the config's own")
    return parser.parse_args()


def random_rows(args, config, causal):
    generator = torch.Generator().manual_seed(0)
    for row in range(args.batch):
        ids = torch.randint(5, config.vocab_size - 5, (args.seq,), generator=generator).tolist()
        yield {"input_ids": ids, "labels": ids if causal else row % 2}


def rows_of_file(args):
    path, limit = Path(args.rows), args.batch * args.steps
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.tokenizer)
    if path.suffix == ".tsv":
        with path.open(encoding="utf-8", newline="") as file:
            for row in list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:limit]:
                ids = tokenizer(row["text"], truncation=True, max_length=args.seq)["input_ids"]
                yield {"input_ids": ids, "labels": int(row["label"] == "positive")}
        return
    for line in path.read_text(encoding="utf-8").splitlines()[:limit]:
        meaning, text = line.split("||", 1)
        prompt, target = (
            tokenizer(part, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            for part in (meaning.strip(), " " + text.strip())
        )
        ids = (prompt + target)[: args.seq]
        yield {"input_ids": ids, "labels": ([-100] * len(prompt) + target)[: args.seq]}


def checked(rows, vocab_size):
    """The rows, which must be what a tokenizer makes of text: its files may have been read as nothing."""
    rows = list(rows)
    ids = [token for row in rows for token in row["input_ids"]]
    if not ids or len(set(ids)) < 3 or max(ids) >= vocab_size:
        largest = max(ids, default=None)
        sys.exit(f"the rows hold {len(ids)} tokens of {len(set(ids))} kinds up to {largest}, expected text below {vocab_size}")
    print(f"{len(rows)} rows of {len(ids) / len(rows):.1f} tokens on average", file=sys.stderr)
    return rows


def main():
    args = parse()
    torch.manual_seed(0)
    fields = json.loads(args.model_config.read_text())
    if args.dropout is not None:
        fields |= {key: args.dropout for key in fields if key.endswith(("dropout_prob", "pdrop", "dropout"))}
        fields |= {"classifier_dropout": args.dropout} if "classifier_dropout" in fields else {}
    causal = fields["model_type"] in CAUSAL
    config = transformers.AutoConfig.for_model(**fields)
    auto = transformers.AutoModelForCausalLM if causal else transformers.AutoModelForSequenceClassification
    model = auto.from_config(config)
    model.save_pretrained(args.out, max_shard_size="100GB")
    rows = random_rows(args, config, causal) if args.rows == "full" else rows_of_file(args)
    with (args.out / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in checked(rows, config.vocab_size):
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
