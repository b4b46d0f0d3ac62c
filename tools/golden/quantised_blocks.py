"""Golden numbers of GGUF's blocks: a few blocks of every type that is decoded, and what gguf-py makes of them.

    python tools/golden/quantised_blocks.py

Writes tests/golden/quantised/blocks.safetensors: for each type `NAME.blocks` (bytes) and `NAME.values` (f32). Blocks are made of
random bytes, so that every code, scale and minimum occurs, with finite f16 scales in their places; a few hold the extremes.
Needs the package gguf; its version stands in tests/golden/quantised/versions.json.
"""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize
from safetensors.numpy import save_file

from quantised_common import OUT, finish

SEED = 20261128
BLOCKS = 6
# Where the f16 scales of a block lie, in bytes.
SCALES = {
    "F16": [0], "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [], "BF16": [], "F32": [],
}


def main():
    rng = np.random.default_rng(SEED)
    arrays = {}
    for name, places in SCALES.items():
        kind = Type[name]
        values, size = GGML_QUANT_SIZES[kind]
        # Types of one value are taken 64 at a time.
        per = BLOCKS if values > 1 else 64
        blocks = rng.integers(0, 256, (per, size), dtype=np.uint8)
        if values > 1:
            blocks[-2] = 0xFF
            blocks[-1] = 0
        for place in places:
            scales = rng.normal(0, 0.01, per).astype(np.float16)
            scales[0], scales[1] = np.float16(6e-8), np.float16(-2.5)
            blocks[:, place : place + 2] = scales.view(np.uint8).reshape(per, 2)
        if name == "MXFP4":
            blocks[:, 0] = [0, 1, 2, 100, 127, 254]
        if name in ("F32", "BF16"):
            blocks[:, -1] &= 0x3F
        arrays[f"{name}.blocks"] = blocks
        arrays[f"{name}.values"] = np.ascontiguousarray(dequantize(blocks, kind).astype(np.float32)).reshape(-1)
        assert np.isfinite(arrays[f"{name}.values"]).all(), name
    OUT.mkdir(parents=True, exist_ok=True)
    save_file(arrays, OUT / "blocks.safetensors")
    finish("quantised_blocks.py", SEED, ["gguf", "numpy"])


if __name__ == "__main__":
    main()
