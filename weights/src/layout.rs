//! Tables from foreign names and shapes to ours.

use std::ops::Range;

/// How the tensors of a foreign checkpoint become the parameters of a module.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Name for messages.
    pub name: &'static str,
    rules: Option<Vec<Rule>>,
    ignored: Vec<&'static str>,
}

/// One parameter, or one per index, and where it comes from.
///
/// Names are dotted; `*` stands for one segment, and those of the sources take the values of the
/// target's, in order.
#[derive(Debug, Clone)]
pub struct Rule {
    /// Our name.
    pub target: String,
    /// Foreign names, concatenated along the last axis after the transform.
    pub sources: Vec<String>,
    /// Applied to each source.
    pub transform: Transform,
    /// How many of equal parts of the last axis each source has, where that is not one.
    pub shares: Option<Vec<usize>>,
    /// New order of equal chunks of the last axis.
    pub chunks: Option<Vec<usize>>,
    /// Of a matrix, these rows alone, which are inputs of ours, or these columns.
    pub part: Option<Part>,
}

/// A part of a matrix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Rows.
    Inputs(Range<usize>),
    /// Columns.
    Outputs(Range<usize>),
}

/// Change of shape from a foreign tensor to ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transform {
    /// As it is; a scalar becomes `[1]`.
    Copy,
    /// The same values in one dimension.
    Flatten,
    /// The same values without a first dimension of length 1.
    Unbatch,
    /// `[out, in]` to `[in, out]`; trailing dimensions of length 1 are dropped before.
    Transpose,
    /// `[out, channels, rows, columns]` to `[rows · columns · channels, out]`.
    PatchKernel,
}

impl Rule {
    /// A parameter from one foreign tensor.
    pub fn new(target: &str, source: &str, transform: Transform) -> Self {
        Self::concat(target, vec![source.to_owned()], transform)
    }

    /// A parameter from several foreign tensors side by side.
    pub fn concat(target: &str, sources: Vec<String>, transform: Transform) -> Self {
        Self {
            target: target.to_owned(),
            sources,
            transform,
            shares: None,
            chunks: None,
            part: None,
        }
    }
}

impl Layout {
    /// A table; tensors whose names match an `ignored` pattern may stay unused.
    pub fn new(name: &'static str, rules: Vec<Rule>, ignored: Vec<&'static str>) -> Self {
        Self { name, rules: Some(rules), ignored }
    }

    /// Our own names and shapes.
    pub fn native() -> Self {
        Self { name: "native", rules: None, ignored: Vec::new() }
    }

    /// The rule for one of our parameters, with the indices filled in.
    pub(crate) fn rule(&self, target: &str) -> Option<Rule> {
        let Some(rules) = &self.rules else {
            return Some(Rule::new(target, target, Transform::Copy));
        };
        rules.iter().find_map(|rule| {
            let indices = matches(&rule.target, target)?;
            let sources = rule.sources.iter().map(|source| fill(source, &indices)).collect();
            Some(Rule { sources, target: target.to_owned(), ..rule.clone() })
        })
    }

    /// The table without the rules for these of our parameters.
    /// Rows and columns, after the transform, that the parts of a tensor reach to.
    pub(crate) fn reach(&self, source: &str) -> [usize; 2] {
        let rules = self.rules.iter().flatten();
        let parts = rules.filter(|rule| rule.sources.iter().any(|own| own == source));
        parts.filter_map(|rule| rule.part.as_ref()).fold([0; 2], |[rows, columns], part| match part
        {
            Part::Inputs(range) => [rows.max(range.end), columns],
            Part::Outputs(range) => [rows, columns.max(range.end)],
        })
    }

    /// The table with further rules, and further patterns of what may stay unused.
    pub(crate) fn with(mut self, rules: Vec<Rule>, ignored: Vec<&'static str>) -> Self {
        self.rules.iter_mut().for_each(|own| own.extend(rules.iter().cloned()));
        self.ignored.extend(ignored);
        self
    }

    pub(crate) fn without(mut self, pattern: &str) -> Self {
        let other = |rule: &Rule| matches(pattern, &rule.target).is_none();
        self.rules = self.rules.map(|rules| rules.into_iter().filter(other).collect());
        self
    }

    pub(crate) fn ignores(&self, name: &str) -> bool {
        self.ignored.iter().any(|pattern| matches(pattern, name).is_some())
    }
}

/// What the `*` of a pattern stand for in a name, if it matches.
pub(crate) fn matches<'a>(pattern: &str, name: &'a str) -> Option<Vec<&'a str>> {
    let (mut wanted, mut given) = (pattern.split('.'), name.split('.'));
    let mut stars = Vec::new();
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(stars),
            (Some("*"), Some(segment)) => stars.push(segment),
            (Some(a), Some(b)) if a == b => (),
            _ => return None,
        }
    }
}

fn fill(pattern: &str, stars: &[&str]) -> String {
    let mut stars = stars.iter();
    let segment = |segment| match segment {
        "*" => stars.next().copied().unwrap_or("*"),
        other => other,
    };
    pattern.split('.').map(segment).collect::<Vec<_>>().join(".")
}

impl Rule {
    /// Whether the parameter is one tensor as it is.
    pub(crate) fn is_copy(&self) -> bool {
        self.transform == Transform::Copy
            && self.sources.len() == 1
            && self.chunks.is_none()
            && self.part.is_none()
    }

    /// Which of so many columns of the parameter each source makes; `None` where they cannot be shared among them.
    pub(crate) fn outputs(&self, width: usize) -> Option<Vec<Range<usize>>> {
        let equal = vec![1; self.sources.len()];
        let shares = self.shares.as_ref().unwrap_or(&equal);
        let total: usize = shares.iter().sum();
        if total == 0 || shares.len() != self.sources.len() || !width.is_multiple_of(total) {
            return None;
        }
        let mut first = 0;
        let of_share = |share: &usize| {
            let start = first;
            first += share * (width / total);
            start..first
        };
        Some(shares.iter().map(of_share).collect())
    }

    /// Shape of the parameter that sources of these shapes make; `None` if they do not suit the rule.
    pub(crate) fn shape(&self, sources: &[&[usize]]) -> Option<Vec<usize>> {
        let parts = sources.iter().map(|shape| self.transform.shape(shape));
        let parts = parts.collect::<Option<Vec<_>>>()?;
        let (_, leading) = parts.first()?.split_last()?;
        let mut total = 0usize;
        for part in &parts {
            let (width, others) = part.split_last()?;
            if others != leading {
                return None;
            }
            total = total.checked_add(*width)?;
        }
        let chunks = self.chunks.as_ref().map_or(1, Vec::len);
        let divides = chunks > 0 && total.is_multiple_of(chunks);
        let whole = divides.then(|| [leading, &[total]].concat())?;
        match (&self.part, whole.as_slice()) {
            (None, _) => Some(whole),
            (Some(Part::Inputs(rows)), [inputs, width]) => {
                (rows.end <= *inputs).then(|| vec![rows.len(), *width])
            }
            (Some(Part::Outputs(columns)), [inputs, width]) => {
                (columns.end <= *width).then(|| vec![*inputs, columns.len()])
            }
            _ => None,
        }
    }

    /// The parameter that sources make whose shapes suit the rule.
    ///
    /// # Panics
    /// If [`Rule::shape`] is `None` for them.
    pub(crate) fn apply(&self, sources: Vec<(Vec<f32>, Vec<usize>)>) -> Vec<f32> {
        let part = |(values, shape): (Vec<f32>, Vec<usize>)| {
            let width = self.transform.shape(&shape).and_then(|shape| shape.last().copied());
            (self.transform.apply(values, &shape), width.expect("a suitable shape"))
        };
        let parts: Vec<_> = sources.into_iter().map(part).collect();
        let width = parts.iter().map(|(_, width)| width).sum();
        let values = side_by_side(parts);
        let values = match &self.chunks {
            Some(order) => reorder(&values, width, order),
            None => values,
        };
        match &self.part {
            None => values,
            Some(Part::Inputs(rows)) => values[rows.start * width..rows.end * width].to_vec(),
            Some(Part::Outputs(columns)) => {
                let row = |row: &[f32]| row[columns.clone()].to_vec();
                values.chunks_exact(width.max(1)).flat_map(row).collect()
            }
        }
    }

    /// Where the columns of the parts side by side, so many in all, are in the parameter.
    pub(crate) fn columns(&self, width: usize) -> Vec<usize> {
        let Some(order) = &self.chunks else { return (0..width).collect() };
        let chunk = width / order.len();
        let mut columns = vec![0; width];
        for (to, from) in order.iter().enumerate() {
            (0..chunk).for_each(|i| columns[from * chunk + i] = to * chunk + i);
        }
        columns
    }
}

impl Transform {
    /// Shape after the transform; `None` if it does not suit it.
    fn shape(self, shape: &[usize]) -> Option<Vec<usize>> {
        match self {
            Transform::Copy if shape.is_empty() => Some(vec![1]),
            Transform::Copy => Some(shape.to_vec()),
            Transform::Flatten => {
                let length =
                    shape.iter().try_fold(1usize, |product, side| product.checked_mul(*side));
                length.map(|length| vec![length])
            }
            Transform::Unbatch => match shape {
                [1, rest @ ..] => Some(rest.to_vec()),
                _ => None,
            },
            Transform::Transpose => match shape {
                [out, inputs, ones @ ..] if ones.iter().all(|length| *length == 1) => {
                    Some(vec![*inputs, *out])
                }
                _ => None,
            },
            Transform::PatchKernel => {
                let [out, channels, rows, columns] = *shape else { return None };
                Some(vec![rows.checked_mul(columns)?.checked_mul(channels)?, out])
            }
        }
    }

    /// Values after the transform, of a shape that suits it.
    fn apply(self, values: Vec<f32>, shape: &[usize]) -> Vec<f32> {
        match (self, shape) {
            (Transform::Transpose, [out, ..]) => transposed(&values, *out),
            (Transform::PatchKernel, &[out, channels, rows, columns]) => {
                let (pixels, mut result) = (rows * columns, Vec::with_capacity(values.len()));
                for at in 0..pixels {
                    for channel in 0..channels {
                        let of = |o: usize| values[(o * channels + channel) * pixels + at];
                        result.extend((0..out).map(of));
                    }
                }
                result
            }
            _ => values,
        }
    }
}

fn transposed(values: &[f32], rows: usize) -> Vec<f32> {
    let (mut result, to) = (vec![0.0; values.len()], (0..rows).collect::<Vec<_>>());
    put_columns(&mut result, rows, values, &to);
    result
}

/// Most rows that are moved together, so that both sides stay in the cache.
const ROWS: usize = 64;
/// Columns that are moved together: a cache line of them.
const COLUMNS: usize = 16;

/// Writes rows into these columns of a matrix of `width` columns, which has a row for each of theirs.
pub(crate) fn put_columns<T: Copy>(result: &mut [T], width: usize, rows: &[T], columns: &[usize]) {
    let Some(inputs) = rows.len().checked_div(columns.len()).filter(|inputs| *inputs > 0) else {
        return;
    };
    for (rows, columns) in rows.chunks(ROWS * inputs).zip(columns.chunks(ROWS)) {
        for first in (0..inputs).step_by(COLUMNS) {
            for i in first..inputs.min(first + COLUMNS) {
                let out = &mut result[i * width..][..width];
                for (row, column) in rows.chunks_exact(inputs).zip(columns) {
                    out[*column] = row[i];
                }
            }
        }
    }
}

/// Rows of the parts one after the other; each part has the width of its rows.
fn side_by_side(mut parts: Vec<(Vec<f32>, usize)>) -> Vec<f32> {
    if parts.len() == 1 {
        return parts.remove(0).0;
    }
    let mut values = Vec::with_capacity(parts.iter().map(|(part, _)| part.len()).sum());
    let rows = parts.iter().map(|(part, width)| part.len() / (*width).max(1)).max();
    for row in 0..rows.unwrap_or(0) {
        for (part, width) in &parts {
            values.extend_from_slice(&part[row * width..][..*width]);
        }
    }
    values
}

/// Equal chunks of every row in another order.
fn reorder(values: &[f32], width: usize, order: &[usize]) -> Vec<f32> {
    let chunk = width / order.len();
    let row = |row: &[f32]| -> Vec<f32> {
        order.iter().flat_map(|i| row[i * chunk..][..chunk].iter().copied()).collect()
    };
    values.chunks_exact(width.max(1)).flat_map(row).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn count(n: usize) -> Vec<f32> {
        (0..n).map(|i| i as f32).collect()
    }

    fn apply(rule: &Rule, shapes: &[&[usize]]) -> Option<(Vec<f32>, Vec<usize>)> {
        let shape = rule.shape(shapes)?;
        let sources = shapes.iter().map(|s| (count(s.iter().product()), s.to_vec())).collect();
        Some((rule.apply(sources), shape))
    }

    fn rule(transform: Transform, sources: usize, chunks: Option<Vec<usize>>) -> Rule {
        Rule { chunks, ..Rule::concat("ours", vec!["theirs".into(); sources], transform) }
    }

    #[test]
    fn stars_carry_indices_over() {
        let rule = Rule::new("blocks.*.mlp.up.weight", "layers.*.fc1.weight", Transform::Copy);
        let layout = Layout::new("test", vec![rule], vec!["junk.*"]);
        let rule = layout.rule("blocks.11.mlp.up.weight").expect("a match");
        assert_eq!(rule.sources, ["layers.11.fc1.weight"]);
        assert!(layout.rule("blocks.11.mlp.up").is_none());
        assert!(layout.ignores("junk.x") && !layout.ignores("junk.x.y"));
    }

    #[test]
    fn transforms_by_hand() {
        let transpose = rule(Transform::Transpose, 1, None);
        let (values, shape) = apply(&transpose, &[&[2, 3, 1, 1]]).expect("fits");
        assert_eq!((values, shape), (vec![0., 3., 1., 4., 2., 5.], vec![3, 2]));
        // One output, two channels, 1x2 patch: (row, column, channel) order.
        let kernel = rule(Transform::PatchKernel, 1, None);
        let (values, shape) = apply(&kernel, &[&[1, 2, 1, 2]]).expect("fits");
        assert_eq!((values, shape), (vec![0., 2., 1., 3.], vec![4, 1]));
        assert_eq!(apply(&kernel, &[&[4]]), None);
        assert_eq!(apply(&rule(Transform::Copy, 1, None), &[&[]]), Some((vec![0.0], vec![1])));
        let beside = rule(Transform::Copy, 2, None);
        let (values, shape) = apply(&beside, &[&[2, 1], &[2, 2]]).expect("fits");
        assert_eq!((values, shape), (vec![0., 0., 1., 1., 2., 3.], vec![2, 3]));
        assert_eq!(apply(&beside, &[&[2, 1], &[3, 1]]), None);
        let swap = rule(Transform::Copy, 1, Some(vec![1, 0]));
        assert_eq!(apply(&swap, &[&[1, 4]]), Some((vec![2., 3., 0., 1.], vec![1, 4])));
        assert_eq!(apply(&swap, &[&[1, 3]]), None);
    }

    #[test]
    fn outputs_are_shared_among_sources() {
        let rule = |shares| Rule { shares, ..rule(Transform::Transpose, 3, None) };
        assert_eq!(rule(None).outputs(12), Some(vec![0..4, 4..8, 8..12]));
        assert_eq!(rule(None).outputs(10), None);
        assert_eq!(rule(Some(vec![3, 1, 1])).outputs(10), Some(vec![0..6, 6..8, 8..10]));
        assert_eq!(rule(Some(vec![3, 1])).outputs(8), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn transposing_twice_changes_nothing(rows in 0..80usize, columns in 0..80usize) {
            let values = count(rows * columns);
            let once = transposed(&values, rows);
            for (r, c) in [(0, columns / 2), (rows / 2, 0), (rows / 3, columns / 3)] {
                prop_assert_eq!(once.get(c * rows + r), values.get(r * columns + c));
            }
            prop_assert_eq!(transposed(&once, columns), values);
        }

        /// Piece by piece, a parameter is what it is as a whole.
        #[test]
        fn columns_are_put_where_the_rule_says(
            order in (1..4usize).prop_flat_map(|n| Just((0..n).collect::<Vec<_>>()).prop_shuffle()),
            sides in prop::collection::vec(1..90usize, 1..4),
            inputs in 1..40usize,
            rows in 1..90usize,
        ) {
            let sides: Vec<usize> = sides.iter().map(|side| side * order.len()).collect();
            let rule = rule(Transform::Transpose, sides.len(), Some(order));
            let shapes: Vec<[usize; 2]> = sides.iter().map(|side| [*side, inputs]).collect();
            let shapes: Vec<&[usize]> = shapes.iter().map(|shape| shape.as_slice()).collect();
            let (expected, shape) = apply(&rule, &shapes).expect("fits");
            let (mut found, columns) = (vec![0.0; expected.len()], rule.columns(shape[1]));
            let mut first = 0;
            for side in sides {
                for piece in count(side * inputs).chunks(rows * inputs) {
                    let outputs = piece.len() / inputs;
                    put_columns(&mut found, shape[1], piece, &columns[first..first + outputs]);
                    first += outputs;
                }
            }
            prop_assert_eq!(found, expected);
        }

        /// A convolution of stride and size `rows x columns` is the product of the flattened patch, in the
        /// order (row, column, channel), with the kernel.
        #[test]
        fn patch_kernels_keep_every_weight_at_its_place(
            [out, channels, rows, columns] in prop::array::uniform4(0..5usize),
        ) {
            let kernel = rule(Transform::PatchKernel, 1, None);
            let (found, shape) = apply(&kernel, &[&[out, channels, rows, columns]]).expect("fits");
            prop_assert_eq!(shape, [rows * columns * channels, out]);
            for i in 0..found.len() {
                let (x, y) = (i % columns, i / columns % rows);
                let (c, o) = (i / columns / rows % channels, i / columns / rows / channels);
                prop_assert_eq!(found[((y * columns + x) * channels + c) * out + o], i as f32);
            }
        }

        #[test]
        fn parts_side_by_side_can_be_told_apart(
            rows in 1..5usize,
            widths in prop::collection::vec(0..5usize, 1..5),
        ) {
            let shapes: Vec<[usize; 2]> = widths.iter().map(|width| [rows, *width]).collect();
            let shapes: Vec<&[usize]> = shapes.iter().map(|shape| shape.as_slice()).collect();
            let beside = rule(Transform::Copy, widths.len(), None);
            let (found, shape) = apply(&beside, &shapes).expect("fits");
            let total: usize = widths.iter().sum();
            prop_assert_eq!(shape, [rows, total]);
            let mut start = 0;
            for width in widths {
                let part = (0..rows).flat_map(|row| &found[row * total + start..][..width]);
                prop_assert_eq!(part.copied().collect::<Vec<_>>(), count(rows * width));
                start += width;
            }
        }

        #[test]
        fn chunks_come_back_by_the_inverse_order(
            order in (1..7usize).prop_flat_map(|n| Just((0..n).collect::<Vec<_>>()).prop_shuffle()),
            chunk in 0..4usize,
            rows in 0..4usize,
        ) {
            let width = order.len() * chunk;
            let values = count(rows * width);
            let mut inverse = vec![0; order.len()];
            order.iter().enumerate().for_each(|(to, from)| inverse[*from] = to);
            let there = reorder(&values, width, &order);
            if let Some(row) = there.chunks_exact(width.max(1)).next() {
                prop_assert_eq!(row[0], (order[0] * chunk) as f32);
            }
            prop_assert_eq!(reorder(&there, width, &inverse), values);
        }
    }
}
