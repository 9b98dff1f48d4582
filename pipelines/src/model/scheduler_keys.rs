//! Keys of a scheduler's configuration: those of its class, with their defaults.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::hooks::Notice;

/// Parameters of the schedulers of diffusers 0.42.1 and their defaults, by class; made by
/// `tests/fixtures/make_schedulers.py`.
const DEFAULTS: &str = include_str!("schedulers.json");

/// Keys that say nothing where another one turns them off.
const DEPENDENT: [&str; 19] = [
    "base_image_seq_len",
    "base_shift",
    "beta_end",
    "beta_schedule",
    "beta_start",
    "clip_sample",
    "clip_sample_range",
    "dynamic_thresholding_ratio",
    "flow_shift",
    "max_image_seq_len",
    "max_shift",
    "num_train_timesteps",
    "sample_max_value",
    "sigma_max",
    "sigma_min",
    "solver_type",
    "steps_offset",
    "time_shift_type",
    "timestep_spacing",
];

/// A configuration that cannot be followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the scheduler's configuration is {0}, expected an object")]
    Object(Value),
    #[error("scheduler `{}` has no counterpart here", .0.escape_debug())]
    Class(String),
    #[error("scheduler key {key} is {found}, expected {expected}")]
    Type { key: String, found: Value, expected: &'static str },
    #[error(
        "scheduler key {key} is {found}, which has no counterpart here; the default is {default}"
    )]
    Value { key: String, found: Value, default: Value },
    #[error("scheduler key `{}` is not one of diffusers", .key.escape_debug())]
    Unknown { key: String },
    #[error("scheduler keys {first} and {second} are both set, expected one of them")]
    Both { first: &'static str, second: &'static str },
    #[error("trained_betas of the scheduler has {found} values, num_train_timesteps is {steps}")]
    Betas { found: usize, steps: usize },
    #[error(
        "rescale_betas_zero_snr of the scheduler is true and prediction_type epsilon, which says nothing at pure noise"
    )]
    PureNoise,
    #[error("variance_type of the scheduler is learned_range, the network predicts no variance")]
    NoVariance,
}

/// The keys that are given, and those that were read.
pub(super) struct Keys {
    pub(super) class: String,
    given: Map<String, Value>,
    /// Of every class.
    classes: Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
}

impl Keys {
    pub(super) fn new(config: Value) -> Result<Self, Fault> {
        let Value::Object(mut given) = config else { return Err(Fault::Object(config)) };
        let class = match given.get("_class_name") {
            Some(Value::String(class)) => class.clone(),
            found => {
                let found = found.cloned().unwrap_or(Value::Null);
                return Err(Fault::Type {
                    key: "_class_name".into(),
                    found,
                    expected: "the name of a class",
                });
            }
        };
        // These were defaults when the file was written, and stay the class's.
        if let Some(Value::Array(unset)) = given.get("_use_default_values").cloned() {
            unset.iter().filter_map(Value::as_str).for_each(|key| drop(given.remove(key)));
        }
        given.retain(|key, _| !key.starts_with('_'));
        let classes: Map<String, Value> =
            serde_json::from_str(DEFAULTS).expect("the file of defaults is JSON");
        match classes.contains_key(&class) {
            true => Ok(Self { class, given, classes, read: RefCell::default() }),
            false => Err(Fault::Class(class)),
        }
    }

    /// The default of a key that the class has.
    fn default(&self, key: &str) -> Option<&Value> {
        self.classes.get(&self.class)?.get(key)
    }

    /// The value of a key that the class has: the given one, or its default.
    fn value(&self, key: &str) -> Option<&Value> {
        let default = self.default(key)?;
        self.read.borrow_mut().insert(key.to_owned());
        Some(self.given.get(key).unwrap_or(default))
    }

    fn wrong(key: &str, found: &Value, expected: &'static str) -> Fault {
        Fault::Type { key: key.to_owned(), found: found.clone(), expected }
    }

    /// Whether a key is set; not in a class without it.
    pub(super) fn flag(&self, key: &str) -> Result<bool, Fault> {
        match self.value(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(found) => Err(Self::wrong(key, found, "true or false")),
        }
    }

    /// A text; `None` in a class without it, and for `null`.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, Fault> {
        match self.value(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(found) => Err(Self::wrong(key, found, "a text")),
        }
    }

    /// A count; `None` in a class without it.
    pub(super) fn count(&self, key: &str) -> Result<Option<usize>, Fault> {
        let Some(found) = self.value(key) else { return Ok(None) };
        let count = found.as_u64().and_then(|count| usize::try_from(count).ok());
        count.map(Some).ok_or_else(|| Self::wrong(key, found, "a whole number, 0 or more"))
    }

    /// A count of a key that the class must have.
    pub(super) fn required_count(&self, key: &str) -> Result<usize, Fault> {
        self.count(key)?.ok_or_else(|| self.unknown(key))
    }

    /// A number of a key that the class must have.
    pub(super) fn required(&self, key: &str) -> Result<f64, Fault> {
        let found = self.value(key).ok_or_else(|| self.unknown(key))?;
        found.as_f64().ok_or_else(|| Self::wrong(key, found, "a number"))
    }

    /// A `β` of a key that the class must have.
    pub(super) fn required_beta(&self, key: &str) -> Result<f64, Fault> {
        let beta = self.required(key)?;
        match beta > 0.0 && beta < 1.0 {
            true => Ok(beta),
            false => Err(Self::wrong(key, &Value::from(beta), "above 0 and below 1")),
        }
    }

    /// Takes a key for one that was not read.
    pub(super) fn idle(&self, key: &str) {
        self.read.borrow_mut().remove(key);
    }

    /// A list of numbers, if there is one.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>, Fault> {
        match self.value(key) {
            None | Some(Value::Null) => Ok(None),
            Some(found) => {
                let list =
                    found.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
                list.map(Some).ok_or_else(|| Self::wrong(key, found, "a list of numbers"))
            }
        }
    }

    /// A number of whatever class, if it is given.
    pub(super) fn stray(&self, key: &str) -> Result<Option<f64>, Fault> {
        self.read.borrow_mut().insert(key.to_owned());
        match self.given.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(found) => {
                found.as_f64().map(Some).ok_or_else(|| Self::wrong(key, found, "a number"))
            }
        }
    }

    /// Refuses any other value of a key, if the class has it.
    pub(super) fn expect(&self, key: &str, expected: &Value) -> Result<(), Fault> {
        match self.value(key) {
            Some(found) if !same(found, expected) => Err(self.unknown(key)),
            _ => Ok(()),
        }
    }

    /// The fault of a value that cannot be followed.
    pub(super) fn unknown(&self, key: &str) -> Fault {
        let default = self.default(key).cloned().unwrap_or(Value::Null);
        let found = self.given.get(key).cloned().unwrap_or_else(|| default.clone());
        Fault::Value { key: key.to_owned(), found, default }
    }

    /// What was not read: refused if it says something, or told of if diffusers does not read it either. With another
    /// solver than the class's own, keys of the solver are let go, as that is told, too.
    pub(super) fn finish(&self, other_solver: bool) -> Result<Vec<Notice>, Fault> {
        let (read, classes) = (self.read.borrow(), &self.classes);
        let mut notices = Vec::new();
        for (key, found) in self.given.iter().filter(|(key, _)| !read.contains(*key)) {
            if !classes.values().any(|class| class.get(key).is_some()) {
                return Err(Fault::Unknown { key: key.clone() });
            }
            let own = self.default(key);
            let is_default = match own {
                Some(default) => same(found, default),
                // Schedulers hand on the keys of those that they were made from.
                None => classes.values().filter_map(|class| class.get(key)).any(|d| same(found, d)),
            };
            if is_default || (own.is_some() && other_solver) {
                continue;
            }
            if own.is_some() && !DEPENDENT.contains(&&**key) {
                return Err(self.unknown(key));
            }
            let (class, key) = (self.class.clone(), key.clone());
            notices.push(Notice::IdleKey { class, key, value: found.to_string() });
        }
        Ok(notices)
    }
}

/// Equal, whatever the type of number.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| a == b)
}
