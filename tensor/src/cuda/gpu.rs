//! The GPU itself, through the CUDA driver.

use super::compile::Compiler;
use super::cublas::Products;
use super::cusolver::Triangles;
use super::error::refused;
use super::kernel::Module;
use super::machine::{Address, Event, Facts, Lane, Launch, Machine, Multiply, Pinned, Triangle};
use super::staging::{self, Staging};
use super::{CudaError, cache::Cache};
use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// One device, its two lanes, the modules loaded so far.
#[derive(Debug)]
pub(crate) struct Gpu {
    facts: Facts,
    context: Arc<CudaContext>,
    compute: Arc<CudaStream>,
    copy: Arc<CudaStream>,
    compiler: Compiler,
    loaded: Mutex<HashMap<(&'static str, usize), Loaded>>,
    products: OnceLock<Products>,
    triangles: OnceLock<Triangles>,
    staging: Mutex<Option<Staging>>,
}

/// A module on the device with its kernels, which live as long as it.
#[derive(Debug)]
struct Loaded {
    module: sys::CUmodule,
    kernels: HashMap<&'static str, sys::CUfunction>,
}

// SAFETY: handles of the driver, which may be used from any thread once the context is bound there.
unsafe impl Send for Loaded {}

/// What a driver's refusal becomes.
fn driver(call: &'static str) -> impl FnOnce(DriverError) -> CudaError {
    move |error| refused(call)(&error)
}

impl Gpu {
    /// Opens the device; compiles nothing yet.
    pub fn open(ordinal: usize, cache: Cache) -> Result<Self, CudaError> {
        // cudarc panics where the library is missing, so it is asked first.
        // SAFETY: opening the driver's library by name runs nothing but its initialisers.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        match result::init() {
            Err(DriverError(sys::cudaError_enum::CUDA_ERROR_NO_DEVICE)) => {
                return Err(CudaError::NoSuchDevice { asked: ordinal, found: 0 });
            }
            other => other.map_err(driver("cuInit"))?,
        }
        let found = CudaContext::device_count().map_err(driver("cuDeviceGetCount"))?.unsigned_abs() as usize;
        if ordinal >= found {
            return Err(CudaError::NoSuchDevice { asked: ordinal, found });
        }
        let compiler = Compiler::find(cache)?;
        check_driver(&compiler)?;
        let context = CudaContext::new(ordinal).map_err(driver("cuDevicePrimaryCtxRetain"))?;
        let facts = facts(&context)?;
        if facts.capability.0 < 8 {
            return Err(CudaError::TooOldADevice { name: facts.name, capability: facts.capability });
        }
        let compute = context.new_stream().map_err(driver("cuStreamCreate"))?;
        let copy = context.new_stream().map_err(driver("cuStreamCreate"))?;
        if context.has_async_alloc() {
            keep_freed_memory(&context)?;
        }
        Ok(Self {
            facts,
            context,
            compute,
            copy,
            compiler,
            loaded: Mutex::default(),
            products: OnceLock::new(),
            triangles: OnceLock::new(),
            staging: Mutex::default(),
        })
    }

    fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().map_err(driver("cuCtxSetCurrent"))
    }

    fn stream(&self, lane: Lane) -> sys::CUstream {
        match lane {
            Lane::Compute => self.compute.cu_stream(),
            Lane::Copy => self.copy.cu_stream(),
        }
    }

    /// The kernel of a module, which is compiled and loaded on first use.
    fn kernel(&self, module: Module, kernel: &'static str) -> Result<sys::CUfunction, CudaError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (module.source.name, module.variant);
        if let std::collections::hash_map::Entry::Vacant(place) = loaded.entry(key) {
            let (major, minor) = self.facts.capability;
            let code = self.compiler.compile(module, &format!("sm_{major}{minor}"))?;
            place.insert(load(module, &code)?);
        }
        Ok(loaded[&key].kernels[kernel])
    }

    fn products(&self) -> Result<&Products, CudaError> {
        if self.products.get().is_none() {
            // 32 MiB is what NVIDIA recommends for Hopper, and harms nobody else.
            let bytes = 32 << 20;
            let made = Products::new(self.allocate(bytes)?, bytes)?;
            let _ = self.products.set(made);
        }
        self.products.get().ok_or_else(|| refused("cublasLtCreate")(&"no handle"))
    }

    /// Does something with the pinned buffers, which are made on first use.
    fn staged(&self, copy: impl FnOnce(&mut Staging) -> Result<(), CudaError>) -> Result<(), CudaError> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *staging {
            Some(staging) => copy(staging),
            none => copy(none.insert(Staging::new(self)?)),
        }
    }

    fn triangles(&self) -> Result<&Triangles, CudaError> {
        if self.triangles.get().is_none() {
            let _ = self.triangles.set(Triangles::new(self.compute.cu_stream())?);
        }
        self.triangles.get().ok_or_else(|| refused("cusolverDnCreate")(&"no handle"))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        if let Some(staging) = self.staging.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            staging.close(self);
        }
        // The libraries' handles go before the context they live in.
        drop(self.triangles.take());
        if let Some(products) = self.products.take() {
            self.release(products.workspace());
        }
        for loaded in self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner).values() {
            // SAFETY: loaded by us and unloaded once; launches hold a reference of the driver's own.
            let _ = unsafe { result::module::unload(loaded.module) };
        }
    }
}

/// Machine code of a newer CUDA's compiler is refused by an older driver; within one major version it is not.
fn check_driver(compiler: &Compiler) -> Result<(), CudaError> {
    let mut version = 0;
    // SAFETY: the number is written before the call returns.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(driver("cuDriverGetVersion"))?;
    let (major, minor) = compiler.version();
    if version / 1000 < major {
        return Err(CudaError::DriverTooOld {
            driver: format!("{}.{}", version / 1000, version % 1000 / 10),
            library: "NVRTC",
            version: format!("{major}.{minor}"),
        });
    }
    Ok(())
}

fn facts(context: &CudaContext) -> Result<Facts, CudaError> {
    let (major, minor) = context.compute_capability().map_err(driver("cuDeviceGetAttribute"))?;
    let processors = context
        .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
        .map_err(driver("cuDeviceGetAttribute"))?;
    Ok(Facts {
        name: context.name().map_err(driver("cuDeviceGetName"))?,
        capability: (major.unsigned_abs(), minor.unsigned_abs()),
        processors: processors.unsigned_abs(),
        memory_bytes: context.total_mem().map_err(driver("cuDeviceTotalMem"))? as u64,
    })
}

/// Freed memory stays with the process until it ends: giving it back costs more than a kernel.
fn keep_freed_memory(context: &CudaContext) -> Result<(), CudaError> {
    let mut all = u64::MAX;
    // SAFETY: the attribute is a u64, read before the call returns.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())
            .map_err(driver("cuDeviceGetDefaultMemPool"))?;
        let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, threshold, (&raw mut all).cast::<c_void>())
    }
    .map_err(driver("cuMemPoolSetAttribute"))
}

fn load(module: Module, code: &[u8]) -> Result<Loaded, CudaError> {
    // SAFETY: the image is a whole cubin, as NVRTC made it; the driver copies it.
    let handle =
        unsafe { result::module::load_data(code.as_ptr().cast()) }.map_err(driver("cuModuleLoadData"))?;
    let mut kernels = HashMap::new();
    for &kernel in module.source.kernels {
        let name = CString::new(kernel).map_err(|error| refused("cuModuleGetFunction")(&error))?;
        // SAFETY: the module is loaded.
        let function = unsafe { result::module::get_function(handle, name) }
            .map_err(|error| refused(format!("cuModuleGetFunction of {kernel}"))(&error))?;
        kernels.insert(kernel, function);
    }
    Ok(Loaded { module: handle, kernels })
}

/// Shared memory that a block may name at launch without the kernel having been told.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;

impl Machine for Gpu {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn free_bytes(&self) -> Result<u64, CudaError> {
        self.bind()?;
        let (free, _) = result::mem_get_info().map_err(driver("cuMemGetInfo"))?;
        Ok(free as u64)
    }

    fn allocate(&self, bytes: u64) -> Result<Address, CudaError> {
        self.bind()?;
        let size = bytes.max(1) as usize;
        // SAFETY: the stream is alive; the memory is given back by `release`.
        let found = unsafe {
            if self.context.has_async_alloc() {
                result::malloc_async(self.compute.cu_stream(), size)
            } else {
                result::malloc_sync(size)
            }
        };
        match found {
            Err(DriverError(sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY)) => {
                Err(CudaError::TooLittleMemory {
                    what: "an allocation".into(),
                    needed_bytes: bytes,
                    free_bytes: self.free_bytes()?,
                    fits: None,
                })
            }
            other => other.map_err(driver("cuMemAlloc")),
        }
    }

    fn release(&self, address: Address) {
        if self.bind().is_err() {
            return;
        }
        // SAFETY: allocated by `allocate` and given back once. A refusal leaks it, and the next call says why.
        let _ = unsafe {
            if self.context.has_async_alloc() {
                result::free_async(address, self.compute.cu_stream())
            } else {
                result::free_sync(address)
            }
        };
    }

    fn upload(&self, to: Address, from: &[u8]) -> Result<(), CudaError> {
        if from.is_empty() {
            return Ok(());
        }
        self.bind()?;
        let send = |at: u64, from: &[u8]| {
            // SAFETY: `to` has room for all of them; the bytes stay as they are until the stream is done with the copy.
            unsafe { result::memcpy_htod_async(to + at, from, self.compute.cu_stream()) }
                .map_err(driver("cuMemcpyHtoD"))
        };
        if from.len() >= staging::LEAST_BYTES {
            return self.staged(|staging| staging.upload(self, from, send));
        }
        send(0, from)?;
        self.compute.synchronize().map_err(driver("cuStreamSynchronize"))
    }

    fn download(&self, to: &mut [u8], from: Address) -> Result<(), CudaError> {
        if to.is_empty() {
            return Ok(());
        }
        self.bind()?;
        let fetch = |at: u64, to: &mut [u8]| {
            // SAFETY: `from` has as many bytes; `to` is not touched until the stream is done.
            unsafe { result::memcpy_dtoh_async(to, from + at, self.compute.cu_stream()) }
                .map_err(driver("cuMemcpyDtoH"))
        };
        if to.len() >= staging::LEAST_BYTES {
            return self.staged(|staging| staging.download(self, to, fetch));
        }
        fetch(0, to)?;
        self.compute.synchronize().map_err(driver("cuStreamSynchronize"))
    }

    fn copy(&self, to: Address, from: Address, bytes: u64) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: both of the caller's buffers have that many bytes, on this device.
        unsafe { result::memcpy_dtod_async(to, from, bytes as usize, self.compute.cu_stream()) }
            .map_err(driver("cuMemcpyDtoD"))
    }

    fn clear(&self, at: Address, bytes: u64) -> Result<(), CudaError> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: the caller's buffer has that many bytes.
        unsafe { result::memset_d8_async(at, 0, bytes as usize, self.compute.cu_stream()) }
            .map_err(driver("cuMemsetD8"))
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        self.bind()?;
        let function = self.kernel(launch.module, launch.kernel)?;
        let refuse = |call: &str| refused(format!("{call} of {}", launch.kernel));
        if launch.shared_bytes > PLAIN_SHARED_BYTES {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function lives as long as its module, which is never unloaded before `self`.
            unsafe {
                result::function::set_function_attribute(
                    function,
                    attribute,
                    launch.shared_bytes.cast_signed(),
                )
            }
            .map_err(|error| refuse("cuFuncSetAttribute")(&error))?;
        }
        let mut cells: Vec<u64> = launch.arguments.iter().map(|argument| argument.bits()).collect();
        let mut parameters: Vec<*mut c_void> =
            cells.iter_mut().map(|cell| std::ptr::from_mut(cell).cast()).collect();
        let [grid, block] = [launch.grid, launch.block].map(|[x, y, z]| (x, y, z));
        // SAFETY: the arguments are those of the kernel, in its order and widths, which the emulator checks for every
        // launch the tests make; the driver copies them before it returns.
        unsafe {
            result::launch_kernel(
                function,
                grid,
                block,
                launch.shared_bytes,
                self.compute.cu_stream(),
                &mut parameters,
            )
        }
        .map_err(|error| refuse("cuLaunchKernel")(&error))
    }

    fn multiply(&self, multiply: &Multiply) -> Result<(), CudaError> {
        self.bind()?;
        self.products()?.multiply(multiply, self.compute.cu_stream())
    }

    fn factor(&self, triangle: &Triangle) -> Result<Option<u64>, CudaError> {
        self.bind()?;
        self.triangles()?.factor(self, triangle)
    }

    fn invert(&self, triangle: &Triangle) -> Result<Option<u64>, CudaError> {
        self.bind()?;
        self.triangles()?.invert(self, triangle)
    }

    fn wait(&self) -> Result<(), CudaError> {
        self.compute.synchronize().map_err(driver("cuStreamSynchronize"))?;
        self.copy.synchronize().map_err(driver("cuStreamSynchronize"))
    }

    fn pin(&self, bytes: usize) -> Result<Pinned, CudaError> {
        self.bind()?;
        // SAFETY: given back by `unpin`.
        let memory = unsafe { result::malloc_host(bytes.max(1), 0) }.map_err(driver("cuMemHostAlloc"))?;
        Ok(Pinned(memory.cast()))
    }

    fn unpin(&self, pinned: Pinned) {
        if self.bind().is_ok() {
            // SAFETY: allocated by `pin` and given back once.
            let _ = unsafe { result::free_host(pinned.0.cast()) };
        }
    }

    unsafe fn send(&self, to: Address, from: Pinned, bytes: usize) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the caller keeps the bytes as they are until the copy is done.
        unsafe {
            let from = std::slice::from_raw_parts(from.0, bytes);
            result::memcpy_htod_async(to, from, self.copy.cu_stream())
        }
        .map_err(driver("cuMemcpyHtoD"))
    }

    fn event(&self) -> Result<Event, CudaError> {
        self.bind()?;
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
            .map_err(driver("cuEventCreate"))?;
        Ok(Event(event as u64))
    }

    fn forget(&self, event: Event) {
        if self.bind().is_ok() {
            // SAFETY: created by `event` and destroyed once.
            let _ = unsafe { result::event::destroy(event.0 as sys::CUevent) };
        }
    }

    fn record(&self, event: Event, lane: Lane) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: event and stream are alive and of one context.
        unsafe { result::event::record(event.0 as sys::CUevent, self.stream(lane)) }
            .map_err(driver("cuEventRecord"))
    }

    fn hold(&self, lane: Lane, event: Event) -> Result<(), CudaError> {
        self.bind()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: event and stream are alive and of one context.
        unsafe { result::stream::wait_event(self.stream(lane), event.0 as sys::CUevent, flags) }
            .map_err(driver("cuStreamWaitEvent"))
    }

    fn wait_for(&self, event: Event) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(event.0 as sys::CUevent) }.map_err(driver("cuEventSynchronize"))
    }
}
