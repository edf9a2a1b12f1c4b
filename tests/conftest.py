"""Shared by all tests: run a script as a user does, and find the real corpora (NER_CORPORA), unpacked once."""

import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORPORA = Path(os.environ.get("NER_CORPORA", ROOT.parent / "shared" / "corpora"))


def pytest_configure(config):
    # One thread: the suite shares two cores, and two OpenMP threads collapse when anything else runs.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_HUB_OFFLINE"] = "1"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background job, whose child it is


@pytest.fixture(scope="session")
def cli(tmp_path_factory):
    """Run `python SCRIPT ARGS` in a new process and another working directory."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(script, *args, cwd=elsewhere, timeout=600, **environment):
        command = [sys.executable, str(ROOT / script), *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=cwd, timeout=timeout,
                              env={**os.environ, **environment})  # fmt: skip

    return run


CLOSES = """import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    import torch
    assert not torch.distributed.is_initialized(), "it ends within its group of processes"
"""


@pytest.fixture(scope="session")
def torchrun(tmp_path_factory):
    """How a command starts that runs in two processes, each of which must leave their group: else it may abort."""
    path = tmp_path_factory.mktemp("torchrun") / "closes.py"
    path.write_text(CLOSES)
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", path]


def pytest_make_parametrize_id(val):
    """Bytes are named by their number: those of a gzip file hold the second it was made in, another in each worker."""
    return f"{len(val)}_bytes" if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items):
    """The files that take longest first, so that two workers (tests/run.sh) end together."""
    longest = ("test_recipes", "test_ner_ft_encoder", "test_ner_ft_llm", "test_brat2iob")
    items.sort(key=lambda item: longest.index(item.path.stem) if item.path.stem in longest else len(longest))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Return the folder of a real corpus, its archives unpacked; skip the test where the corpora are absent."""
    unpacked = {}

    def folder(name, archive=None):
        if not (CORPORA / name).is_dir():
            pytest.skip(f"corpus {name} not found in {CORPORA}; set NER_CORPORA to the folder of the real corpora")
        if archive is None:
            return CORPORA / name
        if (name, archive) not in unpacked:
            unpacked[name, archive] = unpack(CORPORA / name / archive, tmp_path_factory.mktemp(name))
        return unpacked[name, archive]

    return folder


def unpack(archive, target):
    """Unpack a .zip or .tar.xz; members that would leave `target` are refused."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            for name in file.namelist():
                if not (target / name).resolve().is_relative_to(target.resolve()):
                    raise ValueError(f"{archive}: {name} leaves the folder")
            file.extractall(target)
    else:
        with tarfile.open(archive) as file:
            file.extractall(target, filter="data")
    return target


@pytest.fixture(scope="session")
def rare_en(cli, tmp_path_factory):
    """data/rare_en as records: a folder with train, dev and test as .jsonl and .iob."""
    folder = tmp_path_factory.mktemp("rare_en")
    done = cli("brat2iob.py", "--input", ROOT / "data" / "rare_en", "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Folders of tiny random models with tokenizers trained on data/rare_en: BERT with WordPiece, RoBERTa ("bpe") and
    a Llama with byte-level BPE."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
        RobertaConfig,
        RobertaForMaskedLM,
    )

    torch.manual_seed(0)
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "data" / "rare_en" / "train").glob("*.txt"))]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    sizes = {"vocab_size": 800, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 96, "max_position_embeddings": 130, "pad_token_id": 0}  # fmt: skip
    folders = {}
    kinds = {"bert": (BertConfig, BertForMaskedLM), "bpe": (RobertaConfig, RobertaForMaskedLM),
             "llama": (LlamaConfig, LlamaForCausalLM)}  # fmt: skip
    for name, (config, model) in kinds.items():
        if name == "bert":
            tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
            tokenizer.normalizer = normalizers.BertNormalizer()
            tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
            trainer = trainers.WordPieceTrainer(vocab_size=800, special_tokens=special)
        else:
            tokenizer = Tokenizer(models.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=special, initial_alphabet=alphabet)
        tokenizer.train_from_iterator(texts, trainer)
        shape = "[CLS] $A" if name == "llama" else "[CLS] $A [SEP]"
        tokenizer.post_processor = processors.TemplateProcessing(shape, None, [("[CLS]", 2), ("[SEP]", 3)])
        names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names)
        folders[name] = tmp_path_factory.mktemp(f"tiny_{name}")
        fast.save_pretrained(folders[name])
        wide = {"hidden_size": 64, "intermediate_size": 128} if name == "llama" else {}  # as 4 bits want it
        model(config(**sizes | wide)).save_pretrained(folders[name])
    return folders
