//! What the person at the terminal sees while work goes on. Talk goes to stderr, data to stdout.

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::Once;
use std::time::{Duration, Instant};

use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use attar_eval::render::Terminal;
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use terminal_size::{Width, terminal_size_of};

use crate::diagnostic::{Explain, Failure, Palette, Result};

/// What takes no longer than this is not worth a word.
const PATIENCE: Duration = Duration::from_secs(2);

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
        let style = stderr_palette().warning;
        self.line(Verbosity::Normal, &format!("{style}warning:{style:#} {text}"));
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
        let stage = Stage::new(self, name, (total, unit), Duration::ZERO);
        stage.show();
        stage
    }

    /// A [`stage`](Self::stage) that is spoken of only once it has taken two seconds.
    pub fn errand(self, name: &str, total: u64, unit: &'static str) -> Stage {
        Stage::new(self, name, (total, unit), PATIENCE)
    }
}

/// A stage under way.
pub struct Stage {
    name: String,
    unit: &'static str,
    bar: ProgressBar,
    shown: Once,
    talk: Talk,
    started: Instant,
    patience: Duration,
}

impl Stage {
    fn new(talk: Talk, name: &str, (total, unit): (u64, &'static str), patience: Duration) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        bar.set_prefix(name.to_owned());
        Self { name: name.to_owned(), unit, bar, shown: Once::new(), talk, started: Instant::now(), patience }
    }

    /// Draws the bar from now on, where there is a terminal to draw it on.
    fn show(&self) {
        if self.talk.verbosity < Verbosity::Normal || !std::io::stderr().is_terminal() {
            return;
        }
        self.shown.call_once(|| {
            let template = "{prefix:<12} {bar:24} {percent:>3} %  {elapsed}, {eta} left  {wide_msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                self.bar.set_style(style);
            }
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.bar.enable_steady_tick(Duration::from_millis(200));
        });
    }

    /// `amount` more are done; `now` says what of.
    pub fn step(&self, amount: u64, now: &str) {
        self.bar.inc(amount);
        if self.started.elapsed() >= self.patience {
            self.show();
        }
        let gap = if now.is_empty() { "" } else { "  " };
        self.bar.set_message(format!("{now}{gap}{}", self.rate()));
    }

    fn rate(&self) -> String {
        let per_second = self.bar.position() as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        match self.unit {
            "bytes" => format!("{}/s", human_bytes(per_second as u64)),
            unit => format!("{} {unit}/s", human_count(per_second as u64)),
        }
    }

    /// How much is done.
    pub fn position(&self) -> u64 {
        self.bar.position()
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
        if took < self.patience {
            return took;
        }
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
    let _ = writeln!(std::io::stderr(), "{}", failure.in_colours(stderr_palette()));
}

/// How results are laid out on stdout: as wide as the terminal, in colour where it shows colours.
pub fn terminal() -> Terminal {
    let stdout = std::io::stdout();
    let width = terminal_size_of(&stdout).map_or(Terminal::FILE.width, |(Width(columns), _)| columns.into());
    Terminal { width, colour: shows_colour(stdout) }
}

fn stderr_palette() -> Palette {
    if shows_colour(std::io::stderr()) { Palette::COLOUR } else { Palette::PLAIN }
}

/// Whether escape codes are wanted on a stream: `NO_COLOR`, `CLICOLOR`, `CLICOLOR_FORCE` and `TERM` are obeyed, a stream that is no
/// terminal stays plain.
fn shows_colour<S: RawStream>(stream: S) -> bool {
    AutoStream::auto(stream).current_choice() == ColorChoice::AlwaysAnsi
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

/// A count in the largest unit that keeps three digits: `12.3 M`; below ten thousand the count itself.
pub fn human_count(count: u64) -> String {
    if count < 10_000 {
        return thousands(count);
    }
    let (mut value, mut unit) = (count as f64 / 1e3, 0);
    while value >= 999.5 && unit < 3 {
        value /= 1e3;
        unit += 1;
    }
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$} {}", ["k", "M", "G", "T"][unit])
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
    fn an_errand_that_is_soon_done_is_not_spoken_of() {
        let errand = Talk::new(Verbosity::Normal).errand("hashing", 10, "bytes");
        errand.step(10, "");
        assert!(!errand.shown.is_completed() && errand.bar.is_hidden());
        assert!(errand.done() < PATIENCE);
    }

    #[test]
    fn sizes_read_like_a_person_writes_them() {
        assert_eq!(thousands(7_344_384), "7,344,384");
        assert_eq!(thousands(12), "12");
        for (count, text) in [
            (9_999, "9,999"),
            (12_340, "12.3 k"),
            (999_600, "1.00 M"),
            (7_344_384, "7.34 M"),
            (70_553_706_496, "70.6 G"),
        ] {
            assert_eq!(human_count(count), text);
        }
        assert_eq!(human_bytes(999), "999 B");
        assert_eq!(human_bytes(4_130_000_000), "4.13 GB");
    }
}
