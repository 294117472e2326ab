//! A machine without a GPU that runs the kernels' own texts, compiled by g++ above an emulation of what they need of a device.
//!
//! Products and factorisations are plain loops over the columns that the libraries' documentation speaks of, so that what is asked
//! of them is checked too.

use attar_tensor::cuda::machine::{
    Address, Columns, Event, Facts, Lane, Launch, Machine, Multiply, Number, Pinned, Triangle, Turn,
};
use attar_tensor::cuda::{CudaError, Module, bf16};
use libloading::{Library, Symbol};
use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// In which order the threads of a block run: a kernel with every barrier it needs does not mind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// From the first thread on.
    Forward,
    /// From the last.
    Backward,
}

/// The emulated device.
#[derive(Debug)]
pub struct Emulator {
    facts: Facts,
    order: Order,
    sizes: Mutex<HashMap<Address, usize>>,
    copies: Mutex<VecDeque<Copy>>,
    events: Mutex<u64>,
}

/// What waits in the copy lane. It is done as late as the events allow, so that whoever forgets to wait reads what was there before.
#[derive(Debug)]
enum Copy {
    Send { to: Address, from: Address, bytes: usize },
    Record(Event),
}

#[repr(C)]
struct Plan {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    backward: u32,
}

impl Emulator {
    /// None, with the reason, where there is no g++.
    pub fn new(order: Order) -> Result<Self, String> {
        base()?;
        let facts =
            Facts { name: "emulated".into(), capability: (8, 0), processors: 1, memory_bytes: 1 << 32 };
        Ok(Self { facts, order, sizes: Mutex::default(), copies: Mutex::default(), events: Mutex::default() })
    }

    fn copies(&self) -> MutexGuard<'_, VecDeque<Copy>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what waits in the copy lane, first things first, as long as `more`.
    fn copy_while(&self, more: impl Fn(&VecDeque<Copy>) -> bool) {
        let mut copies = self.copies();
        while more(&copies) {
            match copies.pop_front() {
                // SAFETY: the caller of `send` keeps both sides alive until an event after it has passed.
                Some(Copy::Send { to, from, bytes }) => unsafe {
                    std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes);
                },
                Some(Copy::Record(_)) => {}
                None => return,
            }
        }
    }

    fn sizes(&self) -> MutexGuard<'_, HashMap<Address, usize>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a kernel is entered.
type Run = unsafe extern "C" fn(*const Plan, *mut *mut u64, *const usize, usize) -> i32;

/// One compiled text; what it holds of a block's state is for one block at a time.
type Text = &'static Mutex<Library>;

/// Compiles a text above the emulation, or finds what was compiled before.
fn compile(name: &str, definitions: &[&str], text: &str) -> Result<Library, String> {
    const EMULATION: &str = include_str!("emulator.cpp");
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("emulator");
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let whole = format!("{EMULATION}\n{text}");
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in whole.bytes().chain(definitions.join(" ").bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let library = folder.join(format!("{name}-{hash:016x}.so"));
    if !library.exists() {
        let stem = format!("{name}-{hash:016x}-{}", std::process::id());
        let (source, made) = (folder.join(format!("{stem}.cpp")), folder.join(format!("{stem}.so")));
        fs::write(&source, whole).map_err(|error| error.to_string())?;
        let output = Command::new("g++")
            // A fortified longjmp takes one from stack to stack for an error.
            .args(["-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-ffp-contract=off", "-fPIC", "-shared", "-w"])
            .args(definitions.iter().map(|definition| format!("-D{definition}")))
            .arg(&source)
            .arg("-o")
            .arg(&made)
            .output()
            .map_err(|error| format!("g++ cannot be run: {error}"))?;
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        fs::rename(&made, &library).map_err(|error| error.to_string())?;
        fs::remove_file(&source).map_err(|error| error.to_string())?;
    }
    // SAFETY: the library was made from our own text and has no initialisers.
    unsafe { Library::new(&library) }.map_err(|error| error.to_string())
}

/// The emulation without a kernel: its memory.
fn base() -> Result<&'static Library, String> {
    static BASE: OnceLock<Result<Library, String>> = OnceLock::new();
    BASE.get_or_init(|| compile("memory", &[], "")).as_ref().map_err(Clone::clone)
}

fn text(module: Module) -> Text {
    static TEXTS: OnceLock<Mutex<HashMap<(&str, usize), Text>>> = OnceLock::new();
    let mut texts = TEXTS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    texts.entry((module.source.name, module.variant)).or_insert_with(|| {
        let mut whole = module.text_above_intrinsics();
        for kernel in module.source.kernels {
            let _ = writeln!(
                whole,
                "extern \"C\" int emulate_{kernel}(const Plan* plan, void** arguments, const size_t* sizes, size_t count) {{ \
                 return run({kernel}, plan, arguments, sizes, count); }}"
            );
        }
        let library = compile(module.source.name, module.definitions(), &whole);
        Box::leak(Box::new(Mutex::new(library.expect("g++ was there a moment ago"))))
    })
}

fn read(x: Columns, row: u64, col: u64) -> f64 {
    assert!(row < x.rows && col < x.cols && x.rows <= x.stride, "({row}, {col}) of {x:?}");
    let at = (row + col * x.stride) as usize;
    // SAFETY: inside the matrix, whose memory has guards on both sides.
    unsafe {
        match x.number {
            Number::Bf16 => (*(x.address as *const bf16).add(at)).to_f64(),
            Number::F32 => f64::from(*(x.address as *const f32).add(at)),
            Number::F64 => *(x.address as *const f64).add(at),
        }
    }
}

fn write(x: Columns, row: u64, col: u64, value: f64) {
    assert!(row < x.rows && col < x.cols && x.rows <= x.stride, "({row}, {col}) of {x:?}");
    let at = (row + col * x.stride) as usize;
    // SAFETY: as above.
    unsafe {
        match x.number {
            Number::Bf16 => *(x.address as *mut bf16).add(at) = bf16::from_f32(value as f32),
            Number::F32 => *(x.address as *mut f32).add(at) = value as f32,
            Number::F64 => *(x.address as *mut f64).add(at) = value,
        }
    }
}

fn square(triangle: &Triangle) -> Columns {
    let Triangle { address, number, size } = *triangle;
    Columns { address, number, rows: size, cols: size, stride: size }
}

impl Machine for Emulator {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn free_bytes(&self) -> Result<u64, CudaError> {
        Ok(self.facts.memory_bytes)
    }

    fn allocate(&self, bytes: u64) -> Result<Address, CudaError> {
        let library = base().expect("it was there when the emulator was made");
        // SAFETY: the symbol has this type.
        let address = unsafe {
            let allocate: Symbol<'_, unsafe extern "C" fn(usize) -> Address> =
                library.get(b"emulator_allocate").expect("the emulator allocates");
            allocate(bytes as usize)
        };
        assert_ne!(address, 0, "the system has no {bytes} bytes");
        self.sizes().insert(address, bytes as usize);
        Ok(address)
    }

    fn release(&self, address: Address) {
        let bytes = self.sizes().remove(&address).expect("released what was allocated, once");
        let library = base().expect("it was there when the emulator was made");
        // SAFETY: the symbol has this type, and the memory was allocated by its twin.
        let harm = unsafe {
            let release: Symbol<'_, unsafe extern "C" fn(Address, usize) -> i32> =
                library.get(b"emulator_release").expect("the emulator releases");
            release(address, bytes)
        };
        // While a test unwinds, its own failure is the one to see.
        assert!(
            harm == 0 || std::thread::panicking(),
            "something was written beside {bytes} bytes of memory"
        );
    }

    fn upload(&self, to: Address, from: &[u8]) -> Result<(), CudaError> {
        // SAFETY: the caller's memory is as large.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    fn download(&self, to: &mut [u8], from: Address) -> Result<(), CudaError> {
        // SAFETY: the caller's memory is as large.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copy(&self, to: Address, from: Address, bytes: u64) -> Result<(), CudaError> {
        // SAFETY: the caller's memory is as large, in both places.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes as usize) };
        Ok(())
    }

    fn clear(&self, at: Address, bytes: u64) -> Result<(), CudaError> {
        // SAFETY: the caller's memory is as large.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes as usize) };
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        let library = text(launch.module).lock().unwrap_or_else(PoisonError::into_inner);
        let mut cells: Vec<u64> = launch.arguments.iter().map(|argument| argument.bits()).collect();
        let sizes: Vec<usize> = launch.arguments.iter().map(|argument| argument.bytes()).collect();
        let mut pointers: Vec<*mut u64> = cells.iter_mut().map(std::ptr::from_mut).collect();
        let plan = Plan {
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            backward: u32::from(self.order == Order::Backward),
        };
        // SAFETY: the symbol has this type; arguments are checked against the kernel's before they are read.
        let verdict = unsafe {
            let name = format!("emulate_{}", launch.kernel);
            let run: Symbol<'_, Run> =
                library.get(name.as_bytes()).expect("every kernel of a text is listed");
            run(&raw const plan, pointers.as_mut_ptr(), sizes.as_ptr(), sizes.len())
        };
        let words = [
            "",
            "its arguments or block are not the kernel's",
            "its threads wait for ever",
            "it left its shared memory",
        ];
        assert_eq!(words.get(verdict as usize), Some(&""), "{} with {:?}", launch.kernel, launch.arguments);
        Ok(())
    }

    fn multiply(&self, multiply: &Multiply) -> Result<(), CudaError> {
        let Multiply { left, right, out, alpha, beta } = *multiply;
        let turned = |(x, turn): (Columns, Turn)| match turn {
            Turn::Straight => (x.rows, x.cols),
            Turn::Transposed => (x.cols, x.rows),
        };
        let at = |(x, turn): (Columns, Turn), row, col| match turn {
            Turn::Straight => read(x, row, col),
            Turn::Transposed => read(x, col, row),
        };
        assert_eq!(turned(left), (out.rows, turned(right).0), "{multiply:?}");
        assert_eq!(turned(right).1, out.cols, "{multiply:?}");
        assert!(left.0.number == right.0.number, "operands of one kind: {multiply:?}");
        for (row, col) in (0..out.rows).flat_map(|row| (0..out.cols).map(move |col| (row, col))) {
            let sum: f64 = (0..turned(left).1).map(|k| at(left, row, k) * at(right, k, col)).sum();
            let kept = if beta == 0.0 { 0.0 } else { beta * read(out, row, col) };
            write(out, row, col, alpha * sum + kept);
        }
        Ok(())
    }

    fn factor(&self, triangle: &Triangle) -> Result<Option<u64>, CudaError> {
        let a = square(triangle);
        for col in 0..a.cols {
            let dot = |row| (0..col).map(|k| read(a, row, k) * read(a, col, k)).sum::<f64>();
            let pivot = read(a, col, col) - dot(col);
            if !(pivot > 0.0 && pivot.is_finite()) {
                return Ok(Some(col));
            }
            write(a, col, col, pivot.sqrt());
            for row in col + 1..a.rows {
                write(a, row, col, (read(a, row, col) - dot(row)) / read(a, col, col));
            }
        }
        Ok(None)
    }

    fn invert(&self, triangle: &Triangle) -> Result<Option<u64>, CudaError> {
        let a = square(triangle);
        for row in 0..a.rows {
            let scale = 1.0 / read(a, row, row);
            for col in 0..row {
                let dot: f64 = (col..row).map(|k| read(a, row, k) * read(a, k, col)).sum();
                write(a, row, col, -dot * scale);
            }
            write(a, row, row, scale);
        }
        Ok(None)
    }

    fn wait(&self) -> Result<(), CudaError> {
        self.copy_while(|_| true);
        Ok(())
    }

    fn pin(&self, bytes: usize) -> Result<Pinned, CudaError> {
        Ok(Pinned(self.allocate(bytes as u64)? as *mut u8))
    }

    fn unpin(&self, pinned: Pinned) {
        self.release(pinned.0 as Address);
    }

    unsafe fn send(&self, to: Address, from: Pinned, bytes: usize) -> Result<(), CudaError> {
        self.copies().push_back(Copy::Send { to, from: from.0 as Address, bytes });
        Ok(())
    }

    fn event(&self) -> Result<Event, CudaError> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        *events += 1;
        Ok(Event(*events))
    }

    fn forget(&self, _: Event) {}

    fn record(&self, event: Event, lane: Lane) -> Result<(), CudaError> {
        if lane == Lane::Copy {
            self.copies().push_back(Copy::Record(event));
        }
        Ok(())
    }

    fn hold(&self, lane: Lane, event: Event) -> Result<(), CudaError> {
        // Computations are done at once: what waits for them has nothing to wait for.
        if lane == Lane::Compute { self.wait_for(event) } else { Ok(()) }
    }

    fn wait_for(&self, event: Event) -> Result<(), CudaError> {
        let waits = |copies: &VecDeque<Copy>| {
            copies.iter().any(|copy| matches!(copy, Copy::Record(e) if *e == event))
        };
        self.copy_while(waits);
        Ok(())
    }
}
