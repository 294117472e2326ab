//! Every kernel compiles for every generation of GPUs it is meant for. Needs NVRTC and no GPU; skips visibly where there is none,
//! unless `ATTAR_NVRTC_REQUIRED` says that it must be there.

use attar_tensor::cuda::{Cache, Compiler, CudaError, Module};
use std::io::Write as _;

/// Ampere, Hopper, Blackwell.
const ARCHITECTURES: [&str; 3] = ["sm_80", "sm_90", "sm_100"];

/// A cache of its own, empty, so that everything is compiled.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        Self(
            std::path::PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
                .join(format!("{name}-{}", std::process::id())),
        )
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn compiler(folder: &Folder) -> Option<Compiler> {
    match Compiler::find(Cache::in_folder(folder.0.clone())) {
        Ok(compiler) => Some(compiler),
        Err(error) => {
            let required = std::env::var_os("ATTAR_NVRTC_REQUIRED").is_some();
            assert!(!required, "{error}; {}", error.hint().unwrap_or_default());
            // Past the test harness, which would swallow it.
            let _ = writeln!(std::io::stderr(), "skipped: {error}");
            None
        }
    }
}

#[test]
fn every_kernel_compiles_for_every_architecture() {
    let folder = Folder::new("compiled");
    let Some(compiler) = compiler(&folder) else { return };
    for module in Module::all() {
        for arch in ARCHITECTURES {
            let code = compiler.compile(module, arch);
            let code = code
                .unwrap_or_else(|error| panic!("{} {:?}: {error}", module.source.name, module.definitions()));
            assert_eq!(&code[..4], b"\x7fELF", "{} for {arch} is no cubin", module.source.name);
            for kernel in module.source.kernels {
                let there = code.windows(kernel.len()).any(|window| window == kernel.as_bytes());
                assert!(there, "`{kernel}` is not in what {} was compiled to", module.source.name);
            }
        }
    }
}

#[test]
fn what_was_compiled_comes_from_the_cache_the_next_time() {
    let folder = Folder::new("cached");
    let Some(compiler) = compiler(&folder) else { return };
    let Some(module) = Module::all().next() else { panic!("there are no kernels") };
    let first = compiler.compile(module, "sm_90");
    let Ok(entries) = std::fs::read_dir(&folder.0) else { panic!("nothing was stored") };
    let files: Vec<_> = entries.filter_map(Result::ok).map(|entry| entry.path()).collect();
    assert_eq!(files.len(), 1);
    assert_eq!(compiler.compile(module, "sm_90"), first);
    assert!(std::fs::write(&files[0], b"not a kernel").is_ok());
    assert_eq!(compiler.compile(module, "sm_90"), first, "a broken file was used");
}

#[test]
fn a_text_that_does_not_compile_is_refused_with_the_compilers_words() {
    use attar_tensor::cuda::Source;
    static BROKEN: Source = Source {
        name: "broken",
        text: "KERNEL broken() { nonsense; }",
        kernels: &["broken"],
        variants: &[&[]],
    };
    let folder = Folder::new("broken");
    let Some(compiler) = compiler(&folder) else { return };
    match compiler.compile(Module { source: &BROKEN, variant: 0 }, "sm_90") {
        Err(CudaError::DoesNotCompile { kernel: "broken", log, .. }) => {
            assert!(log.contains("nonsense"), "{log}");
        }
        other => panic!("{other:?}"),
    }
}
