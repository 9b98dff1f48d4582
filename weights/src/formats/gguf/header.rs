//! What stands before the values: texts and numbers, and a table of the tensors.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read};
use std::ops::Range;

use super::kind::Kind;

/// How a file starts.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// Most bytes before the values; the vocabularies of language models take up to a fifth of that.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Most tensors, and most entries of the metadata. Where names are short, they take more memory than the file has.
const MAX_ENTRIES: u64 = 1 << 14;
/// Most bytes of a name; other programs allow tensors 63 or 127.
const MAX_NAME_BYTES: u64 = 1024;
/// Most dimensions of a stored tensor, and of its shape before it was reshaped.
const MAX_DIMENSIONS: u32 = 4;
const MAX_ORIGINAL_DIMENSIONS: u64 = 8;
/// Most arrays that stand in each other.
const MAX_DEPTH: usize = 8;
/// What the place of every tensor is a multiple of, unless the metadata says otherwise.
const ALIGNMENT: u64 = 32;
/// The metadata's entry that says otherwise.
const ALIGNMENT_KEY: &str = "general.alignment";
/// Entries with the shapes of tensors that were reshaped, since their rows were no whole blocks or since they have more
/// dimensions than a file can.
const ORIGINAL_SHAPE: &str = "comfy.gguf.orig_shape.";

/// Numbers that stand for the types of the metadata; others are in [`Header::value`].
const INT32: u32 = 5;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// What a file says of its tensors.
#[derive(Debug)]
pub(crate) struct Gguf {
    /// All tensors by name.
    pub(crate) tensors: BTreeMap<String, Tensor>,
    /// The metadata, numbers as texts; without arrays.
    pub(crate) metadata: BTreeMap<String, String>,
}

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tensor {
    /// Type of the elements.
    pub(crate) kind: Kind,
    /// Lengths of the dimensions, row by row: the last is that of neighbours; empty for a scalar.
    pub(crate) shape: Vec<usize>,
    /// Its bytes in the file.
    pub(crate) range: Range<u64>,
}

/// Reads and validates the header of a file of `whole` bytes, from its start.
///
/// No memory is taken for what the file is too short for.
///
/// # Errors
/// The rule that the file breaks, or why it cannot be read.
pub(crate) fn read(file: impl Read, whole: u64) -> Result<Gguf, String> {
    let most = whole.min(MAX_HEADER_BYTES);
    let mut header = Header { file: BufReader::new(file), at: 0, most };
    let [tensors, entries] = header.counts()?;
    let (mut metadata, mut shapes) = (BTreeMap::new(), BTreeMap::new());
    for _ in 0..entries {
        header.entry(&mut metadata, &mut shapes)?;
    }
    let alignment = alignment(&metadata)?;
    let mut infos = BTreeMap::new();
    for _ in 0..tensors {
        let name = header.name("the name of a tensor")?;
        let info = header.tensor().map_err(|reason| format!("`{name}`: {reason}"))?;
        add(&mut infos, name, info)?;
    }
    let start = header.at.next_multiple_of(alignment);
    for (name, info) in &mut infos {
        let placed =
            place(info, start, alignment, whole).and_then(|()| match shapes.remove(name) {
                Some(shape) => reshape(info, shape),
                None => Ok(()),
            });
        placed.map_err(|reason| format!("`{name}`: {reason}"))?;
    }
    refuse_overlaps(&infos)?;
    Ok(Gguf { tensors: infos, metadata })
}

/// The part of a file before the values.
struct Header<R> {
    file: BufReader<R>,
    /// Bytes that were read, and how many there can be.
    at: u64,
    most: u64,
}

impl<R: Read> Header<R> {
    /// Counts bytes that are about to be read.
    fn take(&mut self, length: u64, what: &str) -> Result<(), String> {
        let left = self.most - self.at;
        if length > left {
            let (at, most) = (self.at, self.most);
            return Err(format!(
                "{what} takes {length} bytes at byte {at}, {left} of {most} are left"
            ));
        }
        self.at += length;
        Ok(())
    }

    /// The next bytes.
    fn bytes<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        self.take(N as u64, what)?;
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    /// The next 4 bytes as a number.
    fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.bytes(what).map(u32::from_le_bytes)
    }

    /// The next 8 bytes as a number.
    fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.bytes(what).map(u64::from_le_bytes)
    }

    /// Passes over bytes.
    fn skip(&mut self, length: u64, what: &str) -> Result<(), String> {
        self.take(length, what)?;
        let skipped = io::copy(&mut (&mut self.file).take(length), &mut io::sink());
        match skipped.map_err(|error| error.to_string())? {
            found if found == length => Ok(()),
            found => Err(format!("{what} takes {length} bytes, only {found} are there")),
        }
    }

    /// A text with its length before it.
    fn text(&mut self, what: &str, most: u64) -> Result<String, String> {
        let length = self.u64(what)?;
        if length > most {
            return Err(format!("{what} takes {length} bytes, more than {most}"));
        }
        self.take(length, what)?;
        let mut bytes = vec![0; usize::try_from(length).map_err(|error| error.to_string())?];
        self.file.read_exact(&mut bytes).map_err(|error| error.to_string())?;
        String::from_utf8(bytes).map_err(|error| format!("{what} is not UTF-8: {error}"))
    }

    /// The name of a tensor or of an entry.
    fn name(&mut self, what: &str) -> Result<String, String> {
        self.text(what, MAX_NAME_BYTES)
    }

    /// The numbers of tensors and of entries of the metadata, after the version.
    fn counts(&mut self) -> Result<[u64; 2], String> {
        if self.bytes("the start")? != MAGIC {
            return Err("not a GGUF file".to_owned());
        }
        match self.u32("the version")? {
            2 | 3 => {}
            other if (1..=3).contains(&other.swap_bytes()) => {
                return Err("big-endian, only little-endian files are read".to_owned());
            }
            other => return Err(format!("version {other}, only 2 and 3 are read")),
        }
        let counts = [self.u64("the number of tensors")?, self.u64("the number of entries")?];
        match counts.iter().find(|count| **count > MAX_ENTRIES) {
            Some(count) => Err(format!("{count} tensors or entries, more than {MAX_ENTRIES}")),
            None => Ok(counts),
        }
    }

    /// Reads an entry of the metadata, and keeps a text, a number or an original shape.
    fn entry(
        &mut self,
        metadata: &mut BTreeMap<String, String>,
        shapes: &mut BTreeMap<String, Vec<usize>>,
    ) -> Result<(), String> {
        let key = self.name("the key of an entry")?;
        let within = |reason| format!("`{key}`: {reason}");
        let kind = self.u32("a type").map_err(within)?;
        if let Some(tensor) = key.strip_prefix(ORIGINAL_SHAPE) {
            let shape = self.original_shape(kind).map_err(within)?;
            return add(shapes, tensor.to_owned(), shape);
        }
        if kind == ARRAY {
            return self.skip_array(1).map_err(within);
        }
        let value = self.value(kind).map_err(within)?;
        add(metadata, key, value)
    }

    /// A text, a number or a truth, as a text.
    fn value(&mut self, kind: u32) -> Result<String, String> {
        match kind {
            0 => self.number(u8::from_le_bytes),
            1 => self.number(i8::from_le_bytes),
            2 => self.number(u16::from_le_bytes),
            3 => self.number(i16::from_le_bytes),
            4 => self.number(u32::from_le_bytes),
            INT32 => self.number(i32::from_le_bytes),
            6 => self.number(f32::from_le_bytes),
            7 => self.number(|[byte]: [u8; 1]| byte != 0),
            TEXT => self.text("a text", u64::MAX),
            10 => self.number(u64::from_le_bytes),
            11 => self.number(i64::from_le_bytes),
            12 => self.number(f64::from_le_bytes),
            other => Err(format!("type {other}, which is not known")),
        }
    }

    /// The next bytes as a number, in a text.
    fn number<const N: usize, T: ToString>(
        &mut self,
        number: impl Fn([u8; N]) -> T,
    ) -> Result<String, String> {
        self.bytes("a number").map(|bytes| number(bytes).to_string())
    }

    /// Passes over the rest of an array that is in `depth - 1` others.
    fn skip_array(&mut self, depth: usize) -> Result<(), String> {
        let (kind, count) = (self.u32("a type")?, self.u64("the length of an array")?);
        let size: u64 = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4 | INT32 | 6 => 4,
            10..=12 => 8,
            // Each text and each array takes bytes, which run out before any count does.
            TEXT => {
                return (0..count).try_for_each(|_| {
                    let length = self.u64("a text")?;
                    self.skip(length, "a text")
                });
            }
            ARRAY if depth < MAX_DEPTH => {
                return (0..count).try_for_each(|_| self.skip_array(depth + 1));
            }
            ARRAY => return Err(format!("more than {MAX_DEPTH} arrays in each other")),
            other => return Err(format!("an array of type {other}, which is not known")),
        };
        self.skip(size.saturating_mul(count), "an array")
    }

    /// An array of the lengths of dimensions.
    fn original_shape(&mut self, kind: u32) -> Result<Vec<usize>, String> {
        if kind != ARRAY || self.u32("a type")? != INT32 {
            return Err("not an array of 32-bit integers".to_owned());
        }
        let count = self.u64("the length of an array")?;
        if count > MAX_ORIGINAL_DIMENSIONS {
            return Err(format!("{count} dimensions, more than {MAX_ORIGINAL_DIMENSIONS}"));
        }
        let length = |number| usize::try_from(number).map_err(|_| format!("a length of {number}"));
        (0..count).map(|_| length(i32::from_le_bytes(self.bytes("a length")?))).collect()
    }

    /// What stands after the name of a tensor; its place is from the start of the values.
    fn tensor(&mut self) -> Result<Tensor, String> {
        let dimensions = self.u32("the number of dimensions")?;
        if dimensions > MAX_DIMENSIONS {
            return Err(format!("{dimensions} dimensions, more than {MAX_DIMENSIONS}"));
        }
        let mut shape = Vec::with_capacity(dimensions as usize);
        for _ in 0..dimensions {
            let length = self.u64("a length")?;
            shape.push(usize::try_from(length).map_err(|_| format!("a length of {length}"))?);
        }
        // The first is that of neighbours.
        shape.reverse();
        let kind = Kind::of(self.u32("a type")?)?;
        let start = self.u64("a place")?;
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(kind.block()) {
            return Err(format!("rows of {row}, in blocks of {} for type {kind}", kind.block()));
        }
        let bytes = (elements(&shape)? / kind.block()).checked_mul(kind.bytes());
        let end = bytes.and_then(|bytes| start.checked_add(bytes as u64));
        let end = end.ok_or_else(|| format!("shape {shape:?}, more bytes than can be counted"))?;
        Ok(Tensor { kind, shape, range: start..end })
    }
}

/// Adds what may be there once.
fn add<T>(map: &mut BTreeMap<String, T>, name: String, value: T) -> Result<(), String> {
    match map.contains_key(&name) {
        true => Err(format!("`{name}` is given twice")),
        false => {
            map.insert(name, value);
            Ok(())
        }
    }
}

/// The number of elements, of which there is at least one.
fn elements(shape: &[usize]) -> Result<usize, String> {
    if shape.contains(&0) {
        return Err(format!("shape {shape:?}, without elements"));
    }
    let product = shape.iter().try_fold(1usize, |product, length| product.checked_mul(*length));
    product.ok_or_else(|| format!("shape {shape:?}, more elements than can be counted"))
}

/// What the place of every tensor is a multiple of.
fn alignment(metadata: &BTreeMap<String, String>) -> Result<u64, String> {
    let Some(text) = metadata.get(ALIGNMENT_KEY) else { return Ok(ALIGNMENT) };
    let alignment = text.parse::<u32>().ok().filter(|number| number.is_power_of_two());
    alignment
        .map(u64::from)
        .ok_or_else(|| format!("`{ALIGNMENT_KEY}` is {text}, expected a power of two"))
}

/// Makes the place of a tensor that in the file.
fn place(info: &mut Tensor, start: u64, alignment: u64, whole: u64) -> Result<(), String> {
    let Range { start: from, end: to } = info.range;
    if !from.is_multiple_of(alignment) {
        return Err(format!("place {from}, expected a multiple of {alignment}"));
    }
    match start.checked_add(to) {
        Some(end) if end <= whole => {
            info.range = start + from..end;
            Ok(())
        }
        end => {
            let end = end.unwrap_or(u64::MAX);
            Err(format!("ends at byte {end}, but the file has only {whole}: it may be cut off"))
        }
    }
}

/// Gives a tensor the shape that it had before it was stored.
fn reshape(info: &mut Tensor, shape: Vec<usize>) -> Result<(), String> {
    if elements(&shape)? != elements(&info.shape)? {
        return Err(format!("stored with shape {:?}, which cannot be {shape:?}", info.shape));
    }
    info.shape = shape;
    Ok(())
}

/// Tensors may not share bytes; each has some.
fn refuse_overlaps(tensors: &BTreeMap<String, Tensor>) -> Result<(), String> {
    let mut ranges: Vec<_> = tensors.iter().map(|(name, info)| (info.range.start, name)).collect();
    ranges.sort_unstable();
    for pair in ranges.windows(2) {
        let [(_, name), (start, next)] = pair else { continue };
        if tensors[*name].range.end > *start {
            return Err(format!("`{name}` and `{next}` share bytes"));
        }
    }
    Ok(())
}
