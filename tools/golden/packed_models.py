"""Golden checkpoints whose values are packed: a few matrices in each form that Hugging Face directories have, and their values.

    python tools/golden/packed_models.py

Writes tests/golden/quantised/packed/FORM/: `config.json`, `model.safetensors` and `expected.safetensors`. bitsandbytes and
compressed-tensors pack and unpack their own, transformers unpacks MXFP4; GPTQ and AWQ are packed here by their layout, and unpacked by the arithmetic of
AutoGPTQ's `QuantLinear` and autoawq's `packing_utils`, in torch. Needs torch, bitsandbytes (its processor side), compressed-tensors.
"""

import json
import shutil

import bitsandbytes
import bitsandbytes.functional as bnb
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import save_file

from transformers import BertConfig, BertForSequenceClassification
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from quantised_common import OUT, finish, write_json

SEED = 20261201
ROOT = OUT / "packed"


def normal(*shape, std=0.1):
    return torch.normal(0.0, std, shape)


def write(form, config, stored, expected, model_type="llama"):
    folder = ROOT / form
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"model_type": model_type, "quantization_config": config})
    save_file({name: value.contiguous() for name, value in stored.items()}, folder / "model.safetensors")
    save_file({name: value.contiguous() for name, value in expected.items()}, folder / "expected.safetensors")


def four_bits(form, kind, double, dtype, model_type="llama"):
    stored, expected = {"norm.weight": normal(5)}, {}
    # The second one's last block is short, and blocks cross its rows.
    for name, shape in [("layers.0.attn.c_attn", (48, 64)), ("layers.0.up", (7, 50)), ("layers.1.up", (270, 64) if double else (9, 64))]:
        weight = normal(*shape).to(dtype)
        codes, state = bnb.quantize_4bit(weight, quant_type=kind, compress_statistics=double, blocksize=64)
        stored[f"{name}.weight"] = codes
        stored |= {f"{name}.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        values = bnb.dequantize_4bit(codes, state)
        turned = model_type == "gpt2" and name.endswith("c_attn")
        expected[f"{name}.weight"] = values.T if turned else values
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind,
              "bnb_4bit_use_double_quant": double}
    write(form, config, stored, expected, model_type)


def eight_bits():
    stored, expected = {}, {}
    for name, shape in [("a", (6, 40)), ("b", (3, 7))]:
        codes, maxima, _ = bnb.int8_vectorwise_quant(normal(*shape).half())
        stored |= {f"{name}.weight": codes, f"{name}.SCB": maxima, f"{name}.weight_format": torch.tensor(0, dtype=torch.uint8)}
        expected[f"{name}.weight"] = bnb.int8_vectorwise_dequant(codes, maxima)
    write("bnb-int8", {"quant_method": "bitsandbytes", "load_in_8bit": True}, stored, expected)


def fp8():
    """As transformers' `Fp8Dequantize`: the weight in the scales' type, times the scale of its block."""
    stored, expected = {}, {}
    for name, shape, scale_type in [("a", (40, 50), torch.float32), ("b", (32, 16), torch.bfloat16)]:
        block = 16
        weight = normal(*shape).clamp(-448, 448).to(torch.float8_e4m3fn)
        tiles = [-(-n // block) for n in shape]
        scales = normal(*tiles).abs().add(0.01).to(scale_type)
        full = scales.repeat_interleave(block, 0)[: shape[0]].repeat_interleave(block, 1)[:, : shape[1]]
        stored |= {f"{name}.weight": weight, f"{name}.weight_scale_inv": scales}
        expected[f"{name}.weight"] = weight.to(scale_type) * full
    weight, scale = normal(5, 6).to(torch.float8_e5m2), torch.tensor(0.37)
    stored |= {"c.weight": weight, "c.weight_scale": scale, "c.input_scale": torch.tensor(1.0)}
    expected["c.weight"] = weight.float() * scale
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8)
    every = every[~torch.isnan(every.view(torch.float8_e4m3fn).float())].view(torch.float8_e4m3fn).reshape(2, -1)
    stored |= {"d.weight": every, "d.weight_scale": torch.tensor([[0.5], [3.0]])}
    expected["d.weight"] = every.float() * torch.tensor([[0.5], [3.0]])
    write("fp8", {"quant_method": "fp8", "weight_block_size": [16, 16]}, stored, expected)


def compressed():
    stored, expected = {}, {}
    cases = [("a", 4, 8, True, torch.bfloat16, False), ("b", 4, 16, False, torch.float16, False), ("c", 8, None, True, torch.float32, False),
             ("d", 3, 16, False, torch.float32, False), ("e", 4, 16, False, torch.bfloat16, True)]
    for name, bits, group, symmetric, dtype, reordered in cases:
        rows, cols = 11, 48
        groups = cols // group if group else 1
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
        codes = torch.randint(low, high, (rows, cols), dtype=torch.int8)
        scales = normal(rows, groups).abs().add(0.01).to(dtype)
        zeros = None if symmetric else torch.randint(low, high, (rows, groups), dtype=torch.int8)
        packed = pack_to_int32(codes, bits)
        assert torch.equal(unpack_from_int32(packed, bits, codes.shape), codes)
        strategy = QuantizationStrategy.GROUP if group else QuantizationStrategy.CHANNEL
        args = QuantizationArgs(num_bits=bits, group_size=group, strategy=strategy, symmetric=symmetric)
        stored |= {f"{name}.weight_packed": packed, f"{name}.weight_scale": scales, f"{name}.weight_shape": torch.tensor([rows, cols])}
        if zeros is not None:
            stored[f"{name}.weight_zero_point"] = pack_to_int32(zeros, bits, packed_dim=0)
        if reordered:
            table = torch.randperm(cols) % groups
            stored[f"{name}.weight_g_idx"] = table.int()
            # As compressed-tensors orders columns by group for activation ordering, a column each has its group's scale.
            expected[f"{name}.weight"] = (codes.to(dtype) - zeros[:, table].to(dtype)) * scales[:, table]
        else:
            expected[f"{name}.weight"] = dequantize(codes, scales, zeros, args=args)
    weight = normal(4, 6).to(torch.float8_e4m3fn)
    scales = normal(4, 1).abs().add(0.01).to(torch.bfloat16)
    stored |= {"f.weight": weight, "f.weight_scale": scales}
    args = QuantizationArgs(num_bits=8, type="float", strategy="channel")
    expected["f.weight"] = dequantize(weight, scales, args=args)
    write("compressed-tensors", {"quant_method": "compressed-tensors", "format": "pack-quantized"}, stored, expected)


def pack(codes, bits, dim, order=None):
    """Neighbours along `dim` into words of 32 bits."""
    per = 32 // bits
    codes = codes.movedim(dim, -1).long()
    codes = codes.reshape(*codes.shape[:-1], -1, per)
    if order is not None:
        codes = codes[..., order]
    words = sum(codes[..., i] << (bits * i) for i in range(per))
    return (words & 0xFFFFFFFF).to(torch.uint32).view(torch.int32).movedim(-1, dim)


def pack3(codes, dim):
    """32 codes of 3 bits into 3 words, as AutoGPTQ's `pack` does: ten, two bits of one, its third, ten, a bit, two bits, ten."""
    codes = codes.movedim(dim, -1).long().unflatten(-1, (-1, 32))
    run = lambda first, shift: sum(codes[..., first + i] << (3 * i + shift) for i in range(10))
    words = torch.stack([
        run(0, 0) | (codes[..., 10] & 3) << 30,
        codes[..., 10] >> 2 | run(11, 1) | (codes[..., 21] & 1) << 31,
        codes[..., 21] >> 1 | run(22, 2),
    ], -1).flatten(-2)
    return words.to(torch.uint32).view(torch.int32).movedim(-1, dim)


def unpack3(words, dim):
    """As AutoGPTQ's `forward` shifts and joins them."""
    words = (words.movedim(dim, -1).long() & 0xFFFFFFFF).unflatten(-1, (-1, 3, 1))
    shifts = torch.tensor([[0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 0], [0, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31],
                           [0, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 0]])
    parts = words.expand(*words.shape[:-1], 12) >> shifts
    parts[..., 0, 10] = parts[..., 0, 10] & 3 | parts[..., 1, 0] << 2 & 4
    parts[..., 1, 11] = parts[..., 1, 11] & 1 | parts[..., 2, 0] << 1 & 6
    parts &= 7
    parts = torch.cat([parts[..., 0, :11], parts[..., 1, 1:12], parts[..., 2, 1:11]], -1)
    return parts.flatten(-2).movedim(-1, dim)


def pack3_checked(codes, bits, dim):
    words = pack3(codes, dim)
    assert torch.equal(unpack3(words, dim), codes)
    return words


def gptq(form, version, bits, reordered):
    stored, expected = {}, {}
    pack = pack3_checked if bits == 3 else globals()["pack"]
    for name, inp, out, group in [("a", 64, 32, 16), ("b", 32, 64, 32)]:
        groups = inp // group
        codes = torch.randint(0, 2**bits, (inp, out))
        # Stored less one in the first version: 0 is never a zero there.
        zeros = torch.randint(1, 2**bits, (groups, out))
        scales = normal(groups, out).abs().add(0.01).half()
        table = torch.randperm(inp) % groups if reordered else torch.arange(inp) // group
        less = 1 if version == "gptq" else 0
        stored |= {f"{name}.qweight": pack(codes, bits, 0), f"{name}.qzeros": pack(zeros - less, bits, 1),
                   f"{name}.scales": scales, f"{name}.g_idx": table.int(), f"{name}.bias": normal(out).half()}
        # AutoGPTQ: scales[g_idx] * (weight - zeros[g_idx]), in f16.
        values = scales[table] * (codes - zeros[table])
        assert values.dtype == torch.float16
        expected[f"{name}.weight"] = values.T
    config = {"quant_method": "gptq", "bits": bits, "group_size": 16, "desc_act": reordered, "checkpoint_format": version}
    write(form, config, stored, expected)


def awq():
    stored, expected = {}, {}
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    for name, inp, out, group in [("a", 64, 32, 16), ("b", 32, 64, 16)]:
        groups = inp // group
        codes = torch.randint(0, 16, (inp, out))
        zeros = torch.randint(0, 16, (groups, out))
        scales = normal(groups, out).abs().add(0.01).half()
        stored |= {f"{name}.qweight": pack(codes, 4, 1, order), f"{name}.qzeros": pack(zeros, 4, 1, order), f"{name}.scales": scales}
        # autoawq: (iweight - izeros) * scales, in f16.
        values = (codes - zeros.repeat_interleave(group, 0)) * scales.repeat_interleave(group, 0)
        assert values.dtype == torch.float16
        expected[f"{name}.weight"] = values.T
    write("awq", {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True}, stored, expected)


def mxfp4():
    """gpt-oss's experts, decoded by transformers' own function, which gives them in bf16 and turned."""
    stored, expected = {"model.layers.0.mlp.router.weight": normal(3, 64)}, {}
    for name, experts, rows, groups in [("gate_up_proj", 3, 10, 2), ("down_proj", 2, 7, 3)]:
        name = f"model.layers.0.mlp.experts.{name}"
        blocks = torch.randint(0, 256, (experts, rows, groups, 16), dtype=torch.uint8)
        scales = torch.randint(110, 135, (experts, rows, groups), dtype=torch.uint8)
        # The ends of the range that is finite.
        scales[0, 0, 0], scales[0, 1, 0], scales[0, 2, 0] = 0, 1, 252
        stored |= {f"{name}_blocks": blocks, f"{name}_scales": scales, f"{name}_bias": normal(experts, rows)}
        expected[name] = convert_moe_packed_tensors(blocks, scales)
        assert expected[name].shape == (experts, groups * 32, rows) and expected[name].isfinite().all()
    write("mxfp4", {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.mlp.router"]}, stored, expected, "gpt_oss")


def model():
    """A whole tiny classifier, its linear layers in NF4 but for the head, and its logits from the decoded weights."""
    # Rows of whole blocks: the processor's kernel of bitsandbytes 0.50 gives wrong values for rows of 32.
    config = BertConfig(vocab_size=97, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                        max_position_embeddings=64, initializer_range=0.3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    bert = BertForSequenceClassification(config).eval()
    stored, decoded = {}, {}
    for name, value in bert.state_dict().items():
        if ".encoder." in name and name.endswith(".weight") and value.dim() == 2:
            codes, state = bnb.quantize_4bit(value, quant_type="nf4", compress_statistics=True)
            stored[name] = codes
            stored |= {f"{name}.{key}": part for key, part in state.as_dict(packed=True).items()}
            decoded[name] = bnb.dequantize_4bit(codes, state)
        else:
            stored[name] = decoded[name] = value
    bert.load_state_dict(decoded)
    rows = [[2, 5, 9, 77, 31, 3], [2, 40, 41, 42, 43, 44, 45, 46, 47, 48, 60, 61, 3]]
    logits = torch.cat([bert(torch.tensor([row])).logits for row in rows])
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    folder = OUT / "bert-nf4"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    fields = json.loads(config.to_json_string())
    write_json(folder / "config.json", fields | {"architectures": ["BertForSequenceClassification"], "quantization_config": quantised})
    save_file({name: value.contiguous() for name, value in stored.items()}, folder / "model.safetensors")
    save_file({"logits": logits, "input_ids": torch.tensor(sum(rows, [])), "lengths": torch.tensor([len(row) for row in rows])},
              OUT / "bert-nf4.expected.safetensors")


def main():
    torch.set_grad_enabled(False)
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    shutil.rmtree(ROOT, ignore_errors=True)
    four_bits("bnb-nf4", "nf4", False, torch.bfloat16)
    four_bits("bnb-nf4-double", "nf4", True, torch.float16)
    four_bits("bnb-fp4", "fp4", False, torch.float32)
    four_bits("bnb-fp4-double-gpt2", "fp4", True, torch.float32, "gpt2")
    eight_bits()
    fp8()
    compressed()
    gptq("gptq-v1", "gptq", 4, False)
    gptq("gptq-v1-act-order", "gptq", 8, True)
    gptq("gptq-v2", "gptq_v2", 4, True)
    awq()
    model()
    gptq("gptq-v1-2bit", "gptq", 2, False)
    gptq("gptq-v1-3bit", "gptq", 3, False)
    gptq("gptq-v2-3bit-act-order", "gptq_v2", 3, True)
    mxfp4()
    finish("packed_models.py", SEED, ["torch", "bitsandbytes", "compressed-tensors", "transformers"])


if __name__ == "__main__":
    main()
