//! What a benchmark measures beside its case: the multiply-add peak of the machine, in the same run and as often.
//!
//! A shared or throttled machine slows both alike, so the share of the peak is worth more than either figure.

use criterion::BenchmarkGroup;
use criterion::measurement::WallTime;
use ndarray::Array2;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::cell::RefCell;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// What one run of a case does.
#[derive(Clone, Copy)]
pub struct Work {
    /// How much of `unit`, seconds aside, one run gets done.
    pub amount: f64,
    /// What a reader compares: `GFLOP/s`, `tokens/s`, `MB/s of f32 weights`.
    pub unit: &'static str,
    /// Its floating-point operations where they are worth counting; else the peak stands beside the rate without a share.
    pub flops: Option<f64>,
    /// Bytes of the numbers they are done in: the peak in f64 is half of that in f32, the one in bf16 is measured where the
    /// machine multiplies such numbers and is that in f32 elsewhere.
    pub number_bytes: u32,
}

/// Runs `run` on one thread and on all of them, and prints a line for each, medians of the samples.
pub fn case(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, work: Work, run: impl Fn() + Sync) {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    for threads in [1, all].into_iter().take(all) {
        on_threads(group, name, work, threads, &run);
    }
}

#[expect(clippy::print_stdout, reason = "the line is what the benchmark is for")]
fn on_threads(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    work: Work,
    threads: usize,
    run: &(impl Fn() + Sync),
) {
    let label = if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
    let (runs, peaks) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
    match ThreadPoolBuilder::new().num_threads(threads).build() {
        Ok(pool) => {
            group.bench_function(format!("{name}, {label}"), |bencher| {
                bencher.iter_custom(|count| {
                    peaks.borrow_mut().push(peak(&pool, work.number_bytes));
                    let ((), spent) = spent(&pool, || pool.install(|| (0..count).for_each(|_| run())));
                    runs.borrow_mut().push(spent.per(count as f64));
                    spent.wall
                });
            });
        }
        Err(error) => println!("{name}, {label}: {error}"),
    }
    // Where other cases were asked for there is nothing to say.
    if let (Some(runs), Some(peak)) = (median(runs.into_inner()), median(peaks.into_inner())) {
        println!("{name}, {label}: {}\n", work.told(runs, peak));
    }
}

impl Work {
    /// From runs a second and billions of f32 operations a second at the peak.
    fn told(&self, runs: Rate, peak: Rate) -> String {
        let rate = self.amount * runs.per_wall_sec;
        let of_width = 4.0 / f64::from(self.number_bytes.max(4));
        let peak =
            Rate { per_wall_sec: peak.per_wall_sec * of_width, per_cpu_sec: peak.per_cpu_sec * of_width };
        let Some(flops) = self.flops else {
            let per_cpu_sec = self.amount * runs.per_cpu_sec;
            return format!(
                "{rate:.0} {}, {per_cpu_sec:.0} per core, beside a measured peak of {:.0} GFLOP/s per core",
                self.unit, peak.per_cpu_sec
            );
        };
        let share = |runs: f64, peak: f64| flops / 1e9 * runs / peak * 100.0;
        format!(
            "{rate:.0} {}, {:.0} % of the {:.0} measured peak; by CPU time {:.0} % of {:.0} per core",
            self.unit,
            share(runs.per_wall_sec, peak.per_wall_sec),
            peak.per_wall_sec,
            share(runs.per_cpu_sec, peak.per_cpu_sec),
            peak.per_cpu_sec,
        )
    }
}

/// So much a second on the wall, and so much for each second that a thread was on a core: the second figure leaves out what
/// other programs take.
#[derive(Clone, Copy)]
struct Rate {
    per_wall_sec: f64,
    per_cpu_sec: f64,
}

/// The median of each.
fn median(rates: Vec<Rate>) -> Option<Rate> {
    let middle = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let (wall, cpu) = rates.into_iter().map(|rate| (rate.per_wall_sec, rate.per_cpu_sec)).unzip();
    Some(Rate { per_wall_sec: middle(wall)?, per_cpu_sec: middle(cpu)? })
}

/// Time on the wall, and on all cores together.
struct Spent {
    wall: Duration,
    cpu: Duration,
}

impl Spent {
    fn per(&self, amount: f64) -> Rate {
        Rate { per_wall_sec: amount / self.wall.as_secs_f64(), per_cpu_sec: amount / self.cpu.as_secs_f64() }
    }
}

/// What `run` returns, and what it took of the threads of a pool.
fn spent<R>(pool: &ThreadPool, run: impl FnOnce() -> R) -> (R, Spent) {
    let on_cores = || pool.broadcast(|_| cpu_time()).into_iter().sum::<Option<Duration>>();
    let (before, start) = (on_cores(), Instant::now());
    let result = run();
    let wall = start.elapsed();
    let cpu = before.zip(on_cores()).map(|(before, after)| after.saturating_sub(before));
    (result, Spent { wall, cpu: cpu.unwrap_or(wall * pool.current_num_threads() as u32) })
}

/// How long this thread has been on a core, where Linux counts it: up to the last time that it gave one up.
fn cpu_time() -> Option<Duration> {
    std::thread::yield_now();
    let counts = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    counts.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}

/// Billions of f32 operations, an addition and a multiplication counted each, of all threads of a pool at once on nothing but
/// registers; with factors in bf16 where their numbers have two bytes.
fn peak(pool: &ThreadPool, number_bytes: u32) -> Rate {
    const STEPS: u32 = 2_000_000; // some tens of milliseconds
    let steps = if number_bytes == 2 { multiply_add_bf16 } else { multiply_add };
    let (flops, spent) = spent(pool, || pool.broadcast(|_| steps(STEPS)).into_iter().sum::<f64>());
    spent.per(flops / 1e9)
}

/// Vectors in flight at once: enough to hide the latency of a multiply-add, few enough to stay in registers.
const CHAINS: usize = 12;

/// Steps `x = a x + b` in every lane of as many vectors as hide the latency; returns the operations done.
fn multiply_add(steps: u32) -> f64 {
    let (a, b) = (black_box(0.999f32), black_box(0.001f32));
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the one feature it is compiled with was just detected.
            return unsafe { multiply_add_avx512(steps, a, b) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the two features it is compiled with were just detected.
            return unsafe { multiply_add_avx2(steps, a, b) };
        }
    }
    multiply_add_portable(steps, a, b)
}

/// Steps `x += a b + a b` with a and b in bf16, by the fastest instruction that the machine has, else those in f32.
fn multiply_add_bf16(steps: u32) -> f64 {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if tiles::are_granted() {
        return tiles::multiply_add(steps);
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the two features it is compiled with were just detected.
        return unsafe { multiply_add_bf16_avx512(steps, black_box(0.999)) };
    }
    multiply_add(steps)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply_add_bf16_avx512(steps: u32, a: f32) -> f64 {
    use std::arch::x86_64::{_mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let mut x = [_mm512_set1_ps(a); CHAINS];
    let a = _mm512_cvtne2ps_pbh(x[0], x[0]);
    for _ in 0..steps {
        for x in &mut x {
            *x = _mm512_dpbf16_ps(*x, a, a);
        }
    }
    for x in x {
        black_box(_mm512_reduce_add_ps(x));
    }
    f64::from(steps) * (4 * 16 * CHAINS) as f64
}

/// The matrix extension's peak.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles {
    use std::arch::asm;
    use std::arch::x86_64::__cpuid_count;

    /// Whether the processor multiplies tiles of bf16 and the system lets this process.
    pub fn are_granted() -> bool {
        let has = __cpuid_count(7, 0).edx & (1 << 22 | 1 << 24) == 1 << 22 | 1 << 24;
        // SAFETY: asks for the right to the tiles' state (18) and changes nothing else.
        has && unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1023, 18) } == 0
    }

    /// A sixteenth of `steps` times four products of 16x32 and 32x16 numbers that stay in tiles.
    pub fn multiply_add(steps: u32) -> f64 {
        let mut shapes = [0u8; 64]; // palette 1, eight tiles of 16 rows of 64 bytes
        shapes[0] = 1;
        for tile in 0..8 {
            (shapes[16 + 2 * tile], shapes[48 + tile]) = (64, 16);
        }
        let steps = (steps / 16).max(1);
        // SAFETY: the process may use tiles, as the caller has found; nothing else in it does at the time.
        unsafe {
            asm!(
                "ldtilecfg [{shapes}]",
                "2:",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {steps:e}",
                "jnz 2b",
                shapes = in(reg) shapes.as_ptr(),
                steps = inout(reg) steps => _,
                options(nostack, readonly),
            );
        }
        f64::from(steps) * f64::from(4 * 16 * 16 * 32 * 2)
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn multiply_add_avx512(steps: u32, a: f32, b: f32) -> f64 {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let (a, b) = (_mm512_set1_ps(a), _mm512_set1_ps(b));
    let mut x = [a; CHAINS];
    for _ in 0..steps {
        for x in &mut x {
            *x = _mm512_fmadd_ps(*x, a, b);
        }
    }
    for x in x {
        black_box(_mm512_reduce_add_ps(x));
    }
    f64::from(steps) * (2 * 16 * CHAINS) as f64
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_add_avx2(steps: u32, a: f32, b: f32) -> f64 {
    use std::arch::x86_64::{_mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps};
    let (a, b) = (_mm256_set1_ps(a), _mm256_set1_ps(b));
    let mut x = [a; CHAINS];
    for _ in 0..steps {
        for x in &mut x {
            *x = _mm256_fmadd_ps(*x, a, b);
        }
    }
    for x in x {
        black_box(_mm256_cvtss_f32(x));
    }
    f64::from(steps) * (2 * 8 * CHAINS) as f64
}

/// Without fused steps, so an underestimate on a machine that has them.
fn multiply_add_portable(steps: u32, a: f32, b: f32) -> f64 {
    let mut x = [[a; 4]; CHAINS];
    for _ in 0..steps {
        for x in x.as_flattened_mut() {
            *x = *x * a + b;
        }
    }
    black_box(x);
    f64::from(steps) * (2 * 4 * CHAINS) as f64
}

/// Reproducible values in [-1, 1), by a 64-bit mix of seed and position.
pub fn random(dim: (usize, usize), seed: u64) -> Array2<f32> {
    let mut state = seed;
    Array2::from_shape_simple_fn(dim, || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    })
}
