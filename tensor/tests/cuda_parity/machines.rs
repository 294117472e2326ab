//! The machines that tests of the device run on: the GPU and the emulator, whichever are here. Tests of the crates above use this file
//! as it is.

#[path = "emulator/mod.rs"]
pub mod emulator;

use attar_tensor::cuda::{Cuda, CudaError};
use emulator::{Emulator, Order};
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Runs a test on the GPU and on the emulator, whichever are here.
#[expect(clippy::print_stdout, reason = "the harness keeps it unless the test fails")]
pub fn on_every_machine(test: impl Fn(&Cuda)) {
    for (name, cuda) in machines() {
        // Shown with a failure, so that it is known where.
        println!("on {name}");
        let _alone = alone(cuda);
        test(cuda);
    }
}

/// One test at a time on a GPU: work of several threads on one stream mixes up what they keep there between two steps.
pub fn alone(cuda: &Cuda) -> Option<MutexGuard<'static, ()>> {
    static GPU: Mutex<()> = Mutex::new(());
    // A test that failed has left nothing to be afraid of.
    (cuda.facts().name != "emulated").then(|| GPU.lock().unwrap_or_else(PoisonError::into_inner))
}

pub fn machines() -> &'static [(String, Cuda)] {
    static MACHINES: OnceLock<Vec<(String, Cuda)>> = OnceLock::new();
    MACHINES.get_or_init(|| {
        let mut found = Vec::new();
        // Past the test harness, which would swallow it.
        let skipped = |what: &str, why: &dyn std::fmt::Display| {
            let _ = writeln!(std::io::stderr(), "skipped: {what}: {why}");
        };
        match Cuda::open(0, None) {
            Ok(cuda) => found.push((cuda.facts().name.clone(), cuda)),
            // A machine with a driver and a device must be able to use them.
            Err(error @ (CudaError::NoDriver | CudaError::NoSuchDevice { found: 0, .. })) => {
                skipped("the GPU", &error);
            }
            Err(error) => panic!("there is a GPU, but: {error}; {}", error.hint().unwrap_or_default()),
        }
        for order in [Order::Forward, Order::Backward] {
            match Emulator::new(order).map(|emulator| Cuda::over(Arc::new(emulator), None)) {
                Ok(Ok(cuda)) => found.push((format!("the emulator, threads {order:?}"), cuda)),
                Ok(Err(error)) => panic!("{error}"),
                Err(why) => skipped("the emulator", &why),
            }
        }
        found
    })
}
