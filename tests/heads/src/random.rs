//! Random numbers that are the same on every machine.

use std::f64::consts::TAU;

use rand_mt::Mt64;

/// One stream of random numbers, MT19937-64.
#[derive(Debug, Clone)]
pub struct Random(Mt64);

impl Random {
    /// The stream of a key, such as a seed and a number.
    pub fn new(key: &[u64]) -> Self {
        Self(Mt64::new_with_key(key.iter().copied()))
    }

    /// Uniform in `[0, 1)`.
    fn part(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform between two values.
    pub fn uniform(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.part() as f32
    }

    /// From a normal distribution.
    pub fn normal(&mut self, mean: f32, deviation: f32) -> f32 {
        mean + deviation * self.gauss() as f32
    }

    fn gauss(&mut self) -> f64 {
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - self.part()));
        radius * libm::cos(TAU * self.part())
    }

    /// Whether something happens that is `often` the case, of 1.
    pub fn chance(&mut self, often: f32) -> bool {
        self.part() < f64::from(often)
    }

    /// One of some things.
    ///
    /// # Panics
    /// If there is none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[(self.part() * items.len() as f64) as usize]
    }

    /// One of some things, each as often as its weight says.
    ///
    /// # Panics
    /// If there is none.
    pub(crate) fn weighed<'a, T>(&mut self, items: &'a [T], weight: impl Fn(&T) -> f32) -> &'a T {
        let mut left = self.part() as f32 * items.iter().map(&weight).sum::<f32>();
        let chosen = items.iter().position(|item| {
            left -= weight(item);
            left < 0.0
        });
        &items[chosen.unwrap_or(items.len() - 1)]
    }

    /// Things in any order.
    pub(crate) fn shuffled<T>(&mut self, mut items: Vec<T>) -> Vec<T> {
        for last in (1..items.len()).rev() {
            items.swap(last, (self.part() * (last + 1) as f64) as usize);
        }
        items
    }

    /// Shares that sum to 1, from a Dirichlet distribution.
    pub(crate) fn shares<const N: usize>(&mut self, parameters: [f32; N]) -> [f32; N] {
        let drawn = parameters.map(|parameter| self.gamma(f64::from(parameter)));
        let sum = drawn.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        drawn.map(|value| (value / sum) as f32)
    }

    /// From a gamma distribution of scale 1 (Marsaglia & Tsang 2000).
    fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let smaller = libm::pow(1.0 - self.part(), 1.0 / shape);
            return self.gamma(shape + 1.0) * smaller;
        }
        let d = shape - 1.0 / 3.0;
        loop {
            let x = self.gauss();
            let v = 1.0 + x / libm::sqrt(9.0 * d);
            let cube = v * v * v;
            let most = x * x / 2.0 + d - d * cube + d * libm::log(cube);
            if v > 0.0 && libm::log(1.0 - self.part()) < most {
                return d * cube;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_distributions() {
        let mut random = Random::new(&[1, 2]);
        let mut mean = |draw: &mut dyn FnMut(&mut Random) -> f64| {
            (0..20_000).map(|_| draw(&mut random)).sum::<f64>() / 20_000.0
        };
        assert!((mean(&mut |random| random.gauss())).abs() < 0.03);
        assert!((mean(&mut |random| random.gauss().powi(2)) - 1.0).abs() < 0.05);
        for shape in [0.2, 0.8, 2.0] {
            assert!((mean(&mut |random| random.gamma(shape)) - shape).abs() < 0.05, "{shape}");
        }
        assert!(
            (mean(&mut |random| f64::from(random.shares([2.0, 0.2, 0.2])[0])) - 2.0 / 2.4).abs()
                < 0.02
        );
        assert!(
            (mean(&mut |random| f64::from(*random.weighed(&[0u8, 1], |_| 0.5))) - 0.5).abs() < 0.02
        );
    }

    #[test]
    fn a_key_gives_one_stream() {
        let drawn = |key: &[u64]| Random::new(key).part();
        assert_eq!(drawn(&[1, 2]), drawn(&[1, 2]));
        assert_ne!(drawn(&[1, 2]), drawn(&[2, 1]));
    }
}
