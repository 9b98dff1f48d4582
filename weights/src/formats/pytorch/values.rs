//! What a pickle holds, and the way to the tensors in it.

use std::collections::{BTreeMap, BTreeSet};

use super::pickle::{Fault, Pickles};
use crate::dtype::Dtype;

/// Keys under which training checkpoints hold the weights, the best first.
const WEIGHT_KEYS: [&str; 14] = [
    "ema",
    "ema_model",
    "model_ema",
    "ema_state_dict",
    "params_ema",
    "shadow",
    "model",
    "state_dict",
    "model_state_dict",
    "net",
    "module",
    "generator",
    "params",
    "weights",
];
/// Key of averages in a list, without names (diffusers' `EMAModel`).
const NAMELESS: &str = "shadow_params";
/// First parts of the Python names that checkpoints of tensors and settings use.
const KNOWN_GLOBALS: [&str; 12] = [
    "torch",
    "numpy",
    "collections",
    "argparse.Namespace",
    "pathlib",
    "_codecs.encode",
    "typing",
    "omegaconf",
    "lightning",
    "lightning_fabric",
    "pytorch_lightning",
    "datetime",
];
/// Python's own names that stand for data; the others are functions, such as `eval`.
const KNOWN_BUILTINS: [&str; 12] = [
    "bool",
    "bytearray",
    "bytes",
    "complex",
    "dict",
    "float",
    "frozenset",
    "int",
    "list",
    "set",
    "str",
    "tuple",
];
/// Most containers around a tensor.
const DEPTH: usize = 32;
/// Most dictionaries of a training checkpoint around its weights.
const WRAPPERS: usize = 4;
/// Most attributes of a module.
const ATTRIBUTES: usize = 1000;

/// A text, by its place in the pickle.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text {
    pub(super) start: usize,
    pub(super) length: usize,
}

/// A value of a pickle; containers and the rest by their number.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Text),
    List(usize),
    Dict(usize),
    Global(usize),
    Object(usize),
    Storage(usize),
    Tensor(usize),
    /// Bytes, and numbers that need more than 64 bits.
    Other,
}

/// An instance of a class that is not interpreted.
#[derive(Debug)]
pub(super) struct Object {
    /// Number of its global.
    pub(super) class: usize,
    pub(super) state: Option<Value>,
}

/// A block of elements that tensors are views of.
#[derive(Debug)]
pub(super) struct Storage {
    pub(super) key: String,
    pub(super) dtype: Option<Dtype>,
    /// Its length.
    pub(super) bytes: u64,
    /// Where it starts in the one that it is a part of, in elements.
    pub(super) offset: u64,
}

/// A tensor.
#[derive(Debug)]
pub(super) struct View {
    pub(super) storage: usize,
    pub(super) dtype: Dtype,
    /// Where it starts in its storage, in elements.
    pub(super) offset: u64,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

impl<'a> Pickles<'a> {
    fn raw(&self, text: Text) -> &'a [u8] {
        &self.bytes[text.start..][..text.length]
    }

    fn is(&self, value: Value, text: &str) -> bool {
        matches!(value, Value::Text(found) if self.raw(found) == text.as_bytes())
    }

    /// The value of a key in a dictionary: of equal keys, Python keeps the last.
    fn get(&self, dict: usize, key: &str) -> Option<Value> {
        self.dicts[dict].iter().rev().find(|(found, _)| self.is(*found, key)).map(|pair| pair.1)
    }

    /// A list of keys.
    pub(super) fn keys(&mut self, list: Value) -> Result<Vec<String>, Fault> {
        let Value::List(list) = list else { return Err("no list of storages".into()) };
        let mut keys = Vec::new();
        for i in 0..self.lists[list].len() {
            let Value::Text(key) = self.lists[list][i] else {
                return Err("a storage without a name".into());
            };
            self.spend(key.length + size_of::<String>())?;
            keys.push(self.str(key).into_owned());
        }
        Ok(keys)
    }

    /// The parameters, buffers and modules of a module.
    fn module(&self, object: usize) -> Option<[usize; 3]> {
        let Some(Value::Dict(state)) = self.objects[object].state else { return None };
        if self.dicts[state].len() > ATTRIBUTES {
            return None;
        }
        let table = |name| match self.get(state, name) {
            Some(Value::Dict(table)) => Some(table),
            _ => None,
        };
        Some([table("_parameters")?, table("_buffers")?, table("_modules")?])
    }

    /// The entries of a dictionary, or of an object with attributes; those of a module are what its state has.
    fn entries(&mut self, value: Value) -> Result<Vec<(Value, Value)>, Fault> {
        let dict = match value {
            Value::Dict(dict) => dict,
            Value::Object(object) => match (self.objects[object].state, self.module(object)) {
                (Some(Value::Dict(state)), Some(tables)) => {
                    return self.module_entries(state, tables);
                }
                (Some(Value::Dict(state)), None) => state,
                _ => return Ok(Vec::new()),
            },
            _ => return Ok(Vec::new()),
        };
        self.spend(size_of::<[Value; 2]>() * self.dicts[dict].len())?;
        Ok(self.dicts[dict].clone())
    }

    fn module_entries(
        &mut self,
        state: usize,
        [parameters, buffers, modules]: [usize; 3],
    ) -> Result<Vec<(Value, Value)>, Fault> {
        let passing = match self.get(state, "_non_persistent_buffers_set") {
            Some(Value::List(names)) => self.lists[names].as_slice(),
            _ => &[],
        };
        let text = |value: &Value| match value {
            Value::Text(text) => Some(self.raw(*text)),
            _ => None,
        };
        let passing: BTreeSet<&[u8]> = passing.iter().filter_map(text).collect();
        let lasting = |(name, _): &&(Value, Value)| text(name).is_none_or(|n| !passing.contains(n));
        let [parameters, modules] = [parameters, modules].map(|dict| &self.dicts[dict]);
        let buffers = self.dicts[buffers].iter().filter(lasting);
        let found: Vec<_> = parameters.iter().chain(buffers).chain(modules).copied().collect();
        self.spend(size_of::<[Value; 2]>() * found.len())?;
        Ok(found)
    }

    /// Looks at all that a value refers to, each once, up to the first that `stop` is found in.
    fn find<T>(&self, root: Value, stop: impl Fn(Value) -> Option<T>) -> Option<T> {
        let mut seen = BTreeSet::new();
        let mut open = vec![root];
        while let Some(value) = open.pop() {
            if let Some(found) = stop(value) {
                return Some(found);
            }
            match value {
                Value::List(list) if seen.insert((0, list)) => open.extend(&self.lists[list]),
                Value::Dict(dict) if seen.insert((1, dict)) => {
                    open.extend(self.dicts[dict].iter().flat_map(|(key, value)| [*key, *value]));
                }
                Value::Object(object) if seen.insert((2, object)) => {
                    open.extend(self.objects[object].state);
                }
                _ => (),
            }
        }
        None
    }

    /// The first name of Python code, other than what checkpoints need, that a value refers to.
    pub(super) fn unknown_global(&self, root: Value) -> Option<String> {
        self.find(root, |value| {
            let global = match value {
                Value::Global(global) => global,
                // A model has a class of its own.
                Value::Object(object) if self.module(object).is_none() => {
                    self.objects[object].class
                }
                _ => return None,
            };
            Some(self.name(global)).filter(|name| !is_known(name))
        })
    }

    /// The weights in a training checkpoint, or the value itself.
    pub(super) fn weights(&self, root: Value) -> Value {
        let holds_tensor = |value: &Value| {
            let is_tensor = |value| matches!(value, Value::Tensor(_)).then_some(());
            self.find(*value, is_tensor).is_some()
        };
        let mut at = root;
        for _ in 0..WRAPPERS {
            let Value::Dict(dict) = at else { break };
            let inner = WEIGHT_KEYS.iter().filter_map(|key| self.get(dict, key));
            let mut inner = inner.filter(|inner| match *inner {
                Value::Dict(dict) => self.get(dict, NAMELESS).is_none(),
                inner => matches!(inner, Value::Object(_)),
            });
            match inner.find(holds_tensor) {
                Some(inner) => at = inner,
                None => break,
            }
        }
        at
    }

    /// The tensors in a value, by the keys and numbers that lead to them.
    pub(super) fn tensors(&mut self, root: Value) -> Result<BTreeMap<String, usize>, Fault> {
        let mut found = BTreeMap::new();
        let mut open = vec![(String::new(), root, 0)];
        while let Some((path, value, depth)) = open.pop() {
            let inner = match value {
                Value::Tensor(tensor) => {
                    found.insert(path, tensor);
                    continue;
                }
                Value::List(list) => {
                    self.spend(size_of::<[Value; 2]>() * self.lists[list].len())?;
                    let number = |i: usize| Value::Int(i as i64);
                    let items = self.lists[list].iter().enumerate();
                    items.map(|(i, item)| (number(i), *item)).collect()
                }
                value => self.entries(value)?,
            };
            if depth == DEPTH && !inner.is_empty() {
                return Err(format!("containers more than {DEPTH} deep"));
            }
            // The last of equal keys comes last.
            for (key, value) in inner.into_iter().rev() {
                if !matches!(
                    value,
                    Value::List(_) | Value::Dict(_) | Value::Object(_) | Value::Tensor(_)
                ) {
                    continue;
                }
                let length = if let Value::Text(text) = key { text.length } else { 20 };
                self.spend(path.len() + length + size_of::<(String, Value, usize)>())?;
                let key = match key {
                    Value::Text(text) => self.str(text).into_owned(),
                    Value::Int(number) => number.to_string(),
                    _ => continue,
                };
                let whole = if path.is_empty() { key } else { format!("{path}.{key}") };
                open.push((whole, value, depth + 1));
            }
        }
        Ok(found)
    }

    /// Numbers and texts of the top level and of `args`, as texts.
    pub(super) fn texts(&mut self, root: Value) -> Result<BTreeMap<String, String>, Fault> {
        let mut found = BTreeMap::new();
        for (name, value) in self.entries(root)? {
            let inner = if self.is(name, "args") { self.entries(value)? } else { Vec::new() };
            let inner = inner.into_iter().map(|(name, value)| ("args.", name, value));
            for (prefix, name, value) in inner.chain([("", name, value)]) {
                let Value::Text(name) = name else { continue };
                let length = if let Value::Text(text) = value { text.length } else { 24 };
                self.spend(name.length + length + size_of::<[String; 2]>())?;
                let text = match value {
                    Value::Bool(value) => value.to_string(),
                    Value::Int(value) => value.to_string(),
                    Value::Float(value) => value.to_string(),
                    Value::Text(value) => self.str(value).into_owned(),
                    _ => continue,
                };
                found.insert(format!("{prefix}{}", self.str(name)), text);
            }
        }
        Ok(found)
    }
}

fn is_known(name: &str) -> bool {
    let builtin = name.strip_prefix("builtins.").or(name.strip_prefix("__builtin__."));
    let within = |prefix: &&str| {
        name == *prefix || name.strip_prefix(*prefix).is_some_and(|rest| rest.starts_with('.'))
    };
    match builtin {
        Some(builtin) => KNOWN_BUILTINS.contains(&builtin),
        None => KNOWN_GLOBALS.iter().any(within),
    }
}
