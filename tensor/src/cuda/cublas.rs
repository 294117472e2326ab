//! Products by cuBLASLt.

use super::CudaError;
use super::error::refused;
use super::libraries::{Library, open};
use super::machine::{Address, Columns, Multiply, Number, Turn};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

/// A handle, room to work in, and the algorithms chosen so far.
#[derive(Debug)]
pub(crate) struct Products {
    handle: sys::cublasLtHandle_t,
    workspace: Address,
    workspace_bytes: u64,
    chosen: Mutex<HashMap<Key, sys::cublasLtMatmulAlgo_t>>,
}

// SAFETY: a cuBLASLt handle may be used from several threads; the workspace belongs to one stream, in whose order it is used.
unsafe impl Send for Products {}
// SAFETY: as above.
unsafe impl Sync for Products {}

/// All that the choice of an algorithm depends on.
type Key = [(Number, Turn, u64, u64, u64, u32); 3];

fn key(multiply: &Multiply) -> Key {
    let of = |(x, turn): (Columns, Turn)| (x.number, turn, x.rows, x.cols, x.stride, alignment(x.address));
    [of(multiply.left), of(multiply.right), of((multiply.out, Turn::Straight))]
}

/// The largest power of two, at most 256, that divides an address.
fn alignment(address: Address) -> u32 {
    1 << address.trailing_zeros().min(8)
}

fn data_type(number: Number) -> sys::cudaDataType {
    match number {
        Number::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Number::F32 => sys::cudaDataType::CUDA_R_32F,
        Number::F64 => sys::cudaDataType::CUDA_R_64F,
    }
}

fn failed(call: &'static str, multiply: &Multiply) -> impl FnOnce(CublasError) -> CudaError {
    let (left, right, out) = (multiply.left, multiply.right, multiply.out);
    let what = format!(
        "{call} for {}x{} {:?} {:?} by {}x{} {:?} {:?} to {}x{} {:?}",
        left.0.rows,
        left.0.cols,
        left.0.number,
        left.1,
        right.0.rows,
        right.0.cols,
        right.0.number,
        right.1,
        out.rows,
        out.cols,
        out.number
    );
    move |code| refused(what)(&code.0)
}

/// A matrix's layout, destroyed when dropped.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(x: Columns) -> Result<Self, CublasError> {
        result::create_matrix_layout(data_type(x.number), x.rows, x.cols, x.stride.cast_signed()).map(Self)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created by us and destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What kind of product it is, destroyed when dropped.
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new(multiply: &Multiply) -> Result<Self, CublasError> {
        let (compute, scale) = match multiply.out.number {
            Number::F64 => (sys::cublasComputeType_t::CUBLAS_COMPUTE_64F, sys::cudaDataType::CUDA_R_64F),
            // Not one of the FAST kinds: f32 operands are multiplied as f32, never as TF32.
            Number::F32 | Number::Bf16 => {
                (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_32F)
            }
        };
        let description = Self(result::create_matmul_desc(compute, scale)?);
        let turns = [
            (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, multiply.left.1),
            (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, multiply.right.1),
        ];
        for (attribute, turn) in turns {
            // cublasOperation_t: 0 is N, 1 is T.
            let operation: i32 = match turn {
                Turn::Straight => 0,
                Turn::Transposed => 1,
            };
            let bytes = size_of_val(&operation);
            // SAFETY: the description is alive, and the attribute is an int, read before the call returns.
            unsafe {
                result::set_matmul_desc_attribute(
                    description.0,
                    attribute,
                    (&raw const operation).cast(),
                    bytes,
                )
            }?;
        }
        Ok(description)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: created by us and destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// What the choice of an algorithm is bound to, destroyed when dropped.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(workspace_bytes: u64, multiply: &Multiply) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let preference = Self(result::create_matmul_pref()?);
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes)?;
        // A sum over k cut in parts is put together from parts of the compute type, in order: never by atomics.
        let schemes = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes)?;
        let addresses = [
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, multiply.left.0.address),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, multiply.right.0.address),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, multiply.out.address),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, multiply.out.address),
        ];
        for (attribute, address) in addresses {
            preference.set(attribute, &alignment(address))?;
        }
        Ok(preference)
    }

    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<(), CublasError> {
        // SAFETY: the preference is alive; the value has the attribute's width and is read before the call returns.
        unsafe {
            result::set_matmul_pref_attribute(
                self.0,
                attribute,
                std::ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: created by us and destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

impl Products {
    /// Over a workspace that stays ours.
    pub fn new(workspace: Address, workspace_bytes: u64) -> Result<Self, CudaError> {
        open(Library::CublasLt)?;
        let handle = result::create_handle().map_err(|code| refused("cublasLtCreate")(&code.0))?;
        Ok(Self { handle, workspace, workspace_bytes, chosen: Mutex::default() })
    }

    /// Where it works, to be given back after it.
    pub fn workspace(&self) -> Address {
        self.workspace
    }

    /// Asks for a product in a stream's order.
    pub fn multiply(
        &self,
        multiply: &Multiply,
        stream: cudarc::driver::sys::CUstream,
    ) -> Result<(), CudaError> {
        let description = Description::new(multiply).map_err(failed("cublasLtMatmulDescCreate", multiply))?;
        let layout = |x| Layout::new(x).map_err(failed("cublasLtMatrixLayoutCreate", multiply));
        let layouts = [layout(multiply.left.0)?, layout(multiply.right.0)?, layout(multiply.out)?];
        let algorithm = self.algorithm(multiply, &description, &layouts)?;
        let (wide, narrow) = ([multiply.alpha, multiply.beta], [multiply.alpha as f32, multiply.beta as f32]);
        let factors: [*const c_void; 2] = match multiply.out.number {
            Number::F64 => wide.each_ref().map(|factor| std::ptr::from_ref(factor).cast()),
            Number::F32 | Number::Bf16 => narrow.each_ref().map(|factor| std::ptr::from_ref(factor).cast()),
        };
        let out = multiply.out.address as *mut c_void;
        // SAFETY: all handles are alive; the matrices are device memory of the sizes their layouts say, as `Machine` asks;
        // alpha and beta have the scale type and are read before the call returns; the workspace is used in one stream's order.
        unsafe {
            result::matmul(
                self.handle,
                description.0,
                factors[0],
                factors[1],
                multiply.left.0.address as *const c_void,
                layouts[0].0,
                multiply.right.0.address as *const c_void,
                layouts[1].0,
                out,
                layouts[2].0,
                out,
                layouts[2].0,
                &raw const algorithm,
                self.workspace as *mut c_void,
                self.workspace_bytes as usize,
                stream.cast(),
            )
        }
        .map_err(failed("cublasLtMatmul", multiply))
    }

    fn algorithm(
        &self,
        multiply: &Multiply,
        description: &Description,
        layouts: &[Layout; 3],
    ) -> Result<sys::cublasLtMatmulAlgo_t, CudaError> {
        let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(algorithm) = chosen.get(&key(multiply)) {
            return Ok(*algorithm);
        }
        let failed = || failed("cublasLtMatmulAlgoGetHeuristic", multiply);
        let preference = Preference::new(self.workspace_bytes, multiply).map_err(failed())?;
        let [left, right, out] = layouts;
        // SAFETY: all handles are alive.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                self.handle,
                description.0,
                left.0,
                right.0,
                out.0,
                out.0,
                preference.0,
            )
        }
        .map_err(failed())?;
        chosen.insert(key(multiply), found.algo);
        Ok(found.algo)
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        // SAFETY: created by us and destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::alignment;

    #[test]
    fn an_alignment_divides_the_address_and_is_at_most_256() {
        let found = [0x1000u64, 0x1080, 0x1002, 0x1003].map(alignment);
        assert_eq!(found, [256, 128, 2, 1]);
    }
}
