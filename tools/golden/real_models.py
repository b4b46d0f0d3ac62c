"""Golden numbers of two real models in GGUF files, from transformers over the same decoded weights.

    python tools/golden/real_models.py MODELS TEXT

MODELS is the folder of `smollm2-135m` and `gemma3-270m`, TEXT tinyshakespeare's test.txt. Writes tests/golden/quantised/real/:
`NAME.safetensors` with token ids and some of the logits, and `perplexity.json` with the text's loss a token in pieces of whole lines.
gguf-py decodes the blocks; names, order of rows, norms and settings are read here from the file, apart from our reader. Weights and
sums are f64, so that the peer's own rounding hides nothing. Needs gguf, torch, transformers.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from quantised_common import OUT, finish, write_json
from rotary import in_full_precision

FILES = {
    "smollm2-135m": "smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf",
    "gemma3-270m": "gemma3-270m/gemma-3-270m-q4_k_m.gguf",
}
PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "O Romeo, Romeo! wherefore art thou Romeo?\nDeny thy father and refuse thy name;",
    "1, 2, 4, 8, 16, 32, 64, 128,",
]
# So many characters at least, which is more tokens than Gemma's window of 512.
PIECE = 2800
# Logits that are kept of every token: every so many-th.
STRIDE = 1021

NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}


def fields(reader):
    return {key: field.contents() for key, field in reader.fields.items()}


def state_dict(reader, keys):
    architecture = keys["general.architecture"]
    is_gemma = architecture == "gemma3"
    heads = {"attn_q": keys[f"{architecture}.attention.head_count"], "attn_k": keys[f"{architecture}.attention.head_count_kv"]}
    state = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        values = values.reshape([int(n) for n in reversed(tensor.shape)])
        found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        if found is None:
            name = OUTSIDE[tensor.name]
        else:
            layer, module = found.groups()
            other = NAMES.get(module)
            if module == "ffn_norm":
                other = "pre_feedforward_layernorm" if is_gemma else "post_attention_layernorm"
            name = f"model.layers.{layer}.{other}.weight"
            if module in heads and not is_gemma:
                # llama.cpp has rows of a head's halves in turn.
                n, rows = heads[module], values.shape[0]
                values = values.reshape(n, rows // n // 2, 2, -1).swapaxes(1, 2).reshape(values.shape)
        if is_gemma and tensor.name.endswith("norm.weight"):
            # Stored as f32 with one added, so that taking it away is done in f32 too.
            values = (values.astype(np.float32) - np.float32(1)).astype(np.float64)
        state[name] = torch.from_numpy(values.copy())
    return state


def model_of(reader, keys):
    state = state_dict(reader, keys)
    architecture = keys["general.architecture"]
    of = lambda key: keys[f"{architecture}.{key}"]
    common = {
        "vocab_size": state["model.embed_tokens.weight"].shape[0], "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"), "num_hidden_layers": of("block_count"),
        "num_attention_heads": of("attention.head_count"), "num_key_value_heads": of("attention.head_count_kv"),
        "max_position_embeddings": of("context_length"), "rms_norm_eps": of("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "lm_head.weight" not in state,
        "rope_theta": of("rope.freq_base"), "attn_implementation": "eager",
    }  # fmt: skip
    if architecture == "gemma3":
        config = Gemma3TextConfig(
            **common | {"head_dim": of("attention.key_length"), "sliding_window": of("attention.sliding_window"),
                        "query_pre_attn_scalar": of("attention.key_length"), "rope_local_base_freq": 10000.0}
        )  # fmt: skip
        model = Gemma3ForCausalLM(config)
    else:
        model = LlamaForCausalLM(LlamaConfig(**common))
    model = model.double().eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not [name for name in missing if name != "lm_head.weight"] and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model


def pieces(text):
    """The text in pieces of whole lines."""
    found, piece = [], ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) >= PIECE:
            found.append(piece.rstrip("\n"))
            piece = ""
    return found + ([piece.rstrip("\n")] if piece.strip() else [])


def main():
    models, text = Path(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf-8")
    torch.set_grad_enabled(False)
    in_full_precision()
    (OUT / "real").mkdir(parents=True, exist_ok=True)
    texts = pieces(text)
    measured = {"characters a piece at least": PIECE, "models": {}}
    for name, file in FILES.items():
        reader = GGUFReader(models / file)
        keys = fields(reader)
        model = model_of(reader, keys)
        tokenizer = AutoTokenizer.from_pretrained(str((models / file).parent), gguf_file=Path(file).name)
        first = [keys["tokenizer.ggml.bos_token_id"]] if keys.get("tokenizer.ggml.add_bos_token") else []

        def ids_of(text):
            return first + tokenizer(text, add_special_tokens=False).input_ids

        rows = [ids_of(prompt) for prompt in PROMPTS]
        logits = torch.cat([model(torch.tensor([row])).logits[0] for row in rows])
        best = logits.topk(16)
        save_file(
            {
                "input_ids": np.array(sum(rows, []), dtype=np.int64), "lengths": np.array([len(row) for row in rows], dtype=np.int64),
                "columns": np.arange(0, logits.shape[1], STRIDE, dtype=np.int64),
                "logits": np.ascontiguousarray(logits[:, ::STRIDE].float().numpy()),
                "best_ids": best.indices.numpy(), "best": np.ascontiguousarray(best.values.float().numpy()),
            },
            OUT / f"real/{name}.safetensors",
        )  # fmt: skip
        losses = []
        for piece in texts:
            # A row that is trained or measured on ends with the end token.
            ids = torch.tensor([ids_of(piece) + [keys["tokenizer.ggml.eos_token_id"]]])
            found = model(ids).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(found, ids[0, 1:], reduction="sum")
            losses.append([ids.shape[1], round(loss.item(), 6)])
            print(name, losses[-1], flush=True)
        # Of each piece its tokens and the sum of the losses of all but the first.
        measured["models"][name] = {"largest logit": round(logits.abs().max().item(), 3), "pieces": losses}
    write_json(OUT / "real/perplexity.json", measured)
    finish("real_models.py", 0, ["gguf", "torch", "transformers"])


if __name__ == "__main__":
    main()
