//! What makes a run the run that it is: settings, data and models that must stay as they were when it goes on.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::config::TrainConfig;

/// What a run starts and learns from, by content, each under the name of the setting that names its place.
pub(super) type Sources = BTreeMap<String, Value>;

/// Settings that may change, since they change no weights: when it ends, and what it writes how often.
const FREE: [&str; 6] =
    ["steps", "checkpoint_every", "sample_every", "sample_prompts", "snapshot_every", "log_every"];

/// Number of images or trajectories among the sources of a run.
pub(super) fn examples(sources: &Sources) -> Option<u64> {
    let data = sources.get("data").and_then(|data| data["images"].as_u64());
    data.or_else(|| sources.get("trajectories")?["count"].as_u64())
}

/// Everything that must stay: the settings but for those that are free, each path replaced by what is there. In a
/// checkpoint of an early version there is nothing of that, and paths are compared.
pub(super) fn identity(config: &TrainConfig, sources: Option<&Sources>) -> Value {
    let config = match sources {
        Some(_) => config.clone().without_paths(),
        None => TrainConfig { data: None, trajectories: None, ..config.clone() },
    };
    let mut value = serde_json::to_value(config).expect("settings serialise");
    let settings = value.as_object_mut().expect("settings are a table");
    FREE.iter().for_each(|key| drop(settings.remove(*key)));
    for (name, source) in sources.into_iter().flatten() {
        put(settings, name, source.clone());
    }
    value
}

/// Puts a value at a dotted name.
fn put(table: &mut Map<String, Value>, name: &str, value: Value) {
    match name.split_once('.') {
        None => drop(table.insert(name.to_owned(), value)),
        Some((first, rest)) => {
            if let Some(inner) = table.get_mut(first).and_then(Value::as_object_mut) {
                put(inner, rest, value);
            }
        }
    }
}
