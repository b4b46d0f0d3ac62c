"""Golden numbers of encoders: what gguf-py and bitsandbytes make of values that are put into blocks.

    python tools/golden/encoders.py

Writes tests/golden/quantised/encoded.safetensors: `values` (f32), and of them `Q8_0` and `Q4_0` (bytes of blocks), `NF4.codes` (two a
byte, the first in the high bits), `NF4.map` and `NF4.absmax`. Among the values are blocks of zeros, ties of magnitudes, halves between codes,
very small and very large ones. Needs the packages gguf, torch and bitsandbytes; versions stand in tests/golden/quantised/versions.json.
"""

import bitsandbytes.functional as bnb
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf.quants import quantize
from safetensors.numpy import save_file

from quantised_common import OUT, finish

SEED = 20261128


def values():
    rng = np.random.default_rng(SEED)
    rows = [rng.normal(0, 0.05, 64) for _ in range(24)]
    rows.append(np.zeros(64))
    rows.append(np.where(np.arange(64) % 2 == 0, 0.5, -0.5))
    rows.append(np.where(np.arange(64) % 2 == 0, -0.5, 0.5))
    rows.append((np.arange(64) - 32) / 64)
    # Halves between the codes of Q8_0 whose largest value is 127.
    rows.append(np.concatenate([np.arange(31) * 4 + 0.5, [127.0], -np.arange(31) * 4 - 0.5, [-127.0]]))
    rows.append(rng.normal(0, 1e-7, 64))
    rows.append(rng.normal(0, 1e-30, 64))
    rows.append(rng.normal(0, 300.0, 64))
    return np.stack(rows).astype(np.float32)


def main():
    x = values()
    arrays = {"values": x.reshape(-1)}
    for name in ("Q8_0", "Q4_0"):
        arrays[name] = np.ascontiguousarray(quantize(x, Type[name])).reshape(-1)
    codes, state = bnb.quantize_4bit(torch.from_numpy(x), blocksize=64, quant_type="nf4")
    arrays["NF4.codes"] = codes.numpy().reshape(-1)
    arrays["NF4.map"] = state.code.numpy()
    arrays["NF4.absmax"] = state.absmax.numpy().reshape(-1)
    save_file(arrays, OUT / "encoded.safetensors")
    finish("encoders.py", SEED, ["bitsandbytes", "gguf", "numpy", "torch"])


if __name__ == "__main__":
    main()
