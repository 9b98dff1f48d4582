//! The order of the data in a run.

use pyrograph_engine::random::SplitMix64;

/// The order in which a run sees its images: a new permutation per epoch, a pure function of the seed, so
/// that a run can go on anywhere.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    len: usize,
    seed: u64,
}

impl Order {
    /// The order of `len` images.
    pub fn new(len: usize, seed: u64) -> Self {
        Self { len, seed }
    }

    /// Images at positions `position..position + count` of the endless sequence of epochs.
    pub fn indices(&self, position: u64, count: usize) -> Vec<usize> {
        let len = self.len as u64;
        let mut found = Vec::with_capacity(count);
        let mut epoch = None;
        let mut permutation = Vec::new();
        for at in position..position + count as u64 {
            if epoch != Some(at / len) {
                epoch = Some(at / len);
                permutation = self.permutation(at / len);
            }
            found.push(permutation[(at % len) as usize]);
        }
        found
    }

    /// Fisher-Yates with a stream of SplitMix64 per epoch.
    fn permutation(&self, epoch: u64) -> Vec<usize> {
        let epoch = SplitMix64::new(epoch.wrapping_add(1)).next_u64();
        let mut random = SplitMix64::new(self.seed ^ epoch);
        let mut order: Vec<usize> = (0..self.len).collect();
        for i in (1..self.len).rev() {
            // The bias of the remainder is below 2^-40 for any number of images that fits in memory.
            order.swap(i, (random.next_u64() % (i as u64 + 1)) as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_is_a_permutation_and_any_part_can_be_asked_for() {
        let order = Order::new(10, 3);
        let all = order.indices(0, 30);
        for epoch in all.chunks(10) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(all[..10], all[10..20]);
        assert_eq!(order.indices(7, 9), all[7..16]);
    }
}
