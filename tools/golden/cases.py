"""The golden cases, one row each: which model, which adapter, which files. A new family is a few rows here."""

from dataclasses import dataclass, field
from typing import ClassVar

import debertas
import decoders
import moderns
import rotary


@dataclass
class Case:
    """What make_golden.py needs to know of a case; the defaults are the usual small classifier."""

    name: str
    family: str
    task: str = "single_label"
    num_labels: int = 2
    # Keyword arguments of peft's LoraConfig; None for full fine-tuning.
    lora: dict | None = field(default_factory=dict)
    # Biases and the head are trained in the place of adapters.
    bitfit: bool = False
    # safetensors | safetensors-sharded | bin | bin-sharded | bin-legacy, and after `+`: bare, pooler, old-names, f16, bf16;
    # of GPT-2, buffers (stored masks), and of a language model, tied-copy (the output table is stored too).
    checkpoint: str = "safetensors"
    adapter_format: str = "safetensors"
    # Fields of config.json as files on the Hub have them; None takes one out.
    hub_config: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    pair: bool = False
    # The pad token's id also stands inside rows (RoBERTa numbers positions by it).
    pad_inside: bool = False
    num_rows: int = 6
    lengths: tuple = (7, 3, 17, 11, 5, 14)
    trajectory: dict | None = None
    # Whether generate's tokens are in the case too.
    generate: bool = False
    note: str = ""
    # Hidden size, heads, intermediate size: the same for all cases.
    width: ClassVar[tuple] = (32, 4, 64)

    def config_fields(self):
        if self.family in decoders.CLASSES:
            return decoders.config_fields(self)
        if self.family in rotary.CLASSES:
            return rotary.config_fields(self)
        if self.family in moderns.CLASSES:
            return moderns.config_fields(self)
        if self.family in debertas.CLASSES:
            return debertas.config_fields(self)
        roberta = self.family != "bert"
        hidden, heads, intermediate = self.width
        fields = {
            "vocab_size": 97,
            "hidden_size": hidden,
            "num_hidden_layers": 2,
            "num_attention_heads": heads,
            "intermediate_size": intermediate,
            "max_position_embeddings": 66 if roberta else 64,
            "type_vocab_size": 1 if roberta else 2,
            "pad_token_id": 1 if roberta else 0,
            "layer_norm_eps": 1e-5 if roberta else 1e-12,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "initializer_range": 0.3,
            "num_labels": self.num_labels,
        }
        if roberta:
            fields |= {"bos_token_id": 0, "eos_token_id": 2}
        return fields | self.config


def seq(**more):
    """LoRA on query and value for a sequence classifier."""
    return {"task_type": "SEQ_CLS", "r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]} | more


def tok(**more):
    """LoRA on query and value for a token classifier."""
    return seq(task_type="TOKEN_CLS") | more


def v2(**more):
    """LoRA on DeBERTa's query_proj and value_proj, the pooler saved too, for a sequence classifier."""
    return seq(**{"target_modules": ["query_proj", "value_proj"], "modules_to_save": ["pooler", "classifier"]} | more)


def causal(**more):
    """LoRA on GPT-2's fused projection, or on queries and values, for a language model."""
    return {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8} | more


TRAJECTORY = {
    "num_steps": 20,
    "micro_batch_sizes": [4, 3],
    "lr": 2e-3,
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "weight_decay": 0.01,
    "weight_decay_on": "every trainable value",
    "schedule": "linear",
    "warmup_steps": 4,
    "max_norm": 1.0,
}

BITFIT = TRAJECTORY | {"num_steps": 5, "eps": 1e-4}

# Room for two segments in every row.
PAIR_LENGTHS = (7, 5, 17, 11, 4, 14)

# Long enough that far positions share buckets, and one row of a single pair.
LONG = (41, 3, 17, 2, 5, 33)

# Longer than the windows of rotary decoders.
ROTARY = (40, 3, 17, 2, 5, 33)

CASES = [
    Case("bert-single-label", "bert", lora=seq()),
    Case(
        "bert-pair-token-types",
        "bert",
        num_labels=3,
        config={"id2label": {0: "no", 1: "perhaps", 2: "yes"}, "label2id": {"no": 0, "perhaps": 1, "yes": 2}},
        lora=seq(),
        pair=True,
        lengths=PAIR_LENGTHS,
        checkpoint="safetensors-sharded",
    ),
    Case(
        "bert-all-linear-rslora",
        "bert",
        lora=seq(target_modules="all-linear", use_rslora=True, r=3, lora_alpha=6),
        checkpoint="bin",
        note="all-linear takes the pooler's dense layer too",
    ),
    Case(
        "bert-patterns",
        "bert",
        config={"num_hidden_layers": 3},
        lora=seq(
            target_modules=["query", "key", "value", "dense"],
            exclude_modules=["bert.pooler.dense", "output.dense"],
            layers_to_transform=[0, 2],
            layers_pattern="layer",
            rank_pattern={"key": 2, r"layer\.2\.attention\.self\.query": 5},
            alpha_pattern={"query": 16, r"^bert\.encoder\.layer\.0\.attention\.self\.value": 3},
        ),
    ),
    Case(
        "bert-regex-targets",
        "bert",
        lora=seq(target_modules=r"bert\.encoder\.layer\.\d+\.(attention\.self\.(query|key)|output\.dense)"),
        checkpoint="safetensors+f16",
    ),
    Case("bert-multi-label", "bert", task="multi_label", num_labels=4, lora=seq(), checkpoint="bin-sharded"),
    Case("bert-regression", "bert", task="regression", num_labels=1, lora=seq()),
    Case("bert-token-classification", "bert", task="token_classification", num_labels=5, lora=tok()),
    Case("bert-bias-all", "bert", lora=seq(bias="all")),
    Case("bert-bias-lora-only", "bert", lora=seq(bias="lora_only")),
    Case("bert-pooler-saved", "bert", lora=seq(modules_to_save=["classifier", "bert.pooler"])),
    Case(
        "bert-no-head",
        "bert",
        num_labels=3,
        lora=seq(modules_to_save=["classifier", "pooler"]),
        checkpoint="safetensors+bare",
        note="the base has neither pooler nor head: both come from the adapter, and there are no base logits",
    ),
    Case(
        "bert-old-names",
        "bert",
        lora=seq(),
        checkpoint="bin-legacy+old-names",
        note="LayerNorm.gamma and .beta, an unused masked-word head, PyTorch's file format before 1.6",
    ),
    Case("bert-relu", "bert", config={"hidden_act": "relu", "type_vocab_size": 1}, lora=seq(r=1, lora_alpha=1)),
    Case(
        "bert-silu-classifier-dropout",
        "bert",
        config={"hidden_act": "silu", "classifier_dropout": 0.1, "layer_norm_eps": 1e-6},
        lora=seq(init_lora_weights="gaussian"),
        checkpoint="safetensors+bf16",
        note="numbers in evaluation mode: no dropout is applied",
    ),
    Case("bert-long-rows", "bert", lora=seq(target_modules="all-linear"), num_rows=3, lengths=(64, 1 + 1, 33)),
    Case("bert-full", "bert", lora=None, note="gradients of every parameter; the pad token's row of word_embeddings has none"),
    Case("roberta-single-label", "roberta", num_labels=3, lora=seq()),
    Case("roberta-regression", "roberta", task="regression", num_labels=1, lora=seq(), checkpoint="bin"),
    Case("roberta-multi-label", "roberta", task="multi_label", num_labels=3, lora=seq(target_modules=["key", "dense"]), checkpoint="bin+bf16"),
    Case("roberta-token-classification", "roberta", task="token_classification", num_labels=4, lora=tok()),
    Case("roberta-pair", "roberta", lora=seq(), pair=True, lengths=PAIR_LENGTHS, checkpoint="safetensors-sharded"),
    Case("roberta-all-linear", "roberta", lora=seq(target_modules="all-linear", bias="all")),
    Case("roberta-gelu-new", "roberta", config={"hidden_act": "gelu_new"}, lora=seq()),
    Case("roberta-relu", "roberta", config={"hidden_act": "relu", "num_hidden_layers": 3}, lora=seq(layers_to_transform=[1]), checkpoint="safetensors+f16"),
    Case(
        "roberta-no-head",
        "roberta",
        lora=seq(),
        checkpoint="bin+bare+pooler",
        note="a bare encoder with a pooler that the classifier does not use; the head comes from the adapter",
    ),
    Case("roberta-pad-inside", "roberta", lora=seq(), checkpoint="safetensors+f16", pad_inside=True, note="the pad id inside a row gets the pad position"),
    Case("roberta-full", "roberta", lora=None, num_labels=3),
    Case("xlm-roberta-single-label", "xlm-roberta", lora=seq(), adapter_format="bin"),
    Case(
        "gpt2-causal",
        "gpt2",
        task="causal_lm",
        lora=causal(),
        checkpoint="safetensors+buffers+tied-copy",
        generate=True,
        note="the default target is c_attn; peft sets fan_in_fan_out",
    ),
    Case(
        "gpt2-all-linear",
        "gpt2",
        task="causal_lm",
        config={"scale_attn_by_inverse_layer_idx": True, "activation_function": "gelu"},
        lora=causal(target_modules="all-linear", r=3, use_rslora=True),
        checkpoint="bin+f16+bare",
        lengths=(40, 3, 17, 2, 5, 33),
    ),
    Case(
        "gpt2-untied",
        "gpt2",
        task="causal_lm",
        config={"tie_word_embeddings": False, "scale_attn_weights": False, "activation_function": "relu"},
        lora=causal(target_modules=["c_attn", "mlp.c_proj"], modules_to_save=["lm_head", "mlp.c_fc"], bias="all"),
        checkpoint="safetensors-sharded",
        note="modules_to_save holds a Conv1D, whose weight is [in, out]",
    ),
    Case(
        "gpt2-upcast",
        "gpt2",
        task="causal_lm",
        config={"n_layer": 3, "reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
        lora=causal(target_modules=["c_attn", "attn.c_proj"]),
        generate=True,
        note="the form of Mistral's GPT-2: both scalings inside one product of f32",
    ),
    Case("gpt2-single-label", "gpt2", num_labels=3, lora=seq(target_modules=["c_attn", "c_proj"]), pad_inside=True),
    Case("gpt2-full", "gpt2", task="causal_lm", lora=None, note="the gradient of the tied table is the sum of both uses"),
    Case("gpt_neo-causal", "gpt_neo", task="causal_lm", lora=causal(), lengths=(40, 3, 17, 11, 5, 33), generate=True),
    Case("gpt_neo-regression", "gpt_neo", task="regression", num_labels=1, lora=seq(target_modules="all-linear"), checkpoint="bin+f16"),
    Case("gpt_neo-full", "gpt_neo", task="causal_lm", lora=None),
    Case("opt-causal", "opt", task="causal_lm", lora=causal(), checkpoint="safetensors+tied-copy", generate=True),
    Case(
        "opt-post-norm",
        "opt",
        task="causal_lm",
        config={"do_layer_norm_before": False, "word_embed_proj_dim": 24},
        lora=causal(target_modules="all-linear"),
        checkpoint="bin",
        generate=True,
        note="the form of the 350M model",
    ),
    Case(
        "opt-plain",
        "opt",
        task="causal_lm",
        config={"enable_bias": False, "layer_norm_elementwise_affine": False, "tie_word_embeddings": False},
        lora=causal(target_modules=["k_proj", "out_proj", "fc1"]),
    ),
    Case("opt-multi-label", "opt", task="multi_label", num_labels=3, lora=seq(target_modules=["q_proj", "fc2"]), pad_inside=True),
    Case(
        "opt-full",
        "opt",
        task="causal_lm",
        config={"do_layer_norm_before": False, "word_embed_proj_dim": 24},
        lora=None,
        note="the pad token's row of embed_tokens gets the head's gradient",
    ),
    Case("llama-causal", "llama", task="causal_lm", lora=causal(), lengths=ROTARY, generate=True),
    Case(
        "llama-llama3",
        "llama",
        task="causal_lm",
        config={
            "max_position_embeddings": 64,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_theta": 500.0,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 24},
        },
        lora=causal(target_modules="all-linear"),
        checkpoint="safetensors+bf16",
        lengths=(57, 3, 31, 2, 40),
        num_rows=5,
        generate=True,
        note="the old form of rotations, rows longer than the original positions, heads wider than D / H",
    ),
    Case(
        "llama-yarn",
        "llama",
        task="causal_lm",
        config={
            "max_position_embeddings": 64,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "yarn", "rope_theta": 300.0, "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2.0},
        },
        lora=causal(target_modules="all-linear", bias="all"),
        lengths=(57, 3, 31, 2, 40),
        num_rows=5,
    ),
    Case(
        "llama-linear",
        "llama",
        task="causal_lm",
        config={"num_key_value_heads": 1, "rope_scaling": {"type": "linear", "factor": 3.0}},
        lora=causal(target_modules=["k_proj", "gate_proj"], modules_to_save=["lm_head", "embed_tokens"]),
        checkpoint="bin-sharded",
        note="one head of keys and values",
    ),
    Case("llama-single-label", "llama", num_labels=3, lora=seq(target_modules=["q_proj", "v_proj"]), pad_inside=True),
    Case("llama-full", "llama", task="causal_lm", lora=None, config={"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    Case(
        "llama-token-rows",
        "llama",
        task="causal_lm",
        config={"tie_word_embeddings": True},
        lora=causal(trainable_token_indices=[90, 5, 17, 41, 0]),
        generate=True,
        note="rows of a table that is both ends",
    ),
    Case(
        "llama-token-rows-apart",
        "llama",
        task="causal_lm",
        lora=causal(target_modules=["v_proj"], trainable_token_indices={"embed_tokens": [8, 33, 51], "lm_head": [33, 2]}),
    ),
    Case(
        "llama-tables",
        "llama",
        task="causal_lm",
        config={"tie_word_embeddings": True},
        lora=causal(target_modules=["q_proj", "embed_tokens", "lm_head"], rank_pattern={"lm_head": 2}),
        generate=True,
        note="low-rank terms of both ends of one table",
    ),
    Case("gemma2-tables", "gemma2", task="causal_lm", config={"tie_word_embeddings": False}, lora=causal(target_modules=["embed_tokens", "lm_head", "o_proj"], use_rslora=True)),
    Case("bert-token-rows", "bert", lora=seq(target_modules=["query"], trainable_token_indices=[9, 60, 61])),
    Case("mistral-causal", "mistral", task="causal_lm", lora=causal(), lengths=ROTARY, generate=True, note="rows longer than the window"),
    Case("mistral-regression", "mistral", task="regression", num_labels=1, config={"sliding_window": None, "head_dim": 12}, lora=seq(target_modules="all-linear")),
    Case("qwen2-causal", "qwen2", task="causal_lm", config={"tie_word_embeddings": True}, lora=causal(), checkpoint="safetensors+tied-copy", generate=True),
    Case(
        "qwen2-window",
        "qwen2",
        task="causal_lm",
        config={"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        lora=causal(target_modules="all-linear"),
        lengths=ROTARY,
    ),
    Case(
        "qwen2-yarn",
        "qwen2",
        task="causal_lm",
        config={"rope_parameters": {"rope_type": "yarn", "rope_theta": 300.0, "factor": 4.0, "original_max_position_embeddings": 12, "attention_factor": 1.3, "truncate": False}},
        lora=causal(),
        lengths=ROTARY,
        note="a factor of its own, and a ramp that is not cut to whole dimensions",
    ),
    Case("qwen3-causal", "qwen3", task="causal_lm", lora=causal(target_modules="all-linear"), lengths=ROTARY, generate=True),
    Case("qwen3-multi-label", "qwen3", task="multi_label", num_labels=3, lora=seq(target_modules=["q_proj", "o_proj"])),
    Case("qwen3-full", "qwen3", task="causal_lm", config={"tie_word_embeddings": True}, lora=None),
    Case("gemma-causal", "gemma", task="causal_lm", lora=causal(), generate=True, note="the table of tokens is scaled, its gradient too"),
    Case("gemma-full", "gemma", task="causal_lm", lora=None),
    Case("gemma-gelu", "gemma", task="causal_lm", lora=causal(), hub_config={"hidden_act": "gelu", "tie_word_embeddings": None}, note="official files say gelu and mean tanh; no tie flag"),
    Case("gemma2-causal", "gemma2", task="causal_lm", lora=causal(), lengths=ROTARY, generate=True, note="capped scores and logits, a window in the first layer"),
    Case("gemma2-full", "gemma2", task="causal_lm", config={"num_hidden_layers": 3, "attn_logit_softcapping": None}, lora=None, lengths=ROTARY),
    Case(
        "gemma2-single-label",
        "gemma2",
        num_labels=3,
        config={"final_logit_softcapping": None, "layer_types": ["full_attention", "sliding_attention"]},
        lora=seq(target_modules="all-linear"),
    ),
    Case("gemma2-trajectory", "gemma2", task="causal_lm", lora=causal(target_modules="all-linear"), num_rows=24, trajectory=TRAJECTORY),
    Case("gemma3_text-causal", "gemma3_text", task="causal_lm", lora=causal(target_modules="all-linear"), lengths=ROTARY, generate=True),
    Case(
        "gemma3_text-scaled",
        "gemma3_text",
        task="causal_lm",
        config={
            "num_hidden_layers": 7,
            "layer_types": None,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 3.0,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
            },
        },
        lora=causal(),
        lengths=ROTARY,
        note="layers by their number, a rotation for each kind, capped scores",
    ),
    Case("gemma3_text-capped", "gemma3_text", task="causal_lm", config={"final_logit_softcapping": 4.0}, lora=causal()),
    Case("gemma3_text-full", "gemma3_text", task="causal_lm", lora=None),
    Case("phi3-causal", "phi3", task="causal_lm", lora=causal(target_modules=["qkv_proj"]), lengths=ROTARY, generate=True),
    Case(
        "phi3-longrope",
        "phi3",
        task="causal_lm",
        config={
            "max_position_embeddings": 96,
            "original_max_position_embeddings": 48,
            "sliding_window": 7,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.2, 1.7],
                "long_factor": [1.5, 3.0, 7.0],
            },
        },
        lora=causal(target_modules="all-linear"),
        lengths=ROTARY,
        note="a part of each head is rotated, by the factors of short rows",
    ),
    Case(
        "phi3-longrope-long",
        "phi3",
        task="causal_lm",
        config={
            "original_max_position_embeddings": 10,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 100.0,
                "short_factor": [1.0, 1.2, 1.7, 2.0],
                "long_factor": [1.5, 3.0, 7.0, 9.0],
            },
        },
        lora=causal(target_modules=["qkv_proj", "gate_up_proj"]),
        lengths=(40, 11, 17, 12, 14, 33),
        generate=True,
        note="all rows longer than the original length; generation grows beyond it",
    ),
    Case(
        "phi3-su",
        "phi3",
        task="causal_lm",
        config={"original_max_position_embeddings": 10, "rope_parameters": {"rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0, 1.2, 1.7, 2.0], "long_factor": [1.5, 3.0, 7.0, 9.0]}},
        lora=causal(target_modules=["o_proj"]),
        lengths=(20, 11, 17, 12, 14, 13),
        hub_config={"rope_parameters": None, "rope_theta": 100.0, "rope_scaling": {"type": "yarn", "short_factor": [1.0, 1.2, 1.7, 2.0], "long_factor": [1.5, 3.0, 7.0, 9.0]}},
        note="the first name of longrope",
    ),
    Case("olmo2-causal", "olmo2", task="causal_lm", lora=causal(target_modules=["q_proj", "v_proj"]), generate=True),
    Case("olmo2-full", "olmo2", task="causal_lm", config={"attention_bias": True}, lora=None),
    Case("smollm3-window", "smollm3", task="causal_lm", config={"use_sliding_window": True, "sliding_window": 4, "no_rope_layer_interval": 2}, lora=causal(target_modules=["q_proj", "v_proj"]), lengths=ROTARY, hub_config={"layer_types": None, "no_rope_layers": None}),
    Case("smollm3-causal", "smollm3", task="causal_lm", config={"tie_word_embeddings": True}, lora=causal(target_modules="all-linear"), generate=True),
    Case(
        "granite-causal",
        "granite",
        task="causal_lm",
        config={"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4, "logits_scaling": 5.0},
        lora=causal(target_modules="all-linear"),
        generate=True,
    ),
    Case("granite-full", "granite", task="causal_lm", config={"logits_scaling": 3.0, "embedding_multiplier": 2.0}, lora=None),
    Case("llama-trajectory", "llama", task="causal_lm", lora=causal(target_modules="all-linear"), num_rows=24, trajectory=TRAJECTORY),
    Case("gemma3_text-trajectory", "gemma3_text", task="causal_lm", lora=causal(), num_rows=24, trajectory=TRAJECTORY),
    Case("gpt2-trajectory", "gpt2", task="causal_lm", lora=causal(), num_rows=24, trajectory=TRAJECTORY | {"max_norm": 0.5}),
    Case("gpt_neo-trajectory", "gpt_neo", task="causal_lm", lora=causal(), num_rows=24, trajectory=TRAJECTORY),
    Case("opt-trajectory", "opt", task="causal_lm", lora=causal(), num_rows=24, trajectory=TRAJECTORY),
    Case("deberta-v2-v3", "deberta-v2", config=debertas.V3, lora=v2(), lengths=LONG, num_labels=3),
    Case(
        "deberta-v2-key",
        "deberta-v2",
        config=debertas.V3,
        lora=v2(target_modules=["key_proj"]),
        lengths=LONG,
        checkpoint="bin+f16+bare",
        note="the shared projection of positions gets a gradient; the file has neither pooler nor head",
    ),
    Case(
        "deberta-v2-xxlarge",
        "deberta-v2",
        config=debertas.XXLARGE,
        lora=v2(target_modules="all-linear"),
        lengths=LONG,
        checkpoint="bin+f16",
        note="the convolution after the first layer stays within each row",
    ),
    Case(
        "deberta-v2-one-layer",
        "deberta-v2",
        config=debertas.XXLARGE | {"conv_act": "tanh", "num_hidden_layers": 1, "conv_kernel_size": 5},
        lora=v2(target_modules=["dense"]),
        checkpoint="safetensors+bf16",
        note="the convolution stands after the last layer, whose first tokens alone are read",
    ),
    Case(
        "deberta-v2-own-projections",
        "deberta-v2",
        config=debertas.V3 | {"share_att_key": False, "norm_rel_ebd": "none", "position_buckets": -1, "max_relative_positions": 6},
        lora=v2(target_modules=["query_proj", "pos_key_proj", "pos_query_proj"]),
        lengths=LONG,
    ),
    Case(
        "deberta-v2-c2p-pair",
        "deberta-v2",
        config=debertas.V3 | {"pos_att_type": ["c2p"], "position_biased_input": True, "type_vocab_size": 2, "embedding_size": 16},
        lora=v2(target_modules="all-linear", bias="all"),
        pair=True,
        lengths=PAIR_LENGTHS,
        checkpoint="safetensors-sharded",
    ),
    Case(
        "deberta-v2-p2c-tokens",
        "deberta-v2",
        task="token_classification",
        num_labels=4,
        config=debertas.V3 | {"pos_att_type": ["p2c"], "share_att_key": False, "hidden_act": "relu"},
        lora=tok(target_modules=["query_proj", "key_proj", "pos_query_proj"]),
        lengths=LONG,
    ),
    Case(
        "deberta-v2-absolute",
        "deberta-v2",
        task="regression",
        num_labels=1,
        config={"relative_attention": False, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0, "pooler_hidden_act": "tanh"},
        lora=v2(),
        checkpoint="bin-legacy+old-names",
        note="no table of positions: the terms count for the scale alone; an unused masked-word head",
    ),
    Case("deberta-v2-full", "deberta-v2", config=debertas.XXLARGE | {"embedding_size": 16}, lora=None, lengths=LONG),
    Case(
        "deberta-single-label",
        "deberta",
        config={"relative_attention": True, "pos_att_type": "c2p|p2c", "position_biased_input": False, "type_vocab_size": 0},
        lora=v2(target_modules=["in_proj"]),
        lengths=LONG,
        checkpoint="bin+f16",
    ),
    Case(
        "deberta-all-linear",
        "deberta",
        config={"relative_attention": True, "pos_att_type": "c2p|p2c", "max_relative_positions": 6, "embedding_size": 16},
        lora=v2(target_modules="all-linear", bias="all"),
        pair=True,
        lengths=PAIR_LENGTHS,
    ),
    Case("deberta-absolute-tokens", "deberta", task="token_classification", num_labels=3, lora=tok(target_modules=["in_proj", "dense"])),
    Case(
        "deberta-full",
        "deberta",
        config={"relative_attention": True, "pos_att_type": "c2p|p2c", "num_hidden_layers": 1, "position_biased_input": False},
        lora=None,
    ),
    Case("deberta-v2-trajectory", "deberta-v2", config=debertas.XXLARGE, lora=v2(), num_rows=24, trajectory=TRAJECTORY | {"max_norm": 4.0}),
    Case("bert-trajectory", "bert", lora=seq(), num_rows=24, trajectory=TRAJECTORY),
    # LoRA+: B and vectors at 16 times the rate of A. Without decay, which peft leaves out for vectors there.
    Case("bert-loraplus-trajectory", "bert", lora=seq(), num_rows=24, trajectory=TRAJECTORY | {"num_steps": 10, "lr": 5e-4, "weight_decay": 0.0, "loraplus_lr_ratio": 16.0}),
    Case("bert-bitfit", "bert", lora=None, bitfit=True),
    Case("gpt2-bitfit", "gpt2", task="causal_lm", lora=None, bitfit=True),
    # A key's bias has no gradient in truth: with this epsilon it does not follow the rounding of one.
    Case("bert-bitfit-trajectory", "bert", lora=None, bitfit=True, num_rows=24, trajectory=BITFIT),
    Case("gpt2-bitfit-trajectory", "gpt2", task="causal_lm", lora=None, bitfit=True, num_rows=24, trajectory=BITFIT),
    Case("modernbert-single-label", "modernbert", lora=seq(target_modules=["Wqkv"]), lengths=LONG, note="the last layer looks at all tokens"),
    Case(
        "modernbert-mean",
        "modernbert",
        num_labels=3,
        config={"num_hidden_layers": 3, "classifier_pooling": "mean", "classifier_bias": True},
        lora=seq(target_modules="all-linear", modules_to_save=["head", "classifier"]),
        lengths=LONG,
        checkpoint="bin+f16",
        note="the last layer looks around",
    ),
    Case(
        "modernbert-regression",
        "modernbert",
        task="regression",
        num_labels=1,
        config={"num_hidden_layers": 3, "norm_bias": True, "attention_bias": True, "mlp_bias": True, "rope_parameters": None, "global_rope_theta": 300.0, "local_rope_theta": 20.0, "global_attn_every_n_layers": 2, "local_attention": 3},
        lora=seq(target_modules=["Wqkv", "Wi"], bias="all"),
        lengths=LONG,
        note="the first form of rotations",
    ),
    Case("modernbert-tokens", "modernbert", task="token_classification", num_labels=4, lora=tok(target_modules=["attn.Wo", "Wi"], trainable_token_indices=[9, 50]), lengths=LONG),
    Case("modernbert-full", "modernbert", lora=None, config={"classifier_pooling": "mean", "hidden_activation": "gelu_pytorch_tanh"}),
    Case("modernbert-no-head", "modernbert", lora=seq(target_modules=["Wqkv"], modules_to_save=["head", "classifier"]), checkpoint="safetensors+bare"),
    Case("modernbert-trajectory", "modernbert", lora=seq(target_modules="all-linear"), num_rows=24, trajectory=TRAJECTORY),
    # Some steps are clipped here, some are not; in the other trajectory all are.
    Case("roberta-trajectory", "roberta", num_labels=3, lora=seq(), num_rows=24, trajectory=TRAJECTORY | {"max_norm": 4.0}),
]

# Adapter folders alone, in the variety of what peft writes.
ROUND_TRIPS = {
    "plain": {"family": "bert", "lora": seq()},
    "bf16": {"family": "roberta", "lora": seq(lora_dropout=0.1), "dtype": "bfloat16"},
    "f16-regex": {"family": "roberta", "lora": seq(target_modules=r".*\.(query|value)"), "dtype": "float16"},
    "bin": {"family": "bert", "lora": seq(), "bin": True},
    "escapes": {
        "family": "bert",
        "lora": seq(lora_dropout=1e-05, lora_alpha=0.3333333333333333),
        "base": 'modèles/"tiny"\\\u2028\U0001f600\t',
        "revision": "main",
    },
    "repeated-modules": {"family": "roberta", "lora": seq(), "repeat_modules_to_save": True},
    "no-task": {"family": "bert", "lora": {"target_modules": ["query"], "lora_dropout": 0}},
    "lora-bias": {"family": "bert", "lora": seq(lora_bias=True)},
    "dora": {"family": "bert", "lora": seq(use_dora=True)},
    "patterns": {
        "family": "bert",
        "lora": seq(
            target_modules=["query", "value", "dense"],
            rank_pattern={"query": 2, "layer.1.output.dense": 6},
            alpha_pattern={"value": 1.5},
            exclude_modules=r".*pooler.*",
            layers_to_transform=1,
        ),
    },
}
