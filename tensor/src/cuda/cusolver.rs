//! Cholesky factors by cuSOLVER.

use super::CudaError;
use super::error::refused;
use super::libraries::{Library, open};
use super::machine::{Address, Machine, Number, Triangle};
use cudarc::cusolver::{result, sys};
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

/// A handle bound to one stream, used by one thread at a time.
#[derive(Debug)]
pub(crate) struct Triangles(Mutex<Handles>);

#[derive(Debug)]
struct Handles {
    handle: sys::cusolverDnHandle_t,
    parameters: sys::cusolverDnParams_t,
}

// SAFETY: handles of the library, used by one thread at a time behind the mutex.
unsafe impl Send for Handles {}

const LOWER: sys::cublasFillMode_t = sys::cublasFillMode_t::CUBLAS_FILL_MODE_LOWER;

fn data_type(number: Number) -> sys::cudaDataType {
    match number {
        Number::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Number::F32 => sys::cudaDataType::CUDA_R_32F,
        Number::F64 => sys::cudaDataType::CUDA_R_64F,
    }
}

fn check(status: sys::cusolverStatus_t, call: &'static str, triangle: &Triangle) -> Result<(), CudaError> {
    match status {
        sys::cusolverStatus_t::CUSOLVER_STATUS_SUCCESS => Ok(()),
        other => Err(refused(format!("{call} of {0}x{0} {1:?}", triangle.size, triangle.number))(&other)),
    }
}

/// Device memory for the length of one call.
struct Room<'a> {
    machine: &'a dyn Machine,
    address: Address,
}

impl<'a> Room<'a> {
    fn new(machine: &'a dyn Machine, bytes: usize) -> Result<Self, CudaError> {
        Ok(Self { machine, address: machine.allocate(bytes.max(4) as u64)? })
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.machine.release(self.address);
    }
}

impl Triangles {
    /// In the order of one stream.
    pub fn new(stream: cudarc::driver::sys::CUstream) -> Result<Self, CudaError> {
        open(Library::Cusolver)?;
        let handle = result::dn_create().map_err(|code| refused("cusolverDnCreate")(&code.0))?;
        let parameters =
            result::dn_create_params().map_err(|code| refused("cusolverDnCreateParams")(&code.0))?;
        // SAFETY: the handle is alive and the stream outlives it.
        unsafe { result::dn_set_stream(handle, stream.cast()) }
            .map_err(|code| refused("cusolverDnSetStream")(&code.0))?;
        Ok(Self(Mutex::new(Handles { handle, parameters })))
    }

    /// [`Machine::factor`].
    pub fn factor(&self, machine: &dyn Machine, triangle: &Triangle) -> Result<Option<u64>, CudaError> {
        let handles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (size, number) = (triangle.size.cast_signed(), data_type(triangle.number));
        let matrix = triangle.address as *mut c_void;
        let (mut device_bytes, mut host_bytes) = (0, 0);
        // SAFETY: the handles are alive, the matrix is device memory of size * size elements, both sizes are written here.
        let status = unsafe {
            sys::cusolverDnXpotrf_bufferSize(
                handles.handle,
                handles.parameters,
                LOWER,
                size,
                number,
                matrix,
                size,
                number,
                &raw mut device_bytes,
                &raw mut host_bytes,
            )
        };
        check(status, "cusolverDnXpotrf_bufferSize", triangle)?;
        let room = Room::new(machine, device_bytes)?;
        let info = Room::new(machine, 4)?;
        let mut host = vec![0u8; host_bytes.max(1)];
        // SAFETY: as above; both workspaces have the sizes asked for; `info` is one int on the device.
        let status = unsafe {
            sys::cusolverDnXpotrf(
                handles.handle,
                handles.parameters,
                LOWER,
                size,
                number,
                matrix,
                size,
                number,
                room.address as *mut c_void,
                device_bytes,
                host.as_mut_ptr().cast(),
                host_bytes,
                info.address as *mut i32,
            )
        };
        check(status, "cusolverDnXpotrf", triangle)?;
        // Waits for the call, so that the host workspace outlives it.
        failed_column(machine, &info, "cusolverDnXpotrf")
    }
}

/// LAPACK's info: 0 for success, i where column i, counted from 1, failed, negative for a wrong argument.
fn failed_column(
    machine: &dyn Machine,
    info: &Room<'_>,
    call: &'static str,
) -> Result<Option<u64>, CudaError> {
    let mut bytes = [0; 4];
    machine.download(&mut bytes, info.address)?;
    match i32::from_le_bytes(bytes) {
        0 => Ok(None),
        column if column > 0 => Ok(Some(u64::from(column.unsigned_abs()) - 1)),
        argument => Err(refused(call)(&format!("argument {} is wrong", -argument))),
    }
}

impl Drop for Handles {
    fn drop(&mut self) {
        // SAFETY: created by us and destroyed once.
        unsafe {
            let _ = result::dn_destroy_params(self.parameters);
            let _ = result::dn_destroy(self.handle);
        }
    }
}
