//! `attar run`: a recipe in TOML. A model may be pruned, what is left taught by the original, and of that several outputs made; all of
//! them are compared with the original in one table.
//!
//! Paths in a recipe start from the folder it lies in.

mod chain;
mod document;
mod options;
mod pruning;
mod resolved;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use attar_eval::Convention;
use attar_eval::gate::Limits;
use attar_model::Precision;
use attar_quant::{Solver, Sparsity};
use serde::Deserialize;
use toml::{Table, Value};

use crate::cli::{
    CheckArgs, DistillArgs, LimitArgs, Method, PrecisionArg, PruneArgs, RunArgs, ZerosArgs, ZerosBy,
    parse_bytes,
};
use crate::commands;
use crate::commands::distill::state_of;
use crate::diagnostic::{Explain, Failure, Result};
use crate::hub;
use crate::imatrix::Imatrix;
use crate::mix::Fallback;
use crate::pipeline::fit::Goal;
use crate::pipeline::training::Kept;
use crate::plan::{Correct, TypeRules, written_type};
use crate::scheme::Scheme;
use crate::talk::Talk;
pub use chain::run;
use document::{Document, Step};

/// What is to be done, in the order it is done.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    /// The model all outputs are made from.
    model: PathBuf,
    /// A folder for the comparison in every form.
    report: Option<PathBuf>,
    /// How exactly matrices are multiplied.
    #[serde(default)]
    precision: PrecisionArg,
    #[serde(default)]
    calibration: CalibrationTable,
    #[serde(default)]
    evaluation: EvaluationTable,
    /// The options of `attar prune`.
    prune: Option<Table>,
    /// The options of `attar distill`.
    distill: Option<Table>,
    #[serde(default)]
    quantize: Vec<QuantizeTable>,
    /// The limits of `attar check`, for every output.
    check: Option<Table>,
    /// What it was read from, to show mistakes in.
    #[serde(skip)]
    document: Document,
}

/// The stages before anything is quantized, as their commands would be told to do them.
struct Stages {
    prune: Option<PruneArgs>,
    distill: Option<DistillArgs>,
}

/// Text to learn from; the built-in one where no files are named.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CalibrationTable {
    files: Vec<PathBuf>,
    tokens: usize,
    ctx: Option<usize>,
    seed: Option<u64>,
}

impl Default for CalibrationTable {
    fn default() -> Self {
        Self { files: Vec::new(), tokens: crate::cli::CALIB_TOKENS, ctx: None, seed: None }
    }
}

/// Text to score on; the built-in one where none is named.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct EvaluationTable {
    text: Option<PathBuf>,
    ctx: Option<usize>,
    chunks: Option<usize>,
    convention: Convention,
    /// A teacher cache of the model, which then is not run to be compared with.
    reference: Option<PathBuf>,
}

impl Default for EvaluationTable {
    fn default() -> Self {
        Self { text: None, ctx: None, chunks: None, convention: Convention::LlamaCpp, reference: None }
    }
}

/// One output.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct QuantizeTable {
    output: PathBuf,
    scheme: Option<String>,
    target_size: Option<String>,
    target_bpw: Option<f64>,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    method: Method,
    sparsity: Option<Value>,
    sparsity_criterion: Option<ZerosBy>,
    imatrix: Option<PathBuf>,
    #[serde(default)]
    tensor: Vec<String>,
    #[serde(default)]
    pure: bool,
    output_type: Option<String>,
    embedding_type: Option<String>,
    #[serde(default)]
    mix: Fallback,
    #[serde(default)]
    no_fallback: bool,
    tune_tokens: Option<usize>,
    #[serde(default)]
    correct_drift: Correct,
    pre_tokenizer: Option<String>,
}

impl Recipe {
    fn read(args: &RunArgs, talk: Talk) -> Result<(Self, Stages)> {
        Self::read_inner(args, talk)
            .doing(|| format!("while reading the recipe `{}`", args.recipe.display()))
            .hint(|| "a recipe is a TOML file; recipes/laptop-chat.toml is one to start from")
    }

    fn read_inner(args: &RunArgs, talk: Talk) -> Result<(Self, Stages)> {
        let path = &args.recipe;
        let text = fs::read_to_string(path)?;
        let document = Document::new(path, text);
        let mut recipe: Self = document.parse()?;
        recipe.document = document;
        if recipe.quantize.is_empty() && recipe.prune.is_none() && recipe.distill.is_none() {
            return Err(Failure::new("the recipe makes nothing")
                .hint("add a [[quantize]] table, or one called [prune] or [distill]"));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let paths =
            [&mut recipe.model].into_iter().chain(&mut recipe.report).chain(&mut recipe.evaluation.text);
        let paths = paths.chain(&mut recipe.evaluation.reference).chain(&mut recipe.calibration.files);
        let tables = recipe.quantize.iter_mut();
        for path in paths.chain(tables.flat_map(|table| table.imatrix.iter_mut().chain([&mut table.output])))
        {
            *path = beside(folder, path);
        }
        hub::settle([&mut recipe.model], talk)?;
        let mut stages = recipe.stages(folder)?;
        if let Some(distill) = &mut stages.distill {
            hub::settle([&mut distill.teacher], talk)?;
            distill.resume =
                args.resume && !distill.output.exists() && Kept::is_at(&state_of(&distill.output));
        }
        check_outputs(&recipe.outputs(&stages))?;
        Ok((recipe, stages))
    }

    /// Each stage reads what the one before it wrote; the model teaches unless another teacher is named.
    fn stages(&self, folder: &Path) -> Result<Stages> {
        let option = |name: &str, value: &Path| {
            let mut word = OsString::from(format!("--{name}="));
            word.push(value);
            word
        };
        let prune = self.prune.as_ref().map(|table| {
            let decided = vec![self.model.clone().into()];
            options::PRUNE.parse::<PruneArgs>(table, &self.document, folder, decided)
        });
        let prune = prune.transpose()?;
        let distill = self.distill.as_ref().map(|table| {
            let student = prune.as_ref().map_or(&self.model, |args| &args.output);
            let mut decided = vec![option("student", student)];
            if !table.contains_key("teacher") {
                decided.push(option("teacher", &self.model));
            }
            if !table.contains_key("precision") {
                decided.push(format!("--precision={}", Precision::from(self.precision).name()).into());
            }
            options::DISTILL.parse::<DistillArgs>(table, &self.document, folder, decided)
        });
        Ok(Stages { distill: distill.transpose()?, prune })
    }

    /// What every output is held to.
    fn limits(&self) -> Result<Option<Limits>> {
        let folder = Path::new(""); // limits are no paths
        let parse = |table| {
            options::LIMITS.parse::<LimitArgs>(table, &self.document, folder, Vec::new()).map(Limits::from)
        };
        self.check.as_ref().map(parse).transpose()
    }

    /// What is written, in that order.
    fn outputs<'a>(&'a self, stages: &'a Stages) -> Vec<&'a Path> {
        let [prune, distill] = [
            stages.prune.as_ref().map(|args| &args.output),
            stages.distill.as_ref().map(|args| &args.output),
        ];
        let quantize = self.quantize.iter().map(|table| &table.output);
        prune.into_iter().chain(distill).chain(quantize).map(PathBuf::as_path).collect()
    }
}

/// Refuses outputs that would take one another's place.
fn check_outputs(outputs: &[&Path]) -> Result<()> {
    let mut seen = HashSet::new();
    if let Some(twice) = outputs.iter().find(|output| !seen.insert(**output)) {
        return Err(Failure::new(format!("it makes the output `{}` twice", twice.display()))
            .hint("give every stage and every [[quantize]] table an output of its own"));
    }
    let nested = outputs.iter().find_map(|inner| {
        let outer = inner.ancestors().skip(1).find(|outer| seen.contains(outer))?;
        Some((inner, outer))
    });
    match nested {
        Some((inner, outer)) => Err(Failure::new(format!(
            "the output `{}` would lie in the output `{}`",
            inner.display(),
            outer.display()
        ))
        .hint("give every output a folder of its own")),
        None => Ok(()),
    }
}

/// The `[check]` table of a file, with what was typed beside it.
///
/// # Errors
/// A file that cannot be read, has no such table, or one with keys or values that are none of `attar check`'s.
pub fn check_table(path: &Path, typed: &CheckArgs) -> Result<CheckArgs> {
    let read = || -> Result<CheckArgs> {
        let document = Document::new(path, fs::read_to_string(path)?);
        let mut file: Table = document.parse()?;
        let Some(Value::Table(mut table)) = file.remove("check") else {
            return Err(
                Failure::new("it has no [check] table").hint("attar check --help says what may be in it")
            );
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        let model = match table.remove("model") {
            Some(Value::String(model)) => Some(beside(folder, Path::new(&model))),
            Some(_) => {
                let failure = Failure::new("`model` is no text").hint("give its path in quotes");
                return Err(document.at(&[Step::Key("check"), Step::Key("model")], failure));
            }
            None => typed.model.clone(),
        };
        let words = vec![
            model.map_or_else(|| format!("--config={}", path.display()).into(), PathBuf::into_os_string),
        ];
        Ok(commands::check::merged(typed, options::CHECK.parse(&table, &document, folder, words)?))
    };
    read()
        .doing(|| format!("while reading `{}`", path.display()))
        .hint(|| "a TOML file with a [check] table, as docs/ci.md has it")
}

/// A path as it is written in a file of `folder`; what is on the hub is there from everywhere.
fn beside(folder: &Path, path: &Path) -> PathBuf {
    if hub::is_named(path) { path.to_owned() } else { tidy(&folder.join(path)) }
}

/// `a/b/../c` as `a/c`, where `b` is no link to elsewhere.
fn tidy(path: &Path) -> PathBuf {
    use std::path::Component;

    let mut tidy = PathBuf::new();
    for part in path.components() {
        let is_name = matches!(tidy.components().next_back(), Some(Component::Normal(_)));
        if part == Component::ParentDir && is_name && !tidy.is_symlink() {
            tidy.pop();
        } else {
            tidy.push(part);
        }
    }
    if tidy.as_os_str().is_empty() { PathBuf::from(".") } else { tidy }
}

impl QuantizeTable {
    /// The size that types are to be chosen for, if one is named.
    ///
    /// # Errors
    /// What does not go together, under the key that it is about.
    fn goal(&self) -> std::result::Result<Option<Goal>, (&'static str, Failure)> {
        let key = if self.target_size.is_some() { "target_size" } else { "target_bpw" };
        let too_odd = |why| Failure::new(why).hint("a size is a number and a unit: target_size = \"4.2GB\"");
        let bytes = self.target_size.as_deref().map(|size| parse_bytes(size).map_err(too_odd));
        let bytes = bytes.transpose().map_err(|failure| ("target_size", failure))?;
        let allow = self.allow.iter().map(|name| written_type(name)).collect::<Result<Vec<_>>>();
        let allow = allow.map_err(|failure| ("allow", failure))?;
        let key = if bytes.is_none() && self.target_bpw.is_none() { "allow" } else { key };
        let goal = Goal::of(bytes, self.target_bpw, &allow).map_err(|failure| (key, failure))?;
        let others = [
            ("scheme", self.scheme.is_some()),
            ("sparsity", self.sparsity.is_some()),
            ("imatrix", self.imatrix.is_some()),
            ("pure", self.pure),
        ];
        match others.iter().find(|(_, given)| goal.is_some() && *given) {
            Some((other, _)) => {
                let failure = Failure::new(format!("`{other}` and `{key}` do not go together"));
                Err((
                    key,
                    failure.hint(format!("leave one of them out: `{key}` chooses a type for each tensor")),
                ))
            }
            None => Ok(goal),
        }
    }

    /// The zeros that are asked for, alone or beside codes.
    ///
    /// # Errors
    /// What does not go together, under the key that it is about.
    fn zeros(&self) -> std::result::Result<ZerosArgs, (&'static str, Failure)> {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let sparsity = self.sparsity.as_ref().map(|value| text(value).parse::<Sparsity>()).transpose();
        let sparsity = sparsity.map_err(|error| ("sparsity", error.into()))?;
        match (sparsity, self.sparsity_criterion, self.method) {
            (None, Some(_), _) => {
                let failure = Failure::new("`sparsity_criterion` says which weights become 0, and none do");
                Err(("sparsity_criterion", failure.hint("say how many: sparsity = \"2:4\"")))
            }
            (Some(_), _, method) if method != Method::Auto => {
                let failure = Failure::new("where weights become 0 that decides how codes are chosen");
                Err(("method", failure.hint("leave `method` or `sparsity` out")))
            }
            (sparsity, by, _) => {
                Ok(ZerosArgs { sparsity, sparsity_criterion: by.unwrap_or(ZerosBy::SparseGpt) })
            }
        }
    }
}

/// An output with its words parsed.
struct Order<'a> {
    table: &'a QuantizeTable,
    scheme: Scheme,
    goal: Option<Goal>,
    zeros: Option<Box<dyn Solver>>,
    imatrix: Option<Imatrix>,
    rules: TypeRules,
}

impl<'a> Order<'a> {
    /// The outputs of a recipe, in its order.
    fn all(recipe: &'a Recipe) -> Result<Vec<Self>> {
        let tables = recipe.quantize.iter().enumerate();
        tables.map(|(number, table)| Self::parse(table, number, &recipe.document)).collect()
    }

    /// Of table `number` of the document.
    fn parse(table: &'a QuantizeTable, number: usize, document: &Document) -> Result<Self> {
        let at = || format!("while reading the output `{}` of the recipe", table.output.display());
        let value = |steps: &[Step<'_>], failure: Failure| {
            let way = [&[Step::Key("quantize"), Step::Item(number)], steps].concat();
            document.at(&way, failure)
        };
        let goal = table.goal().map_err(|(key, failure)| value(&[Step::Key(key)], failure)).doing(at)?;
        let scheme = match &table.scheme {
            Some(scheme) => scheme.parse().map_err(|failure| value(&[Step::Key("scheme")], failure)),
            None if goal.is_some() => Ok(Goal::stand_in()),
            None => {
                let failure = Failure::new("it has no `scheme`, nor a size to choose types for");
                Err(value(
                    &[],
                    failure.hint("scheme = \"q4_k_m\", target_size = \"4.2GB\" or target_bpw = 4.5"),
                ))
            }
        };
        let rule = |(at, rule): (usize, &String)| {
            rule.parse().map_err(|failure| value(&[Step::Key("tensor"), Step::Item(at)], failure))
        };
        let scheme = scheme.doing(at)?;
        let tensors = table.tensor.iter().enumerate().map(rule).collect::<Result<_>>().doing(at)?;
        let typed = |key: &'static str, name: &Option<String>| {
            let found = name.as_deref().map(written_type).transpose();
            found.map_err(|failure| value(&[Step::Key(key)], failure)).doing(at)
        };
        let rules = TypeRules {
            tensors,
            pure: table.pure,
            output: typed("output_type", &table.output_type)?,
            embedding: typed("embedding_type", &table.embedding_type)?,
            fallback: table.mix,
            no_fallback: table.no_fallback,
            exact: None,
        };
        let zeros = table.zeros().map_err(|(key, failure)| value(&[Step::Key(key)], failure));
        let zeros = zeros.doing(at)?.solver();
        let imatrix = table.imatrix.as_deref().map(|path| Imatrix::read(path, scheme, table.method));
        let imatrix =
            imatrix.transpose().map_err(|failure| value(&[Step::Key("imatrix")], failure)).doing(at)?;
        if imatrix.is_some() && zeros.is_some() {
            let failure =
                Failure::new("which weights become 0 is decided by a text, and an importance matrix is none");
            return Err(value(&[Step::Key("imatrix")], failure.hint("leave `imatrix` or `sparsity` out")))
                .doing(at);
        }
        Ok(Self { table, scheme, goal, zeros, imatrix, rules })
    }

    fn learns(&self, calibration: &CalibrationTable) -> bool {
        let by_text = self.table.method.learns(self.scheme, &calibration.files) && self.imatrix.is_none();
        by_text || self.zeros.is_some() || self.goal.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_do_not_take_one_anothers_place() {
        let check = |outputs: &[&str]| check_outputs(&outputs.iter().map(Path::new).collect::<Vec<_>>());
        assert!(check(&["a/b", "a/c", "ab"]).is_ok());
        for (outputs, part) in
            [(["a", "a"], "twice"), (["a/b/c", "a"], "would lie in"), (["a", "a/b.gguf"], "would lie in")]
        {
            let error = check(&outputs).map_err(|error| error.to_string());
            assert!(error.is_err_and(|error| error.contains(part)), "{outputs:?}");
        }
    }

    #[test]
    fn paths_are_tidied_and_never_climb_by_accident() {
        for (path, tidied) in [
            ("fixtures/../out/x", "out/x"),
            ("../a", "../a"),
            ("a/../../b", "../b"),
            ("/a/./b", "/a/b"),
            ("a/..", "."),
        ] {
            assert_eq!(tidy(Path::new(path)), Path::new(tidied));
        }
    }
}
