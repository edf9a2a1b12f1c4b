#!/usr/bin/env bash
# Encoders against LLMs that answer with a tag a token, on several corpora, with what each costs.
# Mirrors Obeidat, Nahian and Kavuluru 2025, "Do LLMs Surpass Encoders for Biomedical NER?" (ICHI; arXiv 2504.00664;
# github.com/bionlproc).
#   bash recipes/encoders_vs_llms.sh CORPORA out/ichi      TOY=1 bash recipes/encoders_vs_llms.sh
#
# Data      CORPORA/NAME/: files or folders whose names hold train, dev (or valid) and test, in any format that
#           brat2iob.py reads. JNLPBA, BC5CDR, ChemProt, BioRED are public (BioCreative, GENIA, NCBI); Reddit-Impacts
#           is asked of its authors (Ge et al. 2024)
# Paper                                          here, and why
#   best encoder checkpoint kept by aliasing:      reloaded
#     the last epoch's weights were saved
#   gold cut at 512 sub-tokens                     windows: no gold is lost
#   all sub-tokens labelled, majority vote         first sub-token
#   loss on prompt, padding and answer             on the answer
#   LoRA r 128 on linear layers and lm_head        on linear layers: SFTTrainer refuses the head
#   decoding by the model's own settings           greedy
#   F1 by length that counts parts of long         recall by length of gold, precision by length of predictions
#     predictions as short ones                      (all predictions, whole)
#   SemEval counts off by one at a span's end,     one-to-one, checked against enumeration
#     one gold used several times
#   one seed                                       SEEDS="42 43 44": mean and deviation in the table
# Printed   LLMs 2 to 8 points of F1 above the best encoder on four of the five corpora, equal on one; gains on
#           mentions of three and more tokens; inference one to two orders of magnitude slower
# Cluster   accelerate launch --num_processes 2 ner_ft_llm.py ... in place of python, on two GPUs
ENCODERS=(${ENCODERS:-google-bert/bert-large-uncased microsoft/BiomedNLP-BiomedBERT-large-uncased-abstract
    microsoft/deberta-v3-large})
LLMS=(${LLMS-mistralai/Mistral-7B-Instruct-v0.3 meta-llama/Llama-3.1-8B-Instruct})
ENCODER_ARGS=(--learning_rate 2e-5 --num_train_epochs 20 --batch_size 8 ${ENCODER_ARGS:-})
LORA=(${LORA:---load_in_4bit --lora_r 128 --lora_alpha 256})  # LORA="--lora_r 0": all weights
LLM_ARGS=(--learning_rate 4e-5 --num_train_epochs 20 --batch_size 4 --training_args optim=paged_adamw_8bit
    lr_scheduler_type=linear gradient_accumulation_steps=4 ${LLM_ARGS:-})
SEEDS=(${SEEDS:-42})
# shellcheck source=recipes/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [ -n "${TOY:-}" ]; then
    step "toy: data/rare_en as a corpus, and random models -> $out"
    toy_data rare_en "$out/rare_en/data"
    toy_models "$out/toy" "$out/rare_en/data/train.jsonl"
    ENCODERS=("$out/toy/bert") LLMS=("$out/toy/llama") corpora=(rare_en)
    ENCODER_ARGS+=(--num_train_epochs 4 --learning_rate 3e-3) LLM_ARGS+=(--num_train_epochs 1)
else
    need "$data" "a folder of corpora, one folder each: see the head of this recipe"
    corpora=()
    for folder in "$data"/*/; do corpora+=("$(basename "$folder")"); done
fi

# split_of FOLDER PATTERN: the one converted file whose name holds it.
split_of() { find "$1" -maxdepth 1 -iname "*.jsonl" | grep -iE "$2[^/]*$" | head -n 1; }

for corpus in "${corpora[@]}"; do
    folder=$out/$corpus
    if [ ! -e "$folder/data/test.jsonl" ]; then
        step "convert: $data/$corpus -> $folder/data"
        "$python" "$here/brat2iob.py" --input "$data/$corpus" --output_dir "$folder/data/all" --to jsonl
        for split in train dev test; do
            pattern=$split
            [ "$split" = dev ] && pattern='(dev|valid)'
            file=$(split_of "$folder/data/all" "$pattern")
            [ -n "$file" ] || fail "$data/$corpus: no $split in a name; name its files or folders so"
            cp "$file" "$folder/data/$split.jsonl"
        done
    fi
    train=$folder/data/train.jsonl dev=$folder/data/dev.jsonl test=$folder/data/test.jsonl names=()
    for model in "${ENCODERS[@]}"; do
        for seed in "${SEEDS[@]}"; do
            name=$(basename "$model")@$seed names+=("$(basename "$model")@$seed")
            step "$corpus: encoder $model, seed $seed -> $folder/$name"
            stage "$folder/$name/test.pred.jsonl" ner_ft_encoder.py --model "$model" --train_file "$train" \
                --validation_file "$dev" --test_file "$test" --output_dir "$folder/$name" --seed "$seed" \
                "${ENCODER_ARGS[@]}"
        done
    done
    for model in "${LLMS[@]}"; do
        if [ "$model" = tiny ]; then  # a random Llama, made on the spot: that the arm runs on a CPU, no more
            toy_models "$folder" "$train"
            model=$folder/llama
        fi
        for seed in "${SEEDS[@]}"; do
            name=$(basename "$model")@$seed names+=("$(basename "$model")@$seed")
            step "$corpus: LLM $model, seed $seed -> $folder/$name"
            stage "$folder/$name/test.pred.jsonl" ner_ft_llm.py --model "$model" --train_file "$train" \
                --validation_file "$dev" --test_file "$test" --format iob --output_dir "$folder/$name" --seed "$seed" \
                "${LORA[@]}" "${LLM_ARGS[@]}"
        done
    done
    compare "$folder" "$test" "$train" "${names[@]}"
done
