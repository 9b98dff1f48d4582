"""Makes a folder of captioned pictures for `pyrograph train text` from a sheet of transparent emoji.

    python emoji_texts.py SHEET.png LIST.jsonl concepts.txt OUTPUT

SHEET holds pictures of 64x64 in rows of 108, LIST a line for each: index, style, label, concept, group, tone, tags; concepts.txt
names the concepts to show. Every picture is laid several times on a background of a named colour, each time with captions that say
what there is to see. Some pairs of a concept and a style are kept out of OUTPUT/train and put into OUTPUT/held_out.

Needs numpy and Pillow.
"""

import argparse
import colorsys
import json
import pathlib
import random

import numpy as np
from PIL import Image

SIDE, INNER, COLUMNS = 64, 56, 108
TONES = {1: "light", 2: "medium-light", 3: "medium", 4: "medium-dark", 5: "dark"}
STYLES = {
    "3d": ["3d", "3d render", "glossy 3d"],
    "flat": ["flat", "flat colors", "flat vector"],
    "noto": ["noto", "soft gradient", "noto style"],
    "blob": ["blob", "old blob", "blob style"],
}
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (16, 16, 18),
    "gray": (150, 150, 152),
    "red": (214, 60, 56),
    "orange": (240, 150, 60),
    "yellow": (250, 220, 100),
    "green": (96, 176, 104),
    "blue": (84, 140, 220),
    "purple": (150, 104, 200),
    "pink": (246, 170, 196),
}
# Copies of each picture: people and all others.
PEOPLE, OTHERS = 1, 6
WHITE = 0.45
HELD_OUT = 150


def laid(picture, colour):
    """A transparent picture in the middle of a colour."""
    # Pillow weighs the colours by their opacity while it resizes, and undoes that after.
    image = Image.fromarray(picture, "RGBA").resize((INNER, INNER), Image.LANCZOS)
    image = np.asarray(image, np.float32)
    canvas, border = np.zeros((SIDE, SIDE, 4), np.float32), (SIDE - INNER) // 2
    canvas[border : border + INNER, border : border + INNER] = image
    alpha = canvas[..., 3:] / 255
    return (canvas[..., :3] * alpha + (1 - alpha) * np.array(colour)).round().astype(np.uint8)


def shade(rng, name):
    """A colour like that of a name."""
    if name == "white":
        return BACKGROUNDS[name]
    hue, light, full = colorsys.rgb_to_hls(*(value / 255 for value in BACKGROUNDS[name]))
    hue, light = hue + rng.gauss(0, 0.012), light + rng.gauss(0, 0.03)
    light, full = min(max(light, 0.0), 1.0), min(max(full + rng.gauss(0, 0.05), 0.0), 1.0)
    return tuple(255 * value for value in colorsys.hls_to_rgb(hue % 1, light, full))


def article(word):
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def captions(rng, row, background, count):
    """What can be said of a picture."""
    name = row["concept"].replace(":", ",")
    tone = TONES.get(row["tone"]) if isinstance(row["tone"], int) else None
    tags = [tag for tag in row["tags"] if tag.lower() not in name.lower() and not tag.isdigit()]
    made = []
    for _ in range(count):
        style = rng.choice(STYLES[row["style"]])
        what = name if not tone else rng.choice([f"{name}, {tone} skin tone", f"{name} with {tone} skin", f"{tone}-skinned {name}"])
        ground = rng.choice([f"{background} background", f"on {background}", f"on {article(background)} background"])
        if background == "white" and rng.random() < 0.5:
            ground = None
        said = rng.random()
        shown = style if said < 0.75 else None
        extra = rng.sample(tags, min(len(tags), rng.choice([0, 0, 0, 1, 2])))
        order = rng.random()
        if order < 0.35:
            parts = [what, *extra, shown, ground]
        elif order < 0.6:
            start = f"{shown} emoji of {what}" if shown else f"emoji of {what}"
            parts = [f"{start} {ground}" if ground and ground.startswith("on ") else start, *extra]
            if ground and not ground.startswith("on "):
                parts.append(ground)
        elif order < 0.8:
            parts = [f"{shown} {what}" if shown else what, *extra, ground]
        elif order < 0.92 or not tags:
            parts = [shown, what, ground, *extra]
        else:
            # By other words alone.
            parts = [*rng.sample(tags, min(len(tags), 3)), tone and f"{tone} skin", shown, ground]
        made.append(", ".join(part for part in parts if part).lower())
    return sorted(set(made))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheet")
    parser.add_argument("list")
    parser.add_argument("concepts", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--level", type=int, default=6, help="compression of the PNG files, 0 to 9")
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    sheet = np.asarray(Image.open(asked.sheet).convert("RGBA"))
    rows = [json.loads(line) for line in open(asked.list)]
    # Couples of two tones are one in twenty pictures and say little that is new.
    rows = [row for row in rows if not isinstance(row["tone"], list)]
    styles = {}
    for row in rows:
        styles.setdefault(row["concept"], set()).add(row["style"])
    several = sorted(concept for concept, own in styles.items() if len(own) >= 3)
    kept_out = {(concept, rng.choice(sorted(styles[concept]))) for concept in rng.sample(several, HELD_OUT)}
    shown = asked.concepts.read_text().splitlines()
    if unknown := sorted(set(shown) - set(styles)):
        parser.error(f"no pictures of {', '.join(unknown)}")
    rows = [row for row in rows if row["concept"] in shown]
    lists = {"train": [], "held_out": []}
    for part in lists:
        (asked.output / part).mkdir(parents=True, exist_ok=True)

    def show(rng, row, part, copy, background):
        y, x = divmod(row["index"], COLUMNS)
        image = laid(sheet[y * SIDE : (y + 1) * SIDE, x * SIDE : (x + 1) * SIDE], shade(rng, background))
        name = f"{row['index']:05}-{copy}.png"
        Image.fromarray(image).save(asked.output / part / name, compress_level=asked.level)
        tone = f" with {TONES[row['tone']]} skin" if row["tone"] else ""
        prompt = f"{STYLES[row['style']][0]} emoji of {row['concept'].replace(':', ',')}{tone} on {article(background)} background"
        told = {"prompt": prompt.lower(), "style": row["style"], "concept": row["concept"], "tone": row["tone"], "background": background}
        lists[part].append({"file_name": name, "text": captions(rng, row, background, 4), **told})

    for row in rows:
        part = "held_out" if (row["concept"], row["style"]) in kept_out else "train"
        copies = 1 if part == "held_out" else PEOPLE if row["group"] == "people & body" else OTHERS
        for copy in range(copies):
            show(rng, row, part, copy, "white" if rng.random() < WHITE else rng.choice(sorted(BACKGROUNDS)))
    # What is kept out is few: each on all other backgrounds, too. The draws for training are as without.
    rng = random.Random(asked.seed + 1)
    for row, told in zip([row for row in rows if (row["concept"], row["style"]) in kept_out], lists["held_out"][:]):
        for copy, background in enumerate(sorted(set(BACKGROUNDS) - {told["background"]}), 1):
            show(rng, row, "held_out", copy, background)
    for part, found in lists.items():
        with open(asked.output / part / "metadata.jsonl", "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in found)
        print(part, len(found), "pictures,", len({text for line in found for text in line["text"]}), "captions")


if __name__ == "__main__":
    main()
