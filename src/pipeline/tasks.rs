//! Tasks: read, asked of a model, counted.

use std::path::{Path, PathBuf};

use attar_checkpoint::tokenizer::Tokenizer;
use attar_eval::Scored;
use attar_eval::report::TaskResult;
use attar_eval::tasks::{self, Item, Request, Size, Task};
use attar_model::Precision;

use crate::device::Computer;
use crate::diagnostic::{Explain, Failure, Result};
use crate::plan::{ScoringMemory, ScoringSize};
use crate::source::Source;
use crate::talk::Talk;
use crate::text::Text;

/// Reads tasks, of each at most `limit` items; a file without folder and ending is a task's name.
///
/// # Errors
/// Files that cannot be read, lines that are no items, two files of one name.
pub fn read(files: &[PathBuf], limit: Option<usize>) -> Result<Vec<Task>> {
    let mut tasks: Vec<Task> = Vec::new();
    for file in files {
        let name = file.file_stem().unwrap_or(file.as_os_str()).to_string_lossy();
        let text = Text::read(file)?;
        let task = Task::parse(&name, &text.content, limit)
            .doing(|| format!("while reading the task `{}`", file.display()))
            .hint(|| "a task is a file of JSON lines, see attar eval --help under --task")?;
        if tasks.iter().any(|other| other.name == task.name) {
            return Err(Failure::new(format!("two tasks have the name `{name}`"))
                .hint("reports name tasks as their files; rename one of them"));
        }
        tasks.push(task);
    }
    Ok(tasks)
}

/// Tasks as tokens of a model, and the memory that asking takes.
pub struct Exam<'a> {
    tasks: &'a [Task],
    requests: Vec<Request>, // of all tasks, one after another
    source: &'a Source,
    /// How the model is run.
    pub memory: ScoringMemory,
}

impl<'a> Exam<'a> {
    /// Tokenizes and plans.
    ///
    /// # Errors
    /// Items that the model cannot be asked, too little memory.
    pub fn plan(
        tasks: &'a [Task],
        source: &'a Source,
        tokenizer: &Tokenizer,
        precision: Precision,
        max_memory: Option<u64>,
        computer: &Computer,
    ) -> Result<Self> {
        let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
        let most = source.config.max_position_embeddings;
        let mut requests = Vec::new();
        for task in tasks {
            let encode = |text: &str| -> Result<Vec<u32>> { Ok(tokenizer.encode(text)?) };
            requests.extend(task.requests(encode, bos, most)?);
        }
        let Size { tokens, ctx, asked } = Size::of(&requests);
        let size = ScoringSize { tokens, ctx, scored: asked, models: 1, heads: 1 };
        let memory = ScoringMemory::plan(&source.config, size, precision, max_memory, computer)?;
        Ok(Self { tasks, requests, source, memory })
    }

    /// Texts that the model is given.
    pub fn texts(&self) -> usize {
        self.requests.len()
    }

    /// Asks the model; a result for each task, in order.
    ///
    /// # Errors
    /// Weights that cannot be read, numbers that overflow.
    pub fn sit(&self, name: &str, talk: Talk) -> Result<Vec<TaskResult>> {
        let tokens = self.requests.iter().map(Request::read_tokens).sum::<usize>() as u64;
        let stage = talk.stage(name, tokens, "tokens");
        let Source { config, .. } = self.source;
        let model = Scored { config, weights: self.source, streaming: self.memory.streaming.clone() };
        let mut told = 0;
        let answers = tasks::answer(&model, &self.requests, self.memory.budget, &mut |progress| {
            stage.step((progress.done - told) as u64, "tasks");
            told = progress.done;
        });
        let answers = answers.doing(|| format!("while asking `{}`", self.source.path.display()))?;
        stage.done();
        let mut left = &answers[..];
        let of_task = |task: &Task| {
            let (own, rest) = left.split_at(task.items.iter().map(Item::answers).sum());
            left = rest;
            task.result(own)
        };
        Ok(self.tasks.iter().map(of_task).collect())
    }
}

/// Refuses to compare answers with a model that is not there.
///
/// # Errors
/// Always.
pub fn refuse_kept(path: &Path) -> Failure {
    Failure::new(format!("`{}` keeps what a model says of one text, and nothing of tasks", path.display()))
        .hint("give the model itself to --reference, or leave --task out")
}
