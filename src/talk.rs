//! What the person at the terminal sees while work goes on. Talk goes to stderr, data to stdout.

use std::io::{ErrorKind, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::diagnostic::{Explain, Failure, Result};

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors and results only.
    Quiet,
    /// Progress, notes and warnings.
    Normal,
    /// Also a line per tensor.
    Verbose,
}

/// The voice of the program on stderr.
#[derive(Clone, Copy, Debug)]
pub struct Talk {
    verbosity: Verbosity,
}

impl Talk {
    /// A voice of this loudness.
    pub fn new(verbosity: Verbosity) -> Self {
        Self { verbosity }
    }

    /// A remark in passing.
    pub fn note(self, text: &str) {
        self.line(Verbosity::Normal, text);
    }

    /// A remark for those who asked for more.
    pub fn detail(self, text: &str) {
        self.line(Verbosity::Verbose, text);
    }

    /// Something the user should know about the result.
    pub fn warn(self, text: &str) {
        self.line(Verbosity::Normal, &format!("warning: {text}"));
    }

    fn line(self, least: Verbosity, text: &str) {
        if self.verbosity >= least {
            // Nobody is left to tell when stderr is closed.
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// Begins a stage in which `total` things called `unit` are worked through: a bar on a terminal, one line at the
    /// end elsewhere.
    pub fn stage(self, name: &str, total: u64, unit: &'static str) -> Stage {
        let shown = self.verbosity >= Verbosity::Normal;
        let bar = if shown && std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template(
                "{prefix:<12} {bar:24} {percent:>3} %  {elapsed}, {eta} left  {msg}",
            );
            let bar = ProgressBar::new(total);
            bar.enable_steady_tick(Duration::from_millis(200));
            style.map_or(bar.clone(), |style| bar.with_style(style))
        } else {
            ProgressBar::hidden()
        };
        bar.set_length(total);
        bar.set_prefix(name.to_owned());
        Stage { name: name.to_owned(), unit, bar, talk: self, started: Instant::now() }
    }
}

/// A stage under way.
pub struct Stage {
    name: String,
    unit: &'static str,
    bar: ProgressBar,
    talk: Talk,
    started: Instant,
}

impl Stage {
    /// `amount` more are done; `now` says what of.
    pub fn step(&self, amount: u64, now: &str) {
        self.bar.inc(amount);
        self.bar.set_message(format!("{now}  {}", self.rate()));
    }

    fn rate(&self) -> String {
        let per_second = self.bar.position() as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        format!("{} {}/s", thousands(per_second as u64), self.unit)
    }

    /// A line above the bar for those who asked for more.
    pub fn detail(&self, text: &str) {
        self.bar.suspend(|| self.talk.detail(text));
    }

    /// A line above the bar.
    pub fn note(&self, text: &str) {
        self.bar.suspend(|| self.talk.note(text));
    }

    /// Ends the stage, says how long it took and how fast it went.
    pub fn done(&self) -> Duration {
        let took = self.started.elapsed();
        let rate = self.rate();
        self.bar.finish_and_clear();
        let time = if took < Duration::from_mins(1) {
            format!("{:.1} s", took.as_secs_f64())
        } else {
            HumanDuration(took).to_string()
        };
        self.talk.note(&format!("{}: {time}, {rate}", self.name));
        took
    }
}

/// A bar that is given up on leaves the terminal clean.
impl Drop for Stage {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The last word of a command that failed, on stderr.
pub fn complain(failure: &Failure) {
    let _ = writeln!(std::io::stderr(), "{failure}");
}

/// A result on stdout. A reader that has gone away, as `head` does, is no error.
///
/// # Errors
/// A disk that refuses.
pub fn say(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).doing(|| "while printing the result")
        }
        _ => Ok(()),
    }
}

/// `1234567` as `1,234,567`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the largest decimal unit that keeps three digits: `4.13 GB`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_like_a_person_writes_them() {
        assert_eq!(thousands(7_344_384), "7,344,384");
        assert_eq!(thousands(12), "12");
        assert_eq!(human_bytes(999), "999 B");
        assert_eq!(human_bytes(4_130_000_000), "4.13 GB");
    }
}
