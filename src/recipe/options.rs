//! The table of a stage: its keys are the options of the command that does the same alone.

use std::ffi::OsString;
use std::path::Path;

use clap::Args;
use toml::{Table, Value};

use super::tidy;
use crate::diagnostic::{Explain, Failure, Result};

/// A stage, and which options of its command a recipe may give.
pub struct Stage {
    /// The command and the table.
    name: &'static str,
    /// The options, with `_` for `-`.
    keys: &'static [&'static str],
    /// Those of them that are paths.
    paths: &'static [&'static str],
    /// Whether it writes an output, which then must be named.
    writes: bool,
}

/// `attar prune`.
pub const PRUNE: Stage = Stage {
    name: "prune",
    keys: &[
        "output",
        "layers",
        "drop",
        "ffn",
        "heads",
        "kv_heads",
        "hidden",
        "experts",
        "target_params",
        "across_layers",
        "align",
        "sparsity",
        "sparsity_criterion",
        "criterion",
        "depth_criterion",
        "no_repair",
        "pre_tokenizer",
    ],
    paths: &["output"],
    writes: true,
};

/// `attar distill`.
pub const DISTILL: Stage = Stage {
    name: "distill",
    keys: &[
        "output",
        "teacher",
        "data",
        "tokens",
        "ctx",
        "batch",
        "loss",
        "beta",
        "temperature",
        "cross_entropy",
        "hidden_loss",
        "local",
        "layer_map",
        "learning_rate",
        "decay",
        "warmup",
        "weight_decay",
        "clip",
        "seed",
        "held_out",
        "precision",
        "scheme",
        "save_every",
        "log",
    ],
    paths: &["output", "teacher", "data", "log"],
    writes: true,
};

/// `attar check`.
pub const CHECK: Stage = Stage {
    name: "check",
    keys: &[
        "baseline",
        "text",
        "task",
        "items",
        "ctx",
        "chunks",
        "convention",
        "reference",
        "precision",
        "max_perplexity_increase",
        "max_kl_increase",
        "max_kl",
        "max_kl_p99",
        "min_top1",
        "max_bytes",
        "max_accuracy_drop",
        "min_accuracy",
        "junit",
        "markdown",
    ],
    paths: &["baseline", "text", "task", "reference", "junit", "markdown"],
    writes: false,
};

/// What a recipe holds its outputs to, against the model they are made of.
pub const LIMITS: Stage = Stage {
    name: "check",
    keys: &["max_perplexity_increase", "max_kl", "max_kl_p99", "min_top1", "max_bytes"],
    paths: &[],
    writes: false,
};

impl Stage {
    /// What the command would be told: words that the recipe decides, then what the table says. Paths start from `folder`.
    ///
    /// # Errors
    /// A key that is none of the stage's, a value that its option does not take, options that do not go together.
    pub fn parse<A: Args>(&self, table: &Table, folder: &Path, decided: Vec<OsString>) -> Result<A> {
        self.parse_inner(table, folder, decided).doing(|| format!("while reading [{}]", self.name)).hint(
            || format!("its keys are the options of attar {0}: attar {0} --help explains them", self.name),
        )
    }

    fn parse_inner<A: Args>(&self, table: &Table, folder: &Path, decided: Vec<OsString>) -> Result<A> {
        if self.writes && !table.contains_key("output") {
            return Err(Failure::new("it has no `output`")
                .hint("say where the stage is to write: output = \"FOLDER\""));
        }
        let mut words = decided;
        for (key, value) in table {
            if !self.keys.contains(&key.as_str()) {
                return Err(Failure::new(format!("unknown key `{key}`")).hint(format!(
                    "known are {}; texts to calibrate and to score on are those of [calibration] and [evaluation]",
                    self.keys.join(", ")
                )));
            }
            self.add(&mut words, key, value, folder)?;
        }
        let command =
            A::augment_args(clap::Command::new(self.name).no_binary_name(true).disable_help_flag(true));
        let matches = command.try_get_matches_from(words).map_err(|error| in_one_sentence(&error))?;
        A::from_arg_matches(&matches).map_err(|error| in_one_sentence(&error))
    }

    /// Adds the words that a value is on the command line.
    fn add(&self, words: &mut Vec<OsString>, key: &str, value: &Value, folder: &Path) -> Result<()> {
        let option = format!("--{}", key.replace('_', "-"));
        let mut say = |value: &str| {
            let mut word = OsString::from(format!("{option}="));
            let is_path = self.paths.contains(&key);
            word.push(if is_path { tidy(&folder.join(value)).into() } else { OsString::from(value) });
            words.push(word);
        };
        match value {
            Value::String(text) => say(text),
            Value::Integer(number) => say(&number.to_string()),
            Value::Float(number) => say(&format!("{number:?}")), // 1.0 is a share, 1 is a number
            Value::Boolean(true) => words.push(option.into()),
            Value::Boolean(false) => {}
            Value::Array(values) => {
                return values.iter().try_for_each(|value| self.add(words, key, value, folder));
            }
            Value::Table(_) | Value::Datetime(_) => {
                return Err(Failure::new(format!("`{key}` is neither text nor a number, true or false")));
            }
        }
        Ok(())
    }
}

/// What is wrong, without how the command is used.
fn in_one_sentence(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let first = text.trim_start_matches("error: ").split("\n\n").next();
    Failure::new(first.unwrap_or_default().trim())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::cli::{DistillArgs, PruneArgs};
    use crate::pipeline::prune::shape::Amount;

    fn prune(table: &str) -> Result<PruneArgs> {
        PRUNE.parse(&table.parse().unwrap(), Path::new("recipes"), vec!["model".into()])
    }

    #[test]
    fn values_are_what_the_options_take() {
        let args = prune(
            "output = \"../out\"\nffn = 0.5\nheads = 4\nkv_heads = 1.0\ndrop = [3, 7]\nno_repair = true",
        )
        .unwrap();
        assert_eq!((args.shape.ffn, args.shape.heads), (Some(Amount::Share(0.5)), Some(Amount::Count(4))));
        assert_eq!(args.shape.kv_heads, Some(Amount::Share(1.0)));
        assert_eq!((args.drop, args.no_repair, args.output), (vec![3, 7], true, "out".into()));
        let table = "output = \"a\"\ndata = [\"x.txt=2\", \"y.txt\"]\nlearning_rate = 1e-3\nloss = \"jsd\"";
        let decided = ["--teacher=t", "--student=s"].map(OsString::from).to_vec();
        let args: DistillArgs = DISTILL.parse(&table.parse().unwrap(), Path::new("r"), decided).unwrap();
        let data: Vec<_> = args.data.iter().map(|file| (file.path.to_str().unwrap(), file.weight)).collect();
        assert_eq!(data, [("r/x.txt", 2.0), ("r/y.txt", 1.0)]);
        assert!((args.learning_rate - 1e-3).abs() < 1e-12);
    }

    #[test]
    fn what_an_option_does_not_take_is_refused_with_its_name() {
        for (table, part) in [
            ("layers = 1", "no `output`"),
            ("output = \"a\"\nlayrs = 1", "unknown key `layrs`"),
            ("output = \"a\"\ntext = \"b\"", "unknown key `text`"),
            ("output = \"a\"\nffn = 1.5", "'1.5' for '--ffn"),
            ("output = \"a\"\nlayers = \"few\"", "'few' for '--layers"),
            ("output = \"a\"\nlayers = 1\ndrop = [1]", "cannot be used with"),
            ("output = \"a\"\nffn = {a = 1}", "`ffn` is neither"),
        ] {
            let error = prune(table).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("while reading [prune]"), "{table}: {error}");
        }
    }

    /// A key that the command has no option for would be refused by clap, in words that do not fit.
    #[test]
    fn every_key_is_an_option_of_its_command() {
        fn options<A: Args>() -> Vec<String> {
            let command = A::augment_args(clap::Command::new("any"));
            command.get_arguments().filter_map(|arg| Some(arg.get_long()?.replace('-', "_"))).collect()
        }
        for (stage, options) in [(PRUNE, options::<PruneArgs>()), (DISTILL, options::<DistillArgs>())] {
            for key in stage.keys.iter().chain(stage.paths) {
                assert!(options.iter().any(|option| option == key), "{}: {key}", stage.name);
            }
        }
    }
}
