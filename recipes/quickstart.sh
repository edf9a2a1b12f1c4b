#!/usr/bin/env bash
# A corpus in, a fine-tuned model and a floor without one, scored side by side, out: two to four minutes on two cores after the installation.
# Safe to run again: the environment is kept, the results are made anew.
#   bash recipes/quickstart.sh            everything goes to out/rare_en; QUICK=1: one epoch, to see that it works
set -euo pipefail
cd "$(dirname "$0")/.."
out=out/rare_en

step() { printf '\n== %s\n' "$*"; }

step "environment: .venv with requirements.txt"
[ -x .venv/bin/python ] || python3 -m venv .venv
if ! cmp -s requirements.txt .venv/installed.txt; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt .venv/installed.txt
fi
python=.venv/bin/python

step "convert: data/rare_en (BRAT) -> $out/{train,dev,test}.jsonl and .iob"
$python brat2iob.py --input data/rare_en --output_dir $out

step "fine-tune and predict: MiniLM, checkpoint chosen on dev -> $out/minilm"
$python ner_ft_encoder.py --model minilm --train_file $out/train.jsonl --validation_file $out/dev.jsonl \
    --test_file $out/test.jsonl --output_dir $out/minilm --learning_rate 5e-4 --num_train_epochs 12 \
    --early_stopping_patience 6 ${QUICK:+--num_train_epochs 1}

step "label without a model: votes of the training examples most like each text -> $out/vote.jsonl"
$python ner_rag.py --train_file $out/train.jsonl --test_file $out/test.jsonl --output_file $out/vote.jsonl \
    --retrieval_unit entity --num_shots 20 --vote

step "score: $out/minilm/test.pred.jsonl and $out/vote.jsonl against $out/test.jsonl"
$python ner_eval.py --gold $out/test.jsonl --pred $out/minilm/test.pred.jsonl $out/vote.jsonl --names MiniLM votes \
    --train_file $out/train.jsonl --output_file $out/metrics.json --html $out/report.html

step "done: model $out/minilm, predictions $out/minilm/test.pred.jsonl, all figures $out/metrics.json," \
    "to look at: $out/report.html"
