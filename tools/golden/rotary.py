"""What make_golden.py needs to know of decoders with rotary positions: their config fields, and their arithmetic in f64."""

import importlib

import torch

VOCAB = 97
POSITIONS = 48
# model_type: the stem of the class names.
STEMS = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3",
    "phi3": "Phi3",
    "olmo2": "Olmo2",
    "smollm3": "SmolLM3",
    "granite": "Granite",
}
CONFIGS = {"gemma3_text": "Gemma3TextConfig"}
BODIES = {"gemma3_text": "Gemma3TextModel"}
CLASSES = {
    family: (
        CONFIGS.get(family, f"{stem}Config"),
        "Gemma3TextForSequenceClassification" if family == "gemma3_text" else f"{stem}ForSequenceClassification",
        f"{stem}ForCausalLM",
        BODIES.get(family, f"{stem}Model"),
    )
    for family, stem in STEMS.items()
}
PREFIXES = dict.fromkeys(STEMS, "model.")


def config_fields(case):
    hidden, heads, intermediate = case.width
    common = {
        "vocab_size": VOCAB, "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": 2,
        "num_attention_heads": heads, "num_key_value_heads": heads // 2, "max_position_embeddings": POSITIONS,
        "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "num_labels": case.num_labels,
    }  # fmt: skip
    own = {
        "mistral": {"head_dim": None, "sliding_window": 5},
        "qwen3": {"head_dim": 12},
        "gemma": {"head_dim": 12},
        "gemma2": {"head_dim": 12, "sliding_window": 5, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        "gemma3_text": {"head_dim": 12, "num_hidden_layers": 3, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        "smollm3": {"num_hidden_layers": 4},
    }  # fmt: skip
    return common | own.get(case.family, {}) | case.config


def in_full_precision():
    """transformers computes the statistics of norms and the softmax in f32 whatever the weights are; here they have the
    weights' precision."""

    def attend(repeat_kv):
        def forward(module, query, key, value, attention_mask, scaling=None, dropout=0.0, softcap=None, **kwargs):
            key, value = repeat_kv(key, module.num_key_value_groups), repeat_kv(value, module.num_key_value_groups)
            scores = torch.matmul(query, key.transpose(2, 3)) * (module.head_dim**-0.5 if scaling is None else scaling)
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            if attention_mask is not None:
                scores = scores + attention_mask
            probabilities = torch.nn.functional.softmax(scores, dim=-1)
            return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities

        return forward

    def norm(shift):
        def forward(self, x):
            eps = self.eps if hasattr(self, "eps") else self.variance_epsilon
            return (self.weight + shift) * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))

        return forward

    for family, stem in STEMS.items():
        name = "gemma3" if family == "gemma3_text" else family
        module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        module.eager_attention_forward = attend(module.repeat_kv)
        getattr(module, f"{stem}RMSNorm").forward = norm(1.0 if name.startswith("gemma") else 0.0)
