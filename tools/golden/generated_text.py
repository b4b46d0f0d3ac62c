"""Golden numbers of generated text: sacreBLEU's BLEU and TER, pyter's TER, coco-caption's ROUGE-L and CIDEr.

The texts are drawn from a small vocabulary of our own, so that words repeat, blocks move and orders of n-grams run empty.
"""

import random
import re

import pyter
from pycocoevalcap.cider.cider_scorer import CiderScorer
from pycocoevalcap.rouge.rouge import Rouge
from sacrebleu.metrics import BLEU, TER

WORDS = "the a cheap fine small river side cat house food is has serves near by in of and it with".split()
MARKS = [",", ".", "!", " -", "'s", " 5", " £20-25", " 3.5", "\u00e9", "(", "&amp;"]


def sentence(random, least, most):
    words = []
    for _ in range(random.randint(least, most)):
        word = random.choice(WORDS)
        if random.random() < 0.15:
            word += random.choice(MARKS)
        words.append(word.capitalize() if random.random() < 0.1 else word)
    return " ".join(words)


def changed(random, text):
    """The text with words dropped, replaced, and a block moved."""
    words = text.split()
    words = [random.choice(WORDS) if random.random() < 0.2 else w for w in words if random.random() > 0.1]
    if len(words) > 3:
        start = random.randrange(len(words) - 1)
        end = random.randint(start + 1, min(len(words), start + 5))
        block, rest = words[start:end], words[:start] + words[end:]
        place = random.randint(0, len(rest))
        words = rest[:place] + block + rest[place:]
    return " ".join(words)


def corpus(random, rows, least, most, most_references):
    outputs, references = [], []
    for _ in range(rows):
        first = sentence(random, least, most)
        more = [changed(random, first) or "a" for _ in range(random.randint(0, most_references - 1))]
        references.append([first, *more])
        outputs.append(changed(random, first))
    return outputs, references


def paper_ter(output, references):
    """As the paper's decoding script leaves text, and as GenerationEval scores it."""

    def tokens(text):
        return " ".join(re.split(r"(\W)", text.lower())).split()

    rates = [pyter.ter(tokens(output), tokens(r)) if tokens(r) else 1.0 for r in references]
    return min(rates)


def coco(outputs, references):
    lower = [o.lower() for o in outputs], [[r.lower() for r in rs] for rs in references]
    rouge = [Rouge().calc_score([o], rs) for o, rs in zip(*lower)]
    scorer = CiderScorer()
    for output, texts in zip(*lower):
        scorer += (output, texts)
    return sum(rouge) / len(rouge), float(scorer.compute_score()[0])


def row(name, outputs, references):
    most = max(len(r) for r in references)
    # sacreBLEU wants a list for each place among the references; places that are empty are None.
    streams = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    bleu, ter = BLEU().corpus_score(outputs, streams), TER().corpus_score(outputs, streams)
    rates = [paper_ter(o, r) for o, r in zip(outputs, references)]
    rouge, cider = coco(outputs, references)
    return {
        "name": name,
        "outputs": outputs,
        "references": references,
        "sacrebleu": bleu.score,
        "ter": ter.score,
        "pyter": sum(rates) / len(rates),
        "rouge_l": rouge,
        "cider": cider,
    }


def make():
    rows = []
    shapes = [("one reference", 20, 5, 25, 1), ("several", 20, 5, 25, 6), ("short", 12, 1, 5, 3), ("long", 3, 60, 90, 2)]
    for name, *shape in shapes:
        rows.append(row(name, *corpus(random.Random(name), *shape)))
    rows.append(row("no fours", ["a cat is", "by the river"], [["a cat is here"], ["near the river"]]))
    rows.append(row("nothing in common", ["a b c d e", "f"], [["v w x y z"], ["u"]]))
    rows.append(row("empty output", ["", "a cat sat by it"], [["a cat"], ["a cat sat by the river"]]))
    rows.append(row("smoothed", ["the cat has the food of it"], [["food is of the cat and has it", "the cat, it has food"]]))
    return {"rows": rows}


FILES = {"generated_text": make}
