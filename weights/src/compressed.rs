//! Matrices that stay in the bytes of a file, to be unpacked part by part.

use std::ops::Range;
use std::path::PathBuf;

use crate::checkpoint::{Checkpoint, unreadable};
use crate::dtype::{Dtype, put_f32};
use crate::error::Result;
use crate::formats::gguf::Kind;
use crate::layout::{Part, Rule, Transform};
use crate::tensor::{TensorInfo, Values};

/// A matrix `[in, out]` of a file, whose numbers have 16 bits or fewer.
#[derive(Debug)]
pub struct Filed {
    widths: [usize; 2],
    stored: Order<Place>,
}

/// The same in memory, as it is stored.
#[derive(Debug)]
pub struct Compressed {
    widths: [usize; 2],
    stored: Order<Vec<u8>>,
}

/// The order of the numbers, and where they are.
#[derive(Debug)]
enum Order<T> {
    /// Those of one output after those of another, in the order of the outputs.
    ByOutput(Vec<Run<T>>),
    /// Those of one input after those of another, each for itself.
    ByInput(Form, T),
}

/// Outputs that stand next to each other in a tensor.
#[derive(Debug)]
struct Run<T> {
    /// The first of them.
    first: usize,
    outputs: usize,
    form: Form,
    of: T,
}

/// Where a run is in a file.
#[derive(Debug)]
struct Place {
    path: PathBuf,
    name: String,
    values: Values,
    /// Rows of the tensor.
    rows: Range<usize>,
    /// Bytes of each, and those of them that are wanted.
    row: usize,
    wanted: Range<usize>,
}

impl Place {
    fn new(
        checkpoint: &Checkpoint,
        name: &str,
        rows: Range<usize>,
        row: usize,
        wanted: Range<usize>,
    ) -> Result<Self> {
        let values = checkpoint.info(name)?.values.clone();
        let (path, name) = (checkpoint.path().to_owned(), name.to_owned());
        Ok(Self { path, name, values, rows, row, wanted })
    }

    /// Bytes that are wanted.
    fn bytes(&self) -> usize {
        self.rows.len() * self.wanted.len()
    }

    fn read(&self) -> Result<Vec<u8>> {
        let Self { path, name, values, rows, row, wanted } = self;
        let bytes = values.part((rows.start * row) as u64, rows.len() * row);
        let bytes = bytes.map_err(|source| unreadable(path, name, source))?;
        if wanted.len() == *row {
            return Ok(bytes);
        }
        let mut part = Vec::with_capacity(self.bytes());
        for row in bytes.chunks_exact((*row).max(1)) {
            part.extend_from_slice(&row[wanted.clone()]);
        }
        Ok(part)
    }
}

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    /// Each for itself, to be multiplied by one factor.
    Alone(Dtype, f32),
    /// In blocks.
    Blocks(Kind),
}

impl Form {
    /// That of a tensor; none for one that is better read as it is.
    fn of(checkpoint: &Checkpoint, name: &str, info: &TensorInfo) -> Result<Option<Self>> {
        Ok(match &info.values {
            Values::Blocks(_, _, kind) => Some(Self::Blocks(*kind)),
            Values::Range(..) if info.dtype.is_float() && info.dtype.size() <= 2 => {
                Some(Self::Alone(info.dtype, checkpoint.factor(name)?))
            }
            _ => None,
        })
    }

    /// Numbers that are never apart, and their bytes.
    fn block(self) -> [usize; 2] {
        match self {
            Self::Alone(dtype, _) => [1, dtype.size()],
            Self::Blocks(kind) => [kind.block(), kind.bytes()],
        }
    }

    /// The bytes of numbers that are whole blocks.
    fn bytes(self, numbers: &Range<usize>) -> Range<usize> {
        let [block, bytes] = self.block();
        numbers.start / block * bytes..numbers.end / block * bytes
    }

    fn unpack(self, bytes: &[u8], values: &mut [f32]) {
        match self {
            Self::Blocks(kind) => kind.unpack(bytes, values),
            Self::Alone(dtype, factor) => {
                put_f32(bytes, dtype, values);
                if factor != 1.0 {
                    values.iter_mut().for_each(|value| *value *= factor);
                }
            }
        }
    }
}

/// These rows of a table, in f32, one after the other; no others are read where each lies in one piece.
pub(crate) fn read_rows(checkpoint: &Checkpoint, name: &str, rows: &[usize]) -> Result<Vec<f32>> {
    let info = checkpoint.info(name)?;
    let width: usize = info.shape.iter().skip(1).product();
    let form = match info.values {
        Values::Range(..) => Some(Form::Alone(info.dtype, checkpoint.factor(name)?)),
        _ => Form::of(checkpoint, name, info)?,
    };
    let Some(form) = form.filter(|form| width.is_multiple_of(form.block()[0])) else {
        let whole = checkpoint.read_f32(name)?.0;
        return Ok(rows.iter().flat_map(|row| &whole[row * width..][..width]).copied().collect());
    };
    let (mut values, bytes) = (vec![0.0; rows.len() * width], form.bytes(&(0..width)).end);
    for (row, values) in rows.iter().zip(values.chunks_exact_mut(width.max(1))) {
        form.unpack(&checkpoint.bytes(name, row * bytes, bytes)?, values);
    }
    Ok(values)
}

/// A tensor `[out, in]` that a parameter comes from.
struct Source<'a> {
    name: &'a str,
    form: Form,
    sides: [usize; 2],
}

impl Filed {
    /// A parameter of this shape, which suits the rule; none where a tensor that it comes from is of more bits, or not of
    /// whole blocks. No values are read.
    pub(crate) fn of(
        checkpoint: &Checkpoint,
        rule: &Rule,
        shape: &[usize],
    ) -> Result<Option<Self>> {
        let &[inputs, outputs] = shape else { return Ok(None) };
        let widths = [inputs, outputs];
        if rule.is_copy() {
            let name = &rule.sources[0];
            let form = Form::of(checkpoint, name, checkpoint.info(name)?)?;
            let Some(form @ Form::Alone(..)) = form else { return Ok(None) };
            let row = form.bytes(&(0..outputs)).end;
            let place = Place::new(checkpoint, name, 0..inputs, row, 0..row)?;
            return Ok(Some(Self { widths, stored: Order::ByInput(form, place) }));
        }
        if rule.transform != Transform::Transpose {
            return Ok(None);
        }
        let mut sources = Vec::new();
        for name in &rule.sources {
            let info = checkpoint.info(name)?;
            let Some(form) = Form::of(checkpoint, name, info)? else { return Ok(None) };
            sources.push(Source { name, form, sides: [info.shape[0], info.shape[1]] });
        }
        let (mut wanted, mut first) = (0..inputs, 0);
        match &rule.part {
            Some(Part::Inputs(range)) => wanted = range.clone(),
            Some(Part::Outputs(range)) => first = range.start,
            None => (),
        }
        let whole = |source: &Source<'_>| {
            let [block, _] = source.form.block();
            [source.sides[1], wanted.start, wanted.end].iter().all(|end| end.is_multiple_of(block))
        };
        if !sources.iter().all(whole) {
            return Ok(None);
        }
        // Where each output of ours is: a source, and a row of it.
        let rows =
            |(i, source): (usize, &Source<'_>)| (0..source.sides[0]).map(move |row| (i, row));
        let theirs: Vec<(usize, usize)> = sources.iter().enumerate().flat_map(rows).collect();
        let mut places = vec![(0, 0); theirs.len()];
        for (place, column) in theirs.iter().zip(rule.columns(theirs.len())) {
            places[column] = *place;
        }
        let places = &places[first..first + outputs];
        let mut runs = Vec::new();
        for run in places.chunk_by(|(source, row), next| (*source, row + 1) == *next) {
            let first = runs.last().map_or(0, |run: &Run<Place>| run.first + run.outputs);
            let (Source { name, form, sides }, row) = (&sources[run[0].0], run[0].1);
            let (rows, bytes) = (row..row + run.len(), form.bytes(&(0..sides[1])).end);
            let of = Place::new(checkpoint, name, rows, bytes, form.bytes(&wanted))?;
            runs.push(Run { first, outputs: run.len(), form: *form, of });
        }
        Ok(Some(Self { widths, stored: Order::ByOutput(runs) }))
    }

    /// Inputs and outputs.
    pub fn widths(&self) -> [usize; 2] {
        self.widths
    }

    /// Bytes that it takes in memory.
    pub fn bytes(&self) -> usize {
        match &self.stored {
            Order::ByOutput(runs) => runs.iter().map(|run| run.of.bytes()).sum(),
            Order::ByInput(_, place) => place.bytes(),
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// A file that can no longer be read.
    pub fn read(&self) -> Result<Compressed> {
        let read = |run: &Run<Place>| {
            let &Run { first, outputs, form, ref of } = run;
            Ok(Run { first, outputs, form, of: of.read()? })
        };
        let stored = match &self.stored {
            Order::ByOutput(runs) => Order::ByOutput(runs.iter().map(read).collect::<Result<_>>()?),
            Order::ByInput(form, place) => Order::ByInput(*form, place.read()?),
        };
        Ok(Compressed { widths: self.widths, stored })
    }
}

impl Compressed {
    /// Inputs and outputs.
    pub fn widths(&self) -> [usize; 2] {
        self.widths
    }

    /// The weights of some inputs to some outputs, `[outputs, inputs]`. Inputs start at a multiple of 256, and end at one or
    /// with the last.
    ///
    /// # Panics
    /// If there are no such inputs or outputs, or `values` has another length.
    pub fn read(&self, outputs: Range<usize>, inputs: Range<usize>, values: &mut [f32]) {
        assert!(outputs.end <= self.widths[1] && inputs.end <= self.widths[0], "within the matrix");
        assert_eq!(values.len(), outputs.len() * inputs.len(), "inputs and outputs");
        let runs = match &self.stored {
            Order::ByOutput(runs) => runs,
            Order::ByInput(form, bytes) => {
                let row = form.bytes(&(0..self.widths[1])).end;
                let (mut line, count) = (vec![0.0; outputs.len()], inputs.len());
                for (place, input) in inputs.enumerate() {
                    form.unpack(&bytes[row * input..][form.bytes(&outputs)], &mut line);
                    let places = values[place..].iter_mut().step_by(count);
                    places.zip(&line).for_each(|(out, value)| *out = *value);
                }
                return;
            }
        };
        for (output, values) in outputs.zip(values.chunks_exact_mut(inputs.len().max(1))) {
            let (run, row) = self.row(runs, output);
            run.form.unpack(&row[run.form.bytes(&inputs)], values);
        }
    }

    /// The bytes of the weights of such inputs to one output, where they are stored as bf16 and by nothing multiplied.
    pub fn bf16(&self, output: usize, inputs: Range<usize>) -> Option<&[u8]> {
        let Order::ByOutput(runs) = &self.stored else { return None };
        let (run, row) = self.row(runs, output);
        (run.form == Form::Alone(Dtype::BF16, 1.0)).then(|| &row[run.form.bytes(&inputs)])
    }

    /// Where an output is, and what is stored of it.
    fn row<'a>(&self, runs: &'a [Run<Vec<u8>>], output: usize) -> (&'a Run<Vec<u8>>, &'a [u8]) {
        let run = &runs[runs.partition_point(|run| run.first <= output) - 1];
        let row = run.form.bytes(&(0..self.widths[0])).end;
        (run, &run.of[row * (output - run.first)..][..row])
    }

    /// Whether all numbers are neither infinite nor NaN.
    pub fn is_finite(&self) -> bool {
        /// Outputs that are looked at together.
        const TOGETHER: usize = 64;
        let [inputs, outputs] = self.widths;
        let mut values = vec![0.0; TOGETHER * inputs];
        (0..outputs).step_by(TOGETHER).all(|first| {
            let last = outputs.min(first + TOGETHER);
            let values = &mut values[..(last - first) * inputs];
            self.read(first..last, 0..inputs, values);
            values.iter().fold(true, |all, value| all & value.is_finite())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use half::bf16;
    use proptest::prelude::*;

    use super::*;
    use crate::FloatDtype;
    use crate::formats::safetensors::write_safetensors;
    use crate::layout::Layout;
    use crate::load::parameter;

    /// A parameter as it is stored, and as it is read: `[in, out]`.
    fn both(file: &Path, rule: Rule, shape: [usize; 2]) -> (Option<Compressed>, Vec<f32>) {
        let checkpoint = Checkpoint::open(file).expect("a file");
        let filed = Filed::of(&checkpoint, &rule, &shape).expect("known");
        let compressed = filed.map(|filed| {
            assert_eq!(filed.widths(), shape);
            assert!(filed.bytes() <= 2 * shape[0] * shape[1]);
            filed.read().expect("read")
        });
        let layout = Layout::new("test", vec![rule], Vec::new());
        let read = parameter(&checkpoint, &layout, "ours", &shape, FloatDtype::F32);
        (compressed, read.expect("read").try_to_vec().expect("f32"))
    }

    /// Of tables in blocks and in floats, with repeated rows and in any order; one that is stored the other way round is
    /// read as a whole.
    #[test]
    fn rows_of_a_table_are_read_alone() {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/goldens");
        for file in ["gguf-blocks/blocks.gguf", "t5-files/t5xxl_fp8_e4m3fn_scaled.safetensors"] {
            let known = Checkpoint::open(goldens.join(file)).expect("a file");
            let mut seen = 0;
            for (name, info) in known.tensors() {
                let &[count, width] = info.shape.as_slice() else { continue };
                let rows = [count - 1, 0, count / 2, 0];
                let whole = known.read_f32(name).expect("values").0;
                let expected = rows.iter().flat_map(|row| &whole[row * width..][..width]);
                let found = read_rows(&known, name, &rows).expect("rows");
                assert!(
                    found.iter().map(|x| x.to_bits()).eq(expected.map(|x| x.to_bits())),
                    "{name}"
                );
                seen += 1;
            }
            assert!(seen > 10, "{file}: {seen}");
        }
    }

    /// The numbers of some inputs to some outputs are those of the parameter.
    fn assert_same(
        found: &Compressed,
        expected: &[f32],
        outputs: Range<usize>,
        inputs: Range<usize>,
    ) {
        let mut values = vec![f32::NAN; outputs.len() * inputs.len()];
        found.read(outputs.clone(), inputs.clone(), &mut values);
        for (output, line) in outputs.clone().zip(values.chunks_exact(inputs.len().max(1))) {
            let Some(bytes) = found.bf16(output, inputs.clone()) else { continue };
            let stored = bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes));
            assert!(stored.map(f32::from).eq(line.iter().copied()), "{output}");
        }
        let width = found.widths()[1];
        let places = outputs.flat_map(|output| inputs.clone().map(move |input| (output, input)));
        for (value, (output, input)) in values.into_iter().zip(places) {
            assert_eq!(
                value.to_bits(),
                expected[input * width + output].to_bits(),
                "{input} {output}"
            );
        }
    }

    /// Every type of blocks, the whole of it and from the second block on.
    #[test]
    fn blocks_are_unpacked_where_they_are() {
        let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/goldens");
        let file = goldens.join("gguf-blocks/blocks.gguf");
        let (known, mut seen) = (Checkpoint::open(&file).expect("a file"), 0);
        for (name, info) in known.tensors() {
            let &[outputs, inputs] = info.shape.as_slice() else { continue };
            let rule = || Rule::new("ours", name, Transform::Transpose);
            let (compressed, expected) = both(&file, rule(), [inputs, outputs]);
            let Some(compressed) = compressed else { continue };
            assert!(compressed.is_finite(), "{name}");
            assert_same(&compressed, &expected, 0..outputs, 0..inputs);
            assert_same(&compressed, &expected, outputs / 2..outputs, 256.min(inputs)..inputs);
            // The last block of the inputs alone, and half of a block, which is none.
            let part = |part: Range<usize>| Rule { part: Some(Part::Inputs(part)), ..rule() };
            let last = inputs - 256.min(inputs)..inputs;
            let (compressed, expected) = both(&file, part(last.clone()), [last.len(), outputs]);
            assert_same(&compressed.expect("blocks"), &expected, 0..outputs, 0..last.len());
            if compressed_in_blocks(info) {
                let (compressed, _) = both(&file, part(0..inputs - 8), [inputs - 8, outputs]);
                assert!(compressed.is_none(), "{name}");
            }
            seen += 1;
        }
        assert!(seen >= 14, "{seen} types");
    }

    /// Our own files have one input after the other.
    #[test]
    fn numbers_by_input_are_read_as_they_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file.safetensors");
        let [inputs, outputs] = [300, 70];
        for (dtype, stays) in
            [(FloatDtype::F16, true), (FloatDtype::Bf16, true), (FloatDtype::F32, false)]
        {
            let values = (0..inputs * outputs).map(|i| (i % 257) as f32 - 3.0).collect();
            let tensors = [("ours".to_owned(), dtype.data(values, vec![inputs, outputs]))];
            write_safetensors(&file, &tensors, &BTreeMap::new()).expect("written");
            let rule = Rule::new("ours", "ours", Transform::Copy);
            let (compressed, expected) = both(&file, rule, [inputs, outputs]);
            assert_eq!(compressed.is_some(), stays);
            let Some(compressed) = compressed else { continue };
            assert!(compressed.is_finite());
            assert_same(&compressed, &expected, 0..outputs, 0..inputs);
            assert_same(&compressed, &expected, 48..outputs, 256..inputs);
        }
    }

    fn compressed_in_blocks(info: &TensorInfo) -> bool {
        matches!(info.values, Values::Blocks(..))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever the rule, what is unpacked is what is read.
        #[test]
        fn rules_hold_for_what_stays_stored(
            order in (1..4usize).prop_flat_map(|n| Just((0..n).collect::<Vec<_>>()).prop_shuffle()),
            sides in prop::collection::vec(1..9usize, 1..4),
            inputs in 1..40usize,
            cut in 0..3usize,
            wide in any::<bool>(),
        ) {
            let dtype = if wide { FloatDtype::F32 } else { FloatDtype::Bf16 };
            let sides: Vec<usize> = sides.iter().map(|side| side * order.len()).collect();
            let (mut tensors, mut next) = (Vec::new(), 0);
            for (i, side) in sides.iter().enumerate() {
                let values: Vec<f32> = (next..next + side * inputs).map(|i| (i % 251) as f32).collect();
                next += values.len();
                tensors.push((format!("theirs.{i}"), dtype.data(values, vec![*side, inputs])));
            }
            let folder = tempfile::tempdir().expect("a folder");
            let file = folder.path().join("file.safetensors");
            write_safetensors(&file, &tensors, &BTreeMap::new()).expect("written");
            let outputs: usize = sides.iter().sum();
            let names = tensors.iter().map(|(name, _)| name.clone()).collect();
            let mut rule = Rule::concat("ours", names, Transform::Transpose);
            rule.chunks = (order.len() > 1).then_some(order);
            let mut shape = [inputs, outputs];
            match cut {
                1 => {
                    rule.part = Some(Part::Inputs(inputs / 2..inputs));
                    shape[0] = inputs - inputs / 2;
                }
                2 => {
                    rule.part = Some(Part::Outputs(outputs / 3..outputs));
                    shape[1] = outputs - outputs / 3;
                }
                _ => (),
            }
            let (compressed, expected) = both(&file, rule, shape);
            prop_assert_eq!(compressed.is_none(), wide);
            if let Some(compressed) = compressed {
                prop_assert_eq!(compressed.widths(), shape);
                prop_assert!(compressed.bf16(0, 0..shape[0]).is_some());
                assert_same(&compressed, &expected, 0..shape[1], 0..shape[0]);
                assert_same(&compressed, &expected, shape[1] / 2..shape[1], 0..shape[0]);
            }
        }
    }
}
