#!/usr/bin/env python3
"""The baseline without a network: TF-IDF of word unigrams and bigrams and a logistic regression. Prints one JSON line.

usage: python tools/bench/bag_of_words.py [--data DIR]      (needs scikit-learn)
The regularisation is chosen on the validation rows.
"""

import argparse
import csv
import json
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

ROOT = Path(__file__).resolve().parents[2]


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "assets" / "sentiment" / "movie")
    data = parser.parse_args().data
    train, validation, test = (read(data / f"{split}.tsv") for split in ["train", "validation", "test"])
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    features = vectorizer.fit_transform(train[0])
    best = None
    for c in [0.3, 1.0, 3.0, 10.0, 30.0]:
        model = LogisticRegression(C=c, max_iter=2000).fit(features, train[1])
        score = model.score(vectorizer.transform(validation[0]), validation[1])
        if best is None or score > best[0]:
            best = (score, c, model)
    score, c, model = best
    test_score = model.score(vectorizer.transform(test[0]), test[1])
    print(json.dumps({"method": "bag of words", "C": c, "validation_accuracy": score, "test_accuracy": test_score}))


if __name__ == "__main__":
    main()
