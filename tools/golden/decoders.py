"""What make_golden.py needs to know of decoders: their config fields, and language modelling with its loss in f64."""

import torch
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.gpt_neo import modeling_gpt_neo
from transformers.models.opt import modeling_opt

IGNORE_INDEX = -100
VOCAB = 97
POSITIONS = 40
# Prefix of the body's keys.
PREFIXES = {"gpt2": "transformer.", "gpt_neo": "transformer.", "opt": "model."}
CLASSES = {
    "gpt2": ("GPT2Config", "GPT2ForSequenceClassification", "GPT2LMHeadModel", "GPT2Model"),
    "gpt_neo": ("GPTNeoConfig", "GPTNeoForSequenceClassification", "GPTNeoForCausalLM", "GPTNeoModel"),
    "opt": ("OPTConfig", "OPTForSequenceClassification", "OPTForCausalLM", "OPTModel"),
}


def config_fields(case):
    hidden, heads, intermediate = case.width
    common = {"vocab_size": VOCAB, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "num_labels": case.num_labels}
    own = {
        "gpt2": {
            "n_positions": POSITIONS, "n_embd": hidden, "n_layer": 2, "n_head": heads, "n_inner": intermediate,
            "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0,
        },
        "gpt_neo": {
            "max_position_embeddings": POSITIONS, "hidden_size": hidden, "num_layers": 2, "num_heads": heads,
            "intermediate_size": intermediate, "attention_types": [[["global", "local"], 1]], "window_size": 4,
        },
        "opt": {
            "max_position_embeddings": POSITIONS, "hidden_size": hidden, "num_hidden_layers": 2,
            "num_attention_heads": heads, "ffn_dim": intermediate, "dropout": 0.0, "attention_dropout": 0.0,
        },
    }  # fmt: skip
    return common | own[case.family] | case.config


def labels_of(rows, generator):
    """The label of each token, at its own place: the row's second part counts, and a few tokens before it."""
    labels = []
    for index, row in enumerate(rows):
        ids = row["input_ids"]
        start = 1 if index == 0 else len(ids) // 2
        extra = torch.rand(len(ids), generator=generator) < 0.15
        labels.append([i if n > 0 and (n >= start or extra[n]) else IGNORE_INDEX for n, i in enumerate(ids)])
    # A row in whose last tokens nothing counts.
    labels[2] = [i if n < 5 else IGNORE_INDEX for n, i in enumerate(labels[2])]
    return labels


def loss_sum(logits, labels):
    """Sum over the counted tokens, each predicted by the row before it; transformers' own loss computes in f32."""
    shifted = logits[:, :-1].reshape(-1, logits.shape[-1])
    target = labels[:, 1:].reshape(-1)
    return torch.nn.functional.cross_entropy(shifted, target, ignore_index=IGNORE_INDEX, reduction="sum")


def count(labels):
    return sum(label != IGNORE_INDEX for row in labels for label in row)


def attention_in_full_precision():
    """transformers computes GPT-Neo's scores, OPT's softmax and the reordered scores of GPT-2 in f32 whatever the weights
    are; here they have the weights' precision."""
    reordered = modeling_gpt2.GPT2Attention._upcast_and_reordered_attn

    def attend_gpt2(self, query, key, value, attention_mask=None):
        # In f32 the peer's own code, so that the peer's own error stands in the case.
        if query.dtype != torch.float64:
            return reordered(self, query, key, value, attention_mask)
        scores = torch.matmul(query, key.transpose(-1, -2)) * self.scaling
        if attention_mask is not None:
            scores = scores + attention_mask
        probabilities = self.attn_dropout(torch.nn.functional.softmax(scores, dim=-1))
        return torch.matmul(probabilities, value).transpose(1, 2), probabilities

    def attend(self, query, key, value, attention_mask=None):
        scores = torch.matmul(query, key.transpose(-1, -2))
        queries, keys = query.size(-2), key.size(-2)
        visible = self.bias[:, :, keys - queries : keys, :keys]
        scores = torch.where(visible, scores, torch.tensor(torch.finfo(scores.dtype).min, dtype=scores.dtype))
        if attention_mask is not None:
            scores = scores + attention_mask
        probabilities = self.attn_dropout(torch.nn.functional.softmax(scores, dim=-1))
        return torch.matmul(probabilities, value), probabilities

    def attend_opt(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
        if attention_mask is not None:
            scores = scores + attention_mask
        probabilities = torch.nn.functional.softmax(scores, dim=-1)
        return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities

    modeling_gpt2.GPT2Attention._upcast_and_reordered_attn = attend_gpt2
    modeling_gpt_neo.GPTNeoSelfAttention._attn = attend
    modeling_opt.eager_attention_forward = attend_opt


def add_buffers(state, config):
    """The masks that files of GPT-2 hold from the time when they were stored."""
    n = config.n_positions
    for i in range(config.n_layer):
        state[f"transformer.h.{i}.attn.bias"] = torch.ones(n, n).tril().view(1, 1, n, n)
        state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)


# What generate is asked for; the tokens that follow each row's first five.
DECODINGS = {
    "greedy": {"max_new_tokens": 12},
    "greedy-penalties": {"max_new_tokens": 16, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    "beam": {"max_new_tokens": 12, "num_beams": 4},
    "beam-paper": {"max_new_tokens": 14, "num_beams": 10, "length_penalty": 0.9, "no_repeat_ngram_size": 4},
    "beam-long": {"max_new_tokens": 10, "num_beams": 3, "length_penalty": 2.0, "repetition_penalty": 1.2},
    "beam-early": {"max_new_tokens": 12, "num_beams": 5, "length_penalty": 0.5, "early_stopping": True},
}


def generated(model, rows):
    """The new tokens of each row by decoding, the end token included; row by row, so that nothing is padded."""
    out = {}
    for name, options in DECODINGS.items():
        tokens = []
        for row in rows:
            prompt = torch.tensor([row["input_ids"][:5]])
            found = model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=1, eos_token_id=2, **options
            )
            tokens.append(found[0, prompt.shape[1] :].tolist())
        out[name] = {"options": options, "prompt_tokens": 5, "new_tokens": tokens}
    return out
