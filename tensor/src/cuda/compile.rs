//! Kernel texts to machine code, by NVRTC.

use super::CudaError;
use super::cache::Cache;
use super::error::refused;
use super::kernel::Module;
use super::libraries::{Library, open};
use cudarc::nvrtc::{result, sys};
use std::ffi::CString;

/// NVIDIA's run-time compiler, with the cache of what it made before.
#[derive(Debug, Clone)]
pub struct Compiler {
    version: (i32, i32),
    cache: Cache,
}

impl Compiler {
    /// Finds the library. It needs neither a driver nor a device.
    ///
    /// # Errors
    /// [`CudaError::NoLibrary`] where it is nowhere.
    pub fn find(cache: Cache) -> Result<Self, CudaError> {
        open(Library::Nvrtc)?;
        let mut version = (0, 0);
        // SAFETY: the library is open, and both numbers are written before the call returns.
        unsafe { sys::nvrtcVersion(&raw mut version.0, &raw mut version.1) }
            .result()
            .map_err(|code| refused("nvrtcVersion")(&code))?;
        Ok(Self { version, cache })
    }

    /// The compiler's CUDA version, `(major, minor)`.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Machine code of a module for one architecture such as `sm_90`, from the cache where it was compiled before.
    ///
    /// # Errors
    /// [`CudaError::DoesNotCompile`] with the compiler's log.
    pub fn compile(&self, module: Module, arch: &str) -> Result<Vec<u8>, CudaError> {
        let text = module.text();
        let mut options = vec![format!("--gpu-architecture={arch}"), "--std=c++17".to_owned()];
        options.extend(module.definitions().iter().map(|definition| format!("-D{definition}")));
        let version = format!("{}.{}", self.version.0, self.version.1);
        let key = Cache::key(&[&version, &options.join(" "), &text]);
        if let Some(code) = self.cache.read(&key) {
            return Ok(code);
        }
        let code = compile(module, &text, &options, arch)?;
        self.cache.write(&key, &code);
        Ok(code)
    }
}

/// A program of NVRTC's, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by us and destroyed once. A refusal leaks the program, which harms nothing.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn compile(module: Module, text: &str, options: &[String], arch: &str) -> Result<Vec<u8>, CudaError> {
    let kernel = module.source.name;
    let failed = |call: &str| refused(format!("{call} for kernel `{kernel}`"));
    let no_text =
        |log: &str| CudaError::DoesNotCompile { kernel, arch: arch.to_owned(), log: log.to_owned() };
    let text = CString::new(text).map_err(|_| no_text("the text has a zero byte"))?;
    let name = CString::new(format!("{kernel}.cu")).map_err(|_| no_text("the name has a zero byte"))?;
    let program =
        result::create_program(&text, Some(&name)).map_err(|code| failed("nvrtcCreateProgram")(&code))?;
    let program = Program(program);
    // SAFETY: the program is alive, and the options outlive the call.
    if let Err(code) = unsafe { result::compile_program(program.0, options) } {
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(program.0) }.unwrap_or_default();
        let log: Vec<u8> = log.into_iter().map(|byte| byte as u8).take_while(|&byte| byte != 0).collect();
        return Err(match String::from_utf8_lossy(&log).trim() {
            "" => failed("nvrtcCompileProgram")(&code),
            log => no_text(log),
        });
    }
    let mut size = 0;
    // SAFETY: the program is compiled; the size is written before the call returns.
    unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut size) }
        .result()
        .map_err(|code| failed("nvrtcGetCUBINSize")(&code))?;
    let mut code = vec![0u8; size];
    // SAFETY: the buffer has the size the library asked for.
    unsafe { sys::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast()) }
        .result()
        .map_err(|code| failed("nvrtcGetCUBIN")(&code))?;
    Ok(code)
}
