//! Tokens of texts against the transformers and sentencepiece libraries.

use std::path::Path;

use pyrograph::tokenizer::Tokenizer;
use serde_json::Value;

use crate::util::{Case, cases, json};

fn open(folder: &Path) -> Tokenizer {
    Tokenizer::open(folder).unwrap_or_else(|error| panic!("{error}"))
}

fn prompts(case: &Value) -> impl Iterator<Item = &Value> {
    case["prompts"].as_array().expect("prompts").iter()
}

fn ids(value: &Value) -> Vec<usize> {
    let ids = value.as_array().expect("tokens").iter();
    ids.map(|id| id.as_u64().expect("a token") as usize).collect()
}

/// The tokens of a padded row.
fn row(case: &Case, [ids, mask]: [&str; 2], number: usize, width: usize) -> Vec<usize> {
    let (ids, mask) = (case.ids(ids), case.ids(mask));
    let all = number * width..(number + 1) * width;
    all.filter(|&i| mask[i] == 1).map(|i| ids[i]).collect()
}

#[test]
fn pieces_of_t5_are_those_of_the_reference() {
    for folder in cases("spiece-tokenizer") {
        let (case, settings) = (Case::open(&folder), json(&folder.join("case.json")));
        let (tokenizer, limit) =
            (open(&folder), settings["max_length"].as_u64().expect("a length"));
        let limit = limit as usize;
        for (i, prompt) in prompts(&settings).enumerate() {
            let text = prompt["text"].as_str().expect("a text");
            let whole = tokenizer.encode(text, usize::MAX).expect("tokens");
            assert_eq!((whole.ids, whole.cut), (ids(&prompt["ids"]), None), "{text}");
            let cut = tokenizer.encode(text, limit).expect("tokens");
            assert_eq!(cut.ids, row(&case, ["input_ids", "attention_mask"], i, limit), "{text}");
            assert_eq!(cut.cut.as_deref(), prompt["truncated_part"].as_str(), "{text}");
        }
    }
}

#[test]
fn joined_letters_of_clip_are_those_of_the_reference() {
    const LIMIT: usize = 77;
    for folder in cases("clip-tokenizer") {
        let (case, settings) = (Case::open(&folder), json(&folder.join("case.json")));
        for (part, key) in [("clip-l", "ids"), ("clip-g", "ids_clip_g")] {
            let tokenizer = open(&folder.join(part));
            for (i, prompt) in prompts(&settings).enumerate() {
                let text = prompt["text"].as_str().expect("a text");
                let whole = tokenizer.encode(text, usize::MAX).expect("tokens");
                assert_eq!((whole.ids, whole.cut), (ids(&prompt[key]), None), "{part}: {text}");
                let mut found = tokenizer.encode(text, LIMIT).expect("tokens").ids;
                found.resize(LIMIT, tokenizer.pad());
                let expected = case.ids(&format!("{part}.input_ids"));
                assert_eq!(found, expected[i * LIMIT..(i + 1) * LIMIT], "{part}: {text}");
            }
        }
    }
}

#[test]
fn a_tokenizer_file_is_read_as_a_whole_and_faults_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = |words: &[&str]| {
        let error = Tokenizer::open(folder.path()).map(drop).expect_err("none").to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    refused(&["tokenizer.json", "spiece.model", "merges.txt"]);
    for bytes in [b"\x0a\xff\xff\xff\xff\x0f".as_slice(), b"", b"{}"] {
        std::fs::write(folder.path().join("spiece.model"), bytes).expect("written");
        refused(&["spiece.model"]);
    }
    std::fs::write(folder.path().join("tokenizer.json"), "{\"model\": 3}").expect("written");
    refused(&["tokenizer.json"]);
    // Two words, one of which is told by its sign; its own lengths do not matter.
    let text = r#"{"version": "1.0", "truncation": {"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"?": 0, "red": 1, "cat": 2}, "unk_token": "?"}}"#;
    std::fs::write(folder.path().join("tokenizer.json"), text).expect("written");
    let found = open(folder.path()).encode("red red cat dog", 10).expect("tokens");
    assert_eq!(found.ids, [1, 1, 2, 0]);
}
