//! What can go wrong on the way to a GPU and on it, in numbers, and what to do about it.

/// Why the device could not do it. [`hint`](Self::hint) says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// The driver's library is not on this machine.
    #[error("there is no CUDA driver: libcuda was not found")]
    NoDriver,
    /// The driver cannot run what the compiler here makes.
    #[error("the CUDA driver is for CUDA {driver}, too old for the {library} {version} found")]
    DriverTooOld {
        /// The newest CUDA the driver knows, as `major.minor`.
        driver: String,
        /// The library that needs a newer one.
        library: &'static str,
        /// That library's version, as `major.minor`.
        version: String,
    },
    /// One of CUDA's libraries is missing or cannot be loaded.
    #[error("{library} was not found; searched: {}", searched.join(", "))]
    NoLibrary {
        /// The library, as its file is called without `.so`.
        library: &'static str,
        /// Folders, in the order in which they were searched.
        searched: Vec<String>,
    },
    /// The machine has fewer devices.
    #[error("there is no CUDA device {asked}: this machine has {found}")]
    NoSuchDevice {
        /// The ordinal asked for.
        asked: usize,
        /// Devices here.
        found: usize,
    },
    /// The device lacks the bf16 instructions that all kernels use.
    #[error("{name} has compute capability {}.{}, below the 8.0 that bf16 needs", capability.0, capability.1)]
    TooOldADevice {
        /// The device's name.
        name: String,
        /// Its compute capability.
        capability: (u32, u32),
    },
    /// An allocation does not fit.
    #[error("{what} needs {needed_bytes} bytes of device memory, {free_bytes} are free")]
    TooLittleMemory {
        /// What it was for.
        what: String,
        /// What it needs.
        needed_bytes: u64,
        /// What there is, within the limit set.
        free_bytes: u64,
        /// What would fit, in words.
        fits: Option<String>,
    },
    /// A kernel's text was refused by the compiler.
    #[error("kernel `{kernel}` does not compile for {arch}:\n{log}")]
    DoesNotCompile {
        /// The kernel's source.
        kernel: &'static str,
        /// The architecture, as NVRTC spells it.
        arch: String,
        /// What NVRTC says.
        log: String,
    },
    /// A library refused.
    #[error("{call} failed: {code}")]
    Call {
        /// The function, with what it was called for.
        call: String,
        /// The library's own word.
        code: String,
    },
    /// A matrix has no Cholesky factor.
    #[error("not positive definite: the factorisation stopped at column {column} of {size}")]
    NotPositiveDefinite {
        /// Where a pivot was not positive, in the order of the matrix given.
        column: usize,
        /// Rows and columns.
        size: usize,
    },
}

impl CudaError {
    /// What the user can do, where there is something.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoDriver => {
                "install NVIDIA's driver, or use --device cpu; in a container, start it with the GPU passed through".into()
            }
            Self::DriverTooOld { driver, library, .. } => format!(
                "update the driver, or point ATTAR_CUDA_LIBS at a {library} for CUDA {}",
                driver.split('.').next().unwrap_or(driver)
            ),
            Self::NoLibrary { library, .. } => {
                let package = match *library {
                    "libnvrtc" => "nvidia-cuda-nvrtc",
                    "libcusolver" => "nvidia-cusolver",
                    _ => "nvidia-cublas",
                };
                format!("`pip install {package}` brings it; ATTAR_CUDA_LIBS=FOLDER:FOLDER says where it is otherwise")
            }
            Self::NoSuchDevice { found: 0, .. } => {
                "no device is visible: is CUDA_VISIBLE_DEVICES empty? --device cpu works everywhere".into()
            }
            Self::NoSuchDevice { found, .. } => format!("devices are --device cuda:0 to cuda:{}", found - 1),
            Self::TooOldADevice { .. } => "use --device cpu".into(),
            Self::TooLittleMemory { fits, .. } => fits.clone()?,
            Self::DoesNotCompile { .. } | Self::Call { .. } | Self::NotPositiveDefinite { .. } => return None,
        })
    }
}

/// Turns a library's refusal into words.
pub(crate) fn refused(call: impl Into<String>) -> impl FnOnce(&dyn std::fmt::Debug) -> CudaError {
    let call = call.into();
    move |code| CudaError::Call { call, code: format!("{code:?}") }
}
