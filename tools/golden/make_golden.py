#!/usr/bin/env python3
"""Writes tests/golden: tiny random models of each family, PEFT adapters, and what transformers + peft compute with them.

usage: python tools/golden/make_golden.py [PREFIX] [--seed N] [--width HIDDEN,HEADS,INTERMEDIATE] [--out DIR]

PREFIX: only the cases whose name starts with it. With another seed or width the files belong in another folder (--out);
the Rust tests read that one when LOWRANK_GOLDEN_DIR names it.

Needs the packages of requirements.txt. Everything is computed in f64 from the f32 (or f16, bf16) weights that are written,
and stored rounded to f32, so that the numbers are the true ones and not one more rounding of them; `peer_f32_error` in
each case.json says how far the same f32 computation by PyTorch is from them. Each case has its own seed, made from its
name, so that a new case changes no other. The files' hashes stand in tests/golden/manifest.json.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

# PEFT keeps `target_modules` in a set, whose order in the file depends on the hash seed.
if os.environ.get("PYTHONHASHSEED") != "0":
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, *sys.argv])
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import bitfit  # noqa: E402
import cases as case_table  # noqa: E402
import debertas  # noqa: E402
import decoders  # noqa: E402
import generated_text  # noqa: E402
import generation  # noqa: E402
import moderns  # noqa: E402
import numbers_alone  # noqa: E402
import rotary  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from checkpoints import write_checkpoint  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from peft.optimizers import create_loraplus_optimizer  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

ROOT = Path(__file__).resolve().parents[2] / "tests" / "golden"
SEED = 20261123
IGNORE_INDEX = -100
PACKAGES = ["torch", "transformers", "peft", "safetensors", "numpy", "scikit-learn", "scipy", "sacrebleu", "pyter3", "pycocoevalcap"]
PROBLEM_TYPES = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
# Tasks with a label for each token.
PER_TOKEN = ("token_classification", "causal_lm")
CLASSES = {
    "bert": ("BertConfig", "BertForSequenceClassification", "BertForTokenClassification", "BertModel"),
    "roberta": ("RobertaConfig", "RobertaForSequenceClassification", "RobertaForTokenClassification", "RobertaModel"),
    "xlm-roberta": (
        "XLMRobertaConfig",
        "XLMRobertaForSequenceClassification",
        "XLMRobertaForTokenClassification",
        "XLMRobertaModel",
    ),
    **decoders.CLASSES,
    **rotary.CLASSES,
    **debertas.CLASSES,
    **moderns.CLASSES,
}


def seed_of(name):
    """A seed that depends on the case's name alone."""
    return int.from_bytes(hashlib.sha256(f"{SEED}:{name}".encode()).digest()[:4], "little")


def model_class(case):
    config, sequence, token, _ = CLASSES[case.family]
    return getattr(transformers, config), getattr(transformers, token if case.task in PER_TOKEN else sequence)


# ---------------------------------------------------------------- inputs


def make_rows(case, generator):
    """Rows of unequal length. Ids start at 3, above every special id; each row starts with 0 and ends with 2."""

    def draw(low, high):
        return int(torch.randint(low, high, (1,), generator=generator))

    rows = []
    for index in range(case.num_rows):
        length = case.lengths[index % len(case.lengths)]
        ids = [0] + [draw(3, 97) for _ in range(length - 2)] + [2]
        row = {"input_ids": ids}
        if case.pair:
            cut = draw(2, length - 1)
            ids[cut - 1] = 2
            if case.family == "bert" or case.config_fields().get("type_vocab_size") == 2:
                row["token_type_ids"] = [0] * cut + [1] * (length - cut)
        if case.pad_inside and length > 6:
            ids[3] = 1 if case.family != "bert" else 0
            if case.family in decoders.CLASSES | rotary.CLASSES:
                ids[-1] = 1
        rows.append(row)
    return rows


def make_labels(case, rows, generator):
    if case.task == "single_label":
        return torch.randint(0, case.num_labels, (len(rows),), generator=generator).tolist()
    if case.task == "multi_label":
        return torch.randint(0, 2, (len(rows), case.num_labels), generator=generator).float().tolist()
    if case.task == "regression":
        return [round(x, 3) for x in torch.randn(len(rows), generator=generator).tolist()]
    if case.task == "causal_lm":
        return decoders.labels_of(rows, generator)
    labels = []
    for row in rows:
        classes = torch.randint(0, case.num_labels, (len(row["input_ids"]),), generator=generator).tolist()
        hidden = torch.rand(len(classes), generator=generator) < 0.25
        hidden[0] = hidden[-1] = True
        labels.append([IGNORE_INDEX if h else c for h, c in zip(hidden.tolist(), classes)])
    return labels


def collate(case, rows, labels, dtype):
    """Pads to the longest row, as transformers' collators do."""
    width = max(len(row["input_ids"]) for row in rows)
    pad = 0 if case.family == "bert" else 1
    batch = {
        "input_ids": torch.full((len(rows), width), pad, dtype=torch.long),
        "attention_mask": torch.zeros(len(rows), width, dtype=torch.long),
    }
    if any("token_type_ids" in row for row in rows):
        batch["token_type_ids"] = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        batch["input_ids"][i, :n] = torch.tensor(row["input_ids"])
        batch["attention_mask"][i, :n] = 1
        if "token_type_ids" in row:
            batch["token_type_ids"][i, :n] = torch.tensor(row["token_type_ids"])
    if case.task in PER_TOKEN:
        target = torch.full((len(rows), width), IGNORE_INDEX, dtype=torch.long)
        for i, row_labels in enumerate(labels):
            target[i, : len(row_labels)] = torch.tensor(row_labels)
        batch["labels"] = target
    else:
        batch["labels"] = torch.tensor(labels, dtype=torch.long if case.task == "single_label" else dtype)
    return batch


def flat_logits(case, output, batch):
    """[rows, labels], or with a label for each token [all real tokens, labels], rows end to end."""
    if case.task in PER_TOKEN:
        return output.logits[batch["attention_mask"].bool()]
    return output.logits


# ---------------------------------------------------------------- models and adapters


def make_model(case, generator):
    """A random model: weights large enough that attention is far from uniform, biases and norms far from their defaults."""
    config_class, class_ = model_class(case)
    config = config_class(**case.config_fields())
    config.problem_type = PROBLEM_TYPES.get(case.task)
    model = class_(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("norm.weight") and case.family in rotary.CLASSES | moderns.CLASSES:
                value.copy_((0.0 if case.family.startswith("gemma") else 1.0) + 0.2 * noise)
            elif "LayerNorm.weight" in name or name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight", "layer_norm.weight")):
                value.copy_(1.0 + 0.2 * noise)
            elif name.endswith("bias"):
                value.copy_(0.2 * noise)
            else:
                value.copy_((0.5 if "embed" in name or "wte" in name or "wpe" in name else 0.25) * noise)
    return model


def load_model(case, folder, dtype):
    _, class_ = model_class(case)
    # A head that the file lacks is drawn anew by transformers: every case that has one covers it by its adapter.
    model, info = class_.from_pretrained(
        folder / "model", dtype=dtype, attn_implementation="eager", output_loading_info=True, num_labels=case.num_labels
    )
    model.config.problem_type = PROBLEM_TYPES.get(case.task)
    return model.eval(), info


def adapter_key(name, case=None):
    """The key of a parameter of a PeftModel in adapter_model.safetensors, or that which it would have there."""
    if case and case.bitfit:
        return f"base_model.model.{name}"
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".").removesuffix(".default")


def make_adapter(case, folder, generator):
    """Attaches LoRA, draws every trainable value, saves it with save_pretrained.

    Returns the trained values that peft left out of the file, and the keys of the file that name nothing trained.
    """
    model, _ = load_model(case, folder, torch.float32)
    if case.bitfit:
        bitfit.make(model, case.task, folder / "adapter", generator)
        return {}, []
    peft_model = get_peft_model(model, LoraConfig(**case.lora))
    with torch.no_grad():
        for name, value in peft_model.named_parameters():
            if value.requires_grad:
                noise = torch.randn(value.shape, generator=generator)
                if "lora_" in name:
                    value.copy_(0.2 * noise)
                else:
                    value.add_((0.25 if value.dim() > 1 else 0.1) * noise)
    save_adapter(peft_model, folder / "adapter", case.adapter_format)
    file = folder / "adapter" / "adapter_model"
    safetensors = file.with_suffix(".safetensors")
    keys = set(load_file(safetensors) if safetensors.exists() else torch.load(file.with_suffix(".bin"), weights_only=True))
    trained = {adapter_key(n): p.detach() for n, p in peft_model.named_parameters() if p.requires_grad}
    return {k: v for k, v in trained.items() if k not in keys}, sorted(keys - set(trained))


def save_adapter(peft_model, folder, file_format="safetensors"):
    for config in peft_model.peft_config.values():
        config.base_model_name_or_path = "tiny-random"
    peft_model.save_pretrained(str(folder), safe_serialization=file_format == "safetensors")
    (folder / "README.md").unlink(missing_ok=True)  # A template without content of ours.


def load_peft(case, folder, dtype, trainable, adapter="adapter", unsaved=None):
    model, _ = load_model(case, folder, dtype)
    if case.bitfit:
        return bitfit.load(model, folder / adapter)
    peft_model = PeftModel.from_pretrained(model, folder / adapter, is_trainable=trainable, autocast_adapter_dtype=False)
    if unsaved:
        own = {adapter_key(n): p for n, p in peft_model.named_parameters()}
        with torch.no_grad():
            for key, value in unsaved.items():
                own[key].copy_(value)
    return peft_model.to(dtype).eval()


# ---------------------------------------------------------------- cases


def run_once(case, model, rows, labels, dtype):
    """Logits, loss and every gradient of one batch."""
    batch = collate(case, rows, labels, dtype)
    target = batch.pop("labels") if case.task == "causal_lm" else None
    output = model(**batch)
    loss = output.loss if target is None else decoders.loss_sum(output.logits, target) / decoders.count(labels)
    loss.backward()
    grads = {adapter_key(n, case): p.grad for n, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    without = sorted(adapter_key(n, case) for n, p in model.named_parameters() if p.requires_grad and p.grad is None)
    return flat_logits(case, output, batch).detach(), loss.item(), grads, without


def relative_error(found, expected):
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))


def run_case(case):
    folder = ROOT / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.manual_seed(seed_of(case.name))
    generator = torch.Generator().manual_seed(seed_of(case.name))
    write_checkpoint(make_model(case, generator), folder / "model", case, CLASSES[case.family][3])
    rows = make_rows(case, generator)
    labels = make_labels(case, rows, generator)
    unsaved, surplus = make_adapter(case, folder, generator) if case.lora or case.bitfit else ({}, [])
    base, info = load_model(case, folder, torch.float64)
    expected = {}
    batch = collate(case, rows, labels, torch.float64)
    if not info["missing_keys"]:
        with torch.no_grad():
            expected["logits_base"] = flat_logits(case, base(**batch), batch)

    def build(dtype):
        if case.lora or case.bitfit:
            return load_peft(case, folder, dtype, trainable=True, unsaved=unsaved)
        return load_model(case, folder, dtype)[0]

    extra = {"generated": decoders.generated(build(torch.float64), rows)} if case.generate else {}
    logits, loss, grads, without = run_once(case, build(torch.float64), rows, labels, torch.float64)
    logits32, _, grads32, _ = run_once(case, build(torch.float32), rows, labels, torch.float32)
    # A key's bias shifts all scores of a query alike, so its true gradient is zero: no relative error can be asked of it.
    largest = max(float(g.norm()) for g in grads.values())
    zero = sorted(k for k, g in grads.items() if float(g.norm()) < 1e-10 * largest)
    expected["logits"] = logits
    expected["loss"] = torch.tensor([loss], dtype=torch.float64)
    # Parameters that the file does not hold, though they were trained: their values stand here.
    expected.update({f"value.{key}": value for key, value in unsaved.items()})
    expected.update({f"grad.{key}": value for key, value in grads.items()})
    write_expected(folder / "expected.safetensors", expected)
    write_json(
        folder / "case.json",
        {
            "name": case.name,
            "note": case.note,
            "seed": seed_of(case.name),
            "family": case.family,
            "task": case.task,
            "num_labels": case.num_labels,
            "checkpoint": case.checkpoint,
            "adapter": "adapter" if case.lora or case.bitfit else None,
            "peft": {k: sorted(v) if isinstance(v, set) else v for k, v in (case.lora or {}).items()},
            "load": {
                "new": sorted(info["missing_keys"]),
                "unused": sorted(info["unexpected_keys"]),
            },
            "rows": rows,
            "labels": labels,
            "loss": loss,
            "trainable": sorted(grads),
            "trained_but_not_saved_by_peft": sorted(unsaved),
            "saved_by_peft_but_not_trained": surplus,
            "no_gradient": without,
            "zero_gradient": zero,
            "peer_f32_error": {
                "logits": relative_error(logits32, logits),
                "worst_grad": max(relative_error(grads32[k], grads[k]) for k in grads if k not in zero),
            },
            **extra,
        },
    )
    print(f"{case.name}: loss {loss:.6f}, {len(grads)} gradients, {len(unsaved)} values not saved by peft, {len(surplus)} saved besides")


def write_expected(path, tensors):
    save_file({k: v.detach().float().contiguous().clone() for k, v in tensors.items()}, path, {"format": "pt"})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=True) + "\n")


# ---------------------------------------------------------------- trajectories


def run_trajectory(case):
    """Twenty optimizer steps of two unequal micro-batches; the loss is the sum over the step's targets by their number."""
    folder = ROOT / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.manual_seed(seed_of(case.name))
    generator = torch.Generator().manual_seed(seed_of(case.name))
    write_checkpoint(make_model(case, generator), folder / "model", case, CLASSES[case.family][3])
    rows = make_rows(case, generator)
    labels = make_labels(case, rows, generator)
    make_adapter(case, folder, generator)
    hyper = case.trajectory
    steps = []
    for _ in range(hyper["num_steps"]):
        order = torch.randperm(len(rows), generator=generator).tolist()
        sizes = hyper["micro_batch_sizes"]
        steps.append([order[: sizes[0]], order[sizes[0] : sum(sizes)]])
    log, model = train(case, folder, rows, labels, steps, torch.float64)
    log32, model32 = train(case, folder, rows, labels, steps, torch.float32)
    if case.bitfit:
        bitfit.save({n: p for n, p in model.named_parameters() if p.requires_grad}, case.task, folder / "adapter_final")
    else:
        save_adapter(model.float(), folder / "adapter_final")
    first, last = (load_file(folder / a / "adapter_model.safetensors") for a in ("adapter", "adapter_final"))
    own32 = {n if case.bitfit else adapter_key(n): p.detach() for n, p in model32.named_parameters() if p.requires_grad}
    write_json(
        folder / "case.json",
        {
            "name": case.name,
            "note": case.note,
            "seed": seed_of(case.name),
            "family": case.family,
            "task": case.task,
            "num_labels": case.num_labels,
            "checkpoint": case.checkpoint,
            "adapter": "adapter",
            "adapter_final": "adapter_final",
            "peft": case.lora,
            "rows": rows,
            "labels": labels,
            "hyper": hyper,
            "steps": [{"micro_batches": m, **entry} for m, entry in zip(steps, log)],
            "peer_f32_error": {
                "worst_loss": max(abs(a["loss"] - b["loss"]) for a, b in zip(log, log32)),
                "worst_final": max(relative_error(own32[k], last[k]) for k in last),
                "worst_final_abs": max(float((own32[k] - last[k]).abs().max()) for k in last),
            },
        },
    )
    moved = min(relative_error(last[k], first[k]) for k in last)
    clipped = sum(entry["grad_norm"] > hyper["max_norm"] for entry in log)
    print(f"{case.name}: loss {log[0]['loss']:.4f} -> {log[-1]['loss']:.4f}, {clipped} steps clipped, least moved {moved:.1e}")


def train(case, folder, rows, labels, steps, dtype):
    hyper = case.trajectory
    model = load_peft(case, folder, dtype, trainable=True).train()
    params = [p for p in model.parameters() if p.requires_grad]
    more = {"betas": tuple(hyper["betas"]), "eps": hyper["eps"]}
    if "loraplus_lr_ratio" in hyper:
        decay = {"loraplus_weight_decay": hyper["weight_decay"]}
        optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=hyper["lr"], loraplus_lr_ratio=hyper["loraplus_lr_ratio"], **decay, **more
        )
    else:
        # One group: the decay holds for every trainable value, biases included.
        optimizer = torch.optim.AdamW(params, lr=hyper["lr"], weight_decay=hyper["weight_decay"], **more)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, hyper["warmup_steps"], hyper["num_steps"])
    log = []
    for micro_batches in steps:
        causal = case.task == "causal_lm"
        count = sum(decoders.count([labels[i] for i in m]) if causal else len(m) for m in micro_batches)
        total = 0.0
        for micro in micro_batches:
            batch = collate(case, [rows[i] for i in micro], [labels[i] for i in micro], dtype)
            target = batch.pop("labels")
            logits = model(**batch).logits
            summed = decoders.loss_sum(logits, target) if causal else torch.nn.functional.cross_entropy(logits, target, reduction="sum")
            loss = summed / count
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(params, hyper["max_norm"]).item()
        log.append({"loss": total, "grad_norm": norm, "lr": schedule.get_last_lr()[0]})
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    return log, model


# ---------------------------------------------------------------- adapters alone (round trip)


def run_round_trip(name, variant):
    """Adapter folders exactly as peft writes them, to be read and written back byte for byte."""
    folder = ROOT / "peft-round-trip" / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(seed_of(name))
    case = case_table.Case(name=name, family=variant["family"], lora=variant["lora"])
    config_class, class_ = model_class(case)
    model = get_peft_model(class_(config_class(**case.config_fields())), LoraConfig(**variant["lora"]))
    if variant.get("dtype"):
        model = model.to(getattr(torch, variant["dtype"]))
    for config in model.peft_config.values():
        config.base_model_name_or_path = variant.get("base", "tiny-random")
        config.revision = variant.get("revision")
        if variant.get("repeat_modules_to_save"):
            config.modules_to_save = list(config.modules_to_save) + ["classifier", "score"]
    model.save_pretrained(str(folder), safe_serialization=not variant.get("bin"))
    (folder / "README.md").unlink(missing_ok=True)
    print(f"peft-round-trip/{name}")


# ---------------------------------------------------------------- main


def write_manifest(prefix):
    # The hashes are of bytes: git must not touch line ends.
    (ROOT / ".gitattributes").write_text("* -text\n")
    files = {}
    for path in sorted(p for p in ROOT.rglob("*") if p.is_file()):
        name = path.relative_to(ROOT).as_posix()
        if name != "manifest.json":
            files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    versions = {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}}
    later, path = {}, ROOT / "manifest.json"
    if prefix and path.exists():
        # What is made by itself may be made with other versions than the rest.
        before = json.loads(path.read_text())
        other = {p: v for p, v in versions.items() if before["versions"].get(p) != v}
        versions, later = before["versions"], before.get("other_versions", {}) | ({prefix: other} if other else {})
    manifest = {
        "made_by": "tools/golden/make_golden.py",
        "seed": SEED,
        "versions": versions,
        "other_versions": later,
        "not_reproducible": "storage keys of PyTorch's legacy format are memory addresses: pytorch_model.bin of bert-old-names",
        "files": files,
    }
    write_json(ROOT / "manifest.json", manifest)
    size = sum(p.stat().st_size for p in ROOT.rglob("*") if p.is_file())
    print(f"{len(files)} files, {size / 1e6:.2f} MB")


def parse():
    global ROOT, SEED
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prefix", nargs="?", default="")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--width", default="32,4,64")
    parser.add_argument("--out", type=Path, default=ROOT)
    args = parser.parse_args()
    if args.out == ROOT and (args.seed != SEED or args.width != parser.get_default("width")):
        parser.error("another seed or width needs --out: tests/golden is made with the defaults")
    ROOT, SEED = args.out.resolve(), args.seed
    case_table.Case.width = tuple(int(n) for n in args.width.split(","))
    return args.prefix


def main():
    prefix = parse()
    torch.set_num_threads(1)
    decoders.attention_in_full_precision()
    rotary.in_full_precision()
    debertas.full_precision()
    moderns.in_full_precision()
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    ROOT.mkdir(parents=True, exist_ok=True)
    for case in case_table.CASES:
        if case.name.startswith(prefix):
            (run_trajectory if case.trajectory else run_case)(case)
    for name, variant in case_table.ROUND_TRIPS.items():
        if name.startswith(prefix):
            run_round_trip(name, variant)
    for name, make in (numbers_alone.FILES | generated_text.FILES | generation.FILES).items():
        if name.startswith(prefix):
            write_json(ROOT / f"{name}.json", make())
            print(f"{name}.json")
    write_manifest(prefix)


if __name__ == "__main__":
    main()
