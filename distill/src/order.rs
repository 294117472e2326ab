//! Which windows a step learns from.

/// The order in which windows are seen: each text's all once before any twice, in an order of the seed's choosing, texts in turn
/// by their weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    texts: Vec<Text>,
    batch: usize,
    seed: u64,
    drawn: u64,
}

/// One text's windows among all.
#[derive(Debug, Clone, PartialEq)]
struct Text {
    first: usize,
    windows: usize,
    share: f64,
    drawn: u64,
}

impl Order {
    /// `batch` windows a step, of texts of so many windows each, seen in proportion to a weight. All windows are numbered through
    /// in the order of the texts.
    ///
    /// # Panics
    /// If there is no text, one has no window or no positive finite weight, or the batch is empty.
    pub fn new(texts: &[(usize, f64)], batch: usize, seed: u64) -> Self {
        assert!(batch > 0 && !texts.is_empty(), "a step sees a window");
        let sound = |(windows, weight): &(usize, f64)| *windows > 0 && *weight > 0.0 && weight.is_finite();
        assert!(texts.iter().all(sound), "every text has windows and a weight");
        let total: f64 = texts.iter().map(|(_, weight)| weight).sum();
        let mut first = 0;
        let texts = texts.iter().map(|&(windows, weight)| {
            let start = first;
            first += windows;
            Text { first: start, windows, share: weight / total, drawn: 0 }
        });
        Self { texts: texts.collect(), batch, seed, drawn: 0 }
    }

    /// The same order after so many steps.
    #[must_use]
    pub fn after(mut self, steps: u64) -> Self {
        for _ in 0..steps * self.batch as u64 {
            self.draw();
        }
        self
    }

    /// The windows of the next step.
    pub fn next_step(&mut self) -> Vec<usize> {
        (0..self.batch).map(|_| self.draw()).collect()
    }

    /// The next window of the text that is furthest behind its share.
    fn draw(&mut self) -> usize {
        self.drawn += 1;
        let behind = |text: &Text| text.share * self.drawn as f64 - text.drawn as f64;
        let mut furthest = 0;
        for text in 1..self.texts.len() {
            if behind(&self.texts[text]) > behind(&self.texts[furthest]) {
                furthest = text;
            }
        }
        let text = &mut self.texts[furthest];
        let nth = text.drawn;
        text.drawn += 1;
        let (epoch, place) = (nth / text.windows as u64, (nth % text.windows as u64) as usize);
        let key = mix(self.seed ^ mix(furthest as u64 + 1) ^ mix(!epoch));
        text.first + shuffled(text.windows, key, place)
    }
}

/// The element at `place` of a permutation of `0..count`: a Feistel network over the next power of four, walked until it lands
/// inside.
///
/// # Panics
/// Where there are no elements.
///
/// # Source
/// Black and Rogaway, "Ciphers with Arbitrary Finite Domains", section 3 (cycle walking).
pub fn shuffled(count: usize, key: u64, place: usize) -> usize {
    let half_bits = (usize::BITS - (count - 1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half_bits) - 1;
    let mut at = place as u64;
    loop {
        let (mut left, mut right) = (at >> half_bits, at & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (mix(key ^ mix(right << 2 | round)) & mask));
        }
        at = left << half_bits | right;
        if at < count as u64 {
            return at as usize;
        }
    }
}

/// A 64-bit number with all bits mixed.
///
/// # Source
/// Steele et al., "Fast Splittable Pseudorandom Number Generators", the finalizer of `SplitMix64`.
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_window_is_seen_once_before_any_is_seen_twice(
            windows in 1usize..200, batch in 1usize..9, seed: u64,
        ) {
            let mut order = Order::new(&[(windows, 1.0)], batch, seed);
            let steps = (2 * windows).div_ceil(batch);
            let seen: Vec<usize> = (0..steps).flat_map(|_| order.next_step()).collect();
            for epoch in seen.chunks_exact(windows) {
                let mut epoch = epoch.to_vec();
                epoch.sort_unstable();
                prop_assert!(epoch.into_iter().eq(0..windows));
            }
        }

        #[test]
        fn texts_are_seen_by_their_weights(counts in prop::collection::vec((1usize..50, 0.1..10.0f64), 1..5)) {

            let total: f64 = counts.iter().map(|(_, weight)| weight).sum();
            let mut order = Order::new(&counts, 1, 7);
            let mut seen = vec![0u32; counts.iter().map(|(windows, _)| windows).sum()];
            for drawn in 1..=500 {
                seen[order.next_step()[0]] += 1;
                let mut first = 0;
                for (windows, weight) in &counts {
                    let of_text: u32 = seen[first..first + windows].iter().sum();
                    let due = weight / total * f64::from(drawn);
                    prop_assert!((f64::from(of_text) - due).abs() < counts.len() as f64);
                    first += windows;
                }
            }
        }
    }

    #[test]
    fn the_seed_decides_and_epochs_differ() {
        let epoch = |seed, epochs: u64| Order::new(&[(64, 1.0)], 64, seed).after(epochs).next_step();
        assert_eq!(epoch(1, 0), epoch(1, 0));
        assert_ne!(epoch(1, 0), epoch(2, 0));
        assert_ne!(epoch(1, 0), epoch(1, 1));
        assert_ne!(epoch(1, 0), (0..64).collect::<Vec<_>>());
    }

    #[test]
    fn an_order_taken_up_again_is_the_order_never_left() {
        let texts = [(13, 1.0), (5, 0.3), (40, 2.5)];
        let mut whole = Order::new(&texts, 3, 9);
        let steps: Vec<_> = (0..50).map(|_| whole.next_step()).collect();
        let mut again = Order::new(&texts, 3, 9).after(20);
        assert!((20..50).all(|step| again.next_step() == steps[step]));
    }
}
