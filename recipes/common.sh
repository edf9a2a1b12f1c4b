# Sourced by the recipes. bash recipes/NAME.sh DATA_DIR OUT_DIR; with TOY=1 data/ and models made on the spot do.
# Each stage is skipped where its output is there (a file that exists is complete): stop at any time, run again.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$here/.venv/bin/python
export TOKENIZERS_PARALLELISM=false

step() { printf '\n== %s\n' "$*"; }

fail() { echo "error: $*" >&2; exit 1; }

# stage OUTPUT SCRIPT FLAGS: a stage of the collection, unless its output is there.
stage() {
    local output=$1 script=$2
    shift 2
    if [ -e "$output" ]; then echo "$output: is there"; else "$python" "$here/$script" "$@"; fi
}

# need PATH WHERE: what is missing, and where to get it.
need() { [ -e "$1" ] || fail "$1: is not there; $2"; }

# score FLAGS: ner_eval.py, of what it prints the table that compares the systems.
score() { "$python" "$here/ner_eval.py" "$@" | sed -n '1,/^$/p'; }

# compare OUT GOLD TRAIN NAME...: score what is there of OUT/NAME.jsonl and OUT/NAME/test.pred.jsonl, with a report.
compare() {
    local out=$1 gold=$2 train=$3 name preds=() names=()
    shift 3
    for name in "$@"; do
        for file in "$out/$name.jsonl" "$out/$name.pred.jsonl" "$out/$name/test.pred.jsonl"; do
            [ -e "$file" ] && preds+=("$file") && names+=("${name%@*}")
        done
    done
    step "score: ${names[*]} against $gold -> $out/metrics.json, $out/report.html"
    score --gold "$gold" --pred "${preds[@]}" --names "${names[@]}" --train_file "$train" \
        --output_file "$out/metrics.json" --html "$out/report.html"
}

environment() {
    [ -x "$here/.venv/bin/python" ] || python3 -m venv "$here/.venv"
    if ! cmp -s "$here/requirements.txt" "$here/.venv/installed.txt"; then
        "$python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
        cp "$here/requirements.txt" "$here/.venv/installed.txt"
    fi
}

# toy_data CORPUS FOLDER: the first records of a sample corpus of data/, of each split.
toy_data() {
    local split
    [ -e "$2/train.jsonl" ] && return
    "$python" "$here/brat2iob.py" --input "$here/data/$1" --output_dir "$2/whole" --to jsonl
    for split in test dev train; do
        awk -v most="${TOY_RECORDS:-12}" 'NR % 4 == 1 && n++ < most' "$2/whole/$split.jsonl" >"$2/$split.jsonl"
    done
}

# toy_models FOLDER RECORDS: bert/ and llama/, random models of some ten thousand weights that read these records.
toy_models() {
    [ -e "$1/llama/config.json" ] || "$python" - "$@" <<'PYTHON'
import json
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

folder, path = sys.argv[1:]
texts = [json.loads(line)["text"] for line in open(path, encoding="utf-8")]
torch.manual_seed(0)
for name in ("bert", "llama"):
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special, alphabet = ["<pad>", "<s>", "</s>"], pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1000, special_tokens=special, initial_alphabet=alphabet))
    inner.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
                            cls_token="<s>", sep_token="</s>").save_pretrained(f"{folder}/{name}")
    sizes = {"vocab_size": len(inner.get_vocab()), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "max_position_embeddings": 4096, "pad_token_id": 0}
    model = (BertForMaskedLM(BertConfig(**sizes)) if name == "bert" else
             LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=4, bos_token_id=1, eos_token_id=2)))
    model.save_pretrained(f"{folder}/{name}")
PYTHON
}

export HF_HUB_DISABLE_PROGRESS_BARS=1
[ $# -eq 2 ] || [ -n "${TOY:-}" ] || fail "bash $0 DATA_DIR OUT_DIR, or TOY=1 bash $0 [DATA_DIR OUT_DIR]"
data=${1:-$here/data} out=${2:-$here/out/$(basename "$0" .sh)}
mkdir -p "$out"
step "environment: .venv with requirements.txt"
environment
