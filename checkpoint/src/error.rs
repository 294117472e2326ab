//! What can go wrong with a file, with the numbers that show it.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::{Dtype, gguf, imatrix, log_probs, safetensors};

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused: missing, unreadable, read-only, full.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being tried, as a verb: `"open"`, `"write"`.
        action: &'static str,
        /// The file or folder it was tried on.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A disk is too full for a temporary file.
    #[error("a temporary file of {needed_bytes} bytes is needed, and {} has room for {free_bytes}", folder.display())]
    NoRoom {
        /// The folder it was to lie in.
        folder: PathBuf,
        /// What it takes.
        needed_bytes: u64,
        /// What the disk has left.
        free_bytes: u64,
    },
    /// The output is there already and was not to be replaced.
    #[error("{} exists already", path.display())]
    Exists {
        /// The output's path.
        path: PathBuf,
    },
    /// The file is not JSON, or not the JSON its reader needs.
    #[error("{} is not the JSON it should be", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: serde_json::Error,
    },
    /// The path leads to nothing this crate opens.
    #[error("{} is neither a GGUF file nor a folder with safetensors{}", path.display(), found.note())]
    NotACheckpoint {
        /// The path.
        path: PathBuf,
        /// What is there instead.
        found: Found,
    },
    /// A safetensors file or index that is broken or lies.
    #[error("{} is not a sound safetensors file", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: safetensors::Flaw,
    },
    /// A GGUF file that is broken or lies.
    #[error("{} is not a sound GGUF file", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: gguf::Flaw,
    },
    /// A file of log-probabilities that is broken or lies.
    #[error("{} is not a sound file of llama-perplexity's --kl-divergence-base", path.display())]
    LogProbs {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<log_probs::Flaw>,
    },
    /// An importance matrix that is broken or lies.
    #[error("{} is not a sound importance matrix", path.display())]
    Imatrix {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<imatrix::Flaw>,
    },
    /// What was to be written does not fit the format or the plan.
    #[error("cannot write {}", path.display())]
    Unwritable {
        /// The output.
        path: PathBuf,
        /// What does not fit.
        source: Misfit,
    },
    /// The container has no tensor of this name.
    #[error("no tensor `{name}` among the {count} of {}", path.display())]
    NoTensor {
        /// The name asked for.
        name: String,
        /// How many tensors there are.
        count: usize,
        /// The container's path.
        path: PathBuf,
    },
    /// The container is planned, and its numbers are not there yet.
    #[error("`{name}` of {} is not written yet", path.display())]
    NotYetWritten {
        /// The tensor.
        name: String,
        /// Where it is going to be.
        path: PathBuf,
    },
    /// Values of this storage type are not plain floats.
    #[error("{dtype} holds no plain floating-point values")]
    NotFloats {
        /// The storage type.
        dtype: Dtype,
    },
    /// Bytes that end within a value.
    #[error("{dtype} values take {unit_bytes} bytes each, which does not divide {bytes} bytes")]
    OddBytes {
        /// The storage type.
        dtype: Dtype,
        /// Bytes of one value.
        unit_bytes: usize,
        /// Bytes given.
        bytes: usize,
    },
}

/// What lies where a checkpoint was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Weights pickled by Python (`.bin`, `.pt`, `.pth`), which this crate never executes.
    Pickle,
    /// A folder that holds a GGUF file among its files.
    GgufInside,
    /// A file or folder with nothing recognisable.
    Other,
}

impl Found {
    /// Looks at a path that is no checkpoint.
    pub(crate) fn at(path: &Path) -> Self {
        let ends = |path: &Path, endings: &[&str]| {
            path.extension().is_some_and(|ending| endings.iter().any(|e| ending.eq_ignore_ascii_case(e)))
        };
        let inside: Vec<PathBuf> =
            fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        let pickles = ["bin", "pt", "pth"];
        if inside.iter().any(|path| ends(path, &["gguf"])) {
            Self::GgufInside
        } else if ends(path, &pickles) || inside.iter().any(|path| ends(path, &pickles)) {
            Self::Pickle
        } else {
            Self::Other
        }
    }

    fn note(self) -> &'static str {
        match self {
            Self::Pickle => ": its weights are pickled by Python",
            Self::GgufInside => ": it is a folder around a GGUF file",
            Self::Other => "",
        }
    }
}

/// How tensors or metadata handed to a writer break its format or its plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Misfit {
    #[error("two tensors are called `{name}`")]
    DuplicateTensor { name: String },
    #[error("two metadata values are called `{key}`")]
    DuplicateKey { key: String },
    #[error("the name `{name}` has {bytes} bytes; llama.cpp reads at most {most}")]
    NameTooLong { name: String, bytes: usize, most: usize },
    #[error("`{name}` has {dims} dimensions; the format holds at most {most}")]
    TooManyDims { name: String, dims: usize, most: usize },
    #[error("the format has no type for the {dtype} values of `{name}`")]
    NoSuchType { name: String, dtype: Dtype },
    #[error(
        "`{name}` is planned with {planned} bytes, but its shape {shape:?} does not come to that in {dtype}"
    )]
    WrongSize { name: String, dtype: Dtype, shape: Vec<usize>, planned: u64 },
    #[error("`general.alignment` must be a power of two stored as u32")]
    Alignment,
    #[error("it would be cut into {parts} parts; a model has at most {most}")]
    TooManyParts { parts: usize, most: usize },
    #[error("the header takes {bytes} bytes; readers accept at most {most}")]
    HeaderTooLong { bytes: usize, most: usize },
    #[error("the tensor `{name}` is not in the plan")]
    NotPlanned { name: String },
    #[error("`{name}` is planned with {planned} bytes and got {given}")]
    TooManyBytes { name: String, planned: u64, given: u64 },
    #[error("`{name}` is planned with {planned} bytes and has only {written}")]
    Unfinished { name: String, planned: u64, written: u64 },
}

/// What can be done where the operating system refused.
pub fn system_hint(kind: io::ErrorKind) -> Option<&'static str> {
    use io::ErrorKind as Kind;

    match kind {
        Kind::NotFound => Some("check the path for a misprint"),
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem => {
            Some("choose a folder you may write to, or change its permissions")
        }
        Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => {
            Some("make room on the disk, or write to another one")
        }
        Kind::AlreadyExists | Kind::NotADirectory => {
            Some("something else has a name on this path: choose another one")
        }
        Kind::IsADirectory => Some("that is a folder: name a file in it"),
        _ => None,
    }
}

impl Error {
    /// What could be done about it outside this program, where there is something to do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotACheckpoint { found: Found::Pickle, .. } => {
                Some("save the model as safetensors first: in Python, model.save_pretrained(folder)")
            }
            Self::NotACheckpoint { found: Found::GgufInside, .. } => Some("name the .gguf file itself"),
            Self::Safetensors { source, .. } => source.hint(),
            Self::Gguf { source, .. } => source.hint(),
            Self::Imatrix { .. } => Some("collect it again: attar imatrix MODEL --text FILE -o FILE"),
            Self::NoRoom { .. } => Some("make room, or set TMPDIR to a folder on a larger disk"),
            Self::Io { source, .. } => system_hint(source.kind()),
            _ => None,
        }
    }

    /// Wraps an operating-system error with what was tried on which path.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
