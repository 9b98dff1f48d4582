"""Writes a first input of every fuzz target to `corpus/`, from the fixtures and by hand. Needs no packages."""

import io
import json
import math
import pickle
import struct
import sys
import types
import zipfile
import zlib
from pathlib import Path

HERE = Path(__file__).parent
REPO = HERE.parent.parent
GOLDENS = HERE.parent / "fixtures/goldens"
MODEL = REPO / "assets/models/emoji-class"


def put(target, *parts):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    parts = [part if isinstance(part, bytes) else part.encode() for part in parts]
    (folder / "seed").write_bytes(b"\0".join(parts))


def safetensors(**shapes):
    """Tensors of zeros."""
    header, data = {}, b""
    for name, shape in shapes.items():
        values = bytes(4 * math.prod(shape))
        ends = [len(data), len(data) + len(values)]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": ends}
        data += values
    header["__metadata__"] = {"format": "pt"}
    header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def pytorch():
    """What `torch.save({"model": {"a": torch.ones(2)}})` writes, without torch."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})
    exec("def _rebuild_tensor_v2(): pass", utils.__dict__)
    sys.modules |= {"torch": torch, "torch._utils": utils}
    storage = object()

    class Tensor:
        def __reduce__(self):
            return utils._rebuild_tensor_v2, (storage, 0, (2,), (1,), False, {})

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", 2) if value is storage else None

    text = io.BytesIO()
    Pickler(text, protocol=2).dump({"model": {"a": Tensor()}, "args": {"lr": 0.1}})
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", text.getvalue())
        archive.writestr("a/data/0", struct.pack("<2f", 1, 1))
    return file.getvalue()


def gguf():
    """A row of 32 numbers in blocks of 8 bits, and a text."""

    def string(text):
        return struct.pack("<Q", len(text)) + text.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    head += string("general.architecture") + struct.pack("<I", 8) + string("t5encoder")
    head += string("a") + struct.pack("<IQIQ", 1, 32, 8, 0)
    return head + bytes(-len(head) % 32) + bytes(34)


def png(**texts):
    """A black pixel with texts."""
    chunks = [(b"IHDR", struct.pack(">2I5B", 1, 1, 8, 2, 0, 0, 0))]
    chunks += [(b"tEXt", f"{key}\0{text}".encode("latin1")) for key, text in texts.items()]
    chunks += [(b"IDAT", zlib.compress(bytes(4))), (b"IEND", b"")]
    file = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        file += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return file


def text(*path):
    return Path(*path).read_text()


shard = safetensors(a=[1], b=[2, 2])
put("safetensors", shard)
put("pytorch", pytorch())
put("gguf", gguf())
put("shards", json.dumps({"weight_map": {name: "1.safetensors" for name in "ab"}}), shard)
manifest = json.loads(text(MODEL, "model.json"))
put("model", json.dumps(manifest["config"]))
part = {"file": "net.safetensors", "bytes": len(shard), "sha256": "0" * 64, "dtype": "f32"}
put("bundle", json.dumps(manifest | {"parts": {"net": part}}), shard)
settings = {
    "seed": 0,
    "steps": 2,
    "sampler": {"ddim": {"eta": 0.0}},
    "spacing": None,
    "guidance": {"scale": 1.5, "channels": "all", "interval": None, "rescale": 0.0},
    "size": None,
    "batch": 1,
    "vae_tile": 64,
}
record = {"version": "0", "model": "m", "weights": "w", "classes": [0], "device": "cpu", "dtype": "f32"}
put("png", png(parameters="cat", pyrograph=json.dumps(record | {"settings": settings})))
pipeline = GOLDENS / "dit-pipeline"
names = ["model_index", "transformer/config", "scheduler/scheduler_config", "vae/config"]
put("diffusers", *(text(pipeline, f"{name}.json") for name in names))
put("train", text(MODEL.parent, "emoji-class.toml"), "model.hidden=128", "batch=16")
put("names", "8:12,4:8/8")
spec = {
    "teacher": "t",
    "settings": settings,
    "after": [1, 2],
    "points": "states",
    "shape": [1, 1, 1],
    "classes": 2,
    "count": 1,
    "shard": 1,
}
first = safetensors(**{"000000000": [2, 1, 1, 1], "labels": [1]})
put("trajectories", json.dumps(spec), first)
