"""Golden decoders in GGUF: a tiny random one of each architecture that is read and of each way to stretch rotations, and the logits of
transformers from the same decoded weights.

    python tools/golden/gguf_decoders.py

Writes tests/golden/quantised/decoders/NAME.gguf and NAME.expected.safetensors. The files are as llama.cpp's converter makes them: its
names of tensors and keys, rows of queries and keys permuted where it rotates neighbours (llama, granite, smollm3), Gemma's norms with
one added. The configurations of transformers are written here by hand. Weights and sums are f64. Needs gguf, torch, transformers.
"""

import math

import numpy as np
import torch
import transformers
from gguf import GGUFWriter, RopeScalingType
from gguf.quants import dequantize, quantize
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

from quantised_common import OUT, finish
from rotary import in_full_precision

SEED = 20261202
WIDTH, INNER, VOCAB, HEADS, KEYS, HEAD = 32, 64, 97, 2, 1, 16
POSITIONS = 48
ROWS = [[5, 9, 2, 77, 31], [1], [(7 * i + 3) % VOCAB for i in range(36)]]
PERMUTED = {"llama", "granite", "smollm3"}
STEMS = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "phi3": "Phi3", "granite": "Granite",
         "smollm3": "SmolLM3", "olmo2": "Olmo2", "gemma": "Gemma", "gemma2": "Gemma2", "gemma3": "Gemma3"}  # fmt: skip


class Maker:
    def __init__(self, name, architecture, layers, fields, stem=None):
        self.name, self.architecture, self.layers = name, architecture, layers
        self.rng = np.random.default_rng(SEED)
        self.state = {}
        self.stem = stem or STEMS[architecture]
        (OUT / "decoders").mkdir(parents=True, exist_ok=True)
        self.writer = writer = GGUFWriter(OUT / f"decoders/{name}.gguf", architecture)
        writer.add_context_length(POSITIONS)
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(layers)
        writer.add_feed_forward_length(INNER)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KEYS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(fields.get("rope_theta", 10000.0))
        self.config = {
            "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": layers,
            "num_attention_heads": HEADS, "num_key_value_heads": KEYS, "max_position_embeddings": POSITIONS, "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True, "pad_token_id": None, "attn_implementation": "eager",
        } | fields  # fmt: skip

    def put(self, gguf, hf, shape, kind="Q8_0", mean=0.0, std=0.15, heads=None, plus=0.0):
        """Stored values, and what they mean: without `plus`, rows of `heads` with their halves one after the other."""
        values = self.rng.normal(mean, std, shape).astype(np.float32)
        kind = Type[kind]
        data = quantize(values, kind)
        if kind == Type.F32:
            self.writer.add_tensor(gguf, data)
        else:
            self.writer.add_tensor(gguf, data, raw_dtype=kind)
        decoded = dequantize(data, kind).astype(np.float32).reshape(shape)
        if heads is not None:
            decoded = decoded.reshape(heads, shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(shape)
        self.state[hf] = torch.from_numpy((decoded - np.float32(plus)).astype(np.float64))

    def norm(self, gguf, hf, width):
        plus = 1.0 if self.architecture.startswith("gemma") else 0.0
        self.put(f"{gguf}.weight", f"{hf}.weight", (width,), "F32", mean=1.0, std=0.2, plus=plus)

    def tables(self, head=None):
        self.put("token_embd.weight", "model.embed_tokens.weight", (VOCAB, WIDTH), std=0.4)
        self.norm("output_norm", "model.norm", WIDTH)
        if head:
            self.config["tie_word_embeddings"] = False
            self.put("output.weight", "lm_head.weight", (VOCAB, WIDTH))

    def attention(self, i, head=HEAD, biases=()):
        g, h = f"blk.{i}", f"model.layers.{i}.self_attn"
        permuted = self.architecture in PERMUTED
        for letter, heads in [("q", HEADS), ("k", KEYS), ("v", KEYS)]:
            turned = heads if permuted and letter != "v" else None
            self.put(f"{g}.attn_{letter}.weight", f"{h}.{letter}_proj.weight", (heads * head, WIDTH), heads=turned)
            if letter in biases:
                self.put(f"{g}.attn_{letter}.bias", f"{h}.{letter}_proj.bias", (heads * head,), "F32", heads=turned)
        self.put(f"{g}.attn_output.weight", f"{h}.o_proj.weight", (WIDTH, HEADS * head))
        if "o" in biases:
            self.put(f"{g}.attn_output.bias", f"{h}.o_proj.bias", (WIDTH,), "F32")

    def mlp(self, i):
        for name in ["gate", "up"]:
            self.put(f"blk.{i}.ffn_{name}.weight", f"model.layers.{i}.mlp.{name}_proj.weight", (INNER, WIDTH))
        self.put(f"blk.{i}.ffn_down.weight", f"model.layers.{i}.mlp.down_proj.weight", (WIDTH, INNER))

    def norms(self, i, names):
        for own, other in names.items():
            self.norm(f"blk.{i}.{own}", f"model.layers.{i}.{other}", WIDTH)

    def llama_norms(self, i):
        self.norms(i, {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"})

    def vector(self, name, values):
        self.writer.add_tensor(name, np.array(values, dtype=np.float32))

    def finish(self, config_class=None):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        config = getattr(transformers, config_class or f"{self.stem}Config")(**self.config)
        model = getattr(transformers, f"{self.stem}ForCausalLM")(config).double().eval()
        missing, unexpected = model.load_state_dict(self.state, strict=False)
        tied = ["lm_head.weight"] if self.config["tie_word_embeddings"] else []
        assert missing == tied and not unexpected, (self.name, missing, unexpected)
        model.tie_weights()
        logits = torch.cat([model(torch.tensor([row])).logits[0] for row in ROWS])
        assert logits.isfinite().all()
        save_file(
            {"logits": logits.float().numpy(), "input_ids": np.array(sum(ROWS, []), dtype=np.int64),
             "lengths": np.array([len(row) for row in ROWS], dtype=np.int64)},
            OUT / f"decoders/{self.name}.expected.safetensors",
        )  # fmt: skip
        print(self.name, f"{logits.abs().max():.2f}")


def plain(name, architecture, fields=None, head=False, biases=(), stem=None, layers=2):
    make = Maker(name, architecture, layers, fields or {}, stem)
    make.tables(head)
    for i in range(layers):
        make.llama_norms(i)
        make.attention(i, biases=biases)
        make.mlp(i)
    return make


def llama3_divisors(theta, factor, low=1.0, high=4.0, original=8192.0):
    """As llama.cpp's converter writes them."""
    found = []
    for i in range(HEAD // 2):
        turn = 2 * math.pi * theta ** (2 * i / HEAD)
        if turn < original / high:
            found.append(1.0)
        elif turn > original / low:
            found.append(factor)
        else:
            smooth = (original / turn - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return found


def llamas():
    plain("llama-biases", "llama", {"attention_bias": True}, head=True, biases="qkvo").finish()

    theta = 50000.0
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    make = plain("llama-llama3", "llama", {"rope_parameters": scaling | {"rope_theta": theta}, "rope_theta": theta})
    make.vector("rope_freqs.weight", llama3_divisors(theta, 8.0))
    make.finish()

    divisors = [1.0, 1.5, 2.0, 2.0, 3.0, 5.0, 8.0, 9.0]
    scaling = {"rope_type": "longrope", "short_factor": divisors, "long_factor": divisors, "attention_factor": 1.0,
               "original_max_position_embeddings": POSITIONS}
    make = plain("llama-divisors", "llama", {"rope_parameters": scaling | {"rope_theta": 10000.0}})
    make.vector("rope_freqs.weight", divisors)
    make.finish()

    make = plain("mistral-window", "llama", {"sliding_window": 6}, stem="Mistral")
    make.writer.add_sliding_window(6)
    make.finish()

    make = plain("llama-linear", "llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}})
    make.writer.add_rope_scaling_type(RopeScalingType.LINEAR)
    make.writer.add_rope_scaling_factor(4.0)
    make.finish()


def qwens():
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12, "rope_theta": 10000.0}
    plain("qwen2", "qwen2", biases="qkv").finish()
    make = plain("qwen2-yarn", "qwen2", {"rope_parameters": scaling}, biases="qkv")
    make.writer.add_rope_scaling_type(RopeScalingType.YARN)
    make.writer.add_rope_scaling_factor(4.0)
    make.writer.add_rope_scaling_orig_ctx_len(12)
    make.finish()

    head = 32
    make = Maker("qwen3", "qwen3", 2, {"head_dim": head})
    make.writer.add_key_length(head)
    make.writer.add_value_length(head)
    make.tables()
    for i in range(2):
        make.llama_norms(i)
        make.attention(i, head)
        for letter in "qk":
            make.norm(f"blk.{i}.attn_{letter}_norm", f"model.layers.{i}.self_attn.{letter}_norm", head)
        make.mlp(i)
    make.finish()


def phi3(name, scaling, window=None, part=1.0):
    fields = {"sliding_window": window, "partial_rotary_factor": part, "original_max_position_embeddings": POSITIONS}
    make = Maker(name, "phi3", 2, fields | scaling)
    make.writer.add_rope_scaling_orig_ctx_len(POSITIONS)
    make.writer.add_rope_dimension_count(int(part * HEAD))
    make.writer.add_sliding_window(window or 0)
    make.tables(head=True)
    for i in range(2):
        g, h = f"blk.{i}", f"model.layers.{i}"
        make.llama_norms(i)
        make.put(f"{g}.attn_qkv.weight", f"{h}.self_attn.qkv_proj.weight", ((HEADS + 2 * KEYS) * HEAD, WIDTH))
        make.put(f"{g}.attn_output.weight", f"{h}.self_attn.o_proj.weight", (WIDTH, HEADS * HEAD))
        make.put(f"{g}.ffn_up.weight", f"{h}.mlp.gate_up_proj.weight", (2 * INNER, WIDTH))
        make.put(f"{g}.ffn_down.weight", f"{h}.mlp.down_proj.weight", (WIDTH, INNER))
    return make


def phis():
    phi3("phi3-window", {}, window=7).finish()
    part = 0.75
    short, long = [1.0, 1.1, 1.3, 1.7, 2.5, 4.0], [1.0, 1.5, 2.0, 4.0, 8.0, 16.0]
    scaling = {"rope_type": "longrope", "short_factor": short, "long_factor": long, "attention_factor": 1.19,
               "original_max_position_embeddings": POSITIONS, "partial_rotary_factor": part, "rope_theta": 10000.0}
    make = phi3("phi3-longrope", {"rope_parameters": scaling}, part=part)
    make.writer.add_rope_scaling_attn_factors(1.19)
    make.vector("rope_factors_short.weight", short)
    make.vector("rope_factors_long.weight", long)
    make.finish()


def others():
    factors = {"attention_multiplier": 0.3, "embedding_multiplier": 3.0, "residual_multiplier": 0.7, "logits_scaling": 2.5}
    make = plain("granite", "granite", factors)
    make.writer.add_attention_scale(0.3)
    make.writer.add_embedding_scale(3.0)
    make.writer.add_residual_scale(0.7)
    make.writer.add_logit_scale(2.5)
    make.finish()

    positions = {"rope_type": "default", "rope_theta": 10000.0}
    plain("smollm3", "smollm3", {"rope_parameters": positions}, layers=4).finish()

    make = Maker("olmo2", "olmo2", 2, {})
    make.tables(head=True)
    for i in range(2):
        make.attention(i)
        make.norm(f"blk.{i}.attn_q_norm", f"model.layers.{i}.self_attn.q_norm", HEADS * HEAD)
        make.norm(f"blk.{i}.attn_k_norm", f"model.layers.{i}.self_attn.k_norm", KEYS * HEAD)
        make.norms(i, {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"})
        make.mlp(i)
    make.finish()


def gemmas():
    head = 32
    make = Maker("gemma", "gemma", 2, {"head_dim": head})
    make.writer.add_key_length(head)
    make.writer.add_value_length(head)
    make.tables()
    for i in range(2):
        make.llama_norms(i)
        make.attention(i, head)
        make.mlp(i)
    make.finish()

    make = Maker("gemma2", "gemma2", 3, {
        "head_dim": head, "query_pre_attn_scalar": head, "sliding_window": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
    })  # fmt: skip
    make.writer.add_key_length(head)
    make.writer.add_value_length(head)
    make.writer.add_sliding_window(8)
    make.writer.add_attn_logit_softcapping(2.0)
    make.writer.add_final_logit_softcapping(3.0)
    make.tables()
    for i in range(3):
        make.norms(i, {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
                       "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm"})  # fmt: skip
        make.attention(i, head)
        make.mlp(i)
    make.finish()

    layers = 3
    types = ["full_attention" if (i + 1) % 2 == 0 else "sliding_attention" for i in range(layers)]
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 50000.0}
    make = Maker("gemma3-linear", "gemma3", layers, {
        "head_dim": head, "query_pre_attn_scalar": head, "sliding_window": 8, "layer_types": types, "rope_theta": 50000.0,
        "rope_parameters": {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    })  # fmt: skip
    make.writer.add_key_length(head)
    make.writer.add_value_length(head)
    make.writer.add_sliding_window(8)
    make.writer.add_sliding_window_pattern(2)
    make.writer.add_rope_scaling_type(RopeScalingType.LINEAR)
    make.writer.add_rope_scaling_factor(8.0)
    make.tables()
    for i in range(layers):
        make.norms(i, {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
                       "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm"})  # fmt: skip
        make.attention(i, head)
        for letter in "qk":
            make.norm(f"blk.{i}.attn_{letter}_norm", f"model.layers.{i}.self_attn.{letter}_norm", head)
        make.mlp(i)
    make.finish("Gemma3TextConfig")


def main():
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    in_full_precision()
    llamas()
    qwens()
    phis()
    others()
    gemmas()
    finish("gguf_decoders.py", SEED, ["gguf", "numpy", "torch", "transformers"])


if __name__ == "__main__":
    main()
