"""Golden tokens and scores of generation_config.json: each field by itself and several together, by transformers' generate.

Tokens come from the language models of other cases, with their adapters, in f64. Scores are those that transformers' logits
processors leave of drawn logits: what is drawn from, without the draw. Each case must change something, or the script fails.
"""

import json
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config, GPT2LMHeadModel

ROOT = Path(__file__).resolve().parents[2] / "tests" / "golden"
MODELS = ("gpt2-causal", "gpt_neo-causal", "opt-causal")
# The families share their search: the first model has all cases, the others these.
OF_ALL_MODELS = ("several fields", "guidance_scale", "early_stopping never", "beams and penalties", "forced_bos_token_id")
PROMPTS, PROMPT_TOKENS, END = 3, 5, 2
VOCAB = 24


def load(name):
    model = AutoModelForCausalLM.from_pretrained(ROOT / name / "model", dtype=torch.float64, attn_implementation="eager")
    return PeftModel.from_pretrained(model, ROOT / name / "adapter").eval()


def tokens_of(model, config, prompts):
    model.generation_config = GenerationConfig.from_dict(dict(config))
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        found.append(model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))[0, len(prompt) :].tolist())
    return found


def greedy_cases(plain):
    """Fields of greedy search; `plain` are the tokens without them."""
    one, two, three = (row[0] for row in plain)
    other = plain[0][1]
    return {
        "repetition_penalty": {"repetition_penalty": 1.8},
        "repetition_penalty below 1": {"repetition_penalty": 0.6},
        "encoder_repetition_penalty": {"encoder_repetition_penalty": 3.0},
        "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
        "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1, "encoder_repetition_penalty": 6.0},
        "suppress_tokens": {"suppress_tokens": [one, other, three, 500, -1]},
        "begin_suppress_tokens": {"begin_suppress_tokens": [one, two]},
        "bad_words_ids": {"bad_words_ids": [[two], [one, other], [END]]},
        "sequence_bias": {"sequence_bias": [[[one], -9.5], [[two, plain[1][1]], -30.0], [[three], -1.5], [[three], -20.0]]},
        "forced_eos_token_id": {"max_new_tokens": 6, "forced_eos_token_id": 11},
        "several forced_eos_token_id": {"max_new_tokens": 6, "forced_eos_token_id": [13, 12]},
        "several eos_token_id": {"eos_token_id": [END, plain[0][3], plain[1][2]]},
        "an eos_token_id that is no token": {"eos_token_id": [END, 5000, plain[0][2]]},
        "min_length": {"eos_token_id": [one, two, three], "min_length": 8},
        "min_new_tokens": {"eos_token_id": [one, two, three], "min_new_tokens": 4, "min_length": 10},
        "max_length": {"max_new_tokens": None, "max_length": 9},
        "max_new_tokens over max_length": {"max_new_tokens": 7, "max_length": 9},
        "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [2, 3.5]},
        "guidance_scale": {"guidance_scale": 2.5},
        "guidance_scale and penalty": {"guidance_scale": 1.6, "repetition_penalty": 1.3, "min_new_tokens": 3},
        "several fields": {
            "repetition_penalty": 1.4,
            "suppress_tokens": [one],
            "sequence_bias": [[[two], 4.0]],
            "eos_token_id": [END, other],
            "min_new_tokens": 3,
            "exponential_decay_length_penalty": [4, 1.4],
        },
        "a draw from one token": {"do_sample": True, "top_k": 1, "temperature": 3.0, "no_repeat_ngram_size": 1},
        "a draw from the least share": {"do_sample": True, "top_p": 0.0, "repetition_penalty": 1.8},
    }


def beam_cases(plain):
    one, two, three = (row[0] for row in plain)
    return {
        "length_penalty below 0": {"length_penalty": -1.0, "eos_token_id": [END, *plain[0][:3]]},
        "early_stopping": {"early_stopping": True, "length_penalty": 1.5, "eos_token_id": [END, *plain[0][2:5]]},
        "early_stopping never": {"early_stopping": "never", "length_penalty": 1.5, "eos_token_id": [END, *plain[0][2:5]]},
        "beams and penalties": {"repetition_penalty": 1.5, "no_repeat_ngram_size": 3, "encoder_repetition_penalty": 1.2},
        "beams and forbidden tokens": {"suppress_tokens": [one], "bad_words_ids": [[two], [three, plain[2][1]]], "begin_suppress_tokens": [three]},
        "beams and bias": {"sequence_bias": [[[one], 2.5], [[two, three], 7.0]], "renormalize_logits": True},
        "beams and lengths": {"min_new_tokens": 5, "eos_token_id": [END, one, two], "exponential_decay_length_penalty": [5, 1.2]},
        "beams and a forced end": {"max_new_tokens": 5, "forced_eos_token_id": END, "length_penalty": 0.5},
        "beams and no number": {"remove_invalid_values": True, "suppress_tokens": [one, two]},
    }


def one_token_cases(plain):
    """Fields that count after a prompt of one token."""
    return {
        "forced_bos_token_id": {"forced_bos_token_id": 7},
        "forced_bos_token_id and the next": {"forced_bos_token_id": 7, "begin_suppress_tokens": [7, plain[0][1], plain[0][0]]},
    }


def searches():
    cases = []
    for name in MODELS:
        model = load(name)
        rows = json.loads((ROOT / name / "case.json").read_text())["rows"]
        prompts = [row["input_ids"][:PROMPT_TOKENS] for row in rows if len(row["input_ids"]) >= PROMPT_TOKENS][:PROMPTS]

        def add(title, config, prompts, plain):
            if name != MODELS[0] and title not in OF_ALL_MODELS:
                return
            tokens = tokens_of(model, config, prompts)
            assert tokens != plain, f"{name}: {title} changes nothing"
            cases.append({"model": name, "name": title, "config": config, "prompts": prompts, "tokens": tokens})

        base = {"max_new_tokens": 10, "eos_token_id": END, "pad_token_id": 1}
        plain = tokens_of(model, base, prompts)
        for title, config in greedy_cases(plain).items():
            add(title, {k: v for k, v in {**base, **config}.items() if v is not None}, prompts, plain)
        beams = {**base, "num_beams": 4}
        followed = tokens_of(model, beams, prompts)
        for title, config in beam_cases(followed).items():
            add(title, {**beams, **config}, prompts, followed)
        short = [prompt[:1] for prompt in prompts]
        alone = tokens_of(model, base, short)
        for title, config in one_token_cases(alone).items():
            add(title, {**base, **config}, short, alone)
    return cases


SCORES = {
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 5},
    "the top_k that is meant": {"temperature": 1.3},
    "top_p": {"top_p": 0.7},
    "top_p of nothing": {"top_p": 0.0},
    "min_p": {"min_p": 0.15},
    "min_p and temperature": {"min_p": 0.3, "temperature": 1.8},
    "min_p of the most probable token": {"min_p": 1.0},
    "top_h": {"top_h": 0.45},
    "typical_p": {"typical_p": 0.5},
    "typical_p of most": {"typical_p": 0.95},
    "epsilon_cutoff": {"epsilon_cutoff": 0.05},
    "eta_cutoff": {"eta_cutoff": 0.2},
    "eta_cutoff of little": {"eta_cutoff": 0.01, "temperature": 0.4},
    "temperature and filters": {"temperature": 1.7, "top_k": 9, "top_p": 0.85},
    "all filters": {"temperature": 1.4, "top_h": 0.9, "top_k": 16, "top_p": 0.97, "typical_p": 0.9, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02},
    "min_p between the filters": {"temperature": 1.5, "top_k": 14, "top_p": 0.95, "min_p": 0.08, "typical_p": 0.9},
    "min_p after repetition_penalty": {"repetition_penalty": 1.7, "min_p": 0.2},
    "filters after rules": {"repetition_penalty": 1.6, "suppress_tokens": [3, 4, 5], "top_k": 6, "typical_p": 0.8},
    "filters after an end": {"exponential_decay_length_penalty": [1, 1.8], "top_p": 0.8},
    "renormalize_logits": {"top_k": 7, "renormalize_logits": True},
}


def scores():
    # A vocabulary above 50 would make the cases larger: the default top_k of 50 keeps all of these.
    torch.manual_seed(11)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=32, n_embd=8, n_layer=1, n_head=1))
    cases = []
    for beams in (1, 3):
        for title, config in SCORES.items():
            logits = torch.randn(VOCAB) * 2.0
            prompt = torch.randint(3, VOCAB, (4,)).tolist()
            tokens = prompt + torch.randint(3, VOCAB, (3,)).tolist()
            config = {k: v for k, v in config.items() if v is not None}
            config |= {"do_sample": True, "num_beams": beams, "max_new_tokens": 8, "eos_token_id": [END, 7]}
            settings, _ = model._prepare_generation_config(GenerationConfig.from_dict(dict(config)))
            settings.max_length = len(prompt) + 8
            model._prepare_special_tokens(settings, device=torch.device("cpu"))
            ids = torch.tensor([tokens])
            processors = model._get_logits_processor(
                settings, input_ids_seq_length=len(prompt), encoder_input_ids=ids[:, : len(prompt)], device="cpu", model_kwargs={}
            )
            given = logits.log_softmax(-1) if beams > 1 else logits
            left = processors(ids, given[None].clone())[0]
            row = [None if x == float("-inf") else round(x, 6) for x in left.tolist()]
            cases.append(
                {
                    "name": f"{title}, {beams} beams" if beams > 1 else title,
                    "config": config,
                    "prompt_tokens": len(prompt),
                    "tokens": tokens,
                    "logits": [round(x, 7) for x in logits.tolist()],
                    "scores": row,
                }
            )
    return cases


def make():
    return {"transformers": transformers.__version__, "searches": searches(), "scores": scores()}


FILES = {"generation": make}
