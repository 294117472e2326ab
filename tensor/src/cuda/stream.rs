//! Weights from the host to the device while it computes: two slots on the device, two pinned buffers on the way.
//!
//! While the device works on one block, the next one's bytes go from the memory map into a pinned buffer, and from there by a copy of
//! its own lane into the other slot. Three things must wait, and each waits for one event: a pinned buffer is filled again only when
//! its last copy has left; a slot is written only when the computation on what stood there is done; a computation starts only when
//! its slot has arrived.

use super::machine::{Event, Lane, Pinned};
use super::memory::{Element, Matrix, Rows};
use super::{Cuda, CudaError};
use rayon::prelude::*;
use std::collections::VecDeque;

/// Where each part of a block begins: a multiple of this many bytes, what the libraries like best.
const ALIGNMENT: usize = 256;

/// Bytes a thread copies at once into a pinned buffer.
const COPY_BYTES: usize = 1 << 20;

/// Two slots for blocks of weights and the way there.
#[derive(Debug)]
pub struct BlockStream {
    cuda: Cuda,
    slots: [Slot; 2],
    buffers: [Buffer; 2],
    buffer_bytes: usize,
    next_slot: usize,
    next_buffer: usize,
    loaded: VecDeque<usize>,
}

/// Room for one block on the device.
#[derive(Debug)]
struct Slot {
    room: Matrix<u8>,
    offsets: Vec<usize>, // where each part begins, and where the last one ends
    arrived: Event,
    done: Event,
}

/// Pinned memory on the way, and when its last copy has left.
#[derive(Debug, Clone, Copy)]
struct Buffer {
    memory: Pinned,
    left: Event,
}

/// The bytes that parts of these lengths take in a slot.
pub fn slot_bytes(parts: impl IntoIterator<Item = usize>) -> usize {
    parts.into_iter().map(|bytes| bytes.next_multiple_of(ALIGNMENT)).sum()
}

impl BlockStream {
    /// Slots for blocks of up to `slot_bytes` (see [`slot_bytes`]) and pinned buffers of `buffer_bytes`.
    ///
    /// # Errors
    /// If the device's memory is short, or the system can pin none.
    ///
    /// # Panics
    /// If there is no byte in a buffer.
    pub fn new(cuda: &Cuda, slot_bytes: usize, buffer_bytes: usize) -> Result<Self, CudaError> {
        assert!(buffer_bytes > 0, "bytes go by way of a buffer");
        let machine = &cuda.machine;
        let slot = || {
            let room = cuda.room((1, slot_bytes))?;
            let slot = Slot { room, offsets: Vec::new(), arrived: machine.event()?, done: machine.event()? };
            // The room exists from here on in the order of the lane it was asked for in.
            machine.record(slot.done, Lane::Compute)?;
            Ok(slot)
        };
        let buffer = || Ok(Buffer { memory: machine.pin(buffer_bytes)?, left: machine.event()? });
        Ok(Self {
            cuda: cuda.clone(),
            slots: [slot()?, slot()?],
            buffers: [buffer()?, buffer()?],
            buffer_bytes,
            next_slot: 0,
            next_buffer: 0,
            loaded: VecDeque::new(),
        })
    }

    /// Starts a block on its way; returns when its last bytes are in a pinned buffer.
    ///
    /// # Errors
    /// If the device refuses.
    ///
    /// # Panics
    /// If both slots are in use, or the block is larger than a slot.
    pub fn load(&mut self, parts: &[&[u8]]) -> Result<(), CudaError> {
        assert!(self.loaded.len() < 2, "both slots are in use");
        let at = self.next_slot;
        self.next_slot = 1 - at;
        let room = self.slots[at].room.dim().1;
        let needed = slot_bytes(parts.iter().map(|part| part.len()));
        assert!(needed <= room, "a block of {needed} bytes in a slot of {room}");
        self.cuda.machine.hold(Lane::Copy, self.slots[at].done)?;
        let mut offset = 0;
        self.slots[at].offsets.clear();
        for part in parts {
            self.slots[at].offsets.push(offset);
            let to = self.slots[at].room.address() + offset as u64;
            for (i, piece) in part.chunks(self.buffer_bytes).enumerate() {
                self.send(to + (i * self.buffer_bytes) as u64, piece)?;
            }
            offset += part.len().next_multiple_of(ALIGNMENT);
        }
        self.slots[at].offsets.push(offset);
        self.cuda.machine.record(self.slots[at].arrived, Lane::Copy)?;
        self.loaded.push_back(at);
        Ok(())
    }

    fn send(&mut self, to: u64, piece: &[u8]) -> Result<(), CudaError> {
        let Buffer { memory, left } = self.buffers[self.next_buffer];
        self.next_buffer = 1 - self.next_buffer;
        self.cuda.machine.wait_for(left)?;
        // SAFETY: the buffer has at least as many bytes as a piece, is ours alone, and its last copy has left.
        let buffer = unsafe { std::slice::from_raw_parts_mut(memory.0, piece.len()) };
        buffer
            .par_chunks_mut(COPY_BYTES)
            .zip(piece.par_chunks(COPY_BYTES))
            .for_each(|(to, from)| to.copy_from_slice(from));
        // SAFETY: the buffer is not written before `left` has passed.
        unsafe { self.cuda.machine.send(to, memory, piece.len()) }?;
        self.cuda.machine.record(left, Lane::Copy)
    }

    /// What is computed from now on may read the block loaded first of those not finished.
    ///
    /// # Errors
    /// If the device refuses.
    ///
    /// # Panics
    /// If no block was loaded.
    pub fn block(&self) -> Result<Loaded<'_>, CudaError> {
        let Some(&at) = self.loaded.front() else { panic!("no block was loaded") };
        self.cuda.machine.hold(Lane::Compute, self.slots[at].arrived)?;
        Ok(Loaded { slot: &self.slots[at] })
    }

    /// What was asked for until now was all that reads that block: its slot may be filled again once it is done.
    ///
    /// # Errors
    /// If the device refuses.
    ///
    /// # Panics
    /// If no block was loaded.
    pub fn finish(&mut self) -> Result<(), CudaError> {
        let Some(at) = self.loaded.pop_front() else { panic!("no block was loaded") };
        self.cuda.machine.record(self.slots[at].done, Lane::Compute)
    }
}

impl Drop for BlockStream {
    fn drop(&mut self) {
        // Copies on their way read the buffers and write the slots. Where even waiting fails, the device is lost and reads nothing.
        let _ = self.cuda.machine.wait();
        for buffer in self.buffers {
            self.cuda.machine.unpin(buffer.memory);
            self.cuda.machine.forget(buffer.left);
        }
        for slot in &self.slots {
            self.cuda.machine.forget(slot.arrived);
            self.cuda.machine.forget(slot.done);
        }
    }
}

/// A block on the device.
#[derive(Debug, Clone, Copy)]
pub struct Loaded<'a> {
    slot: &'a Slot,
}

impl<'a> Loaded<'a> {
    /// Part `part` of the block as a matrix.
    ///
    /// # Panics
    /// If the block has no such part, or it has not as many bytes.
    pub fn matrix<T: Element>(self, part: usize, dim: (usize, usize)) -> Rows<'a, T> {
        let [from, to] = [self.slot.offsets[part], self.slot.offsets[part + 1]];
        let bytes = dim.0 * dim.1 * size_of::<T>();
        assert_eq!(bytes.next_multiple_of(ALIGNMENT), to - from, "part {part} as {} x {}", dim.0, dim.1);
        Rows::at(self.slot.room.address() + from as u64, dim)
    }
}
