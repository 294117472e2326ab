//! Labels that do not cover one another.

use super::text_width;

/// Height of a label.
const HEIGHT: f64 = 14.0;

/// Labels at the left of marks that come from left to right, each in the lowest row where it touches no other and no line
/// from the label of a mark to its foot goes through it.
#[derive(Default)]
pub(super) struct Flags {
    placed: Vec<(f64, usize)>, // right end, row
}

impl Flags {
    /// Where `label` of the mark at `x` ends, kept right of `left`, and its row, counted from 0.
    pub(super) fn place(&mut self, label: &str, x: f64, left: f64) -> (f64, usize) {
        let end = (x - 4.0).max(left + text_width(label));
        let start = end - text_width(label) - 6.0;
        let below = self.placed.iter().filter(|(mark, _)| *mark > start).map(|(_, row)| row + 1);
        let row = below.max().unwrap_or(0);
        self.placed.push((end.max(x), row));
        (end, row)
    }
}

/// A rectangle: left, top, right, bottom.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Area {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) right: f64,
    pub(super) bottom: f64,
}

impl Area {
    /// Around a point.
    pub(super) fn around([x, y]: [f64; 2], radius: f64) -> Self {
        Self { left: x - radius, top: y - radius, right: x + radius, bottom: y + radius }
    }

    /// What two share.
    pub(super) fn overlap(&self, other: &Self) -> f64 {
        let wide = self.right.min(other.right) - self.left.max(other.left);
        let high = self.bottom.min(other.bottom) - self.top.max(other.top);
        if wide > 0.0 && high > 0.0 { wide * high } else { 0.0 }
    }

    fn holds(&self, other: &Self) -> bool {
        self.left <= other.left
            && other.right <= self.right
            && self.top <= other.top
            && other.bottom <= self.bottom
    }
}

/// Labels beside points of a scatter plot.
pub(super) struct Placer {
    field: Area,
    taken: Vec<Area>,
}

impl Placer {
    /// Within `field`, off the `taken` areas.
    pub(super) fn new(field: Area, taken: Vec<Area>) -> Self {
        Self { field, taken }
    }

    /// Where `label` of the point at `at` stands: the nearest place that is free, or the freest.
    pub(super) fn place(&mut self, label: &str, at: [f64; 2]) -> Area {
        let wide = text_width(label);
        let mut best: Option<(f64, Area)> = None;
        for distance in [8.0, 18.0, 30.0, 44.0, 60.0, 80.0, 104.0, 132.0] {
            for [across, down] in
                [[1.0, -0.3], [1.0, 0.9], [-1.0, -0.3], [-1.0, 0.9], [0.0, -1.0], [0.0, 1.0]]
            {
                let left = at[0] + across * distance - wide * (1.0 - across) / 2.0;
                let middle = at[1] + down * (distance + HEIGHT / 2.0 - 3.0);
                let [top, bottom] = [middle - HEIGHT / 2.0, middle + HEIGHT / 2.0];
                let area = Area { left, top, right: left + wide, bottom };
                let covered: f64 = self.taken.iter().map(|other| area.overlap(other)).sum();
                let cost = if self.field.holds(&area) { covered } else { f64::MAX };
                if best.is_none_or(|(least, _)| cost < least) {
                    best = Some((cost, area));
                }
            }
            if best.is_some_and(|(cost, _)| cost == 0.0) {
                break;
            }
        }
        let area = best.map_or(Area::around(at, 1.0), |(_, area)| area);
        self.taken.push(area);
        area
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_label_touches_another_or_the_line_of_another() {
        let marks = [150.0, 160.0, 290.0, 300.0, 399.0];
        let mut flags = Flags::default();
        let places = marks.map(|x| flags.place("99.9 % 0.123", x, 0.0));
        assert_eq!(places.map(|(_, row)| row), [0, 1, 0, 1, 0]);
        for (end, row) in places {
            let start = end - text_width("99.9 % 0.123");
            let crossing = |(x, (_, other)): (&f64, &(f64, usize))| (start..end).contains(x) && *other > row;
            assert!(!marks.iter().zip(&places).any(crossing), "{places:?}");
        }
    }

    #[test]
    fn labels_of_twenty_points_cover_neither_each_other_nor_points() {
        let field = Area { left: 50.0, top: 10.0, right: 500.0, bottom: 350.0 };
        let points: Vec<[f64; 2]> =
            (0..20).map(|i| [70.0 + 20.0 * f64::from(i), 30.0 + f64::from(i * i) * 0.75]).collect();
        let marks: Vec<Area> = points.iter().map(|&point| Area::around(point, 5.0)).collect();
        let mut placer = Placer::new(field, marks.clone());
        let labels: Vec<Area> = points.iter().map(|&point| placer.place("w4a16-g128", point)).collect();
        for (index, label) in labels.iter().enumerate() {
            assert!(field.holds(label), "{index}");
            let others = labels[..index].iter().chain(&marks);
            assert!(others.into_iter().all(|other| label.overlap(other) == 0.0), "{index}");
        }
    }
}
