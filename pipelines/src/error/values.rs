//! Values of files and settings that are not what is expected: which key, what it is, what it should be.

use std::path::Path;

use serde_json::error::Category;

use super::Error;

/// Most characters of a value that are shown.
const SHOWN: usize = 60;

impl Error {
    /// What is wrong with the text of a JSON file.
    pub(crate) fn json(path: &Path, text: &str, source: serde_json::Error) -> Self {
        match in_json(text, &source) {
            Some(reason) => Self::Value { path: path.to_owned(), reason },
            None => Self::Json { path: path.to_owned(), source },
        }
    }
}

/// What a reader of values says, with the key in question and its value, where that is known.
pub(crate) fn in_words(said: &str, key: Option<&str>, value: Option<String>) -> Option<String> {
    let within = key.map_or_else(String::new, |key| format!("`{key}` "));
    if let Some(rest) = said.strip_prefix("missing field ") {
        return Some(format!("there is no {rest}"));
    }
    let (found, expected) = said.split_once(", expected ").unwrap_or((said, ""));
    if let Some(rest) = found.strip_prefix("unknown field ") {
        return Some(format!("unknown key {rest}, expected {expected}"));
    }
    let value = value.map(|value| match value.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}..", &value[..end]),
        None => value,
    });
    match expected {
        "" => None,
        expected => Some(format!("{within}is {}, expected {}", value?, kind(expected))),
    }
}

/// What the reader calls a kind of value, for people.
fn kind(expected: &str) -> String {
    let numbers = ["usize", "u64", "u32", "u16", "u8"];
    if numbers.contains(&expected) {
        return "a whole number, 0 or more".into();
    }
    if let Some(count) = ["an array of length ", "a tuple of size "]
        .iter()
        .find_map(|start| expected.strip_prefix(start))
    {
        return format!("a list of {count}");
    }
    match expected {
        "f64" | "f32" => "a number",
        "a sequence" => "a list",
        "a string" | "path string" => "a text",
        "a boolean" => "true or false",
        "struct variant" => "a table, its name with its settings",
        _ if expected == "a map" || expected.starts_with("struct ") => "a table",
        _ => expected,
    }
    .into()
}

/// The words for a value of JSON; `None` where the text is not JSON, or the place of the value not known.
fn in_json(text: &str, error: &serde_json::Error) -> Option<String> {
    if error.classify() != Category::Data || error.line() == 0 {
        return None;
    }
    let said = error.to_string();
    let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(said, _)| said);
    let lines = text.split_inclusive('\n').take(error.line() - 1);
    let end = lines.map(str::len).sum::<usize>() + error.column();
    let before = text.get(..end.min(text.len()))?;
    let (key, at) = last_key(before)?;
    in_words(said, Some(key), Some(value(&text[at..])))
}

/// The last key of an object, and where its value starts.
fn last_key(text: &str) -> Option<(&str, usize)> {
    text.rmatch_indices(':').find_map(|(colon, _)| {
        let quoted = text[..colon].trim_end().strip_suffix('"')?;
        let start = quoted.rfind('"')? + 1;
        Some((&quoted[start..], colon + 1))
    })
}

/// The value at the start of a text, as it is written.
fn value(text: &str) -> String {
    let text = text.trim_start();
    let end = match text.chars().next() {
        Some('"') => text[1..].find('"').map(|end| end + 2),
        Some('[') => text.find(']').map(|end| end + 1),
        Some('{') => return "a table".into(),
        _ => text.find([',', '}', ']', '\n']),
    };
    text[..end.unwrap_or(text.len())].trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only what cannot be read is looked at")]
    struct Inner {
        #[serde(default)]
        count: usize,
        #[serde(default)]
        scale: f64,
        #[serde(default)]
        pair: [f64; 2],
        #[serde(default)]
        name: String,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only what cannot be read is looked at")]
    struct Outer {
        inner: Inner,
    }

    #[test]
    fn the_key_the_value_and_what_is_expected_are_named() {
        for (inner, expected) in [
            (r#""name": "a: b", "count": -2"#, "`count` is -2, expected a whole number, 0 or more"),
            (
                "\"count\":\n 2.5,\n \"scale\": 1",
                "`count` is 2.5, expected a whole number, 0 or more",
            ),
            (r#""scale": null, "count": 1"#, "`scale` is null, expected a number"),
            (r#""pair": [1]"#, "`pair` is [1], expected a list of 2"),
            (r#""scale": "x:\",y""#, "`scale` is \"x:\\\", expected a number"),
            (r#""name": {"a": 1}"#, "`name` is a table, expected a text"),
            (
                r#""cuont": 3"#,
                "unknown key `cuont`, expected one of `count`, `scale`, `pair`, `name`",
            ),
        ] {
            let text = format!("{{ \"inner\": {{ {inner} }} }}");
            let error = serde_json::from_str::<Outer>(&text).expect_err(inner);
            assert_eq!(
                Error::json(Path::new("a"), &text, error).to_string(),
                format!("a: {expected}")
            );
        }
        let error = |text: &str| serde_json::from_str::<Outer>(text).expect_err(text);
        let none = Error::json(Path::new("a"), r#"{"x": 1}"#, error(r#"{"x": 1}"#));
        assert_eq!(none.to_string(), "a: there is no `inner`");
        assert!(matches!(Error::json(Path::new("a"), "{", error("{")), Error::Json { .. }));
    }
}
