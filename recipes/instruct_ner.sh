#!/usr/bin/env bash
# LLMs told to list the mentions of each type, flat and nested corpora, against a small encoder.
# Mirrors instruct-NER (github.com/poteminr/instruct-ner): RuDReC, NEREL-BIO, CoNLL-2003, MultiCoNER.
#   bash recipes/instruct_ner.sh DATA out/instruct         TOY=1 bash recipes/instruct_ner.sh
#
# Data      DATA/rudrec/rudrec_annotated.json (github.com/cimm-kzn/RuDReC), DATA/nerel-bio/{train,dev,test} (BRAT;
#           github.com/nerel-ds/NEREL-BIO); DATA/NAME/{train,dev,test}.conll of CoNLL-2003, MultiCoNER where you have them
# Paper                                          here, and why
#   mentions scored as strings, TP = 1 where       as spans: repeated mentions have their places
#     both sides are empty (until 2024-02)
#   Llama's type list without Drugform             all types, from the training data
#   sentences of one review in train and test      split by review
#   checkpoint chosen on test, by loss             on dev, by strict F1
#   beams of 3 with sampling at 0.9                greedy
#   prompts cut at 256 tokens                      an example that does not fit is an error
#   8 bits                                         4 bits (QLoRA)
#   T5                                             left out: ner_ft_llm.py takes decoders alone
# Printed   RuDReC overall F1 Mistral .7486 (extended instruction .7540), Llama2 .3929, rubert-tiny2 .6777; NEREL-BIO
#           .6314; CoNLL-2003 .9182 (.9220); MultiCoNER coarse .7953, fine .6230. By strings, on what chose the checkpoint
# Cluster   sbatch --gres=gpu:1 --array=0-1 with LLM set by SLURM_ARRAY_TASK_ID
ENCODER=${ENCODER:-cointegrated/rubert-tiny2} ENCODER_ARGS=(--num_train_epochs 20 ${ENCODER_ARGS:-})
LLM=${LLM:-mistralai/Mistral-7B-Instruct-v0.3}
LORA=(${LORA:---load_in_4bit --lora_r 8 --lora_alpha 16 --lora_target_modules q_proj k_proj v_proj o_proj})
LLM_ARGS=(--learning_rate 2.5e-4 --num_train_epochs 4 --batch_size 2 --training_args gradient_accumulation_steps=64
    warmup_steps=30 ${LLM_ARGS:-})  # LORA="--lora_r 0": all weights
# shellcheck source=recipes/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [ -n "${TOY:-}" ]; then
    step "toy: data/reviews_ru, and random models -> $out"
    TOY_RECORDS=60 toy_data reviews_ru "$out/reviews_ru/data"
    toy_models "$out/toy" "$out/reviews_ru/data/train.jsonl"
    ENCODER=$out/toy/bert LLM=$out/toy/llama corpora=(reviews_ru)
    ENCODER_ARGS+=(--num_train_epochs 4 --learning_rate 3e-3)
    LLM_ARGS+=(gradient_accumulation_steps=1 warmup_steps=2 --num_train_epochs 1)
else
    need "$data" "DATA/rudrec, DATA/nerel-bio: see the head of this recipe"
    corpora=()
    for folder in "$data"/*/; do corpora+=("$(basename "$folder")"); done
fi

for corpus in "${corpora[@]}"; do
    folder=$out/$corpus split=()
    [ "$corpus" = rudrec ] && split=(--split 0.7 0.1 0.2)
    if [ -z "${TOY:-}" ]; then
        step "convert: $data/$corpus -> $folder/data"
        stage "$folder/data/test.jsonl" brat2iob.py --input "$data/$corpus" --output_dir "$folder/data" "${split[@]}"
    fi
    train=$folder/data/train.jsonl dev=$folder/data/dev.jsonl test=$folder/data/test.jsonl
    if [ "$LLM" = tiny ]; then  # a random Llama, made on the spot: that the arm runs on a CPU, no more
        toy_models "$folder" "$train"
        llm=$folder/llama
    fi
    [[ $corpus =~ ^(rudrec|nerel-bio|reviews_ru)$ ]] && language=ru || language=en
    for nested in flat per_type; do
        step "$corpus: encoder $ENCODER, --nested $nested -> $folder/encoder_$nested"
        stage "$folder/encoder_$nested/test.pred.jsonl" ner_ft_encoder.py --model "$ENCODER" --train_file "$train" \
            --validation_file "$dev" --test_file "$test" --output_dir "$folder/encoder_$nested" --nested "$nested" \
            "${ENCODER_ARGS[@]}"
    done
    for types in found all; do
        all=()
        [ "$types" = all ] && all=(--all_types)
        step "$corpus: LLM ${llm:-$LLM}, a line for types $types -> $folder/llm_$types"
        stage "$folder/llm_$types/test.pred.jsonl" ner_ft_llm.py --model "${llm:-$LLM}" --train_file "$train" \
            --validation_file "$dev" --test_file "$test" --output_dir "$folder/llm_$types" --format lines \
            --language "$language" "${all[@]}" "${LORA[@]}" "${LLM_ARGS[@]}"
    done
    compare "$folder" "$test" "$train" encoder_flat encoder_per_type llm_found llm_all
done
