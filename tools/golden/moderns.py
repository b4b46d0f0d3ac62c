"""What make_golden.py needs to know of ModernBERT: its config fields, and its arithmetic in f64."""

import torch
from transformers.models.modernbert import modeling_modernbert

CLASSES = {
    "modernbert": ("ModernBertConfig", "ModernBertForSequenceClassification", "ModernBertForTokenClassification", "ModernBertModel"),
}
PREFIXES = {"modernbert": "model."}


def config_fields(case):
    hidden, heads, intermediate = case.width
    return {
        "vocab_size": 97, "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": 4,
        "num_attention_heads": heads, "max_position_embeddings": 64, "local_attention": 6, "pad_token_id": 1,
        "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2, "num_labels": case.num_labels,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    } | case.config  # fmt: skip


def in_full_precision():
    """transformers rotates and computes the softmax in f32 whatever the weights are; here they have the weights' precision."""

    def attend(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        scores = torch.matmul(query, key.transpose(2, 3)) * scaling
        if attention_mask is not None:
            scores = scores + attention_mask
        probabilities = torch.nn.functional.softmax(scores, dim=-1)
        return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities

    def rotate(q, k, cos, sin, unsqueeze_dim=1):
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return [x * cos + modeling_modernbert.rotate_half(x) * sin for x in (q, k)]

    modeling_modernbert.eager_attention_forward = attend
    modeling_modernbert.apply_rotary_pos_emb = rotate
