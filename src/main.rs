//! The `attar` program: parse, do, explain.

use std::process::ExitCode;

use attar::Outcome;
use attar::cli::Cli;
use clap::Parser;

fn main() -> ExitCode {
    keep_freed_memory();
    let cli = Cli::parse();
    match attar::run(&cli) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::GateFailed) => ExitCode::from(1),
        Err(failure) => {
            attar::talk::complain(&failure);
            ExitCode::from(2)
        }
    }
}

/// Lets the allocator keep freed memory for what is computed next, where it would give it back and ask for it again.
///
/// Activations live for a moment and are as large as glibc's limits for what is mapped for one use only and for what is given
/// back; a fifth of an evaluation went into clearing their pages. Those limits rise, for good, to the size of a mapped block
/// when it is freed, and to twice that (mallopt(3), `M_MMAP_THRESHOLD`); 32 MB is the largest that counts. None of it is
/// ever touched. Other allocators see one large request.
fn keep_freed_memory() {
    const LARGEST: usize = (32 << 20) - (64 << 10);
    drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGEST)));
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use std::hint::black_box;

    /// Pages this process has been given so far.
    fn page_faults() -> u64 {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        after_name.split_whitespace().nth(7).and_then(|faults| faults.parse().ok()).unwrap_or_default()
    }

    #[test]
    fn freed_memory_is_used_again_without_asking_the_system() {
        super::keep_freed_memory();
        let pass = || drop(black_box(vec![1u8; 16 << 20]));
        pass();
        let before = page_faults();
        assert!(before > 0);
        (0..4).for_each(|_| pass());
        assert!(page_faults() - before < 4096, "each of four passes writes 4096 pages");
    }
}
