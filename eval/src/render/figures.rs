//! Numbers as people read them.

use crate::Perplexity;
use crate::report::Mean;

/// `12345678` as `12,345,678`.
pub(crate) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in decimal units, three significant digits: `14.7 MB`.
pub(crate) fn bytes(bytes: u64) -> String {
    scaled(bytes, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// A count in thousands, millions, billions, three significant digits: `7.34 M`.
pub(crate) fn compact(count: u64) -> String {
    scaled(count, &["", "k", "M", "B", "T"]).trim_end().to_owned()
}

fn scaled(count: u64, units: &[&str]) -> String {
    let mut value = count as f64;
    let mut unit = 0;
    // 999.5 would be printed as 1000.
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} {}", units[0])
    } else {
        format!("{} {}", three_digits(value), units[unit])
    }
}

fn three_digits(value: f64) -> String {
    let decimals = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.decimals$}")
}

/// A share, 0 to 1, in per cent.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// A wall time: `8.1 s`, `12 min 3 s`, `2 h 5 min`.
pub(crate) fn duration(secs: f64) -> String {
    let whole = secs.round() as u64;
    match whole {
        0..60 => format!("{secs:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// The digits `llama-perplexity` prints.
pub(crate) fn perplexity(perplexity: Perplexity) -> String {
    format!("{:.4} ± {:.5}", perplexity.value, perplexity.stderr)
}

/// As many digits of perplexity as runs over one text differ in, and the size of its error.
pub(crate) fn short_perplexity(perplexity: Perplexity) -> String {
    format!("{:.4} ± {:.2}", perplexity.value, perplexity.stderr)
}

/// A small figure to the second digit of its error: `0.00881 ± 0.00021`.
pub(crate) fn measured(value: f64, stderr: f64) -> String {
    if stderr <= 0.0 {
        return small(value);
    }
    if stderr < 1e-6 && value.abs() < 1e-3 {
        return format!("{value:.2e} ± {stderr:.0e}");
    }
    let decimals = (1.0 - stderr.log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{value:.decimals$} ± {stderr:.decimals$}")
}

/// The figures of a column, all written in one way: to the second digit of the smallest error where seven decimals
/// hold its first, else as powers of ten.
pub(crate) fn measured_alike(figures: impl IntoIterator<Item = Option<Mean>>) -> Vec<Option<String>> {
    let figures: Vec<Option<Mean>> = figures.into_iter().collect();
    let errors = figures.iter().flatten().map(|figure| figure.stderr);
    let least = errors.filter(|stderr| *stderr > 0.0).fold(f64::INFINITY, f64::min);
    let decimals = (1.0 - least.log10().floor()).clamp(0.0, 7.0) as usize;
    let written = |Mean { mean, stderr }: Mean| {
        if !least.is_finite() || (mean == 0.0 && stderr == 0.0) {
            return measured(mean, stderr);
        }
        if least < 1e-7 {
            format!("{mean:.2e} ± {stderr:.0e}")
        } else {
            format!("{mean:.decimals$} ± {stderr:.decimals$}")
        }
    };
    figures.into_iter().map(|figure| figure.map(written)).collect()
}

/// A figure between 0 and a few, three significant digits.
pub(crate) fn small(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if value < 1e-4 {
        return format!("{value:.2e}");
    }
    let decimals = (2.0 - value.log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{value:.decimals$}")
}

/// How likely, in per cent: two digits down to a hundredth, `< 0.01 %` below.
pub(super) fn probability(share: f64) -> String {
    match 100.0 * share {
        percent if percent > 0.0 && percent < 0.01 => "< 0.01 %".to_owned(),
        percent if percent < 1.0 => format!("{percent:.2} %"),
        percent => format!("{percent:.1} %"),
    }
}

/// A piece of text on one line, the spaces at its ends and the ends of its lines made visible.
pub(super) fn visible(text: &str) -> String {
    let shown = |c: char| match c {
        '\n' => '⏎',
        '\t' => '⇥',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    let core = text.trim_matches(' ');
    let (start, end) = if core.is_empty() {
        (text.len(), 0)
    } else {
        (text.len() - text.trim_start_matches(' ').len(), text.len() - text.trim_end_matches(' ').len())
    };
    let spaces = |count| "␣".repeat(count);
    format!("{}{}{}", spaces(start), core.chars().map(shown).collect::<String>(), spaces(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped_by_thousands() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (7_344_384, "7,344,384")];
        for (count, text) in cases {
            assert_eq!(grouped(count), text);
        }
    }

    #[test]
    fn sizes_have_three_digits_and_never_four() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (9_994, "9.99 kB"),
            (9_996, "10.0 kB"),
            (99_960, "100 kB"),
            (999_400, "999 kB"),
            (999_600, "1.00 MB"),
            (14_688_768, "14.7 MB"),
            (u64::MAX, "18447 PB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
        let cases = [(999, "999"), (7_344_384, "7.34 M"), (70_553_706_496, "70.6 B")];
        for (count, text) in cases {
            assert_eq!(compact(count), text);
        }
    }

    #[test]
    fn times_change_unit_where_they_should() {
        let cases = [
            (0.04, "0.0 s"),
            (59.4, "59.4 s"),
            (59.6, "1 min 0 s"),
            (3599.0, "59 min 59 s"),
            (7_500.0, "2 h 5 min"),
        ];
        for (secs, text) in cases {
            assert_eq!(duration(secs), text);
        }
    }

    #[test]
    fn a_measured_figure_stops_at_the_second_digit_of_its_error() {
        let cases = [
            (0.008_812_3, 0.000_211_9, "0.00881 ± 0.00021"),
            (0.8, 0.05, "0.800 ± 0.050"),
            (12.3, 4.5, "12.3 ± 4.5"),
            (123.4, 45.0, "123 ± 45"),
            (0.000_004, 0.000_000_3, "4.00e-6 ± 3e-7"),
            (1.000_000_2, 0.000_000_9, "1.00000020 ± 0.00000090"),
            (0.0, 0.0, "0"),
            (0.25, 0.0, "0.250"),
        ];
        for (value, stderr, text) in cases {
            assert_eq!(measured(value, stderr), text);
        }
    }

    #[test]
    fn the_figures_of_a_column_are_written_in_one_way() {
        let written = |figures: &[(f64, f64)]| -> Vec<String> {
            let means = figures.iter().map(|&(mean, stderr)| Some(Mean { mean, stderr }));
            measured_alike(means).into_iter().flatten().collect()
        };
        assert_eq!(
            written(&[(0.008_812, 0.000_212), (0.3, 0.01)]),
            ["0.00881 ± 0.00021", "0.30000 ± 0.01000"]
        );
        assert_eq!(
            written(&[(2.72e-5, 8e-7), (0.002_058, 0.000_066)]),
            ["0.0000272 ± 0.0000008", "0.0020580 ± 0.0000660"]
        );
        assert_eq!(written(&[(2.72e-6, 8e-9), (0.002_058, 0.000_066)]), ["2.72e-6 ± 8e-9", "2.06e-3 ± 7e-5"]);
        assert_eq!(written(&[(0.0, 0.0), (0.5, 0.1)]), ["0", "0.50 ± 0.10"]);
        assert_eq!(measured_alike([None]), [None]);
    }

    #[test]
    fn white_space_that_matters_is_visible() {
        let cases =
            [(" the", "␣the"), ("a b ", "a b␣"), ("  ", "␣␣"), ("", ""), ("\n\tx\u{1b}", "⏎⇥x\u{fffd}")];
        for (text, shown) in cases {
            assert_eq!(visible(text), shown);
        }
    }

    #[test]
    fn a_probability_is_never_rounded_to_nothing() {
        let cases =
            [(0.0, "0.00 %"), (0.000_01, "< 0.01 %"), (0.001_2, "0.12 %"), (0.5, "50.0 %"), (1.0, "100.0 %")];
        for (share, text) in cases {
            assert_eq!(probability(share), text);
        }
    }

    #[test]
    fn small_figures_keep_three_digits() {
        let cases =
            [(0.874, "0.874"), (0.0051, "0.00510"), (12.34, "12.3"), (0.000_012_34, "1.23e-5"), (0.0, "0")];
        for (value, text) in cases {
            assert_eq!(small(value), text);
        }
    }
}
