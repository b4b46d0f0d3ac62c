#!/usr/bin/env python3
"""The peer of generation: transformers' `generate`, greedy, on a checkpoint and prompts that prepare.py made. Prints one JSON line.

usage: python tools/bench/generate.py --model DIR [--batch B] [--new N] [--rounds R] [--dtype f32|bf16] [--compile] ...

SDPA attention and a KV cache; --compile: the static cache with torch.compile. Nothing ends a sequence. A short run is not counted.
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


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compile", action="store_true", help="static cache and torch.compile")
    return parser.parse_args()


class Clock(transformers.LogitsProcessor):
    """Notes when the first scores are there: the prompts are read."""

    def __init__(self):
        self.first = None

    def __call__(self, input_ids, scores):
        self.first = self.first or time.perf_counter()
        return scores


def main():
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation="sdpa").eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    rows = (args.model / "rows.jsonl").read_text().splitlines()[: args.batch]
    prompts = torch.tensor([json.loads(line)["input_ids"] for line in rows])
    static = {"cache_implementation": "static"} if args.compile else {}
    if args.compile:
        # `generate` compiles of itself on accelerators only.
        model.forward = torch.compile(model.forward, dynamic=False)

    def generate(new):
        clock = Clock()
        started = time.perf_counter()
        with torch.inference_mode():
            ids = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=new,
                do_sample=False,
                logits_processor=transformers.LogitsProcessorList([clock]),
                **static,
            )
        return ids[:, prompts.shape[1] :], clock.first - started, time.perf_counter() - started

    # A compiled step is one of a cache's length: it warms up at its full length.
    generate(args.new if args.compile else 4)
    done = [generate(args.new) for _ in range(args.rounds)]
    seconds = statistics.median(whole for _, _, whole in done)
    step = statistics.median((whole - first) / max(args.new - 1, 1) for _, first, whole in done)
    report = {
        "who": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "tokens_per_s": len(rows) * args.new / seconds,
        "decode_tokens_per_s": len(rows) / step,
        "prompt_tokens_per_s": prompts.numel() / statistics.median(first for _, first, _ in done),
        # Linux counts it in KiB.
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "tokens": done[-1][0].tolist(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
