//! Random numbers that can be replayed, drawn on the host: the stream of `torch.randn` on the CPU for values,
//! and SplitMix64 for choices.

use rand_mt::Mt;
use std::f64::consts::TAU;

/// Fewest values that are drawn in blocks.
const BLOCKED_FROM: usize = 16;
/// Values per block: radii, then angles, of 8 pairs.
const BLOCK: usize = 16;

/// One stream of random numbers, MT19937.
#[derive(Debug, Clone)]
pub struct Generator {
    bits: Mt,
    spare: Option<f64>,
}

impl Generator {
    /// The stream of a seed; like torch, its low 32 bits decide.
    pub fn new(seed: u64) -> Self {
        Self { bits: Mt::new(seed as u32), spare: None }
    }

    /// Uniform in `[0, 1)` with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        let (high, low) = (u64::from(self.bits.next_u32()), u64::from(self.bits.next_u32()));
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// One value from N(0, 1), by the Box-Muller transform in f64.
    pub fn normal_one(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (angle, radius) = (TAU * self.uniform(), self.uniform());
        let radius = (-2.0 * (1.0 - radius).ln()).sqrt();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    /// `count` values from N(0, 1), equal to those of `torch.randn` up to rounding.
    pub fn normal(&mut self, count: usize) -> Vec<f32> {
        if count < BLOCKED_FROM {
            return (0..count).map(|_| self.normal_one() as f32).collect();
        }
        let mut values: Vec<f32> = (0..count).map(|_| self.uniform_f32()).collect();
        for block in values.chunks_exact_mut(BLOCK) {
            transform(block);
        }
        if !count.is_multiple_of(BLOCK) {
            let last = &mut values[count - BLOCK..];
            last.iter_mut().for_each(|value| *value = self.uniform_f32());
            transform(last);
        }
        values
    }

    /// Uniform in `[0, 1)` with 24 bits.
    fn uniform_f32(&mut self) -> f32 {
        (self.bits.next_u32() & ((1 << 24) - 1)) as f32 * (1.0 / (1 << 24) as f32)
    }
}

/// The seed of a derived stream: part `part` of number `number` of whatever `seed` determines.
///
/// Everything that draws by itself has a stream of its own, so that neither the order of use nor what was
/// drawn before matters: the parameters of a network (`number` counts them, `part` is 0), and the steps of a
/// training run (`number` counts them, `part` is one of the streams of a step). The factors are odd constants
/// of hash functions, which scatter small numbers over the seeds.
pub fn derived_seed(seed: u64, number: u64, part: u64) -> u64 {
    let number = number.wrapping_mul(0x9E37_79B9).wrapping_add(part.wrapping_mul(0x85EB_CA6B));
    seed.wrapping_add(number)
}

/// The generator SplitMix64 (Steele et al. 2014), for choices that should not take from the stream of any
/// noise: the order of training images, a class from a seed.
#[derive(Debug, Clone)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// The stream of a seed, all of whose bits count.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// Box-Muller on 8 pairs: the first half decides the radii, the second the angles.
fn transform(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(BLOCK / 2);
    for (a, b) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * (1.0 - *a).ln()).sqrt();
        let angle = std::f32::consts::TAU * *b;
        (*a, *b) = (radius * angle.cos(), radius * angle.sin());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f32], expected: &[f32]) -> bool {
        found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-6)
    }

    #[test]
    fn streams_equal_torch() {
        let draw = |seed, count| Generator::new(seed).normal(count);
        assert!(close(&draw(0, 4), &[1.540996, -0.293429, -2.178789, 0.568431]));
        assert!(close(&draw(42, 4), &[0.336690, 0.128809, 0.234462, 0.230333]));
        assert!(close(&draw(0, 4096), &[-1.125_84, -1.152_36, -0.250579, -0.433879]));
        assert!(close(&draw(42, 4096), &[1.926915, 1.487284, 0.900717, -2.105521]));
    }

    #[test]
    fn the_last_block_is_redrawn() {
        let (whole, cut) = (Generator::new(5).normal(32), Generator::new(5).normal(24));
        assert_eq!(whole[..8], cut[..8]);
        assert_ne!(whole[8..16], cut[8..16]);
    }

    #[test]
    fn split_mix_matches_the_reference() {
        let mut random = SplitMix64::new(1234567);
        assert_eq!(random.next_u64(), 6457827717110365317);
        assert_eq!(random.next_u64(), 3203168211198807973);
    }

    #[test]
    fn derived_streams_keep_their_seeds() {
        assert_eq!(derived_seed(5, 0, 0), 5);
        assert_eq!(derived_seed(0, 3, 0), 3 * 0x9E37_79B9);
        assert_eq!(derived_seed(1, 1, 2), 1 + 0x9E37_79B9 + 2 * 0x85EB_CA6B);
        // The last part, as numbers from the end are counted.
        assert_eq!(derived_seed(0, 0, u64::MAX), 0u64.wrapping_sub(0x85EB_CA6B));
    }
}
