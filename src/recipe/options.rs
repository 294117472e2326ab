//! The table of a stage: its keys are the options of the command that does the same alone.

use std::ffi::OsString;
use std::path::Path;

use clap::Args;
use clap::error::{ContextKind, ContextValue};
use toml::{Table, Value};

use super::beside;
use super::document::{Document, Step};
use crate::diagnostic::{Explain, Failure, Result, nearest};

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
    pub fn parse<A: Args>(
        &self,
        table: &Table,
        document: &Document,
        folder: &Path,
        decided: Vec<OsString>,
    ) -> Result<A> {
        self.parse_inner(table, document, folder, decided)
            .doing(|| format!("while reading [{}]", self.name))
            .hint(|| {
                format!("its keys are the options of attar {0}: attar {0} --help explains them", self.name)
            })
    }

    fn parse_inner<A: Args>(
        &self,
        table: &Table,
        document: &Document,
        folder: &Path,
        decided: Vec<OsString>,
    ) -> Result<A> {
        let own = Step::Key(self.name);
        if self.writes && !table.contains_key("output") {
            let failure = Failure::new("it has no `output`")
                .hint("say where the stage is to write: output = \"FOLDER\"");
            return Err(document.at(&[own], failure));
        }
        let mut words = decided;
        for (key, value) in table {
            let way = [own, Step::Key(key)];
            if !self.keys.contains(&key.as_str()) {
                let elsewhere = if self.writes {
                    "; texts to calibrate and to score on are those of [calibration] and [evaluation]"
                } else {
                    ""
                };
                let failure = Failure::new(format!("unknown key `{key}`"))
                    .hint(format!("known are {}{elsewhere}", self.keys.join(", ")));
                let meant = nearest(key, self.keys.iter().copied());
                return Err(document.at_key(&way, failure.did_you_mean(meant)));
            }
            self.add(&mut words, key, value, folder).map_err(|failure| document.at(&way, failure))?;
        }
        let command =
            A::augment_args(clap::Command::new(self.name).no_binary_name(true).disable_help_flag(true));
        let blame = |error: &clap::Error| {
            let key = key_of(error, table);
            let way: Vec<Step<'_>> = [own].into_iter().chain(key.map(Step::Key)).collect();
            document.at(&way, in_one_sentence(error))
        };
        let matches = command.try_get_matches_from(words).map_err(|error| blame(&error))?;
        A::from_arg_matches(&matches).map_err(|error| blame(&error))
    }

    /// Adds the words that a value is on the command line.
    fn add(&self, words: &mut Vec<OsString>, key: &str, value: &Value, folder: &Path) -> Result<()> {
        let option = format!("--{}", key.replace('_', "-"));
        let mut say = |value: &str| {
            let mut word = OsString::from(format!("{option}="));
            let is_path = self.paths.contains(&key);
            word.push(if is_path { beside(folder, Path::new(value)).into() } else { OsString::from(value) });
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

/// The key of the option that an error is about, where the table has it.
fn key_of<'t>(error: &clap::Error, table: &'t Table) -> Option<&'t str> {
    let named = |kind| match error.get(kind) {
        Some(ContextValue::String(option)) => vec![option.as_str()],
        Some(ContextValue::Strings(options)) => options.iter().map(String::as_str).collect(),
        _ => Vec::new(),
    };
    let options = named(ContextKind::InvalidArg).into_iter().chain(named(ContextKind::PriorArg));
    let keys = options.filter_map(|option| {
        let name = option.strip_prefix("--")?.split([' ', '=', '[']).next()?.replace('-', "_");
        table.keys().find(|key| **key == name)
    });
    keys.map(String::as_str).next()
}

/// What is wrong, without how the command is used.
fn in_one_sentence(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let first = text.trim_start_matches("error: ").split("\n\n").next();
    let failure = Failure::new(first.unwrap_or_default().trim());
    match error.get(ContextKind::SuggestedValue) {
        Some(ContextValue::String(word)) => failure.did_you_mean(Some(word)),
        _ => failure,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::cli::{CheckArgs, DistillArgs, LimitArgs, PruneArgs};
    use crate::pipeline::prune::shape::Amount;

    fn prune(table: &str) -> Result<PruneArgs> {
        let document = Document::new(Path::new("r.toml"), format!("[prune]\n{table}\n"));
        PRUNE.parse(&table.parse().unwrap(), &document, Path::new("recipes"), vec!["model".into()])
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
        let document = Document::new(Path::new("r.toml"), format!("[distill]\n{table}\n"));
        let args: DistillArgs =
            DISTILL.parse(&table.parse().unwrap(), &document, Path::new("r"), decided).unwrap();
        let data: Vec<_> = args.data.iter().map(|file| (file.path.to_str().unwrap(), file.weight)).collect();
        assert_eq!(data, [("r/x.txt", 2.0), ("r/y.txt", 1.0)]);
        assert!((args.learning_rate - 1e-3).abs() < 1e-12);
    }

    #[test]
    fn what_an_option_does_not_take_is_refused_with_its_name() {
        for (table, part, place) in [
            ("layers = 1", "no `output`", "1:2"),
            ("output = \"a\"\nlayrs = 1", "unknown key `layrs`", "3:1"),
            ("output = \"a\"\ntext = \"b\"", "unknown key `text`", "3:1"),
            ("output = \"a\"\nffn = 1.5", "'1.5' for '--ffn", "3:7"),
            ("output = \"a\"\nlayers = \"few\"", "'few' for '--layers", "3:10"),
            ("output = \"a\"\nlayers = 1\ndrop = [1]", "cannot be used with", "4:8"),
            ("output = \"a\"\nffn = {a = 1}", "`ffn` is neither", "3:"),
        ] {
            let error = prune(table).unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("while reading [prune]"), "{table}: {error}");
            assert!(error.contains(&format!("--> r.toml:{place}")), "{table}: {error}");
        }
    }

    /// A key that the command has no option for would be refused by clap, in words that do not fit.
    #[test]
    fn every_key_is_an_option_of_its_command() {
        fn options<A: Args>() -> Vec<String> {
            let command = A::augment_args(clap::Command::new("any"));
            command.get_arguments().filter_map(|arg| Some(arg.get_long()?.replace('-', "_"))).collect()
        }
        let stages = [
            (PRUNE, options::<PruneArgs>()),
            (DISTILL, options::<DistillArgs>()),
            (CHECK, options::<CheckArgs>()),
            (LIMITS, options::<LimitArgs>()),
        ];
        for (stage, options) in stages {
            for key in stage.keys.iter().chain(stage.paths) {
                assert!(options.iter().any(|option| option == key), "{}: {key}", stage.name);
            }
        }
    }
}
