//! The planned places of tensors in files being written, and how much of each is there.

use crate::container::{Directory, TensorInfo};
use crate::error::Misfit;

/// Where one tensor goes.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Which of the writer's files.
    pub(crate) file: usize,
    /// Where in it the tensor begins.
    pub(crate) start: u64,
    written: u64,
}

impl Slot {
    pub(crate) fn new(file: usize, start: u64) -> Self {
        Self { file, start, written: 0 }
    }
}

/// The slots of all tensors of a plan.
#[derive(Debug)]
pub(crate) struct Slots(Directory<Slot>);

impl Slots {
    pub(crate) fn new(tensors: Vec<(TensorInfo, Slot)>) -> Result<Self, Misfit> {
        Directory::new(tensors).map(Self).map_err(|name| Misfit::DuplicateTensor { name })
    }

    /// Hands out the file and the place of the next `bytes` bytes of the tensor `name`.
    pub(crate) fn advance(&mut self, name: &str, bytes: usize) -> Result<(usize, u64), Misfit> {
        let Some((info, slot)) = self.0.get_mut(name) else {
            return Err(Misfit::NotPlanned { name: name.to_owned() });
        };
        let (planned, given) = (info.bytes, slot.written + bytes as u64);
        if given > planned {
            return Err(Misfit::TooManyBytes { name: name.to_owned(), planned, given });
        }
        let at = slot.start + slot.written;
        slot.written = given;
        Ok((slot.file, at))
    }

    /// Refuses to be done while a tensor lacks bytes.
    pub(crate) fn check_complete(&self) -> Result<(), Misfit> {
        let unfinished = self.0.iter().find(|(info, slot)| slot.written < info.bytes);
        unfinished.map_or(Ok(()), |(info, slot)| {
            let (name, planned, written) = (info.name.clone(), info.bytes, slot.written);
            Err(Misfit::Unfinished { name, planned, written })
        })
    }
}
