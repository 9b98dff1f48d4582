//! Which pixels of two pictures show the same.

use crate::{Head, Picture};

/// Where a point of the surface is in a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Match {
    /// Its place, x and y in pixels; the middle of the first pixel is (0.5, 0.5). It can be outside of the picture.
    pub place: [f32; 2],
    /// Whether it is seen there: in the picture, in front of all else, and not from behind.
    pub visible: bool,
}

/// For each pixel of `to`, row by row, where the point of the surface at its middle is in `from`; none where `to` shows its background.
///
/// It is exact for different poses, expressions, lights and sizes. Pictures may even be of different people, whose noses are then
/// matched; hair that hangs is so only for one person. An iris moves over the surface of its eye, where it looks.
pub fn flow(head: &Head, from: &Picture, to: &Picture) -> Vec<Option<Match>> {
    let matched = |sample: &crate::Sample| from.place(head, sample.triangle, sample.weights);
    to.samples.iter().map(|sample| sample.as_ref().map(matched)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HEAD, Identity, Material, View, render};

    /// A person from both sides, with different expressions.
    fn two_views(head: &Head, person: &Identity, size: usize) -> [Picture; 2] {
        let mut a = View { yaw: -25.0, pitch: 5.0, ..View::default() };
        a.express("smiling", 1.0);
        let b = View { yaw: 20.0, roll: 6.0, scale: 0.7, ..View::default() };
        [a, b].map(|view| render(head, person, &view, size))
    }

    fn with_hair(head: &Head, hair: &str) -> Identity {
        let mut people = (0..).map(|number| Identity::numbered(head, 1, number));
        people.find(|person| person.traits.hair == hair).unwrap()
    }

    fn middle(at: usize, size: usize) -> [f32; 2] {
        [(at % size) as f32 + 0.5, (at / size) as f32 + 0.5]
    }

    /// Values of pixels at a place between their middles, if the four around it have values.
    fn between<const N: usize>(
        value: impl Fn(usize) -> Option<[f32; N]>,
        [x, y]: [f32; 2],
        size: usize,
    ) -> Option<[f32; N]> {
        let (left, top) = ((x - 0.5).floor().max(0.0), (y - 0.5).floor().max(0.0));
        let (right, down) = (x - 0.5 - left, y - 0.5 - top);
        let mut sum = [0.0; N];
        for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            let (column, row) = (left as usize + dx, top as usize + dy);
            let found = if column < size && row < size {
                value(row * size + column)?
            } else {
                return None;
            };
            let weight = [1.0 - right, right][dx] * [1.0 - down, down][dy];
            sum.iter_mut().zip(found).for_each(|(sum, value)| *sum += weight * value);
        }
        Some(sum)
    }

    #[test]
    fn a_picture_matches_itself() {
        let head = Head::open(HEAD).unwrap();
        let [a, _] = two_views(&head, &with_hair(&head, "long"), 64);
        for (at, found) in flow(&head, &a, &a).iter().enumerate() {
            let Some(found) = found else { continue };
            let ([x, y], [to_x, to_y]) = (middle(at, 64), found.place);
            assert!(found.visible && (x - to_x).abs() < 1e-3 && (y - to_y).abs() < 1e-3, "{at}");
        }
    }

    #[test]
    fn there_and_back_is_where_one_was() {
        let head = Head::open(HEAD).unwrap();
        for hair in ["bald", "short", "long"] {
            let [a, b] = two_views(&head, &with_hair(&head, hair), 64);
            let back = flow(&head, &b, &a);
            let depth = |at: usize| a.samples.get(at)?.map(|sample| sample.depth);
            // Not where one surface ends before another.
            let alone = |at: usize| {
                [at - 1, at + 1, at - 64, at + 64].into_iter().all(|near| {
                    depth(near).zip(depth(at)).is_some_and(|(near, own)| (near - own).abs() < 0.15)
                })
            };
            let back = |at: usize| {
                back[at].filter(|found| found.visible && alone(at)).map(|found| found.place)
            };
            let (mut all, mut close) = (0, 0);
            for (at, found) in flow(&head, &a, &b).iter().enumerate() {
                let Some(found) = found.filter(|found| found.visible) else { continue };
                let Some([x, y]) = between(back, found.place, 64) else { continue };
                let [to_x, to_y] = middle(at, 64);
                all += 1;
                close += usize::from((x - to_x).hypot(y - to_y) < 1.0);
            }
            println!("{hair}: {close} of {all}");
            assert!(all > 400 && close * 100 >= all * 98, "{hair}: {close} of {all}");
        }
    }

    /// Strands of hair and the edges of beards are finer than pixels of small pictures.
    #[test]
    fn colours_without_light_move_along() {
        let head = Head::open(HEAD).unwrap();
        for (person, size, most) in
            [(Identity::mean(&head), 128, 0.01), (with_hair(&head, "long"), 192, 0.015)]
        {
            let [a, b] = two_views(&head, &person, size);
            let colour = |at: usize| a.samples[at].map(|sample| sample.albedo);
            let (mut warped, mut unwarped, mut count) = (0.0, 0.0, 0.0);
            for ((at, found), sample) in flow(&head, &a, &b).iter().enumerate().zip(&b.samples) {
                let (Some(Match { place, visible: true }), Some(sample)) = (found, sample) else {
                    continue;
                };
                let moved = between(colour, *place, size);
                let (Some(moved), Some(there)) = (moved, between(colour, middle(at, size), size))
                else {
                    continue;
                };
                let off = |other: [f32; 3]| {
                    (0..3).map(|c| (other[c] - sample.albedo[c]).abs()).sum::<f32>() / 3.0
                };
                if matches!(sample.material, Material::Skin | Material::Hair) {
                    (warped, unwarped, count) =
                        (warped + off(moved), unwarped + off(there), count + 1.0);
                }
            }
            let (warped, unwarped) = (warped / count, unwarped / count);
            println!("{size}: warped {warped:.4}, unwarped {unwarped:.4}, of {count}");
            assert!(
                warped < most && warped * 4.0 < unwarped && count > 500.0,
                "{warped} {unwarped} {count}"
            );
        }
    }

    #[test]
    fn what_is_turned_away_is_not_visible() {
        let head = Head::open(HEAD).unwrap();
        let views = [70.0, -70.0].map(|yaw| View { yaw, ..View::default() });
        let [a, b] = views.map(|view| render(&head, &Identity::mean(&head), &view, 64));
        let found = flow(&head, &a, &b);
        let visible = found.iter().flatten().filter(|found| found.visible).count();
        assert!(visible * 4 < found.iter().flatten().count(), "{visible}");
    }
}
