"""Cuts the training set of the shipped model out of a sheet of emoji.

    pip install pillow
    python make_emoji.py SHEET.png SHEET.jsonl OUTPUT_FOLDER

The sheet holds RGBA emoji of 64x64 pixels in rows of 108; line i of the JSONL names the emoji at
`index` i with `style`, `label`, `concept`, `group`, `subgroup` and `tone`. It is made from the npm
packages @lobehub/fluent-emoji-3d (256x256 WebP, reduced), @iconify/json (sets fluent-emoji-flat, noto,
noto-v1, rasterised) and emojibase-data (labels, groups). In fluent-emoji-3d the skin tones medium-light
and medium are swapped; the sheet has them right.
"""

import json
import pathlib
import re
import sys

from PIL import Image

SIDE, COLUMNS = 64, 108

ROUND_FACES = {"smiling", "affectionate", "neutral / skeptical", "with tongue", "concerned", "sleepy"}
BALLS = "soccer ball|basketball|baseball|softball|tennis|volleyball|rugby football|american football|bowling|yarn|pool 8 ball"
CARS = "automobile|taxi|police car|ambulance|fire engine|minibus|bus$|trolleybus|delivery truck|articulated lorry|pickup truck|racing car|sport utility|tractor"
FISH = "fish|shark|dolphin|whale|octopus|crab|lobster|shrimp|squid|jellyfish|spiral shell|seal|coral"
BOOKS = "book|notebook|ledger"
ANIMALS = "face$|^(lion|fox|bear|panda|koala|polar bear|hamster|raccoon)$"


def label_matches(pattern):
    return lambda e: re.search(pattern, e["label"]) is not None


def label_lacks(pattern):
    return lambda e: re.search(pattern, e["label"]) is None


def subgroup(*names):
    return lambda e: e["subgroup"] in names


def both(a, b):
    return lambda e: a(e) and b(e)


CLASSES = {
    "animal": both(subgroup("mammals"), label_matches(ANIMALS)),
    "ball": both(subgroup("sports", "games & hobbies", "arts & crafts"), label_matches(BALLS)),
    "bird": both(subgroup("birds"), label_lacks("feather")),
    "book": both(subgroup("books & paper"), both(label_matches(BOOKS), label_lacks("bookmark"))),
    "building": both(subgroup("buildings", "religious buildings"), label_lacks("brick|rock|wood|crane|construction|kaaba|stadium")),
    "car": both(subgroup("ground transportation"), both(label_matches(CARS), label_lacks("light"))),
    "cat": subgroup("cat faces"),
    "clock": both(subgroup("time"), label_matches("o’clock|-thirty")),
    "fish": both(subgroup("marine life"), label_matches(FISH)),
    "flower": subgroup("flowers"),
    "fruit": subgroup("fruit"),
    "hand": both(subgroup("fingers open"), label_matches("raised hand|hand with fingers|vulcan|waving")),
    "heart": both(subgroup("hearts"), label_matches("heart$")),
    "moon": both(subgroup("weather"), label_matches("moon")),
    "smiley": both(subgroup(*ROUND_FACES), lambda e: e["group"] == "smileys & emotion"),
    "thumb": both(subgroup("fingers closed"), label_matches("thumbs")),
}


def main(sheet_path, list_path, output):
    sheet = Image.open(sheet_path).convert("RGBA")
    with open(list_path, encoding="utf-8") as lines:
        emoji = [json.loads(line) for line in lines]
    for name, belongs in CLASSES.items():
        folder = pathlib.Path(output) / name
        folder.mkdir(parents=True, exist_ok=True)
        for e in filter(belongs, emoji):
            x, y = e["index"] % COLUMNS * SIDE, e["index"] // COLUMNS * SIDE
            slug = re.sub(r"[^a-z0-9]+", "-", e["label"].lower()).strip("-")
            tile = sheet.crop((x, y, x + SIDE, y + SIDE))
            tile.save(folder / f"{slug}-{e['style']}.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])
