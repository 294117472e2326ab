//! Which of several formats each of some matrices gets, so that together they fit and do the least damage: a knapsack from which
//! one thing of each group is taken.

use std::cmp::Ordering;

/// A format that a matrix may get.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// What the matrix then takes.
    pub bytes: u64,
    /// What that costs, of which the sum is to be least: not negative.
    pub damage: f64,
}

/// One choice for each group.
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation {
    /// Where in its group each stands.
    pub chosen: Vec<usize>,
    /// What all take together.
    pub bytes: u64,
    /// The damage of all.
    pub damage: f64,
    /// Whether no other choice does less damage; else so many partial choices were as good that some of them were given up.
    pub is_best: bool,
}

/// Partial choices that are followed at once.
const MOST_STATES: usize = 1 << 17;

/// What is no longer an improvement, as a share of the damage: sums of f64 depend on their order.
const ROUNDING: f64 = 1e-12;

/// A group's choices that are worth a thought, the smallest first: each does less damage than all that are smaller.
struct Group {
    at: usize,
    choices: Vec<(usize, Choice)>,
}

/// Some first groups decided on.
#[derive(Clone, Copy)]
struct State {
    bytes: u64,
    damage: f64,
    before: u32, // the state of one group less
    choice: u32,
}

/// The choices of least damage that take no more than `capacity` bytes together, one of each group; `None` where there are none.
///
/// Partial choices are extended group by group. One goes where another is no larger and does no more damage, and where the damage that it
/// must at least come to, by the Lagrangian bound, is more than that of a choice that is known.
///
/// # Panics
/// If a group has no choice.
#[must_use]
pub fn allocate(groups: &[Vec<Choice>], capacity: u64) -> Option<Allocation> {
    let mut reduced: Vec<Group> =
        groups.iter().enumerate().map(|(at, group)| undominated(at, group)).collect();
    // What is large is decided first: what is small fills the room that is left.
    reduced.sort_by_key(|group| std::cmp::Reverse(group.choices[0].1.bytes));
    let least: u64 = reduced.iter().map(|group| group.choices[0].1.bytes).sum();
    if least > capacity {
        return None;
    }
    let (greedy, price) = greedy(&reduced, capacity);
    let mut known = taken(&reduced, &greedy).damage;
    let mut choices = greedy;
    let (found, is_best) = search(&reduced, capacity, (price, known));
    if let Some(found) = found
        && taken(&reduced, &found).damage < known
    {
        known = taken(&reduced, &found).damage;
        choices = found;
    }
    let total = taken(&reduced, &choices);
    let mut chosen = vec![0; groups.len()];
    for (group, choice) in reduced.iter().zip(&choices) {
        chosen[group.at] = group.choices[*choice].0;
    }
    Some(Allocation { chosen, bytes: total.bytes, damage: known, is_best })
}

fn undominated(at: usize, group: &[Choice]) -> Group {
    assert!(!group.is_empty(), "a group has a choice");
    let mut choices: Vec<_> = group.iter().copied().enumerate().collect();
    choices.sort_by(|(_, a), (_, b)| a.bytes.cmp(&b.bytes).then(by_damage(a.damage, b.damage)));
    let mut kept: Vec<(usize, Choice)> = Vec::new();
    for choice in choices {
        if kept.last().is_none_or(|(_, last)| choice.1.damage < last.damage) {
            kept.push(choice);
        }
    }
    Group { at, choices: kept }
}

fn by_damage(a: f64, b: f64) -> Ordering {
    a.total_cmp(&b)
}

fn taken(groups: &[Group], choices: &[usize]) -> Choice {
    groups.iter().zip(choices).fold(Choice { bytes: 0, damage: 0.0 }, |sum, (group, choice)| {
        let (_, choice) = group.choices[*choice];
        Choice { bytes: sum.bytes + choice.bytes, damage: sum.damage + choice.damage }
    })
}

/// A step from one choice to the next on the convex hull of a group's.
struct Step {
    group: usize,
    to: usize,
    bytes: u64,
    gain: f64, // damage less, for each byte
}

/// The smallest of all, then whatever gains most for each byte as long as it fits; and what the first byte too many would have gained.
fn greedy(groups: &[Group], capacity: u64) -> (Vec<usize>, f64) {
    let mut steps: Vec<Step> = groups.iter().enumerate().flat_map(|(at, group)| hull(at, group)).collect();
    steps.sort_by(|a, b| by_damage(b.gain, a.gain));
    let mut choices = vec![0; groups.len()];
    let mut bytes = taken(groups, &choices).bytes;
    let (mut price, mut shut) = (None, vec![false; groups.len()]);
    for step in steps {
        if shut[step.group] || bytes + step.bytes > capacity {
            shut[step.group] = true; // the steps of a group follow one another
            price.get_or_insert(step.gain);
            continue;
        }
        bytes += step.bytes;
        choices[step.group] = step.to;
    }
    (choices, price.unwrap_or(0.0))
}

fn hull(group: usize, Group { choices, .. }: &Group) -> Vec<Step> {
    let (mut steps, mut from) = (Vec::new(), 0);
    let gain = |from: usize, to: usize| {
        let (a, b) = (choices[from].1, choices[to].1);
        (a.damage - b.damage) / (b.bytes - a.bytes) as f64
    };
    while from + 1 < choices.len() {
        let best = |best: usize, to: usize| if gain(from, to) >= gain(from, best) { to } else { best };
        let to = (from + 1..choices.len()).fold(from + 1, best);
        let bytes = choices[to].1.bytes - choices[from].1.bytes;
        steps.push(Step { group, to, bytes, gain: gain(from, to) });
        from = to;
    }
    steps
}

/// The best choice, if one is better than what is `known`, and whether nothing was given up on the way.
fn search(groups: &[Group], capacity: u64, (price, known): (f64, f64)) -> (Option<Vec<usize>>, bool) {
    let priced = |choice: &Choice| choice.damage + price * choice.bytes as f64;
    // Of the groups that are still to come: the least they take, and the least of damage and price together.
    let mut least = vec![(0_u64, 0.0); groups.len() + 1];
    for (at, group) in groups.iter().enumerate().rev() {
        let cheapest = group.choices.iter().map(|(_, choice)| priced(choice)).fold(f64::MAX, f64::min);
        least[at] = (least[at + 1].0 + group.choices[0].1.bytes, least[at + 1].1 + cheapest);
    }
    let limit = known * (1.0 + ROUNDING) + price * capacity as f64;
    let mut stages = vec![vec![State { bytes: 0, damage: 0.0, before: 0, choice: 0 }]];
    let mut was_whole = true;
    for (at, group) in groups.iter().enumerate() {
        let (room, rest) = (capacity - least[at + 1].0, least[at + 1].1);
        let bound = |state: &State| state.damage + price * state.bytes as f64 + rest;
        let mut next = Vec::new();
        for (before, state) in stages[at].iter().enumerate() {
            for (number, (_, choice)) in group.choices.iter().enumerate() {
                let (bytes, damage) = (state.bytes + choice.bytes, state.damage + choice.damage);
                let extended = State { bytes, damage, before: before as u32, choice: number as u32 };
                if bytes <= room && bound(&extended) <= limit {
                    next.push(extended);
                }
            }
        }
        next.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(by_damage(a.damage, b.damage)));
        let mut best = f64::MAX;
        next.retain(|state| {
            let is_better = state.damage < best;
            best = best.min(state.damage);
            is_better
        });
        if next.len() > MOST_STATES {
            was_whole = false;
            next.sort_by(|a, b| by_damage(bound(a), bound(b)));
            next.truncate(MOST_STATES);
        }
        stages.push(next);
    }
    let last = stages.last().into_iter().flatten().enumerate();
    let best = last.min_by(|(_, a), (_, b)| by_damage(a.damage, b.damage)).map(|(at, _)| at);
    let choices = best.map(|mut at| {
        let mut choices = vec![0; groups.len()];
        for (stage, choice) in stages[1..].iter().zip(&mut choices).rev() {
            *choice = stage[at].choice as usize;
            at = stage[at].before as usize;
        }
        choices
    });
    (choices, was_whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every choice there is.
    fn brute_force(groups: &[Vec<Choice>], capacity: u64) -> Option<f64> {
        let Some((first, rest)) = groups.split_first() else { return Some(0.0) };
        let fitting = first.iter().filter(|choice| choice.bytes <= capacity);
        let damages = fitting.filter_map(|c| Some(c.damage + brute_force(rest, capacity - c.bytes)?));
        damages.reduce(f64::min)
    }

    fn choice() -> impl Strategy<Value = Choice> {
        (1_u64..60, 0_u32..1000).prop_map(|(bytes, damage)| Choice { bytes, damage: f64::from(damage) })
    }

    proptest! {
        #[test]
        fn nothing_that_fits_does_less_damage(
            groups in prop::collection::vec(prop::collection::vec(choice(), 1..5), 1..8), capacity in 1_u64..300,
        ) {
            let found = allocate(&groups, capacity);
            prop_assert_eq!(found.as_ref().map(|found| found.damage), brute_force(&groups, capacity));
            if let Some(found) = found {
                let chosen: Vec<_> = groups.iter().zip(&found.chosen).map(|(group, &at)| group[at]).collect();
                prop_assert!(found.is_best && found.bytes <= capacity);
                prop_assert_eq!(found.bytes, chosen.iter().map(|choice| choice.bytes).sum::<u64>());
                let damage: f64 = chosen.iter().map(|choice| choice.damage).sum();
                prop_assert!((found.damage - damage).abs() <= 1e-12 * damage);
            }
        }
    }

    /// As many matrices as a large model has, in the sizes of real types.
    #[test]
    fn hundreds_of_matrices_are_decided_on_and_the_choice_is_proved_the_best() {
        let bits = [2.0625, 2.3125, 2.5625, 2.625, 3.0625, 3.4375, 4.25, 4.5, 5.5, 6.5625, 8.5, 16.0];
        let sensitivity = |at: usize| 1.0 + ((at * 7919) % 97) as f64 / 10.0;
        let group = |at: usize| {
            let weights = [4096 * 4096, 1024 * 4096, 14336 * 4096][at % 3];
            let choice = |bits: f64| Choice {
                bytes: (bits * f64::from(weights) / 8.0) as u64,
                damage: sensitivity(at) * f64::from(weights) * (-1.4 * bits).exp2(),
            };
            bits.map(choice).to_vec()
        };
        let groups: Vec<_> = (0..225).map(group).collect();
        let weights: u64 = groups.iter().map(|group| group[11].bytes / 2).sum();
        let found = allocate(&groups, weights * 41 / 80).expect("it fits");
        assert!(found.is_best);
        assert!(
            weights * 41 / 80 - found.bytes < weights / 10_000,
            "{} bytes are left",
            weights * 41 / 80 - found.bytes
        );
    }
}
