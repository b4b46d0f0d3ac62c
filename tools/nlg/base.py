#!/usr/bin/env python3
"""Makes the folder of a small GPT-2 that is to be trained from scratch: its configuration, and a byte-level BPE tokenizer of given texts.

usage: python tools/nlg/base.py --out DIR [--vocab 2048] [--width 192] [--layers 4] [--heads 6] [--positions 256] FILE...

FILE.jsonl: every string in it is text; of other files, every line. Needs the package `tokenizers`.
"""

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END = "<|endoftext|>"


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--positions", type=int, default=256)
    return parser.parse_args()


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def texts(files):
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            yield from strings(json.loads(line)) if path.suffix == ".jsonl" else [line]


def main():
    args = parse()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=args.vocab, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts(args.files), trainer)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.out / "tokenizer.json"))
    special = {"eos_token": END, "bos_token": END, "unk_token": END}
    kind = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": args.positions}
    (args.out / "tokenizer_config.json").write_text(json.dumps(special | kind, indent=2) + "\n")
    end = tokenizer.token_to_id(END)
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new",
        "vocab_size": tokenizer.get_vocab_size(),
        "n_embd": args.width,
        "n_layer": args.layers,
        "n_head": args.heads,
        "n_positions": args.positions,
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "bos_token_id": end,
        "eos_token_id": end,
        "tie_word_embeddings": True,
    }
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
