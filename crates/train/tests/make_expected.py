"""Makes schedules.json, metrics.json and seqeval.json beside this file from transformers, scikit-learn, scipy and seqeval.

Run: python make_expected.py   (made with transformers 5.23.0, torch 2.15, scikit-learn 1.9.1, scipy 1.17.1, seqeval 1.2.2)
"""

import json
import pathlib
import random
import warnings

import torch
from scipy import stats
from seqeval import metrics as seq
from sklearn import metrics as sk
from transformers import optimization as opt

warnings.filterwarnings("ignore")
HERE = pathlib.Path(__file__).parent


def schedule(kind, lr, warmup, total, num_cycles=0.5, lr_end=1e-7, power=1.0):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    made = {
        "linear": lambda: opt.get_linear_schedule_with_warmup(optimizer, warmup, total),
        "cosine": lambda: opt.get_cosine_schedule_with_warmup(optimizer, warmup, total, num_cycles=num_cycles),
        "constant": lambda: opt.get_constant_schedule(optimizer),
        "constant_with_warmup": lambda: opt.get_constant_schedule_with_warmup(optimizer, warmup),
        "polynomial": lambda: opt.get_polynomial_decay_schedule_with_warmup(
            optimizer, warmup, total, lr_end=lr_end, power=power
        ),
    }[kind]()
    rates = []
    for _ in range(total + 3):
        rates.append(made.get_last_lr()[0])
        optimizer.step()
        made.step()
    return dict(
        kind=kind, learning_rate=lr, warmup=warmup, total=total, num_cycles=num_cycles, lr_end=lr_end, power=power,
        lr=rates,
    )


def schedules():
    cases = []
    for warmup, total in ((3, 10), (0, 7), (1, 1), (0, 1), (6, 97)):
        for kind in ("linear", "cosine", "constant", "constant_with_warmup", "polynomial"):
            if kind == "polynomial" and warmup == total:
                continue  # transformers divides by zero there
            cases.append(schedule(kind, 0.002, warmup, total))
    cases.append(schedule("polynomial", 5e-4, 2, 13, power=2.0, lr_end=1e-5))
    cases.append(schedule("polynomial", 5e-4, 2, 13, power=0.5, lr_end=0.0))
    cases.append(schedule("cosine", 1e-3, 4, 20, num_cycles=1.5))
    return "[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n"


def number(x):
    return None if x != x else float(x)


def metric_cases():
    rng = random.Random(7)
    out = dict(classes=[], values=[], multi=[])
    for n, c in ((1, 2), (2, 2), (17, 2), (40, 3), (60, 7), (9, 1)):
        for skew in (0, 1):
            p = [rng.randrange(c) if not skew else 0 for _ in range(n)]
            t = [rng.randrange(c) for _ in range(n)]
            f1 = lambda **kw: number(sk.f1_score(t, p, zero_division=0, **kw))
            out["classes"].append(dict(
                p=p, t=t, accuracy=number(sk.accuracy_score(t, p)), f1_1=f1(labels=[1], average="macro"),
                f1_macro=f1(average="macro"), f1_micro=f1(average="micro"), matthews=number(sk.matthews_corrcoef(t, p)),
            ))
    for n, levels in ((2, 0), (3, 0), (30, 0), (30, 4), (12, 1)):
        draw = (lambda: rng.gauss(0, 1)) if levels == 0 else (lambda: float(rng.randrange(levels)))
        p, t = [draw() for _ in range(n)], [rng.gauss(0, 2) for _ in range(n)]
        out["values"].append(dict(
            p=p, t=t, pearson=number(stats.pearsonr(p, t).statistic), spearman=number(stats.spearmanr(p, t).statistic),
        ))
    for n, labels in ((1, 3), (8, 2), (20, 4)):
        p = [[rng.randrange(2) for _ in range(labels)] for _ in range(n)]
        t = [[rng.randrange(2) * (j != labels - 1) for j in range(labels)] for _ in range(n)]
        out["multi"].append(dict(
            labels=labels, p=sum(p, []), t=sum(t, []), accuracy=number(sk.accuracy_score(t, p)),
            f1_micro=number(sk.f1_score(t, p, average="micro", zero_division=0)),
            f1_macro=number(sk.f1_score(t, p, average="macro", zero_division=0)),
        ))
    return json.dumps(out) + "\n"


def entity_cases():
    """Random tags of every scheme, predictions that are the tags with some changed: whole, wrong and broken entities."""
    rng = random.Random(11)
    schemes = {
        "IOB2": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
        "IOB1": ["O", "I-PER", "B-PER", "I-LOC"],
        "IOE2": ["O", "I-PER", "E-PER", "I-LOC", "E-LOC"],
        "IOBES": ["O", "B-PER", "I-PER", "E-PER", "S-PER", "S-LOC"],
        "BILOU": ["O", "B-PER", "I-PER", "L-PER", "U-PER", "U-LOC"],
        "plain": ["O", "PER", "LOC", "ORG"],
        "odd": ["O", "B", "I", "B-", "B-a-b", "I-a-b", ".", "Other", "\u00c9-x"],
    }
    cases = []
    for scheme, tags in schemes.items():
        for changed in (0.0, 0.2, 0.5, 1.0):
            for rows in (1, 6):
                t = [[rng.choice(tags) for _ in range(rng.randrange(1, 13))] for _ in range(rows)]
                p = [[rng.choice(tags) if rng.random() < changed else x for x in row] for row in t]
                cases.append(dict(
                    scheme=scheme, t=t, p=p, precision=float(seq.precision_score(t, p)),
                    recall=float(seq.recall_score(t, p)), f1=float(seq.f1_score(t, p)),
                ))
    return "[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n"


(HERE / "schedules.json").write_text(schedules())
(HERE / "metrics.json").write_text(metric_cases())
(HERE / "seqeval.json").write_text(entity_cases())
