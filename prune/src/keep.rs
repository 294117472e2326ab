//! Which of some things are kept.

use crate::Error;
use std::cmp::Ordering;

/// Which of `of` layers, heads, channels or features are kept: at least one, each once, rising.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepList {
    kept: Vec<usize>,
    of: usize,
}

/// How many are kept of each of some equally large neighbourhoods: of the query heads of every key head, or of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pools {
    /// How many neighbourhoods there are.
    pub pools: usize,
    /// How many are kept of each.
    pub kept: usize,
}

impl Pools {
    /// All are one neighbourhood.
    pub fn one(kept: usize) -> Self {
        Self { pools: 1, kept }
    }
}

impl KeepList {
    /// All of them.
    ///
    /// # Panics
    /// If there are none.
    pub fn all(of: usize) -> Self {
        assert!(of > 0, "a list of nothing");
        Self { kept: (0..of).collect(), of }
    }

    /// Those of `kept`, in whatever order they come.
    ///
    /// # Errors
    /// None, or one that is not there.
    pub fn new(kept: impl IntoIterator<Item = usize>, of: usize) -> Result<Self, Error> {
        let mut kept: Vec<_> = kept.into_iter().collect();
        kept.sort_unstable();
        kept.dedup();
        match kept.last() {
            None => Err(Error::NothingLeft { of }),
            Some(&index) if index >= of => Err(Error::NotThere { index, of }),
            Some(_) => Ok(Self { kept, of }),
        }
    }

    /// All but those of `dropped`.
    ///
    /// # Errors
    /// One that is not there, or none that is left.
    pub fn without(dropped: &[usize], of: usize) -> Result<Self, Error> {
        if let Some(&index) = dropped.iter().find(|&&index| index >= of) {
            return Err(Error::NotThere { index, of });
        }
        Self::new((0..of).filter(|index| !dropped.contains(index)), of)
    }

    /// The `count` of the highest scores; among equals those of the lower index.
    ///
    /// # Panics
    /// If there are not as many scores, or none is to be kept.
    pub fn top(scores: &[f64], count: usize) -> Self {
        Self::top_of(scores, Pools::one(count))
    }

    /// The highest scores of each of some neighbourhoods; among equals those of the lower index.
    ///
    /// # Panics
    /// If the neighbourhoods are not equally large, have fewer than are to be kept, or none is to be kept.
    pub fn top_of(scores: &[f64], Pools { pools, kept: count }: Pools) -> Self {
        let of = scores.len();
        assert!(pools > 0 && of.is_multiple_of(pools), "{of} scores are not {pools} equal pools");
        let size = of / pools;
        assert!(count > 0 && count <= size, "{count} of {size} cannot be kept");
        let falling = |a: &usize, b: &usize| -> Ordering { scores[*b].total_cmp(&scores[*a]) };
        let best = |pool: usize| {
            let mut order: Vec<_> = (pool * size..(pool + 1) * size).collect();
            order.sort_by(falling); // stable: equals as they stand
            order.truncate(count);
            order.sort_unstable();
            order
        };
        Self { kept: (0..pools).flat_map(best).collect(), of }
    }

    /// What is kept, rising.
    pub fn kept(&self) -> &[usize] {
        &self.kept
    }

    /// What goes, rising.
    pub fn dropped(&self) -> Vec<usize> {
        (0..self.of).filter(|index| self.kept.binary_search(index).is_err()).collect()
    }

    /// Whether one is kept.
    pub fn keeps(&self, index: usize) -> bool {
        self.kept.binary_search(&index).is_ok()
    }

    /// How many are kept.
    #[expect(clippy::len_without_is_empty, reason = "no list is empty")]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// How many there were.
    pub fn of(&self) -> usize {
        self.of
    }

    /// Whether nothing goes.
    pub fn is_all(&self) -> bool {
        self.kept.len() == self.of
    }

    /// The list of their parts, where each has `parts`: of heads the list of features.
    #[must_use]
    pub fn in_parts(&self, parts: usize) -> Self {
        let kept = self.kept.iter().flat_map(|index| index * parts..(index + 1) * parts);
        Self { kept: kept.collect(), of: self.of * parts }
    }

    /// What is left of this list when only `further` of what it keeps are kept.
    ///
    /// # Panics
    /// If `further` is not of as many as this list keeps.
    #[must_use]
    pub fn then(&self, further: &Self) -> Self {
        assert_eq!(further.of, self.len(), "a list of what is left");
        Self { kept: further.kept.iter().map(|&index| self.kept[index]).collect(), of: self.of }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_kept_and_what_goes_are_all(scores in prop::collection::vec(-3i32..3, 1..40), share in 0.0f64..1.0) {
            let scores: Vec<f64> = scores.into_iter().map(f64::from).collect();
            let count = ((scores.len() as f64 * share) as usize).max(1);
            let list = KeepList::top(&scores, count);
            prop_assert_eq!(list.len(), count);
            let mut both = [list.kept(), &list.dropped()].concat();
            both.sort_unstable();
            prop_assert_eq!(both, (0..scores.len()).collect::<Vec<_>>());
            let least = list.kept().iter().map(|&i| scores[i]).fold(f64::INFINITY, f64::min);
            prop_assert!(list.dropped().iter().all(|&i| scores[i] <= least));
            prop_assert_eq!(KeepList::without(&list.dropped(), scores.len()).unwrap(), list);
        }
    }

    #[test]
    fn among_equals_the_lower_index_is_kept() {
        assert_eq!(KeepList::top(&[1.0, 2.0, 1.0, 2.0, 1.0], 3).kept(), [0, 1, 3]);
    }

    #[test]
    fn every_pool_keeps_its_best_however_good_the_others_are() {
        let list = KeepList::top_of(&[9.0, 8.0, 7.0, 0.0, 1.0, 2.0], Pools { pools: 2, kept: 1 });
        assert_eq!(list.kept(), [0, 5]);
    }

    #[test]
    fn lists_of_heads_become_lists_of_features_and_lists_of_what_is_left_follow_on() {
        let heads = KeepList::new([2, 0], 3).unwrap();
        assert_eq!(heads.in_parts(2).kept(), [0, 1, 4, 5]);
        assert_eq!(heads.in_parts(2).of(), 6);
        assert_eq!(heads.then(&KeepList::new([1], 2).unwrap()).kept(), [2]);
    }

    #[test]
    fn what_is_not_there_is_refused_by_its_number() {
        assert_eq!(
            KeepList::without(&[7], 4).unwrap_err().to_string(),
            "7 is not one of 4: they are numbered from 0 to 3"
        );
        assert_eq!(KeepList::without(&[0, 1], 2).unwrap_err().to_string(), "none of 2 would be left");
        assert!(KeepList::new([3], 3).is_err());
    }
}
