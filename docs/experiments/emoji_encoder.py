"""Makes the small text encoder of the emoji model: a T5 that was taught by a sentence encoder.

    python emoji_encoder.py MINILM CAPTIONS.jsonl OUTPUT

MINILM is the folder of all-MiniLM-L6-v2 (BERT: 6 blocks of width 384, Apache-2.0). OUTPUT gets a T5 encoder of width 256 with 2
blocks, and a tokenizer with those word pieces of MiniLM's that are in ASCII and common, or in the captions. Its table starts
as the principal components of MiniLM's; then its states learn, through one linear layer that is thrown away, to be MiniLM's
states of the same tokens, on captions and on words at random.

Needs torch, transformers and safetensors.
"""

import argparse
import json
import pathlib
import random
import re
import time

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, T5Config, T5EncoderModel

WIDTH, BLOCKS, HEADS, INNER = 256, 2, 4, 512
# Pieces of MiniLM's vocabulary are in the order of how common they are.
COMMON = 16000


def pruned(text, words):
    """The tokenizer with fewer pieces, and the old id of each."""
    tokenizer = json.loads(text)
    old = tokenizer["model"]["vocab"]
    used = set(words)
    special = {token["content"] for token in tokenizer["added_tokens"] if token["content"] != "[MASK]"}

    def keeps(piece, at):
        if piece in special or piece in used:
            return True
        plain = piece.removeprefix("##")
        return plain.isascii() and bool(re.fullmatch(r"[a-z0-9]+|[!-~]", plain)) and (at < COMMON or len(plain) == 1)

    pieces = [piece for piece, at in sorted(old.items(), key=lambda item: item[1]) if keeps(piece, at)]
    new = {piece: at for at, piece in enumerate(pieces)}
    tokenizer["model"]["vocab"] = new
    tokenizer["added_tokens"] = [
        {**token, "id": new[token["content"]]} for token in tokenizer["added_tokens"] if token["content"] in new
    ]
    for token in tokenizer["post_processor"]["special_tokens"].values():
        token["ids"] = [new[name] for name in token["tokens"]]
    tokenizer["truncation"] = tokenizer["padding"] = None
    return json.dumps(tokenizer, ensure_ascii=False), [old[piece] for piece in pieces]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minilm", type=pathlib.Path)
    parser.add_argument("captions")
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=96)
    asked = parser.parse_args()
    torch.manual_seed(0)
    rng = random.Random(0)

    captions = sorted({text for line in open(asked.captions) for text in json.loads(line)["text"]})
    whole = Tokenizer.from_file(str(asked.minilm / "tokenizer.json"))
    whole.no_padding()
    whole.no_truncation()
    words = {piece for encoded in whole.encode_batch(captions) for piece in encoded.tokens}
    text, old = pruned((asked.minilm / "tokenizer.json").read_text(), words)
    tokenizer = Tokenizer.from_str(text)
    old = torch.tensor(old)
    print(len(old), "pieces,", len(captions), "captions")

    state = {name: value.float() for name, value in load_file(asked.minilm / "model.safetensors").items()}
    config = BertConfig(**json.loads((asked.minilm / "config.json").read_text()))
    teacher = BertModel(config, add_pooling_layer=False).eval()
    missing, _ = teacher.load_state_dict(state, strict=False)
    assert not missing, missing

    student = T5EncoderModel(
        T5Config(
            vocab_size=len(old), d_model=WIDTH, d_kv=WIDTH // HEADS, d_ff=INNER, num_layers=BLOCKS, num_heads=HEADS,
            feed_forward_proj="gated-gelu", dropout_rate=0.0, relative_attention_max_distance=32,
        )
    )
    table = state["embeddings.word_embeddings.weight"][old]
    _, _, axes = torch.pca_lowrank(table, q=WIDTH, niter=8)
    table = (table - table.mean(0)) @ axes
    student.shared.weight.data = table / table.std()
    head = torch.nn.Linear(WIDTH, config.hidden_size)
    every = [piece for piece in tokenizer.get_vocab() if piece.isalpha()]
    parameters = [*student.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=asked.steps, pct_start=0.1)

    def batch():
        texts = [rng.choice(captions) for _ in range(asked.batch * 2 // 3)]
        while len(texts) < asked.batch:
            parts = [rng.choice(every) for _ in range(rng.randint(1, 4))] + [rng.choice(captions)]
            rng.shuffle(parts)
            texts.append(" ".join(parts))
        # Of one length, in so far as there are enough.
        encoded = sorted(tokenizer.encode_batch(texts), key=len)
        longest = max(map(len, encoded))
        ids = torch.zeros(len(encoded), longest, dtype=torch.long)
        mask = torch.zeros(len(encoded), longest, dtype=torch.long)
        for row, own in enumerate(encoded):
            ids[row, : len(own)] = torch.tensor(own.ids)
            mask[row, : len(own)] = 1
        return ids, mask

    def loss(ids, mask):
        with torch.no_grad():
            expected = teacher(input_ids=old[ids], attention_mask=mask).last_hidden_state
        found = head(student(input_ids=ids, attention_mask=mask).last_hidden_state)
        real = mask.bool()
        return (found - expected)[real].square().mean() / expected[real].var()

    start = time.time()
    for step in range(1, asked.steps + 1):
        value = loss(*batch())
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}, share of the variance that is missed {value.item():.4f}, {time.time() - start:.0f} s", flush=True)

    asked.output.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in student.state_dict().items() if "embed_tokens" not in name}
    save_file(weights, asked.output / "model.safetensors")
    (asked.output / "config.json").write_text(json.dumps({**student.config.to_dict(), "architectures": ["T5EncoderModel"]}, indent=1))
    (asked.output / "tokenizer.json").write_text(text)


if __name__ == "__main__":
    main()
