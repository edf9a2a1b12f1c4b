#!/usr/bin/env bash
# Rare diseases, signs and symptoms: prompting, retrieval and fine-tuning side by side.
# Mirrors Lu et al. 2024, "Large Language Models Struggle in Token-Level Clinical Named Entity Recognition"
# (arXiv 2407.00731; github.com/qiuhaolu/tner) on RareDis-v1.
#   bash recipes/raredis.sh RareDis-v1 out/raredis         TOY=1 bash recipes/raredis.sh
#
# Data      RareDis-v1 (BRAT; train/ dev/ test/): asked of its authors, Martinez-deMiguel et al. 2022
#           KNOWLEDGE: a folder of texts on the diseases (the paper: NORD's articles)
#           ANSWERS: the GPT-4 answers that the paper's repository holds, for its Table 3
# Paper                                          here, and why
#   BIO tags by id arithmetic that turns           by character offsets
#     B-DISEASE into B-RAREDISEASE
#   BERT scored by sub-token, LLMs by word        all by character spans, by one judge
#   LLM's tags laid on gold by position            by token: one echoed line shifts no sentence
#   answers cut at 128 new tokens (about one       as long as the text needs
#     entity in six lost)
#   checkpoint chosen by hand, on test             on dev, by strict F1
#   loss on prompt and answer                      on the answer
#   5 examples, all of one article                 the nearest ones of train, never of the same document
#   retrieval query: the whole prompt              the sentence; passages that hold it are kept away
# Printed   mean F1 of five types, Table 3: GPT-4 zero-shot .2773, 5 examples .3214, retrieval .2905; Llama2-MedTuned
#           .2290, .2513, .2216; fine-tuned models in a figure only. The GPT-4 answers, laid on gold by token instead of
#           by position, give micro F1 .3659 instead of .3554
# Cluster   sbatch --gres=gpu:1 --time=24:00:00 --wrap "bash recipes/raredis.sh RareDis-v1 out/raredis"
ENCODER=${ENCODER:-emilyalsentzer/Bio_ClinicalBERT} ENCODER_ARGS=(--learning_rate 2e-5 --num_train_epochs 20 --batch_size 8)
LLM=${LLM:-nlpie/Llama2-MedTuned-7b}
LLM_ARGS=(--load_in_4bit --lora_r 64 --lora_alpha 256 --lora_dropout 0.1 --lora_target_modules q_proj v_proj
    --learning_rate 2e-4 --num_train_epochs 10 --batch_size 4 --training_args optim=paged_adamw_32bit
    lr_scheduler_type=constant max_grad_norm=0.3 gradient_accumulation_steps=2)
GPT=${GPT:-} BASE_URL=${BASE_URL:-https://api.openai.com/v1} PRICE=(${PRICE:-10 30})  # dollars a million tokens
# shellcheck source=recipes/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

labels=$here/data/rare_en/labels.json
if [ -n "${TOY:-}" ]; then
    step "toy: data/rare_en and random models -> $out"
    toy_data rare_en "$out/data"
    toy_models "$out/toy" "$out/data/train.jsonl"
    ENCODER=$out/toy/bert LLM=$out/toy/llama KNOWLEDGE=$here/data/README.md
    ENCODER_ARGS+=(--num_train_epochs 4 --learning_rate 3e-3) LLM_ARGS+=(--num_train_epochs 1)
else
    need "$data/train" "RareDis-v1 is asked of its authors (github.com/isegura/NLP4RARE-CM-UC3M)"
    step "convert: $data (BRAT) -> $out/data"
    stage "$out/data/test.jsonl" brat2iob.py --input "$data" --output_dir "$out/data"
fi
train=$out/data/train.jsonl dev=$out/data/dev.jsonl test=$out/data/test.jsonl

step "floor: votes of the training examples most like each sentence -> $out/votes.jsonl"
stage "$out/votes.jsonl" ner_rag.py --train_file "$train" --test_file "$test" --output_file "$out/votes.jsonl" \
    --retrieval_unit entity --num_shots 20 --vote

step "fine-tuned encoder: $ENCODER -> $out/encoder"
stage "$out/encoder/test.pred.jsonl" ner_ft_encoder.py --model "$ENCODER" --train_file "$train" \
    --validation_file "$dev" --test_file "$test" --output_dir "$out/encoder" "${ENCODER_ARGS[@]}"

step "prompts with the nearest examples, and with passages -> $out/shots.jsonl, $out/rag.jsonl"
stage "$out/shots.jsonl" ner_rag.py --train_file "$train" --test_file "$test" --retrieval_unit entity --num_shots 5 \
    --output_file "$out/shots.jsonl"
if [ -n "${KNOWLEDGE:-}" ]; then
    stage "$out/rag.jsonl" ner_rag.py --test_file "$test" --num_shots 0 --knowledge "$KNOWLEDGE" --num_passages 2 \
        --output_file "$out/rag.jsonl"
fi

step "local LLM, untouched: $LLM -> $out/llm"
for name in zero shots rag; do
    file=$out/$name.jsonl
    [ "$name" = zero ] && file=$test
    [ -e "$file" ] || continue
    stage "$out/llm/$name.pred.jsonl" ner_ft_llm.py --model "$LLM" --test_file "$file" --format iob \
        --labels_file "$labels" --output_file "$out/llm/$name.pred.jsonl" --load_in_4bit
done

step "local LLM, QLoRA: $LLM -> $out/qlora"
stage "$out/qlora/test.pred.jsonl" ner_ft_llm.py --model "$LLM" --train_file "$train" --validation_file "$dev" \
    --test_file "$test" --format iob --labels_file "$labels" --output_dir "$out/qlora" "${LLM_ARGS[@]}"

step "GPT: ${GPT:-no model named (GPT=gpt-4o BASE_URL=...); what it would cost} -> $out/gpt"
for name in zero shots rag; do
    file=$out/$name.jsonl
    [ "$name" = zero ] && file=$test
    [ -e "$file" ] || continue
    dry=()
    [ -n "$GPT" ] || dry=(--dry_run)
    stage "$out/gpt/$name.jsonl" ner_prompt_openai.py --model "${GPT:-gpt-4o}" --base_url "$BASE_URL" --test_file "$file" \
        --labels_file "$labels" --price "${PRICE[@]}" --output_file "$out/gpt/$name.jsonl" "${dry[@]}" | tail -n 3
done

compare "$out" "$test" "$train" votes encoder llm/zero llm/shots llm/rag qlora gpt/zero gpt/shots gpt/rag

if [ -n "${ANSWERS:-}" ]; then
    step "Table 3, GPT-4 with 5 examples: its published answers by position, as printed, and by token"
    need "$ANSWERS/answers_test.txt.gz" "the published answers and test_combined_IOB_data.csv.gz are in that repository"
    "$python" - "$ANSWERS" "$out" <<'PYTHON'
import csv
import gzip
import re
import sys
from difflib import SequenceMatcher

folder, out = sys.argv[1:]
gold, columns = {}, {"gold": [], "position": [], "token": []}
for row in csv.DictReader(gzip.open(f"{folder}/test_combined_IOB_data.csv.gz", "rt", encoding="utf-8", newline="")):
    gold.setdefault(row["Sentence_Num_Global"], []).append((row["Token"], row["Tag"]))
answers = re.split(r"^######\n", gzip.open(f"{folder}/answers_test.txt.gz", "rt", encoding="utf-8").read(), flags=re.M)[1:]
for sentence, answer in zip(gold.values(), answers, strict=True):
    lines = [re.sub(r"[\[\]]", "", line).split(": ") for line in answer.split("\n") if line.strip()]
    words, said = [word for word, _ in sentence], [line[1].strip() if len(line) == 2 else "O" for line in lines]
    aligned = ["O"] * len(words)
    for i, j, n in SequenceMatcher(None, words, [line[0].strip() for line in lines], False).get_matching_blocks():
        aligned[i : i + n] = said[j : j + n]
    for name, tags in (("gold", [tag for _, tag in sentence]), ("position", said + ["O"] * len(words)), ("token", aligned)):
        columns[name] += [f"{word}\t{tag}\n" for word, tag in zip(words, tags)] + ["\n"]
for name, lines in columns.items():
    open(f"{out}/table3.{name}.iob", "w", encoding="utf-8").writelines(lines)
PYTHON
    score --gold "$out/table3.gold.iob" --pred "$out/table3.position.iob" "$out/table3.token.iob" \
        --names "by position" "by token" --scheme lenient --level entity --resamples 0
fi
