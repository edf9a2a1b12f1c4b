#!/usr/bin/env bash
# Spanish case reports: a Llama that labels tokens, with and without its causal mask, against one that writes JSON, both
# from a base that went on reading Spanish and English texts on medicines, or did not.
# Mirrors the PharmaCoNER study (github.com/edugredu/tokenClassificationVSseq2seq).
#   bash recipes/pharmaconer.sh PharmaCoNERCorpus out/pharma       TOY=1 bash recipes/pharmaconer.sh
#
# Data      PharmaCoNERCorpus/{train,valid,test} (BRAT; zenodo.org/records/4270158, CC BY 4.0)
#           TEXTS_ES, TEXTS_EN: .txt or .jsonl files to go on with (the paper: CIMA's leaflets and DailyMed's labels)
# Paper                                          here, and why
#   pre-training predicts token t + 2, pads, too   t + 1, no padding, tested against cross-entropy by hand
#   held-out loss divided by a million             the loss
#   windows of 8000 that share 2000: a quarter     packed, each token once
#     of the tokens twice
#   first sub-token under a causal mask            the last one; and with --bidirectional all
#   sentences cut at 64 or 256 sub-tokens          windows
#   arms of different data, units and scorers      one split, one unit, one judge
#   B-X B-X merged into one mention                kept apart
#   first occurrence of a string is its place      every repetition has its own
#   3-8 beams, penalties, tuned on test            greedy
#   LoRA on lm_head, too; q,v for tokens           all linear layers but the head
#   pre-training whole, in bf16                    whole by default; PRETRAIN_ARGS="--lora_r 64" for one small GPU
# Printed   token classification, official F1 .7477 (no pre-training) to .7544; JSON answers .2040 to .5330, parse rate
#           .73 to .90; encoders elsewhere reach .92 on this corpus
# Cluster   one GPU a seed: sbatch --array=0-2 with SEEDS set by SLURM_ARRAY_TASK_ID
BASE=${BASE:-meta-llama/Llama-3.1-8B-Instruct} ENCODER=${ENCODER:-PlanTL-GOB-ES/bsc-bio-ehr-es}
PRETRAIN_ARGS=(--max_length 8000 --learning_rate 2e-5 --num_train_epochs 2 --batch_size 1 --training_args
    gradient_accumulation_steps=12 weight_decay=0.1 adam_beta2=0.95 ${PRETRAIN_ARGS:-})
TOKEN_ARGS=(--lora_r 12 --lora_alpha 32 --load_in_4bit --learning_rate 1e-4 --num_train_epochs 2 --batch_size 16)
JSON_ARGS=(--lora_r 64 --lora_alpha 128 --lora_dropout 0.15 --load_in_4bit --learning_rate 8e-5 --num_train_epochs 6
    --batch_size 1 --training_args gradient_accumulation_steps=16 warmup_steps=0.2)
ENCODER_ARGS=(--learning_rate 5e-5 --num_train_epochs 10 --batch_size 16)
SEEDS=(${SEEDS:-42 1234 2024}) TEXTS_ES=(${TEXTS_ES:-}) TEXTS_EN=(${TEXTS_EN:-})
# shellcheck source=recipes/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [ -n "${TOY:-}" ]; then
    step "toy: data/pharma_es and a random model -> $out"
    toy_data pharma_es "$out/data"
    toy_models "$out/toy" "$out/data/train.jsonl"
    BASE=$out/toy/llama ENCODER=$out/toy/bert SEEDS=(42) TEXTS_ES=("$out/data/whole/train.jsonl")
    PRETRAIN_ARGS=(--max_length 256 --num_train_epochs 1 --learning_rate 1e-3)
    TOKEN_ARGS+=(--num_train_epochs 2 --learning_rate 5e-3) JSON_ARGS+=(--num_train_epochs 1)
    ENCODER_ARGS+=(--num_train_epochs 4 --learning_rate 3e-3)
else
    need "$data/train" "zenodo.org/records/4270158 has PharmaCoNERCorpus"
    step "convert: $data (BRAT) -> $out/data"
    stage "$out/data/test.jsonl" brat2iob.py --input "$data" --output_dir "$out/data"
    [ -e "$out/data/dev.jsonl" ] || cp "$out/data/valid.jsonl" "$out/data/dev.jsonl"
fi
train=$out/data/train.jsonl dev=$out/data/dev.jsonl test=$out/data/test.jsonl

bases=(plain="$BASE") names=()
for texts in es en es_en; do
    files=()
    [[ $texts == *es* ]] && files+=("${TEXTS_ES[@]}")
    [[ $texts == *en* ]] && files+=("${TEXTS_EN[@]}")
    if [ ${#files[@]} -eq 0 ] || { [ "$texts" = es_en ] && [[ ${#TEXTS_ES[@]} -eq 0 || ${#TEXTS_EN[@]} -eq 0 ]]; }; then
        continue
    fi
    step "go on reading: $texts -> $out/base_$texts"
    stage "$out/base_$texts/run.json" ner_ft_llm.py --task pretrain --model "$BASE" --train_file "${files[@]}" \
        --output_dir "$out/base_$texts" --seed 3407 "${PRETRAIN_ARGS[@]}"
    bases+=("$texts=$out/base_$texts")
done

for seed in "${SEEDS[@]}"; do
    step "encoder $ENCODER, seed $seed"
    names+=("encoder@$seed")
    stage "$out/encoder@$seed/test.pred.jsonl" ner_ft_encoder.py --model "$ENCODER" --train_file "$train" \
        --validation_file "$dev" --test_file "$test" --output_dir "$out/encoder@$seed" --seed "$seed" "${ENCODER_ARGS[@]}"
    for base in "${bases[@]}"; do
        for mask in none all; do
            name=tokens_${base%%=*}_$mask@$seed names+=("tokens_${base%%=*}_$mask@$seed")
            step "tokens labelled by ${base#*=}, --bidirectional $mask, seed $seed"
            stage "$out/$name/test.pred.jsonl" ner_ft_encoder.py --model "${base#*=}" --bidirectional "$mask" \
                --train_file "$train" --validation_file "$dev" --test_file "$test" --output_dir "$out/$name" \
                --seed "$seed" "${TOKEN_ARGS[@]}"
        done
        name=json_${base%%=*}@$seed names+=("json_${base%%=*}@$seed")
        step "JSON written by ${base#*=}, seed $seed"
        stage "$out/$name/test.pred.jsonl" ner_ft_llm.py --model "${base#*=}" --format spans --language es \
            --labels_file "$here/data/pharma_es/labels.json" --train_file "$train" --validation_file "$dev" \
            --test_file "$test" --output_dir "$out/$name" --seed "$seed" "${JSON_ARGS[@]}"
    done
done
compare "$out" "$test" "$train" "${names[@]}"

step "BRAT of the first system, for the official scorer and for people -> $out/brat"
stage "$out/brat" brat2iob.py --input "$out/${names[0]}/test.pred.jsonl" --to brat --output_dir "$out/brat"
