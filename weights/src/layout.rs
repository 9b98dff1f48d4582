//! Tables from foreign names and shapes to ours.

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
    /// New order of equal chunks of the last axis.
    pub chunks: Option<Vec<usize>>,
}

/// Change of shape from a foreign tensor to ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transform {
    /// As it is; a scalar becomes `[1]`.
    Copy,
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
        Self { target: target.to_owned(), sources, transform, chunks: None }
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

impl Transform {
    /// Applies the transform to elements of a shape; `None` if the shape does not suit it.
    pub(crate) fn apply(self, values: Vec<f32>, shape: &[usize]) -> Option<(Vec<f32>, Vec<usize>)> {
        match self {
            Transform::Copy if shape.is_empty() => Some((values, vec![1])),
            Transform::Copy => Some((values, shape.to_vec())),
            Transform::Transpose => {
                let (out, rest) = shape.split_first()?;
                let (inputs, ones) = rest.split_first()?;
                let flat = ones.iter().all(|length| *length == 1);
                flat.then(|| (transposed(&values, *out, *inputs), vec![*inputs, *out]))
            }
            Transform::PatchKernel => {
                let [out, channels, rows, columns] = *shape else { return None };
                let mut result = Vec::with_capacity(values.len());
                for at in 0..rows * columns {
                    for channel in 0..channels {
                        let place = |o: usize| (o * channels + channel) * rows * columns + at;
                        result.extend((0..out).map(|o| values[place(o)]));
                    }
                }
                Some((result, vec![rows * columns * channels, out]))
            }
        }
    }
}

/// Rows and columns that are moved together, so that both sides stay in the cache.
const TILE: usize = 32;

fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut result = vec![0.0; values.len()];
    for row in (0..rows).step_by(TILE) {
        for column in (0..columns).step_by(TILE) {
            for r in row..rows.min(row + TILE) {
                for c in column..columns.min(column + TILE) {
                    result[c * rows + r] = values[r * columns + c];
                }
            }
        }
    }
    result
}

/// Puts tensors of equal leading dimensions side by side along the last axis; `None` if they differ.
pub(crate) fn side_by_side(parts: Vec<(Vec<f32>, Vec<usize>)>) -> Option<(Vec<f32>, Vec<usize>)> {
    if parts.len() == 1 {
        return parts.into_iter().next();
    }
    let leading = |shape: &[usize]| shape.split_last().map(|(_, leading)| leading.to_vec());
    let first = leading(&parts.first()?.1)?;
    if parts.iter().any(|(_, shape)| leading(shape).as_ref() != Some(&first)) {
        return None;
    }
    let width = |shape: &[usize]| shape[shape.len() - 1];
    let total: usize = parts.iter().map(|(_, shape)| width(shape)).sum();
    let rows: usize = first.iter().product();
    let mut values = Vec::with_capacity(rows * total);
    for row in 0..rows {
        for (part, shape) in &parts {
            let width = width(shape);
            values.extend_from_slice(&part[row * width..(row + 1) * width]);
        }
    }
    Some((values, [first, vec![total]].concat()))
}

/// Reorders equal chunks of the last axis; `None` if they do not divide it.
pub(crate) fn reorder(values: Vec<f32>, shape: &[usize], order: &[usize]) -> Option<Vec<f32>> {
    let width = *shape.last()?;
    if order.is_empty() || width % order.len() != 0 || width == 0 {
        return None;
    }
    let chunk = width / order.len();
    let row = |row: &[f32]| -> Vec<f32> {
        order.iter().flat_map(|&i| row[i * chunk..(i + 1) * chunk].iter().copied()).collect()
    };
    Some(values.chunks_exact(width).flat_map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(n: usize) -> Vec<f32> {
        (0..n).map(|i| i as f32).collect()
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
        let (values, shape) = Transform::Transpose.apply(count(6), &[2, 3, 1, 1]).expect("fits");
        assert_eq!((values, shape), (vec![0., 3., 1., 4., 2., 5.], vec![3, 2]));
        // One output, two channels, 1x2 patch: (row, column, channel) order.
        let (values, shape) = Transform::PatchKernel.apply(count(4), &[1, 2, 1, 2]).expect("fits");
        assert_eq!((values, shape), (vec![0., 2., 1., 3.], vec![4, 1]));
        assert_eq!(Transform::PatchKernel.apply(count(4), &[4]), None);
        assert_eq!(Transform::Copy.apply(vec![7.0], &[]), Some((vec![7.0], vec![1])));
        let parts = vec![(count(2), vec![2, 1]), (count(4), vec![2, 2])];
        let (values, shape) = side_by_side(parts).expect("fits");
        assert_eq!((values, shape), (vec![0., 0., 1., 1., 2., 3.], vec![2, 3]));
        assert_eq!(reorder(count(4), &[1, 4], &[1, 0]), Some(vec![2., 3., 0., 1.]));
        assert_eq!(reorder(count(3), &[3], &[1, 0]), None);
    }

    #[test]
    fn large_transposes_agree_with_small_steps() {
        let (rows, columns) = (70, 45);
        let values = count(rows * columns);
        let result = transposed(&values, rows, columns);
        for (r, c) in [(0, 0), (69, 44), (33, 1), (5, 40)] {
            assert_eq!(result[c * rows + r], values[r * columns + c]);
        }
    }
}
