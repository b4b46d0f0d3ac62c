"""What make_golden.py needs to know of DeBERTa: config fields, and layer norms in full precision."""

from transformers.models.deberta import modeling_deberta

CLASSES = {
    "deberta-v2": (
        "DebertaV2Config",
        "DebertaV2ForSequenceClassification",
        "DebertaV2ForTokenClassification",
        "DebertaV2Model",
    ),
    "deberta": ("DebertaConfig", "DebertaForSequenceClassification", "DebertaForTokenClassification", "DebertaModel"),
}
PREFIXES = dict.fromkeys(CLASSES, "deberta.")
# The small models of version 3: logarithmic buckets, shared projections, no absolute positions, no segments.
V3 = {
    "relative_attention": True,
    "pos_att_type": "p2c|c2p",
    "share_att_key": True,
    "position_buckets": 4,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
# Version 2, xlarge and xxlarge: the same, with a convolution after the first layer.
XXLARGE = V3 | {"conv_kernel_size": 3, "conv_act": "gelu"}


def config_fields(case):
    hidden, heads, intermediate = case.width
    fields = {
        "vocab_size": 97,
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "max_position_embeddings": 48,
        "type_vocab_size": 2,
        "pad_token_id": 1,
        "layer_norm_eps": 1e-7,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.3,
        "num_labels": case.num_labels,
    }
    return fields | case.config


def full_precision():
    """DeBERTa's own layer norm computes in f32 whatever its input is."""

    def forward(self, x):
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).pow(2).mean(-1, keepdim=True)
        return self.weight * (x - mean) / (variance + self.variance_epsilon).sqrt() + self.bias

    modeling_deberta.DebertaLayerNorm.forward = forward
