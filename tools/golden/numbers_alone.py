"""Golden numbers without a model: transformers' schedules, scikit-learn's and SciPy's metrics, torch's AdamW."""

import math
import warnings

import numpy as np
import torch
from scipy import stats
from sklearn import metrics
from transformers import get_scheduler

BASE_LR = 3e-4


def schedule_row(kind, steps, warmup, ratio=None, **extra):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=BASE_LR)
    schedule = get_scheduler(
        kind, optimizer, num_warmup_steps=warmup, num_training_steps=steps, scheduler_specific_kwargs=extra or None
    )
    lrs = []
    for _ in range(steps + 2):  # Two steps past the end, where the rate must not turn or turn negative.
        lrs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return {"schedule": kind, "num_steps": steps, "warmup_steps": warmup, "warmup_ratio": ratio, "extra": extra, "lr": lrs}


def schedules():
    rows = []
    for steps, warmup in [(10, 0), (10, 3), (17, 1), (1, 0), (5, 5), (23, 7)]:
        for kind in ["linear", "cosine", "constant", "constant_with_warmup", "polynomial"]:
            if kind == "polynomial" and warmup == steps:
                continue  # transformers divides by zero there.
            rows.append(schedule_row(kind, steps, warmup))
    for steps, ratio in [(50, 0.06), (33, 0.1), (7, 0.5)]:
        warmup = math.ceil(steps * ratio)  # TrainingArguments.get_warmup_steps
        for kind in ["linear", "cosine", "constant_with_warmup", "polynomial"]:
            rows.append(schedule_row(kind, steps, warmup, ratio))
    rows.append(schedule_row("polynomial", 12, 2, lr_end=1e-5, power=2.0))
    rows.append(schedule_row("cosine", 12, 2, num_cycles=1.5))
    return {"base_lr": BASE_LR, "note": "lr[i] is the rate of optimizer step i, from 0", "rows": rows}


def number(value):
    return None if value is None or math.isnan(value) else float(value)


def classification_row(name, classes, predictions, labels):
    average = {a: metrics.f1_score(labels, predictions, average=a, zero_division=0) for a in ["macro", "micro", "weighted"]}
    row = {
        "name": name,
        "num_classes": classes,
        "predictions": predictions,
        "labels": labels,
        "accuracy": metrics.accuracy_score(labels, predictions),
        "f1_macro": average["macro"],
        "f1_micro": average["micro"],
        "f1_weighted": average["weighted"],
        "matthews": metrics.matthews_corrcoef(labels, predictions),
        "f1_binary": None,
    }
    if classes == 2:
        row["f1_binary"] = metrics.f1_score(labels, predictions, average="binary", pos_label=1, zero_division=0)
    return {k: number(v) if isinstance(v, (float, np.floating)) else v for k, v in row.items()}


def regression_row(name, predictions, labels):
    return {
        "name": name,
        "predictions": predictions,
        "labels": labels,
        "pearson": number(stats.pearsonr(predictions, labels).statistic),
        "spearman": number(stats.spearmanr(predictions, labels).statistic),
        "mse": float(np.mean((np.array(predictions) - np.array(labels)) ** 2)),
    }


def multi_label_row(name, predictions, labels):
    both = {a: metrics.f1_score(labels, predictions, average=a, zero_division=0) for a in ["macro", "micro"]}
    return {
        "name": name,
        "predictions": predictions,
        "labels": labels,
        "exact_match": float(metrics.accuracy_score(labels, predictions)),
        "f1_macro": float(both["macro"]),
        "f1_micro": float(both["micro"]),
    }


def metric_rows():
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(20261123)
    classification = []
    for name, classes, n, agree in [("two", 2, 40, 0.7), ("three", 3, 50, 0.6), ("five", 5, 60, 0.5), ("two-worse", 2, 31, 0.2)]:
        labels = rng.integers(0, classes, n)
        predictions = np.where(rng.random(n) < agree, labels, rng.integers(0, classes, n))
        classification.append(classification_row(name, classes, predictions.tolist(), labels.tolist()))
    classification.append(classification_row("none-positive", 2, [0] * 6, [0, 1, 0, 1, 1, 0]))
    classification.append(classification_row("all-right", 2, [0, 1, 1, 0], [0, 1, 1, 0]))
    classification.append(classification_row("class-never-seen", 3, [0, 1, 1, 2], [0, 1, 1, 0]))
    labels = rng.normal(size=30)
    close = labels + 0.5 * rng.normal(size=30)
    ties = np.round(close)
    regression = [
        regression_row("close", close.tolist(), labels.tolist()),
        regression_row("ties", ties.tolist(), np.round(labels, 1).tolist()),
        regression_row("reversed", (-labels).tolist(), labels.tolist()),
        regression_row("large-offset", (labels + 1e6).tolist(), close.tolist()),
        regression_row("constant", [1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]),
    ]
    truth = rng.integers(0, 2, (25, 4))
    flipped = np.where(rng.random((25, 4)) < 0.2, 1 - truth, truth)
    return {
        "note": "f1 with zero_division=0; null: not defined (constant input)",
        "classification": classification,
        "regression": regression,
        "multi_label": [multi_label_row("four", flipped.tolist(), truth.tolist())],
    }


def adamw_run(options, dtype):
    generator = torch.Generator().manual_seed(7)
    start = [torch.randn(n, generator=generator) for n in (5, 12)]
    start[1][3] = 0.0
    params = [torch.nn.Parameter(t.to(dtype)) for t in start]
    optimizer = torch.optim.AdamW(params, foreach=False, fused=False, **options)
    steps = []
    for step in range(5):
        grads = [torch.randn(p.shape, generator=generator) * 10.0 ** (-step) for p in params]
        grads[1][7] = 0.0  # Never a gradient: decay alone moves it.
        for p, g in zip(params, grads):
            p.grad = g.to(dtype)
        optimizer.step()
        steps.append(
            {
                "grads": [g.tolist() for g in grads],
                "params": [p.tolist() for p in params],
                "exp_avg": [optimizer.state[p]["exp_avg"].tolist() for p in params],
                "exp_avg_sq": [optimizer.state[p]["exp_avg_sq"].tolist() for p in params],
            }
        )
    return [t.tolist() for t in start], steps


def adamw():
    runs = []
    for options in [
        {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01},
        {"lr": 5e-2, "betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.0},
        {"lr": 1e-2, "betas": [0.9, 0.98], "eps": 1e-3, "weight_decay": 0.1},
    ]:
        arguments = options | {"betas": tuple(options["betas"])}
        start, f32 = adamw_run(arguments, torch.float32)
        _, f64 = adamw_run(arguments, torch.float64)
        for a, b in zip(f32, f64):
            a["params_f64"] = b["params"]
        runs.append({"options": options, "start": start, "steps": f32})
    return {"note": "torch.optim.AdamW, one tensor at a time; every f32 value is written exactly", "runs": runs}


FILES = {"schedules": schedules, "metrics": metric_rows, "adamw": adamw}
