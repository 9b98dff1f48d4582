//! What differs between two descriptions, for people.

use serde::Serialize;
use serde_json::Value;

/// Differences that a message names.
const NAMED: usize = 5;
/// Most values of a list that a message shows.
const SHOWN: usize = 8;

/// Every value that differs: its dotted name, what it was, what it is.
pub(crate) fn differences(was: &impl Serialize, is: &impl Serialize) -> Vec<[String; 3]> {
    let mut found = Vec::new();
    compare("", &value(was), &value(is), &mut found);
    found
}

/// The first of these differences in words, or `None` where there are none.
pub(crate) fn in_words(differences: &[[String; 3]]) -> Option<String> {
    let named = differences.iter().take(NAMED);
    let named: Vec<String> =
        named.map(|[name, was, is]| format!("{name} was {was}, is {is}")).collect();
    match differences.len() {
        0 => None,
        count if count > NAMED => Some(format!("{}; and {} more", named.join("; "), count - NAMED)),
        _ => Some(named.join("; ")),
    }
}

fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).expect("a description serialises")
}

/// Whether two values are the same; a number that was read from JSON may be off by its last bits.
fn is_same(was: &Value, is: &Value) -> bool {
    match (was.as_f64(), is.as_f64()) {
        (Some(a), Some(b)) if was.is_f64() && is.is_f64() => {
            (a - b).abs() <= 4.0 * f64::EPSILON * a.abs().max(b.abs())
        }
        _ => was == is,
    }
}

fn compare(name: &str, was: &Value, is: &Value, found: &mut Vec<[String; 3]>) {
    let inner = |key: &str| match name {
        "" => key.to_owned(),
        _ => format!("{name}.{key}"),
    };
    match (was, is) {
        (Value::Object(was), Value::Object(is)) => {
            let new = is.keys().filter(|key| !was.contains_key(*key));
            for key in was.keys().chain(new) {
                let [was, is] = [was, is].map(|map| map.get(key).unwrap_or(&Value::Null));
                compare(&inner(key), was, is, found);
            }
        }
        (Value::Array(was), Value::Array(is)) if was.len() == is.len() => {
            for (i, (was, is)) in was.iter().zip(is).enumerate() {
                compare(&inner(&i.to_string()), was, is, found);
            }
        }
        _ if !is_same(was, is) => found.push([name.to_owned(), text(was), text(is)]),
        _ => (),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "not given".to_owned(),
        Value::Array(values) if values.len() > SHOWN => format!("a list of {}", values.len()),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_differs_is_named_with_both_values() {
        let was = json!({ "a": { "b": 0.1, "c": [1, 2] }, "d": "x", "e": null, "same": [0.3, 1.0 / 3.0] });
        let is = json!({ "a": { "b": 0.2, "c": [1, 3] }, "e": 4, "same": [0.3, 0.33333333333333337], "f": vec![1; 9] });
        let found = differences(&was, &is).into_iter().map(|found| found.join(" "));
        let expected = [
            "a.b 0.1 0.2",
            "a.c.1 2 3",
            "d \"x\" not given",
            "e not given 4",
            "f not given a list of 9",
        ];
        assert_eq!(found.collect::<Vec<_>>(), expected);
        let words = in_words(&differences(&was, &is)).expect("differences");
        assert!(words.starts_with("a.b was 0.1, is 0.2; a.c.1 was 2, is 3"), "{words}");
        assert_eq!(in_words(&differences(&was, &was)), None);
    }
}
