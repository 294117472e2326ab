//! Which block of a teacher a student's block is to do as.

use crate::Error;
use attar_model::ModelConfig;

/// Blocks of a student, rising and each once, and with each the block of its teacher after which the residual stream is to be the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerMap(Vec<(usize, usize)>);

impl LayerMap {
    /// Every block of a student, the teacher's blocks evenly spread over them: the student's last does as the teacher's last.
    ///
    /// # Source
    /// Sun et al., "Patient Knowledge Distillation", arXiv:1908.09355, section 3.3 (PKD-Skip), rounded where one number of layers is no
    /// multiple of the other.
    ///
    /// # Panics
    /// If either has no block.
    pub fn even(student: usize, teacher: usize) -> Self {
        assert!(student > 0 && teacher > 0, "a model has blocks");
        let after = |blocks: usize| (2 * blocks * teacher + student) / (2 * student); // rounded, halves up
        Self((0..student).map(|layer| (layer, after(layer + 1).max(1) - 1)).collect())
    }

    /// Every block of a student that was made of a teacher by leaving blocks out, `kept` those that stayed: each does as the teacher's
    /// last block before the next that stayed, for it has the work of those between to do.
    ///
    /// # Panics
    /// If `kept` is empty, does not rise, or has a block that the teacher has not.
    pub fn of_kept(kept: &[usize], teacher: usize) -> Self {
        assert!(
            !kept.is_empty() && kept.is_sorted_by(|a, b| a < b),
            "blocks that stayed, in order: {kept:?}"
        );
        let nexts = kept[1..].iter().copied().chain([teacher]);
        let pairs: Vec<_> = nexts.enumerate().map(|(layer, next)| (layer, next - 1)).collect();
        assert!(kept.iter().all(|&layer| layer < teacher), "{kept:?} of {teacher} blocks");
        Self(pairs)
    }

    /// These pairs of a student's and a teacher's block, in whatever order they come.
    ///
    /// # Errors
    /// None, or two for one block of the student.
    pub fn new(pairs: impl IntoIterator<Item = (usize, usize)>) -> Result<Self, Error> {
        let mut pairs: Vec<_> = pairs.into_iter().collect();
        pairs.sort_unstable();
        if pairs.is_empty() {
            return Err(Error::NoLayers);
        }
        match pairs.windows(2).find(|two| two[0].0 == two[1].0) {
            Some(two) => Err(Error::LayerTwice { layer: two[0].0 }),
            None => Ok(Self(pairs)),
        }
    }

    /// Holds the map to the two models it is for: the blocks are there and their streams are equally wide.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn check(&self, student: &ModelConfig, teacher: &ModelConfig) -> Result<(), Error> {
        let [of_student, of_teacher] = [student, teacher].map(|config| config.num_hidden_layers);
        for &(layer, like) in &self.0 {
            if layer >= of_student {
                return Err(Error::NoSuchLayer { whose: "student", layer, layers: of_student });
            }
            if like >= of_teacher {
                return Err(Error::NoSuchLayer { whose: "teacher", layer: like, layers: of_teacher });
            }
        }
        if student.hidden_size == teacher.hidden_size {
            return Ok(());
        }
        Err(Error::Width { student: student.hidden_size, teacher: teacher.hidden_size })
    }

    /// The pairs of a student's and a teacher's block, rising by the student's.
    pub fn pairs(&self) -> &[(usize, usize)] {
        &self.0
    }

    /// The teacher's block that a student's block is to do as, if it is to do as any.
    pub fn teacher_of(&self, layer: usize) -> Option<usize> {
        let at = self.0.binary_search_by_key(&layer, |&(student, _)| student).ok()?;
        Some(self.0[at].1)
    }

    /// Whether a later block of the student never does as an earlier block of the teacher.
    pub fn rises(&self) -> bool {
        self.0.is_sorted_by_key(|&(_, teacher)| teacher)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_teacher_of_twice_as_many_layers_is_followed_at_every_second() {
        assert_eq!(LayerMap::even(4, 8).pairs(), [(0, 1), (1, 3), (2, 5), (3, 7)]);
        assert_eq!(LayerMap::even(3, 3).pairs(), [(0, 0), (1, 1), (2, 2)]);
        assert_eq!(LayerMap::even(3, 8).pairs(), [(0, 2), (1, 4), (2, 7)]);
    }

    #[test]
    fn a_block_before_those_that_were_left_out_does_their_work_too() {
        assert_eq!(LayerMap::of_kept(&[0, 1, 4, 5], 7).pairs(), [(0, 0), (1, 3), (2, 4), (3, 6)]);
        assert_eq!(LayerMap::of_kept(&[2], 3).pairs(), [(0, 2)]);
        assert_eq!(LayerMap::of_kept(&[0, 1, 2], 3), LayerMap::even(3, 3));
    }

    proptest! {
        #[test]
        fn an_even_map_has_every_block_rises_and_ends_together(student in 1usize..90, teacher in 1usize..90) {
            let map = LayerMap::even(student, teacher);
            prop_assert!(map.rises() && map.pairs().iter().map(|pair| pair.0).eq(0..student));
            prop_assert_eq!(map.teacher_of(student - 1), Some(teacher - 1));
            prop_assert!(student > teacher || map.pairs().windows(2).all(|two| two[0].1 < two[1].1));
        }
    }

    #[test]
    fn a_map_has_each_block_of_the_student_once_and_not_none() {
        let map = LayerMap::new([(2, 5), (0, 3)]).unwrap();
        assert_eq!((map.pairs(), map.rises(), map.teacher_of(1)), (&[(0, 3), (2, 5)][..], true, None));
        assert!(!LayerMap::new([(0, 3), (1, 2)]).unwrap().rises());
        let error = LayerMap::new([(1, 0), (1, 2)]).unwrap_err().to_string();
        assert_eq!(error, "layer 1 of the student has two of the teacher's");
        assert!(matches!(LayerMap::new([]), Err(Error::NoLayers)));
    }
}
