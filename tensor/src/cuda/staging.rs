//! Large copies between memory of the host and a device by way of two pinned buffers, filled and emptied by all threads: from pageable
//! memory the driver copies with one.

use super::CudaError;
use super::machine::{Event, Lane, Machine, Pinned};
use rayon::prelude::*;

/// Copies of fewer bytes go as they are.
pub(super) const LEAST_BYTES: usize = 1 << 20;

/// Of each buffer.
const BUFFER_BYTES: usize = 32 << 20;

/// Bytes a thread copies at once.
const COPY_BYTES: usize = 1 << 20;

/// The buffers, used by one thread at a time.
#[derive(Debug)]
pub(super) struct Staging([Buffer; 2]);

/// Pinned memory, and when its last copy is done.
#[derive(Debug, Clone, Copy)]
struct Buffer {
    memory: Pinned,
    done: Event,
}

impl Buffer {
    /// Its first bytes.
    ///
    /// # Safety
    /// No copy from or to it may be on its way, and no other slice of it be alive.
    unsafe fn bytes<'a>(self, count: usize) -> &'a mut [u8] {
        // SAFETY: it has `BUFFER_BYTES` bytes, which live until `close`.
        unsafe { std::slice::from_raw_parts_mut(self.memory.0, count) }
    }
}

impl Staging {
    /// Pins the memory.
    pub fn new(machine: &dyn Machine) -> Result<Self, CudaError> {
        let buffer = || Ok(Buffer { memory: machine.pin(BUFFER_BYTES)?, done: machine.event()? });
        Ok(Self([buffer()?, buffer()?]))
    }

    /// Sends bytes piece by piece: `send` starts the copy of a piece that is to stand so many bytes after the first, in
    /// [`Lane::Compute`]. All have been read when this returns.
    pub fn upload(
        &mut self,
        machine: &dyn Machine,
        from: &[u8],
        mut send: impl FnMut(u64, &[u8]) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        for (i, piece) in from.chunks(BUFFER_BYTES).enumerate() {
            let buffer = self.0[i % 2];
            machine.wait_for(buffer.done)?;
            // SAFETY: its last copy is done.
            let to = unsafe { buffer.bytes(piece.len()) };
            copy(to, piece);
            send((i * BUFFER_BYTES) as u64, to)?;
            machine.record(buffer.done, Lane::Compute)?;
        }
        Ok(())
    }

    /// Fetches bytes piece by piece: `fetch` starts the copy of what stands so many bytes after the first, in [`Lane::Compute`].
    pub fn download(
        &mut self,
        machine: &dyn Machine,
        to: &mut [u8],
        mut fetch: impl FnMut(u64, &mut [u8]) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let count = to.len();
        let mut start = |i: usize| {
            let (buffer, from) = (self.0[i % 2], i * BUFFER_BYTES);
            if from < count {
                // SAFETY: copies keep the order of their lane, and the last piece it held has been read.
                fetch(from as u64, unsafe { buffer.bytes(BUFFER_BYTES.min(count - from)) })?;
                machine.record(buffer.done, Lane::Compute)?;
            }
            Ok::<_, CudaError>(buffer)
        };
        let mut next = start(0)?;
        for (i, piece) in to.chunks_mut(BUFFER_BYTES).enumerate() {
            let here = std::mem::replace(&mut next, start(i + 1)?);
            machine.wait_for(here.done)?;
            // SAFETY: its last copy is done, and the next one to it starts when this piece has been read.
            copy(piece, unsafe { here.bytes(piece.len()) });
        }
        Ok(())
    }

    /// Gives the memory back once nothing is on its way.
    pub fn close(self, machine: &dyn Machine) {
        for buffer in self.0 {
            let _ = machine.wait_for(buffer.done);
            machine.unpin(buffer.memory);
            machine.forget(buffer.done);
        }
    }
}

fn copy(to: &mut [u8], from: &[u8]) {
    to.par_chunks_mut(COPY_BYTES)
        .zip(from.par_chunks(COPY_BYTES))
        .for_each(|(to, from)| to.copy_from_slice(from));
}
