//! Pickles as data: a machine with a stack, as Python's, that calls nothing.
//!
//! Values are small and lie in tables, to which the others point by number: what a pickle repeats is not copied, lists
//! that hold themselves do no harm, and nothing is freed by recursion. Every value costs some of a budget, so that a
//! small file cannot fill the memory.

use std::collections::HashMap;

use super::values::{Object, Storage, Text, Value, View};

/// What is wrong with a pickle.
pub(super) type Fault = String;

/// Bytes charged for a value on the stack or in a container, with the room that growing tables keep free.
pub(super) const VALUE_BYTES: usize = 32;
/// Bytes charged for a container, an object or an entry of the memo.
pub(super) const ENTRY_BYTES: usize = 96;
/// Bytes that the values of any pickle may take, besides as many as its file has.
const FREE_BYTES: usize = 24 << 20;
/// Longest name of Python code.
const NAME_BYTES: usize = 256;

/// All that the pickles of a file hold.
pub(super) struct Pickles<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
    pub(super) lists: Vec<Vec<Value>>,
    pub(super) dicts: Vec<Vec<(Value, Value)>>,
    pub(super) globals: Vec<[Text; 2]>,
    pub(super) objects: Vec<Object>,
    pub(super) storages: Vec<Storage>,
    pub(super) views: Vec<View>,
    stack: Vec<Value>,
    /// Heights of the stack at each open mark.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    budget: usize,
}

impl<'a> Pickles<'a> {
    /// Pickles at the start of `bytes`, which are those of a file of `length`.
    pub(super) fn new(bytes: &'a [u8], length: u64) -> Self {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        Self {
            bytes,
            at: 0,
            lists: Vec::new(),
            dicts: Vec::new(),
            globals: Vec::new(),
            objects: Vec::new(),
            storages: Vec::new(),
            views: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            budget: FREE_BYTES.saturating_add(length),
        }
    }

    /// Reads the next pickle.
    pub(super) fn read(&mut self) -> Result<Value, Fault> {
        self.stack.clear();
        self.marks.clear();
        self.memo.clear();
        loop {
            match self.byte()? {
                b'.' => return self.pop(),
                op => self.step(op)?,
            }
        }
    }

    /// Takes from the budget.
    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), Fault> {
        let left = self.budget.checked_sub(bytes);
        self.budget = left.ok_or("the pickle holds more values than its file is large")?;
        Ok(())
    }

    fn step(&mut self, op: u8) -> Result<(), Fault> {
        match op {
            0x80 => match self.byte()? {
                0..=5 => Ok(()),
                version => Err(format!("pickle protocol {version}, expected at most 5")),
            },
            // Frames only tell how much to read at once.
            0x95 => self.take(8).map(|_| ()),
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'I' | b'L' | b'F' | b'J' | b'K' | b'M' | b'G' | 0x8a | 0x8b => {
                let number = self.number(op)?;
                self.push(number)
            }
            b'V' | b'X' | b'U' | b'T' | 0x8c | 0x8d => {
                let text = self.text(op)?;
                self.push(text)
            }
            b'B' | b'C' | 0x8e | 0x96 => {
                let length = self.length(op)?;
                self.take(length)?;
                self.push(Value::Other)
            }
            b'(' | b'0' | b'1' | b'2' => self.move_values(op),
            b')' | b']' | 0x8f | b't' | b'l' | 0x91 | 0x85..=0x87 | b'}' | b'd' => self.collect(op),
            b'a' | b'e' | 0x90 | b's' | b'u' => self.fill(op),
            b'g' | b'h' | b'j' | b'p' | b'q' | b'r' | 0x94 => self.remember(op),
            b'c' | 0x93 => self.global(op),
            b'R' | 0x81 | 0x92 | b'b' | b'Q' => self.build(op),
            _ => Err(format!("pickle opcode {op:#04x} at byte {} is not known", self.at - 1)),
        }
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Fault> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest.get(..length).ok_or("the pickle ends early")?;
        self.at += length;
        Ok(taken)
    }

    /// A number in the next `N` bytes, at most 8.
    fn unsigned<const N: usize>(&mut self) -> Result<u64, Fault> {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(self.take(N)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn line(&mut self) -> Result<Text, Fault> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or("the pickle ends early")?;
        let line = Text { start: self.at, length: end };
        self.at += end + 1;
        Ok(line)
    }

    /// The characters of a text; what is not UTF-8 is replaced.
    pub(super) fn str(&self, text: Text) -> std::borrow::Cow<'a, str> {
        String::from_utf8_lossy(&self.bytes[text.start..][..text.length])
    }

    fn number(&mut self, op: u8) -> Result<Value, Fault> {
        Ok(match op {
            b'J' => Value::Int(i64::from(self.unsigned::<4>()? as u32 as i32)),
            b'K' => Value::Int(i64::from(self.byte()?)),
            b'M' => Value::Int(self.unsigned::<2>()? as i64),
            b'G' => Value::Float(f64::from_bits(self.unsigned::<8>()?.swap_bytes())),
            0x8a | 0x8b => {
                let length = match op {
                    0x8a => u64::from(self.byte()?),
                    _ => self.unsigned::<4>()?,
                };
                integer(self.take(length as usize)?)
            }
            _ => {
                let line = self.line()?;
                let line = self.str(line);
                match (op, line.trim_end_matches(['\r', 'L'])) {
                    // How protocol 0 writes booleans.
                    (b'I', "00") => Value::Bool(false),
                    (b'I', "01") => Value::Bool(true),
                    (b'F', text) => text.parse().map_or(Value::Other, Value::Float),
                    (_, text) => text.parse().map_or(Value::Other, Value::Int),
                }
            }
        })
    }

    /// The length before a text or before bytes.
    fn length(&mut self, op: u8) -> Result<usize, Fault> {
        let length = match op {
            b'U' | b'C' | 0x8c => u64::from(self.byte()?),
            b'X' | b'T' | b'B' => self.unsigned::<4>()?,
            _ => self.unsigned::<8>()?,
        };
        usize::try_from(length).map_err(|_| format!("a text of {length} bytes"))
    }

    fn text(&mut self, op: u8) -> Result<Value, Fault> {
        if op == b'V' {
            return self.line().map(Value::Text);
        }
        let (length, start) = (self.length(op)?, self.at);
        self.take(length)?;
        Ok(Value::Text(Text { start, length }))
    }

    pub(super) fn push(&mut self, value: Value) -> Result<(), Fault> {
        self.spend(VALUE_BYTES)?;
        self.stack.push(value);
        Ok(())
    }

    /// How many values stand above the innermost mark.
    fn above(&self) -> usize {
        self.stack.len() - self.marks.last().copied().unwrap_or(0)
    }

    pub(super) fn pop(&mut self) -> Result<Value, Fault> {
        let value = if self.above() == 0 { None } else { self.stack.pop() };
        value.ok_or_else(|| "the pickle takes more values than it gave".into())
    }

    fn pop_marked(&mut self) -> Result<Vec<Value>, Fault> {
        let mark = self.marks.pop().ok_or("the pickle has no mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn move_values(&mut self, op: u8) -> Result<(), Fault> {
        match op {
            b'(' => {
                self.spend(VALUE_BYTES)?;
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'1' => self.pop_marked().map(|_| ()),
            b'0' if self.above() == 0 => self.pop_marked().map(|_| ()),
            b'0' => self.pop().map(|_| ()),
            _ => {
                let top = self.pop()?;
                self.push(top)?;
                self.push(top)
            }
        }
    }

    fn new_list(&mut self, values: Vec<Value>) -> Result<Value, Fault> {
        self.spend(ENTRY_BYTES + VALUE_BYTES * values.len())?;
        self.lists.push(values);
        Ok(Value::List(self.lists.len() - 1))
    }

    pub(super) fn new_dict(&mut self, pairs: Vec<(Value, Value)>) -> Result<Value, Fault> {
        self.spend(ENTRY_BYTES + 2 * VALUE_BYTES * pairs.len())?;
        self.dicts.push(pairs);
        Ok(Value::Dict(self.dicts.len() - 1))
    }

    pub(super) fn new_object(&mut self, class: usize) -> Result<Value, Fault> {
        self.spend(ENTRY_BYTES)?;
        self.objects.push(Object { class, state: None });
        Ok(Value::Object(self.objects.len() - 1))
    }

    /// Makes a container of what is on the stack; tuples and sets are lists here.
    fn collect(&mut self, op: u8) -> Result<(), Fault> {
        let made = match op {
            b')' | b']' | 0x8f => self.new_list(Vec::new())?,
            b't' | b'l' | 0x91 => {
                let values = self.pop_marked()?;
                self.new_list(values)?
            }
            0x85..=0x87 => {
                let count = usize::from(op - 0x84);
                let mut values = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                values.reverse();
                self.new_list(values)?
            }
            b'}' => self.new_dict(Vec::new())?,
            _ => {
                let values = self.pop_marked()?;
                self.new_dict(pairs(&values)?)?
            }
        };
        self.push(made)
    }

    /// Puts values into the container below them.
    fn fill(&mut self, op: u8) -> Result<(), Fault> {
        let values = match op {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_marked()?,
        };
        self.spend(VALUE_BYTES * values.len())?;
        let into = self.pop()?;
        self.push(into)?;
        let keyed = matches!(op, b's' | b'u');
        let into = match into {
            Value::Object(object) if self.objects[object].state.is_none() => {
                // A class of its own that is a dictionary or a list besides.
                let state = match keyed {
                    true => self.new_dict(Vec::new())?,
                    false => self.new_list(Vec::new())?,
                };
                self.objects[object].state = Some(state);
                state
            }
            Value::Object(object) => self.objects[object].state.unwrap_or(Value::None),
            other => other,
        };
        match into {
            Value::List(list) if !keyed => self.lists[list].extend(values),
            Value::Dict(dict) if keyed => self.dicts[dict].extend(pairs(&values)?),
            _ => return Err("the pickle puts values into what is no container".into()),
        }
        Ok(())
    }

    fn remember(&mut self, op: u8) -> Result<(), Fault> {
        let number = match op {
            b'h' | b'q' => u32::from(self.byte()?),
            b'j' | b'r' => self.unsigned::<4>()? as u32,
            0x94 => self.memo.len() as u32,
            _ => {
                let line = self.line()?;
                let line = self.str(line);
                line.trim().parse().map_err(|_| format!("`{line}` is no number of a value"))?
            }
        };
        if matches!(op, b'g' | b'h' | b'j') {
            let value = self.memo.get(&number).copied();
            return self.push(value.ok_or_else(|| format!("the pickle has no value {number}"))?);
        }
        let top = self.pop()?;
        self.push(top)?;
        self.spend(ENTRY_BYTES)?;
        self.memo.insert(number, top);
        Ok(())
    }

    fn global(&mut self, op: u8) -> Result<(), Fault> {
        let names = match op {
            b'c' => [self.line()?, self.line()?],
            _ => match [self.pop()?, self.pop()?] {
                [Value::Text(name), Value::Text(module)] => [module, name],
                _ => return Err("a Python name that is no text".into()),
            },
        };
        let length = names.iter().map(|text| text.length).sum::<usize>();
        if length > NAME_BYTES {
            return Err(format!("a Python name of {length} bytes, expected at most {NAME_BYTES}"));
        }
        self.spend(ENTRY_BYTES)?;
        self.globals.push(names);
        self.push(Value::Global(self.globals.len() - 1))
    }

    /// The full Python name of a class or function.
    pub(super) fn name(&self, global: usize) -> String {
        let [module, name] = self.globals[global];
        format!("{}.{}", self.str(module), self.str(name))
    }
}

/// Little-endian, in two's complement; what needs more than 64 bits is nothing that is read here.
fn integer(bytes: &[u8]) -> Value {
    let Some((rest, sign)) = bytes.split_at_checked(8).map_or(Some((bytes, &[][..])), Some) else {
        return Value::Other;
    };
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let fill = if negative { 0xff } else { 0 };
    let mut number = [fill; 8];
    number[..rest.len()].copy_from_slice(rest);
    let number = i64::from_le_bytes(number);
    match sign.iter().all(|byte| *byte == fill) && (number < 0) == negative {
        true => Value::Int(number),
        false => Value::Other,
    }
}

fn pairs(values: &[Value]) -> Result<Vec<(Value, Value)>, Fault> {
    match values.as_chunks() {
        (pairs, []) => Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect()),
        _ => Err("a key without a value".into()),
    }
}
