//! Whole rows of logits for a few tokens at a time, from a head that need not be whole.

use std::ops::Range;

use attar_model::teacher::Cache;
use attar_model::{HeadRows, HeadSource, HiddenStates, Norm};
use ndarray::{Array2, ArrayView2, Axis, concatenate, s};

use crate::{Error, Portion};

/// What a head reads, for every scored token.
#[derive(Clone, Copy)]
pub(crate) enum States<'a> {
    /// Of a model that was run: hidden states before the final norm, `[scored tokens, hidden_size]`.
    Run(&'a Norm, &'a HiddenStates),
    /// Of a model that was run before.
    Kept(&'a Cache),
}

impl States<'_> {
    /// After the final norm, `[rows.len(), hidden_size]`.
    pub(crate) fn normed(&self, rows: Range<usize>) -> Result<Array2<f32>, Error> {
        match self {
            Self::Run(norm, hidden) => {
                let hidden = hidden.read(rows).map_err(|error| Error::Forward(error.into()))?;
                Ok(norm.apply(hidden.view()))
            }
            Self::Kept(cache) => Ok(cache.hidden(rows)?),
        }
    }
}

/// Makes one model's logits.
pub(crate) struct Logits<'a> {
    states: States<'a>,
    head: HeadSource<'a>,
    held: Option<HeadRows>,
    slice: usize,
    rows: Array2<f32>, // [tokens at once, vocab_size], used over and over
}

impl<'a> Logits<'a> {
    /// Takes `portion`'s memory.
    pub(crate) fn new(states: States<'a>, head: HeadSource<'a>, portion: Portion) -> Result<Self, Error> {
        let vocab_size = head.vocab_size();
        let held = if portion.holds_heads() { Some(head.rows(0..vocab_size)) } else { None };
        let held = held.transpose().map_err(Error::Forward)?;
        let rows = Array2::zeros((portion.tokens, vocab_size));
        Ok(Self { states, head, held, slice: portion.slice, rows })
    }

    /// Logits of scored tokens, `[tokens.len(), vocab_size]`.
    ///
    /// # Panics
    /// If these are more tokens than the portion allows.
    pub(crate) fn of(&mut self, tokens: Range<usize>) -> Result<ArrayView2<'_, f32>, Error> {
        let normed = self.states.normed(tokens)?;
        self.read(normed.view())
    }

    /// Logits of single tokens, `[tokens.len(), vocab_size]`.
    ///
    /// # Panics
    /// As [`of`](Self::of).
    pub(crate) fn rows(&mut self, tokens: &[usize]) -> Result<ArrayView2<'_, f32>, Error> {
        let rows = tokens.iter().map(|&token| self.states.normed(token..token + 1));
        let rows = rows.collect::<Result<Vec<_>, Error>>()?;
        let views: Vec<_> = rows.iter().map(|row| row.view()).collect();
        let normed = concatenate(Axis(0), &views).expect("all rows have the head's features");
        self.read(normed.view())
    }

    /// What the head makes of `normed`, `[tokens, hidden_size]`.
    fn read(&mut self, normed: ArrayView2<'_, f32>) -> Result<ArrayView2<'_, f32>, Error> {
        let count = normed.nrows();
        let mut out = self.rows.slice_mut(s![..count, ..]);
        if let Some(head) = &self.held {
            head.logits_into(normed, out.view_mut());
        } else {
            let vocab_size = self.head.vocab_size();
            for first in (0..vocab_size).step_by(self.slice) {
                let slice = first..vocab_size.min(first + self.slice);
                let head = self.head.rows(slice.clone()).map_err(Error::Forward)?;
                head.logits_into(normed, out.slice_mut(s![.., slice]));
            }
        }
        Ok(self.rows.slice(s![..count, ..]))
    }
}
