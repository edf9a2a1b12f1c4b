#!/usr/bin/env bash
# A clinical encoder over whole documents and notes, with UMLS types and groups.
# Mirrors LLM-NER-clinical-text (github.com/longluu/LLM-NER-clinical-text): GatorTron (Yang et al. 2022) on MedMentions
# ST21pv, NCBI-disease and n2c2 2018 track 2.
#   bash recipes/gatortron.sh DATA out/gatortron           TOY=1 bash recipes/gatortron.sh
#
# Data      DATA/medmentions: corpus_pubtator.txt of ST21pv (github.com/chanzuckerberg/MedMentions) cut into train, dev
#           and test by its lists of PMIDs; DATA/ncbi: the three PubTator files; DATA/n2c2: train/ and test/ (BRAT), from
#           the DBMI data portal under its agreement. SEMGROUPS: SemGroups_2018.txt of the UMLS semantic network
# Paper                                          here, and why
#   documents cut at 512 sub-tokens, notes into    windows over whole documents, each word labelled where it is most
#     chunks of 450 words that are cut again:        central: no gold is lost
#     scores on what is left
#   notes of one split in both parts               split by document
#   checkpoint by loss, another picked by F1       by strict F1 on dev
#   precision and recall exchanged                 as they are
#   B- and I- of a type under one name             IOB2; groups by a type map
#   hull of a discontinuous mention                left out of the tags and counted
# Printed   entity F1: MedMentions .6282 (GatorTronS), NCBI-disease .8760, n2c2 .8938; P and R stand in each other's place
# Cluster   torchrun --nproc_per_node 4 ner_ft_encoder.py ... in place of python, on four GPUs
ENCODER=${ENCODER:-UFNLP/gatortron-base} FLOOR=${FLOOR:-minilm}
WINDOWS=(--max_length 512 --stride 128)
ENCODER_ARGS=(--learning_rate 1e-5 --num_train_epochs 15 --batch_size 4 ${ENCODER_ARGS:-})
FLOOR_ARGS=(--num_train_epochs 8)
SEMGROUPS=${SEMGROUPS:-}
# shellcheck source=recipes/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

if [ -n "${TOY:-}" ]; then
    step "toy: data/rare_en, whole documents, and a random model -> $out"
    stage "$out/rare_en/data/test.jsonl" brat2iob.py --input "$here/data/rare_en" --unit document \
        --output_dir "$out/rare_en/data"
    toy_models "$out/toy" "$out/rare_en/data/train.jsonl"
    ENCODER=$out/toy/bert FLOOR=$out/toy/bert corpora=(rare_en)
    ENCODER_ARGS+=(--num_train_epochs 3 --learning_rate 3e-3) FLOOR_ARGS=(--num_train_epochs 1)
else
    need "$data" "DATA/medmentions, DATA/ncbi, DATA/n2c2: see the head of this recipe"
    corpora=()
    for folder in "$data"/*/; do corpora+=("$(basename "$folder")"); done
fi

for corpus in "${corpora[@]}"; do
    folder=$out/$corpus/data map=() groups=()
    if [ "$corpus" = medmentions ] && [ -n "$SEMGROUPS" ]; then
        map=(--map_types "$SEMGROUPS") groups=(--map_types "$SEMGROUPS:group")
    fi
    if [ ! -e "$folder/test.jsonl" ]; then
        step "convert: $data/$corpus, whole documents -> $folder"
        "$python" "$here/brat2iob.py" --input "$data/$corpus" --unit document --output_dir "$folder" "${map[@]}"
        for split in train dev test; do  # by whatever names the corpus has for them
            [ -e "$folder/$split.jsonl" ] && continue
            file=$(find "$folder" -name '*.jsonl' | grep -iE "${split/dev/(dev|valid)}[^/]*$" | head -n 1)
            if [ -n "$file" ]; then cp "$file" "$folder/$split.jsonl"; fi
        done
    fi
    if [ ! -e "$folder/dev.jsonl" ]; then  # n2c2 has no development notes: one in ten of the training notes
        "$python" "$here/brat2iob.py" --input "$folder/train.jsonl" --unit document --split 0.9 0.1 0 \
            --output_dir "$folder/split" --to jsonl
        cp "$folder/split/train.jsonl" "$folder/split/dev.jsonl" "$folder"
    fi
    train=$folder/train.jsonl dev=$folder/dev.jsonl test=$folder/test.jsonl
    step "$corpus: $ENCODER -> $out/$corpus/encoder"
    stage "$out/$corpus/encoder/test.pred.jsonl" ner_ft_encoder.py --model "$ENCODER" --train_file "$train" \
        --validation_file "$dev" --test_file "$test" --output_dir "$out/$corpus/encoder" "${WINDOWS[@]}" \
        "${ENCODER_ARGS[@]}"
    step "$corpus: a small encoder beside it, $FLOOR -> $out/$corpus/floor"
    stage "$out/$corpus/floor/test.pred.jsonl" ner_ft_encoder.py --model "$FLOOR" --train_file "$train" \
        --validation_file "$dev" --test_file "$test" --output_dir "$out/$corpus/floor" "${FLOOR_ARGS[@]}"
    compare "$out/$corpus" "$test" "$train" encoder floor
    if [ ${#groups[@]} -gt 0 ]; then
        step "$corpus: the same by UMLS group"
        score --gold "$test" --pred "$out/$corpus/encoder/test.pred.jsonl" "$out/$corpus/floor/test.pred.jsonl" \
            --names encoder floor "${groups[@]}" --output_file "$out/$corpus/groups.json"
    fi
done
