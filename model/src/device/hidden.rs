//! The hidden states of all tokens between two blocks: on the device, or on the host and some of them there while they are worked on.

use super::{DevicePlace, OnCuda};
use crate::{Error, HiddenStates};
use attar_tensor::cuda::{Element, Matrix, Rows, RowsMut};
use std::ops::Range;

/// Hidden states `[tokens, hidden_size]` that a device works on, whole windows at a time.
#[derive(Debug)]
pub struct DeviceHidden<T> {
    on: OnCuda,
    ctx: usize,
    host: HiddenStates,
    there: Option<Matrix<T>>, // all of them, where they stay on the device
}

impl<T: Element> DeviceHidden<T> {
    /// Hidden states in windows of `ctx` tokens, kept where the plan says.
    ///
    /// # Errors
    /// If the device's memory is short, or a disk fails.
    pub fn new(on: &OnCuda, host: HiddenStates, ctx: usize) -> Result<Self, Error> {
        let mut hidden = Self { on: on.clone(), ctx, host, there: None };
        if on.plan.hidden == DevicePlace::Device {
            let mut all = on.cuda.room((hidden.host.tokens(), hidden.host.features()))?;
            for rows in hidden.chunks() {
                let here = hidden.host.read(rows.clone())?;
                on.cuda.write(all.view_mut().rows(rows.start, rows.end), here.view())?;
            }
            hidden.there = Some(all);
        }
        Ok(hidden)
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.host.tokens()
    }

    /// Rows of whole windows that pass through a block together.
    pub fn chunks(&self) -> impl Iterator<Item = Range<usize>> + use<T> {
        let (tokens, step) = (self.host.tokens(), self.on.plan.windows_at_once as usize * self.ctx);
        (0..tokens).step_by(step).map(move |start| start..tokens.min(start + step))
    }

    /// Lets `look` read some rows.
    ///
    /// # Errors
    /// Those of `look`; if memory is short, or a disk fails.
    pub fn read<R>(
        &self,
        rows: Range<usize>,
        look: impl FnOnce(Rows<'_, T>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        match &self.there {
            Some(all) => look(all.view().rows(rows.start, rows.end)),
            None => look(self.on.cuda.upload(self.host.read(rows)?.view())?.view()),
        }
    }

    /// Lets `change` work on some rows, in place.
    ///
    /// # Errors
    /// Those of `change`; if memory is short, or a disk fails or refuses.
    pub fn update<R>(
        &mut self,
        rows: Range<usize>,
        change: impl FnOnce(RowsMut<'_, T>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        if let Some(all) = &mut self.there {
            return change(all.view_mut().rows(rows.start, rows.end));
        }
        let mut here = self.on.cuda.upload(self.host.read(rows.clone())?.view())?;
        let result = change(here.view_mut())?;
        self.host.write(rows.start, self.on.cuda.download(here.view())?.view())?;
        Ok(result)
    }

    /// All of them, back on the host.
    ///
    /// # Errors
    /// If something asked of the device before has failed, or a disk refuses.
    pub fn into_host(mut self) -> Result<HiddenStates, Error> {
        if let Some(all) = self.there.take() {
            for rows in self.chunks() {
                let here = self.on.cuda.download(all.view().rows(rows.start, rows.end))?;
                self.host.write(rows.start, here.view())?;
            }
        }
        Ok(self.host)
    }
}
