"""Golden models in GGUF: tiny random ones in every type of block, and the logits of transformers from the same decoded weights.

    python tools/golden/gguf_models.py

Writes tests/golden/quantised/NAME.gguf and NAME.expected.safetensors for a gpt2 (the fused layers turned, as llama.cpp has them)
and a bert. Types that gguf-py cannot write are blocks of random bytes with small scales. Needs gguf, torch, transformers.
"""

import json

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type, GGUFWriter, TokenType
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file
from transformers import BertConfig, BertForTokenClassification, GPT2Config, GPT2LMHeadModel

from quantised_blocks import SCALES
from quantised_common import OUT, ROOT, finish

SEED = 20261129
WRITTEN = {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"}
ROWS = [[5, 9, 2, 77, 31], [1], [40, 41, 42, 43, 44, 45, 46, 47, 48, 60, 61, 62]]


class Maker:
    def __init__(self, name, architecture):
        self.rng = np.random.default_rng(SEED)
        self.name = name
        self.writer = GGUFWriter(OUT / f"{name}.gguf", architecture)
        self.state = {}

    def tensor(self, gguf, hf, shape, kind, turned=False, mean=0.0, std=0.1):
        """One tensor of the given stored shape; the model gets what its blocks decode to."""
        kind = Type[kind]
        if kind.name in WRITTEN:
            values = self.rng.normal(mean, std, shape).astype(np.float32)
            data = quantize(values, kind)
        else:
            per, size = GGML_QUANT_SIZES[kind]
            blocks = int(np.prod(shape)) // per
            data = self.rng.integers(0, 256, (blocks, size), dtype=np.uint8)
            for place in SCALES[kind.name]:
                scales = self.rng.normal(0, std / 300, blocks).astype(np.float16)
                data[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
            data = data.reshape(*shape[:-1], -1)
        if kind in (Type.F32, Type.F16):
            self.writer.add_tensor(gguf, data)
        else:
            self.writer.add_tensor(gguf, data.view(np.uint8), raw_dtype=kind)
        decoded = np.ascontiguousarray(dequantize(data, kind).astype(np.float32)).reshape(shape)
        self.state[hf] = torch.from_numpy(decoded.T.copy() if turned else decoded.copy())

    def norm(self, gguf, hf, width):
        self.tensor(f"{gguf}.weight", f"{hf}.weight", (width,), "F32", mean=1.0)
        self.tensor(f"{gguf}.bias", f"{hf}.bias", (width,), "F32")

    def finish(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()

    def expect(self, arrays):
        arrays["input_ids"] = np.array([i for row in ROWS for i in row], dtype=np.int64)
        arrays["lengths"] = np.array([len(row) for row in ROWS], dtype=np.int64)
        save_file(arrays, OUT / f"{self.name}.expected.safetensors")


def gpt2():
    width, inner, layers, vocab, positions = 32, 256, 4, 400, 32
    make = Maker("gpt2", "gpt2")
    writer = make.writer
    writer.add_name("tiny gpt2")
    writer.add_context_length(positions)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-5)
    make.tensor("token_embd.weight", "transformer.wte.weight", (vocab, width), "Q5_0", std=0.4)
    make.tensor("position_embd.weight", "transformer.wpe.weight", (positions, width), "F32", std=0.2)
    # One type for each of qkv, out, up, and one in blocks of 256 for down, a layer.
    kinds = [("Q8_0", "Q4_0", "Q4_1", "Q4_K"), ("Q5_1", "IQ4_NL", "MXFP4", "Q6_K"), ("F16", "BF16", "F32", "Q5_K"),
             ("Q8_0", "F16", "Q4_0", "Q3_K")]
    for i, (qkv, out, up, down) in enumerate(kinds):
        g, h = f"blk.{i}", f"transformer.h.{i}"
        make.norm(f"{g}.attn_norm", f"{h}.ln_1", width)
        make.tensor(f"{g}.attn_qkv.weight", f"{h}.attn.c_attn.weight", (3 * width, width), qkv, turned=True)
        make.tensor(f"{g}.attn_qkv.bias", f"{h}.attn.c_attn.bias", (3 * width,), "F32")
        make.tensor(f"{g}.attn_output.weight", f"{h}.attn.c_proj.weight", (width, width), out, turned=True)
        make.tensor(f"{g}.attn_output.bias", f"{h}.attn.c_proj.bias", (width,), "F32")
        make.norm(f"{g}.ffn_norm", f"{h}.ln_2", width)
        make.tensor(f"{g}.ffn_up.weight", f"{h}.mlp.c_fc.weight", (inner, width), up, turned=True)
        make.tensor(f"{g}.ffn_up.bias", f"{h}.mlp.c_fc.bias", (inner,), "F32")
        make.tensor(f"{g}.ffn_down.weight", f"{h}.mlp.c_proj.weight", (width, inner), down, turned=True)
        make.tensor(f"{g}.ffn_down.bias", f"{h}.mlp.c_proj.bias", (width,), "F32")
    make.norm("output_norm", "transformer.ln_f", width)
    tokenizer(writer, ROOT.parents[1] / "crates/data/tests/fixtures/gpt2", vocab)
    make.finish()
    config = GPT2Config(vocab_size=vocab, bos_token_id=0, eos_token_id=0, n_positions=positions, n_embd=width, n_layer=layers, n_head=4, n_inner=inner)
    model = GPT2LMHeadModel(config).eval()
    missing, unexpected = model.load_state_dict(make.state, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected, (missing, unexpected)
    model.tie_weights()
    logits = [model(torch.tensor([row])).logits[0] for row in ROWS]
    make.expect({"logits": torch.cat(logits).numpy()})


def tokenizer(writer, folder, size):
    """The first tokens of a fixture's byte-level vocabulary, and the merges among them."""
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    tokens = sorted(vocab, key=vocab.get)[:size]
    assert [vocab[token] for token in tokens] == list(range(size))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [line for line in lines if not line.startswith("#") and all(
        part in tokens for part in [*line.split(" "), line.replace(" ", "")])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    special = [token.startswith("<|") for token in tokens]
    writer.add_token_types([TokenType.CONTROL if s else TokenType.NORMAL for s in special])
    writer.add_token_merges(merges)
    if "<|endoftext|>" in tokens:
        writer.add_bos_token_id(tokens.index("<|endoftext|>"))
        writer.add_eos_token_id(tokens.index("<|endoftext|>"))


def bert():
    width, inner, layers, vocab, positions = 32, 256, 2, 251, 40
    make = Maker("bert", "bert")
    writer = make.writer
    writer.add_name("tiny bert")
    writer.add_context_length(positions)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    make.tensor("token_embd.weight", "embeddings.word_embeddings.weight", (vocab, width), "Q8_0", std=0.4)
    make.tensor("token_types.weight", "embeddings.token_type_embeddings.weight", (2, width), "F32", std=0.2)
    make.tensor("position_embd.weight", "embeddings.position_embeddings.weight", (positions, width), "F16", std=0.2)
    make.norm("token_embd_norm", "embeddings.LayerNorm", width)
    for i, down in enumerate(["Q2_K", "IQ4_XS"]):
        g, h = f"blk.{i}", f"encoder.layer.{i}"
        for own, other, kind in [("q", "query", "Q4_1"), ("k", "key", "Q5_0"), ("v", "value", "Q5_1")]:
            make.tensor(f"{g}.attn_{own}.weight", f"{h}.attention.self.{other}.weight", (width, width), kind)
            make.tensor(f"{g}.attn_{own}.bias", f"{h}.attention.self.{other}.bias", (width,), "F32")
        make.tensor(f"{g}.attn_output.weight", f"{h}.attention.output.dense.weight", (width, width), "Q4_0")
        make.tensor(f"{g}.attn_output.bias", f"{h}.attention.output.dense.bias", (width,), "F32")
        make.norm(f"{g}.attn_output_norm", f"{h}.attention.output.LayerNorm", width)
        make.tensor(f"{g}.ffn_up.weight", f"{h}.intermediate.dense.weight", (inner, width), "Q8_0")
        make.tensor(f"{g}.ffn_up.bias", f"{h}.intermediate.dense.bias", (inner,), "F32")
        make.tensor(f"{g}.ffn_down.weight", f"{h}.output.dense.weight", (width, inner), down)
        make.tensor(f"{g}.ffn_down.bias", f"{h}.output.dense.bias", (width,), "F32")
        make.norm(f"{g}.layer_output_norm", f"{h}.output.LayerNorm", width)
    # A head under transformers' own name, so that the model has logits.
    make.tensor("classifier.weight", "classifier.weight", (3, width), "F32")
    make.tensor("classifier.bias", "classifier.bias", (3,), "F32")
    word_piece(writer, ROOT.parents[1] / "crates/data/tests/fixtures/classes/bert/vocab.txt", vocab)
    make.finish()
    config = BertConfig(vocab_size=vocab, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
                        intermediate_size=inner, max_position_embeddings=positions)
    config.num_labels = 3
    model = BertForTokenClassification(config).eval()
    state = {name if name.startswith("classifier") else f"bert.{name}": value for name, value in make.state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not [name for name in missing if not name.endswith("_ids")] and not unexpected, (missing, unexpected)
    logits = [model(torch.tensor([row])).logits[0] for row in ROWS]
    make.expect({"logits": torch.cat(logits).numpy()})


def word_piece(writer, file, size):
    """The first tokens of a fixture's vocabulary, as llama.cpp writes them: a blank before words, nothing before their ends."""
    tokens = file.read_text(encoding="utf-8").splitlines()[:size]
    special = [token.startswith("[") and token.endswith("]") for token in tokens]
    phantom = [t if s else t[2:] if t.startswith("##") else "\u2581" + t for t, s in zip(tokens, special)]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(phantom)
    writer.add_token_types([TokenType.CONTROL if s else TokenType.NORMAL for s in special])
    writer.add_token_type_count(2)
    for role, add in [("[CLS]", writer.add_bos_token_id), ("[SEP]", writer.add_sep_token_id), ("[UNK]", writer.add_unk_token_id),
                      ("[PAD]", writer.add_pad_token_id), ("[MASK]", writer.add_mask_token_id)]:
        add(tokens.index(role))


def main():
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    gpt2()
    bert()
    finish("gguf_models.py", SEED, ["gguf", "numpy", "torch", "transformers"])


if __name__ == "__main__":
    main()
