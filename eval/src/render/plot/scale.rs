//! Where a number lies in a drawing.

/// From numbers to coordinates, evenly or by their logarithms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    from: f64,
    to: f64,
    log: bool,
    pub(super) start: f64,
    pub(super) end: f64,
}

impl Axis {
    /// From 0 to the largest of `values`, and a little beyond.
    pub(super) fn from_zero(values: impl IntoIterator<Item = f64>) -> Self {
        let largest = values.into_iter().filter(|value| value.is_finite()).fold(0.0, f64::max);
        Self::new(0.0, if largest > 0.0 { 1.05 * largest } else { 1.0 }, false)
    }

    /// Around the ones of `values` that can be drawn.
    pub(super) fn around(values: impl IntoIterator<Item = f64>) -> Self {
        let drawable = values.into_iter().filter(|value| value.abs() < 1e150);
        let (least, largest) = ends(drawable).unwrap_or((0.0, 1.0));
        let spread = if largest > least { largest - least } else { largest.abs().max(1.0) };
        Self::new(least - 0.08 * spread, largest + 0.08 * spread, false)
    }

    /// Around the positive ones of `values`, by their logarithms.
    pub(super) fn log(values: impl IntoIterator<Item = f64>) -> Self {
        let positive = values.into_iter().filter(|value| value.is_normal() && *value > 0.0);
        let (least, largest) = ends(positive).unwrap_or((0.1, 1.0));
        let room = if largest > least { (largest / least).powf(0.06) } else { 2.0 };
        Self::new((least / room).max(f64::MIN_POSITIVE), (largest * room).min(f64::MAX), true)
    }

    /// Exactly between two positive numbers, by their logarithms.
    pub(super) fn log_between(from: f64, to: f64) -> Self {
        Self::new(from, to, true)
    }

    /// Every whole number up to `last`, half a step of room at either end.
    pub(super) fn steps(last: u64) -> Self {
        Self::new(-0.5, last as f64 + 0.5, false)
    }

    fn new(from: f64, to: f64, log: bool) -> Self {
        Self { from, to, log, start: 0.0, end: 1.0 }
    }

    /// Drawn from `start` to `end`.
    pub(super) fn over(self, start: f64, end: f64) -> Self {
        Self { start, end, ..self }
    }

    /// Where `value` lies; what lies outside is put at the edge.
    pub(super) fn at(&self, value: f64) -> f64 {
        let inside = if value.is_nan() { self.from } else { value.clamp(self.from, self.to) };
        let share = if self.log {
            (inside.ln() - self.from.ln()) / (self.to.ln() - self.from.ln())
        } else {
            (inside - self.from) / (self.to - self.from)
        };
        self.start + share * (self.end - self.start)
    }

    /// About `most` round numbers, never more than twice as many.
    pub(super) fn ticks(&self, most: usize) -> Vec<f64> {
        if !self.log {
            return self.even_ticks(most);
        }
        let decades: Vec<i32> = (self.from.log10().ceil() as i32..=self.to.log10().floor() as i32).collect();
        if decades.len() > 2 {
            let stride = decades.len().div_ceil(most.max(1));
            return decades.into_iter().step_by(stride).map(|decade| 10_f64.powi(decade)).collect();
        }
        let below = self.from.log10().floor() as i32;
        let round =
            (below..=below + 3).flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(decade)));
        let round: Vec<f64> = round.filter(|tick| (self.from..=self.to).contains(tick)).collect();
        match round.len() {
            0..2 => self.even_ticks(most),
            // Two decades say enough where there is little room.
            many if many > most && decades.len() == 2 => {
                decades.into_iter().map(|decade| 10_f64.powi(decade)).collect()
            }
            _ => round,
        }
    }

    /// Only whole numbers.
    pub(super) fn whole_ticks(&self, most: usize) -> Vec<f64> {
        self.even_ticks(most).into_iter().filter(|tick| tick.fract() == 0.0).collect()
    }

    fn even_ticks(&self, most: usize) -> Vec<f64> {
        let rough = (self.to - self.from) / most.max(1) as f64;
        let decade = 10_f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|digit| digit * decade).into_iter().find(|step| *step >= 0.9 * rough);
        let step = step.unwrap_or(10.0 * decade);
        let first = (self.from / step).ceil() as i64;
        (first..)
            .map(|index| index as f64 * step)
            .take_while(|tick| *tick <= self.to)
            .take(2 * most)
            .collect()
    }
}

fn ends(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |ends, value| {
        let (least, largest) = ends.unwrap_or((value, value));
        Some((value.min(least), value.max(largest)))
    })
}

/// A round number as the label of a tick: `0.05`, `1000`, `10⁻⁶`.
pub(super) fn number(value: f64) -> String {
    let size = value.abs();
    if size == 0.0 {
        return "0".to_owned();
    }
    if (1e-4..1e5).contains(&size) {
        let decimals = (3.0 - size.log10().floor()).clamp(0.0, 7.0) as usize;
        let text = format!("{value:.decimals$}");
        let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
        return text.to_owned();
    }
    let scientific = format!("{value:.1e}").replace(".0e", "e");
    let Some((digits, power)) = scientific.split_once('e') else { return scientific };
    let raised: String = power.chars().map(superscript).collect();
    if digits == "1" { format!("10{raised}") } else { format!("{digits}·10{raised}") }
}

fn superscript(c: char) -> char {
    match c {
        '-' => '⁻',
        '1' => '¹',
        '2' => '²',
        '3' => '³',
        digit => digit.to_digit(10).and_then(|digit| char::from_u32(0x2070 + digit)).unwrap_or(digit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_axis_keeps_what_it_is_given_inside() {
        let odd = [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e-300, 1e300];
        for values in [&odd[..], &odd[..4], &odd[3..4], &[], &[5.0], &[-3.0]] {
            let values = values.iter().copied();
            for axis in
                [Axis::from_zero(values.clone()), Axis::around(values.clone()), Axis::log(values.clone())]
            {
                let axis = axis.over(10.0, 110.0);
                for value in odd {
                    assert!((10.0..=110.0).contains(&axis.at(value)), "{axis:?} at {value}");
                }
                assert!(axis.ticks(5).len() <= 10, "{axis:?}: {:?}", axis.ticks(5));
            }
        }
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(Axis::from_zero([10.0]).ticks(5), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(Axis::log_between(1e-6, 1.0).ticks(4), [1e-6, 1e-4, 1e-2, 1.0]);
        assert_eq!(Axis::log_between(1.5, 12.0).ticks(4), [2.0, 5.0, 10.0]);
        assert_eq!(Axis::log_between(4.1, 4.9).ticks(4).len(), 4);
        assert_eq!(Axis::steps(2).whole_ticks(5), [0.0, 1.0, 2.0]);
    }

    #[test]
    fn labels_are_short() {
        let cases = [
            (0.0, "0"),
            (0.1 + 0.2, "0.3"),
            (40.0, "40"),
            (0.001, "0.001"),
            (1e-6, "10⁻⁶"),
            (2e-10, "2·10⁻¹⁰"),
            (-2.5, "-2.5"),
        ];
        for (value, label) in cases {
            assert_eq!(number(value), label);
        }
    }
}
