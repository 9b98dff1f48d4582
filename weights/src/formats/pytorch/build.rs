//! What a pickle would call, and what it gives instead: dictionaries, storages and tensors.

use super::pickle::{ENTRY_BYTES, Fault, Pickles, VALUE_BYTES};
use super::values::{Storage, Value, View};
use crate::dtype::Dtype;

impl Pickles<'_> {
    /// What a pickle would call, and what it gives instead.
    pub(super) fn build(&mut self, op: u8) -> Result<(), Fault> {
        if op == 0x92 {
            // Arguments by name: no type that is known here has them.
            self.pop()?;
        }
        let (argument, made) = match op {
            b'Q' => (Value::None, self.persistent()?),
            _ => (self.pop()?, self.pop()?),
        };
        let made = match (op, made) {
            (b'Q', made) => made,
            (b'b', Value::Object(object)) => {
                let state = match argument {
                    // The state of a class with slots.
                    Value::List(list) => self.lists[list].first().copied().unwrap_or(argument),
                    other => other,
                };
                if self.objects[object].state.is_none() {
                    self.objects[object].state = Some(state);
                }
                made
            }
            // The attributes of a dictionary, such as the `_metadata` of a module's.
            (b'b', made) => made,
            (_, Value::Global(function)) => self.call(function, argument)?,
            _ => return Err("the pickle calls what is no function".into()),
        };
        self.push(made)
    }

    /// The values of a list, which are few in any sound file.
    fn list(&mut self, value: Value) -> Result<Vec<Value>, Fault> {
        let Value::List(list) = value else { return Ok(Vec::new()) };
        self.spend(VALUE_BYTES * self.lists[list].len())?;
        Ok(self.lists[list].clone())
    }

    fn call(&mut self, function: usize, argument: Value) -> Result<Value, Fault> {
        let (name, arguments) = (self.name(function), self.list(argument)?);
        match (name.as_str(), arguments.as_slice()) {
            (
                "torch._utils._rebuild_tensor"
                | "torch._utils._rebuild_tensor_v2"
                | "torch._utils._rebuild_tensor_v3",
                arguments,
            ) => self.tensor(&name, arguments),
            (
                "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state",
                [tensor, ..],
            ) => Ok(*tensor),
            (
                "torch._tensor._rebuild_from_type_v2",
                [Value::Global(function), _, inner @ Value::List(_), ..],
            ) if self.name(*function) != name => self.call(*function, *inner),
            ("collections.OrderedDict" | "builtins.dict", [items @ Value::List(_)]) => {
                let mut pairs = Vec::new();
                for item in self.list(*items)? {
                    match self.list(item)?.as_slice() {
                        &[key, value] => pairs.push((key, value)),
                        _ => return Err("a dictionary of what are no pairs".into()),
                    }
                }
                self.new_dict(pairs)
            }
            ("collections.OrderedDict" | "collections.defaultdict" | "builtins.dict", _) => {
                self.new_dict(Vec::new())
            }
            (
                "builtins.set" | "builtins.frozenset" | "__builtin__.set" | "__builtin__.frozenset",
                [items @ Value::List(_)],
            ) => Ok(*items),
            _ if self.holds_tensor(&arguments)? => {
                Err(format!("`{name}` holds a tensor in a form that is not known"))
            }
            _ => self.new_object(function),
        }
    }

    /// Whether arguments, or the lists among them, are tensors.
    fn holds_tensor(&mut self, arguments: &[Value]) -> Result<bool, Fault> {
        let mut all = arguments.to_vec();
        for argument in arguments {
            all.extend(self.list(*argument)?);
        }
        Ok(all.iter().any(|value| matches!(value, Value::Storage(_) | Value::Tensor(_))))
    }

    /// `("storage", type, key, device, elements[, (key of the view, offset, elements)])`
    fn persistent(&mut self) -> Result<Value, Fault> {
        let id = self.pop()?;
        let fields = self.list(id)?;
        let &[_, Value::Global(class), key, _, Value::Int(elements), ref view @ ..] =
            fields.as_slice()
        else {
            return Err("a reference to something else than a storage".into());
        };
        let key = match key {
            Value::Text(key) => self.str(key).into_owned(),
            Value::Int(key) => key.to_string(),
            _ => return Err("a storage without a name".into()),
        };
        let class = self.name(class);
        let dtype = match class.rsplit('.').next() {
            Some("UntypedStorage") => None,
            Some(name) => Some(
                Dtype::of_pytorch(name).ok_or_else(|| format!("type `{class}` is not known"))?,
            ),
            None => None,
        };
        let size = dtype.map_or(1, Dtype::size) as u64;
        let bytes = u64::try_from(elements).ok().and_then(|count| count.checked_mul(size));
        let bytes = bytes.ok_or_else(|| format!("a storage of {elements} elements"))?;
        let offset = match view {
            [Value::List(view), ..] => match self.lists[*view].as_slice() {
                [_, Value::Int(offset), ..] => u64::try_from(*offset).unwrap_or(u64::MAX),
                _ => return Err("a part of a storage without a place".into()),
            },
            _ => 0,
        };
        self.spend(ENTRY_BYTES + key.len())?;
        self.storages.push(Storage { key, dtype, bytes, offset });
        Ok(Value::Storage(self.storages.len() - 1))
    }

    fn lengths(&mut self, value: Value) -> Result<Vec<usize>, Fault> {
        let length = |value: Value| match value {
            Value::Int(length) => usize::try_from(length).ok(),
            _ => None,
        };
        let lengths = self.list(value)?.into_iter().map(length).collect::<Option<_>>();
        lengths.ok_or_else(|| "a shape of what are no lengths".into())
    }

    /// `(storage, offset, shape, strides, ..[, element type])`
    fn tensor(&mut self, function: &str, arguments: &[Value]) -> Result<Value, Fault> {
        let &[Value::Storage(storage), Value::Int(offset), shape, strides, ref rest @ ..] =
            arguments
        else {
            return Err(format!("`{function}` of something else than a storage"));
        };
        let (shape, strides) = (self.lengths(shape)?, self.lengths(strides)?);
        let dtype = match (rest.get(2), function.ends_with("_v3")) {
            (Some(Value::Global(dtype)), true) => {
                let name = self.name(*dtype);
                let known = name.rsplit('.').next().and_then(Dtype::of_pytorch);
                known.ok_or_else(|| format!("type `{name}` is not known"))?
            }
            _ => self.storages[storage].dtype.ok_or("a storage without a type")?,
        };
        self.spend(ENTRY_BYTES + 16 * (shape.len() + strides.len()))?;
        let offset = u64::try_from(offset).map_err(|_| format!("a tensor at {offset}"))?;
        self.views.push(View { storage, dtype, offset, shape, strides });
        Ok(Value::Tensor(self.views.len() - 1))
    }
}
